"""How findings are shown: stable text, problems last with their fix, colour only where it is wanted."""

from __future__ import annotations

from agentflow.cli.doctor.findings import Check, Outcome, error, note, ok, skipped, warning
from agentflow.cli.doctor.report import text_of


def outcome(group, name, *findings):
    return Outcome(Check(group, name, lambda subject: []), findings)


OUTCOMES = [
    outcome("python", "python", ok("CPython 3.12.1")),
    outcome("python", "extras", error("aiokafka is not installed", "aiokafka<1", "pip install 'agentflow[kafka]'")),
    outcome("state", "directory", ok("state/a"), note("state/b is new")),
    outcome("state", "sync speed", warning("p50 20 ms", "below 10 ms", "take a faster disk")),
    outcome("kafka", "client", skipped("the job does not read Kafka")),
    outcome("kafka", "brokers", skipped("the job does not read Kafka")),
    outcome("job", "job file", error("job.yaml:7: unknown key 'x'\n  7 | x: 1\n      ^", "", "correct it")),
]

TEXT = """\
python
  ok       python                CPython 3.12.1
  error    extras                aiokafka is not installed

state
  ok       directory             state/a
  note                           state/b is new
  warning  sync speed            p50 20 ms

kafka
  skipped                        the job does not read Kafka

job
  error    job file              job.yaml:7: unknown key 'x'

warning: sync speed: p50 20 ms
  expected: below 10 ms
  fix: take a faster disk

error: extras: aiokafka is not installed
  expected: aiokafka<1
  fix: pip install 'agentflow[kafka]'

error: job file: job.yaml:7: unknown key 'x'
    7 | x: 1
        ^
  fix: correct it

7 checks: 1 ok, 1 note, 2 skipped, 1 warning, 2 errors"""


def test_groups_come_first_and_problems_last_with_their_fix():
    assert text_of(OUTCOMES, is_colored=False) == TEXT


def test_colour_adds_nothing_but_colour():
    colored = text_of(OUTCOMES, is_colored=True)
    assert "\x1b[31;1merror" in colored
    for code in ("0", "2", "32", "33", "36", "31;1"):
        colored = colored.replace(f"\x1b[{code}m", "")
    assert [line.rstrip() for line in colored.splitlines()] == TEXT.splitlines()


def test_json_has_every_finding_in_its_own_row():
    rows = [row for one in OUTCOMES for row in one.rows()]
    assert len(rows) == 8
    assert rows[1] == {
        "group": "python",
        "check": "extras",
        "result": "error",
        "found": "aiokafka is not installed",
        "expected": "aiokafka<1",
        "fix": "pip install 'agentflow[kafka]'",
        "seconds": 0.0,
    }

"""What a person reads when keys and values of a job file are wrong: the whole text, with place, mark and fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentflow.cli.config_file import load_job_file
from agentflow.errors import ConfigError
from tests.unit.cli.job_files import GOOD, problems, told


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


CASES = {
    "unknown key of a section, the example of the interface": (
        GOOD + "checkpoint: {intervall: 1s}\n",
        """
        job.yaml:7: unknown key 'checkpoint.intervall'
          7 | checkpoint: {intervall: 1s}
                           ^^^^^^^^^ did you mean 'interval'?
        help: agentflow schema --describe checkpoint
        """,
    ),
    "unknown dotted key": (
        GOOD + "checkpoint.intervall: 1s\n",
        """
        job.yaml:7: unknown key 'checkpoint.intervall'
          7 | checkpoint.intervall: 1s
              ^^^^^^^^^^^^^^^^^^^^ did you mean 'checkpoint.interval'?
        help: agentflow schema --describe checkpoint
        """,
    ),
    "underscore for dash": (
        GOOD + "record_max: 1MiB\n",
        """
        job.yaml:7: unknown key 'record_max'
          7 | record_max: 1MiB
              ^^^^^^^^^^ did you mean 'record-max'?
        help: agentflow schema --describe
        """,
    ),
    "key of another section": (
        GOOD + "ttl: 1d\n",
        """
        job.yaml:7: unknown key 'ttl'
          7 | ttl: 1d
              ^^^ did you mean 'signals.ttl' or 'state.ttl'?
        help: agentflow schema --describe
        """,
    ),
    "no key is near": (
        GOOD + "shutdown: {zzz: 1}\n",
        """
        job.yaml:7: unknown key 'shutdown.zzz'
          7 | shutdown: {zzz: 1}
                         ^^^ known here: drain-timeout
        help: agentflow schema --describe shutdown
        """,
    ),
    "key below a value": (
        GOOD + "guarantee.sink: none\n",
        """
        job.yaml:7: unknown key 'guarantee.sink'
          7 | guarantee.sink: none
              ^^^^^^^^^^^^^^ 'guarantee' is one value, nothing is below it
        help: agentflow schema --describe guarantee
        """,
    ),
    "key below a kind without keys": (
        GOOD.replace("{jsonl: {path: in.jsonl}}", "{stdin: {path: x}}"),
        """
        job.yaml:4: unknown key 'source.stdin.path'
          4 | source: {stdin: {path: x}}
                               ^^^^ it has no keys
        help: agentflow schema --describe source
        """,
    ),
    "value for a section": (
        GOOD + "checkpoint: 5s\n",
        """
        job.yaml:7: 'checkpoint' is a section, not a value
          7 | checkpoint: 5s
                          ^^ keys: interval, timeout
        help: agentflow schema --describe checkpoint
        """,
    ),
    "list for a section": (
        GOOD + "restart: [none]\n",
        """
        job.yaml:7: 'restart' is a section, not a value
          7 | restart: [none]
                       ^^^^^^ keys: strategy, delay, delay-max, attempts
        help: agentflow schema --describe restart
        """,
    ),
    "mapping for a value": (
        GOOD + "guarantee: {sink: none}\n",
        """
        job.yaml:7: guarantee is a mapping
          7 | guarantee: {sink: none}
                         ^^^^^^^^^^^^ one of exactly-once, at-least-once, none
        help: agentflow schema --describe guarantee
        """,
    ),
    "duration that is none": (
        GOOD + "checkpoint.interval: soon\n",
        """
        job.yaml:7: checkpoint.interval is not a duration: 'soon'
          7 | checkpoint.interval: soon
                                   ^^^^ a number with a unit (ms, s, m, h, d), such as '5s'
        help: agentflow schema --describe checkpoint
        """,
    ),
    "duration without a unit": (
        GOOD + "checkpoint.interval: 5\n",
        """
        job.yaml:7: checkpoint.interval has no unit: 5
          7 | checkpoint.interval: 5
                                   ^ did you mean '5s'? units: ms, s, m, h, d
        help: agentflow schema --describe checkpoint
        """,
    ),
    "duration of zero where it must be more": (
        GOOD + "checkpoint.interval: 0s\n",
        """
        job.yaml:7: checkpoint.interval is too small: 0s
          7 | checkpoint.interval: 0s
                                   ^^ at least 1ms
        help: agentflow schema --describe checkpoint
        """,
    ),
    "size without a unit": (
        GOOD + "state: {cache: 64}\n",
        """
        job.yaml:7: state.cache has no unit: 64
          7 | state: {cache: 64}
                             ^^ did you mean '64MiB'? units: B, KiB, MiB, GiB
        help: agentflow schema --describe state
        """,
    ),
    "size that is none": (
        GOOD + "record-max: 8 megs\n",
        """
        job.yaml:7: record-max is not a size: '8 megs'
          7 | record-max: 8 megs
                          ^^^^^^ a number with a unit (B, KiB, MiB, GiB), such as '64MiB'
        help: agentflow schema --describe record-max
        """,
    ),
    "number that is none": (
        GOOD + "run.in-flight-max: many\n",
        """
        job.yaml:7: run.in-flight-max is not a whole number: 'many'
          7 | run.in-flight-max: many
                                 ^^^^ digits, such as 1000
        help: agentflow schema --describe run
        """,
    ),
    "number that is too small": (
        GOOD + "key: {pending-max: 0}\n",
        """
        job.yaml:7: key.pending-max is too small: 0
          7 | key: {pending-max: 0}
                                 ^ at least 1
        help: agentflow schema --describe key
        """,
    ),
    "ratio that is too large": (
        GOOD + "tracing: {sample-ratio: 50}\n",
        """
        job.yaml:7: tracing.sample-ratio is too large: 50
          7 | tracing: {sample-ratio: 50}
                                      ^^ at most 1
        help: agentflow schema --describe tracing
        """,
    ),
    "ratio that is no number": (
        GOOD + "tracing.sample-ratio: .nan\n",
        """
        job.yaml:7: tracing.sample-ratio is not a number: '.nan'
          7 | tracing.sample-ratio: .nan
                                    ^^^^ a number is wanted, such as 0.01
        help: agentflow schema --describe tracing
        """,
    ),
    "bucket that is no duration": (
        GOOD + "metrics.histogram-buckets: [1ms, fast]\n",
        """
        job.yaml:7: metrics.histogram-buckets: 'fast' is not a duration; write a number with a unit (us, ms, s, m), such as '250us'
          7 | metrics.histogram-buckets: [1ms, fast]
                                         ^^^^^^^^^^^ such as  [1ms, 10ms, 100ms, 1s]
        """,
    ),
    "word that is none of the known": (
        GOOD + "guarantee: exactly_once\n",
        """
        job.yaml:7: guarantee is unknown: 'exactly_once'
          7 | guarantee: exactly_once
                         ^^^^^^^^^^^^ did you mean 'exactly-once'? one of exactly-once, at-least-once, none
        help: agentflow schema --describe guarantee
        """,
    ),
    "key without a value": (
        GOOD + "guarantee:\n",
        """
        job.yaml:7: guarantee has no value
          7 | guarantee:
                        ^ one of exactly-once, at-least-once, none
        help: agentflow schema --describe guarantee
        """,
    ),
    "number where a text is wanted": (
        GOOD.replace("job: reviews", "job: 2024"),
        """
        job.yaml:1: job is a number: 2024
          1 | job: 2024
                   ^^^^ a text is wanted; write "2024"
        help: agentflow schema --describe job
        """,
    ),
    "name that cannot be a name": (
        GOOD.replace("job: reviews", "job: my job"),
        """
        job.yaml:1: job is not a valid name: 'my job'
          1 | job: my job
                   ^^^^^^ letters, digits and . _ - (at most 100), no spaces
        help: agentflow schema --describe job
        """,
    ),
    "agent that is not module:name": (
        GOOD.replace("shop.agents:ReviewAgent", "shop.agents.ReviewAgent"),
        """
        job.yaml:2: agent is not module:name: 'shop.agents.ReviewAgent'
          2 | agent: shop.agents.ReviewAgent
                     ^^^^^^^^^^^^^^^^^^^^^^^ such as shop.agents:ReviewAgent
        help: agentflow schema --describe agent
        """,
    ),
    "empty text": (
        GOOD.replace("state/", "''"),
        """
        job.yaml:6: state.dir is an empty text
          6 | state.dir: ''
                         ^^ a text is wanted
        help: agentflow schema --describe state
        """,
    ),
    "unknown source": (
        GOOD.replace("jsonl: {path: in.jsonl}", "mqtt: {topics: [reviews]}"),
        """
        job.yaml:4: unknown key 'source.mqtt'
          4 | source: {mqtt: {topics: [reviews]}}
                       ^^^^ known here: jsonl, csv, parquet, arrow, stdin, http, kafka, python
        help: agentflow schema --describe source
        """,
    ),
    "source without its path": (
        GOOD.replace("{path: in.jsonl}", "{}"),
        """
        job.yaml:4: 'source.jsonl.path' is missing
          4 | source: {jsonl: {}}
                       ^^^^^ File, pattern (data/*.jsonl), or list of them
        """,
    ),
    "empty source": (
        GOOD.replace("{jsonl: {path: in.jsonl}}", "{}"),
        """
        job.yaml:4: 'source' is empty
          4 | source: {}
              ^^^^^^ one of: jsonl, csv, parquet, arrow, stdin, http, kafka, python
        help: agentflow schema --describe source
        """,
    ),
    "two kinds of source": (
        GOOD.replace("source: {", "source: {stdin: {}, "),
        """
        job.yaml:4: 'source' has both 'stdin' and 'jsonl'
          4 | source: {stdin: {}, jsonl: {path: in.jsonl}}
                                          ^^^^ choose one
        """,
    ),
    "no path among the paths": (
        GOOD.replace("path: in.jsonl", "path: []"),
        """
        job.yaml:4: source.jsonl.path has no value
          4 | source: {jsonl: {path: []}}
                                     ^^ a text, or a list of texts
        help: agentflow schema --describe source
        """,
    ),
    "same key twice": (
        GOOD + "checkpoint:\n  interval: 1s\ncheckpoint.interval: 2s\n",
        """
        job.yaml:9: key 'checkpoint.interval' is set twice, first in line 8
          8 |   interval: 1s
          9 | checkpoint.interval: 2s
              ^^^^^^^^^^^^^^^^^^^ remove one of them
        """,
    ),
    "same section twice": (
        GOOD + "state: {ttl: 1d}\nstate: {cache: 1MiB}\n",
        """
        job.yaml:8: key 'state' is set twice, first in line 7
          7 | state: {ttl: 1d}
          8 | state: {cache: 1MiB}
              ^^^^^ remove one of them
        """,
    ),
    "option that is value and section": (
        GOOD + "config:\n  shop: 1\n  shop.limit: 2\n",
        """
        job.yaml:9: key 'config.shop.limit' collides with 'config.shop'
          8 |   shop: 1
          9 |   shop.limit: 2
                ^^^^^^^^^^ a key is either a value or a section
        """,
    ),
    "options that are no section": (
        GOOD + "config: 5\n",
        """
        job.yaml:7: 'config' is a section, not a value
          7 | config: 5
                      ^ options for the agents, any keys
        """,
    ),
    "key that is no text": (
        GOOD + "config: {1: a}\n",
        """
        job.yaml:7: a key is a text, not 1
          7 | config: {1: a}
                       ^ put it in quotes
        """,
    ),
    "missing agent": (
        GOOD.replace("agent: shop.agents:ReviewAgent\n", ""),
        """
        job.yaml: 'agent' is missing
          such as  agent: shop.agents:ReviewAgent
        help: agentflow schema --describe
        """,
    ),
    "missing sink": (
        GOOD.replace("sink: {jsonl: {path: out/}}\n", ""),
        """
        job.yaml: 'sink' is missing
          such as  sink: {jsonl: {path: out/}}
        help: agentflow schema --describe
        """,
    ),
    "standard input cannot be repeated": (
        GOOD.replace("{jsonl: {path: in.jsonl}}", "{stdin: {}}").replace("state.dir: state/\n", ""),
        """
        job.yaml:4: standard input cannot be read twice, so the job cannot be exactly-once
          4 | source: {stdin: {}}
                       ^^^^^ a jsonl source can
        help: set  guarantee: none;  or  source: {jsonl: {path: in.jsonl}}
        """,
    ),
    "standard input at least once": (
        GOOD.replace("{jsonl: {path: in.jsonl}}", "stdin") + "guarantee: at-least-once\n",
        """
        job.yaml:4: standard input cannot be read twice, so the job cannot be at-least-once
          4 | source: stdin
                      ^^^^^ a jsonl source can
        help: set  guarantee: none, and remove state.dir;  or  source: {jsonl: {path: in.jsonl}}
        """,
    ),
    "positions of standard input": (
        GOOD.replace("{jsonl: {path: in.jsonl}}", "{stdin: {}}") + "guarantee: none\n",
        """
        job.yaml:6: state.dir keeps positions, which mean nothing for standard input
          6 | state.dir: state/
                         ^^^^^^ remove it
        """,
    ),
    "standard output exactly once": (
        GOOD.replace("sink: {jsonl: {path: out/}}", "sink: {stdout: {}}"),
        """
        job.yaml:5: sink: standard output is at-least-once, so the job cannot be exactly-once
          5 | sink: {stdout: {}}
                     ^^^^^^ a jsonl sink can
        help: set  guarantee: at-least-once;  or  sink: {jsonl: {path: out/}}
        """,
    ),
    "exactly once without state": (
        GOOD.replace("state.dir: state/\n", "guarantee: exactly-once\n"),
        """
        job.yaml:6: an exactly-once job needs a state directory: state in memory is lost with the process
          6 | guarantee: exactly-once
                         ^^^^^^^^^^^^ state.dir is not set
        help: set  state.dir: ./state/reviews;  or  guarantee: none
        """,
    ),
    "exactly once by default without state": (
        GOOD.replace("state.dir: state/\n", ""),
        """
        job.yaml: an exactly-once job needs a state directory: state in memory is lost with the process
          state.dir is not set
        help: set  state.dir: ./state/reviews;  or  guarantee: none
        """,
    ),
    "key of a record that has none": (
        GOOD.replace("product_id", "record.key"),
        """
        job.yaml:3: key-by: records of files and of standard input have no key of their own
          3 | key-by: record.key
                      ^^^^^^^^^^ name a field of the value, or module:function
        """,
    ),
    "overflow to nowhere": (
        GOOD + "on-overflow: dead-letter\n",
        """
        job.yaml:7: on-overflow: dead-letter needs a dead-letter sink
          7 | on-overflow: dead-letter
                           ^^^^^^^^^^^ add  dead-letter: {jsonl: {path: dead/}}  or take 'pause'
        """,
    ),
    "two sinks in one directory": (
        GOOD + "dead-letter: {jsonl: {path: ./out}}\n",
        """
        job.yaml:7: dead-letter.jsonl.path and sink.jsonl.path are the same directory
          7 | dead-letter: {jsonl: {path: ./out}}
                                          ^^^^^ choose another one
        """,
    ),
    "sink onto the source": (
        GOOD.replace("path: out/", "path: in.jsonl"),
        """
        job.yaml:5: sink.jsonl.path is the file that the source reads
          5 | sink: {jsonl: {path: in.jsonl}}
                                   ^^^^^^^^ a directory is wanted
        """,
    ),
    "profile that is no section": (
        GOOD + "profile: prod\n",
        """
        job.yaml:7: 'profile' is a section of profiles, not a value
          7 | profile: prod
                       ^^^^ profile: {prod: {checkpoint.interval: 5s}}, chosen by --profile prod
        """,
    ),
    "unknown key of a profile that is not chosen": (
        GOOD + "profile:\n  prod:\n    checkpoint: {intervall: 5s}\n",
        """
        job.yaml:9: unknown key 'checkpoint.intervall'
          9 |     checkpoint: {intervall: 5s}
                               ^^^^^^^^^ did you mean 'interval'?
        help: agentflow schema --describe checkpoint
        """,
    ),
    "bad value of a profile that is not chosen": (
        GOOD + "profile.prod.checkpoint.interval: 5\n",
        """
        job.yaml:7: checkpoint.interval has no unit: 5
          7 | profile.prod.checkpoint.interval: 5
                                                ^ did you mean '5s'? units: ms, s, m, h, d
        help: agentflow schema --describe checkpoint
        """,
    ),
    "profile twice": (
        GOOD + "profile:\n  prod: {}\nprofile.prod: {}\n",
        """
        job.yaml:9: profile 'prod' is there twice, first in line 8
          8 |   prod: {}
          9 | profile.prod: {}
              ^^^^^^^^^^^^ remove one of them
        """,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_problem_is_told_with_place_mark_and_fix(case):
    text, expected = CASES[case]
    assert problems(text) == [told(expected)]


def test_all_problems_are_told_at_once_in_the_order_of_lines():
    text = GOOD.replace("job: reviews", "job: my job") + "guarantee: maybe\ncheckpoint.interval: 5\nagnt: x\n"
    assert [problem.split("\n")[0] for problem in problems(text, "zzz=1")] == [
        "job.yaml:1: job is not a valid name: 'my job'",
        "job.yaml:7: guarantee is unknown: 'maybe'",
        "job.yaml:8: checkpoint.interval has no unit: 5",
        "job.yaml:9: unknown key 'agnt'",
        "--set: unknown key 'zzz'",
    ]


def test_misspelled_key_is_not_also_reported_as_missing():
    assert [problem.split("\n")[0] for problem in problems(GOOD.replace("key-by", "key_by"))] == [
        "job.yaml:3: unknown key 'key_by'"
    ]


def test_problems_are_one_config_error_with_their_places():
    Path("job.yaml").write_text(GOOD + "guarantee: maybe\nrecord-max: 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="configuration: 2 problems") as caught:
        load_job_file("job.yaml", variables={})
    assert [(problem.place.line, problem.place.column) for problem in caught.value.found] == [(7, 11), (8, 12)]


def test_flag_is_told_with_its_mark():
    assert problems(GOOD, "checkpoint.intervall=5s") == [
        told("""
        --set: unknown key 'checkpoint.intervall'
          checkpoint.intervall=5s
          ^^^^^^^^^^^^^^^^^^^^ did you mean 'checkpoint.interval'?
        help: agentflow schema --describe checkpoint
        """)
    ]


def test_value_of_a_flag_is_told_with_its_mark():
    assert problems(GOOD, "checkpoint.interval=5") == [
        told("""
        --set: checkpoint.interval has no unit: 5
          checkpoint.interval=5
                              ^ did you mean '5s'? units: ms, s, m, h, d
        help: agentflow schema --describe checkpoint
        """)
    ]


def test_flag_without_a_value_is_told():
    assert problems(GOOD, "guarantee") == [
        "--set: 'guarantee' is not key=value\n  such as --set checkpoint.interval=5s"
    ]


def test_profile_cannot_be_set_by_a_flag():
    assert problems(GOOD, "profile=prod") == [
        "--set: a profile is chosen, not set\n  profile=prod\n  ^^^^^^^ --profile NAME"
    ]


def test_variable_that_names_no_key_is_told_without_its_value():
    variables = {"AGENTFLOW_CHECKPOINT_INTERVALL": "a secret"}
    assert problems(GOOD, variables=variables) == [
        told("""
        environment: the variable AGENTFLOW_CHECKPOINT_INTERVALL names no key
          did you mean AGENTFLOW_CHECKPOINT_INTERVAL?
        help: agentflow schema --describe
        """)
    ]


def test_value_of_a_variable_is_told_with_its_mark():
    assert problems(GOOD, variables={"AGENTFLOW_GUARANTEE": "twice"}) == [
        told("""
        environment: guarantee is unknown: 'twice'
          AGENTFLOW_GUARANTEE=twice
                              ^^^^^ one of exactly-once, at-least-once, none
        help: agentflow schema --describe guarantee
        """)
    ]


def test_unknown_profile_is_told_with_those_there_are():
    text = GOOD + "profile: {prod: {}, test: {}}\n"
    assert problems(text, profile="dev") == ["job.yaml: there is no profile 'dev'\n  the file has: prod, test"]
    assert problems(text, profile="prd") == ["job.yaml: there is no profile 'prd'\n  did you mean 'prod'?"]
    assert problems(GOOD, profile="dev") == [
        "job.yaml: there is no profile 'dev'\n  the file has no 'profile:' section"
    ]

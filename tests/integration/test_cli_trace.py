"""`agentflow trace show` over the event log of a job that has run."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agentflow import Agent, CancelEvent, EventType, OutputEvent, Retry
from agentflow.api.executions import ExecutionReporters
from agentflow.cli.main import main
from agentflow.observability.event_log_files import log_files
from agentflow.observability.event_log_search import LogSearch
from agentflow.runtime.settings import RotationSettings
from tests.event_log_world import World

ROOT = Path(__file__).resolve().parents[2]
JOB = """\
job: test
agent: shop:Agent
source: {jsonl: {path: in.jsonl}}
key-by: k
sink: {jsonl: {path: out/}}
state.dir: state/
event-log: {level: standard, dir: logs}
"""


async def act(event, ctx):
    def ask():
        ExecutionReporters.started(ctx, "llm", "gpt", {"model": "gpt-x"})
        ExecutionReporters.succeeded(ctx, "llm", "gpt")
        return 5

    answer = await ctx.durable_execute_async(ask)
    if event.input["n"] == 3:
        raise KeyError("stars")
    ctx.send_event(OutputEvent({"n": event.input["n"], "answer": answer}))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with a job file and the event log of three runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    agent = Agent("A").add_action("act", [EventType.InputEvent], act, retry=Retry(attempts=1))
    agent.add_action("undo", [CancelEvent], lambda event, ctx: None)
    world = World(tmp_path, agent, trace=True, rotation=RotationSettings(size_bytes=1_500))
    values = [{"k": "a", "n": 1}, {"k": 5, "n": 2}, {"k": "a", "n": 3}]
    world.run(values[:2])
    world.run(values)  # goes on behind them, in files of its own
    assert len(world.files()) > 1
    return tmp_path


def shown(capsys, *arguments, status=0):
    assert main(["trace", "show", *arguments]) == status
    return capsys.readouterr()


def test_a_run_is_found_over_all_files_and_drawn(place, capsys):
    out = shown(capsys, "job.yaml", "list/0").out
    assert [line.lstrip("│ └├─").split("  ")[0] for line in out.splitlines()] == [
        "run list/0", "_input_event", "action act", "step tests.integration.test_cli_trace.act.<locals>.ask", "llm gpt", "_output_event",
    ]  # fmt: skip
    assert '{"output":{"n":1,"answer":5}}' in out
    by_log = shown(capsys, "list/0", "--log", *map(str, sorted(place.glob("logs/*"))))
    assert by_log.out == out == shown(capsys, "list/0", "--log", "logs").out


def test_a_run_whose_id_begins_like_another_one_is_not_it(place, capsys):
    (log,) = [place / "one.log"]
    lines = [
        {"inputRunId": run, "eventId": f"{run}/0", "eventType": "_input_event", "eventAttributes": {}}
        for run in ("list/1", "list/10")
    ]
    log.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    assert json.loads(shown(capsys, "list/1", "--log", "one.log", "--format", "json").out)["records"] == 1


@pytest.mark.parametrize(
    ("key", "runs"), [("a", ["list/0", "list/2"]), ('"a"', ["list/0", "list/2"]), ("5", ["list/1"])]
)
def test_runs_of_a_key_are_listed_and_the_last_is_shown(place, capsys, key, runs):
    found = json.loads(shown(capsys, "job.yaml", "--key", key, "--format", "json").out)
    assert [run["run"] for run in found["runs"]] == runs
    assert [trace["run"] for trace in found["traces"]] == runs[-1:]
    everything = json.loads(shown(capsys, "job.yaml", "--key", key, "--all", "--format", "json").out)
    assert [trace["run"] for trace in everything["traces"]] == runs
    text = shown(capsys, "job.yaml", "--key", key).out
    assert text.splitlines()[0].split() == ["RUN", "AGENT", "BEGAN", "ENDED", "RECORDS", "PROBLEMS"]
    assert text.count("\nrun ") == 1


def test_a_failed_run_says_so(place, capsys):
    trace = json.loads(shown(capsys, "job.yaml", "list/2", "--format", "json").out)
    assert trace["status"] == "dead-lettered"
    (action,) = trace["roots"][0]["children"]
    assert (action["status"], action["error"]) == ("dead-lettered", "KeyError: 'stars'")


@pytest.mark.parametrize(("form", "begins"), [("mermaid", "flowchart TD\n"), ("html", "<!doctype html>\n")])
def test_other_forms_are_printed(place, capsys, form, begins):
    assert shown(capsys, "job.yaml", "list/0", "--format", form).out.startswith(begins)


def test_doubles_and_torn_lines_are_left_out(place, capsys):
    first, *rest = sorted(place.glob("logs/*"))
    before = shown(capsys, "job.yaml", "list/0", "--format", "json").out
    text = b"".join(path.read_bytes() for path in (first, *rest))
    (place / "logs" / "events-test-0.29990101T000000000.log").write_bytes(text + b'{"inputRunId":"list/0","eventId"')
    found = shown(capsys, "job.yaml", "list/0", "--format", "json")
    assert found.out == before
    assert found.err == "1 records could not be read: they are not whole\n"


@pytest.mark.parametrize(
    "arguments", [("job.yaml", "list/99"), ("job.yaml", "--key", "b"), ("list/99", "--log", "logs")]
)
def test_what_the_log_has_not_is_status_3(place, capsys, arguments):
    found = shown(capsys, *arguments, status=3)
    assert (found.out, "the event log has no record of" in found.err) == ("", True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no job file"),
        (("job.yaml",), "a job file and a run are wanted, and only 'job.yaml' is given"),
        (("job.yaml", "a", "b"), "more than is wanted"),
        (("job.yaml", "list/0", "--key", "a"), "more than is wanted"),
        (("--log", "logs"), "no run"),
        (("list/0", "--log", "nowhere"), "nowhere does not exist"),
        (("list/0", "--log", "out"), "out has no events-*.log"),
        (("nowhere.yaml", "list/0"), "there is no such file"),
        (
            ("job.yaml", "list/0", "--set", "event-log.dir=elsewhere"),
            "there is no event log of job 'test' in elsewhere/",
        ),
        (("job.yaml", "list/0", "--format", "xml"), "unknown --format 'xml'"),
        (("job.yaml", "list/0", "--formt", "json"), "did you mean '--format'?"),
        (("job.yaml", "--key", "a", "--set", "redaction.key=true"), "the event log hides this key"),
    ],
)
def test_wrong_use_is_told_with_status_2(place, capsys, arguments, said):
    (place / "out").mkdir()
    assert said in shown(capsys, *arguments, status=2).err


def test_a_terminal_gets_colours_and_a_pipe_does_not(place):
    command = [sys.executable, "-m", "agentflow", "trace", "show", "job.yaml", "list/2"]
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    environment = kept | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    piped = subprocess.run(command, cwd=place, env=environment, capture_output=True, check=True, timeout=60).stdout
    assert b"\x1b[" not in piped
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=place, env=environment, stdout=theirs, close_fds=True) as process:
        os.close(theirs)
        drawn = b""
        while True:
            try:
                more = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not more:
                break
            drawn += more
        assert process.wait(30) == 0
    os.close(ours)
    assert b"\x1b[" in drawn
    assert b"dead-lettered" in drawn


def test_of_runs_with_one_id_the_last_is_shown_and_the_others_when_they_are_asked_for(place, capsys):
    path = place / "logs" / "events-test-0.20990101T000000000.log"
    path.write_bytes(
        msgspec.json.encode(
            {
                "timestamp": "2099-01-01T00:00:00.000000Z",
                "inputRunId": "list/0",
                "businessKey": "a",
                "agentName": "A",
                "incarnation": "another",
                "eventId": "list/0/0",
                "eventType": "_input_event",
                "eventAttributes": {"input": {"n": 99}},
            }
        )
        + b"\n"
    )
    last = shown(capsys, "job.yaml", "list/0")
    assert ('{"input":{"n":99}}' in last.out, '"answer":5' in last.out) == (True, False)
    assert last.err == "there is an earlier run with the id list/0, of state that was not kept: --all shows them all\n"
    both = shown(capsys, "job.yaml", "list/0", "--all")
    assert [line.split("  ")[0] for line in both.out.splitlines() if line.startswith("run ")] == ["run list/0"] * 2
    assert both.out.index('"answer":5') < both.out.index('{"n":99}')
    assert both.err == ""
    of_key = json.loads(shown(capsys, "job.yaml", "--key", "a", "--all", "--format", "json").out)
    assert [(run["run"], run["records"]) for run in of_key["runs"]][-1] == ("list/0", 1)
    assert [trace["run"] for trace in of_key["traces"]] == [run["run"] for run in of_key["runs"]]
    assert [trace["records"] for trace in of_key["traces"]] == [run["records"] for run in of_key["runs"]]


def test_runs_of_jobs_without_kept_state_have_an_incarnation_each(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    agent = Agent("A").add_action("act", [EventType.InputEvent], act)
    for n in (1, 2):
        World(tmp_path, agent).run([{"k": "a", "n": n}])
    search = LogSearch(log_files("logs", "test"))
    assert [[record["eventAttributes"]["input"]["n"] for record in run[:1]] for run in search.runs("list/0")] == [
        [1],
        [2],
    ]

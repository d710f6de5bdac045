"""`agentflow run` as a process: output, log lines, signals, exit status."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

AGENTS = """\
import asyncio

from agentflow import Agent, EventType, InputEvent, OutputEvent, Retry, RunnerContext, action


class Divide(Agent):
    @action(EventType.InputEvent, retry=Retry(attempts=1))
    def divide(event: InputEvent, ctx: RunnerContext) -> None:
        count = ctx.short_term_memory.update("count", lambda n: (n or 0) + 1)
        ctx.logger.debug("dividing", count=count)
        ctx.send_event(OutputEvent({"key": ctx.key, "count": count, "result": 10 / event.input["n"]}))


class Forever(Agent):
    @action(EventType.InputEvent)
    async def wait(event: InputEvent, ctx: RunnerContext) -> None:
        ctx.logger.info("waiting")
        await asyncio.Event().wait()


class Tuned(Agent):
    @action(EventType.InputEvent)
    def show(event: InputEvent, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent({"limit": ctx.config.get_int("shop.limit"), "key": ctx.key}))


def parity(value):
    return value["n"] % 2
"""

JOB = """\
job: division
agent: agents:Divide
key-by: k
source: {jsonl: {path: in.jsonl}}
sink: {jsonl: {path: out/}}
state.dir: state/
restart.strategy: none
"""  # a failure is told at once; what restarts do has a test of its own

PIPE = ["--set", "source=stdin", "--set", "sink=stdout", "--set", "guarantee=none", "--set", "state.dir=null"]


@pytest.fixture
def project(tmp_path):
    """A directory with agents, a job file and three records."""
    (tmp_path / "agents.py").write_text(AGENTS, encoding="utf-8")
    (tmp_path / "job.yaml").write_text(JOB, encoding="utf-8")
    write_records(tmp_path, ("a", 1), ("b", 2), ("a", 5))
    return tmp_path


def write_records(project: Path, *records: tuple[str, int]) -> None:
    lines = [json.dumps({"k": key, "n": number}) + "\n" for key, number in records]
    (project / "in.jsonl").write_text("".join(lines), encoding="utf-8")


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENTFLOW_")}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "AGENTFLOW_LOG_FORMAT": "console"}


COMMAND = [sys.executable, "-m", "agentflow", "run", "job.yaml"]


def run(project: Path, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    pipes = {"input": text, "capture_output": True, "text": True}
    try:
        return subprocess.run([*COMMAND, *arguments], cwd=project, env=environment(), check=False, timeout=60, **pipes)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"the job did not end; its log:\n{(error.stderr or b'').decode()}")


@contextlib.contextmanager
def started(project: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A running job with pipes on all three streams; it is killed if the test leaves it behind."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*COMMAND, *arguments], cwd=project, env=environment(), text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_line(process: subprocess.Popen[str], part: str) -> str:
    """Read standard error up to the line that contains ``part``; the end of the stream before it fails the test."""
    seen = []
    for line in process.stderr:
        seen.append(line)
        if part in line:
            return line
    pytest.fail(f"the process ended without {part!r}:\n{''.join(seen)}")


def outputs(project: Path, folder: str = "out") -> list[dict]:
    parts = sorted(path for path in (project / folder).iterdir() if path.name[0] not in "._")
    return [json.loads(line) for path in parts for line in path.read_text(encoding="utf-8").splitlines()]


def events(log: str) -> list[str]:
    """The events of plain log lines, without time, level and fields."""
    found = [re.match(r"\S+Z \w+ +(.*?)(?:  \w+=|$)", line) for line in log.splitlines()]
    return [match[1] for match in found if match]


def test_job_runs_to_the_end_of_its_input(project):
    answer = run(project)
    assert (answer.returncode, answer.stdout) == (0, "")
    assert outputs(project) == [
        {"key": "a", "count": 1, "result": 10.0},
        {"key": "b", "count": 1, "result": 5.0},
        {"key": "a", "count": 2, "result": 2.0},
    ]


def test_job_says_what_it_started_from_and_its_totals(project):
    log = run(project).stderr
    assert events(log) == ["job started", "job finished"]
    first, last = log.splitlines()
    for part in (
        "job=division",
        "agent=agents:Divide",
        "guarantee=exactly-once",
        'source="jsonl in.jsonl"',
        'sink="jsonl out/ (exactly-once)"',
        "state=state/",
        "state_size=",
    ):
        assert part in first
    assert "records_in=3  records_out=3  dead_letters=0  runs_in_flight=0  checkpoint=1  restarts=0" in last


def test_second_run_goes_on_behind_the_checkpoint(project):
    run(project)
    with (project / "in.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"k": "a", "n": 10}\n')
    answer = run(project)
    assert events(answer.stderr) == ["job started", "restored", "job finished"]
    assert "restored  checkpoint=1  unfinished_runs=0  took=" in answer.stderr
    assert outputs(project)[-1] == {"key": "a", "count": 3, "result": 1.0}
    assert len(outputs(project)) == 4


def test_json_log_is_one_object_per_line(project):
    lines = [json.loads(line) for line in run(project, "--log-format", "json").stderr.splitlines()]
    assert [line["event"] for line in lines] == ["job started", "job finished"]
    assert lines[-1]["records_in"] == 3


def test_log_level_is_that_of_the_flag_and_reaches_the_agents_logger(project):
    assert run(project, "--log-level", "error").stderr == ""
    assert (
        "dividing  job=division  agent=Divide  subtask=0  key=a"
        in run(project, "--log-level", "debug", "--set", "state.dir=other", "--set", "sink.jsonl.path=other-out").stderr
    )


@pytest.mark.parametrize(("flags", "kind"), [([], "uvloop"), (["--no-uvloop"], "asyncio.unix_events")])
def test_event_loop_is_uvloop_unless_it_is_not_wanted(project, flags, kind):
    answer = run(project, "--log-level", "debug", *flags)
    assert f"event loop  kind={kind}\n" in answer.stderr
    assert answer.returncode == 0


def test_standard_streams_make_a_filter(project):
    answer = run(project, *PIPE, text='{"k": "x", "n": 4}\n{"k": "x", "n": 5}\n')
    assert answer.returncode == 0
    assert [json.loads(line)["result"] for line in answer.stdout.splitlines()] == [2.5, 2.0]
    assert sorted(path.name for path in project.iterdir()) == ["agents.py", "in.jsonl", "job.yaml"]


def test_key_may_be_a_function_and_options_reach_the_agent(project):
    settings = ["--set", "agent=agents:Tuned", "--set", "key-by=agents:parity", "--set", "config.shop.limit=7"]
    run(project, *settings)
    assert outputs(project) == [{"limit": 7, "key": 1}, {"limit": 7, "key": 0}, {"limit": 7, "key": 1}]


def test_failing_action_ends_the_job_with_the_users_traceback(project):
    write_records(project, ("a", 0))
    answer = run(project)
    assert answer.returncode == 1
    assert events(answer.stderr) == ["job started", "job failed"]
    assert "error: action 'divide' of agent 'Divide' failed" in answer.stderr
    assert "ZeroDivisionError: division by zero" in answer.stderr
    assert 'agents.py", line 11, in divide' in answer.stderr
    assert str(ROOT / "agentflow") not in answer.stderr


def test_whole_traceback_is_shown_when_it_is_asked_for(project):
    write_records(project, ("a", 0))
    assert str(ROOT / "agentflow" / "runtime" / "job.py") in run(project, "--traceback").stderr


def test_failed_job_leaves_no_output(project):
    write_records(project, ("b", 1), ("a", 0))
    run(project)
    assert outputs(project) == []


def test_dead_letters_are_told_and_the_job_goes_on(project):
    write_records(project, ("a", 0), ("b", 2))
    answer = run(project, "--set", "dead-letter.jsonl.path=dead")
    assert answer.returncode == 0
    assert events(answer.stderr) == ["job started", "dead letter", "job finished"]
    assert 'record=in.jsonl/0  action=divide  attempt=1  error="ZeroDivisionError: division by zero"' in answer.stderr
    assert (len(outputs(project)), len(outputs(project, "dead"))) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "source.jsonl.path=nope.jsonl"], "error: the input file does not exist\n  file nope.jsonl\n"),
        (["--set", "job=other"], "error: the state directory belongs to another job\n"),
        (
            ["--set", "sink.jsonl.path=agents.py"],
            "error: the output directory cannot be written: Not a directory\n  directory agents.py\n",
        ),
    ],
)
def test_what_cannot_be_opened_ends_the_job_without_a_traceback(project, arguments, told):
    run(project)
    answer = run(project, *arguments)
    assert answer.returncode == 1
    assert told in answer.stderr
    assert "Traceback" not in answer.stderr


def test_restarts_are_told_with_their_reason(project):
    settings = [
        "--set",
        "state.free-min=1000000GiB",
        "--set",
        "restart={delay: 1ms, attempts: 2, strategy: fixed-delay}",
    ]
    answer = run(project, *settings)
    assert (answer.returncode, events(answer.stderr)) == (1, ["job restarts", "job restarts", "job failed"])
    assert 'error="opening the state: not enough free space"  attempt=1  delay=0.001s' in answer.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_drains_takes_a_checkpoint_and_is_the_exit_status(project, number, status):
    with started(project, *PIPE, "--set", "checkpoint.interval=10ms") as process:
        process.stdin.write('{"k": "x", "n": 5}\n')
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["result"] == 2.0  # it runs, and its input is still open
        process.send_signal(number)
        _, log = process.communicate(timeout=30)
    assert process.returncode == status
    assert events(log)[-2:] == ["job stops: draining, then a last checkpoint; again: a checkpoint now", "job stopped"]
    assert f"signal={number.name}" in log


def test_second_signal_does_not_wait_for_runs_which_are_state_then(project):
    forever = [
        "--set",
        "agent=agents:Forever",
        "--set",
        "shutdown.drain-timeout=10m",
        "--set",
        "checkpoint.interval=1h",
    ]
    with started(project, *forever) as process:
        wait_for_line(process, "waiting  job=division  agent=Forever  subtask=0  key=b")
        process.send_signal(signal.SIGTERM)
        wait_for_line(process, "job stops: draining")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
        assert "job stops: a last checkpoint now" in process.stderr.read()
    assert outputs(project) == []
    with started(project, *forever) as process:
        assert "restored  checkpoint=1  unfinished_runs=3" in wait_for_line(process, "restored")


def test_live_line_is_drawn_on_a_terminal_and_erased_at_the_end(project):
    leader, follower = pty.openpty()
    env = environment() | {"TERM": "xterm", "NO_COLOR": "1"}
    with subprocess.Popen(COMMAND, cwd=project, env=env, stderr=follower) as process:
        os.close(follower)
        written = bytearray()
        with contextlib.suppress(OSError):  # Linux says so when the other side is closed
            while part := os.read(leader, 4096):
                written += part
        assert process.wait(timeout=30) == 0
    os.close(leader)
    erase = "\r\x1b[2K"
    text = written.decode()
    assert f"{erase}division  " in text
    assert "in flight" in text
    assert text.replace(erase, "").endswith("\n") or text.endswith(erase)
    assert re.search(r"job finished  job=division", text)

"""`agentflow run` with files that are followed: until it is stopped, across restarts, and what it says."""

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
COMMAND = [sys.executable, "-m", "agentflow", "run", "job.yaml"]
AGENT = """\
from agentflow import Agent, EventType, InputEvent, OutputEvent, RunnerContext, action


class Divide(Agent):
    @action(EventType.InputEvent)
    def divide(event: InputEvent, ctx: RunnerContext) -> None:
        file = dict(ctx.headers)["agentflow-file"].decode()
        ctx.send_event(OutputEvent({"result": 10 / event.input["n"], "file": file}))
"""
JOB = """\
job: division
agent: agents:Divide
key-by: k
source: {jsonl: {path: logs, follow: true}}
sink: {jsonl: {path: out/}}
dead-letter: {jsonl: {path: dead/}}
state.dir: state/
checkpoint.interval: 50ms
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "agents.py").write_text(AGENT)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "logs").mkdir()
    return tmp_path


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENTFLOW_")}
    kept["AGENTFLOW_LOG_FORMAT"] = "console"
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "TERM": "xterm", "NO_COLOR": "1"}


@contextlib.contextmanager
def started(project: Path, *arguments: str, **options: object) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*COMMAND, *arguments], cwd=project, env=environment(), text=True, **{"stderr": subprocess.PIPE, **options}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def write(project: Path, name: str, *numbers: int) -> None:
    with (project / "logs" / name).open("a") as file:
        file.write("".join(json.dumps({"k": "a", "n": number}) + "\n" for number in numbers))


def outputs(project: Path, folder: str = "out") -> list[dict]:
    parts = sorted(path for path in (project / folder).glob("part-*"))
    return [json.loads(line) for path in parts for line in path.read_text().splitlines()]


def wait_for_outputs(process: subprocess.Popen[str], project: Path, count: int, folder: str = "out") -> list[dict]:
    for _ in range(600):
        if len(outputs(project, folder)) >= count:
            return outputs(project, folder)
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"the job ended with {process.wait(0.05)}: {process.stderr.read()}")
    return pytest.fail("nothing came")


def test_followed_files_are_read_until_the_job_is_stopped_and_on_when_it_starts_again(project):
    write(project, "a.jsonl", 1)
    with started(project) as process:
        wait_for_outputs(process, project, 1)
        write(project, "a.jsonl", 2)
        write(project, "b.jsonl", 5)
        wait_for_outputs(process, project, 3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
        log = process.stderr.read()
    assert 'source="jsonl logs, followed"' in log
    assert "job stopped  job=division  records_in=3  records_out=3" in log
    (project / "logs" / "a.jsonl").rename(project / "logs" / "a.jsonl.1")
    write(project, "a.jsonl", 10)
    with started(project) as process:
        found = wait_for_outputs(process, project, 4)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert sorted(output["result"] for output in found) == [1.0, 2.0, 5.0, 10.0]
    assert {output["file"] for output in found} == {"logs/a.jsonl", "logs/b.jsonl"}


def test_dead_letter_of_a_followed_file_names_the_file(project):
    write(project, "a.jsonl", 0)
    with started(project) as process:
        wait_for_outputs(process, project, 1, "dead")
    (letter,) = outputs(project, "dead")
    assert letter["file"] == "logs/a.jsonl"
    assert re.fullmatch(r"file:[0-9a-f]+-[0-9a-f]{12}\.0/0", letter["source-position"])


def test_live_line_of_a_job_without_end_shows_that_it_runs_and_drains(project):
    leader, follower = pty.openpty()
    with started(project, stderr=follower) as process:
        os.close(follower)
        written, is_stopped = bytearray(), False
        with contextlib.suppress(OSError):  # Linux says so when the other side is closed
            while part := os.read(leader, 4096):
                written += part
                if b"running" in written and not outputs(project):
                    write(project, "a.jsonl", 1)
                if outputs(project) and not is_stopped:
                    is_stopped = True
                    process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    os.close(leader)
    text = written.decode()
    assert "there is no file yet: logs" in text
    assert re.search(r"division  running  in [\d,]+/s  out [\d,]+/s  in flight 0  checkpoint \d+ \d+\.\ds ago", text)
    assert re.search(r"job stopped  job=division", text)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["source.jsonl.follow=false", "source.jsonl.poll-interval=1s"], "is for files that are followed"),
        (["sink.jsonl.path=logs/"], "is a directory that the source follows"),
    ],
)
def test_what_contradicts_itself_is_told_before_anything_starts(project, settings, told):
    flags = [part for setting in settings for part in ("--set", setting)]
    answer = subprocess.run(
        [*COMMAND, *flags], cwd=project, env=environment(), capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert told in answer.stderr

"""A real job follows a log that is written, rotated, copied and truncated while it is killed: every line counts once, in order."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KILLS = 15
SEED = 20261126

AGENT = """\
from agentflow import Agent, EventType, InputEvent, OutputEvent, RunnerContext, action


class Count(Agent):
    @action(EventType.InputEvent)
    def count(event: InputEvent, ctx: RunnerContext) -> None:
        count = ctx.short_term_memory.update("count", lambda n: (n or 0) + 1)
        ctx.send_event(OutputEvent({"k": ctx.key, "n": event.input["n"], "count": count}))
"""
JOB = """\
job: counting
agent: agents:Count
key-by: k
source: {jsonl: {path: logs/app.log*, follow: true, rotate-wait: 1s}}
sink: {jsonl: {path: out/}}
state.dir: state/
checkpoint.interval: 50ms
"""
KEYS = 7


class Log:
    """A log and its rotation, as logrotate does it; never more than a moment between two of its steps."""

    def __init__(self, folder: Path, luck: random.Random) -> None:
        self.folder = folder
        self.current = folder / "app.log"
        self.luck = luck
        self.lines = 0

    def write(self) -> None:
        """Write some lines; the last one in two parts."""
        with self.current.open("ab", buffering=0) as file:
            for _ in range(self.luck.randint(1, 200)):
                line = json.dumps({"k": self.lines % KEYS, "n": self.lines}).encode() + b"\n"
                middle = self.luck.randint(0, len(line))
                file.write(line[:middle])
                file.write(line[middle:])
                self.lines += 1

    def rotated(self) -> list[Path]:
        return sorted(self.folder.glob("app.log.*"), key=lambda path: int(path.suffix[1:]))

    def make_room(self) -> None:
        for path in reversed(self.rotated()):
            path.rename(self.folder / f"app.log.{int(path.suffix[1:]) + 1}")

    def rotate_by_rename(self) -> None:
        if self.current.exists():
            self.make_room()
            self.current.rename(self.folder / "app.log.1")
            if self.luck.random() < 0.5:
                self.current.touch()

    def rotate_by_copy(self) -> None:
        if self.current.exists():
            self.make_room()
            shutil.copyfile(self.current, self.folder / "app.log.1")
            os.truncate(self.current, 0)

    def delete_read(self, read: set[int]) -> None:
        """Delete the oldest file if the job has output all of it."""
        for path in self.rotated()[-1:]:
            if all(json.loads(line)["n"] in read for line in path.read_bytes().splitlines()):
                path.unlink()


def outputs(directory: Path) -> list[dict[str, int]]:
    return [
        json.loads(line)
        for part in sorted((directory / "out").glob("part-*"))
        for line in part.read_bytes().splitlines()
    ]


def start(directory: Path) -> subprocess.Popen[bytes]:
    with (directory / "log").open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "agentflow", "run", "job.yaml"],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=errors,
        )


def pause(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Let time pass; a job that ends meanwhile fails the test."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        pytest.fail(f"the job ended with {process.wait(timeout=seconds)}")


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_log_that_is_rotated_while_its_job_is_killed_is_counted_once_and_in_order(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENT)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "logs").mkdir()
    luck = random.Random(SEED)
    log = Log(tmp_path / "logs", luck)
    process = start(tmp_path)
    try:
        kills = 0
        while kills < KILLS:
            for _ in range(luck.randint(1, 6)):
                luck.choice([log.write, log.write, log.write, log.rotate_by_rename, log.rotate_by_copy])()
                if luck.random() < 0.3:
                    log.delete_read({output["n"] for output in outputs(tmp_path)})
                pause(process, luck.uniform(0, 0.1))
            pause(process, luck.uniform(0, 1.0))
            if luck.random() < 0.6:
                process.kill()
                process.wait()
                kills += 1
                for _ in range(luck.randint(0, 4)):  # while nobody looks
                    luck.choice([log.write, log.rotate_by_rename, log.rotate_by_copy])()
                process = start(tmp_path)
        deadline = time.monotonic() + 120
        while len(outputs(tmp_path)) < log.lines:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
            pause(process, 0.1)
        pause(process, 1.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    finally:
        process.kill()
        process.wait()

    found = outputs(tmp_path)
    assert sorted(output["n"] for output in found) == list(range(log.lines))
    for key in range(KEYS):
        of_key = [output for output in found if output["k"] == key]
        numbers = [output["n"] for output in of_key]
        late = [(before, after) for before, after in itertools.pairwise(numbers) if before > after]
        assert late == []
        assert [output["count"] for output in of_key] == list(range(1, len(of_key) + 1))

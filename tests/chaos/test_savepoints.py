"""Savepoints taken of a job that is killed again and again, and by commands that are killed: each one that is there is whole and exact."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agentflow.environment.savepoints import savepoint_at, storage_of, verify_savepoint
from agentflow.environment.state_views import memory_of_savepoint
from agentflow.state.savepoints import list_savepoints

ROOT = Path(__file__).parents[2]
RECORDS, KEYS = 4_000, 40
ROUNDS = 14
SEED = 20261126

AGENT = """\
from agentflow import Agent, EventType, OutputEvent, action


class Count(Agent):
    @action(EventType.InputEvent)
    async def count(event, ctx):
        paid = await ctx.durable_execute_async(str, event.input["id"])
        await ctx.sleep("1ms")
        n = ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)
        ctx.send_event(OutputEvent({"k": ctx.key, "n": n, "id": int(paid)}))
"""
JOB = """\
job: counts
agent: counts:Count
source: {jsonl: {path: in.jsonl}}
key-by: k
sink: {jsonl: {path: out/}}
state: {dir: ./state}
checkpoint: {interval: 50ms}
run: {park-after: 5ms}
"""


def start(place: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "agentflow", *arguments]
    return subprocess.Popen(
        command, cwd=place, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run_to_the_end(place: Path, *settings: str) -> None:
    job = start(place, "run", "job.yaml", *(part for setting in settings for part in ("--set", setting)))
    _, errors = job.communicate(timeout=200)
    assert job.returncode == 0, errors.decode()


def outputs(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for part in sorted(directory.glob("part-*")) for line in part.read_text().splitlines()]


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_every_savepoint_of_a_job_that_is_killed_is_one_moment_of_it(tmp_path: Path) -> None:
    (tmp_path / "counts.py").write_text(AGENT)
    (tmp_path / "job.yaml").write_text(JOB)
    lines = [json.dumps({"id": n, "k": f"k{n % KEYS}"}) + "\n" for n in range(RECORDS)]
    (tmp_path / "in.jsonl").write_text("".join(lines))
    rng = random.Random(SEED)
    taken = 0
    for number in range(ROUNDS):
        job = start(tmp_path, "run", "job.yaml") if number % 3 != 2 else None  # each third one of a job that is dead
        time.sleep(rng.uniform(0.1, 1.0))
        taking = start(tmp_path, "savepoint", "create", "job.yaml", "backups")
        if number % 4 == 3:
            time.sleep(rng.uniform(0.2, 0.8))
            taking.kill()
        elif job is not None and rng.random() < 0.5:
            time.sleep(rng.uniform(0.2, 0.8))
            job.kill()
        _, errors = taking.communicate(timeout=100)
        taken += taking.returncode == 0
        assert taking.returncode in (0, -9) or b"no completed checkpoint" in errors or b"no state" in errors, (
            errors.decode()
        )
        if job is not None:
            job.kill()
            job.communicate()
    run_to_the_end(tmp_path)
    everything = sorted(outputs(tmp_path / "out"), key=lambda one: (one["k"], one["n"]))
    assert [one["id"] for one in sorted(everything, key=lambda one: one["id"])] == list(range(RECORDS))
    assert not list((tmp_path / "state" / "subtask-0" / "exports").iterdir()), "what killed commands left is swept"

    listed = [one for one in list_savepoints(storage_of(str(tmp_path / "backups"))) if one.manifest is not None]
    assert len(listed) >= taken >= 5
    for one in listed:
        assert verify_savepoint(savepoint_at(str(tmp_path / "backups" / one.name))).damage == []
    for number, one in enumerate(rng.sample(listed, 3)):
        savepoint = savepoint_at(str(tmp_path / "backups" / one.name))
        with memory_of_savepoint(savepoint) as memory:
            counts = {entry.key: entry for entry in memory.entries() if entry.path == "n"}
            before = {key: _number(entry.stored) for key, entry in counts.items()}
        restoring = start(tmp_path, "savepoint", "restore", savepoint.place, f"state-{number}")
        _, errors = restoring.communicate(timeout=100)
        assert restoring.returncode == 0, errors.decode()
        run_to_the_end(tmp_path, f"state.dir=state-{number}", f"sink.jsonl.path=out-{number}")
        after = outputs(tmp_path / f"out-{number}")
        expected = [value for value in everything if value["n"] > before.get(value["k"], 0)]
        assert sorted(after, key=lambda one: (one["k"], one["n"])) == expected
        assert Counter(value["k"] for value in after) == Counter(value["k"] for value in expected)


def _number(stored: bytes) -> int:
    from agentflow.api.memory_codec import decode_value

    number = decode_value(stored)
    assert isinstance(number, int)
    return number

"""A process that is killed loses the tail that the system did not have, and leaves nothing behind that a reader stumbles over."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from agentflow.observability.event_log_files import log_files
from agentflow.observability.event_log_search import LogSearch
from agentflow.observability.trace_tree import read_forest
from agentflow.testing.conformance.record_target import record

ROOT = Path(__file__).parents[3]
VICTIM = Path(__file__).parent / "event_log_victim.py"
SEED = 7
KILLS = 8


def numbers(path: Path) -> list[int]:
    """The numbers of the whole lines of a file; only its last line may be torn."""
    *lines, tail = path.read_bytes().split(b"\n")
    if tail:
        lines = [*lines, tail] if tail.endswith(b"}}}") else lines
    return [int(msgspec.json.decode(line)["eventId"]) for line in lines]


def test_a_kill_loses_the_unwritten_tail_only_and_every_life_begins_a_file_of_its_own(tmp_path):
    chance = random.Random(SEED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first, before = 0, 0
    for _ in range(KILLS):
        command = [sys.executable, str(VICTIM), str(tmp_path), str(first)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdout is not None
            said = [int(victim.stdout.readline()) for _ in range(chance.randint(1, 30))]
            victim.send_signal(signal.SIGKILL)
            said += [int(line) for line in victim.stdout.read().splitlines() if line]
        files = log_files(tmp_path, "job")
        assert len(files) > before
        found = [number for path in files[before:] for number in numbers(path)]
        assert found == list(range(first, first + len(found)))
        assert found[-1] >= said[-1]
        first, before = found[-1] + 1, len(files)
    search = LogSearch(log_files(tmp_path, "job"))
    assert [one["eventId"] for one in search.run("in/17")] == ["17"]


def test_a_torn_line_is_skipped_by_every_reader(tmp_path):
    whole = b"".join(record(number) for number in range(5))
    for place in range(1, len(record(5)) - 1, 7):
        path = tmp_path / "events-job-0.20260805T100000000.log"
        path.write_bytes(whole + record(5)[:place])
        search = LogSearch([path])
        assert [one["eventId"] for one in search.key("k")] == ["0", "1", "2", "3", "4"]
        forest = read_forest([path])
        assert forest.roots == ["0", "1", "2", "3", "4"]
        assert [warning.code for warning in forest.warnings] == ["MALFORMED_RECORD"]

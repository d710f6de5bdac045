"""A real process that is killed while it writes, stages and publishes, and a reader that looks all the time."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest

from tests.unit.connectors.part_kinds import KINDS
from tests.unit.connectors.sink_victim import LARGE_LINES, load, recover

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SEED = 20
KILLS = {"jsonl": 10}  # by kind of file
KILLS_OF_OTHERS = 5


def published(directory):
    return sorted(directory.glob("[!._]*"))


def numbers(kind, content):
    """The numbers of whole lines or rows; fails on a torn one."""
    found = []
    for record in kind.rows(content):
        assert zlib.crc32(record["text"].encode()) == record["crc"]
        found.append(record["number"])
    return found


class Reader(threading.Thread):
    """Reads each file as soon as it is visible, and keeps what it had then."""

    def __init__(self, kind, directory):
        super().__init__(daemon=True)
        self.kind = kind
        self.directory = directory
        self.ended = threading.Event()
        self.failure = None
        self.first_seen = {}
        self.looks = 0

    def look(self):
        for file in published(self.directory):
            if file.name not in self.first_seen:
                content = self.first_seen[file.name] = file.read_bytes()
                numbers(self.kind, content)
        self.looks += 1

    def run(self):
        try:
            while not self.ended.is_set():
                self.look()
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            self.failure = error


def kill_when_seen(process, directory, ledger_path, mark):
    """Kill as soon as the checkpoint ``mark`` is decided, wherever the process is by then."""
    while load(ledger_path).checkpoint < mark:
        assert process.poll() is None, "the victim died by itself"
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.chaos
@pytest.mark.parametrize("name", KINDS)
def test_killed_writer_never_shows_a_torn_or_doubled_line_and_loses_none(name, tmp_path):
    kind = KINDS[name]
    directory, ledger_path = tmp_path / "out", tmp_path / "ledger"
    directory.mkdir()
    draw = random.Random(SEED)
    reader = Reader(kind, directory)
    reader.start()
    kills = KILLS.get(name, KILLS_OF_OTHERS)
    for _ in range(kills):
        before = load(ledger_path).checkpoint
        command = [sys.executable, "-m", "tests.unit.connectors.sink_victim", name, str(directory), str(ledger_path)]
        with subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            kill_when_seen(process, directory, ledger_path, before + draw.randint(1, 16))
    asyncio.run(recover(kind.new_sink(str(directory)), ledger_path))
    reader.ended.set()
    reader.join()
    assert reader.failure is None, f"seed {SEED}: {reader.failure!r}"
    assert reader.looks > kills
    reader.look()
    files = published(directory)
    assert {file.name: file.read_bytes() for file in files} == reader.first_seen, "a file changed after it was visible"
    found = list(itertools.chain.from_iterable(numbers(kind, reader.first_seen[file.name]) for file in files))
    assert found == list(range(load(ledger_path).next_number)), f"seed {SEED}"
    assert len(found) > LARGE_LINES
    assert list(directory.glob(".part-*")) == []

"""Followed files: whatever is written, rotated, deleted and forgotten, every line comes once, in order, under one id."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentflow.connectors.follow.files import FollowedFiles
from agentflow.connectors.follow.kept import KeptPositions
from agentflow.connectors.follow.places import Places
from agentflow.connectors.lines import LineSplitter

ROTATE_WAIT_S = 5.0


class Reader:
    """What a job is to the files: it applies records, takes checkpoints, and dies."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.now_s = 0.0
        self.saved: dict[str, int] = {}
        self.durable: list[bytes] = []
        self.ids: dict[bytes, str] = {}
        self.start()

    def start(self) -> None:
        """Begin a life behind the last checkpoint."""
        self.applied = list(self.durable)
        self.positions = dict(self.saved)
        self.kept = KeptPositions()
        self.files = FollowedFiles(
            Places([self.pattern]),
            lambda position, _: LineSplitter("", position, 10**6),
            self.kept.restore(self.saved),
            ROTATE_WAIT_S,
            lambda: self.now_s,
        )

    def read(self, readings_max: int) -> int:
        """Read so many blocks at most; return how many records there were."""
        count = 0
        for _ in range(readings_max):
            reading = self.files.read_found()
            if reading is None:
                self.files.look()
                reading = self.files.read_found() or self.files.nothing_read()
            for label, end in reading.gone.items():
                self.kept.forget(label, end)
            if reading.file is None:
                break
            file = reading.file
            if file.label:
                self.kept.see(file.label, file.head)
            else:
                file.give_label(self.kept.begin(file.key[1], file.digest, file.head))
            for record in reading.records:
                record.source = file.label
                assert self.ids.setdefault(record.value, record.run_id) == record.run_id, "a line has one id"
                self.applied.append(record.value)
                self.positions[record.source] = record.next_offset
            count += len(reading.records)
        return count

    def checkpoint(self) -> None:
        """Complete a checkpoint."""
        self.positions = self.kept.keep(self.positions)
        self.saved, self.durable = dict(self.positions), list(self.applied)

    def die(self) -> None:
        """End this life."""
        self.files.close()


class FollowedLog(RuleBasedStateMachine):
    """One log that is written and rotated, and a job that follows it."""

    pattern = "app.log*"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.log = self.folder / "app.log"
        self.written: list[bytes] = []
        self.begun = b""
        self.ticks = 10**18
        self.reader = Reader(str(self.folder / self.pattern))

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            self.reader.die()
            shutil.rmtree(self.folder)

    def tick(self, path: Path) -> None:
        """Let every change have a time of its own, as it has where files are not changed every microsecond."""
        self.ticks += 1_000_000
        os.utime(path, ns=(self.ticks, self.ticks))

    def rotated(self) -> list[Path]:
        return sorted(self.folder.glob("app.log.*"), key=lambda path: int(path.suffix[1:]))

    def make_room(self) -> None:
        for path in reversed(self.rotated()):
            path.rename(self.folder / f"app.log.{int(path.suffix[1:]) + 1}")

    def is_saved(self) -> bool:
        """Whether a checkpoint knows the log as it is now; what it never saw is found by its name alone."""
        lines = self.log.read_bytes().splitlines() if self.log.exists() else []
        return bool(lines) and lines[0] in self.reader.durable

    @initialize(exists=st.booleans())
    def begin(self, exists: bool) -> None:
        if exists:
            self.log.touch()

    @rule(count=st.integers(1, 40), width=st.sampled_from([1, 20, 90, 700]))
    def write_lines(self, count: int, width: int) -> None:
        with self.log.open("ab") as file:
            for _ in range(count):
                line = b"%d:" % len(self.written) + b"x" * width
                file.write(line.removeprefix(self.begun) + b"\n")
                self.begun = b""
                self.written.append(line)
        self.tick(self.log)

    @precondition(lambda self: not self.begun)
    @rule()
    def begin_line(self) -> None:
        with self.log.open("ab") as file:
            self.begun = b"%d:" % len(self.written)
            file.write(self.begun)
        self.tick(self.log)

    @precondition(lambda self: not self.begun and self.log.exists() and (self.pattern != "app.log" or self.is_saved()))
    @rule(creates=st.booleans())
    def rotate_by_rename(self, creates: bool) -> None:
        self.make_room()
        self.log.rename(self.folder / "app.log.1")
        if creates:
            self.log.touch()
            self.tick(self.log)

    @precondition(lambda self: not self.begun and self.is_saved())
    @rule(seen_bytes=st.sampled_from([None, 0, 1, 30, 2000]), is_late_line=st.booleans(), is_watched=st.booleans())
    def rotate_by_copy(self, seen_bytes: int | None, is_late_line: bool, is_watched: bool) -> None:
        self.make_room()
        copy, content = self.folder / "app.log.1", self.log.read_bytes()
        if seen_bytes is not None:  # the copy is seen while it is made
            copy.write_bytes(content[:seen_bytes])
            self.tick(copy)
            self.reader.read(3)
        copy.write_bytes(content)
        self.tick(copy)
        if is_watched:
            self.reader.read(3)
        if is_late_line:  # is in no copy; it is not lost if it was read before
            self.write_lines(1, 1)
            while self.reader.read(1000):
                pass
            self.reader.checkpoint()
        os.truncate(self.log, 0)
        self.tick(self.log)

    @precondition(lambda self: self.rotated())
    @rule()
    def delete_oldest(self) -> None:
        oldest = self.rotated()[-1]
        if set(oldest.read_bytes().splitlines()) <= set(self.reader.durable):
            oldest.unlink()

    @rule(readings_max=st.integers(1, 5))
    def read(self, readings_max: int) -> None:
        self.reader.read(readings_max)

    @rule()
    def settle(self) -> None:
        while self.reader.read(1000):
            pass
        self.reader.checkpoint()

    @rule()
    def checkpoint(self) -> None:
        self.reader.checkpoint()

    @rule(seconds=st.sampled_from([0.1, ROTATE_WAIT_S]))
    def pass_time(self, seconds: float) -> None:
        self.reader.now_s += seconds

    @rule(is_early=st.booleans())
    def kill(self, is_early: bool) -> None:
        self.reader.die()
        self.reader.start()
        if not is_early:
            self.reader.read(1)

    @invariant()
    def nothing_is_doubled_or_out_of_order(self) -> None:
        assert self.reader.applied == self.written[: len(self.reader.applied)]

    def finish(self) -> None:
        if self.begun:
            self.write_lines(1, 1)
        for _ in range(4):  # lost labels are looked for twice; what waits as a copy is read in the end
            while self.reader.read(1000):
                pass
            self.reader.now_s += ROTATE_WAIT_S
        assert self.reader.applied == self.written
        self.reader.checkpoint()
        while self.reader.read(1):
            pass
        self.reader.checkpoint()
        there = len(list(self.folder.iterdir()))
        assert len(self.reader.saved) <= 2 * there + 1, "positions of files that are gone are forgotten"


class FollowedPath(FollowedLog):
    """The same, where the pattern finds no rotated file."""

    pattern = "app.log"


@pytest.mark.parametrize("machine", [FollowedLog, FollowedPath])
def test_every_line_comes_once_in_order_and_under_one_id(machine: type[FollowedLog]) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(machine, settings=settings(stateful_step_count=40))

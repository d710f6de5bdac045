"""Signals on their way to an embedded job: a directory beside its state, or a list where state is in memory.

    state.dir/signals/00000000000000000007.json     one signal; numbers have no gaps

A writer takes the next number under a lock, writes, syncs and renames; so it needs no running job, and holds none up. The job reads
in order, and its checkpoint has the number that comes next. What lies before is deleted, but for the last file: it holds the count.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from agentflow.api.codecs import JSON
from agentflow.connectors.directories import make_directory, sync_directory
from agentflow.core.records import Record
from agentflow.errors import SourceError

LABEL = "signals"
_POLL_S = 0.1


class SignalSpool:
    """Signals in a directory; see the module's docstring. Any process may `append`."""

    name = LABEL
    is_replayable = True
    codec = JSON
    partitions = ()
    idle_timeout_ms = None

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory).absolute()
        self._next = 0
        self._arrived = asyncio.Event()

    async def open(self, positions: Mapping[str, int]) -> None:
        """Start behind what the last checkpoint has.

        Raises:
            SourceError: The directory cannot be used.
        """
        self._next = positions.get(LABEL, 0)
        if self._next:
            await asyncio.to_thread(self._keep_count)

    def _keep_count(self) -> None:
        """Let no number come twice, also where somebody has emptied the directory."""
        with self._locked() as numbers:
            if not numbers or max(numbers) < self._next - 1:
                self._write(self._next - 1, b"")

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next signals; wait while there is none."""
        while True:
            records = self._read(records_max)
            if records:
                return records
            self._arrived.clear()
            try:
                async with asyncio.timeout(_POLL_S):  # another process may have written one
                    await self._arrived.wait()
            except TimeoutError:
                pass

    def _read(self, records_max: int) -> list[Record]:
        records: list[Record] = []
        while len(records) < records_max:
            try:
                document = self._path(self._next).read_bytes()
            except FileNotFoundError:
                break
            except OSError as error:
                raise _unusable(self._directory, error) from error
            records.append(Record(LABEL, self._next, self._next + 1, document))
            self._next += 1
        return records

    def documents(self) -> list[bytes]:
        """Return the signals that are there, in order; the job may have read some of them."""
        found = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                found.append(path.read_bytes())
            except FileNotFoundError:  # released meanwhile
                continue
        return found

    async def append(self, document: bytes) -> None:
        """Write a signal; it is durable when this returns.

        Raises:
            SourceError: The directory cannot be used.
        """
        await asyncio.to_thread(self.append_now, document)
        self._arrived.set()

    def append_now(self, document: bytes) -> None:
        """Write a signal; blocks until it is durable."""
        with self._locked() as numbers:
            self._write(max(numbers, default=-1) + 1, document)

    def _write(self, number: int, document: bytes) -> None:
        path = self._path(number)
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(document)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync_directory(self._directory)

    @contextmanager
    def _locked(self) -> Iterator[list[int]]:
        """Hold the lock of the writers; yield the numbers of all signals that are there."""
        try:
            make_directory(self._directory)
            with (self._directory / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield [int(path.stem) for path in self._directory.glob("*.json")]
        except OSError as error:
            raise _unusable(self._directory, error) from error

    async def release(self, positions: Mapping[str, int]) -> None:
        """Delete what a checkpoint has: all before its position but the last."""
        for number in range(positions.get(LABEL, 0) - 2, -1, -1):
            try:
                self._path(number).unlink()
            except FileNotFoundError:
                return  # and so are all before it

    async def close(self) -> None:
        """Hold nothing."""

    def _path(self, number: int) -> Path:
        return self._directory / f"{number:020d}.json"


class SignalList:
    """Signals of a job whose state is in memory; it lives as long as the process."""

    name = LABEL
    is_replayable = True
    codec = JSON
    partitions = ()
    idle_timeout_ms = None

    def __init__(self) -> None:
        self._documents: dict[int, bytes] = {}
        self._end = self._next = 0
        self._arrived = asyncio.Event()

    async def open(self, positions: Mapping[str, int]) -> None:
        """Start behind what the last checkpoint has."""
        self._next = positions.get(LABEL, 0)

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next signals; wait while there is none."""
        while self._next == self._end:
            self._arrived.clear()
            await self._arrived.wait()
        first = self._next
        self._next = min(self._end, first + records_max)
        return [Record(LABEL, n, n + 1, self._documents[n]) for n in range(first, self._next)]

    async def append(self, document: bytes) -> None:
        """Take a signal."""
        self._documents[self._end] = document
        self._end += 1
        self._arrived.set()

    async def release(self, positions: Mapping[str, int]) -> None:
        """Forget what a checkpoint has."""
        for number in range(positions.get(LABEL, 0) - 1, -1, -1):
            if self._documents.pop(number, None) is None:
                return

    async def close(self) -> None:
        """Hold nothing."""


def _unusable(directory: Path, error: OSError) -> SourceError:
    return SourceError(
        f"the signals of the job cannot be read or written: {error.strerror or error}",
        where={"directory": str(directory)},
        expected="a directory that can be written",
        fix="it belongs to the state directory, and to the same user",
    )

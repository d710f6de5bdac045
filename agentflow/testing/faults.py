"""Ports that fail on purpose, over a disk that knows what is synced.

A `Machine` is what survives: keyed state, the directories of the sinks, and a `Fuse`. Every port call passes the fuse before
and after it, every write and every sync of the disk too, so "crash at point k" reaches each gap between two steps of the
checkpoint protocol. After a crash no port does anything any more: what still unwinds in the dead process changes nothing.

    killed       everything written survives, synced or not
    power lost   only what was synced survives
    error        the call fails, the process lives: the job restarts by its own strategy
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from agentflow.api.codecs import JSON
from agentflow.core.delta import DeltaSlices, StateWrite, StoredRow, Table
from agentflow.core.effects import DeadLetter, EmitRecord
from agentflow.core.records import Record
from agentflow.errors import SinkError, StateUnavailable
from agentflow.runtime.ports import Guarantee, Prepared, Staged
from agentflow.state.memory import MemoryKeyedState, MemoryStorage


class SimulatedCrash(BaseException):
    """The process is gone. Not an `Exception`: no policy for errors may answer it."""


class Fault(enum.Enum):
    """What happens at a point."""

    KILLED = "killed"
    POWER_LOST = "power lost"
    ERROR = "error"


class Fuse:
    """Counts the points that a process passes, and blows at one of them.

    Attributes:
        points: Points passed since the machine was made.
        is_dead: The process has crashed; every port call raises until `revive`.
        trace: Names of the points passed, the last ones at most.
    """

    TRACE_POINTS_MAX = 100_000

    def __init__(self) -> None:
        self.points = 0
        self.is_dead = False
        self.trace: list[str] = []
        self._due: dict[int, Fault] = {}

    def arm(self, points_from_now: int, fault: Fault) -> None:
        """Let ``fault`` happen at the so many-th point from now (1: the next one)."""
        self._due[self.points + points_from_now] = fault

    def revive(self) -> None:
        """Begin another life, with no fault armed."""
        self.is_dead = False
        self._due.clear()

    def crash(self) -> None:
        """Kill the process between two points; to be called on the loop."""
        self.is_dead = True
        asyncio.get_running_loop().stop()

    def reach(self, point: str, error: Callable[[str], Exception]) -> None:
        """Pass a point.

        Raises:
            SimulatedCrash: The process dies here, or is dead.
        """
        if self.is_dead:
            raise SimulatedCrash(point)
        self.points += 1
        if len(self.trace) < self.TRACE_POINTS_MAX:
            self.trace.append(point)
        fault = self._due.pop(self.points, None)
        if fault is None:
            return
        self.trace.append(f"! {fault.value}")
        if fault is Fault.ERROR:
            raise error(f"simulated at '{point}'")
        self.crash()
        raise SimulatedCrash(point)


def _sink_error(text: str) -> Exception:
    return SinkError(text)


def _state_error(text: str) -> Exception:
    return StateUnavailable(text)


class FaultyStorage(MemoryStorage):
    """A disk of keyed state whose writes and syncs are points."""

    def __init__(self, fuse: Fuse) -> None:
        super().__init__()
        self._fuse = fuse

    def write(self, write: StateWrite) -> None:
        """Write one row."""
        self._fuse.reach("disk.write", _state_error)
        super().write(write)

    def write_marks(self, checkpoint: int, prepared: Prepared | None, chunks: list[list[StateWrite]]) -> None:
        """Write the decision, or its removal."""
        self._fuse.reach("disk.write_marks", _state_error)
        super().write_marks(checkpoint, prepared, chunks)
        self._fuse.reach("disk.write_marks done", _state_error)

    def sync(self) -> None:
        """Make everything durable."""
        self._fuse.reach("disk.sync", _state_error)
        super().sync()
        self._fuse.reach("disk.sync done", _state_error)

    def append_journal(self, records: Sequence[tuple[int, bytes]]) -> None:
        """Write records."""
        self._fuse.reach("disk.append_journal", _state_error)
        super().append_journal(records)
        self._fuse.reach("disk.append_journal done", _state_error)

    def sync_journal(self) -> None:
        """Make the records durable."""
        self._fuse.reach("disk.sync_journal", _state_error)
        super().sync_journal()
        self._fuse.reach("disk.sync_journal done", _state_error)


class SinkDirectory:
    """The disk of one sink: staged and published files by name, each with what of it is synced.

    Attributes:
        staged: Name → outputs, invisible.
        published: Name → outputs in publish order: what readers see.
    """

    def __init__(self) -> None:
        self.staged: dict[str, tuple[bytes, ...]] = {}
        self.published: list[tuple[str, tuple[bytes, ...]]] = []
        self._synced_staged: dict[str, tuple[bytes, ...]] = {}
        self._synced_published: list[tuple[str, tuple[bytes, ...]]] = []

    @property
    def outputs(self) -> list[bytes]:
        """Every visible output, in order."""
        return [value for _, values in self.published for value in values]

    def sync(self) -> None:
        """Make everything written so far durable."""
        self._synced_staged = dict(self.staged)
        self._synced_published = list(self.published)

    def lose_unsynced(self) -> None:
        """Lose power."""
        self.staged = dict(self._synced_staged)
        self.published = list(self._synced_published)


class SignalBox:
    """Signals that were sent to a job; durable at once, numbered from 0."""

    def __init__(self) -> None:
        self.documents: list[bytes] = []
        self.on_append: Callable[[], object] = list

    def append(self, document: bytes) -> None:
        """Take a signal."""
        self.documents.append(document)
        self.on_append()


class FaultySignals:
    """The signals of a box as a source, one or a few at a time.

    Args:
        box: The box.
        fuse: The machine's fuse.
        luck: Decides how many come at once.
    """

    name = "signals"
    is_replayable = True
    codec = JSON
    partitions = ()
    idle_timeout_ms = None

    def __init__(self, box: SignalBox, fuse: Fuse, luck: random.Random) -> None:
        self._box = box
        self._fuse = fuse
        self._luck = luck
        self._next = 0
        self._arrived = asyncio.Event()
        box.on_append = self._arrived.set

    async def open(self, positions: Mapping[str, int]) -> None:
        """Start behind what the last checkpoint has."""
        self._next = positions.get(self.name, 0)

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next ones."""
        while self._next == len(self._box.documents):
            self._arrived.clear()
            await self._arrived.wait()
        self._fuse.reach("signals.fetch", OSError)
        end = min(self._next + self._luck.randint(1, min(records_max, 3)), len(self._box.documents))
        records = [Record(self.name, n, n + 1, self._box.documents[n]) for n in range(self._next, end)]
        self._next = end
        return records

    async def append(self, document: bytes) -> None:
        """Send one."""
        self._box.append(document)

    async def release(self, positions: Mapping[str, int]) -> None:
        """Keep them all: what comes twice would show."""

    async def close(self) -> None:
        """Nothing is held."""


class Machine:
    """What outlives a process.

    Args:
        roles: Roles of the sinks (``sink``, ``dead-letter``).
    """

    def __init__(self, roles: Iterable[str] = ("sink",)) -> None:
        self.fuse = Fuse()
        self.storage = FaultyStorage(self.fuse)
        self.sinks = {role: SinkDirectory() for role in roles}
        self.signals = SignalBox()

    def restart(self, fault: Fault) -> None:
        """Begin another life after a crash; all tasks of the former one have ended."""
        if fault is Fault.POWER_LOST:
            self.storage.lose_unsynced()
            for directory in self.sinks.values():
                directory.lose_unsynced()
        self.storage.is_open = False
        self.fuse.revive()


class FaultySource:
    """A replayable source over a list, in batches and with waits that a seed decides.

    Args:
        records: All records, in the order in which they are read; offsets rise within each label.
        fuse: The machine's fuse.
        luck: Decides batch sizes and waits.
        wait_ms_max: Longest wait before a batch.
    """

    name = "faulty"
    is_replayable = True
    codec = JSON
    partitions = ()
    idle_timeout_ms = None

    def __init__(self, records: Sequence[Record], fuse: Fuse, luck: random.Random, wait_ms_max: int = 0) -> None:
        self._records = records
        self._fuse = fuse
        self._luck = luck
        self._wait_ms_max = wait_ms_max
        self._rest: list[Record] = []

    async def open(self, positions: Mapping[str, int]) -> None:
        """Start at ``positions``."""
        self._fuse.reach("source.open", OSError)
        self._rest = [record for record in self._records if record.offset >= positions.get(record.source, 0)]

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next batch."""
        self._fuse.reach("source.fetch", OSError)
        await asyncio.sleep(self._luck.randint(0, self._wait_ms_max) / 1000)
        count = self._luck.randint(1, min(records_max, 8))
        batch, self._rest = self._rest[:count], self._rest[count:]
        self._fuse.reach("source.fetch done", OSError)
        return [Record(r.source, r.offset, r.next_offset, r.value) for r in batch]  # the engine owns what it is given

    async def close(self) -> None:
        """Nothing is held."""


class FaultySink:
    """A staging sink over a `SinkDirectory`; an epoch may be staged in two files.

    Args:
        role: Its role, for the trace.
        directory: Its disk.
        fuse: The machine's fuse.
        luck: Decides waits and how many files there are.
        wait_ms_max: Longest wait of one step.
    """

    name = "faulty"
    guarantee = Guarantee.EXACTLY_ONCE
    record_max_bytes = None

    def __init__(
        self, role: str, directory: SinkDirectory, fuse: Fuse, luck: random.Random, wait_ms_max: int = 0
    ) -> None:
        self._role = role
        self._directory = directory
        self._fuse = fuse
        self._luck = luck
        self._wait_ms_max = wait_ms_max
        self._open: list[bytes] = []
        self._closed: list[bytes] = []

    def _reach(self, point: str) -> None:
        self._fuse.reach(f"{self._role}.{point}", _sink_error)

    async def _step(self, point: str) -> None:
        """Pass a point, wait, pass it again: the process may die on either side."""
        self._reach(point)
        await asyncio.sleep(self._luck.randint(0, self._wait_ms_max) / 1000)
        self._reach(f"{point} go")

    async def open(self, prepared: tuple[int, Staged] | None) -> None:
        """Delete staging that no decided checkpoint names."""
        self._reach("open")
        kept = prepared[1].names if prepared is not None else ()
        for name in [name for name in self._directory.staged if name not in kept]:
            del self._directory.staged[name]
            self._reach(f"open: deleted {name}")
        self._directory.sync()
        self._reach("open done")

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Buffer one output."""
        self._reach("write")
        self._open.append(record.value or b"null")

    def barrier(self, checkpoint: int) -> None:
        """Close the epoch."""
        self._reach(f"barrier {checkpoint}")
        self._closed, self._open = self._open, []

    async def stage(self, checkpoint: int) -> Staged:
        """Write the epoch to one or two files and sync."""
        await self._step(f"stage {checkpoint}")
        outputs, self._closed = self._closed, []
        if not outputs:
            return Staged()
        middle = self._luck.randint(1, len(outputs))
        names = []
        for part, values in enumerate((outputs[:middle], outputs[middle:])):
            if values:
                names.append(f"part-{checkpoint}-{part}")
                self._directory.staged[names[-1]] = tuple(values)
                await self._step(f"stage {checkpoint}: wrote {names[-1]}")
        self._directory.sync()
        self._reach(f"stage {checkpoint} done")
        return Staged(names=tuple(names))

    async def publish(self, checkpoint: int, staged: Staged) -> None:
        """Rename every staged file that is still there, and sync."""
        await self._step(f"publish {checkpoint}")
        for name in staged.names:
            if name in self._directory.staged:
                self._directory.published.append((name, self._directory.staged.pop(name)))
                await self._step(f"publish {checkpoint}: renamed {name}")
        self._directory.sync()
        self._reach(f"publish {checkpoint} done")

    async def close(self) -> None:
        """Leave staging behind."""


class FaultyState(MemoryKeyedState):
    """Keyed state over a `FaultyStorage`; every call is a point before and after."""

    def __init__(self, storage: FaultyStorage, fuse: Fuse) -> None:
        self._fuse = fuse
        fuse.reach("state.open", _state_error)
        super().__init__(storage)

    def get(self, operator: int, key: bytes, path: str) -> bytes | None:
        """Return one memory value."""
        self._fuse.reach("state.get", _state_error)
        return super().get(operator, key, path)

    def scan(self, operator: int, key: bytes, prefix: str) -> list[tuple[str, bytes]]:
        """Return the memory values of a key."""
        self._fuse.reach("state.scan", _state_error)
        return super().scan(operator, key, prefix)

    def rows(self, table: Table) -> Iterable[StoredRow]:  # type: ignore[override]
        """Return a whole table."""
        self._fuse.reach(f"state.rows {table.name}", _state_error)
        return super().rows(table)

    async def prepare(self, checkpoint: int, delta: DeltaSlices, staged: Mapping[str, Staged]) -> None:
        """Decide a checkpoint."""
        self._fuse.reach(f"state.prepare {checkpoint}", _state_error)
        await super().prepare(checkpoint, delta, staged)
        self._fuse.reach(f"state.prepare {checkpoint} done", _state_error)

    async def complete(self) -> None:
        """Apply a decided checkpoint."""
        self._fuse.reach("state.complete", _state_error)
        await super().complete()
        self._fuse.reach("state.complete done", _state_error)

"""Keyed state in memory: the twin of `RocksDBKeyedState`, for tests and for jobs without a state directory.

`MemoryStorage` is the disk: it outlives the state that is opened on it and knows what of it is synced, so a test can crash
a process (`close`, open again) or the machine (`MemoryStorage.lose_unsynced`). The state follows the same numbered steps as
its twin, and syncs at the same two places.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from agentflow.api.memory_codec import stamp_of
from agentflow.core.delta import DeltaSlices, StateWrite, StoredRow, Table
from agentflow.errors import NotConfigured, StateLocked, StateUnavailable
from agentflow.runtime.ports import Prepared, Staged, StateFacts
from agentflow.state.sweeping import SweepRound

SWEEP_ROWS_MAX: Final = 5_000

_KeyRows = dict[str, bytes]


class MemoryStorage:
    """What survives a `MemoryKeyedState`, as a disk survives a process.

    Attributes:
        checkpoint: Number of the last completed checkpoint, as written.
        prepared: The decision row, as written; None when there is none.
        chunks: The delta of ``prepared``.
        is_open: Whether a state owns the storage.
        journal: The records of the journal that are not released.
        journal_begins: Position of the first of them.
    """

    def __init__(self) -> None:
        self.checkpoint = 0
        self.prepared: Prepared | None = None
        self.chunks: list[list[StateWrite]] = []
        self.is_open = False
        self.journal: list[tuple[int, bytes]] = []
        self.journal_begins = 0
        self._journal_unsynced = 0
        self._tables: dict[Table, dict[tuple[int, bytes], _KeyRows]] = {table: {} for table in Table}
        self._undo: list[Callable[[], None]] = []  # one per unsynced write, oldest first

    @property
    def unsynced(self) -> int:
        """Number of writes that a power loss may take."""
        return len(self._undo)

    def table(self, table: Table) -> dict[tuple[int, bytes], _KeyRows]:
        """Return the rows of a table by (operator, key) and name; not to be changed."""
        return self._tables[table]

    def write(self, write: StateWrite) -> None:
        """Write one row, unsynced."""
        table, operator, key, name, value = write
        former = self._tables[table].get((operator, key), {}).get(name)
        self._undo.append(functools.partial(self._set, table, (operator, key), name, former))
        self._set(table, (operator, key), name, value)

    def write_marks(self, checkpoint: int, prepared: Prepared | None, chunks: list[list[StateWrite]]) -> None:
        """Write checkpoint number and decision as one atomic write, unsynced."""
        self._undo.append(functools.partial(self._set_marks, self.checkpoint, self.prepared, self.chunks))
        self._set_marks(checkpoint, prepared, chunks)

    def sync(self) -> None:
        """Make everything written so far durable."""
        self._undo.clear()

    def append_journal(self, records: Sequence[tuple[int, bytes]]) -> None:
        """Write records of the journal, unsynced."""
        self.journal += records
        self._journal_unsynced += len(records)

    def sync_journal(self) -> None:
        """Make every record durable."""
        self._journal_unsynced = 0

    def lose_unsynced(self, *, kept: int = 0) -> None:
        """Lose power: all but the first ``kept`` unsynced writes are gone, and the state that was open with them."""
        while len(self._undo) > kept:
            self._undo.pop()()
        self._undo.clear()
        lost = max(0, self._journal_unsynced - kept)
        del self.journal[len(self.journal) - lost :]
        self._journal_unsynced = 0
        self.is_open = False

    def _set(self, table: Table, slot: tuple[int, bytes], name: str, value: bytes | None) -> None:
        keys = self._tables[table]
        if value is not None:
            keys.setdefault(slot, {})[name] = value
        elif slot in keys:
            keys[slot].pop(name, None)
            if not keys[slot]:
                del keys[slot]

    def _set_marks(self, checkpoint: int, prepared: Prepared | None, chunks: list[list[StateWrite]]) -> None:
        self.checkpoint, self.prepared, self.chunks = checkpoint, prepared, chunks


class MemoryJournal:
    """`Journal` in memory, beside a `MemoryKeyedState`."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self.is_closed = False

    async def read(self, position: int) -> tuple[list[tuple[int, bytes]], int]:
        """See `Journal`."""
        begins, records = self._storage.journal_begins, self._storage.journal
        return records[max(0, position - begins) :], begins + len(records)

    async def append(self, records: Sequence[tuple[int, bytes]]) -> int:
        """See `Journal`."""
        self._storage.append_journal(records)
        await self._yield("writing the journal")
        self._storage.sync_journal()
        return self._storage.journal_begins + len(self._storage.journal)

    def append_now(self, records: Sequence[tuple[int, bytes]]) -> int | None:  # noqa: ARG002 (the port)
        """See `Journal`: never, as a disk that takes its time."""
        return None

    async def release(self, position: int) -> None:
        """See `Journal`."""
        await self._yield("cutting the journal")
        del self._storage.journal[: max(0, position - self._storage.journal_begins)]
        self._storage.journal_begins = max(position, self._storage.journal_begins)

    async def _yield(self, doing: str) -> None:
        await asyncio.sleep(0)
        if self.is_closed:
            raise _closed(doing)


def _all_rows(rows: Mapping[tuple[int, bytes], _KeyRows]) -> Iterator[tuple[int, bytes, str]]:
    for slot in list(rows):
        for name in list(rows.get(slot, ())):
            yield *slot, name


class MemoryKeyedState:
    """`KeyedState` in memory. Durability: that of its storage, which is lost with the process.

    Args:
        storage: What an earlier state left behind; fresh storage if not given.

    Raises:
        StateLocked: Another state has the storage open.
    """

    def __init__(self, storage: MemoryStorage | None = None) -> None:
        self._storage = storage or MemoryStorage()
        if self._storage.is_open:
            raise StateLocked(
                "the state is in use",
                where={"state": "in memory"},
                expected="one owner per storage",
                fix="close the other state first",
            )
        self._storage.sync()  # a decision that is found is acted upon: it must not be lost any more
        self._storage.sync_journal()  # and so are records
        self._storage.is_open = True
        self._is_closed = False
        self.journal = MemoryJournal(self._storage)
        self._memory = self._storage.table(Table.MEMORY)
        self._sweeps = {table: SweepRound[Iterator[tuple[int, bytes, str]]]() for table in Table}

    @property
    def checkpoint(self) -> int:
        """Number of the last completed checkpoint; 0 when there is none."""
        return self._storage.checkpoint

    @property
    def prepared(self) -> Prepared | None:
        """The decided checkpoint that is not completed; None when there is none."""
        return self._storage.prepared

    @property
    def sizes(self) -> Mapping[str, int]:
        """Nobody counts."""
        return {}

    def get(self, operator: int, key: bytes, path: str) -> bytes | None:
        """Return one memory value; None when there is none."""
        if self._is_closed:
            raise _closed("reading memory")
        rows = self._memory.get((operator, key))
        return None if rows is None else rows.get(path)

    def scan(self, operator: int, key: bytes, prefix: str) -> list[tuple[str, bytes]]:
        """Return the memory values of ``key`` whose path starts with ``prefix``, ordered by the path's UTF-8 bytes."""
        if self._is_closed:
            raise _closed("reading memory")
        # Code points sort as their UTF-8 bytes do.
        return sorted(row for row in self._memory.get((operator, key), {}).items() if row[0].startswith(prefix))

    def find(self, table: Table, operator: int, key: bytes, name: str) -> bytes | None:
        """Return one row of any table."""
        if self._is_closed:
            raise _closed("reading")
        return self._storage.table(table).get((operator, key), {}).get(name)

    def rows(self, table: Table) -> Iterator[StoredRow]:
        """Iterate over a whole table, ordered by (operator, key, name), each compared as bytes."""
        keys = self._storage.table(table)
        for operator, key in sorted(keys):
            for name, value in sorted(keys.get((operator, key), {}).items()):
                if self._is_closed:
                    raise _closed("reading")
                yield StoredRow(operator, key, name, value)

    async def prepare(self, checkpoint: int, delta: DeltaSlices, staged: Mapping[str, Staged]) -> None:
        """Keep the delta, write the decision, sync. When it returns, the checkpoint is decided."""
        assert self.prepared is None, "prepare before the former checkpoint has completed"
        assert checkpoint > self.checkpoint, f"prepare({checkpoint}) after checkpoint {self.checkpoint}"
        self._check_open("preparing a checkpoint")
        chunks: list[list[StateWrite]] = []
        for writes in delta:
            chunks.append(writes)
            await self._yield("preparing a checkpoint")
        self._storage.write_marks(self.checkpoint, Prepared(checkpoint, dict(staged)), chunks)
        await self._yield("deciding a checkpoint")
        self._storage.sync()

    async def complete(self) -> None:
        """Apply the prepared delta in slices, remove the decision, sync. Does nothing when nothing is prepared."""
        self._check_open("completing a checkpoint")
        prepared = self.prepared
        if prepared is None:
            return
        for writes in self._storage.chunks:
            for write in writes:
                self._storage.write(write)
            await self._yield("applying a checkpoint")
        self._storage.write_marks(prepared.checkpoint, None, [])
        await self._yield("completing a checkpoint")
        self._storage.sync()

    async def sweep(self, table: Table, unused_since_ms: int, fresh_ms: int) -> int:
        """Delete values whose TTL stamp is at or before ``unused_since_ms``, among the next 5,000 rows.

        Complexity: listing the keys at the beginning of a round takes about 10 ms per million of them.
        """
        assert self.prepared is None, "sweep in the middle of a checkpoint"
        self._check_open("sweeping memory")
        sweep, rows, deleted = self._sweeps[table], self._storage.table(table), 0
        if sweep.is_idle(unused_since_ms):
            return 0
        page = list(itertools.islice(sweep.begin(_all_rows(rows), fresh_ms), SWEEP_ROWS_MAX))
        for operator, key, name in page:
            value = rows.get((operator, key), {}).get(name)
            stamp = None if value is None else stamp_of(value)
            if stamp is None:
                continue
            if stamp <= unused_since_ms:
                self._storage.write((table, operator, key, name, None))
                deleted += 1
            else:
                sweep.keep(stamp)
        if len(page) < SWEEP_ROWS_MAX:
            sweep.end()
        return deleted

    async def export(self, request: str, facts: StateFacts) -> None:  # noqa: ARG002 (there is nothing to hand out)
        """Refuse: there are no files."""
        raise NotConfigured(
            "the state of this job is in memory",
            expected="state in a directory",
            fix="set state.dir, and run the job again",
        )

    def close(self) -> None:
        """Release the storage. Idempotent."""
        if not self._is_closed:
            self._is_closed = self.journal.is_closed = True
            self._storage.is_open = False

    async def _yield(self, doing: str) -> None:
        """Let the loop run; what happened meanwhile may have been `close`."""
        await asyncio.sleep(0)
        self._check_open(doing)

    def _check_open(self, doing: str) -> None:
        if self._is_closed:
            raise _closed(doing)


def _closed(doing: str) -> StateUnavailable:
    return StateUnavailable(
        f"{doing}: the state is closed",
        where={"state": "in memory"},
        expected="no use after close",
        fix="open the state again",
    )

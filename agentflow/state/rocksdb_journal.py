"""The journal of an embedded job: a database of its own beside the keyed state, made when the first record comes.

A database of its own has a log of its own, so a group commit syncs records and not the delta that a checkpoint writes at the
same time; and a failed write of one says nothing about the other.

    position (8 bytes, big-endian) → operator (2 bytes), record
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from agentflow.errors import StateError
from agentflow.state.directory import sync_directory
from agentflow.state.rocksdb_store import DEFAULT, RocksDBResources, RocksDBStore

JOURNAL_DIRECTORY: Final = "journal"
FAMILIES: Final = ("default",)
_WRITING: Final = "writing the journal"
_SMALL_BYTES = 64 * 2**10
_FEW = 8  # records; where there are more, the loop has other things to do meanwhile
_QUICK_S, _QUICK_FEW_S = 0.000_5, 0.002  # what a sync may take that is waited for in place
_PAGE_ROWS, _PAGE_BYTES = 5_000, 8 * 2**20


class RocksDBJournal:
    """See `agentflow.runtime.ports.Journal`.

    Args:
        directory: The state directory.
        resources: Cache and write buffers.
        sync_interval_ms: Time between syncs; None: every append is synced, and waits for it.
    """

    def __init__(self, directory: Path, resources: RocksDBResources, sync_interval_ms: int | None = None) -> None:
        self._sync_interval_ms = sync_interval_ms
        self._sync: asyncio.TimerHandle | None = None
        self._syncing: asyncio.Task[None] | None = None
        self._directory = directory
        self._resources = resources
        self._path = directory / JOURNAL_DIRECTORY
        self._store: RocksDBStore | None = None
        self._next = 0
        self._released = 0
        self._one_at_a_time = asyncio.Lock()

    async def read(self, position: int) -> tuple[list[tuple[int, bytes]], int]:
        """See `Journal`."""
        self._next = max(self._next, position)
        records: list[tuple[int, bytes]] = []
        if not self._path.exists():
            return records, self._next
        for number, operator, record in records_of(self._open(), position):
            self._next = number + 1
            records.append((operator, record))
            if number % _PAGE_ROWS == 0:
                await asyncio.sleep(0)
        return records, self._next

    async def append(self, records: Sequence[tuple[int, bytes]]) -> int:
        """See `Journal`."""
        async with self._one_at_a_time:
            store = self._write(records)
            if self._sync_interval_ms is None:
                await store.sync(_WRITING)
            return self._next

    def append_now(self, records: Sequence[tuple[int, bytes]]) -> int | None:
        """See `Journal`: where the disk has been quick, it is waited for: a thread costs two wake-ups, which is more."""
        if self._store is None or self._one_at_a_time.locked():
            return None
        if self._sync_interval_ms is None:
            quick_s = _QUICK_FEW_S if len(records) <= _FEW else _QUICK_S
            if self._store.last_sync_s > quick_s or sum(len(record) for _, record in records) > _SMALL_BYTES:
                return None
        store = self._write(records)
        if self._sync_interval_ms is None:
            store.sync_in_place(_WRITING)
        return self._next

    def _write(self, records: Sequence[tuple[int, bytes]]) -> RocksDBStore:
        """Write records unsynced; where syncs have an interval, one follows."""
        store, position = self._open(), self._next
        rows = [
            (_key(place), operator.to_bytes(2, "big") + record)
            for place, (operator, record) in enumerate(records, position)
        ]
        if len(rows) == 1:
            store.put(DEFAULT, *rows[0], _WRITING)
        else:
            batch = store.batch()
            for key, row in rows:
                batch.put(key, row)
            store.write(batch, _WRITING)
        self._next = position + len(rows)
        if self._sync_interval_ms is not None and self._sync is None:
            self._sync = asyncio.get_running_loop().call_later(self._sync_interval_ms / 1000, self._sync_now)
        return store

    def _sync_now(self) -> None:
        self._sync, self._syncing = None, asyncio.ensure_future(self._sync_late())

    async def _sync_late(self) -> None:
        """Sync what was appended meanwhile; an error is that of the next append."""
        async with self._one_at_a_time:
            if self._store is not None:
                with contextlib.suppress(StateError):
                    await self._store.sync(_WRITING)

    async def release(self, position: int) -> None:
        """See `Journal`."""
        if self._store is None or position <= self._released:
            return
        async with self._one_at_a_time:
            batch = self._store.batch()
            batch.delete_range(_key(self._released), _key(position))
            self._store.write(batch, "cutting the journal")
            self._released = position
            self._store.reclaim(DEFAULT)

    async def link(self, path: Path) -> None:
        """Link the files of the database, if there is one, into a new directory."""
        if self._path.exists():
            async with self._one_at_a_time:
                await self._open().link(path, "linking the journal")

    def close(self) -> None:
        """Close the database, if there is one. Idempotent."""
        if self._sync is not None:
            self._sync.cancel()
        if self._syncing is not None:
            self._syncing.cancel()
        if self._store is not None:
            self._store.close()
            self._store = None

    def _open(self) -> RocksDBStore:
        if self._store is None:
            is_new = not self._path.exists()
            self._store = RocksDBStore(
                self._path, directory=self._directory, resources=self._resources, create=True, families=FAMILIES
            )
            if is_new:
                sync_directory(self._directory)
        return self._store


def records_of(store: RocksDBStore, position: int) -> Iterator[tuple[int, int, bytes]]:
    """Iterate over the records of a journal from ``position`` on, as (position, operator, record)."""
    start = _key(position)
    while page := store.page(DEFAULT, start, None, rows_max=_PAGE_ROWS, bytes_max=_PAGE_BYTES):
        for key, row in page:
            yield int.from_bytes(key, "big"), int.from_bytes(row[:2], "big"), row[2:]
        start = page[-1][0] + b"\x00"


def _key(position: int) -> bytes:
    return position.to_bytes(8, "big")

"""Keyed state of one subtask on disk: the ``prepared/N`` protocol over RocksDB.

The protocol (semantics.md, "Embedded job"; the sinks' steps 1 and 3 are the caller's):

    prepare(N)   2a  chunks of the delta, parts of large values, outputs      unsynced
                 2b  the decision row, then one sync                          N is decided
    complete()   4a  every chunk is applied to the tables                     unsynced, may be repeated
                 4b  checkpoint number N and deletion of the decision, one batch, then one sync
                 4c  the chunk rows are deleted                               unsynced; else the next open does it

The write-ahead log is one sequence over all column families and is recovered as a prefix. So whoever finds the decision row
finds every chunk, and whoever finds checkpoint number N finds every row of N. A crash at any point leaves either a decision
(open, `complete` again) or none (open deletes what was written for it).

Rejected: the delta straight into the tables under a marker (undoing needs the old values); one batch for the whole delta (a
batch of 100,000 entries holds the GIL 130 ms); RocksDB's own transactions (the binding has none).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from agentflow.api.memory_codec import stamp_of
from agentflow.core.delta import DeltaSlices, StoredRow, Table
from agentflow.errors import StateError, StateUnavailable
from agentflow.runtime.ports import Prepared, Staged, StateFacts
from agentflow.state.directory import ROCKSDB_DIRECTORY, StateDirectory
from agentflow.state.exports import answer, link_beside, place_of, sweep_exports
from agentflow.state.layout import (
    ESCAPED,
    LAYOUT_TAG_MIN,
    encode,
    encode_name,
    end_of_prefix,
    key_prefix,
    seal,
    storage_key,
)
from agentflow.state.rocksdb_journal import JOURNAL_DIRECTORY, RocksDBJournal
from agentflow.state.rocksdb_large import LargeValues
from agentflow.state.rocksdb_prepared import DECISION_KEY, Chunk, PreparedCheckpoint
from agentflow.state.rocksdb_rows import CHANGELOG_KEY, CHECKPOINT_KEY, StateRows
from agentflow.state.rocksdb_store import (
    DEFAULT,
    MEMORY,
    RocksDBResources,
    RocksDBStore,
    shared_resources,
)
from agentflow.state.sweeping import SweepRound

FREE_MIN_BYTES: Final = 64 * 2**20
SWEEP_ROWS_MAX: Final = 5_000
"""Rows that one `sweep` looks at."""

_PAGE_BYTES = 4 * 2**20


class RocksDBKeyedState:
    """`KeyedState` in a directory of its own. Open one with `RocksDBKeyedState.open`.

    After a failed or cancelled `prepare` or `complete`, close the state and open it again: that tells whether the checkpoint
    is decided.
    """

    def __init__(
        self,
        directory: StateDirectory,
        store: RocksDBStore,
        resources: RocksDBResources,
        journal_sync_interval_ms: int | None = None,
        beside: Sequence[Path] = (),
    ) -> None:
        self._directory = directory
        self._beside = beside
        self._store = store
        self.journal = RocksDBJournal(directory.path, resources, journal_sync_interval_ms)
        self._read_memory = store.reader(MEMORY)
        self._sweeps = {table: SweepRound[bytes]() for table in Table}
        self._large = LargeValues(store)
        self._rows = StateRows(store, self._large)
        self._checkpoint = self._rows.checkpoint()
        self._prepared = PreparedCheckpoint(store, self._large)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        job: str,
        free_min_bytes: int = FREE_MIN_BYTES,
        resources: RocksDBResources | None = None,
        journal_sync_interval_ms: int | None = None,
        beside: Sequence[Path] = (),
        is_momentary: bool = False,
    ) -> RocksDBKeyedState:
        """Open the state of one subtask; a missing or empty directory is created.

        Synchronous: RocksDB opens with the GIL held, so a thread would hold up the loop just as long. Undecided leftovers
        are deleted; a decided checkpoint waits for `complete`.

        Args:
            path: The subtask's directory.
            job: Name of the job that the directory belongs to.
            free_min_bytes: Free disk space below which `open` and `prepare` refuse.
            resources: Cache and write buffers; those of the process if not given.
            journal_sync_interval_ms: Time between syncs of the journal; None: every append is synced.
            beside: Directories of documents that belong to the state, such as signals on their way; `export` has them too.
            is_momentary: It is closed again at once; see `StateDirectory`.

        Raises:
            DiskFull, StateLocked, StateVersionTooNew, StateMismatch, StateCorrupted, StateUnavailable: See `StateDirectory`.
        """
        with contextlib.ExitStack() as opened:
            directory = StateDirectory(Path(path), job=job, free_min_bytes=free_min_bytes, is_momentary=is_momentary)
            opened.callback(directory.close)
            sweep_exports(directory.path)
            resources = resources or shared_resources()
            store = RocksDBStore(
                directory.rocksdb_path,
                directory=directory.path,
                resources=resources,
                create=directory.is_new,
            )
            opened.callback(store.close)
            # RocksDB has put what it replayed from its log into synced table files, so what is found here is durable.
            if directory.is_new:
                directory.mark_ready()
            state = cls(directory, store, resources, journal_sync_interval_ms, beside)
            if state.prepared is None:
                state._prepared.discard_undecided(state.checkpoint + 1)
            opened.pop_all()
        return state

    @property
    def checkpoint(self) -> int:
        """Number of the last completed checkpoint; 0 when there is none."""
        return self._checkpoint

    @property
    def prepared(self) -> Prepared | None:
        """The decided checkpoint that is not completed; None when there is none."""
        return self._prepared.decided

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of its table files, and of what waits in memory to become some. The journal is not in it."""
        return self._store.sizes

    def get(self, operator: int, key: bytes, path: str) -> bytes | None:
        """Return one memory value; None when there is none.

        Raises:
            StateCorrupted, StateUnavailable: The row cannot be read.
        """
        row = storage_key(operator, key, path)
        try:
            stored = self._read_memory(row)
        except Exception as error:  # the binding raises bare Exception
            raise self._store.error(error, "reading memory") from error
        if not stored or stored[0] < LAYOUT_TAG_MIN:
            return stored
        return self._rows.value(stored)

    def scan(self, operator: int, key: bytes, prefix: str) -> list[tuple[str, bytes]]:
        """Return the memory values of ``key`` whose path starts with ``prefix``, ordered by the path's UTF-8 bytes."""
        start = key_prefix(operator, key) + encode_name(prefix)
        return [(row.name, row.value) for row in self._rows.of(MEMORY, start, end_of_prefix(start))]

    def find(self, table: Table, operator: int, key: bytes, name: str) -> bytes | None:
        """Return one row of any table."""
        stored = self._store.get(int(table), storage_key(operator, key, name))
        return None if stored is None else self._rows.value(stored)

    def rows(self, table: Table) -> Iterator[StoredRow]:
        """Iterate over a whole table, ordered by (operator, key, name), each compared as bytes."""
        return self._rows.of(int(table))

    async def prepare(self, checkpoint: int, delta: DeltaSlices, staged: Mapping[str, Staged]) -> None:
        """Write the delta and then the decision row, and sync. When it returns, the checkpoint is decided.

        Raises:
            DiskFull: Too little space; checked before anything is written, and reported by the disk itself.
            StateUnavailable, StateCorrupted: As RocksDB says.
        """
        assert self.prepared is None, "prepare before the former checkpoint has completed"
        assert checkpoint > self._checkpoint, f"prepare({checkpoint}) after checkpoint {self._checkpoint}"
        self._store.check_writable("preparing a checkpoint")
        self._directory.check_free_space(f"preparing checkpoint {checkpoint}")
        await self._prepared.write(checkpoint, delta, staged)
        await self._store.sync("deciding a checkpoint")
        self._prepared.decide(staged)

    async def complete(self) -> None:
        """Apply the prepared delta in slices, remove the decision, sync. Does nothing when nothing is prepared."""
        self._store.check_writable("completing a checkpoint")
        prepared = self.prepared
        if prepared is None:
            return
        for index in range(self._prepared.chunks):
            self._apply(self._prepared.chunk(index))
            await asyncio.sleep(0)
        batch, handles = self._store.batch(), self._store.handles
        batch.put(CHECKPOINT_KEY, seal(encode((prepared.checkpoint,))), handles[DEFAULT])
        batch.delete(DECISION_KEY, handles[DEFAULT])
        self._large.delete_superseded(batch)
        self._store.write(batch, "completing a checkpoint")
        await self._store.sync("completing a checkpoint")
        self._checkpoint = prepared.checkpoint
        self._prepared.remove()

    # -- without decisions: what a changelog holds needs no prepared delta
    @property
    def changelog_position(self) -> int | None:
        """Offset up to which the changelog is applied; None: nothing of it is."""
        return self._changelog()[0]

    @property
    def changelog_applied_ms(self) -> int:
        """When that was noted, epoch milliseconds; 0: never."""
        return self._changelog()[1]

    def _changelog(self) -> tuple[int | None, int]:
        return self._rows.changelog()

    def apply_changes(self, rows: Iterable[tuple[int, bytes, bytes | None]]) -> None:
        """Write (table, storage key, value) rows, unsynced: the log that they come from is what survives."""
        batch, handles = self._store.batch(), self._store.handles
        for table, row, value in rows:
            if value is None:
                batch.delete(row, handles[table])
            else:
                batch.put(row, ESCAPED + value if value and value[0] >= LAYOUT_TAG_MIN else value, handles[table])
        self._store.write(batch, "applying the changelog")

    def note_changelog(self, checkpoint: int, position: int, now_ms: int) -> None:
        """Note that everything before ``position`` is applied; in the order of writes behind them, so never too early."""
        batch, handles = self._store.batch(), self._store.handles
        batch.put(CHECKPOINT_KEY, seal(encode((checkpoint,))), handles[DEFAULT])
        batch.put(CHANGELOG_KEY, seal(encode((position, now_ms))), handles[DEFAULT])
        self._store.write(batch, "noting the changelog position")
        self._checkpoint = checkpoint

    async def sweep(self, table: Table, unused_since_ms: int, fresh_ms: int) -> int:
        """Delete values whose TTL stamp is at or before ``unused_since_ms``, among the next 5,000 rows.

        Durability: none of its own; a value that comes back after a crash is swept again.
        """
        assert self.prepared is None, "sweep in the middle of a checkpoint"
        self._store.check_writable("sweeping memory")
        sweep, family = self._sweeps[table], int(table)
        if sweep.is_idle(unused_since_ms):
            return 0
        start = sweep.begin(b"", fresh_ms)
        page = self._store.page(family, start, None, rows_max=SWEEP_ROWS_MAX, bytes_max=_PAGE_BYTES)
        batch, handles = self._store.batch(), self._store.handles
        deleted = 0
        for row, stored in page:
            stamp = stamp_of(self._head(stored))
            if stamp is None:
                continue
            if stamp > unused_since_ms:
                sweep.keep(stamp)
                continue
            batch.delete(row, handles[family])
            self._large.replace(batch, family, row, None, self._checkpoint)
            deleted += 1
        if deleted:
            self._store.write(batch, "sweeping memory")
        if page:
            sweep.place = page[-1][0] + b"\x00"
        else:
            sweep.end()
        return deleted

    async def export(self, request: str, facts: StateFacts, *, has_journal: bool = False) -> None:
        """See `KeyedState`. ``has_journal``: hand out the journal too, of a job that was stopped and can take no checkpoint."""
        assert self.prepared is None, "export in the middle of a checkpoint"
        path = place_of(self._directory.path, request)
        if path is None:
            return
        try:
            await self.link(path, has_journal=has_journal)
            await asyncio.to_thread(link_beside, path, self._beside)
        except StateError as error:
            answer(path, error)
        except OSError as error:
            answer(path, StateUnavailable(f"linking the state: {error}"))
        else:
            answer(path, facts)

    async def link(self, path: Path, *, has_journal: bool = True) -> None:
        """Link all files into a directory that is there; between checkpoints."""
        await self._store.link(path / ROCKSDB_DIRECTORY, "linking the state")
        if has_journal:
            await self.journal.link(path / JOURNAL_DIRECTORY)

    def close(self) -> None:
        """Release the directory, so that it can be opened again. Idempotent."""
        self.journal.close()
        self._store.close()
        self._directory.close()

    def _apply(self, chunk: Chunk) -> None:
        """Write one chunk to its tables, unsynced."""
        batch, handles = self._store.batch(), self._store.handles
        put, delete = batch.put, batch.delete
        large = self._large if chunk.has_large or len(self._large) else None
        for table, row, stored in zip(chunk.tables, chunk.keys, chunk.stored, strict=True):
            if large is not None:
                large.replace(batch, table, row, stored, self._checkpoint)
            if stored is None:
                delete(row, handles[table])
            else:
                put(row, stored, handles[table])
        self._store.write(batch, "applying a checkpoint")

    def _head(self, stored: bytes) -> bytes:
        """Return the first bytes of the value of a stored value, without reading its parts."""
        large = self._large.marker(stored)
        return stored if large is None else large.head

"""RocksDB as this package uses it: one directory, fixed column families, batches, pages, one way to sync and to close.

The store owns every handle of the database: RocksDB keeps its lock until the last of them is gone, so no handle leaves this
module except by `handles`, whose list is emptied at `close`. (A local variable that held a single handle would survive in
the traceback of an error and with it the lock.)

Writes go to the write-ahead log but are not synced; `sync` makes everything written so far durable, in a thread: the binding
gives the GIL away there, while a synced write would hold it for the whole fsync. The log is recovered up to its first torn
record, because what was written after the last sync may be torn by a power loss.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    Checkpoint,
    ColumnFamily,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteBufferManager,
)

from agentflow.errors import StateError
from agentflow.state.rocksdb_errors import closed_error, interrupted_error, state_error

DEFAULT: Final = 0
MEMORY, RUNS, TIMERS, META = 1, 2, 3, 4  # the numbers of `Table`
PARTS: Final = 5
PREPARED: Final = 6

COLUMN_FAMILIES: Final = (
    "default",
    "memory",
    "runs",
    "timers",
    "meta",
    "parts",
    "prepared",
    "steps",
    "signals",
    "results",
)
"""Names by number, which are those of `Table` too. ``default`` holds the checkpoint number and the decision row. Part of the
stored format: append, never renumber."""

_MEMTABLE_BYTES = 16 * 2**20
_WAL_BYTES_MAX = 48 * 2**20  # what an open replays at most
OPEN_FILES_MAX: Final = 256
"""Of one database."""
_RECLAIMED_BYTES = 8 * 2**20
_SIZES = ("rocksdb.total-sst-files-size", "rocksdb.cur-size-all-mem-tables")


class RocksDBResources:
    """What all subtasks of a process share, so that memory is bounded by the process and not by their number.

    Nothing is allocated up front: an idle subtask costs a few hundred KiB.

    Args:
        cache_bytes: Blocks, indexes and filters read from files.
        write_buffer_bytes: Rows not yet in files; RocksDB flushes the oldest when there are more.
    """

    def __init__(self, *, cache_bytes: int = 32 * 2**20, write_buffer_bytes: int = 32 * 2**20) -> None:
        self.cache = Cache(cache_bytes)
        self.write_buffers = WriteBufferManager(write_buffer_bytes, allow_stall=False)

    def database_options(self, *, create: bool) -> Options:
        """Return the options of a database."""
        options = Options(raw_mode=True)
        options.create_if_missing(create)
        options.create_missing_column_families(True)
        options.set_write_buffer_manager(self.write_buffers)
        options.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
        options.set_max_total_wal_size(_WAL_BYTES_MAX)
        options.set_max_background_jobs(2)
        options.set_max_open_files(OPEN_FILES_MAX)
        options.set_max_file_opening_threads(2)
        options.set_skip_stats_update_on_db_open(skip=True)
        options.set_stats_dump_period_sec(0)
        options.set_stats_persist_period_sec(0)
        options.set_bytes_per_sync(2**20)
        options.set_keep_log_file_num(2)
        options.set_max_log_file_size(2**20)
        return options

    def family_options(self) -> Options:
        """Return the options of a column family."""
        blocks = BlockBasedOptions()
        blocks.set_block_cache(self.cache)
        blocks.set_bloom_filter(10, block_based=False)
        blocks.set_cache_index_and_filter_blocks(v=True)
        blocks.set_pin_l0_filter_and_index_blocks_in_cache(v=True)
        blocks.set_format_version(5)
        options = Options(raw_mode=True)
        options.set_block_based_table_factory(blocks)
        options.set_compression_type(DBCompressionType.lz4())
        options.set_level_compaction_dynamic_level_bytes(v=True)
        options.set_write_buffer_size(_MEMTABLE_BYTES)
        options.set_max_write_buffer_number(4)
        # A stalled write waits with the GIL held; let compaction fall further behind before that happens.
        options.set_level_zero_slowdown_writes_trigger(40)
        options.set_level_zero_stop_writes_trigger(64)
        return options


@functools.cache
def shared_resources() -> RocksDBResources:
    """Return the resources that all states of this process share unless they are given others."""
    return RocksDBResources()


class RocksDBStore:
    """An open database.

    A failed write or sync makes it unusable for writing, because it is not known what of it is durable: every later write
    raises the same error, and the state has to be opened again.

    Attributes:
        directory: The state directory, for messages.
        handles: Column family handles by number, for batches; emptied at `close`. Take the list, not an element.
    """

    def __init__(
        self,
        path: Path,
        *,
        directory: Path,
        resources: RocksDBResources,
        create: bool,
        families: Sequence[str] = COLUMN_FAMILIES,
        secondary: Path | None = None,
    ) -> None:
        """Open the database; beside its owner, to read only, where ``secondary`` is a directory for its own few files. Opening holds the GIL throughout (a thread would not help) and replays at most 48 MiB of log.

        Raises:
            StateCorrupted, StateLocked, DiskFull, StateUnavailable: As RocksDB says.
        """
        self.directory = directory
        self.handles: list[ColumnFamily] = []
        self._families: list[Rdict] = []
        self._failure: StateError | None = None
        self._is_closed = False
        self.last_sync_s = math.inf  # not known yet
        # Their threads start with the first use.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="agentflow-sync")
        self._reclaimer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="agentflow-reclaim")
        self._reclaiming: Future[None] | None = None
        options = resources.database_options(create=create)
        if secondary is not None:
            options.set_max_open_files(-1)  # the owner deletes files that it needs no more, and an open one stays
        try:
            self._db = Rdict(
                str(path),
                options,
                {name: resources.family_options() for name in families},
                AccessType.read_write() if secondary is None else AccessType.secondary(str(secondary)),
            )
        except Exception as error:  # the binding raises bare Exception
            raise self.error(error, "opening the state") from error
        self._families = [self._db.get_column_family(name) for name in families]
        self.handles.extend(self._db.get_column_family_handle(name) for name in families)

    def error(self, error: Exception, doing: str) -> StateError:
        """Return the typed error for what the binding raised."""
        return state_error(error, directory=self.directory, doing=doing)

    def reader(self, family: int) -> Callable[[bytes], bytes | None]:
        """Return the point read of a column family; it raises what the binding raises, to be given to `error`."""
        read: Callable[[bytes], bytes | None] = self._families[family].get
        return read

    def get(self, family: int, key: bytes) -> bytes | None:
        """Read one row."""
        if self._is_closed:
            raise closed_error(self.directory, "reading")
        try:
            value: bytes | None = self._families[family].get(key)
        except Exception as error:  # the binding raises bare Exception
            raise self.error(error, "reading") from error
        return value

    def page(
        self, family: int, start: bytes, end: bytes | None, *, rows_max: int, bytes_max: int
    ) -> list[tuple[bytes, bytes]]:
        """Return the next rows from ``start`` on and before ``end``; an empty list when there are none.

        At least one row is returned if there is one, however large. No iterator outlives the call: one that did would keep
        the database open, and its end would not tell the end of the rows from an error.
        """
        if self._is_closed:
            raise closed_error(self.directory, "reading")
        options = ReadOptions()
        if end is not None:
            options.set_iterate_upper_bound(end)
        page: list[tuple[bytes, bytes]] = []
        size = 0
        try:
            rows = self._families[family].iter(options)
            rows.seek(start)
            while rows.valid():
                value = rows.value()
                page.append((rows.key(), value))
                size += len(value)
                if len(page) == rows_max or size >= bytes_max:
                    return page
                rows.next()
            rows.status()  # raises if it was not the end
        except Exception as error:  # the binding raises bare Exception
            rows = None  # the iterator must not survive in the traceback
            raise self.error(error, "reading") from error
        return page

    def catch_up(self) -> None:
        """See what the owner has written meanwhile: opened beside it only. Reads in between see one moment."""
        try:
            self._db.try_catch_up_with_primary()
        except Exception as error:  # the binding raises bare Exception
            raise self.error(error, "reading") from error

    def batch(self) -> WriteBatch:
        """Return an empty batch; it holds only bytes, and every entry names its column family by `handles`."""
        return WriteBatch(raw_mode=True)

    def check_writable(self, doing: str) -> None:
        """Raise unless writes are possible.

        Raises:
            StateUnavailable: After `close`.
            StateError: The failure of an earlier write.
        """
        if self._is_closed:
            raise closed_error(self.directory, doing)
        if self._failure is not None:
            raise self._failure

    def put(self, family: int, key: bytes, value: bytes, doing: str) -> None:
        """Write one row, unsynced; a batch of one takes twice as long."""
        self._attempt(lambda: self._families[family].put(key, value), doing)

    def write(self, batch: WriteBatch, doing: str) -> None:
        """Write a batch atomically, unsynced. Holds the GIL for about 1 µs per entry."""
        self._attempt(lambda: self._db.write(batch), doing)

    def sync_in_place(self, doing: str) -> None:
        """Make everything written so far durable; the loop waits."""
        self._attempt(self._flush, doing)

    def _attempt(self, write: Callable[[], object], doing: str) -> None:
        """Write, if that is possible; an error stands in the way of every later write."""
        self.check_writable(doing)
        try:
            write()
        except Exception as error:  # the binding raises bare Exception
            self._failure = self.error(error, doing)
            raise self._failure from error

    async def sync(self, doing: str) -> None:
        """Make everything written so far durable, without holding up the loop."""
        self.check_writable(doing)
        self._failure = interrupted = interrupted_error(self.directory, doing)
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._flush)
        except Exception as error:  # the binding raises bare Exception
            self._failure = self.error(error, doing)
            raise self._failure from error
        if self._failure is interrupted:  # a cancelled sync leaves it
            self._failure = None

    def _flush(self) -> None:
        began = time.monotonic()
        self._db.flush_wal(True)
        self.last_sync_s = time.monotonic() - began

    async def link(self, path: Path, doing: str) -> None:
        """Link the files of everything written so far into a new directory; nothing may be written meanwhile.

        Table files are never changed, so a link is a copy. The loop goes on: rows are flushed to files before, which gives the GIL
        away; the linking itself holds it for a few ms.
        """
        self.check_writable(doing)
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._link, path)
        except Exception as error:  # the binding raises bare Exception
            raise self.error(error, doing) from error

    def _link(self, path: Path) -> None:
        for family in self._families:
            family.flush()
        Checkpoint(self._db).create_checkpoint(str(path))

    def reclaim(self, family: int) -> None:
        """Give back, behind the scenes, the space of a family whose rows live shortly, if it takes much.

        Deleted rows would wait for the next flushes, in files as large as they are; nearly all are deleted here, so it writes little.
        """
        rows = self._families[family]
        size = sum(rows.property_int_value(name) or 0 for name in _SIZES)
        if size >= _RECLAIMED_BYTES and (self._reclaiming is None or self._reclaiming.done()):
            self._reclaiming = self._reclaimer.submit(_compact, rows)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of its table files and of its memtables; about 20 µs. Empty when it is closed."""
        families = self._families
        sizes = zip(("files", "memtables"), _SIZES, strict=True)
        return {part: sum(rows.property_int_value(name) or 0 for rows in families) for part, name in sizes if families}

    def close(self) -> None:
        """Drop every handle, so that the directory can be opened again. Idempotent. Waits for what is under way."""
        if self._is_closed:
            return
        self._is_closed = True
        self._thread.shutdown(wait=True)
        self._reclaimer.shutdown(wait=True)
        self.handles.clear()
        for handle in [*self._families, self._db]:
            # Closing flushes memtables to files, which may fail (a bare Exception) on a full or broken disk. Nothing is lost
            # by that: all rows are in the write-ahead log, which the next open replays.
            with contextlib.suppress(Exception):
                handle.close()
        self._families.clear()
        del self._db


def _compact(rows: Rdict) -> None:
    with contextlib.suppress(
        Exception
    ):  # the binding raises bare Exception; what breaks a file breaks the next write too
        rows.compact_range(None, None)

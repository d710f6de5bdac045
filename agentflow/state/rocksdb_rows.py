"""The rows of a state database as `KeyedState` shows them, for its owner and for those who only look."""

from __future__ import annotations

import contextlib
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from agentflow.core.delta import StoredRow, Table
from agentflow.errors import StateCorrupted, StateError
from agentflow.state.directory import ROCKSDB_DIRECTORY, no_state
from agentflow.state.layout import (
    LAYOUT_TAG_MIN,
    LayoutError,
    encode_name,
    end_of_prefix,
    key_prefix,
    split_storage_key,
    storage_key,
    unescape,
    unseal,
)
from agentflow.state.rocksdb_errors import corrupted
from agentflow.state.rocksdb_journal import FAMILIES, JOURNAL_DIRECTORY, records_of
from agentflow.state.rocksdb_large import LargeValues
from agentflow.state.rocksdb_prepared import PreparedCheckpoint
from agentflow.state.rocksdb_store import COLUMN_FAMILIES, DEFAULT, MEMORY, RocksDBStore, shared_resources

CHECKPOINT_KEY: Final = b"checkpoint"
CHANGELOG_KEY: Final = b"changelog"
_PAGE_ROWS = 2_000
_PAGE_BYTES = 4 * 2**20
_ATTEMPTS = 5
_decode_checkpoint = msgspec.msgpack.Decoder(tuple[int]).decode


Changed = dict[int, dict[bytes, bytes | None]]
"""Family → storage key → stored value; None: deleted."""


class StateRows:
    """Reads rows of an open database.

    Args:
        store: The database.
        large: Its values in parts.
        changed: Rows that are to be seen in place of those that are there.
    """

    def __init__(self, store: RocksDBStore, large: LargeValues, changed: Changed | None = None) -> None:
        self._store = store
        self._large = large
        self._changed = changed or {}

    def of(self, family: int, start: bytes = b"", end: bytes | None = None) -> Iterator[StoredRow]:
        """Iterate over the rows of a family, ordered by (operator, key, name), each compared as bytes."""
        pages = self._pages(family, start, end)
        if changed := self._changed.get(family):
            pages = _laid_over(
                pages, {row: changed[row] for row in sorted(changed) if start <= row and (end is None or row < end)}
            )
        for page in pages:
            for row, stored in page:
                try:
                    operator, key, name = split_storage_key(row)
                except LayoutError as error:
                    raise self.damaged(str(error), family) from error
                is_plain = (
                    stored and stored[0] < LAYOUT_TAG_MIN
                )  # as nearly always; a call would cost as much as the row
                yield StoredRow(operator, key, name, stored if is_plain else self.value(stored))

    def _pages(self, family: int, start: bytes, end: bytes | None) -> Iterator[list[tuple[bytes, bytes]]]:
        while page := self._store.page(family, start, end, rows_max=_PAGE_ROWS, bytes_max=_PAGE_BYTES):
            yield page
            start = page[-1][0] + b"\x00"

    def get(self, family: int, row: bytes) -> bytes | None:
        """Return the value of one row; None when there is none."""
        changed = self._changed.get(family, {})
        stored = changed[row] if row in changed else self._store.get(family, row)
        return None if stored is None else self.value(stored)

    def value(self, stored: bytes) -> bytes:
        """Return the value of a stored value."""
        if not stored or stored[0] < LAYOUT_TAG_MIN:
            return stored
        large = self._large.marker(stored)
        if large is not None:
            return self._large.read(large)
        try:
            return unescape(stored)
        except LayoutError as error:
            raise self.damaged(str(error), MEMORY) from error

    def checkpoint(self) -> int:
        """Return the number of the last completed checkpoint; 0 when there is none."""
        row = self._store.get(DEFAULT, CHECKPOINT_KEY)
        if row is None:
            return 0
        try:
            return _decode_checkpoint(unseal(row))[0]
        except (LayoutError, msgspec.DecodeError) as error:
            raise self.damaged(f"the checkpoint number: {error}", DEFAULT) from error

    def changelog(self) -> tuple[int | None, int]:
        """Return up to which offset the changelog is applied, and when that was noted; (None, 0): nothing of it is."""
        row = self._store.get(DEFAULT, CHANGELOG_KEY)
        if row is None:
            return None, 0
        try:
            return msgspec.msgpack.decode(unseal(row), type=tuple[int, int])
        except (LayoutError, msgspec.DecodeError) as error:
            raise self.damaged(f"the changelog position: {error}", DEFAULT) from error

    def damaged(self, what: str, family: int) -> StateCorrupted:
        """Return the error for a row that is not one of ours."""
        return corrupted(what, {"directory": str(self._store.directory), "column family": COLUMN_FAMILIES[family]})


def _laid_over(
    pages: Iterator[list[tuple[bytes, bytes]]], changed: dict[bytes, bytes | None]
) -> Iterator[list[tuple[bytes, bytes]]]:
    """Yield pages with changed rows, which are in order, in their places."""
    pending = deque(changed)
    for page in pages:
        rows: dict[bytes, bytes | None] = dict(page)
        while pending and pending[0] <= page[-1][0]:
            row = pending.popleft()
            rows[row] = changed[row]
        yield [(row, stored) for row, stored in sorted(rows.items()) if stored is not None]
    yield [(row, stored) for row in pending if (stored := changed[row]) is not None]


class StateView:
    """What a state directory holds, seen from outside: it locks nobody out, and changes nothing.

    RocksDB opens it as a secondary, which reads the files and the log of the owner as they are at this moment. The journal is
    opened behind the state, so it has everything that the checkpoint does not have.

    It is one checkpoint that is seen: where one is decided and being applied, its delta is laid over the rows, some of which have it
    already.

    Args:
        path: The subtask's directory.

    Raises:
        StateUnavailable: There is no state.
        StateCorrupted: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if not (path / ROCKSDB_DIRECTORY).is_dir():
            raise no_state(path)
        for _ in range(_ATTEMPTS - 1):
            # The owner may delete a file in the moment between its name being read and its being opened.
            with contextlib.suppress(StateError):
                self._open(path)
                return
        self._open(path)

    def _open(self, path: Path) -> None:
        with contextlib.ExitStack() as opened:
            own = opened.enter_context(
                tempfile.TemporaryDirectory(prefix="agentflow-view-")
            )  # for RocksDB's log of messages
            store = _open_beside(path, ROCKSDB_DIRECTORY, Path(own) / "state", COLUMN_FAMILIES)
            opened.callback(store.close)
            large = LargeValues(store)
            prepared = PreparedCheckpoint(store, large)
            self._rows = StateRows(store, large, _changed_by(prepared))
            self.checkpoint = self._rows.checkpoint() if prepared.decided is None else prepared.decided.checkpoint
            self.journal: list[tuple[int, bytes]] = []
            if (path / JOURNAL_DIRECTORY / "CURRENT").exists():  # else it is being made, or its maker died
                journal = _open_beside(path, JOURNAL_DIRECTORY, Path(own) / "journal", FAMILIES)
                opened.callback(journal.close)
                self.journal = [(operator, record) for _, operator, record in records_of(journal, 0)]
                journal.close()
            self._opened = opened.pop_all()

    def rows(self, table: Table) -> Iterator[StoredRow]:
        """Iterate over a whole table."""
        return self._rows.of(int(table))

    @property
    def changelog_position(self) -> int | None:
        """Offset up to which the changelog is applied; None: nothing of it is, or there is none."""
        return self._rows.changelog()[0]

    def get(self, operator: int, key: bytes, path: str) -> bytes | None:
        """Return one memory value; None when there is none."""
        return self._rows.get(MEMORY, storage_key(operator, key, path))

    def scan(self, operator: int, key: bytes, prefix: str) -> list[tuple[str, bytes]]:
        """Return the memory values of ``key`` whose path starts with ``prefix``."""
        start = key_prefix(operator, key) + encode_name(prefix)
        return [(row.name, row.value) for row in self._rows.of(MEMORY, start, end_of_prefix(start))]

    def close(self) -> None:
        """Leave no trace. Idempotent."""
        self._opened.close()


def _open_beside(path: Path, directory: str, own: Path, families: Sequence[str]) -> RocksDBStore:
    """Open a database beside its owner, as it is now."""
    store = RocksDBStore(
        path / directory,
        directory=path,
        resources=shared_resources(),
        create=False,
        families=families,
        secondary=own,
    )
    try:
        store.catch_up()  # a log that was deleted while the database was opened is in files now
    except BaseException:
        store.close()
        raise
    return store


def _changed_by(prepared: PreparedCheckpoint) -> Changed:
    changed: Changed = {}
    for index in range(prepared.chunks):
        chunk = prepared.chunk(index)
        for table, row, stored in zip(chunk.tables, chunk.keys, chunk.stored, strict=True):
            changed.setdefault(table, {})[row] = stored
    return changed

"""The rows of a state database as `KeyedState` shows them, for its owner and for those who only look."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from agentflow.core.delta import StoredRow, Table
from agentflow.errors import StateCorrupted, StateUnavailable
from agentflow.state.directory import ROCKSDB_DIRECTORY
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
from agentflow.state.rocksdb_store import COLUMN_FAMILIES, DEFAULT, MEMORY, RocksDBStore, shared_resources

CHECKPOINT_KEY: Final = b"checkpoint"
CHANGELOG_KEY: Final = b"changelog"
_PAGE_ROWS = 2_000
_PAGE_BYTES = 4 * 2**20
_decode_checkpoint = msgspec.msgpack.Decoder(tuple[int]).decode


class StateRows:
    """Reads rows of an open database.

    Args:
        store: The database.
        large: Its values in parts.
    """

    def __init__(self, store: RocksDBStore, large: LargeValues) -> None:
        self._store = store
        self._large = large

    def of(self, family: int, start: bytes = b"", end: bytes | None = None) -> Iterator[StoredRow]:
        """Iterate over the rows of a family, ordered by (operator, key, name), each compared as bytes."""
        while page := self._store.page(family, start, end, rows_max=_PAGE_ROWS, bytes_max=_PAGE_BYTES):
            for row, stored in page:
                try:
                    operator, key, name = split_storage_key(row)
                except LayoutError as error:
                    raise self.damaged(str(error), family) from error
                is_plain = (
                    stored and stored[0] < LAYOUT_TAG_MIN
                )  # as nearly always; a call would cost as much as the row
                yield StoredRow(operator, key, name, stored if is_plain else self.value(stored))
            start = page[-1][0] + b"\x00"

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


class StateView:
    """What a state directory holds, seen from outside: it locks nobody out, and changes nothing.

    RocksDB opens it as a secondary, which reads the files and the log of the owner as they are at this moment. The journal is
    opened behind the state, so it has everything that the checkpoint does not have.

    Args:
        path: The subtask's directory.

    Raises:
        StateUnavailable: There is no state.
        StateCorrupted: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if not (path / ROCKSDB_DIRECTORY).is_dir():
            raise StateUnavailable(
                "there is no state",
                where={"directory": str(path)},
                expected="the state directory of a job that has run",
                fix="look at state.dir of the job file",
            )
        self._own = tempfile.TemporaryDirectory(prefix="agentflow-view-")  # RocksDB writes its log of messages there
        self._store = RocksDBStore(
            path / ROCKSDB_DIRECTORY,
            directory=path,
            resources=shared_resources(),
            create=False,
            secondary=Path(self._own.name) / "state",
        )
        self._rows = StateRows(self._store, LargeValues(self._store))
        self.checkpoint = self._rows.checkpoint()
        self.journal: list[tuple[int, bytes]] = []
        if (path / JOURNAL_DIRECTORY).is_dir():
            journal = RocksDBStore(
                path / JOURNAL_DIRECTORY,
                directory=path,
                resources=shared_resources(),
                create=False,
                families=FAMILIES,
                secondary=Path(self._own.name) / "journal",
            )
            self.journal = [(operator, record) for _, operator, record in records_of(journal, 0)]
            journal.close()

    def rows(self, table: Table) -> Iterator[StoredRow]:
        """Iterate over a whole table."""
        return self._rows.of(int(table))

    @property
    def changelog_position(self) -> int | None:
        """Offset up to which the changelog is applied; None: nothing of it is, or there is none."""
        return self._rows.changelog()[0]

    def get(self, operator: int, key: bytes, path: str) -> bytes | None:
        """Return one memory value; None when there is none."""
        stored = self._store.get(MEMORY, storage_key(operator, key, path))
        return None if stored is None else self._rows.value(stored)

    def scan(self, operator: int, key: bytes, prefix: str) -> list[tuple[str, bytes]]:
        """Return the memory values of ``key`` whose path starts with ``prefix``."""
        start = key_prefix(operator, key) + encode_name(prefix)
        return [(row.name, row.value) for row in self._rows.of(MEMORY, start, end_of_prefix(start))]

    def close(self) -> None:
        """Leave no trace."""
        self._store.close()
        self._own.cleanup()

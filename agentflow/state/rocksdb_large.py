"""Values above 512 KiB: parts in a column family of their own, a small marker in the row's place.

Why: one row of 64 MiB would be rewritten whole by every compaction of its level, and written twice by a checkpoint (in the
prepared delta and in the table). Parts are written once, by `prepare`; the delta carries only the marker.

    column family ``parts``
        "p" checkpoint(8) sequence(4) part(4)   bytes of a part
        "i" table(1) storage key                the marker again: the index of all large values

Laws that `KeyedState` relies on:
- An id (checkpoint, sequence) names one value for ever; parts of the same id are only ever rewritten with the same bytes.
- Row, index and the deletion of the parts of the former value are one atomic batch: no crash leaves parts without a row.
- Only parts of completed checkpoints are deleted that way. A row may come twice in one delta, and `complete` may be repeated
  from its beginning: parts that the delta itself supersedes are needed until the batch that completes it.
- Parts of an undecided checkpoint have an id above the last completed one, and are deleted by it.

Memory: about 400 bytes per large value, for the index.
"""

from __future__ import annotations

import asyncio
import struct
import zlib

import msgspec
from rocksdict import WriteBatch

from agentflow.errors import StateCorrupted
from agentflow.state.layout import (
    LARGE_VALUE_BYTES,
    LargeValue,
    LayoutError,
    end_of_prefix,
    large_marker,
    large_value,
    read_large_marker,
)
from agentflow.state.rocksdb_errors import corrupted
from agentflow.state.rocksdb_store import COLUMN_FAMILIES, PARTS, RocksDBStore

_INDEX = b"i"
_PARTS = b"p"
_PARTS_END = b"q"
_part_key = struct.Struct(">cQII").pack
_YIELD_BYTES = 2**20  # written in one turn of the loop


class LargeValues:
    """The large values of one database."""

    def __init__(self, store: RocksDBStore) -> None:
        """Read the index.

        Raises:
            StateCorrupted: An entry of it is damaged.
        """
        self._store = store
        self._by_row: dict[tuple[int, bytes], LargeValue] = {}
        self._superseded: list[tuple[tuple[int, bytes], LargeValue]] = []
        start, end = _INDEX, end_of_prefix(_INDEX)
        while page := store.page(PARTS, start, end, rows_max=1_000, bytes_max=2**20):
            for key, stored in page:
                large = self.marker(stored)
                if large is None:
                    raise self._damaged("the index of large values holds something else")
                self._by_row[key[1], key[2:]] = large
            start = page[-1][0] + b"\x00"

    def __len__(self) -> int:
        return len(self._by_row)

    def marker(self, stored: bytes) -> LargeValue | None:
        """Return the large value that a stored value stands for; None when it is a value itself."""
        try:
            return read_large_marker(stored)
        except LayoutError as error:
            raise self._damaged(str(error)) from error

    async def write(self, value: bytes, checkpoint: int, sequence: int) -> bytes:
        """Write the parts of ``value``, unsynced, and return the marker for its row."""
        large = large_value(value, checkpoint, sequence)
        handles = self._store.handles
        checksum = written = 0
        for part in range(large.parts):
            piece = value[part * LARGE_VALUE_BYTES : (part + 1) * LARGE_VALUE_BYTES]
            checksum = zlib.crc32(piece, checksum)
            batch = self._store.batch()
            batch.put(_part_key(_PARTS, checkpoint, sequence, part), piece, handles[PARTS])
            self._store.write(batch, "writing a large value")
            written += len(piece)
            if written >= _YIELD_BYTES:
                written = 0
                await asyncio.sleep(0)
        return large_marker(msgspec.structs.replace(large, checksum=checksum))

    def read(self, large: LargeValue) -> bytes:
        """Return the whole value.

        Raises:
            StateCorrupted: A part is missing, or the checksum is wrong.
        """
        pieces = []
        for part in range(large.parts):
            piece = self._store.get(PARTS, _part_key(_PARTS, *large.id, part))
            if piece is None:
                raise self._damaged(f"part {part + 1} of {large.parts} of a large value is missing")
            pieces.append(piece)
        value = b"".join(pieces)
        if len(value) != large.length or zlib.crc32(value) != large.checksum:
            raise self._damaged("checksum mismatch in a large value")
        return value

    def replace(self, batch: WriteBatch, table: int, key: bytes, stored: bytes | None, completed: int) -> None:
        """Add to ``batch`` what a row's new stored value (None: deleted) means for index and parts.

        To be called for every row that is written while there are large values; the batch must be written. ``completed`` is
        the last completed checkpoint.
        """
        row = (table, key)
        former = self._by_row.get(row)
        large = None if stored is None else self.marker(stored)
        if former is None and large is None:
            return
        handles = self._store.handles
        index_key = _INDEX + bytes((table,)) + key
        if large is not None and stored is not None:
            batch.put(index_key, stored, handles[PARTS])
            self._by_row[row] = large
        else:
            batch.delete(index_key, handles[PARTS])
            del self._by_row[row]
        if former is None:
            return
        if former.checkpoint > completed:
            self._superseded.append((row, former))  # perhaps by itself: a repeated `complete` meets its own value again
        else:
            self._delete_parts(batch, former)

    def delete_superseded(self, batch: WriteBatch) -> None:
        """Add to the batch that completes a checkpoint the deletion of what its own delta superseded."""
        for row, former in self._superseded:
            current = self._by_row.get(row)
            if current is None or current.id != former.id:
                self._delete_parts(batch, former)
        self._superseded = []

    def _delete_parts(self, batch: WriteBatch, large: LargeValue) -> None:
        for part in range(large.parts):
            batch.delete(_part_key(_PARTS, *large.id, part), self._store.handles[PARTS])

    def discard_above(self, checkpoint: int) -> None:
        """Delete the parts of checkpoints above ``checkpoint``: they were never decided."""
        start = _part_key(_PARTS, checkpoint + 1, 0, 0)
        if self._store.page(PARTS, start, _PARTS_END, rows_max=1, bytes_max=1):
            batch = self._store.batch()
            batch.delete_range(start, _PARTS_END, self._store.handles[PARTS])
            self._store.write(batch, "deleting an undecided checkpoint")

    def _damaged(self, what: str) -> StateCorrupted:
        return corrupted(what, {"directory": str(self._store.directory), "column family": COLUMN_FAMILIES[PARTS]})

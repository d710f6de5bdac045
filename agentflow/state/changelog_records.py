"""How rows of keyed state look as records of a compacted changelog topic.

    "c"                                          the checkpoint record, last of its transaction: [format, N, positions, partitioner]
    "m"                                          a marker that proves who may write; means nothing to a reader
    "r" table(1) storage key                     a row: 0x00 value, or 0x01 [parts, checksum] when it is in parts; null: deleted
    "p" table(1) length(4) storage key part(4)   one part of a value above 512 KiB, before its row in the same transaction

Compaction keeps the last record of each key. Parts that a later value superseded are gone then, and the row that stood for
them is superseded too; so a row whose parts do not fit is read over, and is an error only if nothing later replaces it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from agentflow.core.delta import StateWrite, check_format
from agentflow.state.layout import split_storage_key, storage_key

CHECKPOINT_KEY: Final = b"c"
_ROW, _PART = b"r", b"p"
_ROW_OF = [_ROW + bytes((table,)) for table in range(256)]
_WHOLE, _PARTED = b"\x00", b"\x01"
PART_BYTES: Final = 512 * 2**10
FORMAT: Final = 1

Row = tuple[int, bytes, bytes | None]
"""Table number, storage key, value (None: deleted)."""
Record = tuple[bytes, bytes | None]
"""Key and value of a changelog record."""


class CheckpointRecord(msgspec.Struct, array_like=True):
    """The last record of a checkpoint's transaction. New fields go to the end, with a default.

    Attributes:
        format: Version of the changelog's records.
        checkpoint: Number of the checkpoint.
        positions: Where the sources go on: label → next offset.
        partitioner: Name of the rule by which the job's keys are spread over subtasks; empty: an older agentflow wrote the record,
            or it was not known yet.
    """

    format: int
    checkpoint: int
    positions: dict[str, int]
    partitioner: str = ""


class _Parted(msgspec.Struct, array_like=True):
    parts: int
    checksum: int


_encode = msgspec.msgpack.Encoder().encode
_decode_checkpoint = msgspec.msgpack.Decoder(CheckpointRecord).decode
_decode_parted = msgspec.msgpack.Decoder(_Parted).decode


def rows_of(writes: Iterable[StateWrite]) -> list[Row]:
    """Return the rows of a slice of an epoch delta."""
    return [(table, storage_key(operator, key, name), value) for table, operator, key, name, value in writes]


def records_of(rows: Iterable[Row]) -> list[Record]:
    """Return the records of rows."""
    records: list[Record] = []
    for table, row, value in rows:
        key = _ROW_OF[table] + row
        if value is None:
            records.append((key, None))
        elif len(value) <= PART_BYTES:
            records.append((key, _WHOLE + value))
        else:
            count = -(-len(value) // PART_BYTES)
            start = _PART + bytes((table,)) + len(row).to_bytes(4, "big") + row
            records += [
                (start + part.to_bytes(4, "big"), value[part * PART_BYTES : (part + 1) * PART_BYTES])
                for part in range(count)
            ]
            records.append((key, _PARTED + _encode(_Parted(count, zlib.crc32(value)))))
    return records


def checkpoint_record(checkpoint: int, positions: dict[str, int], partitioner: str = "") -> Record:
    """Return the checkpoint record."""
    return CHECKPOINT_KEY, _encode(CheckpointRecord(FORMAT, checkpoint, positions, partitioner))


def read_checkpoint(value: bytes) -> CheckpointRecord:
    """Return what a checkpoint record says.

    Raises:
        StateVersionTooNew: A newer agentflow wrote it.
    """
    record = _decode_checkpoint(value)
    check_format("the changelog", record.format, FORMAT)
    return record


def row_key(record_key: bytes | None) -> bytes:
    """Return the encoded key whose row a record stands for; empty where it stands for none, or for one of the whole subtask."""
    if record_key is None or record_key[:1] != _ROW:
        return b""
    return split_storage_key(record_key[2:])[1]


class ChangelogReplay:
    """Turns records, in order, into rows.

    Attributes:
        last: The last checkpoint record; None before there was one.
    """

    def __init__(self) -> None:
        self.last: CheckpointRecord | None = None
        self._parts: dict[bytes, bytes] = {}
        self._incomplete: dict[bytes, None] = {}

    def rows(self, records: Iterable[tuple[bytes | None, bytes | None]]) -> Iterator[Row]:
        """Yield the rows that records stand for.

        Raises:
            StateVersionTooNew: A newer agentflow wrote them.
        """
        for key, value in records:
            kind = None if key is None else key[:1]
            if kind == _ROW and key is not None:
                yield from self._row(key, value)
            elif kind == _PART and key is not None and value is not None:
                self._parts[key] = value
            elif key == CHECKPOINT_KEY and value is not None:
                self.last = read_checkpoint(value)

    @property
    def incomplete(self) -> list[bytes]:
        """Record keys of rows whose parts are not there; to be looked at when everything is read."""
        return list(self._incomplete)

    def _row(self, key: bytes, value: bytes | None) -> Iterator[Row]:
        self._incomplete.pop(key, None)
        table, row = key[1], key[2:]
        if value is None:
            yield table, row, None
        elif value[:1] == _WHOLE:
            yield table, row, value[1:]
        else:
            parted = _decode_parted(memoryview(value)[1:])
            start = _PART + key[1:2] + len(row).to_bytes(4, "big") + row
            pieces = [self._parts.pop(start + part.to_bytes(4, "big"), b"") for part in range(parted.parts)]
            whole = b"".join(pieces)
            if zlib.crc32(whole) == parted.checksum:
                yield table, row, whole
            else:
                self._incomplete[key] = None

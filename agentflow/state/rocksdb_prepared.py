"""The stored form of a prepared checkpoint: chunks of its delta, outputs of sinks without staging, the decision.

    column family ``prepared``
        checkpoint(8) "c" index(4)   a chunk: at most 2,000 rows or about 1 MiB, as they will be written
        checkpoint(8) "o" index(4)   outputs of one sink role, in order
    column family ``default``
        "prepared"                   the decision; checkpoint N is decided if and only if it is there

All of them are sealed rows (a checksum each). At most one checkpoint is there at a time: what lies in ``prepared`` without a
decision is left over from an attempt that failed, or from a completed checkpoint, and is deleted before the next attempt.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping
from typing import Final

import msgspec

from agentflow.core.delta import SLICE_ENTRIES_MAX, DeltaSlices
from agentflow.errors import StateCorrupted
from agentflow.runtime.ports import Prepared, Staged
from agentflow.state.layout import (
    ESCAPED,
    LARGE_VALUE_BYTES,
    LAYOUT_TAG_MIN,
    LayoutError,
    encode,
    encode_name,
    key_prefix,
    seal,
    unseal,
)
from agentflow.state.rocksdb_errors import corrupted
from agentflow.state.rocksdb_large import LargeValues
from agentflow.state.rocksdb_store import COLUMN_FAMILIES, DEFAULT, PREPARED, RocksDBStore

DECISION_KEY: Final = b"prepared"

_CHUNK, _OUTPUTS = b"c", b"o"
_row_key = struct.Struct(">QcI").pack
_ALL_END = b"\xff" * 14  # behind every row key
_CHUNK_BYTES = 2**20
_KEPT_BYTES = 64 * 2**20  # chunks kept in memory for `complete`; larger deltas are read back

_DOING = "writing the prepared checkpoint"


class Chunk(msgspec.Struct, array_like=True):
    """A piece of a prepared delta: rows as they will be written, one list per column.

    Columns because 100,000 kept tuples would cost a full garbage collection of 30 ms in the middle of a checkpoint.

    Attributes:
        has_large: Whether a stored value is the marker of a large one.
        tables: Table numbers.
        keys: Storage keys.
        stored: Stored values; None deletes the row.
    """

    has_large: bool = False
    tables: list[int] = []
    keys: list[bytes] = []
    stored: list[bytes | None] = []


class _Outputs(msgspec.Struct, array_like=True):
    role: str
    outputs: list[bytes]


class _Decision(msgspec.Struct, array_like=True):
    """The decision row. New fields go to the end, with a default.

    Attributes:
        checkpoint: N.
        chunks: Number of chunk rows.
        output_rows: Number of output rows.
        names: Names of staged files by sink role; every role is there.
    """

    checkpoint: int
    chunks: int
    output_rows: int
    names: dict[str, tuple[str, ...]]


_decode_chunk = msgspec.msgpack.Decoder(Chunk).decode
_decode_outputs = msgspec.msgpack.Decoder(_Outputs).decode
_decode_decision = msgspec.msgpack.Decoder(_Decision).decode


class PreparedCheckpoint:
    """The prepared checkpoint of one database, if there is one.

    Attributes:
        decided: What is decided; None when nothing is.
    """

    def __init__(self, store: RocksDBStore, large: LargeValues) -> None:
        """Read the decision, if there is one.

        Raises:
            StateCorrupted: It, or a row that it names, is damaged.
        """
        self._store = store
        self._large = large
        self._decision: _Decision | None = None
        self._kept: list[Chunk | None] = []
        self.decided: Prepared | None = None
        row = store.get(DEFAULT, DECISION_KEY)
        if row is not None:
            self._load(row)

    def _load(self, row: bytes) -> None:
        try:
            decision = _decode_decision(unseal(row))
        except (LayoutError, msgspec.DecodeError) as error:
            raise self._damaged(f"the decision row: {error}", DEFAULT) from error
        outputs: dict[str, list[bytes]] = {role: [] for role in decision.names}
        for index in range(decision.output_rows):
            what = f"outputs {index + 1} of {decision.output_rows} of checkpoint {decision.checkpoint}"
            try:
                stored = _decode_outputs(self._read(_row_key(decision.checkpoint, _OUTPUTS, index), what))
            except msgspec.DecodeError as error:
                raise self._damaged(f"{what}: {error}", PREPARED) from error
            outputs[stored.role] += stored.outputs
        self._decision = decision
        self._kept = [None] * decision.chunks
        self.decided = Prepared(
            decision.checkpoint,
            {role: Staged(names, tuple(outputs[role])) for role, names in decision.names.items()},
        )

    @property
    def chunks(self) -> int:
        """Number of chunks of the decided checkpoint."""
        return len(self._kept)

    def chunk(self, index: int) -> Chunk:
        """Return one chunk, from memory or from its row.

        Raises:
            StateCorrupted: The row is missing or damaged.
        """
        kept = self._kept[index]
        if kept is not None:
            return kept
        assert self._decision is not None
        checkpoint = self._decision.checkpoint
        what = f"chunk {index + 1} of {self.chunks} of checkpoint {checkpoint}"
        try:
            return _decode_chunk(self._read(_row_key(checkpoint, _CHUNK, index), what))
        except msgspec.DecodeError as error:
            raise self._damaged(f"{what}: {error}", PREPARED) from error

    async def write(self, checkpoint: int, delta: DeltaSlices, staged: Mapping[str, Staged]) -> None:
        """Write chunks, outputs and at last the decision, unsynced; the caller syncs and then calls `decide`."""
        self.discard_undecided(checkpoint)
        await self._write_chunks(checkpoint, delta)
        output_rows = 0
        for role, sink in staged.items():
            for outputs in _pieces(sink.outputs):
                self._put(_row_key(checkpoint, _OUTPUTS, output_rows), seal(encode(_Outputs(role, outputs))))
                output_rows += 1
                await asyncio.sleep(0)
        names = {role: sink.names for role, sink in staged.items()}
        self._decision = _Decision(checkpoint, len(self._kept), output_rows, names)
        batch = self._store.batch()
        batch.put(DECISION_KEY, seal(encode(self._decision)), self._store.handles[DEFAULT])
        self._store.write(batch, _DOING)

    def decide(self, staged: Mapping[str, Staged]) -> None:
        """Note that the decision row is durable."""
        assert self._decision is not None
        self.decided = Prepared(self._decision.checkpoint, dict(staged))

    def discard_undecided(self, checkpoint: int) -> None:
        """Delete everything of attempts for ``checkpoint`` and later ones that were not decided."""
        assert self.decided is None
        self._kept = []
        if self._store.page(PREPARED, b"", None, rows_max=1, bytes_max=1):
            batch = self._store.batch()
            batch.delete_range(b"", _ALL_END, self._store.handles[PREPARED])
            self._store.write(batch, "deleting an undecided checkpoint")
        self._large.discard_above(checkpoint - 1)

    def remove(self) -> None:
        """Delete the rows of the checkpoint that has just been completed; a crash before this leaves them to the next open."""
        decision = self._decision
        assert decision is not None
        self.decided = self._decision = None
        self._kept = []
        handles = self._store.handles
        # One by one: a range deletion per checkpoint would pile up where there are few rows to flush.
        batch = self._store.batch()
        for kind, rows in ((_CHUNK, decision.chunks), (_OUTPUTS, decision.output_rows)):
            for index in range(rows):
                batch.delete(_row_key(decision.checkpoint, kind, index), handles[PREPARED])
        self._store.write(batch, "removing a completed checkpoint")
        self._store.reclaim(PREPARED)

    async def _write_chunks(self, checkpoint: int, delta: DeltaSlices) -> None:
        kept_bytes = sequence = 0
        for writes in delta:
            chunk, size = Chunk(), 0
            last: tuple[int, bytes] | None = None
            prefix = b""
            for table, operator, key, name, value in writes:
                if (operator, key) != last:
                    last, prefix = (operator, key), key_prefix(operator, key)
                stored = value
                if not value:
                    pass  # deleted, or empty
                elif len(value) > LARGE_VALUE_BYTES:
                    stored = await self._large.write(value, checkpoint, sequence)
                    sequence += 1
                    chunk.has_large = True
                else:
                    size += len(value)
                    if value[0] >= LAYOUT_TAG_MIN:
                        stored = ESCAPED + value
                chunk.tables.append(int(table))
                chunk.keys.append(prefix + encode_name(name))
                chunk.stored.append(stored)
                if size >= _CHUNK_BYTES or len(chunk.keys) == SLICE_ENTRIES_MAX:
                    kept_bytes += size
                    await self._write_chunk(checkpoint, chunk, is_kept=kept_bytes <= _KEPT_BYTES)
                    chunk, size = Chunk(), 0
            if chunk.keys:
                kept_bytes += size
                await self._write_chunk(checkpoint, chunk, is_kept=kept_bytes <= _KEPT_BYTES)

    async def _write_chunk(self, checkpoint: int, chunk: Chunk, *, is_kept: bool) -> None:
        self._put(_row_key(checkpoint, _CHUNK, len(self._kept)), seal(encode(chunk)))
        self._kept.append(chunk if is_kept else None)
        await asyncio.sleep(0)

    def _put(self, key: bytes, row: bytes) -> None:
        batch = self._store.batch()
        batch.put(key, row, self._store.handles[PREPARED])
        self._store.write(batch, _DOING)

    def _read(self, key: bytes, what: str) -> memoryview:
        row = self._store.get(PREPARED, key)
        if row is None:
            raise self._damaged(f"{what} is missing", PREPARED)
        try:
            return unseal(row)
        except LayoutError as error:
            raise self._damaged(f"{what}: {error}", PREPARED) from error

    def _damaged(self, what: str, family: int) -> StateCorrupted:
        return corrupted(what, {"directory": str(self._store.directory), "column family": COLUMN_FAMILIES[family]})


def _pieces(outputs: tuple[bytes, ...]) -> list[list[bytes]]:
    """Cut outputs into rows of about a MiB or 2,000 outputs."""
    pieces: list[list[bytes]] = []
    size = _CHUNK_BYTES
    for output in outputs:
        if size >= _CHUNK_BYTES or len(pieces[-1]) == SLICE_ENTRIES_MAX:
            pieces.append([])
            size = 0
        pieces[-1].append(output)
        size += len(output)
    return pieces

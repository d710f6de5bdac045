"""Arrow tables as source and sink, and through the Arrow stream interface those of pandas, polars, DuckDB and others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from agentflow.api.codecs import MSGPACK
from agentflow.connectors.arrow_columns import ColumnBuilder, arrow_schema
from agentflow.connectors.arrow_rows import RowPacker, arrow
from agentflow.connectors.inferred_types import as_row, inferred_columns
from agentflow.connectors.read_ahead import ReadAhead
from agentflow.core.records import Record
from agentflow.errors import SourceError
from agentflow.runtime.ports import Guarantee, Staged

if TYPE_CHECKING:
    from agentflow.core.effects import DeadLetter, EmitRecord

_BLOCK_ROWS = 8192
_LABEL = "table"
_WHERE = {"table": "of outputs"}


class TableSource:
    """Rows of a table; the offset is the row's number.

    Args:
        table: A `pyarrow.Table`, `RecordBatch` or `RecordBatchReader`, or anything with the Arrow stream interface: a DataFrame of pandas or
            polars, a relation of DuckDB.
        is_streamed: Read what can be read once only (a `RecordBatchReader`) as it comes, batch by batch; then it is not replayable. Else it is
            read into memory now.

    Raises:
        NotConfigured: The package pyarrow is missing.
        TypeError: It is no table.
        ValueError: Two columns have one name.
    """

    name = _LABEL
    codec = MSGPACK
    partitions: Sequence[str] = ()
    idle_timeout_ms: int | None = None

    def __init__(self, table: object, *, is_streamed: bool = False) -> None:
        pa = arrow()
        self._reader: Any = None
        self._table: Any = None
        if is_streamed and isinstance(table, pa.RecordBatchReader):
            self._reader = table
            schema = table.schema
        else:
            self._table = _as_table(table)
            schema = self._table.schema
        if len(set(schema.names)) < len(schema.names):
            msg = f"the table has two columns of one name: {', '.join(schema.names)}"
            raise ValueError(msg)
        self.is_replayable = self._reader is None
        self._packer = RowPacker(schema)
        self._batches: Iterator[Any] = _pieces(self._reader or ())
        self._next = 0
        self._ahead = ReadAhead(self._read)

    async def open(self, positions: Mapping[str, int]) -> None:
        """Start at a row.

        Raises:
            SourceError: There are fewer rows than were read before.
        """
        if self._reader is not None:
            return  # it goes on where it is: what was read ahead of a restart is lost with it
        self._next = positions.get(_LABEL, 0)
        rows = self._table.num_rows
        if self._next > rows:
            raise SourceError(
                "the table is shorter than its position",
                where={"source": _LABEL, "position": self._next, "rows": rows},
                expected="the table that the job was started with, or a longer one",
                fix="Give the same rows, or start a job of another name.",
            )
        self._batches = iter(self._table.slice(self._next).to_batches(max_chunksize=_BLOCK_ROWS))

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next rows; they are converted in a thread, block by block."""
        return await self._ahead.fetch(records_max)

    async def close(self) -> None:
        """Forget what was read ahead: the table belongs to the caller."""
        await self._ahead.close()

    def _read(self) -> list[Record]:
        for batch in self._batches:
            if batch.num_rows:
                records = self._packer.records(batch, _LABEL, self._next, _LABEL)
                self._next += len(records)
                return records
        return []


def _as_table(table: object) -> Any:  # noqa: ANN401 (a `pyarrow.Table`)
    pa = arrow()
    if isinstance(table, pa.Table):
        return table
    if isinstance(table, pa.RecordBatchReader):
        return table.read_all()
    if hasattr(table, "__arrow_c_stream__") or hasattr(table, "__arrow_c_array__"):
        return pa.table(table)
    msg = (
        f"a table is wanted, not a {type(table).__qualname__}: pyarrow.Table, RecordBatch or RecordBatchReader, or what has the Arrow stream "
        "interface (pandas, polars, DuckDB); for other rows there is from_list"
    )
    raise TypeError(msg)


def _pieces(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        for start in range(0, batch.num_rows, _BLOCK_ROWS):
            yield batch.slice(start, _BLOCK_ROWS)


class TableResult:
    """Outputs as an Arrow table: of the checkpoints that have completed, so all of them when the job has ended.

    polars, pandas, DuckDB and others take it as it is, through the Arrow stream interface: ``polars.DataFrame(result)``.
    """

    def __init__(self, schema: Any) -> None:  # noqa: ANN401 (a `pyarrow.Schema`, or None)
        self._schema = schema
        self._batches: list[Any] = []
        self._lines: list[bytes] = []
        self._table: Any = None

    @property
    def table(self) -> Any:  # noqa: ANN401 (a `pyarrow.Table`)
        """The rows as a `pyarrow.Table`. Without a schema, its columns are those that all outputs have, of types that all of them fit.

        Raises:
            SchemaMismatch: No type fits all values of a field; names field and rows.
        """
        pa = arrow()
        if self._table is None and self._schema is not None:
            self._table = pa.Table.from_batches(self._batches, self._schema)
        if self._table is None:
            rows = [as_row(output) for output in msgspec.json.decode(b"[%b]" % b",".join(self._lines))]
            schema = arrow_schema(inferred_columns([rows], _WHERE))
            self._table = pa.Table.from_batches([ColumnBuilder(schema, _WHERE).batch(rows, 1)] if rows else [], schema)
        return self._table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        return len(self._lines) if self._schema is None else sum(batch.num_rows for batch in self._batches)

    def __repr__(self) -> str:
        return f"TableResult({len(self)} rows)"

    def append(self, rows: Any) -> None:  # noqa: ANN401 (what `pack` returned)
        """Add the rows of a checkpoint."""
        self._table = None
        if self._schema is None:
            self._lines += rows
        elif rows is not None:
            self._batches.append(rows)

    def pack(self, lines: Sequence[bytes], checkpoint: int) -> Any:  # noqa: ANN401 (a batch, or the lines)
        """Return outputs as they are kept.

        Raises:
            SchemaMismatch: One does not fit the columns that were declared.
        """
        if self._schema is None:
            return lines
        if not lines:
            return None
        rows = [as_row(output) for output in msgspec.json.decode(b"[%b]" % b",".join(lines))]
        return ColumnBuilder(self._schema, {**_WHERE, "checkpoint": checkpoint}).batch(rows, 1)


class TableSink:
    """Outputs as rows of a table in memory.

    Args:
        schema: The columns: name → type (`column_types`), or a `pyarrow.Schema`; None: those that the outputs have.

    Attributes:
        result: The outputs of published checkpoints.

    Raises:
        NotConfigured: The package pyarrow is missing.
        ValueError: A type of ``schema`` is none.
    """

    name = _LABEL
    guarantee = Guarantee.EXACTLY_ONCE
    record_max_bytes = None

    def __init__(self, schema: Mapping[str, str] | Any = None) -> None:  # noqa: ANN401 (or a `pyarrow.Schema`)
        arrow()
        self.result = TableResult(None if schema is None else arrow_schema(schema))
        self._written: list[bytes] = []
        self._closed: dict[int, list[bytes]] = {}
        self._packed: dict[int, Any] = {}  # of staged checkpoints
        self._published = 0

    async def open(self, prepared: tuple[int, Staged] | None) -> None:
        """Forget what was written and not published; what is prepared comes back with `publish`."""
        await self.close()
        if prepared is None:
            self._published = 0  # all that was decided is complete: a number that comes now is a new checkpoint

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Take one output."""
        self._written.append(record.value or b"null")

    def barrier(self, checkpoint: int) -> None:
        """Close the epoch."""
        self._closed[checkpoint] = self._written
        self._written = []

    async def stage(self, checkpoint: int) -> Staged:
        """Convert the epoch's outputs, in a thread, and hand them over; they are durable with the decision record.

        Raises:
            SchemaMismatch: An output does not fit the columns that were declared.
        """
        lines = self._closed.pop(checkpoint)
        self._packed[checkpoint] = await asyncio.to_thread(self.result.pack, lines, checkpoint)
        return Staged(outputs=tuple(lines))

    async def publish(self, checkpoint: int, staged: Staged) -> None:
        """Append the rows to `result`, once per checkpoint."""
        if checkpoint <= self._published:
            return
        if checkpoint not in self._packed:  # an earlier life has staged it
            self._packed[checkpoint] = await asyncio.to_thread(self.result.pack, staged.outputs, checkpoint)
        self.result.append(self._packed.pop(checkpoint))
        self._published = checkpoint

    async def close(self) -> None:
        """Forget what is not published."""
        self._written, self._closed, self._packed = [], {}, {}

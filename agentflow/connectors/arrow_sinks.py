"""Parquet and Arrow IPC files as sinks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal

from agentflow.connectors.arrow_columns import ColumnBuilder, arrow_schema
from agentflow.connectors.arrow_rows import arrow
from agentflow.connectors.file_store import FileStore, StagingFile
from agentflow.connectors.inferred_types import inferred_columns
from agentflow.connectors.part_files import LineBlocks, PartFileSink
from agentflow.connectors.ranges import OutputFile, RangeFile
from agentflow.connectors.row_outputs import DEAD_LETTER_COLUMNS, is_dead_letter, row_blocks
from agentflow.connectors.stores import file_store
from agentflow.errors import SinkForbidden
from agentflow.runtime.settings import ObjectStoreSettings

if TYPE_CHECKING:
    from agentflow.core.effects import DeadLetter, EmitRecord

_ROW_GROUP_BYTES = 32 * 2**20

ParquetCompression = Literal["zstd", "snappy", "gzip", "lz4", "brotli", "none"]
ArrowCompression = Literal["none", "lz4", "zstd"]
Columns = Mapping[str, str]
"""Names and types; see `column_types`."""


class _ArrowFormat:
    """A `TableFormat` of files that carry an Arrow schema.

    Args:
        kind: What such a file is called, for messages.
        place: Where the files go, for messages.
        schema: The columns; None: those of the newest file, else of the first checkpoint.
        read_schema: Reads the schema of a file.
        new_writer: Makes what batches are written to, and calls ``write`` on.
    """

    def __init__(
        self,
        kind: str,
        place: str,
        schema: Any,  # noqa: ANN401 (a `pyarrow.Schema`)
        read_schema: Callable[[Any], Any],
        new_writer: Callable[[Any, Any], Any],
    ) -> None:
        arrow()  # told now where it is missing, not with the first checkpoint
        self._kind = kind
        self._place = place
        self._schema = schema
        self._read_schema = read_schema
        self._new_writer = new_writer

    @property
    def has_columns(self) -> bool:
        """See `TableFormat`."""
        return self._schema is not None

    def take_dead_letters(self) -> None:
        """Have the columns of dead letters, unless some are declared."""
        if self._schema is None:
            self._schema = arrow_schema(DEAD_LETTER_COLUMNS)

    def adopt(self, store: FileStore, newest: str) -> None:
        """See `TableFormat`."""
        pa = arrow()
        reader = store.open(newest)
        try:
            self._schema = self._read_schema(pa.PythonFile(RangeFile(reader), mode="r"))
        except pa.ArrowInvalid as error:
            raise SinkForbidden(
                f"the newest part file is no {self._kind} file, so the columns are not known",
                where={"directory": self._place, "file": newest},
                expected="part files of this sink",
                fix="declare the columns in `schema`, or name an empty directory.",
            ) from error
        finally:
            reader.close()

    def encode(self, lines: LineBlocks, file: StagingFile, checkpoint: int) -> None:
        """See `TableFormat`."""
        where = {"directory": self._place, "checkpoint": checkpoint}
        if self._schema is None:
            self._schema = arrow_schema(inferred_columns(row_blocks(lines), where))
        builder = ColumnBuilder(self._schema, where)
        with self._new_writer(arrow().PythonFile(OutputFile(file), mode="w"), self._schema) as writer:
            row = 1
            for rows in row_blocks(lines):
                writer.write(builder.batch(rows, row))
                row += len(rows)


class _ParquetOutput:
    """Gathers batches to row groups of some size.

    Args:
        sink: A `pyarrow.NativeFile`.
        schema: The columns.
        compression: Name of a codec.
    """

    def __init__(self, sink: Any, schema: Any, compression: str) -> None:  # noqa: ANN401 (pyarrow has no types)
        import pyarrow.parquet as pq

        self._schema = schema
        self._writer = pq.ParquetWriter(sink, schema, compression=compression)
        self._batches: list[Any] = []
        self._size = 0

    def write(self, batch: Any) -> None:  # noqa: ANN401 (a `pyarrow.RecordBatch`)
        self._batches.append(batch)
        self._size += batch.nbytes
        if self._size >= _ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        table = arrow().Table.from_batches(self._batches, self._schema)
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._batches, self._size = [], 0

    def close(self) -> None:
        if self._batches:
            self._flush()
        self._writer.close()


class _ArrowSink(PartFileSink):
    """A sink of files that carry an Arrow schema."""

    def __init__(
        self, place: str, suffix: str, table: _ArrowFormat, subtask: int, store: ObjectStoreSettings | None
    ) -> None:
        super().__init__(file_store(place, store), suffix, table, subtask=subtask)
        self._format = table

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Take one output, as `PartFileSink` does; dead letters have columns of their own."""
        if is_dead_letter(record):
            self._format.take_dead_letters()
        super().write(record)


class ParquetSink(_ArrowSink):
    """Outputs as rows of Parquet files in a directory, exactly once: one file per checkpoint that has outputs.

    An output is an object with the columns as its fields; a missing one is null. Any other output is a row with one column, ``value``.
    Dead letters have columns of their own (`row_outputs.DEAD_LETTER_COLUMNS`).

    Args:
        path: The directory; created, with its parents, where it is missing. Or the URL of a prefix in an object store.
        schema: The columns: name → type (`column_types`), or a `pyarrow.Schema`. None: those of the newest file that is there, else those
            that the outputs of the first checkpoint have; a later output that does not fit stops the job.
        compression: Codec of the columns.
        subtask: Number of the subtask that writes; several subtasks share a directory.
        store: How the object store is reached.

    Raises:
        NotConfigured: The package pyarrow is missing.
        ValueError: A type of ``schema`` is none.
    """

    name = "parquet"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        schema: Columns | Any = None,  # noqa: ANN401 (or a `pyarrow.Schema`)
        compression: ParquetCompression = "zstd",
        subtask: int = 0,
        store: ObjectStoreSettings | None = None,
    ) -> None:
        def read_schema(source: Any) -> Any:  # noqa: ANN401 (pyarrow has no types)
            import pyarrow.parquet as pq

            return pq.read_schema(source)

        declared = None if schema is None else arrow_schema(schema)
        table = _ArrowFormat(
            "Parquet",
            os.fspath(path),
            declared,
            read_schema,
            lambda sink, columns: closing(_ParquetOutput(sink, columns, compression)),
        )
        super().__init__(os.fspath(path), ".parquet", table, subtask, store)


class ArrowSink(_ArrowSink):
    """Outputs as rows of Arrow IPC files (Feather) in a directory, exactly once; as `ParquetSink` in everything else.

    Args:
        path: As of `ParquetSink`.
        schema: As of `ParquetSink`.
        compression: Codec of the buffers; without one, readers can map files into memory.
        subtask: As of `ParquetSink`.
        store: As of `ParquetSink`.

    Raises:
        NotConfigured: The package pyarrow is missing.
        ValueError: A type of ``schema`` is none.
    """

    name = "arrow"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        schema: Columns | Any = None,  # noqa: ANN401 (or a `pyarrow.Schema`)
        compression: ArrowCompression = "none",
        subtask: int = 0,
        store: ObjectStoreSettings | None = None,
    ) -> None:
        pa = arrow()
        declared = None if schema is None else arrow_schema(schema)
        options = pa.ipc.IpcWriteOptions(compression=None if compression == "none" else compression)
        table = _ArrowFormat(
            "Arrow",
            os.fspath(path),
            declared,
            lambda source: pa.ipc.open_file(source).schema,
            lambda sink, columns: closing(pa.ipc.new_file(sink, columns, options=options)),
        )
        super().__init__(os.fspath(path), ".arrow", table, subtask, store)

"""Parquet and Arrow IPC files as sources.

A record's value is a row (`arrow_rows`), its offset the row's number. To go on somewhere in a file costs no more than what lies there: of a
Parquet file the row groups before are not read, of an Arrow file only how many rows its batches have. An Arrow stream has no table of
contents, so the rows before are read and dropped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from agentflow.api.codecs import MSGPACK
from agentflow.connectors.arrow_rows import RowPacker, arrow
from agentflow.connectors.file_source import FileSource, Paths, shorter_than_position
from agentflow.connectors.file_store import FileReader
from agentflow.connectors.ranges import RangeFile
from agentflow.connectors.row_values import chosen_columns
from agentflow.core.records import Record
from agentflow.errors import SourceError
from agentflow.runtime.settings import ObjectStoreSettings

_BLOCK_ROWS = 8192
_BLOCK_BYTES = 4 * 2**20
_BUFFER_BYTES = 2**20  # of each column that is read, at least
_BUFFERS_BYTES = 64 * 2**20
_ARROW_MAGIC = b"ARROW1"


class ParquetSource(FileSource):
    """Rows of Parquet files, in the order of the sorted paths.

    Args:
        path: Path or pattern (`**` goes through directories), or several. A pattern finds no names that start with ``.`` or ``_``, which are
            staging.
        columns: Read these only; None: all.
        store: How object stores are reached, for paths as ``s3://bucket/in/*.parquet``.

    Raises:
        NotConfigured: The package pyarrow is missing.
    """

    name = "parquet"

    def __init__(
        self, path: Paths, *, columns: Sequence[str] | None = None, store: ObjectStoreSettings | None = None
    ) -> None:
        super().__init__(path, _ArrowFormat("a Parquet file", columns, _parquet_batches), store)


class ArrowSource(FileSource):
    """Rows of Arrow IPC files (Feather) and streams, in the order of the sorted paths.

    Args:
        path: As of `ParquetSource`.
        columns: As of `ParquetSource`.
        store: As of `ParquetSource`.

    Raises:
        NotConfigured: The package pyarrow is missing.
    """

    name = "arrow"

    def __init__(
        self, path: Paths, *, columns: Sequence[str] | None = None, store: ObjectStoreSettings | None = None
    ) -> None:
        super().__init__(path, _ArrowFormat("an Arrow file", columns, _ipc_batches), store)


class _Content:
    """A file that is opened by a library.

    Attributes:
        source: The file for pyarrow.
        path: For messages.
        columns: Columns that are wanted; None: all.
        position: Number of the first row that is wanted.
        block_bytes: How much is best read at once.
    """

    def __init__(
        self,
        source: Any,  # noqa: ANN401 (pyarrow has no types)
        path: str,
        columns: Sequence[str] | None,
        position: int,
        block_bytes: int,
    ) -> None:
        self.source = source
        self.path = path
        self.columns = columns
        self.position = position
        self.block_bytes = block_bytes

    def chosen(self, names: Sequence[str]) -> list[int]:
        """Return the places of the wanted columns among those of the file."""
        return chosen_columns(names, self.columns, self.path)

    def too_short(self, rows: int) -> SourceError:
        return shorter_than_position(self.path, self.position, "rows", rows)


_Batches = Callable[[_Content], Iterator[Any]]
"""Opens a file, and returns the rows from the position on in batches of bounded size."""


class _ArrowFormat:
    """Rows of files that pyarrow reads: a `FileFormat`."""

    codec = MSGPACK
    may_grow = False
    has_byte_offsets = False

    def __init__(self, kind: str, columns: Sequence[str] | None, batches: _Batches) -> None:
        arrow()
        self.kind = kind
        self._columns = columns
        self._batches = batches

    def open(self, file: FileReader, path: str, label: str, position: int) -> _ArrowRows:
        """See `FileFormat`."""
        source = arrow().PythonFile(RangeFile(file), mode="r")
        content = _Content(source, path, self._columns, position, file.block_bytes)
        return _ArrowRows(content, self.kind, label, self._batches)


class _ArrowRows:
    """The rows of one file: `OpenRows`."""

    def __init__(self, content: _Content, kind: str, label: str, batches: _Batches) -> None:
        self._path = content.path
        self._kind = kind
        self._label = label
        self._next = content.position
        self._packer: RowPacker | None = None
        with self._told():
            self._batches = batches(content)

    def read(self) -> list[Record] | None:
        with self._told():
            batch = next(self._batches, None)
            if batch is None:
                return None
            self._packer = self._packer or RowPacker(batch.schema)
            records = self._packer.records(batch, self._label, self._next, self._path)
        self._next += len(records)
        return records

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (arrow().ArrowException, UnicodeDecodeError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the file, not of what is in it
            raise SourceError(
                f"the input is no {self._kind.partition(' ')[2]} that can be read: {' '.join(str(error).split())}",
                where={"file": self._path, "row": self._next},
                expected=self._kind,
                fix="Write the file again, or leave it out of `path`.",
            ) from error


def _parquet_batches(content: _Content) -> Iterator[Any]:
    import pyarrow.parquet as pq

    # Not `pre_buffer`: it holds a row group in memory, and there are files of one. Each column has a buffer of its own.
    footer = pq.ParquetFile(content.source)
    metadata, names = footer.metadata, footer.schema_arrow.names
    columns = [names[index] for index in content.chosen(names)]
    buffer_bytes = max(_BUFFER_BYTES, min(content.block_bytes, _BUFFERS_BYTES // max(1, len(columns))))
    file = pq.ParquetFile(content.source, metadata=metadata, buffer_size=buffer_bytes, pre_buffer=False)
    if content.position > metadata.num_rows:
        raise content.too_short(metadata.num_rows)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    starts = list(accumulate([group.num_rows for group in groups], initial=0))
    first = min(bisect_right(starts, content.position) - 1, len(groups))
    row_bytes = max(1, sum(group.total_byte_size for group in groups) // max(1, metadata.num_rows))
    batches = file.iter_batches(
        batch_size=max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // row_bytes)),
        row_groups=list(range(first, len(groups))),
        columns=columns,
        use_threads=False,
    )
    return _behind(batches, content.position - starts[first])


def _ipc_batches(content: _Content) -> Iterator[Any]:
    pa = arrow()
    source = content.source
    is_file = source.read(len(_ARROW_MAGIC)) == _ARROW_MAGIC
    source.seek(0)
    open_content = pa.ipc.open_file if is_file else pa.ipc.open_stream
    names = open_content(source).schema.names
    source.seek(0)
    options = pa.ipc.IpcReadOptions(included_fields=sorted(content.chosen(names)))
    reader = open_content(source, options=options)
    if not is_file:
        return _behind(_counted(_pieces(reader), content), content.position)
    first, skipped = 0, content.position
    if skipped:
        first, skipped = _find_row(content)
    batches = (reader.get_batch(index) for index in range(first, reader.num_record_batches))
    return _behind(_pieces(batches), skipped)


def _find_row(content: _Content) -> tuple[int, int]:
    """Return the batch of an Arrow file in which a row lies, and its place there. Of each batch one column is read."""
    pa = arrow()
    reader = pa.ipc.open_file(content.source, options=pa.ipc.IpcReadOptions(included_fields=[0]))
    rows = 0
    for index in range(reader.num_record_batches):
        count = reader.get_batch(index).num_rows
        if rows + count > content.position:
            return index, content.position - rows
        rows += count
    if rows < content.position:
        raise content.too_short(rows)
    return reader.num_record_batches, 0


def _counted(batches: Iterator[Any], content: _Content) -> Iterator[Any]:
    """Yield the batches of a stream; at their end, see that the position was among them."""
    rows = 0
    for batch in batches:
        rows += batch.num_rows
        yield batch
    if rows < content.position:
        raise content.too_short(rows)


def _pieces(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield batches of any size as batches of a bounded one."""
    for batch in batches:
        batch.validate(
            full=True
        )  # nothing else looks at what was damaged on a disk, and a wrong offset would end the process
        row_bytes = max(1, batch.nbytes // max(1, batch.num_rows))
        size = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // row_bytes))
        for start in range(0, batch.num_rows, size):
            yield batch.slice(start, size)


def _behind(batches: Iterator[Any], rows: int) -> Iterator[Any]:
    """Yield what lies behind the first so many rows."""
    for batch in batches:
        if rows >= batch.num_rows:
            rows -= batch.num_rows
            continue
        yield batch.slice(rows) if rows else batch
        rows = 0

"""CSV files as a source."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Mapping, Sequence

from agentflow.api.codecs import MSGPACK
from agentflow.connectors.column_types import SCALARS, ColumnType, column_types
from agentflow.connectors.csv_columns import TextColumn, inferred_type
from agentflow.connectors.csv_rows import CsvSplitter, Dialect, RowLayout, line_offsets, parse
from agentflow.connectors.file_source import FileSource, Paths, check_start
from agentflow.connectors.file_store import FileReader
from agentflow.connectors.lines import RECORD_MAX_BYTES
from agentflow.connectors.row_values import RowEncoder, chosen_columns
from agentflow.core.records import Record
from agentflow.errors import SourceError
from agentflow.runtime.settings import ObjectStoreSettings

_BLOCK_BYTES = 2**20
_HEAD_BYTES = 2**20
_HEAD_ROWS = 1000
_COUNTED_MAX_BYTES = 2**28  # so far lines are counted to name one; behind it a fault names the byte only
_BOM = b"\xef\xbb\xbf"


class CsvSource(FileSource):
    """Rows of CSV files, in the order of the sorted paths; an offset is the byte offset of a row, also behind quoted newlines.

    A row that does not fit its columns is a bad record (to the dead letters, with file and line); it does not stop the file. Local files may
    grow; what was appended is read by the next run.

    Args:
        path: Path or pattern (`**` goes through directories), or several. A pattern finds no names that start with ``.`` or ``_``, which are
            staging.
        header: The first row names the columns.
        columns: With a header: read these only (None: all). Without one: the names of the columns, all of them.
        delimiter: Between fields.
        quote: Around fields with delimiters, newlines or quotes in them, which are doubled; None: there is no such character.
        encoding: Of the text, as Python names it; ASCII has to be a part of it, as of UTF-8 and Latin-1.
        null_values: Texts that mean None, in columns of any type.
        types: Column → type (`column_types`, those without ``<…>``). The others are found out from the first 1,000 rows of a file (or 1 MiB):
            int64, double or boolean where all fields are that, else string.
        infer_types: False: columns without a type in ``types`` are text.
        record_max_bytes: A longer row is returned with its first ``record_max_bytes + 1`` bytes only.
        store: How object stores are reached, for paths as ``s3://bucket/in/*.csv``.

    Raises:
        ValueError: A type, the encoding, or a character is none; or ``columns`` is missing.
    """

    name = "csv"

    def __init__(
        self,
        path: Paths,
        *,
        header: bool = True,
        columns: Sequence[str] | None = None,
        delimiter: str = ",",
        quote: str | None = '"',
        encoding: str = "utf-8",
        null_values: Sequence[str] = ("",),
        types: Mapping[str, str] | None = None,
        infer_types: bool = True,
        record_max_bytes: int = RECORD_MAX_BYTES,
        store: ObjectStoreSettings | None = None,
    ) -> None:
        dialect = csv_dialect(delimiter, quote, encoding)
        if not header and columns is None:
            msg = "a file without a header does not say what its columns are called: give `columns`"
            raise ValueError(msg)
        super().__init__(
            path,
            _CsvFormat(
                dialect,
                header,
                columns,
                frozenset(null_values),
                scalar_types(types or {}),
                infer_types,
                record_max_bytes,
            ),
            store,
        )


def csv_dialect(delimiter: str, quote: str | None, encoding: str) -> Dialect:
    """Return a dialect.

    Raises:
        ValueError: Something of it is not possible; says what.
    """
    for name, character in (("delimiter", delimiter), ("quote", quote)):
        if character is not None and (len(character) != 1 or not character.isascii() or character in "\r\n"):
            msg = f"the {name} is {character!r}; one character of ASCII is wanted"
            raise ValueError(msg)
    if delimiter == quote:
        msg = f"delimiter and quote are the same character, {quote!r}"
        raise ValueError(msg)
    try:
        is_possible = "a,\n".encode(codecs.lookup(encoding).name) == b"a,\n"
    except LookupError as error:
        msg = f"the encoding '{encoding}' is not known; such as utf-8, latin-1, cp1252"
        raise ValueError(msg) from error
    if not is_possible:
        msg = (
            f"ASCII is no part of the encoding '{encoding}', so lines cannot be told apart: convert the files to UTF-8"
        )
        raise ValueError(msg)
    return Dialect(delimiter, quote, encoding)


def scalar_types(types: Mapping[str, str]) -> dict[str, ColumnType]:
    """Return the types of columns of text.

    Raises:
        ValueError: One of them is no type, or nested.
    """
    parsed = column_types(types)
    for name, kind in parsed.items():
        if kind.name not in SCALARS:
            msg = f"column '{name}': a field of CSV is no {kind.name}; json takes any value, written as JSON"
            raise ValueError(msg)
    return parsed


class _CsvFormat:
    """Rows of CSV files: a `FileFormat`."""

    kind = "a CSV file"
    codec = MSGPACK
    may_grow = True
    has_byte_offsets = True

    def __init__(
        self,
        dialect: Dialect,
        has_header: bool,  # noqa: FBT001 (of a class that one place makes)
        columns: Sequence[str] | None,
        nulls: frozenset[str],
        types: Mapping[str, ColumnType],
        infers_types: bool,  # noqa: FBT001
        record_max_bytes: int,
    ) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), record_max_bytes))  # of the process; 128 KiB by default
        self._dialect = dialect
        self._has_header = has_header
        self._columns = columns
        self._nulls = nulls
        self._types = types
        self._infers_types = infers_types
        self._record_max_bytes = record_max_bytes

    def open(self, file: FileReader, path: str, label: str, position: int) -> _CsvRows:
        """See `FileFormat`."""
        head = _Head(file, path, self._dialect)
        check_start(file, path, position)
        names, first_row = self._names(head)
        start = position or head.offsets[first_row]
        lines_before = (lambda: _count_lines(file, position)) if position else (lambda: first_row)
        layout = self._layout(names, head, first_row, path)
        splitter = CsvSplitter(label, path, start, self._dialect, layout, self._record_max_bytes, lines_before)
        return _CsvRows(file, splitter)

    def _names(self, head: _Head) -> tuple[Sequence[str], int]:
        """Return the names of the columns, and the line in which rows begin."""
        if not self._has_header:
            assert self._columns is not None, "checked by the source"
            return self._columns, 0
        header = next((index for index, fields in enumerate(head.rows.fields) if fields), None)
        if header is None:
            if not head.is_whole:
                raise head.unreadable(f"no row ends in its first {_HEAD_BYTES:,} bytes")
            return (), head.rows.done  # nothing was written yet
        names = head.rows.fields[header]
        if isinstance(names, str):
            raise head.unreadable(names)
        if not "".join(names).isprintable() and any("\udc80" <= one <= "\udcff" for one in "".join(names)):
            raise head.unreadable(f"it is no text in {self._dialect.encoding}")
        named = [name or f"column_{number}" for number, name in enumerate(names, 1)]
        return named, head.rows.ends[header]

    def _layout(self, names: Sequence[str], head: _Head, first_row: int, path: str) -> RowLayout:
        if not names:
            return RowLayout((), (), RowEncoder(()))
        places = chosen_columns(names, self._columns if self._has_header else None, path)
        for name in self._types:
            chosen_columns(names, [name], path)
        rows = head.rows
        sample = [
            fields
            for fields, line in zip(rows.fields, rows.starts, strict=True)
            if line >= first_row and len(fields) == len(names) and not isinstance(fields, str)
        ][:_HEAD_ROWS]
        columns = []
        for place in places:
            name = names[place]
            kind = self._types.get(name)
            if kind is None:
                texts = [fields[place] for fields in sample] if self._infers_types else []
                kind = inferred_type(texts, self._nulls)
            columns.append((place, TextColumn(name, kind, self._nulls, is_declared=name in self._types)))
        return RowLayout(names, columns, RowEncoder([column.name for _, column in columns]))


class _Head:
    """The beginning of a file: its header, and rows that show what is in the columns.

    Attributes:
        rows: Its rows.
        offsets: Where its lines begin, and where the last one ends.
        is_whole: It is the whole file.
    """

    def __init__(self, file: FileReader, path: str, dialect: Dialect) -> None:
        self._path = path
        content = file.read(0, _HEAD_BYTES)
        self.is_whole = len(content) >= file.size
        if not self.is_whole:
            content = content[: content.rfind(b"\n") + 1]
        self.offsets = line_offsets(content)
        text = dialect.decode(content.removeprefix(_BOM))
        self.rows = parse(dialect, text, len(self.offsets) - 1, is_last=self.is_whole)

    def unreadable(self, why: str) -> SourceError:
        return SourceError(
            f"the header of the input file cannot be read: {why}",
            where={"file": self._path},
            expected="the names of the columns in the first row",
            fix="Correct the file, or `delimiter`, `quote` and `encoding`; for files without a header: header: false, columns: [...].",
        )


class _CsvRows:
    """The rows of one file: `OpenRows`."""

    def __init__(self, file: FileReader, splitter: CsvSplitter) -> None:
        self._file = file
        self._splitter = splitter

    def read(self) -> list[Record] | None:
        block = self._file.read(self._splitter.position, self._file.block_bytes)
        if block:
            return self._splitter.feed(block)
        return self._splitter.finish() or None


def _count_lines(file: FileReader, end: int) -> int | None:
    """Return how many lines end before an offset; None: that would take long."""
    if end > _COUNTED_MAX_BYTES:
        return None
    starts = range(0, end, _BLOCK_BYTES)
    return sum(file.read(start, min(_BLOCK_BYTES, end - start)).count(b"\n") for start in starts)

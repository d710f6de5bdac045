"""Bytes of CSV as records: one per row, whose offset is where its first byte lies.

Rows end at a newline that is in no quoted field. The standard library's parser knows which one that is: it is given whole lines and says how
many of them a row took, so the bytes of a row are known without a second parser. Blank lines are no rows.

A row that cannot be read becomes a record with its bytes as they are and a `fault`: one with too few or too many fields, with a text that is
not of its column's type, with bytes that are no text, with a quote that is not closed. Reading goes on with the next line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

from agentflow.connectors.csv_columns import TextColumn
from agentflow.connectors.row_values import RowEncoder
from agentflow.core.records import Record

_UNFIT = (ValueError, ArithmeticError, msgspec.DecodeError)
_BOM = b"\xef\xbb\xbf"


class Dialect(NamedTuple):
    """How rows are written.

    Attributes:
        delimiter: Between fields, one character.
        quote: Around fields, one character; None: a quote is text.
        encoding: Of the text; newlines, delimiter and quote are the same bytes in it as in ASCII.
    """

    delimiter: str
    quote: str | None
    encoding: str

    def reader(self, text: str) -> Any:  # noqa: ANN401 (the type of csv.reader has no name)
        """Return a parser of whole lines."""
        return csv.reader(
            io.StringIO(text, newline="\n"),
            delimiter=self.delimiter,
            quotechar=self.quote,
            quoting=csv.QUOTE_NONE if self.quote is None else csv.QUOTE_MINIMAL,
            strict=True,
        )

    def decode(self, content: bytes) -> str:
        """Return text; bytes that are none become surrogates, which no text has."""
        return content.decode(self.encoding, "surrogateescape")


class ParsedRows(NamedTuple):
    """Rows, or what should be some.

    Attributes:
        fields: Their fields; a text says why a row has none.
        starts: Number of the first line of each, from 0.
        ends: Number of the line behind the last one of each.
        done: Lines that are complete: a row that begins behind them goes on in lines that have not come yet.
    """

    fields: Sequence[list[str] | str]
    starts: Sequence[int]
    ends: Sequence[int]
    done: int


def line_offsets(content: bytes) -> list[int]:
    """Return where each line begins, and behind them where the last one ends; it may have no newline."""
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()
    offsets = list(accumulate([len(line) + 1 for line in lines], initial=0))
    offsets[-1] = len(content)
    return offsets


def parse(dialect: Dialect, text: str, count: int, *, is_last: bool) -> ParsedRows:
    """Return the rows of lines.

    Args:
        dialect: How rows are written.
        text: The lines, each with its newline.
        count: How many.
        is_last: Nothing follows, so a quote that is not closed by now never will be.
    """
    if dialect.quote is None or dialect.quote not in text:
        try:
            rows = list(dialect.reader(text))
            return ParsedRows(rows, range(len(rows)), range(1, len(rows) + 1), count)
        except csv.Error:  # somewhere in it; the loop below finds out where
            pass
    fields: list[list[str] | str] = []
    starts: list[int] = []
    ends: list[int] = []

    def add(row: list[str] | str, end: int) -> int:
        fields.append(row)
        starts.append(line)
        ends.append(end)
        return end

    lines = io.StringIO(text, newline="\n").readlines()
    line = before = 0
    reader = dialect.reader(text)
    while True:
        try:
            for row in reader:
                line = add(row, before + reader.line_num)
            return ParsedRows(fields, starts, ends, count)
        except csv.Error as error:
            end = before + reader.line_num
            if end < len(lines) or not _is_open(dialect, lines[line:]):
                line = add(str(error), end)
            elif is_last:
                line = before = add("a quote is not closed", line + 1)
                reader = dialect.reader("".join(lines[line:]))
            else:
                return ParsedRows(fields, starts, ends, line)


def _without_blank_lines(rows: ParsedRows) -> ParsedRows:
    kept = [index for index, fields in enumerate(rows.fields) if fields]
    return ParsedRows(
        [rows.fields[index] for index in kept],
        [rows.starts[index] for index in kept],
        [rows.ends[index] for index in kept],
        rows.done,
    )


def _is_open(dialect: Dialect, lines: Sequence[str]) -> bool:
    """Return whether lines end inside of quotes: then one more quote makes a row of them."""
    if dialect.quote is None:
        return False
    try:
        list(dialect.reader(f"{''.join(lines)}{dialect.quote}\n"))
    except csv.Error:
        return False
    return True


class RowLayout(NamedTuple):
    """What a row of a file is made of.

    Attributes:
        names: Of its fields.
        columns: Those that are read, with their places.
        encoder: Encodes them.
    """

    names: Sequence[str]
    columns: Sequence[tuple[int, TextColumn]]
    encoder: RowEncoder

    def values(self, rows: Sequence[Sequence[str]]) -> list[bytes]:
        """Return the values of rows that have all fields.

        Raises:
            ValueError, ArithmeticError, msgspec.DecodeError: One of them has none.
        """
        texts = list(zip(*rows, strict=True))
        return self.encoder.encode([column.values(texts[place]) for place, column in self.columns])

    def value(self, row: Sequence[str]) -> bytes:
        """Return the value of one row.

        Raises:
            ValueError: It has none; says why.
        """
        if len(row) != len(self.names):
            msg = f"{len(row)} fields where there are {len(self.names)} columns ({', '.join(self.names)})"
            raise ValueError(msg)
        values = [[column.value(row[place])] for place, column in self.columns]
        return self.encoder.encode(values)[0]


class CsvSplitter:
    """Turns blocks of one byte stream into records, one per row.

    Memory is bounded by one block and ``record_max_bytes``: of a longer line only its beginning is kept, and a quoted field that is longer
    is taken for a quote that is not closed.

    Args:
        label: The source label of the records.
        path: The file, for faults.
        position: Byte offset of the first block: 0, or the end of a row.
        dialect: How rows are written.
        layout: What they are made of.
        record_max_bytes: Longest row.
        lines_before: Returns the number of lines before ``position``, None where it is not known; asked for faults only.

    Attributes:
        label: As given; it may change between two blocks.
        position: Offset behind the last byte that was fed.
        resume: Offset of the row that is not complete yet.
    """

    def __init__(
        self,
        label: str,
        path: str,
        position: int,
        dialect: Dialect,
        layout: RowLayout,
        record_max_bytes: int,
        lines_before: Callable[[], int | None],
    ) -> None:
        self.label = label
        self.position = position
        self.resume = position
        self._path = path
        self._dialect = dialect
        self._layout = layout
        self._max = record_max_bytes
        self._lines_before = lines_before
        self._lines = 0  # complete ones behind the first position
        self._rest = b""  # the bytes from `resume` on; of a line that is too long the first ones
        self._is_too_long = False

    def feed(self, block: bytes) -> list[Record]:
        """Return the records that ``block`` completes."""
        self.position += len(block)
        records = []
        if self._is_too_long:
            newline = block.find(b"\n")
            if newline < 0:
                return []
            records = self._end_too_long(self.position - len(block) + newline + 1)
            block = block[newline + 1 :]
        self._rest += block
        return records + self._take(self._rest.rfind(b"\n") + 1, is_last=False)

    def finish(self) -> list[Record]:
        """Return what is left at the end of the file: rows without a newline behind them."""
        return self._end_too_long(self.position) if self._is_too_long else self._take(len(self._rest), is_last=True)

    def _take(self, size: int, *, is_last: bool) -> list[Record]:
        """Return the records of whole lines, which are so many bytes."""
        records = self._records(self._rest[:size], is_last=is_last) if size else []
        if len(self._rest) > self._max:
            size = self._rest.rfind(b"\n") + 1
            if size:  # a quoted field that goes on and on
                records += self._records(self._rest[:size], is_last=True)
            if len(self._rest) > self._max:
                self._is_too_long, self._rest = True, self._rest[: self._max + 1]
        return records

    def _end_too_long(self, end: int) -> list[Record]:
        record = Record(self.label, self.resume, end, self._rest)
        self._is_too_long, self._rest, self.resume = False, b"", end
        self._lines += 1
        return [record]

    def _records(self, body: bytes, *, is_last: bool) -> list[Record]:
        """Return the records of whole lines, and move behind the last row that is complete."""
        offsets = line_offsets(body)
        has_mark = self.resume == 0 and body.startswith(_BOM)
        rows = parse(
            self._dialect, self._dialect.decode(body[len(_BOM) * has_mark :]), len(offsets) - 1, is_last=is_last
        )
        records = self._encoded(rows, body, offsets)
        self._rest = self._rest[offsets[rows.done] :]
        self.resume += offsets[rows.done]
        self._lines += rows.done
        return records

    def _encoded(self, rows: ParsedRows, body: bytes, offsets: Sequence[int]) -> list[Record]:
        label, base = self.label, self.resume
        if [] in rows.fields:
            rows = _without_blank_lines(rows)
        try:
            if set(map(len, rows.fields)) == {len(self._layout.names)} and str not in set(map(type, rows.fields)):
                values = self._layout.values(rows.fields)
                return [
                    Record(label, base + offsets[start], base + offsets[end], value)
                    for start, end, value in zip(rows.starts, rows.ends, values, strict=True)
                ]
        except _UNFIT:
            pass
        return [
            self._one(fields, start, body[offsets[start] : offsets[end]], base + offsets[start])
            for fields, start, end in zip(rows.fields, rows.starts, rows.ends, strict=True)
        ]

    def _one(self, fields: list[str] | str, line: int, raw: bytes, offset: int) -> Record:
        """Return the record of a row, with a value or with a fault."""
        end = offset + len(raw)
        try:
            if isinstance(fields, str):
                return self._faulty(fields, line, raw, offset)
            return Record(self.label, offset, end, self._layout.value(fields))
        except UnicodeEncodeError:
            return self._faulty(f"it is no text in {self._dialect.encoding}", line, raw, offset)
        except ValueError as error:
            return self._faulty(str(error), line, raw, offset)

    def _faulty(self, why: str, line: int, raw: bytes, offset: int) -> Record:
        before = self._lines_before()
        place = f"byte {offset}" if before is None else f"line {before + self._lines + line + 1}"
        value = raw.rstrip(b"\r\n")[: self._max + 1]
        return Record(self.label, offset, offset + len(raw), value, fault=f"{self._path}, {place}: {why}")

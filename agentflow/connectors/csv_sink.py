"""CSV files as a sink."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from agentflow.connectors.csv_rows import Dialect, line_offsets, parse
from agentflow.connectors.csv_source import csv_dialect
from agentflow.connectors.file_store import FileStore, StagingFile
from agentflow.connectors.part_files import LineBlocks, PartFileSink
from agentflow.connectors.row_outputs import DEAD_LETTER_COLUMNS, is_dead_letter, row_blocks
from agentflow.connectors.stores import file_store
from agentflow.errors import SchemaMismatch, SinkForbidden
from agentflow.runtime.settings import ObjectStoreSettings

if TYPE_CHECKING:
    from agentflow.core.effects import DeadLetter, EmitRecord

_HEADER_BYTES = 2**20


class CsvSink(PartFileSink):
    """Outputs as rows of CSV files in a directory, exactly once: one file per checkpoint that has outputs.

    An output is an object with the columns as its fields; any other output is a row with one column, ``value``. Numbers and truth values are
    written as in JSON, lists and objects as JSON, what is null or missing as ``null_value``. Dead letters have columns of their own
    (`row_outputs.DEAD_LETTER_COLUMNS`). Text is UTF-8.

    Args:
        path: The directory; created, with its parents, where it is missing. Or the URL of a prefix in an object store.
        header: The first row of a file names the columns.
        columns: Names of the columns, in order. None: those of the newest file that is there, else those that the outputs of the first
            checkpoint have; an output with another field stops the job.
        delimiter: Between fields.
        quote: Around fields with delimiters, newlines or quotes in them, which are doubled.
        null_value: What is written for null.
        subtask: Number of the subtask that writes; several subtasks share a directory.
        store: How the object store is reached.

    Raises:
        ValueError: A character is not possible; or ``columns`` is missing, without a header.
    """

    name = "csv"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        header: bool = True,
        columns: Sequence[str] | None = None,
        delimiter: str = ",",
        quote: str = '"',
        null_value: str = "",
        subtask: int = 0,
        store: ObjectStoreSettings | None = None,
    ) -> None:
        if not header and columns is None:
            msg = "files without a header do not say what their columns are called: give `columns`"
            raise ValueError(msg)
        self._format = _CsvFormat(os.fspath(path), header, columns, csv_dialect(delimiter, quote, "utf-8"), null_value)
        super().__init__(file_store(path, store), ".csv", self._format, subtask=subtask)

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Take one output, as `PartFileSink` does; dead letters have columns of their own."""
        if is_dead_letter(record):
            self._format.take_dead_letters()
        super().write(record)


class _CsvFormat:
    """A `TableFormat` of CSV files."""

    def __init__(
        self,
        place: str,
        has_header: bool,  # noqa: FBT001 (of a class that one place makes)
        columns: Sequence[str] | None,
        dialect: Dialect,
        null_value: str,
    ) -> None:
        self._place = place
        self._has_header = has_header
        self._columns = None if columns is None else list(columns)
        self._dialect = dialect
        self._null_value = null_value

    @property
    def has_columns(self) -> bool:
        """See `TableFormat`."""
        return self._columns is not None

    def take_dead_letters(self) -> None:
        """Have the columns of dead letters, unless some are named."""
        if self._columns is None:
            self._columns = list(DEAD_LETTER_COLUMNS)

    def adopt(self, store: FileStore, newest: str) -> None:
        """See `TableFormat`."""
        reader = store.open(newest)
        try:
            content = reader.read(0, _HEADER_BYTES)
        finally:
            reader.close()
        rows = parse(self._dialect, self._dialect.decode(content), len(line_offsets(content)) - 1, is_last=False)
        header = next(iter(rows.fields), "")
        if isinstance(header, str):
            raise SinkForbidden(
                "the newest part file has no header, so the columns are not known",
                where={"directory": self._place, "file": newest},
                expected="part files of this sink",
                fix="name the `columns`, or an empty directory.",
            )
        self._columns = header

    def encode(self, lines: LineBlocks, file: StagingFile, checkpoint: int) -> None:
        """See `TableFormat`."""
        if self._columns is None:
            self._columns = list(dict.fromkeys(name for rows in row_blocks(lines) for row in rows for name in row))
        columns, known = self._columns, frozenset(self._columns)
        text = io.StringIO(newline="")
        delimiter, quote, _ = self._dialect
        writer = csv.writer(text, delimiter=delimiter, quotechar=quote, lineterminator="\n")
        if self._has_header:
            writer.writerow(columns)
        first = 1
        for rows in row_blocks(lines):
            for number, row in enumerate(rows, first):
                if not known >= row.keys():
                    raise self._unknown(min(row.keys() - known), number, checkpoint)
            first += len(rows)
            writer.writerows([[self._field(row.get(name)) for name in columns] for row in rows])
            file.write(text.getvalue().encode())
            text.seek(0)
            text.truncate()

    def _field(self, value: Any) -> str:  # noqa: ANN401 (any decoded JSON)
        if type(value) is str:
            return value
        return self._null_value if value is None else msgspec.json.encode(value).decode()

    def _unknown(self, name: str, row: int, checkpoint: int) -> SchemaMismatch:
        return SchemaMismatch(
            f"row {row} has a field '{name}', for which there is no column",
            where={"directory": self._place, "checkpoint": checkpoint, "field": name, "row": row},
            expected=f"the columns {', '.join(self._columns or ())}",
            fix="name all `columns`, or let the action leave the field out. Columns that nobody has named are those of the first "
            "checkpoint, or of the newest file that is there.",
        )

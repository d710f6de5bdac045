"""Types of columns, found out from rows: for sinks whose columns nobody has declared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agentflow.connectors.column_types import INTEGERS, ColumnType
from agentflow.errors import SchemaMismatch

VALUE_COLUMN = "value"
"""The column of outputs that are no objects."""
_KINDS = {bool: "boolean", int: "int64", float: "double", str: "string", list: "list", dict: "struct"}
_WORDS = {
    "boolean": "a truth value", "int64": "a number", "double": "a number", "string": "text", "list": "a list", "struct": "an object",
}  # fmt: skip


def as_row(output: Any) -> dict[str, Any]:  # noqa: ANN401 (any decoded JSON)
    """Return an output as a row: an object is one, anything else is a row with one column."""
    return output if type(output) is dict else {VALUE_COLUMN: output}


def inferred_columns(
    blocks: Iterable[Iterable[Mapping[str, Any]]], where: Mapping[str, object]
) -> dict[str, ColumnType]:
    """Return the columns of rows, in the order in which they come first, with types that all rows fit.

    A field that is null in all rows is text; an object that is empty in all rows is JSON.

    Args:
        blocks: All rows.
        where: The place, for messages.

    Raises:
        SchemaMismatch: A field has values of kinds that no type holds; names field and row.
    """
    columns: dict[str, _Seen] = {}
    row = 0
    for block in blocks:
        for fields in block:
            row += 1
            for name, value in fields.items():
                seen = columns.get(name)
                if seen is None:
                    seen = columns[name] = _Seen(name, where)
                if value is not None:
                    seen.take(value, row)
    return {name: seen.column_type() for name, seen in columns.items()}


class _Seen:
    """What was seen in one place of the rows.

    Attributes:
        kind: Kind of its values; None: only null.
        row: The first row that had one.
    """

    def __init__(self, path: str, where: Mapping[str, object]) -> None:
        self._path = path
        self._where = where
        self.kind: str | None = None
        self.row = 0
        self._items: _Seen | None = None
        self._fields: dict[str, _Seen] = {}

    def take(self, value: Any, row: int) -> None:  # noqa: ANN401 (any decoded JSON but None)
        kind = _KINDS[type(value)]
        if self.kind is None:
            self.kind, self.row = kind, row
        elif kind != self.kind:
            if {kind, self.kind} != {"int64", "double"}:
                raise self._mismatch(kind, row)
            self.kind = "double"
        if kind == "int64":
            least, most = INTEGERS["int64"]
            if not least <= value <= most:
                raise self._too_large(row)
        elif kind == "list":
            if self._items is None:
                self._items = _Seen(f"{self._path}[]", self._where)
            for item in value:
                if item is not None:
                    self._items.take(item, row)
        elif kind == "struct":
            for name, item in value.items():
                seen = self._fields.get(name)
                if seen is None:
                    seen = self._fields[name] = _Seen(f"{self._path}.{name}", self._where)
                if item is not None:
                    seen.take(item, row)

    def column_type(self) -> ColumnType:
        if self.kind == "list":
            inner = ColumnType("string") if self._items is None else self._items.column_type()
            return ColumnType("list", fields=(("", inner),))
        if self.kind == "struct":
            fields = tuple((name, seen.column_type()) for name, seen in self._fields.items())
            return ColumnType("struct", fields=fields) if fields else ColumnType("json")
        return ColumnType(self.kind or "string")

    def _mismatch(self, kind: str, row: int) -> SchemaMismatch:
        assert self.kind is not None, "a mismatch is one with what came before"
        return SchemaMismatch(
            f"field '{self._path}' is {_WORDS[kind]} in row {row} and {_WORDS[self.kind]} in row {self.row}",
            where={**self._where, "field": self._path, "row": row},
            expected="one type for all values of a column",
            fix="declare the column as json in `schema`, which takes any value; or let the action send one type.",
        )

    def _too_large(self, row: int) -> SchemaMismatch:
        return SchemaMismatch(
            f"field '{self._path}' has a whole number of more than 64 bits in row {row}",
            where={**self._where, "field": self._path, "row": row},
            expected="numbers of 64 bits",
            fix="declare the column in `schema`: uint64, double, decimal(38,0), or json.",
        )

"""Rows as Arrow batches: what outputs become in Parquet and Arrow files, and in tables.

A row is an output, decoded from JSON (`inferred_types.as_row`). A missing field is null. A field without a column, and a value that is not
of its column's type, are errors: nothing is lost in silence. JSON has fewer types than columns have, so columns take them as text:

    timestamp        ISO 8601 with an offset, or epoch milliseconds
    timestamp-ntz    ISO 8601 without one
    date, time       ISO 8601
    decimal          digits, or a number
    binary           base64, which is what msgspec makes of bytes
    json             any value; it is stored as JSON text
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from functools import cache
from itertools import accumulate, chain
from typing import Any

import msgspec

from agentflow.connectors.arrow_rows import arrow
from agentflow.connectors.column_types import ColumnType, column_types
from agentflow.errors import SchemaMismatch

_SHOWN_MAX = 80
_JSON_MARK = {b"agentflow": b"json"}  # of a column of text that is JSON
_DECIMAL128_DIGITS = 38
_FACTORIES = {"boolean": "bool_", "float": "float32", "double": "float64", "date": "date32"}


def arrow_schema(columns: Mapping[str, str | ColumnType] | Any) -> Any:  # noqa: ANN401 (or a `pyarrow.Schema`)
    """Return declared columns as a `pyarrow.Schema`; one that is a schema already as it is.

    Raises:
        ValueError: A type is none; names the column.
    """
    pa = arrow()
    if isinstance(columns, pa.Schema):
        return columns
    return pa.schema([_field(name, kind) for name, kind in column_types(columns).items()])


def _field(name: str, kind: ColumnType) -> Any:  # noqa: ANN401 (a `pyarrow.Field`)
    return arrow().field(name, _arrow_type(kind), metadata=_JSON_MARK if kind.name == "json" else None)


def _arrow_type(kind: ColumnType) -> Any:  # noqa: ANN401 (a `pyarrow.DataType`)
    pa = arrow()
    match kind.name:
        case "decimal":
            return (pa.decimal128 if kind.digits <= _DECIMAL128_DIGITS else pa.decimal256)(kind.digits, kind.scale)
        case "time":
            return pa.time64("us")
        case "timestamp":
            return pa.timestamp("us", "UTC")
        case "timestamp-ntz":
            return pa.timestamp("us")
        case "json":
            return pa.string()
        case "list":
            return pa.list_(_field("element", kind.values))
        case "map":
            return pa.map_(pa.string(), _field("value", kind.values))
        case "struct":
            return pa.struct([_field(name, inner) for name, inner in kind.fields])
    return getattr(pa, _FACTORIES.get(kind.name, kind.name))()


class ColumnBuilder:
    """Builds Arrow batches of rows.

    Args:
        schema: The columns, a `pyarrow.Schema`.
        where: The place, for messages.
    """

    def __init__(self, schema: Any, where: Mapping[str, object]) -> None:  # noqa: ANN401 (pyarrow has no types)
        self._schema = schema
        self._names = frozenset(schema.names)
        self._where = where

    def batch(self, rows: Sequence[Mapping[str, Any]], first_row: int) -> Any:  # noqa: ANN401 (a `pyarrow.RecordBatch`)
        """Return the rows as a batch; ``first_row`` is the number of the first one, for messages.

        Raises:
            SchemaMismatch: A row does not fit; names field and row.
        """
        names = self._names
        for number, row in enumerate(rows, first_row):
            if not names >= row.keys():
                raise self._unknown(min(row.keys() - names), number)
        arrays = []
        for field in self._schema:
            values = [row.get(field.name) for row in rows]
            try:
                arrays.append(_build(field, values))
            except _unfit() as error:
                raise self._misfit(field, values, first_row, error) from error
        return arrow().record_batch(arrays, schema=self._schema)

    def _unknown(self, name: str, row: int) -> SchemaMismatch:
        return SchemaMismatch(
            f"row {row} has a field '{name}', for which there is no column",
            where={**self._where, "field": name, "row": row},
            expected=f"the columns {_shortened(', '.join(self._schema.names))}",
            fix="declare all columns in `schema`, or let the action leave the field out. Columns that nobody has declared are those of the "
            "first checkpoint, or of the newest file that is there.",
        )

    def _misfit(self, field: Any, values: Sequence[Any], first_row: int, error: Exception) -> SchemaMismatch:  # noqa: ANN401
        """Find the first row whose value makes no column of its own."""
        row, value = first_row, values[0]
        for row, value in enumerate(values, first_row):  # noqa: B007 (used behind the loop)
            try:
                _build(field, [value])
            except _unfit() as own:
                error = own
                break
        kind = "json" if _is_json(field) else str(field.type)
        shown = msgspec.json.encode(value).decode("utf-8", "replace")
        return SchemaMismatch(
            f"field '{field.name}' of row {row} is {_shortened(shown)}, which is no {kind}",
            where={**self._where, "field": field.name, "row": row},
            expected=f"{kind} ({_shortened(str(error))})",
            fix="correct the action, or declare the column with another type in `schema`: json takes any value.",
        )


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 2] + " …"


@cache
def _unfit() -> tuple[type[Exception], ...]:
    """What says that a value is not of its column's type."""
    return (arrow().ArrowException, TypeError, ValueError, OverflowError, InvalidOperation, msgspec.ValidationError)


def _is_json(field: Any) -> bool:  # noqa: ANN401 (a `pyarrow.Field`)
    return field.metadata is not None and _JSON_MARK.items() <= field.metadata.items()


def _build(field: Any, values: Sequence[Any]) -> Any:  # noqa: ANN401 (a field and an array of pyarrow)
    """Return an array of a column."""
    pa = arrow()
    kind = field.type
    if _is_json(field):
        return pa.array([None if value is None else msgspec.json.encode(value).decode() for value in values], kind)
    for is_kind, build in _builders():
        if is_kind(kind):
            return build(kind, values)
    return pa.array(values, kind)


@cache
def _builders() -> tuple[tuple[Callable[[Any], bool], Callable[[Any, Sequence[Any]], Any]], ...]:
    types = arrow().types
    return (
        (types.is_integer, _each(_whole)),
        (types.is_struct, _build_struct),
        (types.is_list, _build_list),
        (types.is_large_list, _build_list),
        (types.is_map, _build_map),
        (types.is_timestamp, _build_timestamps),
        (types.is_date, _build_from_text),
        (types.is_time, _each(_time)),
        (types.is_decimal, _each(_decimal)),
        (types.is_binary, _each(_binary)),
        (types.is_large_binary, _each(_binary)),
        (types.is_fixed_size_binary, _each(_binary)),
        (types.is_duration, _each(_duration)),
    )


def _each(convert: Callable[[Any], Any]) -> Callable[[Any, Sequence[Any]], Any]:
    def build(kind: Any, values: Sequence[Any]) -> Any:  # noqa: ANN401 (a type and an array of pyarrow)
        return arrow().array([None if value is None else convert(value) for value in values], kind)

    return build


def _build_struct(kind: Any, values: Sequence[Any]) -> Any:  # noqa: ANN401 (a type and an array of pyarrow)
    pa = arrow()
    names = {field.name for field in kind}
    for value in values:
        if value is not None and not names >= _wanted(value, dict, "an object").keys():
            msg = f"it has a field '{min(value.keys() - names)}', which the column does not have"
            raise ValueError(msg)
    arrays = [_build(field, [None if value is None else value.get(field.name) for value in values]) for field in kind]
    return pa.StructArray.from_arrays(
        arrays, fields=list(kind), mask=pa.array([value is None for value in values], pa.bool_())
    )


def _build_list(kind: Any, values: Sequence[Any]) -> Any:  # noqa: ANN401 (a type and an array of pyarrow)
    pa = arrow()
    lists = [() if value is None else _wanted(value, list, "a list") for value in values]
    items = _build(kind.value_field, list(chain.from_iterable(lists)))
    is_large = pa.types.is_large_list(kind)
    made = (pa.LargeListArray if is_large else pa.ListArray).from_arrays(
        _offsets(lists, values, pa.int64() if is_large else pa.int32()), items
    )
    return made.cast(kind)


def _build_map(kind: Any, values: Sequence[Any]) -> Any:  # noqa: ANN401 (a type and an array of pyarrow)
    pa = arrow()
    maps = [{} if value is None else _wanted(value, dict, "an object") for value in values]
    keys = _build(kind.key_field, list(chain.from_iterable(maps)))
    items = _build(kind.item_field, [item for one in maps for item in one.values()])
    return pa.MapArray.from_arrays(_offsets(maps, values, pa.int32()), keys, items).cast(kind)


def _offsets(collections: Sequence[Any], values: Sequence[Any], kind: Any) -> Any:  # noqa: ANN401 (a type and an array of pyarrow)
    """Return where each collection begins, and the end; a null says that there is none."""
    starts: list[int | None] = list(accumulate(map(len, collections), initial=0))
    for index, value in enumerate(values):
        if value is None:
            starts[index] = None
    return arrow().array(starts, kind)


def _wanted(value: Any, kind: type, words: str) -> Any:  # noqa: ANN401 (any value)
    if not isinstance(value, kind):
        msg = f"{words} is wanted"
        raise TypeError(msg)
    return value


def _build_from_text(kind: Any, values: Sequence[Any]) -> Any:  # noqa: ANN401 (a type and an array of pyarrow)
    pa = arrow()
    return pa.array(values, pa.string()).cast(kind)


def _build_timestamps(kind: Any, values: Sequence[Any]) -> Any:  # noqa: ANN401 (a type and an array of pyarrow)
    """Return instants or local times of ISO 8601 text; an instant may also be a number, which is epoch milliseconds."""
    if kind.tz is not None:
        values = [_instant_text(value) if type(value) is int else value for value in values]
    return _build_from_text(kind, values)


def _instant_text(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat()


def _whole(value: Any) -> Any:  # noqa: ANN401 (any value)
    """Refuse a fraction, which Arrow would cut off."""
    if type(value) is float and not value.is_integer():
        msg = "it has a fraction"
        raise ValueError(msg)
    return value


def _time(value: Any) -> time:  # noqa: ANN401 (any value)
    return time.fromisoformat(_wanted(value, str, "ISO 8601 text"))


def _decimal(value: Any) -> Decimal | int:  # noqa: ANN401 (any value)
    if type(value) is int:
        return value
    if type(value) is float:
        return Decimal(repr(value))
    return Decimal(_wanted(value, str, "digits"))


def _binary(value: Any) -> bytes:  # noqa: ANN401 (any value)
    try:
        return base64.b64decode(_wanted(value, str, "base64"), validate=True)
    except binascii.Error as error:
        msg = f"it is no base64: {error}"
        raise ValueError(msg) from error


def _duration(value: Any) -> timedelta:  # noqa: ANN401 (any value)
    return msgspec.convert(_wanted(value, str, "ISO 8601 text"), timedelta)

"""Rows of Arrow batches as records: one msgpack map per row.

What is not plain in msgpack becomes text that everything else can live with: CEL, `key-by`, memory, JSON, and typed inputs of actions,
which make a datetime or a Decimal of it again.

    timestamp with a time zone   ISO 8601 in UTC: 2026-01-31T12:00:00.000000Z
    timestamp without            ISO 8601: 2026-01-31T12:00:00.000000
    date, time                   ISO 8601: 2026-01-31, 12:00:00.000000
    duration                     ISO 8601: P1DT1.5S
    decimal                      its digits: 12.50
    binary                       bytes
    list, struct                 list, dict
    map                          dict, its keys as text
    dictionary, run-end encoded  the value itself

A date, time or timestamp that no such text can say (DuckDB's 24:00:00, a date in the year 300,000) makes its row a record with a `fault`, and
with the row as JSON.

A batch is converted column by column, so a row of a few columns takes about half a microsecond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec

from agentflow.connectors.row_values import RowEncoder
from agentflow.core.records import Record
from agentflow.errors import NotConfigured

_EMPTY = msgspec.msgpack.encode({})
_UNITS_NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_DAY_NS = 86_400 * 10**9
_OUT_OF_RANGE = "<value out of range: "  # what Arrow's cast makes of a time that has no text
_SCALE_PLAIN_MAX = 6  # above, Arrow writes small decimals with an exponent

Walk = Callable[[Any], Any]


def arrow() -> Any:  # noqa: ANN401 (a module without types)
    """Return the package pyarrow.

    Raises:
        NotConfigured: It is not installed.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise NotConfigured(
            f"Parquet, Arrow files and tables need the package pyarrow, which cannot be imported ({error})",
            fix="pip install 'agentflow[arrow]'",
        ) from error
    return pa


class RowPacker:
    """Packs the rows of batches of one schema.

    Args:
        schema: A `pyarrow.Schema` without two fields of one name.
    """

    def __init__(self, schema: Any) -> None:  # noqa: ANN401 (pyarrow has no types)
        self._encoder = RowEncoder(schema.names)
        self._columns = [_Column(name, kind) for name, kind in zip(schema.names, schema.types, strict=True)]

    def records(self, batch: Any, label: str, first_row: int, place: str) -> list[Record]:  # noqa: ANN401 (a `pyarrow.RecordBatch`)
        """Return one record per row.

        Args:
            batch: The rows.
            label: Source of the records.
            first_row: Offset of the first one.
            place: Where they are, for faults.
        """
        if not batch.num_columns:
            return [Record(label, row, row + 1, _EMPTY) for row in range(first_row, first_row + batch.num_rows)]
        faults: dict[int, str] = {}
        values = self._encoder.encode(
            [column.values(array, faults) for column, array in zip(self._columns, batch.columns, strict=True)]
        )
        records = [Record(label, row, row + 1, value) for row, value in enumerate(values, first_row)]
        for index, why in faults.items():
            row = first_row + index
            shown = msgspec.json.encode(msgspec.msgpack.decode(values[index]))
            records[index] = Record(label, row, row + 1, shown, fault=f"{place}, row {row}: {why}")
        return records


class _Column:
    """How arrays of one type become values: first casts within Arrow, then Python for what Arrow cannot do."""

    def __init__(self, name: str, kind: Any) -> None:  # noqa: ANN401 (a `pyarrow.DataType`)
        pa = arrow()
        self._name = name
        self._is_run_end_encoded = pa.types.is_run_end_encoded(kind)
        decoded = kind.value_type if self._is_run_end_encoded else kind
        in_utc = _with_leaves(decoded, _leaf_in_utc)
        plain = _with_leaves(in_utc, _plain_leaf)
        self._casts = [new for new, old in ((in_utc, decoded), (plain, in_utc)) if new != old]
        self._walk = _walk(in_utc)
        self._kind = in_utc

    def values(self, array: Any, faults: dict[int, str]) -> list[Any]:  # noqa: ANN401 (a `pyarrow.Array`)
        """Return the values; note by their index those that cannot be said."""
        if self._is_run_end_encoded:
            import pyarrow.compute as pc

            array = pc.run_end_decode(array)
        for kind in self._casts:
            array = array.cast(kind)
        values: list[Any] = array.to_pylist()
        if _has_unsaid(self._kind, array):
            for index, value in enumerate(values):
                if unsaid := _unsaid(self._kind, value):
                    faults.setdefault(index, f"column '{self._name}' is {unsaid}")
        walk = self._walk
        return values if walk is None else [None if value is None else walk(value) for value in values]


def _with_leaves(kind: Any, leaf: Callable[[Any], Any]) -> Any:  # noqa: ANN401 (types of pyarrow)
    """Return a type whose scalars are mapped by ``leaf``."""
    pa = arrow()
    types = pa.types
    if types.is_struct(kind):
        return pa.struct([field.with_type(_with_leaves(field.type, leaf)) for field in kind])
    if types.is_map(kind):
        key, item = (_with_leaves(inner, leaf) for inner in (kind.key_type, kind.item_type))
        return pa.map_(kind.key_field.with_type(key), kind.item_field.with_type(item), keys_sorted=kind.keys_sorted)
    if types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_with_leaves(kind.value_type, leaf)))
    if types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_with_leaves(kind.value_type, leaf)))
    if types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_with_leaves(kind.value_type, leaf)), kind.list_size)
    if types.is_dictionary(kind):
        inner = _with_leaves(kind.value_type, leaf)
        return kind if inner == kind.value_type else inner
    return leaf(kind)


def _leaf_in_utc(kind: Any) -> Any:  # noqa: ANN401 (types of pyarrow)
    pa = arrow()
    return pa.timestamp(kind.unit, "UTC") if pa.types.is_timestamp(kind) and kind.tz else kind


def _plain_leaf(kind: Any) -> Any:  # noqa: ANN401 (types of pyarrow)
    pa = arrow()
    types = pa.types
    if types.is_temporal(kind):
        return pa.int64() if types.is_duration(kind) else kind if types.is_interval(kind) else pa.string()
    return pa.string() if types.is_decimal(kind) else kind


def _walk(kind: Any) -> Walk | None:  # noqa: ANN401 (a `pyarrow.DataType`)
    """Return what is done with each value behind the casts; None: nothing."""
    types = arrow().types
    if types.is_dictionary(kind):
        return _walk(kind.value_type)
    if types.is_timestamp(kind):
        return lambda text: text.replace(" ", "T")
    if types.is_duration(kind):
        return partial(_duration_text, _UNITS_NS[kind.unit])
    if types.is_decimal(kind) and not 0 <= kind.scale <= _SCALE_PLAIN_MAX:
        return lambda text: format(Decimal(text), "f")
    if types.is_map(kind):
        return partial(_walk_map, _walk(kind.key_type), _walk(kind.item_type))
    if types.is_struct(kind):
        walks = {field.name: walk for field in kind if (walk := _walk(field.type)) is not None}
        return partial(_walk_struct, walks) if walks else None
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _walk(kind.value_type)
        return None if inner is None else partial(_walk_list, inner)
    return None


def _is_clock(kind: Any) -> bool:  # noqa: ANN401 (a `pyarrow.DataType`)
    """Whether values become text that cannot say all of them."""
    types = arrow().types
    return any(is_kind(kind) for is_kind in (types.is_date, types.is_time, types.is_timestamp))


def _has_unsaid(kind: Any, array: Any) -> bool:  # noqa: ANN401 (a type, and an array as it is behind the casts)
    """Whether any value within an array is one that its text does not say; all of it is done within Arrow."""
    import pyarrow.compute as pc

    pa = arrow()
    types = pa.types
    if types.is_dictionary(kind):  # one that is no dictionary any more had texts to make
        return not isinstance(array, pa.DictionaryArray) and _has_unsaid(kind.value_type, array)
    if _is_clock(kind):
        return bool(pc.any(pc.starts_with(array, _OUT_OF_RANGE)).as_py())
    if types.is_struct(kind):
        return any(_has_unsaid(field.type, inner) for field, inner in zip(kind, array.flatten(), strict=True))
    if types.is_map(kind):
        return _has_unsaid(kind.key_type, array.keys) or _has_unsaid(kind.item_type, array.items)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _has_unsaid(kind.value_type, array.flatten())
    return False


def _unsaid(kind: Any, value: Any) -> str:  # noqa: ANN401 (a type, and a value of it before the walk)
    """Return what a value is that its text does not say: ``86400000000, which is no time64[us]``; empty: there is none."""
    types = arrow().types
    if value is None:
        return ""
    if types.is_dictionary(kind):
        return _unsaid(kind.value_type, value)
    if _is_clock(kind):
        return f"{value[len(_OUT_OF_RANGE) : -1]}, which is no {kind}" if value.startswith(_OUT_OF_RANGE) else ""
    inner: Iterable[tuple[Any, Any]] = ()
    if types.is_struct(kind):
        inner = ((field.type, value[field.name]) for field in kind)
    elif types.is_map(kind):
        inner = ((side, one) for pair in value for side, one in zip((kind.key_type, kind.item_type), pair, strict=True))
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = ((kind.value_type, one) for one in value)
    return next(filter(None, (_unsaid(one_kind, one) for one_kind, one in inner)), "")


def _walk_list(walk: Walk, values: list[Any]) -> list[Any]:
    return [None if value is None else walk(value) for value in values]


def _walk_struct(walks: Mapping[str, Walk], value: dict[str, Any]) -> dict[str, Any]:
    return {name: inner if inner is None or name not in walks else walks[name](inner) for name, inner in value.items()}


def _walk_map(walk_key: Walk | None, walk: Walk | None, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    return {
        str(key if walk_key is None else walk_key(key)): value if value is None or walk is None else walk(value)
        for key, value in pairs
    }


def _duration_text(unit_ns: int, count: int) -> str:
    """Return a duration as ISO 8601 text."""
    days, ns = divmod(abs(count) * unit_ns, _DAY_NS)
    seconds, fraction = divmod(ns, 10**9)
    digits = f".{fraction:09d}".rstrip("0").rstrip(".")
    return f"{'-' if count < 0 else ''}P{days}DT{seconds}{digits}S"

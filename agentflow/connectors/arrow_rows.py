"""Rows of Arrow batches as values of records: one msgpack map per row.

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

A batch is converted column by column, so a row of a few columns takes about half a microsecond.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec

from agentflow.connectors.row_values import RowEncoder
from agentflow.errors import NotConfigured

_EMPTY = msgspec.msgpack.encode({})
_UNITS_NS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_DAY_NS = 86_400 * 10**9
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
        self._columns = [_Column(kind) for kind in schema.types]

    def pack(self, batch: Any) -> list[bytes]:  # noqa: ANN401 (a `pyarrow.RecordBatch`)
        """Return one value per row."""
        if not batch.num_columns:
            return [_EMPTY] * batch.num_rows
        return self._encoder.encode(
            [column.values(array) for column, array in zip(self._columns, batch.columns, strict=True)]
        )


class _Column:
    """How arrays of one type become values: first casts within Arrow, then Python for what Arrow cannot do."""

    def __init__(self, kind: Any) -> None:  # noqa: ANN401 (a `pyarrow.DataType`)
        pa = arrow()
        self._is_run_end_encoded = pa.types.is_run_end_encoded(kind)
        decoded = kind.value_type if self._is_run_end_encoded else kind
        in_utc = _with_leaves(decoded, _leaf_in_utc)
        plain = _with_leaves(in_utc, _plain_leaf)
        self._casts = [new for new, old in ((in_utc, decoded), (plain, in_utc)) if new != old]
        self._walk = _walk(in_utc)

    def values(self, array: Any) -> list[Any]:  # noqa: ANN401 (a `pyarrow.Array`)
        if self._is_run_end_encoded:
            import pyarrow.compute as pc

            array = pc.run_end_decode(array)
        for kind in self._casts:
            array = array.cast(kind)
        values: list[Any] = array.to_pylist()
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

"""Values of memory as JSON from which they come back as they were.

    bytes                      {"$bytes": "<base64>"}
    NaN, infinities            {"$float": "nan"}, "inf", "-inf"
    text that is not Unicode   {"$text": "<base64 of its UTF-8, surrogates included>"}
    a mark of `new_object`     {"$object": true}
    a field name with $        another $ before it

Everything else is as in JSON: 1 and 1.0 stay different.
"""

from __future__ import annotations

import base64
import math
from typing import Any, Final

import msgspec

from agentflow.api.memory_codec import decode_value, is_object_mark

OBJECT: Final = {"$object": True}
_ESCAPE = "$"
_KINDS: dict[type, str] = {
    type(None): "null", bool: "bool", int: "int", float: "float", str: "str", bytes: "bytes", list: "list", dict: "dict",
}  # fmt: skip


def typed(value: object) -> Any:  # noqa: ANN401 (what JSON can carry)
    """Return a value as JSON's own types."""
    kind = type(value)
    if kind is str:
        return _typed_text(value)  # type: ignore[arg-type]
    if kind is dict:
        return {
            f"{_ESCAPE}{name}" if name.startswith(_ESCAPE) else name: typed(inner)
            for name, inner in value.items()  # type: ignore[attr-defined]
        }
    if kind is list:
        return [typed(inner) for inner in value]  # type: ignore[attr-defined]
    if kind is bytes:
        return {"$bytes": base64.b64encode(value).decode()}  # type: ignore[arg-type]
    if kind is float and not math.isfinite(value):  # type: ignore[arg-type]
        return {"$float": repr(value)}
    return value


def _typed_text(value: str) -> Any:  # noqa: ANN401 (what JSON can carry)
    try:
        value.encode()
    except UnicodeEncodeError:
        return {"$text": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()}
    return value


def untyped(value: Any) -> Any:  # noqa: ANN401 (what JSON carries)
    """Return what `typed` was given; the mark of an object is a dict that says so.

    Raises:
        ValueError: It was not made by `typed`.
    """
    if isinstance(value, list):
        return [untyped(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((name, inner),) = value.items()
        match name:
            case "$bytes":
                return base64.b64decode(inner, validate=True)
            case "$float":
                return float(inner)
            case "$text":
                return base64.b64decode(inner, validate=True).decode("utf-8", "surrogatepass")
            case "$object":
                return dict(OBJECT)
    return {_unescaped(name): untyped(inner) for name, inner in value.items()}


def _unescaped(name: str) -> str:
    if name.startswith(_ESCAPE) and not name.startswith(_ESCAPE * 2):
        msg = f"a field named {name!r} means nothing here"
        raise ValueError(msg)
    return name[1:] if name.startswith(_ESCAPE) else name


def stored_as_json(stored: bytes) -> Any:  # noqa: ANN401 (what JSON can carry)
    """Return a stored memory value as JSON's own types."""
    return dict(OBJECT) if is_object_mark(stored) else typed(decode_value(stored))


def kind_of(stored: bytes) -> str:
    """Return the type of a stored memory value: null, bool, int, float, str, bytes, list, dict, object."""
    return "object" if is_object_mark(stored) else _KINDS[type(decode_value(stored))]


def json_text(value: Any) -> str:  # noqa: ANN401 (what JSON can carry)
    """Return JSON on one line."""
    return msgspec.json.encode(value).decode()

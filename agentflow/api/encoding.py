"""Encoding of users' values: plain values, dataclasses, msgspec Structs and pydantic models."""

from __future__ import annotations

from collections.abc import Callable

import msgspec


def _plain(value: object) -> object:
    """Return what msgspec can encode of a value that it does not know; called by msgspec."""
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    msg = f"{type(value).__qualname__} cannot be encoded; use plain values, dataclasses, msgspec Structs or pydantic models"
    raise TypeError(msg)


encode_json: Callable[[object], bytes] = msgspec.json.Encoder(enc_hook=_plain).encode
"""Encode a value for the outside. Raises TypeError with the fix."""

encode_msgpack: Callable[[object], bytes] = msgspec.msgpack.Encoder(enc_hook=_plain).encode
"""Encode a value for the inside: events, and outputs for the next operator. Raises TypeError with the fix."""

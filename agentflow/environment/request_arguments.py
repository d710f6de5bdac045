"""What callers of an engine give: all that would be in the way later is refused here, as a TypeError, before anything is durable."""

from __future__ import annotations

from collections.abc import Mapping

from agentflow.api.encoding import NOT_ENCODABLE, encode_msgpack

Headers = Mapping[str, str | bytes] | Mapping[bytes, str | bytes]


def encoded_value(value: object) -> bytes:
    """Return an input as it is kept."""
    try:
        return encode_msgpack(value)
    except NOT_ENCODABLE as error:
        msg = f"the input cannot be encoded: {error}"
        raise TypeError(msg) from error


def encoded_headers(headers: Headers) -> tuple[tuple[str, bytes], ...]:
    """Return headers as a record has them."""
    if not isinstance(headers, Mapping):
        msg = f"headers are a mapping of names to texts, not {type(headers).__name__}"
        raise TypeError(msg)
    return tuple(_header(name, value) for name, value in headers.items())


def _header(name: object, value: object) -> tuple[str, bytes]:
    if isinstance(name, bytes):  # as an ASGI server has them
        name = name.decode("latin-1")
    if not isinstance(name, str) or not isinstance(value, str | bytes):
        msg = f"header {name!r}: a name is a text, and so is a value or bytes, not {type(value).__name__}"
        raise TypeError(msg)
    try:
        name.encode()
        return name, value if isinstance(value, bytes) else value.encode()
    except UnicodeEncodeError as error:
        msg = f"header {name!r} cannot be encoded: {error}"
        raise TypeError(msg) from error

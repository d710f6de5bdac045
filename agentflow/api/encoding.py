"""Encoding of users' values: plain values, dataclasses, msgspec Structs and pydantic models."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from types import TracebackType

import msgspec


def plain_of(value: object) -> object:
    """Return what msgspec can encode of a value that it does not know; called by msgspec."""
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")
    msg = f"{type(value).__qualname__} cannot be encoded; use plain values, dataclasses, msgspec Structs or pydantic models"
    raise TypeError(msg)


encode_json: Callable[[object], bytes] = msgspec.json.Encoder(enc_hook=plain_of).encode
"""Encode a value for the outside. Raises TypeError with the fix."""

encode_msgpack: Callable[[object], bytes] = msgspec.msgpack.Encoder(enc_hook=plain_of).encode
"""Encode a value for the inside: events, and outputs for the next operator. Raises TypeError with the fix."""


NOT_ENCODABLE = (ValueError, OverflowError, RecursionError)
"""What both raise beside TypeError: of half characters, integers of more than 64 bits, deep nesting."""


def check_text(text: str, what: str) -> None:
    """Refuse a text that no encoding has: it holds half a character (a lone surrogate), as the cut answer of a model may.

    Raises:
        ValueError: It does; the text names ``what``.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        fix = "text.encode(errors='replace').decode() makes text of it"
        msg = f"{what}: {text[:80]!r} holds half a character and cannot be encoded; {fix}"
        raise ValueError(msg) from None


def text_of(error: BaseException) -> str:
    """Return the text of a user's error, whatever its class makes of it, as text that can be encoded."""
    try:
        text = str(error)
    except Exception as another:  # noqa: BLE001 (user code)
        text = f"its text cannot be had ({type(another).__name__})"
    return _encodable(text)


def traceback_of(error: BaseException, frames: TracebackType | None) -> str:
    """Return a user's traceback from some frame on, as text that can be encoded."""
    return _encodable("".join(traceback.format_exception(type(error), error, frames)))


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()

"""Encoding of users' values: plain values, dataclasses, msgspec Structs and pydantic models."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec

from agentflow.errors import AgentflowError

_LIBRARY = Path(traceback.__file__).parent
_NOT_USERS = (
    f"{Path(__file__).absolute().parent.parent}{os.sep}",
    "<frozen ",
    *(f"{_LIBRARY / part}{os.sep}" for part in ("asyncio", "concurrent", "importlib")),
    str(_LIBRARY / "threading.py"),
)
_FRAMES_MAX = 20  # from either end


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


def user_traceback(error: BaseException) -> str:
    """Return the traceback of an error with the frames of the user's own code, as text that can be encoded; empty: it has none.

    What is left out: this package, asyncio, threads and the import machinery. An error of ours says what to do in its text, which
    stands beside this wherever it is shown: only where it was met is added, not what led to it inside.
    """
    found = traceback.TracebackException.from_exception(error, lookup_lines=False, compact=True)
    _keep_user_frames(found)
    if not found.stack:
        return ""
    if isinstance(error, AgentflowError):
        lines = ["Traceback (most recent call last):\n", *found.stack.format()]
        lines += [f"{note}\n" for note in getattr(error, "__notes__", ())]
    else:
        lines = list(found.format())
    return _encodable("".join(lines))


def _keep_user_frames(found: traceback.TracebackException) -> None:
    """Cut the stacks of an error, and of the errors behind it, to the user's frames."""
    seen = set()
    waiting = [found]
    while waiting:
        one = waiting.pop()
        seen.add(id(one))
        users = [frame for frame in one.stack if not frame.filename.startswith(_NOT_USERS)]
        del users[_FRAMES_MAX:-_FRAMES_MAX]
        one.stack = traceback.StackSummary.from_list(users)
        near = [one.__cause__, one.__context__, *(one.exceptions or ())]
        waiting += [other for other in near if other is not None and id(other) not in seen]


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()

"""Encoding of users' values: plain values, dataclasses, msgspec Structs and pydantic models."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

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

DEPTH_MAX: Final = 100
"""Levels of nesting that made-up values may have: how many can be encoded depends on how deep the caller's stack is."""
_TOO_DEEP: Final = "it is nested too deeply"


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


def check_values(value: Any, depth_max: int = DEPTH_MAX) -> None:  # noqa: ANN401 (plain values)
    """Refuse plain values that do not come back from an encoding as they are, as a model may make them up.

    Raises:
        ValueError: They hold an integer of more than 64 bits, a number that is none, or half a character, or are nested too deeply.
    """
    if isinstance(value, str):
        check_text(value, "a text")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise ValueError("it holds an integer of more than 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"it holds {value}, which is no number to JSON")
    elif isinstance(value, (dict, list, tuple)):
        if not depth_max:
            raise ValueError(_TOO_DEEP)
        for inner in (*value, *value.values()) if isinstance(value, dict) else value:
            check_values(inner, depth_max - 1)


def encodable(value: Any, depth_max: int = DEPTH_MAX) -> Any:  # noqa: ANN401 (plain values)
    """Return plain values with texts in the place of what no encoding has; bytes and others stay as they are."""
    if isinstance(value, str):
        return encodable_text(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return hex(value)  # decimal digits have a limit
    if isinstance(value, (dict, list, tuple)) and not depth_max:
        return f"({_TOO_DEEP})"
    if isinstance(value, dict):
        return {
            name if isinstance(name, tuple) else encodable(name): encodable(inner, depth_max - 1)
            for name, inner in value.items()
        }
    return [encodable(inner, depth_max - 1) for inner in value] if isinstance(value, (list, tuple)) else value


def text_of(error: BaseException) -> str:
    """Return the text of a user's error, whatever its class makes of it, as text that can be encoded."""
    try:
        text = str(error)
    except Exception as another:  # noqa: BLE001 (user code)
        text = f"its text cannot be had ({type(another).__name__})"
    return encodable_text(text)


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
    return encodable_text("".join(lines))


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


def encodable_text(text: str) -> str:
    """Return a text as every encoding has it: halves that stand together are one character, others are written out."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        return whole.encode(errors="backslashreplace").decode()
    return text

"""How a memory value is stored: one tag byte, a TTL stamp where there is a TTL, then msgpack.

    0x00 msgpack                  a value without a stamp
    0x01 stamp(8, big endian) msgpack   a value with the epoch milliseconds of its last use
    0x02 / 0x03 stamp(8)          an empty object made by `new_object`, without and with a stamp

The tag is the format version: another layout gets another tag, and an unknown tag is an error, never a guess.
"""

from __future__ import annotations

from typing import Final

import msgspec

from agentflow.api.encoding import check_text

VALUE: Final = 0x00
STAMPED_VALUE: Final = 0x01
OBJECT: Final = 0x02
STAMPED_OBJECT: Final = 0x03

_STAMP_END = 9
_SMALL = 1024
_PLAIN = b"\x00"
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
_SCALARS = frozenset({bool, float, bytes, type(None)})

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode

MemoryValue = None | bool | int | float | str | bytes | list["MemoryValue"] | dict[str, "MemoryValue"]


def check_value(value: object, path: str) -> None:
    """Raise TypeError unless ``value`` can be stored; the text names the path inside the value and the fix."""
    kind = type(value)
    if kind is str:
        if not value.isascii():  # type: ignore[attr-defined]
            check_text(value, f"memory path '{path}'")  # type: ignore[arg-type]
        return
    if kind in _SCALARS:
        return
    if kind is int:
        if not _INT_MIN <= value <= _INT_MAX:  # type: ignore[operator]
            msg = f"memory path '{path}': {value} does not fit into 64 bits; store it as str"
            raise TypeError(msg)
    elif kind is list:
        for index, item in enumerate(value):  # type: ignore[arg-type, var-annotated]
            check_value(item, f"{path}[{index}]")
    elif kind is dict:
        for name, item in value.items():  # type: ignore[attr-defined]
            if type(name) is not str:
                msg = f"memory path '{path}': dict key {name!r} is {type(name).__name__}, not str; use str(key)"
                raise TypeError(msg)
            if not name.isascii():
                check_text(name, f"memory path '{path}': a key of a dict")
            check_value(item, f"{path}[{name!r}]")
    else:
        msg = (
            f"memory path '{path}': {kind.__qualname__} cannot be stored; use None, bool, int, float, str, bytes, list "
            f"or dict with str keys{_fix_for(value)}"
        )
        raise TypeError(msg)


def _fix_for(value: object) -> str:
    if isinstance(value, (tuple, set, frozenset)):
        return f" (list(…) makes one of a {type(value).__name__})"
    if isinstance(value, msgspec.Struct):
        return " (msgspec.to_builtins(…) makes a dict of a Struct)"
    if hasattr(value, "model_dump"):
        return " (.model_dump(mode='json') makes a dict of a model)"
    if hasattr(value, "__dataclass_fields__"):
        return " (dataclasses.asdict(…) makes a dict of a dataclass)"
    if isinstance(value, (bool, int, float, str, bytes, list, dict)):
        return f" (convert the {type(value).__name__} to the plain type that it derives from)"
    return ""


def encode_value(value: object, stamp_ms: int | None) -> bytes:
    """Encode a checked value; ``stamp_ms`` is the TTL stamp, None where the job has no TTL."""
    if stamp_ms is None:
        return _PLAIN + _encode(value)
    return b"\x01" + stamp_ms.to_bytes(8, "big") + _encode(value)


def encode_object(stamp_ms: int | None) -> bytes:
    """Encode the mark of an empty object."""
    return b"\x02" if stamp_ms is None else b"\x03" + stamp_ms.to_bytes(8, "big")


def is_object(stored: bytes) -> bool:
    """Whether a stored value is the mark of an object."""
    return stored[0] >= OBJECT


def is_object_mark(stored: bytes) -> bool:
    """As `is_object`, for bytes that may be damaged: another tag is none."""
    return stored[0] in (OBJECT, STAMPED_OBJECT)


def decode_value(stored: bytes) -> object:
    """Decode a stored value into a fresh object.

    Raises:
        ValueError: The tag is unknown, or the mark of an object.
    """
    tag = stored[0]
    if tag == VALUE:
        # a small slice is faster than a view, a large one would copy
        return _decode(stored[1:] if len(stored) < _SMALL else memoryview(stored)[1:])
    if tag == STAMPED_VALUE:
        return _decode(memoryview(stored)[_STAMP_END:])
    msg = f"memory value with unknown tag {tag:#04x}"
    raise ValueError(msg)


def stamp_of(stored: bytes) -> int | None:
    """Return the TTL stamp of a stored value in epoch milliseconds; None when it has none."""
    if stored[:1] in (b"\x01", b"\x03"):
        return int.from_bytes(stored[1:_STAMP_END], "big")
    return None


def restamp(stored: bytes, stamp_ms: int) -> bytes:
    """Return the stored value with another TTL stamp; the value itself is not decoded."""
    tag = stored[0]
    body = stored[_STAMP_END:] if tag in (STAMPED_VALUE, STAMPED_OBJECT) else stored[1:]
    return bytes((tag | 1,)) + stamp_ms.to_bytes(8, "big") + body

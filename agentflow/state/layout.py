"""How keyed state is laid out in keys and values. Everything here is a stored format.

**Storage key** of a row, in the column family of its table:

    operator (2 bytes, big endian) · key, each 0x00 as 0x00 0xFF · 0x00 0x00 · name (UTF-8)

The byte order of storage keys is exactly the order (operator, key, name), all compared as bytes: the terminator 00 00 sorts
before an escaped 00 FF and before every other byte, so a key sorts before all keys that it is a prefix of. A range of one
key never holds a row of another. A length before the key would be shorter by a byte and would sort by length first.

**Stored value**: the bytes that the core gave, verbatim, with one exception. First bytes 0xF0 to 0xFF belong to this layout:

    0xF0 value           a value that itself begins with 0xF0 … 0xFF
    0xF1 LargeValue      the value is in parts elsewhere (see `rocksdb_large`)

Other tags are for later layouts; meeting one is an error, never a guess.

**Sealed row**: rows that carry the protocol (chunks of a prepared delta, the decision, the checkpoint number) are
``tag 0x01 · CRC-32 of the body (4 bytes, big endian) · body (msgpack)``.
"""

from __future__ import annotations

import zlib
from typing import Final

import msgspec

LAYOUT_TAG_MIN: Final = 0xF0
ESCAPED: Final = b"\xf0"
LARGE: Final = b"\xf1"

LARGE_VALUE_BYTES: Final = 512 * 1024
"""Values above this are split into parts of this size."""

_HEAD_BYTES = 16  # beginning of a large value that its marker repeats: enough for tag and TTL stamp
_SEALED = b"\x01"
_SEALED_BODY = 5


class LayoutError(ValueError):
    """Stored bytes are not what this layout writes; the caller knows the place and raises `StateCorrupted`."""


class LargeValue(msgspec.Struct, frozen=True, array_like=True):
    """What stands in for a large value. (checkpoint, sequence) is the id of its parts: never used twice.

    Attributes:
        checkpoint: Checkpoint whose delta brought the value.
        sequence: Place among the large values of that delta.
        parts: Number of parts.
        length: Bytes of the whole value.
        checksum: CRC-32 of the whole value.
        head: First bytes of the value, so that a TTL stamp is read without the parts.
    """

    checkpoint: int
    sequence: int
    parts: int
    length: int
    checksum: int
    head: bytes

    @property
    def id(self) -> tuple[int, int]:
        """What the keys of its parts begin with."""
        return self.checkpoint, self.sequence


encode = msgspec.msgpack.Encoder().encode
_decode_large = msgspec.msgpack.Decoder(LargeValue).decode


def key_prefix(operator: int, key: bytes) -> bytes:
    """Return what the storage keys of all rows of ``key`` begin with, and of no other row."""
    return operator.to_bytes(2, "big") + key.replace(b"\x00", b"\x00\xff") + b"\x00\x00"


def encode_name(name: str) -> bytes:
    """Return the UTF-8 bytes of a name.

    A file name that is not UTF-8 comes from the operating system with lone surrogates, and is part of a run id; such a
    name must be storable too.
    """
    try:
        return name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogatepass")


def storage_key(operator: int, key: bytes, name: str) -> bytes:
    """Return the storage key of a row."""
    # Spelled out instead of calling `key_prefix`: this is on the path of every memory read.
    try:
        return b"".join((operator.to_bytes(2, "big"), key.replace(b"\x00", b"\x00\xff"), b"\x00\x00", name.encode()))
    except UnicodeEncodeError:
        return key_prefix(operator, key) + encode_name(name)


def split_storage_key(stored: bytes) -> tuple[int, bytes, str]:
    """Return (operator, key, name).

    Raises:
        LayoutError: This is no storage key.
    """
    end = stored.find(b"\x00\x00", 2)
    if end < 0:
        msg = f"a row key without terminator: {stored[:64].hex()}"
        raise LayoutError(msg)
    try:
        name = stored[end + 2 :].decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        msg = f"a row name that is not UTF-8: {stored[:64].hex()}"
        raise LayoutError(msg) from error
    return int.from_bytes(stored[:2], "big"), stored[2:end].replace(b"\x00\xff", b"\x00"), name


def end_of_prefix(prefix: bytes) -> bytes | None:
    """Return the first key behind all keys that begin with ``prefix``; None when there is no such key."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes((kept[-1] + 1,)) if kept else None


def large_marker(large: LargeValue) -> bytes:
    """Return the stored value that stands in for a large one."""
    return LARGE + encode(large)


def large_value(value: bytes, checkpoint: int, sequence: int) -> LargeValue:
    """Describe a value that is about to be split; its checksum is still 0."""
    parts = -(-len(value) // LARGE_VALUE_BYTES)
    return LargeValue(checkpoint, sequence, parts, len(value), 0, value[:_HEAD_BYTES])


def read_large_marker(stored: bytes) -> LargeValue | None:
    """Return the large value that ``stored`` stands for; None when it is a value itself.

    Raises:
        LayoutError: The marker is damaged.
    """
    if stored[:1] != LARGE:
        return None
    try:
        return _decode_large(memoryview(stored)[1:])
    except msgspec.DecodeError as error:
        msg = "the marker of a large value cannot be decoded"
        raise LayoutError(msg) from error


def unescape(stored: bytes) -> bytes:
    """Return the value of a stored value that begins with a tag of this layout and is not large.

    Raises:
        LayoutError: The tag is unknown.
    """
    if stored[:1] != ESCAPED:
        msg = f"a stored value with unknown tag {stored[0]:#04x}"
        raise LayoutError(msg)
    return stored[1:]


def seal(body: bytes) -> bytes:
    """Return ``body`` as a sealed row."""
    return _SEALED + zlib.crc32(body).to_bytes(4, "big") + body


def unseal(row: bytes) -> memoryview:
    """Return the body of a sealed row.

    Raises:
        LayoutError: Unknown tag, or the checksum is wrong.
    """
    if row[:1] != _SEALED:
        msg = f"a row with unknown tag {row[:1].hex() or '(empty)'}"
        raise LayoutError(msg)
    body = memoryview(row)[_SEALED_BODY:]
    if zlib.crc32(body) != int.from_bytes(row[1:_SEALED_BODY], "big"):
        msg = "checksum mismatch"
        raise LayoutError(msg)
    return body

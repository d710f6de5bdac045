"""Spans, and how OTLP writes them: protobuf by hand, because building the messages takes five times as long.

Field numbers are those of `opentelemetry/proto/trace/v1/trace.proto`; the tests read what is written with the official classes.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

INTERNAL, CLIENT, CONSUMER = 1, 3, 5
UNSET, OK, ERROR = 0, 1, 2
_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200
_times = struct.Struct("<cQcQ").pack  # two fields of 64 bits: tag, value
_fixed64 = struct.Struct("<Q").pack
_double = struct.Struct("<d").pack
_flags = struct.Struct("<2sI").pack
Attributes = Mapping[str, Any]


class SpanLink(msgspec.Struct, frozen=True, gc=False):
    """A link to another span."""

    trace_id: int
    span_id: int
    attributes: Attributes


class SpanEvent(msgspec.Struct, frozen=True, gc=False):
    """Something that happened in a span, at epoch nanoseconds."""

    name: str
    at_ns: int
    attributes: Attributes


class EndedSpan(msgspec.Struct, frozen=True, gc=False):
    """One span that is over.

    Attributes:
        name: Its name.
        trace_id: 128 bits.
        span_id: 64 bits.
        parent_id: Of its parent; 0: it begins its trace.
        began_ns: When it began, epoch nanoseconds.
        ended_ns: When it ended.
        attributes: Texts, numbers, truth values, bytes, and sequences of them.
        kind: INTERNAL, CLIENT or CONSUMER.
        is_remote: Whether its parent is another process's.
        links: To other spans.
        events: What happened in it.
        status: UNSET, OK or ERROR.
        message: What the error says.
    """

    name: str
    trace_id: int
    span_id: int
    parent_id: int
    began_ns: int
    ended_ns: int
    attributes: Attributes
    kind: int = INTERNAL
    is_remote: bool = False
    links: Sequence[SpanLink] = ()
    events: Sequence[SpanEvent] = ()
    status: int = UNSET
    message: str = ""


def encode_request(resource: Attributes, scope: str, spans: Iterable[EndedSpan]) -> bytes:
    """Return an ``ExportTraceServiceRequest``."""
    body = b"".join([_field(b"\x12", _span(span)) for span in spans])
    scoped = _field(b"\x0a", _field(b"\x0a", scope.encode())) + body
    return _field(b"\x0a", _field(b"\x0a", _attributes(b"\x0a", resource)) + _field(b"\x12", scoped))


def _span(span: EndedSpan) -> bytes:
    parts = [b"\x0a\x10", span.trace_id.to_bytes(16, "big"), b"\x12\x08", span.span_id.to_bytes(8, "big")]
    if span.parent_id:
        parts += (b"\x22\x08", span.parent_id.to_bytes(8, "big"))
    parts += (
        _name(span.name),
        b"\x30",
        bytes((span.kind,)),
        _times(b"\x39", span.began_ns, b"\x41", span.ended_ns),
        _attributes(b"\x4a", span.attributes),
    )
    for event in span.events:
        parts.append(
            _field(
                b"\x5a",
                b"\x09" + _fixed64(event.at_ns) + _text(b"\x12", event.name) + _attributes(b"\x1a", event.attributes),
            )
        )
    for link in span.links:
        ids = b"\x0a\x10" + link.trace_id.to_bytes(16, "big") + b"\x12\x08" + link.span_id.to_bytes(8, "big")
        parts.append(_field(b"\x6a", ids + _attributes(b"\x22", link.attributes)))
    if span.status:
        message = _text(b"\x12", span.message) if span.message else b""
        parts.append(_field(b"\x7a", message + b"\x18" + bytes((span.status,))))
    parts.append(_flags(b"\x85\x01", _HAS_IS_REMOTE | (_IS_REMOTE if span.is_remote else 0)))
    return b"".join(parts)


def _attributes(tag: bytes, attributes: Attributes) -> bytes:
    if not attributes:
        return b""
    parts: list[bytes] = []
    for key, value in attributes.items():
        encoded = _key(key) + _field(b"\x12", _value(value))
        parts += (tag, _size(len(encoded)), encoded)
    return b"".join(parts)


def _value(value: Any) -> bytes:  # noqa: ANN401 (whatever an attribute may be)
    kind = type(value)
    if kind is str:
        return _text(b"\x0a", value)
    if kind is bool:
        return b"\x10\x01" if value else b"\x10\x00"
    if kind is int and -(2**63) <= value < 2**63:
        return b"\x18" + _size(value & (2**64 - 1))
    if kind is float:
        return b"\x21" + _double(value)
    if kind is bytes:
        return _field(b"\x3a", value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _field(b"\x2a", b"".join([_field(b"\x0a", _value(one)) for one in value]))
    return _text(b"\x0a", str(value))


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + _size(len(content)) + content


def _text(tag: bytes, text: str) -> bytes:
    return _field(tag, text.encode("utf-8", "backslashreplace"))


@functools.lru_cache(maxsize=1024)
def _key(key: str) -> bytes:
    return _text(b"\x0a", key)


@functools.lru_cache(maxsize=1024)
def _name(name: str) -> bytes:
    return _text(b"\x2a", name)


def _size(number: int) -> bytes:
    """Return a varint."""
    if number < 0x80:
        return _SMALL[number]
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_SMALL = [bytes((number,)) for number in range(0x80)]

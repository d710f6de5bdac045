"""Encoding and decoding at the operator's edge: values, keys, events."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from agentflow.api.codecs import JSON, MSGPACK, Codec
from agentflow.api.encoding import NOT_ENCODABLE, encode_json, encode_msgpack
from agentflow.core.records import Record
from agentflow.errors import DecodeError, MissingKey
from agentflow.plan.payloads import is_pydantic

RECORD_KEY = "record.key"
"""`key-by`: the source's own key, as text."""

KeyBy = str | Callable[[Any], object]
_SCALAR_KEYS = (str, int, float, bytes)

encode_key = msgspec.msgpack.Encoder().encode


def is_key(value: object) -> bool:
    """Whether a value can be a key: a str, int, float, bool or bytes."""
    return isinstance(value, _SCALAR_KEYS) and not (isinstance(value, float) and math.isnan(value))


def encoded_key(key: object) -> bytes:
    """Return the canonical encoding of a key.

    Raises:
        TypeError: It cannot be one.
    """
    if not is_key(key):
        msg = f"a key is a str, int, float, bool or bytes, not {key!r}"
        raise TypeError(msg)
    try:
        return encode_key(key)
    except NOT_ENCODABLE as error:
        msg = f"this cannot be a key: {error}"
        raise TypeError(msg) from error


def output_encoder(codec: Codec) -> Callable[[object], bytes]:
    """Return the encoder of a codec; for the built-in ones without a call between."""
    return {JSON.name: encode_json, MSGPACK.name: encode_msgpack}.get(codec.name, codec.encode)


def input_decoder(codec: Codec, input_type: Any = None) -> Callable[[bytes], Any]:  # noqa: ANN401 (a type)
    """Return a decoder of record values into ``input_type`` (None: plain values); it raises msgspec.DecodeError."""
    if is_pydantic(input_type):
        plain = input_decoder(codec)
        return lambda value: input_type.model_validate(plain(value))
    kind = Any if input_type is None else input_type
    if codec is JSON:
        return msgspec.json.Decoder(kind).decode
    if codec is MSGPACK:
        return msgspec.msgpack.Decoder(kind).decode

    def decode(value: bytes) -> Any:  # noqa: ANN401 (any value)
        try:
            return codec.decode(value, kind)
        except msgspec.DecodeError:
            raise
        except Exception as error:
            raise msgspec.DecodeError(f"{type(error).__name__}: {error}") from error

    return decode


class KeyReader:
    """Reads the key of a record's value.

    Args:
        key_by: A field, with dots for nested ones, or a function of the decoded value.
        codec: How values are encoded.
        rekeyed_source: Label of a source whose record keys are canonical encodings already; None: there is none.
    """

    def __init__(self, key_by: KeyBy, codec: Codec, rekeyed_source: str | None = None) -> None:
        self._key_by = key_by
        self.rekeyed_source = rekeyed_source
        self._decode = input_decoder(codec)
        self._parts = key_by.split(".") if isinstance(key_by, str) else []
        self._is_record_key = key_by == RECORD_KEY
        is_partial = len(self._parts) == 1 and codec in (JSON, MSGPACK)
        self._decode_field = self._field_decoder(codec) if is_partial else None
        self._expected = f"a value in the codec '{codec.name}'" if codec is not JSON else "one JSON value"

    def _field_decoder(self, codec: Codec) -> Callable[[bytes], Any]:
        """Return a decoder that looks at the key's field only: half the time of decoding everything."""
        field = msgspec.defstruct("_Keyed", [("key", Any, msgspec.UNSET)], rename={"key": self._parts[0]})
        return input_decoder(codec, field)

    def read(self, record: Record) -> bytes:
        """Return the canonical encoding of the record's key.

        Raises:
            DecodeError: The value cannot be decoded.
            MissingKey: It has no such field, or the key is not a scalar.
        """
        if record.source == self.rekeyed_source and record.key is not None:
            return record.key
        try:
            if self._is_record_key:
                if record.key is not None:
                    return encode_key(record.key.decode())
                key: Any = msgspec.UNSET
            elif self._decode_field is not None:
                key = msgspec.UNSET if record.value is None else self._decode_field(record.value).key
            else:
                key = None if record.value is None else self._decode(record.value)
                if self._parts:
                    for part in self._parts:
                        key = key.get(part, msgspec.UNSET) if isinstance(key, dict) else msgspec.UNSET
                else:
                    key = self._key_by(key)  # type: ignore[operator]
        except msgspec.ValidationError:
            key = msgspec.UNSET  # valid, but not an object
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DecodeError(
                f"the value cannot be decoded: {error}",
                where={"record": record.run_id},
                expected=self._expected,
                fix="correct the record, or configure a dead-letter sink",
            ) from error
        if type(key) is not str and not is_key(key):
            kind = None if key is msgspec.UNSET else type(key).__name__
            if self._parts:
                what = f"the record has {'no field' if kind is None else f'a {kind} in'} '{self._key_by}'"
            else:
                what = (
                    "key-by finds no key in the record"
                    if kind is None
                    else f"key-by returned a {kind}, which is no key"
                )
            raise MissingKey(
                what,
                where={"record": record.run_id},
                expected="a str, int, float, bool or bytes key",
                fix="correct key-by or the record, or configure a dead-letter sink",
            )
        return encode_key(key)


class TimestampReader:
    """Reads the event time of a record's value: epoch milliseconds, or ISO 8601 text."""

    def __init__(self, field: str, codec: Codec) -> None:
        self._field = field
        self._decode = input_decoder(codec)

    def read(self, record: Record) -> int:
        """Return epoch milliseconds.

        Raises:
            DecodeError: There is no such field, or it is no time.
        """
        value: Any = None
        try:
            value = None if record.value is None else self._decode(record.value)
            for part in self._field.split("."):
                value = value[part]
            if isinstance(value, str):
                moment = datetime.fromisoformat(value)
                if moment.tzinfo is None:
                    msg = "it has no time zone"
                    raise ValueError(msg)
                return round(moment.timestamp() * 1000)
            return int(value)
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise DecodeError(
                f"field '{self._field}' holds no event time: {error!r}",
                where={"record": record.run_id},
                expected="epoch milliseconds, or ISO 8601 text with a time zone (event-time.field)",
                fix="correct the record, or configure a dead-letter sink",
            ) from error

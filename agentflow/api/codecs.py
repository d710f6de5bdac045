"""How values look outside: the codecs of sources and sinks."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from agentflow.api.encoding import encode_json, encode_msgpack


class Codec(Protocol):
    """Encoding of record values. One's own is named in a job file by ``module:name``: an instance, or a class without arguments.

    Both methods have to be pure: a run that is recovered decodes its input again and has to see the same.
    """

    name: str
    """For messages."""

    def decode(self, value: bytes, type: Any) -> Any:  # noqa: A002, ANN401 (a type; any value)
        """Return the value; ``type`` is what the action declares with ``input=``, `typing.Any` where it declares nothing.

        Any exception means that the record cannot be decoded: it goes to the dead letters without a retry.
        """
        ...

    def encode(self, value: Any) -> bytes:  # noqa: ANN401 (any value)
        """Return the bytes of an output. An exception fails the action that sends it."""
        ...


class JsonCodec:
    """JSON by msgspec, the default."""

    name = "json"

    def decode(self, value: bytes, type: Any) -> Any:  # noqa: A002, ANN401, D102
        return msgspec.json.decode(value, type=type)

    def encode(self, value: Any) -> bytes:  # noqa: ANN401, D102
        return encode_json(value)


class MsgpackCodec:
    """MessagePack by msgspec."""

    name = "msgpack"

    def decode(self, value: bytes, type: Any) -> Any:  # noqa: A002, ANN401, D102
        return msgspec.msgpack.decode(value, type=type)

    def encode(self, value: Any) -> bytes:  # noqa: ANN401, D102
        return encode_msgpack(value)


class StringCodec:
    """Text in UTF-8."""

    name = "string"

    def decode(self, value: bytes, type: Any) -> Any:  # noqa: A002, ANN401, D102
        return msgspec.convert(value.decode(), type)

    def encode(self, value: Any) -> bytes:  # noqa: ANN401, D102
        if not isinstance(value, str):
            msg = f"the sink takes text, not {_kind(value)}; send a str, or give it another codec (value: json)"
            raise TypeError(msg)
        return value.encode()


class BytesCodec:
    """Bytes as they are."""

    name = "bytes"

    def decode(self, value: bytes, type: Any) -> Any:  # noqa: A002, ANN401, ARG002, D102
        return value

    def encode(self, value: Any) -> bytes:  # noqa: ANN401, D102
        if not isinstance(value, bytes):
            msg = f"the sink takes bytes, not {_kind(value)}; encode it, or give it another codec (value: json)"
            raise TypeError(msg)
        return value


def _kind(value: object) -> str:
    return type(value).__name__


CODECS: dict[str, Codec] = {codec.name: codec for codec in (JsonCodec(), MsgpackCodec(), StringCodec(), BytesCodec())}
"""The built-in ones by name."""
JSON, MSGPACK = CODECS["json"], CODECS["msgpack"]

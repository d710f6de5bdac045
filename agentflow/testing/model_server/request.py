"""A request as the server saw it, in words that are the same for all providers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from agentflow.testing.model_server.script import Reply, ToolCall

if TYPE_CHECKING:
    from agentflow.testing.model_server.wire import Wire

Role = Literal["system", "user", "assistant", "tool"]


class Part(NamedTuple):
    """One part of a message.

    Attributes:
        kind: ``text``, ``image``, ``audio``, ``file``; ``other``: what this server does not know.
        base64: The bytes as they came; empty if there is a URL.
    """

    kind: str
    text: str = ""
    media_type: str = ""
    base64: str = ""
    url: str = ""


class Message(NamedTuple):
    """One message of a conversation.

    Attributes:
        role: Instructions beside the conversation come first, as ``system``; each result of a tool is a message of its own.
        text: Of all text parts.
        tool_call_id: Of a result; where the protocol has no ids: the tool's name.
    """

    role: Role
    text: str = ""
    parts: Sequence[Part] = ()
    tool_calls: Sequence[ToolCall] = ()
    tool_call_id: str = ""
    reasoning: str = ""


class Tool(NamedTuple):
    """A tool that the model may call, with the JSON schema of its arguments."""

    name: str
    description: str
    schema: Mapping[str, Any]


class _Head(msgspec.Struct):
    """The few fields that an answer needs: a load of many requests decodes no more."""

    model: str | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None


_decode_head = msgspec.json.Decoder(_Head).decode
_KEY_HEADERS = ("x-api-key", "api-key", "x-goog-api-key")


class ModelRequest:
    """One request. What is not needed for an answer is decoded when it is asked for.

    Args:
        wire: Its protocol.
        path: Its path, decoded.
        named: What the path names: ``model``, ``verb``.
        headers: As given; names in any case.
        raw: Its body.
        number: Its place among all requests, from 1.

    Attributes:
        provider: ``openai``, ``azure``, ``dashscope``, ``anthropic``, ``ollama``, ``gemini``, ``bedrock``.
        api: ``chat``, ``responses``, ``embeddings``.
        wants_usage: A stream of chat completions shall end with its usage.
        is_answered: The whole answer was written before the client went away; an error is an answer.

    Raises:
        msgspec.DecodeError: The body is no JSON object.
    """

    def __init__(
        self, wire: Wire, path: str, named: Mapping[str, str], headers: Mapping[str, str], raw: bytes, number: int
    ) -> None:
        head = _decode_head(raw)
        self.wire = wire
        self.provider = wire.provider
        self.api = wire.api
        self.path = path
        self.model = named.get("model") or head.model or ""
        self.is_stream = wire.is_stream(named.get("verb", ""), head.stream)
        self.wants_usage = bool((head.stream_options or {}).get("include_usage"))
        self.headers = headers
        self.raw = raw
        self.number = number
        self.is_answered = False

    def __repr__(self) -> str:
        return f"<{self.provider} {self.api} {self.number}: {self.model}, is_answered={self.is_answered}>"

    @cached_property
    def body(self) -> dict[str, Any]:
        """As it came."""
        decoded: dict[str, Any] = msgspec.json.decode(self.raw)
        return decoded

    @cached_property
    def messages(self) -> list[Message]:
        """The conversation; of a request for embeddings, its inputs."""
        return self.wire.messages(self.body)

    @property
    def text(self) -> str:
        """What was said last."""
        return self.messages[-1].text if self.messages else ""

    @cached_property
    def tools(self) -> list[Tool]:
        """What the model may call."""
        return self.wire.tools(self.body)

    @cached_property
    def options(self) -> dict[str, Any]:
        """``temperature``, ``top_p``, ``max_tokens``, ``stop``, ``seed``, ``tool_choice``: those that were given."""
        return self.wire.options(self.body)

    @cached_property
    def output_schema(self) -> Mapping[str, Any] | None:
        """JSON schema that the answer shall fit, if one was given."""
        return self.wire.output_schema(self.body)

    @property
    def idempotency_key(self) -> str:
        """The header ``Idempotency-Key`` or ``X-Idempotency-Key``; empty: none."""
        return self.headers.get("Idempotency-Key") or self.headers.get("X-Idempotency-Key") or ""

    @property
    def api_key(self) -> str:
        """The key that came, wherever the provider has it; of a signature, the key's id."""
        if given := next((self.headers[name] for name in _KEY_HEADERS if name in self.headers), ""):
            return given
        authorization = self.headers.get("Authorization", "")
        signed = re.search(r"Credential=([^/]+)/", authorization)
        return signed[1] if signed else authorization.removeprefix("Bearer ")

    def ids_of(self, reply: Reply) -> list[tuple[str, ToolCall]]:
        """Return the calls of a reply with their ids."""
        return [(call.id or f"call_{self.number}_{place}", call) for place, call in enumerate(reply.tool_calls)]

    def to_json(self) -> dict[str, Any]:
        """Return all of it, for a test in another process."""
        names = ("number", "provider", "api", "path", "model", "is_stream", "is_answered", "idempotency_key")
        more = {
            "headers": dict(self.headers),
            "messages": [_plain(one) for one in self.messages],
            "tools": [one._asdict() for one in self.tools],
            "options": self.options,
            "output_schema": self.output_schema,
            "body": self.body,
        }
        return {name: getattr(self, name) for name in names} | more


def _plain(message: Message) -> dict[str, Any]:
    return message._asdict() | {"parts": [part._asdict() for part in message.parts]}


def message_of(role: Role, parts: Sequence[Part], **more: Any) -> Message:  # noqa: ANN401 (the message's own fields)
    """Return a message whose text is that of its parts."""
    return Message(role, "".join(part.text for part in parts if part.kind == "text"), parts, **more)


def part_of_url(kind: str, url: str) -> Part:
    """Return a part from a URL, which may hold the bytes themselves."""
    held = re.match(r"data:([^;,]*);base64,(.*)", url, re.DOTALL)
    return Part(kind, media_type=held[1], base64=held[2]) if held else Part(kind, url=url)


def call_of(name: str, arguments: object, call_id: str = "") -> ToolCall:
    """Return a call from what a client sent back: arguments as an object, or as text that should be JSON."""
    if isinstance(arguments, dict):
        return ToolCall(name, arguments, call_id)
    try:
        return ToolCall(name, msgspec.json.decode(str(arguments), type=dict[str, Any]), call_id)
    except (msgspec.DecodeError, RecursionError):
        return ToolCall(name, str(arguments), call_id)

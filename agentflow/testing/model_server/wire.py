"""What every protocol must be able to do, and how a streamed answer is cut."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agentflow.testing.model_server.request import Message, ModelRequest, Tool
from agentflow.testing.model_server.script import HttpError, Reply

encode = msgspec.json.Encoder().encode

MESSAGES = {
    400: "The request is invalid.",
    401: "The credentials are invalid.",
    403: "The key may not use this resource.",
    404: "The model does not exist.",
    408: "The request took too long.",
    429: "Rate limit reached. Please try again later.",
    500: "The server had an error while processing your request.",
    503: "The service is temporarily unavailable.",
    504: "The model did not answer in time.",
    529: "Overloaded",
}
"""What an error says if the test has no text of its own."""


class Wire(abc.ABC):
    """One protocol: how a request is read and an answer is written."""

    stream_type = "text/event-stream"
    id_header = "x-request-id"

    def __init__(self, provider: str, api: str = "chat") -> None:
        self.provider = provider
        self.api = api

    def is_stream(self, verb: str, asked: bool | None) -> bool:  # noqa: ARG002, FBT001 (for those whose path says it)
        """Say whether the answer is a stream, by the path's verb or the body's ``stream``."""
        return bool(asked)

    @abc.abstractmethod
    def messages(self, body: Mapping[str, Any]) -> list[Message]:
        """Return the conversation."""

    @abc.abstractmethod
    def tools(self, body: Mapping[str, Any]) -> list[Tool]:
        """Return the tools that are offered."""

    @abc.abstractmethod
    def options(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options by their common names."""

    @abc.abstractmethod
    def output_schema(self, body: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the schema of the answer."""

    @abc.abstractmethod
    def whole(self, reply: Reply, request: ModelRequest) -> bytes:
        """Return the body of an answer at once."""

    @abc.abstractmethod
    def stream(self, reply: Reply, request: ModelRequest) -> list[bytes]:
        """Return the portions of a streamed answer, see `Portions`."""

    def refused_schema(self, body: Mapping[str, Any]) -> HttpError | None:  # noqa: ARG002 (for those that refuse some)
        """Return the error that this provider makes of the schema of the answer; None: it takes it."""
        return None

    def refused(self, reply: Reply) -> HttpError | None:  # noqa: ARG002 (for those that have such replies)
        """Return the error that this provider makes of a reply; None: it can be sent."""
        return None

    @abc.abstractmethod
    def error(self, failed: HttpError) -> bytes:
        """Return the body of an error."""

    def error_headers(self, failed: HttpError) -> dict[str, str]:
        """Return the headers of an error."""
        headers = {}
        if failed.retry_after_s is not None:
            headers["Retry-After"] = f"{failed.retry_after_s:g}"
        if failed.retry_after_ms is not None:
            headers["retry-after-ms"] = str(failed.retry_after_ms)
        return headers

    @abc.abstractmethod
    def context_too_long(self) -> HttpError:
        """Return what the provider says to an input that is too long."""

    @abc.abstractmethod
    def unauthorized(self, key: str) -> HttpError:
        """Return an error that shows the key."""

    def error_in_stream(self, failed: HttpError) -> bytes:
        """Return an error as a part of a stream."""
        return sse(msgspec.Raw(self.error(failed)))

    def broken(self, portion: bytes) -> bytes:
        """Return a portion that cannot be decoded: its last brace is missing."""
        return portion.rstrip(b"\n")[:-1] + b"\n\n"


class Portions:
    """Collects a streamed answer so that faults and latencies count what a reader would: pieces of content.

    Each portion ends with one piece of text, reasoning or arguments, and begins with the framing before it; the last portion is what
    ends the stream.
    """

    def __init__(self) -> None:
        self._portions: list[bytes] = []
        self._pending: list[bytes] = []

    def frame(self, *events: bytes) -> None:
        """Add what is no content."""
        self._pending += events

    def content(self, event: bytes) -> None:
        """Add a piece of content."""
        self._portions.append(b"".join([*self._pending, event]))
        self._pending = []

    def end(self) -> list[bytes]:
        """Return all portions."""
        return [*self._portions, b"".join(self._pending)]


def pieces(text: str, count: int) -> list[str]:
    """Cut a text into at most ``count`` pieces of one length; an empty text has none."""
    size = max(1, -(-len(text) // max(1, count)))
    return [text[start : start + size] for start in range(0, len(text), size)]


def sse(content: object, event: str = "") -> bytes:
    """Return one server-sent event."""
    name = b"event: %s\n" % event.encode() if event else b""
    return b"%sdata: %s\n\n" % (name, encode(content))


def chosen(source: Mapping[str, Any], **names: str) -> dict[str, Any]:
    """Return those of the fields that are there, by their common names: ``max_tokens="maxOutputTokens"``."""
    return {common: source[own] for common, own in names.items() if source.get(own) is not None}


def listed(content: object) -> Sequence[Mapping[str, Any]]:
    """Return the content of a message as parts: many protocols let a text stand for a list of one."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return content if isinstance(content, list) else []

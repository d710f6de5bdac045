"""What the laws of chat models have in common: an adapter beside a local server, a conversation, what a provider lacks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import pytest

from agentflow.api.chat_messages import ChatMessage, MessageRole, ToolCall, Usage, tool_call, tool_message
from agentflow.api.chat_models import BaseChatModelConnection, ChatDelta, ChatRequest
from agentflow.api.tools import ToolMetadata
from agentflow.testing.model_server import Answer, Fault, ModelRequest, ModelServer, Reply

NewConnection = Callable[[str], BaseChatModelConnection]
PATIENCE_S = 30.0  # for what must happen

both_ways = pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])

WEATHER = ToolMetadata(
    "get_weather",
    "Say what the weather is like.",
    {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Where."}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)
TIME = ToolMetadata("get_time", "Say what time it is.", {"type": "object", "properties": {"zone": {"type": "string"}}})


class ChatModelWorld:
    """What a suite is told of its adapter; set what differs.

    Attributes:
        credential: What the fixture must give to the connection as its key (of AWS: as the key's id).
        model: Asked for by all requests.
        shows_reasoning: The provider shows what the model thought.
        returns_reasoning: It wants it back.
        usage_fields: Which fields of `Usage` beyond input and output it reports.
        refuses: It says of an answer that it is a refusal.
        filters: It says of an answer that a filter has stopped it.
        malformed_arguments: How arguments that are no JSON object come through: ``whole``, ``streamed``. The other way they are an
            answer that may be better next time (`ModelUnavailable`).
        sends_idempotency_key: Its SDK can send the key.
        takes_images: Bytes of an image arrive.
        takes_image_urls: So does where it is.
        takes_files: Bytes of a document arrive.
        options: Options as this provider names them, which arrive as ``temperature`` 0.5 and ``max_tokens`` 77.
        reads_retry_after_ms: Its servers say ``retry-after-ms``.
    """

    credential: ClassVar[str] = "sk-secret-4f9d1c7a8b2e"
    model: ClassVar[str] = "model-1"
    shows_reasoning: ClassVar[bool] = True
    returns_reasoning: ClassVar[bool] = True
    usage_fields: ClassVar[frozenset[str]] = frozenset({"cached_tokens", "cache_write_tokens", "reasoning_tokens"})
    refuses: ClassVar[bool] = True
    filters: ClassVar[bool] = True
    malformed_arguments: ClassVar[frozenset[str]] = frozenset({"whole", "streamed"})
    sends_idempotency_key: ClassVar[bool] = True
    takes_images: ClassVar[bool] = True
    takes_image_urls: ClassVar[bool] = True
    takes_files: ClassVar[bool] = True
    options: ClassVar[dict[str, Any]] = {"temperature": 0.5, "max_tokens": 77}
    reads_retry_after_ms: ClassVar[bool] = False

    def request(self, *messages: ChatMessage | str, **fields: Any) -> ChatRequest:  # noqa: ANN401 (of ChatRequest)
        """Return a request; a text is the user's."""
        asked = [ChatMessage(content=one) if isinstance(one, str) else one for one in messages or ("hello",)]
        return ChatRequest(model=self.model, messages=asked, **fields)

    async def told(self, new_connection: NewConnection, answer: Answer, request: ChatRequest) -> ModelRequest:
        """Return what arrives of a request."""
        async with served(new_connection, answer) as (server, connection):
            await connection.complete(request)
            return server.requests[0]


@contextlib.asynccontextmanager
async def served(
    new_connection: NewConnection, answer: Answer
) -> AsyncIterator[tuple[ModelServer, BaseChatModelConnection]]:
    """Give a server and a connection to it, and end both."""
    async with ModelServer(answer) as server:
        connection = new_connection(server.url)
        try:
            yield server, connection
        finally:
            await connection.close()


async def ask(
    connection: BaseChatModelConnection, request: ChatRequest, *, is_streamed: bool
) -> tuple[ChatMessage, list[ChatDelta]]:
    """Ask in one of two ways; the answer and the pieces in which it came."""
    if is_streamed and not connection.can_stream:
        pytest.skip("the adapter does not stream")
    deltas: list[ChatDelta] = []
    message = await connection.complete(request, deltas.append if is_streamed else None)
    assert bool(deltas) <= is_streamed
    return message, deltas


async def idle(server: ModelServer, connections: int | None = None) -> None:
    """Wait until the server answers nothing any more, and has so many connections (None: any number)."""
    async with asyncio.timeout(PATIENCE_S):
        while server.in_flight or connections not in {None, server.connections}:  # noqa: ASYNC110 (see below)
            await asyncio.sleep(0)  # the server runs in this loop, and tells nobody


class Arrivals:
    """Decides as told, and says when a request has come."""

    def __init__(self, decided: Reply | Fault, count: int = 1) -> None:
        self._decided = decided
        self._missing = count
        self.all = asyncio.Event()

    def __call__(self, request: ModelRequest) -> Reply | Fault:  # noqa: ARG002 (as `Decide`)
        """Count, and decide."""
        self._missing -= 1
        if self._missing <= 0:
            self.all.set()
        return self._decided

    async def together(self, request: ModelRequest) -> Reply | Fault:
        """Answer nobody before all have come."""
        decided = self(request)
        await self.all.wait()
        return decided


def called(name: str, arguments: dict[str, Any] | str, number: int, original_id: str = "") -> ToolCall:
    """Return a call as the engine records it: with an id of its own."""
    call = tool_call(name, arguments, original_id)
    call["id"] = f"run-{number}"
    return call


def conversation() -> list[ChatMessage]:
    """Return a conversation of all roles, with two calls in one turn."""
    calls = [
        called("get_weather", {"city": "Zürich", "days": 2}, 1, "call_a"),
        called("get_time", {"zone": "CET"}, 2, "call_b"),
    ]
    return [
        ChatMessage(MessageRole.SYSTEM, "Be kind."),
        ChatMessage(MessageRole.USER, "Hello"),
        ChatMessage(MessageRole.ASSISTANT, "Grüezi 👋"),
        ChatMessage(MessageRole.USER, "How is it there?"),
        ChatMessage(MessageRole.ASSISTANT, "I look.", tool_calls=calls),
        tool_message(calls[0], "sunny"),
        tool_message(calls[1], "noon"),
    ]


def plain_usage(message: ChatMessage) -> Usage:
    """Return the usage of an answer, which has one."""
    assert message.usage is not None, "an answer says what it cost"
    return message.usage

"""Models that Ollama runs, through the official SDK (extra ``ollama``).

    OllamaConnection(base_url="http://localhost:11434")
    OllamaSetup(connection="local", model="qwen3:8b", num_ctx=8192)

Requests go out as Ollama documents them, not through the SDK's model of a tool: that one drops what it does not know of a schema, such as
the properties of a nested object.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import AsyncGenerator
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import msgspec

from agentflow.api.chat_messages import (
    ChatMessage,
    FilePart,
    ImagePart,
    MessageRole,
    ReasoningPart,
    TextPart,
    ToolCall,
    Usage,
    arguments_text,
    tool_call,
)
from agentflow.api.chat_models import (
    BaseChatModelSetup,
    ChatDelta,
    ChatRequest,
    DeltaKind,
    OnDelta,
)
from agentflow.errors import ModelRejected
from agentflow.integrations.chat_conversions import (
    given_arguments,
    parts_of,
    sent_arguments,
    told_usage,
    tool_names,
)
from agentflow.integrations.provider_errors import Failures
from agentflow.integrations.sdk_connections import SdkConnection, load

_PATH: Final = "/api/chat"
_TOP_LEVEL: Final = frozenset(
    {"format", "keep_alive", "think", "truncate", "shift", "logprobs", "top_logprobs"}
)  # what the API has beside its ``options``
_IN_WORDS: Final = "When you have all that you need, answer with JSON by this schema and nothing else: {}"
_OPEN, _CLOSE = "<think>", "</think>"


class _Function(msgspec.Struct):
    name: str
    arguments: Any = None


class _Call(msgspec.Struct):
    function: _Function
    id: str | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None


class _Piece(msgspec.Struct):
    """An answer, or a piece of one."""

    message: _Message
    model: str = ""
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None


class OllamaConnection(SdkConnection):
    """An Ollama server.

    Attributes:
        base_url: Where it is; empty: ``OLLAMA_HOST``, or port 11434 of this machine.
        request_timeout: Longest silence of the server, seconds. A model that has to be loaded first is silent meanwhile, and so is an
            answer that does not stream until it is complete.
    """

    provider: ClassVar[str] = "ollama"
    can_stream: ClassVar[bool] = True

    base_url: str = ""
    request_timeout: float = 30

    @property
    def address(self) -> tuple[str, int | None]:
        """Host and port of the server."""
        given = self.base_url or os.environ.get("OLLAMA_HOST", "") or "localhost"
        url = urlsplit(given if "://" in given else f"http://{given}")
        default = {"http": 80, "https": 443}[url.scheme] if "://" in given else 11_434
        return url.hostname or "", url.port or default

    def supports_native_structured_output(self, model: str) -> bool:  # noqa: ARG002 (all of them: the server does it)
        """Return whether the server makes the model answer by a schema: it does."""
        return True

    async def connect(self, stack: contextlib.AsyncExitStack) -> None:
        """See `SdkConnection`."""
        await load("ollama", "ollama")
        import httpx
        import ollama

        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        client = ollama.AsyncClient(self.base_url or None, timeout=self.request_timeout, limits=limits)
        self._client = await stack.enter_async_context(client)

    async def complete(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatMessage:
        """Ask the model once. See `agentflow.BaseChatModelConnection.complete`."""
        await self
        failures = Failures(self.provider, request, (os.environ.get("OLLAMA_API_KEY"),))
        answer = _Answer(on_delta, extracts=bool(request.options.get("extract_reasoning")))
        async with contextlib.aclosing(self._pieces(request, failures, is_streamed=on_delta is not None)) as pieces:
            async for piece in pieces:
                answer.take(piece)
        if not answer.is_done:
            raise failures.cut()
        return answer.message()

    async def _pieces(self, request: ChatRequest, failures: Failures, *, is_streamed: bool) -> AsyncGenerator[_Piece]:
        """Give the pieces of an answer; one, if it does not stream."""
        import httpx
        import ollama

        body = request_body(request, failures, is_streamed=is_streamed)
        headers = {"Idempotency-Key": request.idempotency_key} if request.idempotency_key else {}
        try:
            got: Any = await self._client._request(  # noqa: SLF001 (see the module)
                dict, "POST", _PATH, json=body, headers=headers, stream=is_streamed
            )
            if isinstance(got, dict):
                yield msgspec.convert(got, _Piece)
                return
            async with contextlib.aclosing(got) as pieces:
                async for piece in pieces:
                    yield msgspec.convert(piece, _Piece)
        except httpx.TimeoutException:
            raise failures.timed_out(self.request_timeout) from None
        except (httpx.HTTPError, ConnectionError) as error:
            raise failures.unreachable(error) from None
        except ollama.ResponseError as error:
            status = error.status_code if error.status_code > 0 else 500  # within a stream there is none
            response = getattr(error.__context__, "response", None)  # the SDK keeps no headers
            raise failures.of_status(status, error.error, getattr(response, "headers", None)) from None
        except (ValueError, TypeError) as error:  # no JSON; no object; other fields than expected
            raise failures.unreadable(error) from None


class OllamaSetup(BaseChatModelSetup):
    """A model of an Ollama server.

    Attributes:
        temperature: Temperature.
        num_ctx: Tokens of its context. What is longer is cut by the server, without a word, from the beginning.
        keep_alive: How long the server keeps it loaded: ``"5m"``, seconds, -1 for ever.
        think: Let it think before it answers: true, false, or how much (``low``, ``medium``, ``high``). None: as the model does.
        extract_reasoning: Take what stands between ``<think>`` tags at the beginning of an answer as its reasoning: of models whose
            thinking the server does not know.
        additional_kwargs: Further options of the model, such as ``num_predict`` and ``seed``; fields of the request (``truncate``, …).
    """

    temperature: float = 0.75
    num_ctx: int = 2_048
    keep_alive: float | str | None = None
    think: bool | str | None = None
    extract_reasoning: bool = True
    additional_kwargs: dict[str, Any] = {}

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Arguments of the model."""
        kwargs: dict[str, Any] = {
            "temperature": self.temperature,
            "num_ctx": self.num_ctx,
            "extract_reasoning": self.extract_reasoning,
        }
        more = {"keep_alive": self.keep_alive, "think": self.think}
        return kwargs | {name: value for name, value in more.items() if value is not None} | self.additional_kwargs


def request_body(request: ChatRequest, failures: Failures, *, is_streamed: bool = False) -> dict[str, Any]:
    """Return a request as Ollama has it.

    Raises:
        ModelRejected: It holds what Ollama does not take.
    """
    names = tool_names(request.messages)
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [_message(message, names, failures) for message in request.messages],
        "stream": is_streamed,
    }
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.args_schema},
            }
            for tool in request.tools
        ]
    options = {name: value for name, value in request.options.items() if name != "extract_reasoning"}
    body |= {name: options.pop(name) for name in _TOP_LEVEL & options.keys()}
    if "max_tokens" in options:
        options["num_predict"] = options.pop("max_tokens")
    if options:
        body["options"] = options
    if request.output_schema is not None and request.tools:  # a model that is held to a schema cannot call a tool
        schema = msgspec.json.encode(request.output_schema).decode()
        body["messages"].append({"role": "system", "content": _IN_WORDS.format(schema)})
    elif request.output_schema is not None:
        body["format"] = request.output_schema
    return body


def _message(message: ChatMessage, names: dict[str, str], failures: Failures) -> dict[str, Any]:
    texts: list[str] = []
    images: list[str] = []
    for part in parts_of(message):
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif part.data and (isinstance(part, ImagePart) or part.media_type.startswith("image/")):
            images.append(base64.b64encode(part.data).decode())
        elif isinstance(part, FilePart) and part.data and part.media_type.startswith("text/"):
            texts.append(part.data.decode(errors="replace"))
        else:
            raise failures.of(
                ModelRejected, f"Ollama takes texts and the bytes of images, no {part.media_type} elsewhere"
            )
    said: dict[str, Any] = {"role": message.role, "content": "".join(texts)}
    if images:
        said["images"] = images
    if message.tool_calls:
        said["tool_calls"] = [_sent_call(call) for call in message.tool_calls]
    if thought := "".join(part.text for part in message.reasoning if not part.opaque):  # others think elsewhere
        said["thinking"] = thought
    if message.role == MessageRole.TOOL:
        answered = str(message.extra_args.get("external_id", ""))
        said |= {"tool_name": names.get(answered, ""), "tool_call_id": answered}
    return said


def _sent_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call["function"]["name"], "arguments": sent_arguments(call)}
    return {"id": call.get("original_id") or call.get("id", ""), "function": function}


class _Answer:
    """Makes a message of an answer, whole or in pieces."""

    def __init__(self, on_delta: OnDelta | None, *, extracts: bool) -> None:
        self.is_done = False
        self._on_delta = on_delta
        self._tags = ThinkTags() if extracts else None
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ToolCall] = []
        self._last: _Piece | None = None

    def take(self, piece: _Piece) -> None:
        """Add what has come."""
        said = piece.message
        if said.thinking:
            self._add(said.thinking, DeltaKind.REASONING)
        if said.content:
            for text, kind in self._tags.split(said.content) if self._tags else [(said.content, DeltaKind.TEXT)]:
                self._add(text, kind)
        for call in said.tool_calls or ():
            self._add_call(call)
        if piece.done:
            self.is_done, self._last = True, piece
            if self._tags and (rest := self._tags.rest()):
                self._add(*rest)

    def message(self) -> ChatMessage:
        """Return the whole, which is done."""
        assert self._last is not None, "a done answer has a last piece"
        usage = Usage(self._last.prompt_eval_count or 0, self._last.eval_count or 0)
        thought = "".join(self._thoughts)
        return ChatMessage(
            MessageRole.ASSISTANT,
            "".join(self._texts),
            self._calls,
            told_usage(self._last.model, usage),
            reasoning=[ReasoningPart(thought)] if thought else [],
            usage=usage,
            finish_reason="tool_calls" if self._calls else self._last.done_reason or "",
        )

    def _add(self, text: str, kind: DeltaKind) -> None:
        (self._texts if kind == DeltaKind.TEXT else self._thoughts).append(text)
        if self._on_delta is not None:
            self._on_delta(ChatDelta(text, kind))

    def _add_call(self, call: _Call) -> None:
        name, arguments = call.function.name, given_arguments(call.function.arguments or {})
        if self._on_delta is not None:
            self._on_delta(ChatDelta(arguments_text(arguments), DeltaKind.TOOL_CALL, len(self._calls), name))
        self._calls.append(tool_call(name, arguments, call.id or ""))


class ThinkTags:
    """Tells the thinking of a model, between tags at the beginning of its answer, from the answer, as the pieces come."""

    def __init__(self) -> None:
        self._held = ""
        self._tag: str | None = _OPEN  # what is looked for; None: everything is the answer
        self._follows_tag = False  # and the newlines behind it are no part of anything

    def split(self, piece: str) -> list[tuple[str, DeltaKind]]:
        """Return what a piece is made of; what may be part of a tag is held back."""
        self._held += piece
        found: list[tuple[str, DeltaKind]] = []
        if self._tag == _OPEN:
            if _OPEN.startswith(begin := self._held.lstrip()):
                return []
            self._follows_tag = begin.startswith(_OPEN)
            self._tag = _CLOSE if self._follows_tag else None
            self._held = begin.removeprefix(_OPEN) if self._follows_tag else self._held
        if self._tag == _CLOSE:
            thought, tag, rest = self._held.partition(_CLOSE)
            size = len(thought) - (0 if tag else _begun(thought))
            found.append((self._shown(thought[:size]), DeltaKind.REASONING))
            self._held = rest if tag else thought[size:]
            if tag:
                self._tag, self._follows_tag = None, True
        if self._tag is None:
            found.append((self._shown(self._held), DeltaKind.TEXT))
            self._held = ""
        return [(text, kind) for text, kind in found if text]

    def rest(self) -> tuple[str, DeltaKind] | None:
        """Return what was held back to the end."""
        return (self._held, DeltaKind.REASONING if self._tag == _CLOSE else DeltaKind.TEXT) if self._held else None

    def _shown(self, text: str) -> str:
        if self._follows_tag:
            text = text.lstrip("\n")
            self._follows_tag = not text
        return text


def _begun(text: str) -> int:
    """Return how many characters at the end of a text may begin the closing tag."""
    return next((size for size in range(len(_CLOSE) - 1, 0, -1) if text.endswith(_CLOSE[:size])), 0)

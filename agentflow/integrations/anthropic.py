"""Claude by Anthropic's Messages API, through the official SDK (extra ``anthropic``).

    AnthropicConnection(api_key="${env:ANTHROPIC_API_KEY}")
    AnthropicSetup(connection="claude", model="claude-sonnet-5-5", max_tokens=4096)

The SDK sends, authenticates and names errors. Bodies are written and read here by msgspec: of what a call costs at thousands of calls
per second, the SDK's models of requests and answers are the larger part.

``temperature``, ``top_p`` and ``top_k`` ended with version 2026-10-21 of the API, which the SDK speaks, and current models take none at
all. A request that has one of them is sent with the version before, for models that do.

A cache hint on a message or part marks everything before it, tools included. Four marks are the most that a request may have: the
oldest ones of the conversation give way.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import msgspec

from agentflow.api.chat_messages import (
    ChatMessage,
    FilePart,
    ImagePart,
    MessageRole,
    Part,
    ReasoningPart,
    TextPart,
    Usage,
    tool_call,
)
from agentflow.api.chat_models import (
    BaseChatModelSetup,
    ChatDelta,
    ChatRequest,
    DeltaKind,
    OnDelta,
)
from agentflow.errors import ContentRefused, NotConfigured
from agentflow.integrations.chat_conversions import (
    add_turn,
    call_id,
    conversation,
    decoded,
    enforced_schema,
    given_arguments,
    parsed_arguments,
    parts_of,
    result_id,
    sent_arguments,
    told_usage,
)
from agentflow.integrations.native_schemas import closed_problem
from agentflow.integrations.provider_errors import Failures
from agentflow.integrations.sdk_connections import SdkConnection, load

_PATH: Final = "/v1/messages"
_URL: Final = "https://api.anthropic.com"
_SAMPLING: Final = frozenset({"temperature", "top_p", "top_k"})
_SAMPLING_VERSION: Final = {"anthropic-version": "2023-06-01"}
_CONNECTIONS_MAX: Final = 10_000
_IDLE_CONNECTION_S: Final = 30.0
_MAX_TOKENS: Final = 1_024
_CACHE_MARKS_MAX: Final = 4
_CACHE: Final = {"type": "ephemeral"}
_WITHOUT_SCHEMAS: Final = re.compile(r"claude-(?:[23]|instant|(?:opus|sonnet)-4-(?:0|2025))")
_FINISH: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
}
_STATUSES: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class _Block(msgspec.Struct):
    type: str
    text: str = ""
    thinking: str = ""
    signature: str = ""
    data: str = ""
    id: str = ""
    name: str = ""
    input: Any = None


class _Counts(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    output_tokens_details: dict[str, Any] | None = None


class _Message(msgspec.Struct):
    content: list[_Block]
    usage: _Counts
    model: str = ""
    stop_reason: str | None = None
    stop_details: dict[str, Any] | None = None


class _Delta(msgspec.Struct):
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None
    stop_details: dict[str, Any] | None = None


class _Event(msgspec.Struct):
    type: str
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Counts | None = None
    error: dict[str, Any] | None = None


_encode: Final = msgspec.json.Encoder().encode
_MESSAGE: Final = msgspec.json.Decoder(_Message)
_EVENT: Final = msgspec.json.Decoder(_Event)


class AnthropicConnection(SdkConnection):
    """Anthropic's API, or what speaks as it does.

    Attributes:
        api_key: Key; empty: what the SDK finds (``ANTHROPIC_API_KEY``, a profile).
        base_url: Where it is; empty: ``ANTHROPIC_BASE_URL``, or Anthropic.
        timeout: Longest silence of the provider, seconds. An answer that does not stream is silent until it is complete.
    """

    provider: ClassVar[str] = "anthropic"
    can_stream: ClassVar[bool] = True

    api_key: str = ""
    base_url: str = ""
    timeout: float = 60

    @property
    def address(self) -> tuple[str, int | None]:
        """Host and port of the provider."""
        url = urlsplit(self.base_url or _URL)
        return url.hostname or "", url.port or (80 if url.scheme == "http" else 443)

    def supports_native_structured_output(self, model: str) -> bool:
        """Return whether the model answers by a schema: all since Claude 4.1."""
        return _WITHOUT_SCHEMAS.search(model) is None

    def native_schema_problem(self, model: str, schema: dict[str, Any]) -> str:  # noqa: ARG002 (of all models)
        """Return why the provider takes no such schema: all objects are closed, and none holds itself."""
        return closed_problem(schema)

    async def connect(self, stack: contextlib.AsyncExitStack) -> None:
        """See `SdkConnection`."""
        await load("anthropic", "anthropic", "aiohttp")
        import anthropic
        import httpx2

        limits = httpx2.Limits(max_connections=_CONNECTIONS_MAX, keepalive_expiry=_IDLE_CONNECTION_S)
        http = anthropic.DefaultAioHttpClient(limits=limits, timeout=self.timeout)
        stack.push_async_callback(http.aclose)
        no_key = NotConfigured(f"{self!r} has no key", fix='api_key="${env:ANTHROPIC_API_KEY}"')
        try:
            client = anthropic.AsyncAnthropic(
                api_key=self.api_key or None,
                base_url=self.base_url or None,
                timeout=self.timeout,
                max_retries=0,  # the engine's, as are the traces
                open_telemetry=False,
                http_client=http,
            )
        except anthropic.AnthropicError:  # a profile that cannot be read
            raise no_key from None
        self._client = await stack.enter_async_context(client)
        if not (client.api_key or client.auth_token or client.credentials):
            raise no_key

    async def complete(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatMessage:
        """Ask the model once. See `agentflow.BaseChatModelConnection.complete`."""
        await self
        import anthropic
        import httpx2

        failures = Failures(self.provider, request, (self._client.api_key, self._client.auth_token))
        body = request_body(request, is_streamed=on_delta is not None)
        headers = dict(_SAMPLING_VERSION) if _SAMPLING & body.keys() else {}
        if request.idempotency_key:
            headers["Idempotency-Key"] = request.idempotency_key
        try:
            response = await self._client.post(
                _PATH,
                cast_to=httpx2.Response,
                content=_encode(body),
                options={"headers": headers},
                stream=on_delta is not None,
            )
            if on_delta is None:
                answer = decoded(response.content, _MESSAGE)
            else:
                answer = await _streamed(response, on_delta, failures)
        except (anthropic.APITimeoutError, httpx2.TimeoutException):
            raise failures.timed_out(self.timeout) from None
        except anthropic.APIStatusError as error:
            said = error.api_message or error.message
            raise failures.of_status(error.status_code, said, error.response.headers) from None
        except (anthropic.APIConnectionError, httpx2.TransportError) as error:
            raise failures.unreachable(error) from None
        except anthropic.AnthropicError as error:  # of the SDK's search for credentials
            raise failures.of_status(401, error) from None
        except msgspec.DecodeError as error:
            raise failures.unreadable(error) from None
        return _chat_message(answer, failures, prefix=_prefill(request))


class AnthropicSetup(BaseChatModelSetup):
    """A model of Anthropic.

    Attributes:
        max_tokens: Longest answer, thinking included.
        temperature: For models before Claude 4.7; later ones refuse every value.
        thinking_budget: Tokens that it may think with before it answers, at least 1,024 and less than ``max_tokens``. Later models want
            ``additional_kwargs={"thinking": {"type": "adaptive"}}`` instead.
        json_prefill: Put ``{`` into the model's mouth, so that it answers in JSON; not with tools, nor with thinking. Later models refuse
            it, and have output schemas.
        additional_kwargs: Further fields of the request.
    """

    model: str = "claude-sonnet-5-5"
    max_tokens: int = _MAX_TOKENS
    temperature: float | None = None
    thinking_budget: int | None = None
    json_prefill: bool = False
    additional_kwargs: dict[str, Any] = {}

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Arguments of the model."""
        kwargs: dict[str, Any] = {"max_tokens": self.max_tokens}
        if self.temperature is not None:
            kwargs["temperature"] = self.temperature
        if self.thinking_budget is not None:
            kwargs["thinking"] = {"type": "enabled", "budget_tokens": self.thinking_budget}
        if self.json_prefill:
            kwargs["json_prefill"] = True
        return kwargs | self.additional_kwargs


def request_body(request: ChatRequest, *, is_streamed: bool = False) -> dict[str, Any]:
    """Return a request as the Messages API has it."""
    body: dict[str, Any] = {"model": request.model, "max_tokens": _MAX_TOKENS, **request.options}
    body.pop("json_prefill", None)
    system, said = conversation(request)
    if blocks := [block for message in system for block in _content(message)]:
        body["system"] = blocks
    body["messages"] = _turns(said)
    if prefix := _prefill(request):
        add_turn(body["messages"], "assistant", "content", [{"type": "text", "text": prefix}])
    if request.tools:
        body["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.args_schema}
            for tool in request.tools
        ]
    if request.output_schema is not None:
        output_format = {"type": "json_schema", "schema": enforced_schema(request.output_schema)}
        body["output_config"] = {**body.get("output_config", {}), "format": output_format}
    if is_streamed:
        body["stream"] = True
    _keep_last_marks([*blocks, *(block for turn in body["messages"] for block in turn["content"])], kept=len(blocks))
    return body


def _prefill(request: ChatRequest) -> str:
    is_wanted = request.options.get("json_prefill") and not (request.tools or request.options.get("thinking"))
    return "{" if is_wanted and request.output_schema is None else ""


def _turns(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role == MessageRole.ASSISTANT:
            add_turn(turns, "assistant", "content", _assistant(message))
        elif message.role == MessageRole.TOOL:
            result: dict[str, Any] = {"type": "tool_result", "tool_use_id": result_id(message)}
            if content := [_block(part) for part in parts_of(message)]:
                result["content"] = content
            add_turn(turns, "user", "content", _marked([result], is_marked=message.cache))
        else:
            add_turn(turns, "user", "content", _content(message))
    return turns


def _assistant(message: ChatMessage) -> list[dict[str, Any]]:
    thoughts = [block for part in message.reasoning if (block := _thought(part))]
    calls = [
        {"type": "tool_use", "id": call_id(call), "name": call["function"]["name"], "input": sent_arguments(call)}
        for call in message.tool_calls
    ]
    said = [_block(part) for part in parts_of(message)]
    return thoughts + _marked(said + calls, is_marked=message.cache)  # what was thought cannot be marked


def _thought(part: ReasoningPart) -> dict[str, Any] | None:
    """Return what the model wants back; None: it was thought elsewhere."""
    if signature := part.opaque.get("signature"):
        return {"type": "thinking", "thinking": part.text, "signature": signature}
    if data := part.opaque.get("redacted"):
        return {"type": "redacted_thinking", "data": data}
    return None


def _content(message: ChatMessage) -> list[dict[str, Any]]:
    return _marked([_block(part) for part in parts_of(message)], is_marked=message.cache)


def _marked(blocks: list[dict[str, Any]], *, is_marked: bool) -> list[dict[str, Any]]:
    if is_marked and blocks:
        blocks[-1]["cache_control"] = _CACHE
    return blocks


def _block(part: Part) -> dict[str, Any]:
    match part:
        case TextPart():
            text: dict[str, Any] = {"type": "text", "text": part.text}
            return text | {"cache_control": _CACHE} if part.cache else text
        case ImagePart():
            return {"type": "image", "source": _source(part)}
        case FilePart() if part.media_type.startswith("image/"):
            return {"type": "image", "source": _source(part)}
    document: dict[str, Any] = {"type": "document", "source": _source(part)}
    return document | {"title": part.name} if part.name else document


def _source(part: ImagePart | FilePart) -> dict[str, Any]:
    if isinstance(part, FilePart) and part.file_id:
        return {"type": "file", "file_id": part.file_id}
    if part.url:
        return {"type": "url", "url": part.url}
    if part.media_type.startswith("text/"):
        return {"type": "text", "media_type": "text/plain", "data": part.data.decode(errors="replace")}
    return {"type": "base64", "media_type": part.media_type, "data": base64.b64encode(part.data).decode()}


def _keep_last_marks(blocks: list[dict[str, Any]], *, kept: int) -> None:
    """Take marks of the cache away from the conversation, behind the first ``kept`` blocks, until no more than allowed are left."""
    marked = [number for number, block in enumerate(blocks) if "cache_control" in block]
    surplus = len(marked) - _CACHE_MARKS_MAX
    if surplus > 0:
        for number in [one for one in marked if one >= kept][:surplus]:
            del blocks[number]["cache_control"]


async def _streamed(response: Any, on_delta: OnDelta, failures: Failures) -> _Message:  # noqa: ANN401 (httpx2's)
    """Read a stream to its end, and return the message that it makes."""
    import anthropic

    assembly = _Assembly(on_delta)
    try:
        async for sent in anthropic.AsyncStream.raw_events(response):
            if not sent.data:
                continue
            event = decoded(sent.data, _EVENT)
            if event.type == "error":
                said = event.error or {}
                raise failures.of_status(_STATUSES.get(said.get("type", ""), 500), said.get("message", ""))
            if event.type == "message_stop":
                return assembly.message()
            assembly.take(event)
    finally:
        await response.aclose()
    raise failures.cut()


class _Assembly:
    """Makes a message of the events of a stream."""

    def __init__(self, on_delta: OnDelta) -> None:
        self._on_delta = on_delta
        self._message: _Message | None = None
        self._blocks: dict[int, _Block] = {}
        self._texts: dict[int, list[str]] = {}
        self._calls: dict[int, int] = {}  # which block is which call

    def take(self, event: _Event) -> None:
        """Add what has come."""
        if event.message is not None:
            self._message = event.message
        elif event.content_block is not None:
            self._begin(event.index, event.content_block)
        elif event.type == "message_delta" and self._message is not None:
            self._end(self._message, event)
        elif event.delta is not None:
            self._add(event.index, event.delta)

    def message(self) -> _Message:
        """Return the whole.

        Raises:
            msgspec.ValidationError: It never began.
        """
        if self._message is None:
            raise msgspec.ValidationError("a stream without the start of its message")
        for index, block in self._blocks.items():
            text = "".join(self._texts[index])
            if block.type == "tool_use":
                block.input = parsed_arguments(text) if text else block.input
            elif block.type == "thinking":
                block.thinking += text
            elif block.type == "text":
                block.text += text
        self._message.content = list(self._blocks.values())
        return self._message

    def _begin(self, index: int, block: _Block) -> None:
        self._blocks[index], self._texts[index] = block, []
        if block.type == "tool_use":
            self._calls[index] = len(self._calls)
            self._on_delta(ChatDelta("", DeltaKind.TOOL_CALL, self._calls[index], block.name))

    def _add(self, index: int, delta: _Delta) -> None:
        if index not in self._blocks:
            raise msgspec.ValidationError(f"a piece of block {index}, which has not begun")
        self._blocks[index].signature += delta.signature
        if not (text := delta.text or delta.thinking or delta.partial_json):
            return
        self._texts[index].append(text)
        if index in self._calls:
            self._on_delta(ChatDelta(text, DeltaKind.TOOL_CALL, self._calls[index]))
        elif delta.text or delta.thinking:
            self._on_delta(ChatDelta(text, DeltaKind.TEXT if delta.text else DeltaKind.REASONING))

    @staticmethod
    def _end(message: _Message, event: _Event) -> None:
        if event.delta is not None:
            message.stop_reason, message.stop_details = event.delta.stop_reason, event.delta.stop_details
        for name in _Counts.__struct_fields__ if event.usage is not None else ():
            if (count := getattr(event.usage, name)) is not None:
                setattr(message.usage, name, count)


def _chat_message(answer: _Message, failures: Failures, prefix: str) -> ChatMessage:
    text = prefix + "".join(block.text for block in answer.content if block.type == "text")
    if answer.stop_reason == "refusal":
        explained = (answer.stop_details or {}).get("explanation")
        raise failures.of(ContentRefused, explained or text or "the model refuses to answer")
    counts = answer.usage
    cached, written = counts.cache_read_input_tokens or 0, counts.cache_creation_input_tokens or 0
    usage = Usage(
        (counts.input_tokens or 0) + cached + written,
        counts.output_tokens or 0,
        cached,
        written,
        (counts.output_tokens_details or {}).get("thinking_tokens") or 0,
    )
    return ChatMessage(
        MessageRole.ASSISTANT,
        text,
        [
            tool_call(block.name, given_arguments(block.input or {}), block.id)
            for block in answer.content
            if block.type == "tool_use"
        ],
        told_usage(answer.model, usage),
        reasoning=[
            ReasoningPart(block.thinking, {"signature": block.signature})
            if block.type == "thinking"
            else ReasoningPart("", {"redacted": block.data})
            for block in answer.content
            if block.type in {"thinking", "redacted_thinking"}
        ],
        usage=usage,
        finish_reason=_FINISH.get(answer.stop_reason or "", ""),
    )

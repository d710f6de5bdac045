"""Gemini, through Google's official SDK (extra ``gemini``).

    GeminiConnection(api_key="${env:GEMINI_API_KEY}")
    GeminiSetup(connection="gemini", model="gemini-3-flash", thinking_level="low")

The SDK's own loops are switched off: its retries, its calls of functions, its continuation of answers.

Signatures of thoughts go back with the part that they came with: a call of a tool, or the text. Of the thoughts themselves the provider
wants nothing back.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import urlsplit

from agentflow.api.chat_messages import (
    ChatMessage,
    FilePart,
    MessageRole,
    Part,
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
from agentflow.errors import ContentRefused, ModelError, ModelRejected, ModelUnavailable, NotConfigured
from agentflow.integrations.chat_conversions import (
    add_turn,
    conversation,
    given_arguments,
    parts_of,
    sent_arguments,
    told_usage,
    tool_names,
)
from agentflow.integrations.native_schemas import recursion_problem
from agentflow.integrations.provider_errors import Failures
from agentflow.integrations.sdk_connections import SdkConnection, load

if TYPE_CHECKING:
    from google.genai import types

_URL: Final = "https://generativelanguage.googleapis.com"
_READ_MAX: Final = 4 * 2**20  # of one read from a socket, as the SDK has it
_WITH_SCHEMAS: Final = re.compile(r"gemini-(?:[3-9]|[1-9]\d|flash|pro)")
_SIGNATURE: Final = "thought_signature"
_CALL: Final = "call"  # beside a signature: of which call
_FINISH: Final = {"STOP": "stop", "MAX_TOKENS": "length", "CONTINUATION": "length"}
_REFUSED: Final = frozenset(
    {
        "SAFETY",
        "RECITATION",
        "LANGUAGE",
        "BLOCKLIST",
        "PROHIBITED_CONTENT",
        "SPII",
        "IMAGE_SAFETY",
        "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION",
        "MODEL_ARMOR",
        "ESCALATION",
    }
)
_MALFORMED: Final = frozenset(
    {"MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"}
)


class GeminiConnection(SdkConnection):
    """Google's Gemini API.

    Attributes:
        api_key: Key; empty: what the SDK finds (``GEMINI_API_KEY``, ``GOOGLE_API_KEY``, credentials of Vertex AI).
        base_url: Where it is; empty: Google.
        timeout: Longest call, streamed or not, seconds.
    """

    provider: ClassVar[str] = "gcp.gemini"
    can_stream: ClassVar[bool] = True

    api_key: str = ""
    base_url: str = ""
    timeout: float = 600

    @property
    def address(self) -> tuple[str, int | None]:
        """Host and port of the provider."""
        url = urlsplit(self.base_url or _URL)
        return url.hostname or "", url.port or (80 if url.scheme == "http" else 443)

    def supports_native_structured_output(self, model: str) -> bool:
        """Return whether the model answers by a JSON schema, also beside tools: since Gemini 3."""
        return _WITH_SCHEMAS.search(model) is not None

    def native_schema_problem(self, model: str, schema: dict[str, Any]) -> str:  # noqa: ARG002 (of all models)
        """Return why the provider takes no such schema: one that holds itself is followed a few levels only."""
        return recursion_problem(schema)

    async def connect(self, stack: contextlib.AsyncExitStack) -> None:
        """See `SdkConnection`."""
        await load("gemini", "aiohttp", "google.genai")
        import aiohttp
        from google import genai
        from google.genai import types

        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=True, read_bufsize=_READ_MAX)
        await stack.enter_async_context(session)
        options = types.HttpOptions(
            aiohttp_client=session,
            base_url=self.base_url or None,
            timeout=round(self.timeout * 1_000),
            retry_options=types.HttpRetryOptions(attempts=1),  # without: a lost connection is tried again after seconds
        )
        try:
            client = await asyncio.to_thread(genai.Client, api_key=self.api_key or None, http_options=options)
        except ValueError as error:
            raise NotConfigured(f"{self!r} has no key: {error}", fix='api_key="${env:GEMINI_API_KEY}"') from None
        stack.callback(client.close)
        stack.push_async_callback(client.aio.aclose)
        self._client = client

    async def complete(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatMessage:
        """Ask the model once. See `agentflow.BaseChatModelConnection.complete`."""
        await self
        failures = Failures(self.provider, request, (self.api_key, self._client._api_client.api_key))  # noqa: SLF001 (of the environment)
        answer = _Answer(on_delta)
        async with contextlib.aclosing(self._pieces(request, failures, is_streamed=on_delta is not None)) as pieces:
            async for piece in pieces:
                answer.take(piece)
        return answer.message(request.model, failures)

    async def _pieces(
        self, request: ChatRequest, failures: Failures, *, is_streamed: bool
    ) -> AsyncGenerator[types.GenerateContentResponse]:
        """Give the pieces of an answer; one, if it does not stream."""
        import aiohttp
        from google.genai import errors, types

        models = self._client.aio.models
        try:
            config = types.GenerateContentConfig.model_validate(request_config(request))
        except ValueError as error:
            raise failures.of(ModelRejected, f"options that Gemini does not have: {error}") from None
        asked: dict[str, Any] = {"model": request.model, "contents": request_contents(request), "config": config}
        try:
            if not is_streamed:
                yield await models.generate_content(**asked)
                return
            stream: Any = await models.generate_content_stream(**asked)
            async with contextlib.aclosing(stream) as pieces:
                async for piece in pieces:
                    yield piece
        except TimeoutError:
            raise failures.timed_out(self.timeout) from None
        except aiohttp.ClientError as error:
            raise failures.unreachable(error) from None
        except errors.APIError as error:
            raise _failed(error, failures) from None
        except ValueError as error:  # no JSON; other fields than expected
            raise failures.unreadable(error) from None


class GeminiSetup(BaseChatModelSetup):
    """A model of Gemini.

    Attributes:
        temperature: Temperature; None: as the model has it.
        max_output_tokens: Longest answer, thinking included; None: as the model has it.
        thinking_budget: Tokens that it may think with (Gemini 2.5); 0: none, -1: as many as it likes.
        thinking_level: How much it thinks (since Gemini 3): ``minimal``, ``low``, ``medium``, ``high``.
        include_thoughts: Show what it thinks, summed up.
        additional_kwargs: Further fields of the SDK's ``GenerateContentConfig``.
    """

    model: str = "gemini-3-flash"
    temperature: float | None = None
    max_output_tokens: int | None = None
    thinking_budget: int | None = None
    thinking_level: str | None = None
    include_thoughts: bool | None = None
    additional_kwargs: dict[str, Any] = {}

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Arguments of the model."""
        thinking = _given(
            thinking_budget=self.thinking_budget,
            thinking_level=self.thinking_level,
            include_thoughts=self.include_thoughts,
        )
        kwargs = _given(temperature=self.temperature, max_output_tokens=self.max_output_tokens)
        return kwargs | ({"thinking_config": thinking} if thinking else {}) | self.additional_kwargs


def request_config(request: ChatRequest) -> dict[str, Any]:
    """Return everything of a request but its conversation, as the SDK has it."""
    config: dict[str, Any] = {
        **request.options,
        "automatic_function_calling": {"disable": True},
        "automatic_continuation": False,
    }
    if "max_tokens" in config:
        config["max_output_tokens"] = config.pop("max_tokens")
    system, _ = conversation(request)
    if parts := [_part(part) for message in system for part in parts_of(message)]:
        config["system_instruction"] = {"role": "user", "parts": parts}
    if request.tools:
        functions = [
            {"name": tool.name, "description": tool.description, "parameters_json_schema": tool.args_schema}
            for tool in request.tools
        ]
        config["tools"] = [*config.get("tools", ()), {"function_declarations": functions}]
    if request.output_schema is not None:
        config |= {"response_mime_type": "application/json", "response_json_schema": request.output_schema}
    if request.idempotency_key:
        config["http_options"] = {"headers": {"Idempotency-Key": request.idempotency_key}}
    return config


def request_contents(request: ChatRequest) -> list[dict[str, Any]]:
    """Return the conversation of a request as Gemini has it: results of tools are the user's."""
    _, said = conversation(request)
    names = tool_names(said)
    own_ids = {call.get("original_id") for message in said for call in message.tool_calls}
    turns: list[dict[str, Any]] = []
    for message in said:
        if message.role == MessageRole.ASSISTANT:
            add_turn(turns, "model", "parts", _model_parts(message))
        elif message.role == MessageRole.TOOL:
            answered = str(message.extra_args.get("external_id", ""))
            result = {"name": names.get(answered, ""), "response": {"output": message.text}}
            if answered in own_ids:
                result["id"] = answered
            held = [_part(part) for part in message.parts if not isinstance(part, TextPart)]
            add_turn(turns, "user", "parts", [{"function_response": result}, *held])
        else:
            add_turn(turns, "user", "parts", [_part(part) for part in parts_of(message)])
    return turns


def _model_parts(message: ChatMessage) -> list[dict[str, Any]]:
    signatures = {
        part.opaque.get(_CALL): base64.b64decode(part.opaque[_SIGNATURE])
        for part in message.reasoning
        if _SIGNATURE in part.opaque
    }
    parts = [_part(part) for part in parts_of(message)]
    if None in signatures:
        parts = parts or [{"text": ""}]
        parts[-1][_SIGNATURE] = signatures[None]
    for number, call in enumerate(message.tool_calls):
        function: dict[str, Any] = {"name": call["function"]["name"], "args": sent_arguments(call)}
        if original_id := call.get("original_id"):
            function["id"] = original_id
        part: dict[str, Any] = {"function_call": function}
        parts.append(part | ({_SIGNATURE: signatures[number]} if number in signatures else {}))
    return parts


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"text": part.text}
    elsewhere = part.url or (part.file_id if isinstance(part, FilePart) else "")
    if elsewhere:
        return {"file_data": {"file_uri": elsewhere, "mime_type": part.media_type}}
    return {"inline_data": {"data": part.data, "mime_type": part.media_type}}


class _Answer:
    """Makes a message of an answer, whole or in pieces."""

    def __init__(self, on_delta: OnDelta | None) -> None:
        self._on_delta = on_delta
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._calls: list[ToolCall] = []
        self._signatures: list[ReasoningPart] = []
        self._ended_by = ""
        self._why = ""
        self._blocked = ""
        self._model = ""
        self._usage = Usage()

    def take(self, piece: types.GenerateContentResponse) -> None:
        """Add what has come."""
        self._model = piece.model_version or self._model
        if (counts := piece.usage_metadata) is not None:
            thought = counts.thoughts_token_count or 0
            self._usage = Usage(
                (counts.prompt_token_count or 0) + (counts.tool_use_prompt_token_count or 0),
                (counts.candidates_token_count or 0) + thought,
                counts.cached_content_token_count or 0,
                reasoning_tokens=thought,
            )
        if (feedback := piece.prompt_feedback) is not None and feedback.block_reason is not None:
            self._blocked = feedback.block_reason_message or f"the prompt is blocked: {feedback.block_reason.value}"
        for candidate in (piece.candidates or ())[:1]:
            for part in (candidate.content.parts if candidate.content else None) or ():
                self._add(part)
            if candidate.finish_reason is not None:
                self._ended_by, self._why = candidate.finish_reason.value, candidate.finish_message or ""

    def message(self, asked_model: str, failures: Failures) -> ChatMessage:
        """Return the whole.

        Raises:
            ModelError: It is none.
        """
        if self._blocked:
            raise failures.of(ContentRefused, self._blocked)
        if not self._ended_by:
            raise failures.cut()
        if self._ended_by in _REFUSED | _MALFORMED:
            kind: type[ModelError] = ContentRefused if self._ended_by in _REFUSED else ModelUnavailable
            raise failures.of(kind, self._why or f"the model ended with {self._ended_by}")
        thought = "".join(self._thoughts)
        return ChatMessage(
            MessageRole.ASSISTANT,
            "".join(self._texts),
            self._calls,
            told_usage(self._model or asked_model, self._usage),
            reasoning=[*([ReasoningPart(thought)] if thought else []), *self._signatures],
            usage=self._usage,
            finish_reason="tool_calls" if self._calls else _FINISH.get(self._ended_by, ""),
        )

    def _add(self, part: types.Part) -> None:
        if part.thought_signature:
            opaque: dict[str, Any] = {_SIGNATURE: base64.b64encode(part.thought_signature).decode()}
            if part.function_call is not None:
                opaque[_CALL] = len(self._calls)
            self._signatures.append(ReasoningPart("", opaque))
        if (call := part.function_call) is not None:
            name, arguments = call.name or "", given_arguments(call.args or {})
            self._tell(ChatDelta(arguments_text(arguments), DeltaKind.TOOL_CALL, len(self._calls), name))
            self._calls.append(tool_call(name, arguments, call.id or ""))
        elif part.text:
            (self._thoughts if part.thought else self._texts).append(part.text)
            self._tell(ChatDelta(part.text, DeltaKind.REASONING if part.thought else DeltaKind.TEXT))

    def _tell(self, delta: ChatDelta) -> None:
        if self._on_delta is not None:
            self._on_delta(delta)


def _failed(error: Any, failures: Failures) -> ModelError:  # noqa: ANN401 (the SDK's)
    """Return what an error of the API means. How long to wait stands in a header, or in its details."""
    failed = failures.of_status(error.code or 500, error.message or error, getattr(error.response, "headers", None))
    if failed.retry_after_s is None and (told := _retry_delay_s(error.details)) is not None:
        return failures.of(type(failed), failed.what, failed.status, told)
    return failed


def _retry_delay_s(details: object) -> float | None:
    found: Sequence[Any] = ()
    if isinstance(details, dict) and isinstance(error := details.get("error", details), dict):
        found = error.get("details") or ()
    for one in found:
        delay = str(one.get("retryDelay", "")) if isinstance(one, dict) else ""
        if delay.endswith("s") and delay[:-1].replace(".", "", 1).isdigit():
            return float(delay[:-1])
    return None


def _given(**fields: object) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}

"""Models of AWS Bedrock by its Converse API, through aiobotocore (extra ``bedrock``).

    BedrockConnection(region_name="eu-central-1")
    BedrockSetup(connection="aws", model="eu.anthropic.claude-sonnet-4-5-20250929-v1:0", max_tokens=4096)

Credentials are found as AWS's own tools find them, unless they are given.

A cache hint becomes a cache point behind the message or part: everything before it, tools included, may be cached. Four are the most that
a request may have: the oldest ones of the conversation give way.
"""

from __future__ import annotations

import base64
import contextlib
import contextvars
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import msgspec

from agentflow.api.chat_messages import (
    ChatMessage,
    ImagePart,
    MessageRole,
    Part,
    ReasoningPart,
    TextPart,
    ToolCall,
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
from agentflow.errors import ContentRefused, ModelError, ModelRejected, ModelUnavailable, NotConfigured
from agentflow.integrations.chat_conversions import (
    add_turn,
    call_id,
    conversation,
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

_CONNECTIONS_MAX: Final = 10_000
_CACHE_POINTS_MAX: Final = 4
_CACHE_POINT: Final = {"cachePoint": {"type": "default"}}
_INFERENCE: Final = {"temperature": "temperature", "max_tokens": "maxTokens", "top_p": "topP", "stop": "stopSequences"}
_OF_CONVERSE: Final = frozenset(
    {
        "additionalModelRequestFields",
        "additionalModelResponseFieldPaths",
        "guardrailConfig",
        "outputConfig",
        "performanceConfig",
        "promptVariables",
        "requestMetadata",
        "serviceTier",
    }
)
_WITH_SCHEMAS: Final = re.compile(r"claude-[a-z]+-(?:4-[5-9]|[5-9])(?!\d)")
_FINISH: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
}
_REFUSED: Final = frozenset({"guardrail_intervened", "content_filtered"})
_MALFORMED: Final = frozenset({"malformed_model_output", "malformed_tool_use"})
_STATUSES: Final = {
    "throttlingException": 429,
    "serviceQuotaExceededException": 429,
    "internalServerException": 500,
    "serviceUnavailableException": 503,
    "modelStreamErrorException": 424,
    "modelTimeoutException": 408,
    "validationException": 400,
}  # of errors within a stream, which have none
_DOCUMENTS: Final = {
    "application/pdf": "pdf",
    "text/csv": "csv",
    "text/html": "html",
    "text/markdown": "md",
    "text/plain": "txt",
    "application/msword": "doc",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
}
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9 ()\[\]-]")

_idempotency_key: Final = contextvars.ContextVar("idempotency_key", default="")


class BedrockConnection(SdkConnection):
    """Bedrock in one region.

    Attributes:
        region_name: Region; empty: that of the environment.
        endpoint_url: Where it is; empty: AWS.
        aws_access_key_id: Id of a key; empty: as AWS's tools find one (environment, profile, role).
        aws_secret_access_key: The key.
        aws_session_token: Token of a temporary key.
        timeout: Longest silence of the provider, seconds. An answer that does not stream is silent until it is complete.
    """

    provider: ClassVar[str] = "aws.bedrock"
    can_stream: ClassVar[bool] = True

    region_name: str = ""
    endpoint_url: str = ""
    aws_access_key_id: str = ""
    aws_secret_access_key: str = ""
    aws_session_token: str = ""
    timeout: float = 60

    @property
    def address(self) -> tuple[str, int | None]:
        """Host and port of the provider."""
        url = urlsplit(self.endpoint_url or f"https://bedrock-runtime.{self.region_name or '*'}.amazonaws.com")
        return url.hostname or "", url.port or (80 if url.scheme == "http" else 443)

    def supports_native_structured_output(self, model: str) -> bool:
        """Return whether the model answers by a JSON schema: Claude does since 4.5; of others it is not known."""
        return _WITH_SCHEMAS.search(model) is not None

    def native_schema_problem(self, model: str, schema: dict[str, Any]) -> str:  # noqa: ARG002 (of all models)
        """Return why the provider takes no such schema: all objects are closed, and none holds itself."""
        return closed_problem(schema)

    async def connect(self, stack: contextlib.AsyncExitStack) -> None:
        """See `SdkConnection`."""
        await load("bedrock", "aiobotocore.config", "aiobotocore.session")
        import botocore.exceptions
        from aiobotocore.config import AioConfig
        from aiobotocore.session import get_session

        making = get_session().create_client(
            "bedrock-runtime",
            region_name=self.region_name or None,
            endpoint_url=self.endpoint_url or None,
            aws_access_key_id=self.aws_access_key_id or None,
            aws_secret_access_key=self.aws_secret_access_key or None,
            aws_session_token=self.aws_session_token or None,
            config=AioConfig(
                connect_timeout=self.timeout,
                read_timeout=self.timeout,
                max_pool_connections=_CONNECTIONS_MAX,
                retries={"total_max_attempts": 1},
                warm_up_loader_caches=True,  # reads descriptions of services in a thread
            ),
        )
        try:
            self._client = await stack.enter_async_context(making)
        except botocore.exceptions.BotoCoreError as error:
            raise NotConfigured(f"{self!r} cannot be opened: {error}", fix='region_name="us-east-1"') from None
        self._client.meta.events.register("before-call.bedrock-runtime", _add_idempotency_key)

    async def complete(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatMessage:
        """Ask the model once. See `agentflow.BaseChatModelConnection.complete`."""
        await self
        secrets = (self.aws_access_key_id, self.aws_secret_access_key, self.aws_session_token)
        failures = Failures(self.provider, request, secrets)
        answer = _Answer(on_delta)
        token = _idempotency_key.set(request.idempotency_key)
        try:
            async with contextlib.aclosing(self._events(request, failures, is_streamed=on_delta is not None)) as events:
                async for event in events:
                    answer.take(event)
        finally:
            _idempotency_key.reset(token)
        return answer.message(request.model, failures)

    async def _events(
        self, request: ChatRequest, failures: Failures, *, is_streamed: bool
    ) -> AsyncGenerator[dict[str, Any]]:
        """Give the events of an answer; of one that does not stream, the events that it stands for."""
        import aiohttp
        import botocore.eventstream
        import botocore.exceptions
        import botocore.parsers

        asked = converse_arguments(request, failures)
        try:
            if not is_streamed:
                for event in events_of(await self._client.converse(**asked)):
                    yield event
                return
            response = await self._client.converse_stream(**asked)
            try:
                async for event in response["stream"]:
                    yield event
            finally:
                response["stream"].close()
        except (botocore.exceptions.ReadTimeoutError, botocore.exceptions.ConnectTimeoutError, TimeoutError):
            raise failures.timed_out(self.timeout) from None
        except botocore.exceptions.ClientError as error:
            raise _failed(error.response, failures) from None
        except (botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError, aiohttp.ClientError) as error:
            raise failures.unreachable(error) from None
        except botocore.exceptions.BotoCoreError as error:  # no credentials, arguments that Converse does not have
            raise failures.of(ModelRejected, error) from None
        except (
            botocore.eventstream.ParserError,
            botocore.parsers.ResponseParserError,
            KeyError,  # `events_of` misses the message
            ValueError,
        ) as error:
            raise failures.unreadable(error) from None


class BedrockSetup(BaseChatModelSetup):
    """A model of Bedrock.

    Attributes:
        max_tokens: Longest answer; None: as the model has it.
        temperature: Temperature; None: as the model has it. Claude refuses every value since 4.7.
        additional_kwargs: Further arguments of Converse (``guardrailConfig``, …) and of ``inferenceConfig`` (``top_p``, ``stop``); others
            are fields of the model itself, such as ``thinking``.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    additional_kwargs: dict[str, Any] = {}

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Arguments of the model."""
        kwargs = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return {name: value for name, value in kwargs.items() if value is not None} | self.additional_kwargs


def converse_arguments(request: ChatRequest, failures: Failures) -> dict[str, Any]:
    """Return a request as the arguments of Converse.

    Raises:
        ModelRejected: It holds what Bedrock does not take.
    """
    asked: dict[str, Any] = {"modelId": request.model}
    own_fields: dict[str, Any] = {}
    for name, value in request.options.items():
        if name in _INFERENCE:
            asked.setdefault("inferenceConfig", {})[_INFERENCE[name]] = value
        elif name in _OF_CONVERSE:
            asked[name] = value
        elif name == "toolChoice" and request.tools:
            asked.setdefault("toolConfig", {})["toolChoice"] = value
        elif name != "toolChoice":
            own_fields[name] = value
    if own_fields:
        asked["additionalModelRequestFields"] = {**asked.get("additionalModelRequestFields", {}), **own_fields}
    system, said = conversation(request)
    if instructions := [block for message in system for block in _content(message, failures)]:
        asked["system"] = instructions
    asked["messages"] = _turns(said, failures)
    if request.tools:
        asked.setdefault("toolConfig", {})["tools"] = [
            {
                "toolSpec": {
                    "name": tool.name,
                    "description": tool.description or tool.name,  # it must not be empty
                    "inputSchema": {"json": tool.args_schema},
                }
            }
            for tool in request.tools
        ]
    if request.output_schema is not None:
        schema = msgspec.json.encode(enforced_schema(request.output_schema)).decode()
        structure = {"jsonSchema": {"schema": schema, "name": request.output_name}}
        text_format = {"type": "json_schema", "structure": structure}
        asked["outputConfig"] = {**asked.get("outputConfig", {}), "textFormat": text_format}
    _keep_last_points(asked["messages"], _CACHE_POINTS_MAX - instructions.count(_CACHE_POINT))
    return asked


def events_of(response: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a whole answer as the events of a stream.

    Raises:
        KeyError: It is none.
    """
    events: list[dict[str, Any]] = []
    for index, block in enumerate(response["output"]["message"]["content"]):
        (kind, held), *_ = block.items()
        deltas: list[dict[str, Any]] = [{kind: held}]
        if kind == "toolUse":
            start = {"toolUse": {"toolUseId": held["toolUseId"], "name": held["name"]}}
            events.append({"contentBlockStart": {"contentBlockIndex": index, "start": start}})
        elif kind == "reasoningContent":
            shown = held.get("reasoningText", {})
            fields = {**shown, **{name: value for name, value in held.items() if name != "reasoningText"}}
            deltas = [{kind: {name: value}} for name, value in fields.items()]
        events += [{"contentBlockDelta": {"contentBlockIndex": index, "delta": delta}} for delta in deltas]
    return [
        *events,
        {"messageStop": {"stopReason": response["stopReason"]}},
        {"metadata": {"usage": response["usage"]}},
    ]


def _turns(messages: Sequence[ChatMessage], failures: Failures) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role == MessageRole.ASSISTANT:
            thoughts = [block for part in message.reasoning if (block := _thought(part))]
            said = thoughts + [block for part in parts_of(message) for block in _blocks(part, failures)]
            calls = [_tool_use(call) for call in message.tool_calls]
            add_turn(turns, "assistant", "content", _ended(said + calls, message))
        elif message.role == MessageRole.TOOL:
            held = [block for part in parts_of(message) for block in _blocks(part, failures) if block != _CACHE_POINT]
            result = {"toolUseId": result_id(message), "content": held or [{"text": "(nothing)"}]}
            add_turn(turns, "user", "content", _ended([{"toolResult": result}], message))
        else:
            add_turn(turns, "user", "content", _content(message, failures))
    return turns


def _content(message: ChatMessage, failures: Failures) -> list[dict[str, Any]]:
    return _ended([block for part in parts_of(message) for block in _blocks(part, failures)], message)


def _ended(blocks: list[dict[str, Any]], message: ChatMessage) -> list[dict[str, Any]]:
    if message.cache and blocks and blocks[-1] != _CACHE_POINT:
        blocks.append(_CACHE_POINT)
    return blocks


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"toolUse": {"toolUseId": call_id(call), "name": call["function"]["name"], "input": sent_arguments(call)}}


def _thought(part: ReasoningPart) -> dict[str, Any] | None:
    """Return what the model wants back; None: it was thought elsewhere."""
    if signature := part.opaque.get("signature"):
        return {"reasoningContent": {"reasoningText": {"text": part.text, "signature": signature}}}
    if redacted := part.opaque.get("redacted_content"):
        return {"reasoningContent": {"redactedContent": base64.b64decode(redacted)}}
    return None


def _blocks(part: Part, failures: Failures) -> list[dict[str, Any]]:
    if isinstance(part, TextPart):
        return [{"text": part.text}, _CACHE_POINT] if part.cache else [{"text": part.text}]
    if part.url.startswith("s3://"):
        source: dict[str, Any] = {"s3Location": {"uri": part.url}}
    elif part.data:
        source = {"bytes": part.data}
    else:
        raise failures.of(ModelRejected, f"Bedrock takes the bytes of {part.media_type}, or where they lie in S3")
    if isinstance(part, ImagePart) or part.media_type.startswith("image/"):
        return [{"image": {"format": part.media_type.partition("/")[2], "source": source}}]
    if (document_format := _DOCUMENTS.get(part.media_type)) is None:
        raise failures.of(ModelRejected, f"Bedrock takes no {part.media_type}, but {', '.join(_DOCUMENTS)}")
    name = _NOT_IN_NAMES.sub("-", part.name) or "document"
    return [{"document": {"format": document_format, "name": name, "source": source}}]


def _keep_last_points(turns: list[dict[str, Any]], count_max: int) -> None:
    surplus = sum(turn["content"].count(_CACHE_POINT) for turn in turns) - count_max
    for turn in turns:
        while surplus > 0 and _CACHE_POINT in turn["content"]:
            turn["content"].remove(_CACHE_POINT)
            surplus -= 1


def _add_idempotency_key(params: dict[str, Any], **_: object) -> None:
    """Put the key of the call into the headers of its request. A listener of the SDK, called in the task of the call."""
    if key := _idempotency_key.get():
        params["headers"]["Idempotency-Key"] = key


class _Answer:
    """Makes a message of the events of an answer."""

    def __init__(self, on_delta: OnDelta | None) -> None:
        self._on_delta = on_delta
        self._texts: list[str] = []
        self._thoughts: dict[int, ReasoningPart] = {}
        self._starts: dict[int, dict[str, Any]] = {}  # of calls of tools
        self._pieces: dict[int, list[Any]] = {}  # of their arguments: texts; an object, if they came whole
        self._ended_by = ""
        self._usage = Usage()

    def take(self, event: dict[str, Any]) -> None:
        """Add what has come."""
        if start := event.get("contentBlockStart"):
            if use := start["start"].get("toolUse"):
                self._starts[start["contentBlockIndex"]], self._pieces[start["contentBlockIndex"]] = use, []
                self._tell("", DeltaKind.TOOL_CALL, len(self._starts) - 1, use["name"])
        elif delta := event.get("contentBlockDelta"):
            self._add(delta["contentBlockIndex"], delta["delta"])
        elif stop := event.get("messageStop"):
            self._ended_by = stop["stopReason"]
        elif metadata := event.get("metadata"):
            counts = metadata["usage"]
            cached, written = counts.get("cacheReadInputTokens", 0), counts.get("cacheWriteInputTokens", 0)
            self._usage = Usage(counts["inputTokens"] + cached + written, counts["outputTokens"], cached, written)

    def message(self, model: str, failures: Failures) -> ChatMessage:
        """Return the whole.

        Raises:
            ModelError: It is none.
        """
        if not self._ended_by:
            raise failures.cut()
        text = "".join(self._texts)
        if self._ended_by in _REFUSED:
            raise failures.of(ContentRefused, text or f"the provider stopped the answer: {self._ended_by}")
        if self._ended_by in _MALFORMED:
            raise failures.of(ModelUnavailable, f"the model's answer is malformed: {self._ended_by}")
        return ChatMessage(
            MessageRole.ASSISTANT,
            text,
            [
                tool_call(start["name"], _arguments(self._pieces[index]), start["toolUseId"])
                for index, start in self._starts.items()
            ],
            told_usage(model, self._usage),
            reasoning=list(self._thoughts.values()),
            usage=self._usage,
            finish_reason=_FINISH.get(self._ended_by, ""),
        )

    def _add(self, index: int, delta: dict[str, Any]) -> None:
        if text := delta.get("text"):
            self._texts.append(text)
            self._tell(text, DeltaKind.TEXT)
        elif (use := delta.get("toolUse")) and index in self._pieces:
            self._pieces[index].append(use["input"])
            if isinstance(use["input"], str):
                self._tell(use["input"], DeltaKind.TOOL_CALL, list(self._starts).index(index))
        elif thought := delta.get("reasoningContent"):
            part = self._thoughts.setdefault(index, ReasoningPart("", {}))
            part.text += thought.get("text", "")
            if signature := thought.get("signature"):
                part.opaque["signature"] = part.opaque.get("signature", "") + signature
            if redacted := thought.get("redactedContent"):
                before = base64.b64decode(part.opaque.get("redacted_content", ""))
                part.opaque["redacted_content"] = base64.b64encode(before + redacted).decode()
            if shown := thought.get("text"):
                self._tell(shown, DeltaKind.REASONING)

    def _tell(self, text: str, kind: DeltaKind, index: int = 0, name: str = "") -> None:
        if self._on_delta is not None:
            self._on_delta(ChatDelta(text, kind, index, name))


def _arguments(pieces: list[Any]) -> dict[str, Any] | str:
    if all(isinstance(piece, str) for piece in pieces):
        return parsed_arguments("".join(pieces))
    return given_arguments(pieces[0])


def _failed(response: Any, failures: Failures) -> ModelError:  # noqa: ANN401 (the SDK's)
    error, metadata = response.get("Error", {}), response.get("ResponseMetadata", {})
    code = error.get("Code", "")
    status = metadata.get("HTTPStatusCode", 0)
    known = _STATUSES.get(code[:1].lower() + code[1:])
    if known == 429 or status < 400:
        status = known or 500
    return failures.of_status(status, error.get("Message") or code, metadata.get("HTTPHeaders"))

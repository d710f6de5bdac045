"""What the connections of OpenAI's protocols have in common: the SDK's client, its errors in agentflow's words, parts and tools.

The SDK sends, authenticates and names errors; its own retries are off. Bodies are made and read here: of what a call costs at thousands
of calls per second, the SDK's models of requests and answers are nearly half. A connection has one client, on aiohttp, which keeps as
many connections as there are calls: how many there may be is said by limits, not by a pool at which calls wait unseen.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from agentflow.api.chat_messages import ChatMessage, FilePart, ImagePart, Part, TextPart
from agentflow.api.chat_models import ChatRequest, OnDelta
from agentflow.api.durations import duration_ms
from agentflow.api.tools import ToolMetadata
from agentflow.errors import (
    ContentRefused,
    ContextTooLong,
    ModelError,
    ModelRejected,
    ModelUnavailable,
    NotConfigured,
    RateLimited,
)
from agentflow.integrations.native_schemas import root_problem
from agentflow.integrations.provider_errors import Failures, retry_after_s
from agentflow.integrations.sdk_connections import SdkConnection, load

if TYPE_CHECKING:
    from openai import AsyncOpenAI

EventT = TypeVar("EventT")

_IDLE_CONNECTION_S: Final = 60.0
_SECRET_MIN: Final = 8  # characters; a shorter one (``EMPTY``) is a word that texts may have
_KINDS: Final[dict[str, type[ModelError]]] = {
    "context_length_exceeded": ContextTooLong,
    "insufficient_quota": ModelRejected,  # a 429 that no wait ends
    "billing_hard_limit_reached": ModelRejected,
    "content_filter": ContentRefused,
    "content_policy_violation": ContentRefused,
    "data_inspection_failed": ContentRefused,  # DashScope's word
}
"""By the provider's own word for it, whatever the status."""
_KINDS_WITHOUT_STATUS: Final[dict[str, type[ModelError]]] = {
    "invalid_request_error": ModelRejected,
    "rate_limit_exceeded": RateLimited,
}
"""Of an error within an answer."""
_TOO_LONG: Final = re.compile("Range of input length")  # DashScope's words
_REASONS: Final = re.compile(r"(?:ft:)?(?:o\d|gpt-(?:[5-9]|\d\d)(?!.*-chat))")
_WITHOUT_SCHEMAS: Final = re.compile(r"(?:ft:)?(?:gpt-3|gpt-4(?![\do.])|o1-(?:mini|preview)|davinci|babbage)")


class OpenAIProtocolConnection(SdkConnection):
    """A way to a server that speaks one of OpenAI's protocols.

    There is no ``max_retries`` here: setups have it, since the engine retries, where calls are recorded and limited.

    Attributes:
        api_key: Its key.
        api_base_url: Where it is.
        base_url: The same, by the SDK's name.
        timeout: Longest time without a sign of the server: seconds, or a text with a unit.
        default_headers: Sent with each call.
    """

    path: ClassVar[str] = ""
    can_stream: ClassVar[bool] = True

    api_key: str = ""
    api_base_url: str = ""
    base_url: str = ""
    timeout: float | str = 60.0
    default_headers: dict[str, str] = {}

    async def connect(self, stack: contextlib.AsyncExitStack) -> None:
        """See `SdkConnection`."""
        await load("openai", "openai", "aiohttp")
        import openai

        try:
            client = self.new_client()
        except (openai.OpenAIError, ValueError) as error:  # the latter of Azure's versions and addresses
            raise NotConfigured(f"{self!r} lacks something: {error}", fix="give it what is missing") from None
        self._client = await stack.enter_async_context(client)

    def new_client(self) -> AsyncOpenAI:
        """Make the SDK's client."""
        from openai import AsyncOpenAI

        return AsyncOpenAI(**self.client_arguments(), base_url=self.url or None)

    def client_arguments(self) -> dict[str, Any]:
        """Return what all clients are made with."""
        import httpx2
        from openai import DefaultAioHttpClient

        limits = httpx2.Limits(max_connections=0, keepalive_expiry=_IDLE_CONNECTION_S)  # 0: no limit, to aiohttp
        timeout_s = seconds(self.timeout)
        return {
            "api_key": self.api_key or None,
            "timeout": timeout_s,
            "default_headers": self.default_headers,
            "max_retries": 0,
            "http_client": DefaultAioHttpClient(limits=limits, timeout=timeout_s),
        }

    @property
    def url(self) -> str:
        """Where the server is."""
        return self.api_base_url or self.base_url

    @property
    def address(self) -> tuple[str, int | None]:
        """Host and port of the server."""
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)

    def supports_native_structured_output(self, model: str) -> bool:
        """Return whether ``model`` can be made to answer by a JSON schema: all can but the oldest ones."""
        return _WITHOUT_SCHEMAS.match(model) is None

    def native_schema_problem(self, model: str, schema: dict[str, Any]) -> str:  # noqa: ARG002 (of all models)
        """Return why the provider takes no such schema: an answer is an object."""
        return root_problem(schema)

    def failures(self, request: ChatRequest) -> Failures:
        """Return what makes the errors of a call, without the credentials of this connection."""
        secrets = [self._client.api_key, *self.default_headers.values()]
        return Failures(self.provider, request, [secret for secret in secrets if len(secret) >= _SECRET_MIN])

    async def complete(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatMessage:
        """Ask the model once; see `BaseChatModelConnection.complete`."""
        await self
        import httpx2
        from aiohttp import ClientError
        from openai import AsyncStream, OpenAIError

        options = dict(request.options)
        headers = options.pop("extra_headers", {})
        if request.idempotency_key:
            headers = {**headers, "Idempotency-Key": request.idempotency_key}
        sent: Any = {"headers": headers, "security": {"bearer_auth": True}}
        failures = self.failures(request)
        body = self.body(request, options, failures, is_streamed=on_delta is not None)
        try:
            if on_delta is None:
                response = await self._client.post(self.path, cast_to=httpx2.Response, body=body, options=sent)
                return self.read(response.content, request, failures)
            stream = await self._client.post(
                self.path, cast_to=object, body=body, options=sent, stream=True, stream_cls=AsyncStream[object]
            )
            async with stream:
                return await self.follow(stream, request, failures, on_delta)
        except (OpenAIError, httpx2.HTTPError, ClientError) as error:
            raise failed(failures, error) from None

    def body(
        self, request: ChatRequest, options: dict[str, Any], failures: Failures, *, is_streamed: bool
    ) -> dict[str, Any]:
        """Return the body of a request; ``options`` are a copy of those of the request."""
        raise NotImplementedError(f"{type(self).__qualname__}.body()")

    def read(self, body: bytes, request: ChatRequest, failures: Failures) -> ChatMessage:
        """Return the answer in a body."""
        raise NotImplementedError(f"{type(self).__qualname__}.read()")

    async def follow(
        self, stream: AsyncIterator[object], request: ChatRequest, failures: Failures, on_delta: OnDelta
    ) -> ChatMessage:
        """Return the answer in a stream."""
        raise NotImplementedError(f"{type(self).__qualname__}.follow()")


async def next_event(stream: AsyncIterator[object], kind: type[EventT], failures: Failures) -> EventT | None:
    """Return the next event of a stream; None: it has ended.

    Raises:
        ModelUnavailable: It cannot be decoded.
    """
    try:
        return msgspec.convert(await anext(stream), kind)
    except StopAsyncIteration:
        return None
    except (ValueError, msgspec.ValidationError) as error:
        raise failures.unreadable(error) from None


def failed(failures: Failures, error: Exception) -> ModelError:
    """Return an error of the SDK in agentflow's words."""
    import openai

    if isinstance(error, openai.APIConnectionError) or not isinstance(error, openai.APIError):
        return failures.unreachable(error)
    said = error.body if isinstance(error.body, Mapping) else {"message": error.body or error.message}
    if isinstance(error, openai.APIStatusError):
        return classified(failures, said, error.status_code, error.response.headers)
    return classified(failures, said)


def classified(
    failures: Failures, said: Mapping[str, Any], status: int | None = None, headers: Mapping[str, str] | None = None
) -> ModelError:
    """Return the error that a provider describes: ``{"message", "code", "type"}``, with a status or within an answer."""
    message = said.get("message") or msgspec.json.encode(said, enc_hook=repr).decode()
    words = [str(word) for word in (said.get("code"), said.get("type")) if word]
    if status is None:  # proxies have it as code
        status = next((int(word) for word in words if re.fullmatch(r"[45]\d\d", word)), None)
    kinds = _KINDS if status else {**_KINDS_WITHOUT_STATUS, **_KINDS}
    kind = next((kinds[word] for word in words if word in kinds), None)
    if _TOO_LONG.search(str(message)):
        kind = ContextTooLong
    if kind is not None or status is None:
        return failures.of(kind or ModelUnavailable, message, status, retry_after_s(headers or {}))
    return failures.of_status(status, message, headers)


def seconds(duration: float | str) -> float:
    """Return a duration in seconds: a number is, a text has a unit."""
    return duration_ms(duration) / 1_000 if isinstance(duration, str) else duration


def reasons(model: str) -> bool:
    """Return whether a model of OpenAI thinks before it answers: it takes no temperature, and counts its limit otherwise."""
    return _REASONS.match(model) is not None


def data_url(part: ImagePart | FilePart) -> str:
    """Return the bytes of a part as a URL."""
    return f"data:{part.media_type};base64,{base64.b64encode(part.data).decode()}"


def text_or_parts(message: ChatMessage, kinds: Mapping[str, Any]) -> Any:  # noqa: ANN401 (a text, or parts as the protocol has them)
    """Return the content of a message; ``kinds`` says by the type of a part what it becomes."""
    if all(isinstance(part, TextPart) for part in message.parts):
        return message.text
    return shown_parts(message.said, kinds)


def shown_parts(parts: Sequence[Part], kinds: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return parts of a message as a protocol has them."""
    return [kinds[type(part).__name__](part) for part in parts]


def offered(tool: ToolMetadata, *, is_strict: bool) -> dict[str, Any]:
    """Return what a model is told of a tool; strict where that is asked for and its schema allows it."""
    schema = strict_schema(tool.args_schema) if is_strict else None
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.args_schema if schema is None else schema,
        "strict": schema is not None,
    }


def output_format(request: ChatRequest) -> dict[str, Any]:
    """Return the name and schema of the answer; strict where the schema allows it."""
    assert request.output_schema is not None, "the caller looks"
    schema = strict_schema(request.output_schema)
    name = re.sub(r"[^A-Za-z0-9_-]", "_", request.output_name)[:64]
    return {"name": name, "schema": request.output_schema if schema is None else schema, "strict": schema is not None}


_NOT_STRICT: Final = frozenset(
    {
        "allOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
        "dependentRequired",
        "dependentSchemas",
        "patternProperties",
        "default",
    }
    | {
        "prefixItems",
        "uniqueItems",
        "contains",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "unevaluatedProperties",
    }
)


def strict_schema(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a schema as strict mode takes it, which closes objects; None: it says what strict mode does not take.

    Strict mode wants every property of every object, and no others; an object that says nothing of others is closed here. An answer
    that fits then, fits the schema as it was.
    """
    closed = _closed(schema) if schema.get("type") == "object" else None
    return closed if isinstance(closed, dict) else None


def _closed(schema: Any) -> Any:  # noqa: ANN401 (a part of a schema)
    """Return a part of a schema as strict mode takes it; None: there is none."""
    if not isinstance(schema, Mapping) or not _NOT_STRICT.isdisjoint(schema) or ("$ref" in schema and len(schema) > 1):
        return None
    made = dict(schema)
    if schema.get("type") == "object" or "properties" in schema:
        properties = schema.get("properties")
        if not properties or set(schema.get("required", ())) != set(properties) or schema.get("additionalProperties"):
            return None
        made["additionalProperties"] = False
    for name in "properties", "$defs":
        if name in made:
            made[name] = {key: _closed(value) for key, value in made[name].items()}
            if None in made[name].values():
                return None
    if "anyOf" in made:
        made["anyOf"] = [_closed(one) for one in made["anyOf"]]
        if None in made["anyOf"]:
            return None
    if "items" in made and (items := _closed(made["items"])) is not None:
        made["items"] = items
    elif "items" in made or made.get("type") == "array":
        return None
    return made

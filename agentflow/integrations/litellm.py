"""Models of all the other providers, through LiteLLM (extra ``litellm``).

    LiteLLMConnection()
    LiteLLMSetup(connection="any", model="mistral/mistral-large-latest")

The adapters beside this one are faster and say more of errors: LiteLLM is for providers that have none. Its retries, logs, cost tables
from the network and printed advice are off. A connection has one pool of HTTP connections, as far as LiteLLM's own adapter of the
provider takes one. Of a refusal that is streamed, LiteLLM passes nothing on: it is an empty answer.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import msgspec

from agentflow.api.chat_messages import ChatMessage
from agentflow.api.chat_models import ChatRequest, OnDelta
from agentflow.errors import ContentRefused, ContextTooLong, ModelError, ModelRejected, ModelUnavailable
from agentflow.integrations.native_schemas import closed_problem, root_problem
from agentflow.integrations.openai import OpenAISetup
from agentflow.integrations.openai_completions import Answer, Completion, completion_arguments
from agentflow.integrations.openai_connection import next_event, seconds
from agentflow.integrations.provider_errors import Failures, retry_after_s
from agentflow.integrations.sdk_connections import SdkConnection, load

_LOCAL_COSTS: Final = "LITELLM_LOCAL_MODEL_COST_MAP"
_IDLE_CONNECTION_S: Final = 60.0


class LiteLLMConnection(SdkConnection):
    """A way to all providers that LiteLLM knows; each model names its own (``mistral/…``), unless the connection does.

    Attributes:
        api_key: Key of the provider; without one, that of the environment, by the name that LiteLLM has for it.
        api_base_url: Where the provider is, if it is not where LiteLLM expects it.
        base_url: The same, by the name that the other adapters have for it.
        api_version: Of the provider's API.
        custom_llm_provider: The provider, for models that do not name it.
        timeout: Longest time without a sign of the server: seconds, or a text with a unit.
        default_headers: Sent with each call.
    """

    provider: ClassVar[str] = "litellm"
    can_stream: ClassVar[bool] = True

    api_key: str = ""
    api_base_url: str = ""
    base_url: str = ""
    api_version: str = ""
    custom_llm_provider: str = ""
    timeout: float | str = 60.0
    default_headers: dict[str, str] = {}

    async def connect(self, stack: contextlib.AsyncExitStack) -> None:
        """See `SdkConnection`."""
        os.environ.setdefault(_LOCAL_COSTS, "True")  # else the import asks a server for prices
        await load("litellm", "litellm", "aiohttp")
        import aiohttp
        import litellm

        litellm.suppress_debug_info = True  # it would print
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_CONNECTION_S)  # 0: no limit
        self._session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        clients: Any = litellm.in_memory_llm_clients_cache
        stack.callback(clients.flush_cache)  # those of all connections; they hold these sessions, and are made again

    @property
    def url(self) -> str:
        """Where the provider is; empty where LiteLLM knows it."""
        return self.api_base_url or self.base_url

    @property
    def address(self) -> tuple[str, int | None]:
        """Host and port of the provider."""
        if not self.url:
            return "", None
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)

    def supports_native_structured_output(self, model: str) -> bool:
        """Return whether LiteLLM knows that ``model`` answers by a JSON schema."""
        os.environ.setdefault(_LOCAL_COSTS, "True")
        import litellm

        return bool(litellm.supports_response_schema(model, self.custom_llm_provider or None))

    def native_schema_problem(self, model: str, schema: dict[str, Any]) -> str:  # noqa: ARG002 (of all models)
        """Return why the provider takes no such schema: what one of the providers refuses is not asked of any."""
        return root_problem(schema) or closed_problem(schema)

    def arguments(self, request: ChatRequest, failures: Failures) -> dict[str, Any]:
        """Return the arguments of a completion."""
        options = {name: value for name, value in request.options.items() if name != "extract_reasoning"}
        headers = {**self.default_headers, **options.pop("extra_headers", {})}
        if request.idempotency_key:
            headers["Idempotency-Key"] = request.idempotency_key
        own = {
            "api_key": self.api_key,
            "api_base": self.url,
            "api_version": self.api_version,
            "custom_llm_provider": self.custom_llm_provider,
            "extra_headers": headers,
        }
        asked = completion_arguments(request, options, failures, returns_reasoning=True)
        return {
            **{name: value for name, value in own.items() if value},
            **asked,
            "timeout": seconds(self.timeout),
            "num_retries": 0,
            "max_retries": 0,
            "shared_session": self._session,
            "no-log": True,
        }

    async def complete(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatMessage:
        """Ask the model once; see `BaseChatModelConnection.complete`."""
        await self
        import litellm
        from litellm.exceptions import LITELLM_EXCEPTION_TYPES

        secrets = [secret for secret in (self.api_key, *self.default_headers.values()) if len(secret) >= 8]
        failures = Failures(self.provider, request, secrets)
        arguments = self.arguments(request, failures)
        answer = Answer(request, failures, on_delta)
        kinds: tuple[type[Exception], ...] = tuple(LITELLM_EXCEPTION_TYPES)
        try:
            if on_delta is None:
                answer.add(_completion(await litellm.acompletion(**arguments), failures))
                return answer.message()
            arguments["stream_options"] = {"include_usage": True, **arguments.get("stream_options", {})}
            stream = await litellm.acompletion(**arguments, stream=True)
            async with stream:
                while (chunk := await next_event(_Plain(stream), Completion, failures)) is not None:
                    answer.add(chunk)
            return answer.message()
        except kinds as error:
            raise _failed(failures, error) from None


class _Plain:
    """LiteLLM's chunks as plain values."""

    def __init__(self, stream: Any) -> None:  # noqa: ANN401 (LiteLLM's)
        self._stream = stream

    def __aiter__(self) -> _Plain:
        return self

    async def __anext__(self) -> object:
        return (await anext(self._stream)).model_dump()


def _completion(response: Any, failures: Failures) -> Completion:  # noqa: ANN401 (LiteLLM's)
    try:
        return msgspec.convert(response.model_dump(), Completion)
    except msgspec.ValidationError as error:
        raise failures.unreadable(error) from None


def _failed(failures: Failures, error: Exception) -> ModelError:
    """Return an error of LiteLLM in agentflow's words."""
    from litellm.exceptions import APIConnectionError, ContentPolicyViolationError, ContextWindowExceededError, Timeout

    message = getattr(error, "message", "") or str(error)
    status = getattr(error, "status_code", None)
    headers = getattr(error, "litellm_response_headers", None) or getattr(
        getattr(error, "response", None), "headers", None
    )
    if isinstance(error, ContextWindowExceededError):
        return failures.of(ContextTooLong, message, status)
    if isinstance(error, ContentPolicyViolationError):
        return failures.of(ContentRefused, message, status)
    if isinstance(error, APIConnectionError | Timeout):
        return failures.of(ModelUnavailable, message, None if isinstance(error, APIConnectionError) else status)
    if "insufficient_quota" in message:
        return failures.of(ModelRejected, message, status, retry_after_s(headers or {}))
    return failures.of_status(int(status or 500), message, headers)


class LiteLLMSetup(OpenAISetup):
    """A model of any provider.

    Attributes:
        model: ``provider/name``; the name alone where the connection says the provider.
    """

    @property
    def asked_model(self) -> str:
        """Which model it is in truth."""
        return self.model.rpartition("/")[2]

"""Chat models: a connection speaks a provider's protocol, a setup says which model, with which prompt, tools and policies.

An adapter of a provider overrides `BaseChatModelConnection.complete`; a connection of one's own may override `chat` alone, as in
Flink Agents. Neither retries, limits or waits: that belongs to the engine, which calls them in a durable step.
"""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

import msgspec

from agentflow.api.budgets import Budget, RateLimit, budgets_of, limits_of
from agentflow.api.callables import InThread, call_anywhere
from agentflow.api.chat_messages import ChatMessage, MessageRole
from agentflow.api.prompts import Prompt
from agentflow.api.resources import Resource, ResourceType
from agentflow.api.tools import Tool, ToolMetadata


class DeltaKind(enum.StrEnum):
    """What a piece of a streamed answer is a piece of."""

    TEXT = "text"
    REASONING = "reasoning"
    TOOL_CALL = "tool_call"


class ChatDelta(msgspec.Struct, frozen=True):
    """A piece of a streamed answer.

    Attributes:
        text: The piece; of a tool call: of its arguments.
        kind: What it is a piece of.
        index: Which tool call, from 0.
        name: Name of the tool, with the first piece of a call.
    """

    text: str
    kind: DeltaKind = DeltaKind.TEXT
    index: int = 0
    name: str = ""


OnDelta = Callable[[ChatDelta], object]


class ChatRequest(msgspec.Struct, kw_only=True):
    """What a connection is asked.

    Attributes:
        model: Name of the model, as its provider has it.
        messages: The conversation, system messages included, oldest first.
        tools: Tools that the model may call.
        output_schema: JSON schema of the answer, for providers that enforce it; None: any text.
        output_name: Name of the schema.
        options: Arguments of the model: ``temperature``, ``max_tokens``, …; what the setup's `model_kwargs` has.
        idempotency_key: The same on every attempt of a call; sent to the provider.
    """

    model: str
    messages: list[ChatMessage]
    tools: Sequence[ToolMetadata] = ()
    output_schema: dict[str, Any] | None = None
    output_name: str = "output"
    options: dict[str, Any] = {}
    idempotency_key: str = ""


async def _here(call: Callable[[], Any]) -> Any:  # noqa: ANN401 (what it returns)
    return call()


class BaseChatModelConnection(Resource):
    """A way to a provider: its address, its credentials, one pool of HTTP connections."""

    provider: ClassVar[str] = ""
    """``gen_ai.provider.name`` of OpenTelemetry."""

    can_stream: ClassVar[bool] = False
    """Whether `complete` calls ``on_delta`` while the answer comes."""

    @classmethod
    def resource_type(cls) -> ResourceType:
        """Return what kind of resource it is."""
        return ResourceType.CHAT_MODEL_CONNECTION

    @property
    def address(self) -> tuple[str, int | None]:
        """Host and port of the provider, for traces; empty where they are not known."""
        return "", None

    def supports_native_structured_output(self, model: str) -> bool:  # noqa: ARG002 (for subclasses)
        """Return whether the provider makes ``model`` answer by a JSON schema."""
        return False

    def native_schema_problem(self, model: str, schema: dict[str, Any]) -> str:  # noqa: ARG002 (for subclasses)
        """Return why ``model``, which answers by JSON schemas, cannot be held to this one; empty: it can."""
        return ""

    async def complete(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatMessage:  # noqa: ARG002 (for subclasses)
        """Ask the model once.

        Args:
            request: What to ask.
            on_delta: Called with the pieces of the answer as they come; the provider streams where it is given.

        Returns:
            The answer with ``usage`` and ``finish_reason``; tool calls by `agentflow.api.chat_messages.tool_call`.

        Raises:
            ModelError: By its kind; what another error means is not known, and it counts as one that may pass.
        """
        return await self.complete_by_chat(request, _here if self.context is None else self.context.in_thread)

    @property
    def has_chat_alone(self) -> bool:
        """Whether it is a connection with `chat` and without `complete`."""
        return type(self).complete is BaseChatModelConnection.complete

    async def complete_by_chat(self, request: ChatRequest, in_thread: InThread) -> ChatMessage:
        """Ask by `chat`: a coroutine function here, a plain one, which may block, in a thread.

        Args:
            request: What to ask.
            in_thread: Calls a function in a thread.
        """
        tools = [Tool(metadata=tool) for tool in request.tools]
        arguments = {"model": request.model, **request.options}
        if request.output_schema is not None or "output_schema" in inspect.signature(self.chat).parameters:
            arguments["output_schema"] = request.output_schema
        asked = (request.messages, tools or None)
        message: ChatMessage = await call_anywhere(self.chat, asked, arguments, in_thread)
        return message

    def chat(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] | None = None,
        output_schema: Any = None,  # noqa: ANN401 (a schema or a class)
        **kwargs: Any,  # noqa: ANN401 (the provider's)
    ) -> Any:  # noqa: ANN401 (a ChatMessage, or a coroutine that returns one)
        """Ask the model once; ``await`` it. Override it, plain (it runs in a thread) or `async def`, for a connection of one's own."""
        metadata = tuple(tool.metadata for tool in tools or ())
        model = kwargs.pop("model", "")
        request = ChatRequest(
            model=model, messages=list(messages), tools=metadata, output_schema=output_schema, options=kwargs
        )
        return self.complete(request)


class StructuredOutputStrategy(enum.StrEnum):
    """How a model is brought to answer by a schema."""

    AUTO = "auto"
    """By the provider where it can, and takes the schema; else by the prompt."""
    NATIVE = "native"
    """By the provider."""
    PROMPT = "prompt"
    """By an instruction; an answer that does not fit goes back to the model with the error."""


class ErrorHandlingStrategy(enum.StrEnum):
    """What follows a call of a model that failed."""

    FAIL = "fail"
    """The error is the action's: its failure policy decides."""
    RETRY = "retry"
    """Call again, up to ``max-retries`` times; then as ``fail``."""
    IGNORE = "ignore"
    """The run goes on with a response that says so (`ChatResponseEvent.error`)."""
    FALLBACK = "fallback"
    """Ask the next of ``fallback_models``; behind the last one as ``fail``."""


class BaseChatModelSetup(Resource):
    """A model as an agent uses it. A subclass adds the provider's own arguments, and hands them on in `model_kwargs`.

    Attributes:
        connection: Name of the connection.
        model: Name of the model, as its provider has it.
        prompt: Messages before those of a request: a `Prompt`, or the name of one; its placeholders are filled by ``prompt_args``.
        tools: What the model may call: names of tools, or tools. It can call no others.
        structured_output_strategy: How an output schema is brought about.
        error_handling_strategy: What follows a failed call; None: `error-handling-strategy` of the configuration, and where that is not
            set either, errors that may pass are retried and others fail.
        fallback_models: Names of the setups that are asked instead, in order.
        max_retries: Calls after the first one (`max-retries`, 3).
        retry_wait_interval: Wait before the first of them (`retry-wait-interval`, 1 s); it doubles.
        timeout: Longest call (`chat.timeout`, 10 min).
        first_token_timeout: Longest time to the first piece of the answer; the provider streams then.
        idle_timeout: Longest time between two pieces; the provider streams then.
        max_turns: Most calls of the model for one request, tool loop included (`chat.max-turns`, 32).
        limits: Limits of rates and concurrency of this model, for all keys of the worker.
        budgets: What requests may spend, those that fall back to another model included; its own budgets count then too.
    """

    connection: str = ""
    model: str = ""
    prompt: Prompt | str | None = None
    tools: list[Tool | str] = []
    structured_output_strategy: StructuredOutputStrategy | str = StructuredOutputStrategy.AUTO
    error_handling_strategy: ErrorHandlingStrategy | str | None = None
    fallback_models: list[str] = []
    max_retries: int | None = None
    retry_wait_interval: float | str | None = None
    timeout: float | str | None = None
    first_token_timeout: float | str | None = None
    idle_timeout: float | str | None = None
    max_turns: int | None = None
    limits: list[RateLimit | dict[str, Any]] = []
    budgets: list[Budget | dict[str, Any]] = []

    def __post_init__(self) -> None:
        for name, read in _READ.items():
            try:
                read(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if self.max_turns is not None and self.max_turns < 1:
            raise ValueError(f"max_turns: max_turns is at least 1, not {self.max_turns}")

    @classmethod
    def resource_type(cls) -> ResourceType:
        """Return what kind of resource it is."""
        return ResourceType.CHAT_MODEL

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """Arguments of the model (`ChatRequest.options`). A ``model`` among them, as in Flink Agents, takes the place of `model`."""
        return {}

    def asked_of(self, messages: list[ChatMessage], **kwargs: Any) -> ChatRequest:  # noqa: ANN401 (the provider's)
        """Return a request to this model.

        Args:
            messages: The conversation, its prompt included.
            kwargs: Arguments of the model that go before its own.
        """
        options = {**self.model_kwargs, **kwargs}
        return ChatRequest(model=options.pop("model", "") or self.model, messages=messages, options=options)

    def get_connection(self) -> BaseChatModelConnection:
        """Return the connection."""
        connection: BaseChatModelConnection = self.get_resource(self.connection, ResourceType.CHAT_MODEL_CONNECTION)
        return connection

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        prompt_args: dict[str, Any] | None = None,
        **kwargs: Any,  # noqa: ANN401 (the provider's)
    ) -> ChatMessage:
        """Ask the model once, without retry, limits and record: `RunnerContext.chat` has them."""
        connection = await self.get_connection()
        asked = [*self.prompt_messages(prompt_args or {}), *messages]
        return await connection.complete(self.asked_of(without_empty(asked), **kwargs))

    def prompt_messages(self, prompt_args: dict[str, Any]) -> list[ChatMessage]:
        """Return the messages of `prompt`, which is no name of an MCP prompt."""
        if self.prompt is None:
            return []
        prompt = self.prompt if isinstance(self.prompt, Prompt) else self.get_resource(self.prompt, ResourceType.PROMPT)
        messages: list[ChatMessage] = prompt.messages_of(MessageRole.SYSTEM, prompt_args)
        return messages


def _strategy(kind: type[enum.StrEnum], given: object) -> None:
    if given is not None and str(given).lower() not in list(kind):
        raise ValueError(f"{given!r} is none of {', '.join(kind)}")


_READ: Final[dict[str, Callable[[Any], object]]] = {
    "structured_output_strategy": functools.partial(_strategy, StructuredOutputStrategy),
    "error_handling_strategy": functools.partial(_strategy, ErrorHandlingStrategy),
    "limits": limits_of,
    "budgets": budgets_of,
}


def without_empty(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Return messages but those that say nothing; an empty one of the assistant is kept."""
    return [message for message in messages if not message.is_empty or message.role == MessageRole.ASSISTANT]

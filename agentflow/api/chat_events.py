"""Events of conversations with models: requests that the built-in actions answer, and their responses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agentflow.api.chat_messages import ChatMessage, ToolCall, read_message, read_messages
from agentflow.api.events import Event, EventType
from agentflow.api.output_schemas import schema_of


def check_request(tools: Any, max_turns: Any) -> None:  # noqa: ANN401 (unchecked)
    """Refuse what cannot be asked for beside messages.

    Raises:
        TypeError: ``tools`` is one, and no list; ``max_turns`` is no whole number.
        ValueError: ``max_turns`` is below 1.
    """
    if isinstance(tools, (str, bytes)) or not isinstance(tools, Iterable):
        raise TypeError(f"tools is a list, also of one: tools=[{tools!r}]")
    if max_turns is None:
        return
    if type(max_turns) is not int:
        raise TypeError(
            f"max_turns is a whole number of calls of the model, not {max_turns!r}; None: as the chat model says"
        )
    if max_turns < 1:
        raise ValueError(f"max_turns is at least 1, not {max_turns}: it counts the first call too")


class ChatRequestEvent(Event):
    """Ask a model; `chat_model_action` answers with a `ChatResponseEvent`, after as many turns of tools as the model wants.

    Args:
        model: Name of the chat model (its setup).
        messages: The conversation; a text is a message of the user.
        prompt_args: Values for the placeholders of the model's prompt.
        output_schema: What the answer has to be: a type (msgspec Struct, dataclass, TypedDict, pydantic model) or a JSON schema. It
            travels as its JSON schema; the response has plain values, and `ChatResponseEvent.output` makes the type of them.
        tenant: Whose rate limits count (`RateLimit.per`).
        stream: Name of the stream that the tokens go to as they come; None: to none.
        tools: Names of tools that the model may call beside those of its setup.
        max_turns: Most calls of the model for this request; None: as its setup says.
    """

    __slots__ = ()
    EVENT_TYPE = EventType.ChatRequestEvent

    def __init__(
        self,
        model: str,
        messages: Sequence[ChatMessage | str] | ChatMessage | str,
        prompt_args: Mapping[str, Any] | None = None,
        output_schema: Any = None,  # noqa: ANN401 (a type or a schema)
        *,
        tenant: str = "",
        stream: str | None = None,
        tools: Sequence[str] = (),
        max_turns: int | None = None,
    ) -> None:
        check_request(tools, max_turns)
        schema = None if output_schema is None else schema_of(output_schema)
        attributes: dict[str, Any] = {
            "model": model,
            "messages": read_messages(messages),
            "prompt_args": dict(prompt_args or {}),
            "output_schema": schema,
        }
        options = {"tenant": tenant, "stream": stream, "tools": list(tools), "max_turns": max_turns}
        attributes.update({name: value for name, value in options.items() if value})
        super().__init__(EventType.ChatRequestEvent, attributes)

    @property
    def model(self) -> str:
        """Name of the chat model."""
        return str(self.attributes["model"])

    @property
    def messages(self) -> list[ChatMessage]:
        """The conversation."""
        return read_messages(self.attributes["messages"])

    @property
    def prompt_args(self) -> dict[str, Any]:
        """Values for the placeholders of the prompt."""
        return self.attributes.get("prompt_args") or {}

    @property
    def output_schema(self) -> dict[str, Any] | None:
        """JSON schema of the answer."""
        return self.attributes.get("output_schema")


class ChatResponseEvent(Event):
    """The answer to a `ChatRequestEvent`.

    Args:
        request_id: Id of the request.
        response: The model's last message.
        retry_count: Calls that were made again.
        total_retry_wait_sec: Seconds waited for that.
        error: Why there is no answer (`ErrorHandlingStrategy.IGNORE`); ``response`` is what there is then. None: there is one.
    """

    __slots__ = ()
    EVENT_TYPE = EventType.ChatResponseEvent

    def __init__(
        self,
        request_id: str,
        response: ChatMessage,
        retry_count: int = 0,
        total_retry_wait_sec: float = 0,
        *,
        error: str | None = None,
    ) -> None:
        attributes = {
            "request_id": request_id,
            "response": response,
            "retry_count": retry_count,
            "total_retry_wait_sec": total_retry_wait_sec,
        }
        if error is not None:
            attributes["error"] = error
        super().__init__(EventType.ChatResponseEvent, attributes)

    @property
    def request_id(self) -> str:
        """Id of the request that this answers."""
        return str(self.attributes["request_id"])

    @property
    def response(self) -> ChatMessage:
        """The model's last message."""
        return read_message(self.attributes["response"])

    @property
    def retry_count(self) -> int:
        """Calls that were made again."""
        return int(self.attributes["retry_count"])

    @property
    def error(self) -> str | None:
        """Why there is no answer; None: there is one."""
        return self.attributes.get("error")

    def output(self, output_type: Any = None) -> Any:  # noqa: ANN401 (a type; a value of it)
        """Return the answer by its schema: as ``output_type``, or as plain values."""
        from agentflow.api.output_schemas import as_type

        value = self.response.output
        return value if output_type is None or value is None else as_type(value, output_type)


class ToolRequestEvent(Event):
    """Call tools; `tool_call_action` calls them at the same time, and answers with a `ToolResponseEvent`.

    Args:
        model: Name of the chat model whose tools may be called.
        tool_calls: The calls, each with an ``id``.
        request_id: Id of the `ChatRequestEvent` whose model asks; None: somebody else does.
    """

    __slots__ = ()
    EVENT_TYPE = EventType.ToolRequestEvent

    def __init__(self, model: str, tool_calls: Sequence[ToolCall], request_id: str | None = None) -> None:
        attributes: dict[str, Any] = {"model": model, "tool_calls": list(tool_calls)}
        if request_id is not None:
            attributes["request_id"] = request_id
        super().__init__(EventType.ToolRequestEvent, attributes)

    @property
    def model(self) -> str:
        """Name of the chat model whose tools may be called."""
        return str(self.attributes["model"])

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls."""
        calls: list[ToolCall] = self.attributes["tool_calls"]
        return calls


class ToolResponseEvent(Event):
    """What tools have returned, by the id of the call.

    Args:
        request_id: Id of the `ToolRequestEvent`.
        responses: Texts for the model.
        external_ids: The provider's ids of the calls.
        success: Whether the tool returned; None: all did.
        error: What went wrong, in full.
    """

    __slots__ = ()
    EVENT_TYPE = EventType.ToolResponseEvent

    def __init__(
        self,
        request_id: str,
        responses: Mapping[str, Any],
        external_ids: Mapping[str, str] | None = None,
        success: Mapping[str, bool] | None = None,
        error: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            EventType.ToolResponseEvent,
            {
                "request_id": request_id,
                "responses": dict(responses),
                "external_ids": dict(external_ids or {}),
                "success": dict.fromkeys(responses, True) if success is None else dict(success),
                "error": dict(error or {}),
            },
        )

    @property
    def request_id(self) -> str:
        """Id of the `ToolRequestEvent` that this answers."""
        return str(self.attributes["request_id"])

    @property
    def responses(self) -> dict[str, Any]:
        """Texts for the model, by the id of the call."""
        responses: dict[str, Any] = self.attributes["responses"]
        return responses


class BudgetExhaustedEvent(Event):
    """A budget forbade a call of a model; takes the place of the `ChatResponseEvent`.

    Without an action for it, the run fails with `BudgetExhausted`.

    Args:
        request_id: Id of the `ChatRequestEvent`.
        budget: Which one, such as ``run.calls``.
        limit: What it allows.
        spent: What is spent.
        partial: The model's last message before it; None: there is none.
    """

    __slots__ = ()
    EVENT_TYPE = EventType.BudgetExhaustedEvent

    def __init__(self, request_id: str, budget: str, limit: float, spent: float, partial: ChatMessage | None) -> None:
        super().__init__(
            EventType.BudgetExhaustedEvent,
            {"request_id": request_id, "budget": budget, "limit": limit, "spent": spent, "partial": partial},
        )

    @property
    def request_id(self) -> str:
        """Id of the `ChatRequestEvent` that gets no other answer."""
        return str(self.attributes["request_id"])

    @property
    def budget(self) -> str:
        """Which budget."""
        return str(self.attributes["budget"])

    @property
    def partial(self) -> ChatMessage | None:
        """The model's last message before it."""
        value = self.attributes.get("partial")
        return None if value is None else read_message(value)

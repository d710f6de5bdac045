"""Events: what actions receive and send. One unified class, a type name and attributes.

An event is encoded when it is sent, and every action that it triggers gets a freshly decoded copy: a plain `Event` (or
`InputEvent`), never the sender's object. A subclass is the sender's comfort; the receiver calls its `from_event`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Generic, Protocol, Self, TypeVar

PayloadT = TypeVar("PayloadT")


class EventType:
    """Type names of the built-in events."""

    InputEvent: Final = "_input_event"
    OutputEvent: Final = "_output_event"
    TimerEvent: Final = "_timer_event"
    CancelEvent: Final = "_cancel_event"
    ChatRequestEvent: Final = "_chat_request_event"
    ChatResponseEvent: Final = "_chat_response_event"
    ToolRequestEvent: Final = "_tool_request_event"
    ToolResponseEvent: Final = "_tool_response_event"
    BudgetExhaustedEvent: Final = "_budget_exhausted_event"


class EventOrigin(Protocol):
    """Where a delivered event comes from; ids are computed only when somebody looks."""

    @property
    def event_id(self) -> str: ...  # noqa: D102
    @property
    def upstream_event_id(self) -> str | None: ...  # noqa: D102
    @property
    def upstream_action_name(self) -> str | None: ...  # noqa: D102


class Event:
    """A fact with a type and attributes.

    Args:
        type: Type name; what ``@action("…")`` matches. Names that start with ``_`` belong to the engine.
        attributes: Values that msgpack can hold, also dataclasses, msgspec Structs and pydantic models; they are encoded by
            `RunnerContext.send_event`, and receivers get plain dicts and lists.
    """

    __slots__ = ("attributes", "origin", "type")

    origin: EventOrigin
    """Set on received events only."""

    EVENT_TYPE: ClassVar[str] = ""
    """Type name of a subclass: `@action(Subclass)` listens to it."""

    def __init__(self, type: str, attributes: dict[str, Any] | None = None) -> None:  # noqa: A002 (the field's name)
        self.type = type
        self.attributes: dict[str, Any] = {} if attributes is None else attributes

    @classmethod
    def from_event(cls, event: Event) -> Self:
        """Return ``event`` as this class, with its id and lineage; for a received event of a subclass's type."""
        typed = cls.__new__(cls)
        typed.type = event.type
        typed.attributes = event.attributes
        origin = getattr(event, "origin", None)
        if origin is not None:
            typed.origin = origin
        return typed

    @property
    def id(self) -> str | None:
        """Deterministic id ``run/task-path/index``; None until the event is received by an action."""
        origin: EventOrigin | None = getattr(self, "origin", None)
        return origin.event_id if origin is not None else None

    @property
    def upstream_event_id(self) -> str | None:
        """Id of the event whose action sent this one; None for an input."""
        origin: EventOrigin | None = getattr(self, "origin", None)
        return origin.upstream_event_id if origin is not None else None

    @property
    def upstream_action_name(self) -> str | None:
        """Name of the action that sent this event; None for an input."""
        origin: EventOrigin | None = getattr(self, "origin", None)
        return origin.upstream_action_name if origin is not None else None

    def get_type(self) -> str:
        """Return the type name."""
        return self.type

    def get_attr(self, name: str) -> Any:  # noqa: ANN401 (attributes are user values)
        """Return one attribute; None when it is missing."""
        return self.attributes.get(name)

    def set_attr(self, name: str, value: Any) -> None:  # noqa: ANN401 (attributes are user values)
        """Set one attribute of this copy; what was sent does not change."""
        self.attributes[name] = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return self.type == other.type and self.attributes == other.attributes

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(type={self.type!r}, attributes={self.attributes!r})"


class InputEvent(Event, Generic[PayloadT]):
    """The value of a source record; starts a run."""

    __slots__ = ()
    EVENT_TYPE = EventType.InputEvent

    def __init__(self, input: PayloadT) -> None:  # noqa: A002 (the field's name)
        self.type = EventType.InputEvent
        self.attributes = {"input": input}

    @property
    def input(self) -> PayloadT:
        """The decoded value; of the action's ``input=`` type where it has one."""
        payload: PayloadT = self.attributes["input"]
        return payload


class OutputEvent(Event):
    """A value that leaves the operator when its task completes; it is never routed to actions.

    Args:
        output: The value. None leaves as a record without a value (a tombstone) where the sink has such records: Kafka.
        headers: Headers of the record, text as UTF-8; sinks without headers (files) leave them out. The trace context of the
            run's input goes along unless it is set here.
    """

    __slots__ = ()
    EVENT_TYPE = EventType.OutputEvent

    def __init__(self, output: Any, *, headers: Mapping[str, str | bytes] | None = None) -> None:  # noqa: ANN401
        self.type = EventType.OutputEvent
        self.attributes = {"output": output} if headers is None else {"output": output, "headers": headers}

    @property
    def output(self) -> Any:  # noqa: ANN401 (any encodable value)
        """The value."""
        return self.attributes["output"]


class TimerEvent(Event):
    """A timer of this key became due; starts a run.

    Attributes of the event: ``name``, ``due_ms`` (epoch milliseconds), and what was given to `RunnerContext.set_timer`.
    """

    __slots__ = ()
    EVENT_TYPE = EventType.TimerEvent

    def __init__(self, name: str, due_ms: int, attributes: dict[str, Any] | None = None) -> None:
        self.type = EventType.TimerEvent
        self.attributes = {**(attributes or {}), "name": name, "due_ms": due_ms}

    @property
    def name(self) -> str:
        """Name given to `RunnerContext.set_timer`."""
        return str(self.attributes["name"])

    @property
    def due_ms(self) -> int:
        """When it was due, epoch milliseconds (event time or processing time, as it was set)."""
        return int(self.attributes["due_ms"])


class CancelEvent(Event):
    """The run was cancelled: by request, or because the next input of its key supersedes it.

    Actions that listen to it compensate, in the same run: they have its sensory memory, and durable steps. Attributes of the event:
    ``reason``, ``task`` (the path of the task that was at work) and ``input``.
    """

    __slots__ = ()
    EVENT_TYPE = EventType.CancelEvent

    @property
    def reason(self) -> str:
        """Why; as the request says, or ``superseded by`` a run."""
        return str(self.attributes["reason"])

    @property
    def input(self) -> Any:  # noqa: ANN401 (a user's value)
        """The input of the run, of the action's ``input=`` type where it has one."""
        return self.attributes["input"]

"""`@action`: marks a function as an action of an agent."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import msgspec

from agentflow.api.events import Event
from agentflow.api.failure import OnError, Retry

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

ACTION_MARK = "__agentflow_action__"


class ActionDeclaration(msgspec.Struct, frozen=True):
    """What `@action` or `Agent.add_action` declared, unchecked; compiled and checked by `AgentPlan.from_agent`."""

    trigger_conditions: tuple[str, ...]
    input: Any = None
    blocking: bool = False
    parallel: bool = False
    retry: Retry | None = None
    on_error: OnError | str | None = None
    timeout: timedelta | str | None = None
    config: dict[str, Any] = {}


def trigger_text(condition: str | type[Event]) -> str:
    """Return a trigger as text: an event class stands for its ``EVENT_TYPE``."""
    if isinstance(condition, type) and issubclass(condition, Event):
        return condition.EVENT_TYPE
    return condition  # anything that is no str is reported by the plan, with its place


def action(
    *trigger_conditions: str | type[Event],
    input: Any = None,  # noqa: A002, ANN401 (a type, or a generic alias)
    blocking: bool = False,
    parallel: bool = False,
    retry: Retry | None = None,
    on_error: OnError | str | None = None,
    timeout: timedelta | str | None = None,
) -> Callable[[FunctionT], FunctionT]:
    """Mark ``(event, ctx) -> None`` as an action, ``def`` or ``async def``, with or without ``@staticmethod``.

    Args:
        trigger_conditions: Event types (``EventType.InputEvent``, ``"scored"``, an `Event` subclass) or CEL expressions
            (``"type == 'scored' && attributes.average < 2.5"``); the action runs once per event that any of them matches.
        input: Type of ``event.input``: a msgspec Struct, dataclass or pydantic model. A value that does not fit goes
            through the failure policy, without a retry.
        blocking: Run a ``def`` action in a thread; without it, it runs on the loop and must not block.
        parallel: Consecutive tasks of parallel actions start together, on one snapshot of memory.
        retry: Retry policy; default `Retry()`: 3 attempts.
        on_error: What follows the last attempt: ``"dead-letter"``, ``"skip"`` or ``"fail"``; default: dead-letter when the
            job has a dead-letter sink, else fail.
        timeout: Longest time of one attempt (timedelta or ``"30s"``); for ``async def`` and blocking actions.
    """
    declaration = ActionDeclaration(
        trigger_conditions=tuple(trigger_text(condition) for condition in trigger_conditions),
        input=input,
        blocking=blocking,
        parallel=parallel,
        retry=retry,
        on_error=on_error,
        timeout=timeout,
    )

    def mark(function: FunctionT) -> FunctionT:
        target = function.__func__ if isinstance(function, staticmethod) else function
        setattr(target, ACTION_MARK, declaration)
        return function

    return mark

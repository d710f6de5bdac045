"""`Action`: one compiled action of a plan."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import msgspec

from agentflow.api.failure import DEFAULT_RETRY, OnError, Retry


class ActionKind(enum.Enum):
    """How the runtime calls an action."""

    SYNC = "sync"
    """A ``def`` that runs on the loop and must not block it."""
    ASYNC = "async"
    """An ``async def``."""
    BLOCKING = "blocking"
    """A ``def`` that runs in a thread (``blocking=True``)."""


class Action(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """One action; made once per plan, equal only to itself.

    Attributes:
        name: Unique in the plan.
        index: Place in declaration order.
        function: ``(event, ctx) -> None``.
        kind: How it is called.
        input_type: Type of ``event.input``; None where the decoded value is taken as it is.
        trigger_types: Event types it listens to, in the order in which they were written, each once.
        conditions: CEL sources it listens to, in that order.
        is_parallel: Consecutive tasks of parallel actions start together.
        retry: Retry policy.
        on_error: What follows the last attempt; None: dead-letter when the job has a dead-letter sink, else fail.
        timeout_ms: Longest time of one attempt; None: no limit.
        config: ``ctx.action_config``; JSON values.
    """

    name: str
    index: int
    function: Callable[..., Any]
    kind: ActionKind
    input_type: Any | None = None
    trigger_types: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    is_parallel: bool = False
    retry: Retry = DEFAULT_RETRY
    on_error: OnError | None = None
    timeout_ms: int | None = None
    config: dict[str, Any] = {}


class ConditionFailure(msgspec.Struct, frozen=True, eq=False):
    """Stands in the place of an action whose condition could not be evaluated for an event.

    Attributes:
        action: The action; its failure policy applies, without a retry (the outcome would be the same).
        message: Which condition failed, and why.
    """

    action: Action
    message: str

"""From events to tasks: exact type first, then CEL conditions, each action at most once, in declaration order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from agentflow.api.events import EventType
from agentflow.core.records import ErrorReport
from agentflow.core.runs import ActionTask, Run
from agentflow.plan.plan import Action, AgentPlan, ConditionFailure

_INPUT = EventType.InputEvent


class Router:
    """Queues one task per action that an event triggers.

    Args:
        plan: The compiled agent.
        decode_input: Decodes a record's value; only conditions on input events need it.
    """

    def __init__(self, plan: AgentPlan, decode_input: Callable[[bytes], Any]) -> None:
        self._plan = plan
        self._by_event: dict[str, tuple[Action, ...]] = plan.actions_by_event
        self._decode_input = decode_input

    def route(self, run: Run, parent: ActionTask | None, index: int, event_type: str, payload: bytes | None) -> None:
        """Append the tasks of one event to the run's queue.

        Args:
            run: The run.
            parent: The task that sent the event; None for the run's input.
            index: Place among the events that it sent.
            event_type: Type of the event.
            payload: Encoded attributes; of an input event the record's value, which may be none.
        """
        matches: Sequence[Action | ConditionFailure]
        if self._plan.has_conditions:
            matches = self._match(event_type, payload)
        else:
            matches = self._by_event.get(event_type, ())
        for match in matches:
            if type(match) is ConditionFailure:
                task = ActionTask(run, match.action, event_type, payload, parent, index)
                task.error = ErrorReport("ConditionError", match.message, is_retryable=False)
            else:
                task = ActionTask(run, match, event_type, payload, parent, index)  # type: ignore[arg-type]
            if run.queue is None:
                run.queue = [task]
            else:
                run.queue.append(task)

    def _match(self, event_type: str, payload: bytes | None) -> Sequence[Action | ConditionFailure]:
        """Match with conditions; a value that cannot be decoded fails every action that listens by condition."""
        try:
            return self._plan.match(event_type, lambda: self._attributes(event_type, payload))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            failed = [action for action in self._plan.actions if action.conditions]
            return [ConditionFailure(action, f"the event cannot be decoded: {error}") for action in failed]

    def _attributes(self, event_type: str, payload: bytes | None) -> dict[str, Any]:
        if event_type == _INPUT:
            return {"input": None if payload is None else self._decode_input(payload)}
        assert payload is not None, "only a record may have no value"
        attributes: dict[str, Any] = msgspec.msgpack.decode(payload)
        return attributes

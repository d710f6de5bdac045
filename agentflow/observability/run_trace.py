"""The trace of a run: its events, actions, steps, and what they report, as a tree, from the records of the event log.

With `event-log.trace.enabled` the tree has executions with their times; without, it has events, and the actions that they name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from agentflow.api.events import EventType
from agentflow.api.executions import ExecutionEntityTypes, ExecutionLifecycleEvents, ExecutionStatus, TaskOutcomeEvents

Record = Mapping[str, Any]
_Status = ExecutionStatus
RUNNING = "running"
_ATTEMPT = re.compile(r"#\d+$")
_WORST_FIRST = (_Status.FAILED, _Status.DEAD_LETTERED, _Status.CANCELLED, _Status.RETRYING, RUNNING, _Status.SKIPPED)
_OUTCOMES = (
    TaskOutcomeEvents.RETRY,
    TaskOutcomeEvents.SKIPPED,
    TaskOutcomeEvents.CANCELLED,
    TaskOutcomeEvents.DEAD_LETTER,
    TaskOutcomeEvents.JOB_FAILED,
)


class TraceNode(msgspec.Struct, rename="camel", omit_defaults=True):
    """An event, an action, or what was done inside of one.

    Attributes:
        kind: event, action, step, or what user code calls it: llm, tool, parser, ….
        name: Type of the event; name of what was executed.
        id: Id of the event or the execution.
        status: Of `ExecutionStatus`, or running; empty: an event has none, and nothing is known without executions.
        began: When, as records have it.
        ended: When; empty: not yet, or an event.
        duration_ms: Between them.
        attempts: Of an action or a step, what became of each attempt or call.
        error: What went wrong last.
        next_at: When the next attempt comes, of what waits for one.
        attributes: Attributes of the event; metadata of what was executed.
        children: What follows: of an event its actions, of an action its steps and then its events.
    """

    kind: str
    name: str
    id: str
    status: str = ""
    began: str = ""
    ended: str = ""
    duration_ms: float | None = None
    attempts: list[Attempt] = []
    error: str = ""
    next_at: str = ""
    attributes: Any = None
    children: list[TraceNode] = []

    def walk(self) -> Iterator[TraceNode]:
        """Iterate over this node and all below it."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children))


class Attempt(msgspec.Struct, rename="camel", omit_defaults=True):
    """An attempt of an action, or a call of a step."""

    number: int
    status: str
    began: str = ""
    ended: str = ""
    duration_ms: float | None = None
    error: str = ""
    next_at: str = ""


class RunTrace(msgspec.Struct, rename="camel"):
    """A run.

    Attributes:
        run: Its id.
        key: Its key.
        agent: Name of the agent that it began in.
        status: success, or the worst that there is in it.
        began: Time of the first record.
        ended: Time of the last one.
        duration_ms: Between them.
        records: How many records there are.
        roots: Events that come from nowhere: the input, perhaps a timer or cancellation.
    """

    run: str
    key: Any
    agent: str
    status: str
    began: str
    ended: str
    duration_ms: float
    records: int
    roots: list[TraceNode]

    def walk(self) -> Iterator[TraceNode]:
        """Iterate over all nodes, in the order of the tree."""
        for root in self.roots:
            yield from root.walk()


def run_trace(run_id: str, records: Sequence[Record]) -> RunTrace:
    """Build the trace of a run.

    Args:
        run_id: The run.
        records: Its records, and those of what follows from it, each once; there is one at least.
    """
    tree = _Tree()
    for record in records:
        tree.add(record)
    roots = tree.finish()
    own = next((record for record in records if record.get("inputRunId") == run_id), records[0])
    times = [str(record["timestamp"]) for record in records if record.get("timestamp")]
    began, ended = min(times, default=""), max(times, default="")
    trace = RunTrace(
        run_id, own.get("businessKey"), str(own.get("agentName", "")), "", began, ended, 0, len(records), roots
    )
    trace.duration_ms = _between_ms(began, ended) or 0.0
    found = {node.status for node in trace.walk()}
    trace.status = next((status for status in _WORST_FIRST if status in found), _Status.SUCCESS)
    return trace


class _Tree:
    """Builds the tree: nodes first, then what belongs below what."""

    def __init__(self) -> None:
        self._events: dict[str, TraceNode] = {}
        self._origin: dict[str, tuple[str, str]] = {}
        self._actions: dict[tuple[str, str], TraceNode] = {}  # (event, action)
        self._executions: dict[str, TraceNode] = {}
        self._parents: dict[str, str] = {}

    def add(self, record: Record) -> None:
        event_type, event_id = str(record.get("eventType", "")), str(record.get("eventId", ""))
        if event_type in ExecutionLifecycleEvents.STATUS_BY_TYPE and record.get("executionId"):
            self._add_execution(record)
        elif event_type in _OUTCOMES:
            self._add_outcome(record)
        else:
            at, attributes = str(record.get("timestamp", "")), record.get("eventAttributes")
            self._events[event_id] = TraceNode("event", event_type, event_id, began=at, attributes=attributes)
            self._origin[event_id] = (
                str(record.get("upstreamEventId") or ""),
                str(record.get("upstreamActionName") or ""),
            )
            if event_type == EventType.InputEvent and not self._origin[event_id][0]:
                self._origin[event_id] = (
                    event_id.rpartition("/")[0],
                    "",
                )  # the output of an agent upstream, if it is one

    def _action(self, event_id: str, name: str) -> TraceNode:
        slot = (event_id, name)
        node = self._actions.get(slot)
        if node is None:
            node = self._actions[slot] = TraceNode(ExecutionEntityTypes.ACTION, name, f"{event_id}:{name}")
        return node

    # -- executions
    def _add_execution(self, record: Record) -> None:
        execution_id, kind = str(record["executionId"]), str(record.get("entityType", ""))
        name, attributes = str(record.get("entityName", "")), _mapping(record.get("eventAttributes"))
        if kind == ExecutionEntityTypes.ACTION:
            node = self._action(str(record.get("upstreamEventId", "")), name)
            number = int(attributes.get("attempt", 1))
        else:
            node = self._executions.setdefault(execution_id, TraceNode(kind, name, execution_id))
            self._parents.setdefault(execution_id, _ATTEMPT.sub("", str(record.get("parentExecutionId", ""))))
            number = int(attributes.get("call", 1))
            if (metadata := record.get("entityMetadata")) is not None:
                node.attributes = metadata
        self._take_status(node, record, number, attributes)

    def _take_status(self, node: TraceNode, record: Record, number: int, attributes: Mapping[str, Any]) -> None:
        status, at = str(record.get("status", "")), str(record.get("timestamp", ""))
        if status == _Status.REUSED:
            node.status, node.began = status, node.began or at
            return
        attempt = next((one for one in node.attempts if one.number == number), None)
        if attempt is None:
            attempt = Attempt(number, RUNNING)
            node.attempts = sorted([*node.attempts, attempt], key=lambda one: one.number)
        if status == _Status.STARTED:
            attempt.began = at
        else:
            attempt.status, attempt.ended = status, at
            attempt.duration_ms = attributes.get("durationMs")
            attempt.error = _error_text(attributes.get("error"))

    # -- what follows from failures
    def _add_outcome(self, record: Record) -> None:
        event_type, event_id = str(record.get("eventType")), str(record.get("upstreamEventId", ""))
        name, attributes = str(record.get("upstreamActionName") or ""), _mapping(record.get("eventAttributes"))
        status, at = str(record.get("status", "")), str(record.get("timestamp", ""))
        error = _error_text(attributes.get("error"))
        if not name:  # a record that could not become a run
            node = self._events.get(event_id)
            if node is not None:
                node.status, node.error = status, error
            return
        node = self._action(event_id, name)
        number = int(attributes.get("attempt", 1))
        attempt = next((one for one in node.attempts if one.number == number), None)
        if attempt is None:
            attempt = Attempt(number, _Status.FAILED, ended=at, error=error)
            node.attempts = sorted([*node.attempts, attempt], key=lambda one: one.number)
        if event_type == TaskOutcomeEvents.RETRY:
            attempt.next_at = str(attributes.get("nextAttemptAt", ""))
        else:
            node.status, node.error = status, error
            if event_type == TaskOutcomeEvents.CANCELLED:
                attempt.status, attempt.ended = status, attempt.ended or at

    # -- the tree
    def finish(self) -> list[TraceNode]:
        """Put nodes below each other; return those that are below none."""
        for node in (*self._actions.values(), *self._executions.values()):
            _summarise(node)
        roots: list[TraceNode] = []
        events = list(self._events.values())
        for event in events:
            origin, action = self._origin[event.id]
            if origin and action and (origin in self._events or (origin, action) in self._actions):
                self._action(origin, action).children.append(event)
            elif origin in self._events and not self._leads_to(event.id, origin):
                self._events[origin].children.append(event)
            else:
                roots.append(event)
        for (event_id, _), node in self._actions.items():
            if event_id in self._events:
                self._events[event_id].children.append(node)
            else:
                roots.append(node)
        self._place_executions(roots)
        return roots

    def _leads_to(self, event_id: str, other: str) -> bool:
        """Whether an event would come from itself."""
        seen = {event_id}
        while other and other not in seen:
            seen.add(other)
            other = self._origin.get(other, ("", ""))[0]
        return other == event_id

    def _place_executions(self, roots: list[TraceNode]) -> None:
        """Put steps and reports before the events of their action, in the order in which they began."""
        actions = {f"{event_id}:{name}": node for (event_id, name), node in self._actions.items()}
        below: dict[int, list[TraceNode]] = {}
        parents: dict[int, TraceNode] = {}
        for execution_id, node in self._executions.items():
            parent_id = self._parents[execution_id]
            parent = self._executions.get(parent_id) or actions.get(parent_id)
            if parent is None or parent is node:
                roots.append(node)
            else:
                parents[id(parent)] = parent
                below.setdefault(id(parent), []).append(node)
        for place, nodes in below.items():
            nodes.sort(key=lambda node: node.began)
            parents[place].children[:0] = nodes


def _summarise(node: TraceNode) -> None:
    """Say of a node what its attempts say."""
    if not node.attempts:
        return
    first, last = node.attempts[0], node.attempts[-1]
    node.began, node.ended = first.began or first.ended, last.ended
    is_reused = node.status == _Status.REUSED
    if not node.status or (is_reused and last.status == RUNNING):
        node.status = node.status or (_Status.RETRYING if last.next_at else last.status)
    node.error, node.next_at = node.error or last.error, last.next_at
    if last.ended:
        own = last.duration_ms if len(node.attempts) == 1 else None
        node.duration_ms = _between_ms(node.began, node.ended) if own is None else own
    if is_reused:
        node.error = ""


def _mapping(value: Any) -> Mapping[str, Any]:  # noqa: ANN401 (any JSON)
    return value if isinstance(value, dict) else {}


def _error_text(error: Any) -> str:  # noqa: ANN401 (any JSON)
    if isinstance(error, dict) and "type" in error:
        message = error.get("message")
        return f"{error['type']}: {message}" if message else str(error["type"])
    return "" if error is None else error if isinstance(error, str) else msgspec.json.encode(error).decode()


def time_ms(text: str) -> float | None:
    """Return a record's time in epoch milliseconds; None: it is none."""
    try:
        return datetime.fromisoformat(text).timestamp() * 1000
    except ValueError:
        return None


def _between_ms(began: str, ended: str) -> float | None:
    first, last = time_ms(began), time_ms(ended)
    return None if first is None or last is None else round(max(0.0, last - first), 3)

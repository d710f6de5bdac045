"""The lineage of events, from the event log alone: which event, through which action, led to which. Finds what does not fit.

A forest of input events. It reads what agentflow writes, and the records of Flink Agents in both of its forms: flat, and with the event
in a field of its own. Records about executions are no events, and are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agentflow.api.events import EventType
from agentflow.api.executions import ExecutionLifecycleEvents, TaskOutcomeEvents

_STATUSES = ExecutionLifecycleEvents.STATUS_BY_TYPE
_OUTCOMES = {
    TaskOutcomeEvents.RETRY,
    TaskOutcomeEvents.SKIPPED,
    TaskOutcomeEvents.CANCELLED,
    TaskOutcomeEvents.DEAD_LETTER,
    TaskOutcomeEvents.JOB_FAILED,
}


class TreeWarning(msgspec.Struct, rename="camel", omit_defaults=True):
    """Something that does not fit.

    Attributes:
        code: EVENT_ID_CONFLICT, INVALID_ROOT_LINEAGE, UNLINKED_EVENT, MISSING_ACTION_NAME, MISSING_PARENT, CYCLE_DETECTED,
            MALFORMED_RECORD, RESERVED_EVENT_TYPE or UNREADABLE_FILE.
        event_id: The event.
        message: What it is, for people.
        file_path: The file.
        line_number: The line, from 1.
        column_number: The column, from 1.
        upstream_event_id: The event that the other one names as its origin…
        upstream_action_name: …and the action.
    """

    code: str
    event_id: str | None = None
    message: str = ""
    file_path: str | None = None
    line_number: int | None = None
    column_number: int | None = None
    upstream_event_id: str | None = None
    upstream_action_name: str | None = None


class Edge(msgspec.Struct, frozen=True, rename="camel"):
    """Where an event comes from."""

    upstream_event_id: str | None
    upstream_action_name: str | None

    @property
    def is_root(self) -> bool:
        """Whether the event comes from nowhere."""
        return self.upstream_event_id is None and self.upstream_action_name is None


class ActionNode(msgspec.Struct):
    """An action that an event has triggered, and the events that it has sent."""

    name: str
    children: list[str]


class EventNode(msgspec.Struct, rename="camel"):
    """An event.

    Attributes:
        event_id: Its id.
        event_type: Its type.
        timestamp: Of its first record.
        observation_count: How many records of it there are.
        upstream_edges: Where it comes from.
        actions: What it has led to.
    """

    event_id: str
    event_type: str
    timestamp: str | None
    observation_count: int
    upstream_edges: list[Edge]
    actions: list[ActionNode]


class Forest(msgspec.Struct):
    """Trees of events.

    Attributes:
        roots: Ids of the input events that trees begin with.
        nodes: All events by id, also those that no tree has.
        warnings: What does not fit.
    """

    roots: list[str]
    nodes: dict[str, EventNode]
    warnings: list[TreeWarning]


class EventRecord(msgspec.Struct):
    """What a record says of an event, in whichever form."""

    event_id: str
    event_type: str
    timestamp: str | None
    edge: Edge
    content: Any
    incarnation: str = ""


def read_forest(files: Sequence[Path]) -> Forest:
    """Read event logs and build their forest.

    Ids of events repeat in another incarnation of the job's state: the last one has them as they are, those before it with its name
    behind them.
    """
    warnings: list[TreeWarning] = []
    records = [record for path in files for record in _event_records(path, warnings)]
    _tell_incarnations_apart(records)
    return build_forest(records, warnings)


def _tell_incarnations_apart(records: Sequence[EventRecord]) -> None:
    ids: dict[str, set[str]] = {}
    for record in records:
        ids.setdefault(record.incarnation, set()).add(record.event_id)
    taken: set[str] = set()
    renamed = set()
    for incarnation, own in reversed(ids.items()):
        if not taken.isdisjoint(own):
            renamed.add(incarnation)
        taken |= own
    for record in records:
        if record.incarnation in renamed:
            behind = f"@{record.incarnation or 'earlier'}"
            upstream = record.edge.upstream_event_id
            record.event_id += behind
            record.edge = Edge(upstream and upstream + behind, record.edge.upstream_action_name)


# -- reading
def _event_records(path: Path, warnings: list[TreeWarning]) -> Iterator[EventRecord]:
    for value in _json_values(path, warnings):
        found = _event_record(value)
        if isinstance(found, str):
            event_id = value.get("eventId") if isinstance(value, dict) else None
            event_id = event_id if isinstance(event_id, str) else None
            message = f"A record of {path} is no record of an event: {found}."
            warnings.append(TreeWarning("MALFORMED_RECORD", event_id, message, file_path=str(path)))
        elif not _is_about_execution(value):
            if found.event_type in _STATUSES or found.event_type in _OUTCOMES:
                message = (
                    f"Event {found.event_id} has the type {found.event_type}, which belongs to records about executions, without what "
                    "they say; it is taken for an event."
                )
                warnings.append(TreeWarning("RESERVED_EVENT_TYPE", found.event_id, message, file_path=str(path)))
            yield found


def _json_values(path: Path, warnings: list[TreeWarning]) -> Iterator[Any]:
    """Yield the JSON values of a file: one in each line, or over several lines."""
    try:
        text = path.read_bytes()
    except OSError as error:
        message = f"The event log {path} cannot be read: {error}."
        warnings.append(TreeWarning("UNREADABLE_FILE", message=message, file_path=str(path)))
        return
    start, line_number = 0, 1
    while start < len(text):
        end = text.find(b"\n", start)
        end = len(text) if end < 0 else end
        line = text[start:end]
        try:
            if line.strip():
                yield msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            value, end, problem = _long_value(text, start, end)
            if problem is None:
                yield value
            else:
                message = f"A record of {path}, line {line_number}, is not JSON: {problem[1]}."
                warnings.append(
                    TreeWarning(
                        "MALFORMED_RECORD",
                        message=message,
                        file_path=str(path),
                        line_number=line_number,
                        column_number=problem[0],
                    )
                )
        line_number += text.count(b"\n", start, end + 1)
        start = end + 1


def _long_value(text: bytes, start: int, end: int) -> tuple[Any, int, tuple[int, str] | None]:
    """Read a value that may go over several lines; return it with the end of its last line, or what is wrong with its first one."""
    first = text[start:end]
    stop = text.find(b"\n{", end)
    whole = text[start : len(text) if stop < 0 else stop]
    try:
        decoded = whole.decode()
    except UnicodeDecodeError as error:
        return None, end, (error.start + 1, "it is not UTF-8")
    try:
        value, length = json.JSONDecoder().raw_decode(decoded.lstrip())
    except json.JSONDecodeError as error:
        return None, end, (error.colno if error.lineno == 1 else len(first), error.msg)
    if first.lstrip()[:1] != b"{":
        return None, end, (1, "a record is a JSON object")
    before = len(decoded) - len(decoded.lstrip())
    behind = start + len(decoded[: before + length].encode())
    line_end = text.find(b"\n", behind)
    return value, len(text) if line_end < 0 else line_end, None


def _event_record(record: Any) -> EventRecord | str:  # noqa: ANN401 (any JSON)
    """Return what a record says, or what is wrong with it."""
    if not isinstance(record, dict):
        return "it has to be a JSON object"
    event_type = record.get("eventType")
    event: Any = record
    names, prefix = ("eventId", "eventAttributes"), ""
    if "eventId" not in record and "eventAttributes" not in record:
        event, names, prefix = record.get("event"), ("id", "attributes"), "event."
        if not isinstance(event, dict):
            return "field 'event' has to be a JSON object"
    event_id, content = (event.get(name) for name in names)
    if not isinstance(event_id, str) or not event_id:
        return f"field '{prefix}{names[0]}' has to be a text that is not empty"
    if not isinstance(event_type, str) or not event_type:
        return "field 'eventType' has to be a text that is not empty"
    if not isinstance(content, dict):
        return f"field '{prefix}{names[1]}' has to be a JSON object"
    upstream = [event.get(name) for name in ("upstreamEventId", "upstreamActionName")]
    for name, value in zip(("upstreamEventId", "upstreamActionName"), upstream, strict=True):
        if value is not None and not isinstance(value, str):
            return f"field '{prefix}{name}' has to be a text or null"
    timestamp = record.get("timestamp")
    at = timestamp if isinstance(timestamp, str) else None
    incarnation = record.get("incarnation")
    edge = Edge(upstream[0] or None, upstream[1] or None)
    return EventRecord(event_id, event_type, at, edge, content, incarnation if isinstance(incarnation, str) else "")


def _is_about_execution(record: dict[str, Any]) -> bool:
    event_type, status = str(record.get("eventType")), record.get("status")
    if event_type in _OUTCOMES:
        return isinstance(status, str) and bool(status)
    named = (record.get(name) for name in ("executionId", "entityType", "entityName"))
    return (
        status is not None
        and status == _STATUSES.get(event_type)
        and all(isinstance(one, str) and one for one in named)
    )


# -- building
def build_forest(records: Iterable[EventRecord], warnings: list[TreeWarning] | None = None) -> Forest:
    """Build the forest of records; events that were written more than once are one event."""
    forest = Forest([], {}, [] if warnings is None else warnings)
    by_id: dict[str, list[EventRecord]] = {}
    for record in records:
        by_id.setdefault(record.event_id, []).append(record)
    for event_id, of_event in by_id.items():
        edges = _edges(event_id, of_event, forest.warnings)
        upstream = [edge for edge in edges if not edge.is_root]
        first = of_event[0]
        forest.nodes[event_id] = EventNode(event_id, first.event_type, first.timestamp, len(of_event), upstream, [])
        if first.event_type == EventType.InputEvent and len(upstream) < len(edges):
            forest.roots.append(event_id)
        if first.event_type != EventType.InputEvent and len(upstream) < len(edges):
            message = f"Event {event_id} is no input, and names no event that it comes from."
            forest.warnings.append(TreeWarning("UNLINKED_EVENT", event_id, message))
    for event_id, node in forest.nodes.items():
        for edge in node.upstream_edges:
            _link(forest, event_id, node, edge)
    _cut_cycles(forest)
    return forest


def _edges(event_id: str, records: Sequence[EventRecord], warnings: list[TreeWarning]) -> list[Edge]:
    """Return where an event comes from; what contradicts its first record counts for nothing."""
    first, told = records[0], set()
    edges = dict.fromkeys([first.edge])
    print_of_first = _fingerprint(first.content)
    for record in records[1:]:
        if record.event_type == first.event_type and _fingerprint(record.content) == print_of_first:
            edges.setdefault(record.edge)
        elif record.edge not in told:
            told.add(record.edge)
            message = (
                f"{len(records)} records of event {event_id} disagree about its type or content; the first one counts."
            )
            origin = (record.edge.upstream_event_id, record.edge.upstream_action_name)
            warnings.append(TreeWarning("EVENT_ID_CONFLICT", event_id, message, None, None, None, *origin))
    return list(edges)


def _fingerprint(content: Any) -> bytes:  # noqa: ANN401 (any JSON)
    return msgspec.json.encode(content, order="deterministic")


def _link(forest: Forest, event_id: str, node: EventNode, edge: Edge) -> None:
    parent_id, action = edge.upstream_event_id, edge.upstream_action_name
    code, message = "", ""
    if node.event_type == EventType.InputEvent:
        code, message = "INVALID_ROOT_LINEAGE", f"Input event {event_id} names an event that it comes from."
    elif parent_id is None:
        code, message = "UNLINKED_EVENT", f"Event {event_id} names an action, and no event that it comes from."
    elif action is None:
        code, message = "MISSING_ACTION_NAME", f"Event {event_id} does not name the action that has sent it."
    elif parent_id not in forest.nodes:
        code, message = "MISSING_PARENT", f"Event {event_id} comes from event {parent_id}, of which there is no record."
    if code:
        forest.warnings.append(TreeWarning(code, event_id, message))
        return
    assert parent_id is not None
    assert action is not None
    actions = forest.nodes[parent_id].actions
    node_of_action = next((one for one in actions if one.name == action), None)
    if node_of_action is None:
        node_of_action = ActionNode(action, [])
        actions.append(node_of_action)
    node_of_action.children.append(event_id)


def _cut_cycles(forest: Forest) -> None:
    """Remove the edges that lead back to where a walk has come from; what several events lead to stays below each of them."""
    seen: set[str] = set()
    open_ids: set[str] = set()
    cut: set[tuple[str, str, str]] = set()
    roots = sorted(set(forest.roots))
    for start in [*roots, *sorted(set(forest.nodes) - set(roots))]:
        if start in seen:
            continue
        open_ids.add(start)
        walk = [(start, _below(forest, start))]
        while walk:
            parent_id, below = walk[-1]
            step = next(below, None)
            if step is None:
                open_ids.discard(parent_id)
                seen.add(parent_id)
                walk.pop()
                continue
            action, child_id = step
            if child_id in open_ids:
                cut.add((parent_id, action, child_id))
                message = (
                    f"Event {child_id} comes, through action {action}, from event {parent_id}, which comes from it."
                )
                forest.warnings.append(
                    TreeWarning("CYCLE_DETECTED", child_id, message, None, None, None, parent_id, action)
                )
            elif child_id not in seen:
                open_ids.add(child_id)
                walk.append((child_id, _below(forest, child_id)))
    for parent_id, action, child_id in cut:
        child, parent = forest.nodes[child_id], forest.nodes[parent_id]
        child.upstream_edges = [edge for edge in child.upstream_edges if edge != Edge(parent_id, action)]
        for one in parent.actions:
            if one.name == action:
                one.children = [other for other in one.children if other != child_id]
        parent.actions = [one for one in parent.actions if one.children]


def _below(forest: Forest, event_id: str) -> Iterator[tuple[str, str]]:
    return iter(sorted((action.name, child) for action in forest.nodes[event_id].actions for child in action.children))


# -- showing
def forest_text(forest: Forest) -> str:
    """Return the trees as lines of text."""
    lines: list[str] = []
    for number, root in enumerate(forest.roots, 1):
        lines += [*([""] if lines else []), f"Trace Tree {number}"]
        walk: list[tuple[str, str, str]] = [("event", root, "  ")]
        open_ids: list[str] = []
        while walk:
            kind, name, indent = walk.pop()
            if kind == "left":
                open_ids.remove(name)
            elif kind == "action":
                lines.append(f"{indent}[Action: {name}]")
            elif name not in open_ids:
                open_ids.append(name)
                node = forest.nodes[name]
                lines.append(f"{indent}{node.event_type} ({name})")
                walk.append(("left", name, indent))
                for action in reversed(node.actions):
                    walk += [("event", child, f"{indent}    ") for child in reversed(action.children)]
                    walk.append(("action", action.name, f"{indent}  "))
    return "\n".join(lines)

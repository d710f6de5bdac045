"""A plan for people: as text, and as an event graph in Mermaid. Both are deterministic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from agentflow.api.durations import duration_ms
from agentflow.api.events import EventType
from agentflow.api.references import without_secrets
from agentflow.plan.condition_text import read_condition
from agentflow.plan.payloads import reference
from agentflow.plan.source_scan import sent_types
from agentflow.plan.stored_plan import StoredFunction, StoredType

if TYPE_CHECKING:
    from agentflow.plan.plan import Action, AgentPlan

_LABEL_MAX = 60
_ENGINE_NODES = {
    EventType.InputEvent: ("input", "input"),
    EventType.TimerEvent: ("timer", "timer"),
    EventType.CancelEvent: ("cancel", "cancelled"),
}


def render_text(plan: AgentPlan) -> str:
    """Return a listing: one block per action, then resources and configuration."""
    lines = [f"agent {plan.name}  {_count(len(plan.actions), 'action')}  plan {plan.plan_hash[:12]}"]
    for action in plan.actions:
        lines += ["", f"action {action.name}  ({', '.join(_traits(action))})"]
        lines += [f"  {label:<9} {text}" for label, text in _facts(action)]
    if plan.resources:
        lines += ["", "resources"]
        lines += [f"  {resource.type} {resource.name}  {resource.clazz}" for resource in plan.resources]
    values = without_secrets("", plan.config.to_dict())
    if values:
        lines += ["", "config"]
        lines += [f"  {key} = {_json(value)}" for key, value in sorted(values.items())]
    return "\n".join(lines) + "\n"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _traits(action: Action) -> list[str]:
    return [action.kind.value, *(["parallel"] if action.is_parallel else [])]


def _facts(action: Action) -> list[tuple[str, str]]:
    facts = [("on", _event_label(event_type)) for event_type in action.trigger_types]
    facts += [("when", source) for source in action.conditions]
    if action.input_type is not None:
        facts.append(("input", _name(action.input_type)))
    facts.append(("function", _name(action.function)))
    retry = action.retry
    if retry.attempts == 1:
        attempts = "1 attempt"
    else:
        waits = f"waits {_duration(duration_ms(retry.initial))} to {_duration(duration_ms(retry.wait_max))}"
        attempts = f"{retry.attempts} attempts, {waits}, x{retry.multiplier:g}, jitter {retry.jitter:g}"
    then = action.on_error.value if action.on_error is not None else "dead-letter if configured, else fail"
    facts.append(("retry", f"{attempts}; then {then}"))
    if action.timeout_ms is not None:
        facts.append(("timeout", _duration(action.timeout_ms)))
    if action.config:
        facts.append(("config", ", ".join(f"{key}={_json(value)}" for key, value in sorted(action.config.items()))))
    return facts


def _json(value: object) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def _name(thing: Any) -> str:  # noqa: ANN401 (a function or a type)
    return thing.reference if isinstance(thing, (StoredFunction, StoredType)) else reference(thing)


def _duration(ms: int) -> str:
    return f"{ms / 1000:g}s" if ms >= 1000 else f"{ms}ms"


def _event_label(event_type: str) -> str:
    return _ENGINE_LABELS.get(event_type, event_type)


_ENGINE_LABELS = {
    EventType.InputEvent: "input event",
    EventType.TimerEvent: "timer event",
    EventType.CancelEvent: "cancel event",
}


def render_mermaid(plan: AgentPlan) -> str:
    """Return the event graph: input → actions → output, edges labelled with event types and conditions.

    An event type that an action listens to and no action is seen to send comes from a node of its own; one that is sent
    and that no action names ends in one. A condition that no type can be told of is a dotted edge from ``any event``.
    """
    senders: dict[str, list[str]] = {event_type: [node] for event_type, (node, _) in _ENGINE_NODES.items()}
    sent = {action.index: sent_types(action.function) or [] for action in plan.actions}
    for action in plan.actions:
        for event_type in sent[action.index]:
            if event_type not in _ENGINE_NODES:
                senders.setdefault(event_type, []).append(f"a{action.index}")
    graph = _Graph(senders)
    for action in plan.actions:
        for event_type in action.trigger_types:
            graph.listen(event_type, action.index, "")
        for source in action.conditions:
            graph.listen(read_condition(source).only_type, action.index, source)
    for action in plan.actions:
        for event_type in sent[action.index]:
            graph.send(event_type, action.index)
    nodes = [f'  a{action.index}["{_escape(action.name)}"]' for action in plan.actions]
    return "\n".join(["flowchart LR", *graph.nodes, *nodes, *graph.edges]) + "\n"


class _Graph:
    def __init__(self, senders: dict[str, list[str]]) -> None:
        self._senders = senders
        self._heard: set[str] = set()
        self._shown: dict[str, str] = {}  # node id -> its line
        self.edges: list[str] = []

    @property
    def nodes(self) -> list[str]:
        return list(self._shown.values())

    def listen(self, event_type: str | None, index: int, condition: str) -> None:
        """Draw the edges into an action: from every sender of the type, or from any event."""
        if event_type is None:
            self._shown.setdefault("any", '  any(["any event"])')
            self.edges.append(f'  any -.->|"{_label(condition)}"| a{index}')
            return
        self._heard.add(event_type)
        label = _label(condition or _event_label(event_type))
        if event_type in _ENGINE_NODES:
            node, title = _ENGINE_NODES[event_type]
            self._shown.setdefault(node, f'  {node}(["{title}"])')
        senders = self._senders.get(event_type)
        if senders is None:
            node = f"from{len(self._shown)}"
            self._senders[event_type] = senders = [node]
            self._shown[node] = f'  {node}(["{_escape(event_type)}"])'
        self.edges += [f'  {sender} -->|"{label}"| a{index}' for sender in senders]

    def send(self, event_type: str, index: int) -> None:
        """Draw the edges out of an action that no listener has drawn."""
        if event_type == EventType.OutputEvent:
            self._shown.setdefault("output", '  output(["output"])')
            self.edges.append(f'  a{index} -->|"output event"| output')
        elif event_type == EventType.TimerEvent:
            self._shown.setdefault("timer", '  timer(["timer"])')
            self.edges.append(f'  a{index} -.->|"set_timer"| timer')
        elif event_type not in self._heard:
            node = f"no_listener_{index}"
            self._shown.setdefault(node, f'  {node}(["no action names it"])')
            self.edges.append(f'  a{index} -->|"{_label(event_type)}"| {node}')


def _label(text: str) -> str:
    line = " ".join(text.split())
    return _escape(line if len(line) <= _LABEL_MAX else line[: _LABEL_MAX - 1] + "…")


def _escape(text: str) -> str:
    """Return text as Mermaid shows it literally inside quotes."""
    return (
        text.replace("#", "#35;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;").replace("|", "#124;")
    )

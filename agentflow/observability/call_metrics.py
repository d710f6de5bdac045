"""What metrics know of calls of models and tools: counted from reports, which are made of real calls only.

Each call is counted once, under all that is known of it; what is exported sums that up, when an exporter asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from agentflow.api.executions import ExecutionEntityTypes, ExecutionStatus, ModelCall
from agentflow.api.metrics import Buckets
from agentflow.observability import names
from agentflow.observability.names import GenAiConvention, MetricName
from agentflow.observability.series import Value
from agentflow.runtime.observation import ExecutionReported, StepSeen

MODEL_STEP = "chat:"
"""What the names of steps that call models begin with."""
OTHER = "other"
_TOKENS = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cached": "cached_tokens",
    "cache_write": "cache_write_tokens",
    "reasoning": "reasoning_tokens",
}
_OWN_TOKENS = ("input", "output", "cached", "reasoning")
_Labels = Mapping[str, str]
_Values = Iterator[tuple[MetricName, _Labels, Value]]
_decode_call = msgspec.msgpack.Decoder(ModelCall, strict=False).decode


class _ToolCall(msgspec.Struct):
    """What is read of a report of a tool."""

    duration_s: float | None = None


_decode_tool = msgspec.msgpack.Decoder(_ToolCall).decode


def read_call(metadata: bytes) -> ModelCall:
    """Return what a report says of a call of a model; user code may report anything."""
    try:
        return _decode_call(metadata) if metadata else ModelCall()
    except msgspec.ValidationError:
        return ModelCall()


class ModelKey(msgspec.Struct, frozen=True):
    """What calls are told apart by.

    Attributes:
        action: The action that made it.
        resource: Name of the chat model in the agent.
        model: Name of the model, as its provider has it.
        provider, response_model, server, port: See `ModelCall`.
        error: Class of its error; empty: the model answered.
    """

    action: str
    resource: str
    model: str = ""
    provider: str = ""
    response_model: str = ""
    server: str = ""
    port: int | None = None
    error: str = ""


class ModelMeter:
    """Calls of one model that ended alike. Durations in seconds.

    Attributes:
        calls: How many.
        retries: Those that were made again.
        durations: How long they took.
        first_chunks: How long they took to the first piece.
        waits: How long they waited for limits.
        per_call: Type of tokens → how many each call had.
        tokens: Type → how many.
        cost: What they cost.
    """

    __slots__ = ("calls", "cost", "durations", "first_chunks", "per_call", "retries", "tokens", "waits")

    def __init__(self) -> None:
        self.calls = self.retries = 0
        self.cost = 0.0
        self.durations, self.first_chunks, self.waits = (Buckets(names.GEN_AI_SECONDS) for _ in range(3))
        self.per_call = {kind: Buckets(names.GEN_AI_TOKENS) for kind in ("input", "output")}
        self.tokens = dict.fromkeys(_TOKENS, 0)

    def add(self, call: ModelCall, *, is_answered: bool) -> None:
        """Count a call."""
        self.calls += 1
        self.retries += call.attempt > 1
        self.durations.add(call.duration_s)
        self.waits.add(call.limit_wait_s)
        if not is_answered:
            return
        if call.first_token_s is not None:
            self.first_chunks.add(call.first_token_s)
        for kind, field in _TOKENS.items():
            self.tokens[kind] += getattr(call, field)
        for kind, buckets in self.per_call.items():
            buckets.add(getattr(call, _TOKENS[kind]))
        self.cost += call.cost or 0.0


class CallMeters:
    """Calls of models and tools of one agent.

    Attributes:
        models: By what they are told apart by.
        tools: (action, tool, error or nothing) → how long calls took, nanoseconds.
        saved: (action, chat model) → calls that the journal answered.

    Args:
        bounds_ns: Upper bounds of the buckets of tools.
        cardinality_max: Keys of models, and of tools.
        overflows: Takes the names of metrics that have too many.
    """

    def __init__(self, bounds_ns: Sequence[int], cardinality_max: int, overflows: dict[str, None]) -> None:
        self.models: dict[ModelKey, ModelMeter] = {}
        self.tools: dict[tuple[str, str, str], Buckets] = {}
        self.saved: dict[tuple[str, str], int] = {}
        self._bounds_ns = bounds_ns
        self._max = cardinality_max
        self._overflows = overflows

    def see_report(self, note: ExecutionReported) -> None:
        """Count a call that has ended."""
        if note.status == ExecutionStatus.STARTED:
            return
        error = "" if note.status == ExecutionStatus.SUCCESS else note.error.partition(":")[0]
        action = note.task.action.name
        if note.entity_type == ExecutionEntityTypes.LLM:
            self._add_model(action, note, error)
        elif note.entity_type == ExecutionEntityTypes.TOOL:
            self._add_tool(action, note, error)

    def _add_model(self, action: str, note: ExecutionReported, error: str) -> None:
        call = read_call(note.metadata)
        key = ModelKey(
            action, note.entity_name, call.model, call.provider, call.response_model, call.server, call.port, error
        )
        meter = self.models.get(key)
        if meter is None:
            if len(self.models) >= self._max:
                self._overflows[names.LLM_CALLS.name] = None
                key = ModelKey(OTHER, OTHER, OTHER)
            meter = self.models.setdefault(key, ModelMeter())
        meter.add(call, is_answered=not error)

    def _add_tool(self, action: str, note: ExecutionReported, error: str) -> None:
        try:
            duration_s = _decode_tool(note.metadata).duration_s if note.metadata else None
        except msgspec.ValidationError:
            duration_s = None
        key = (action, note.entity_name, error)
        if key not in self.tools and len(self.tools) >= self._max:
            self._overflows[names.TOOL_DURATION.name] = None
            key = (OTHER, OTHER, "")
        self.tools.setdefault(key, Buckets(self._bounds_ns)).add((duration_s or 0.0) * 1e9)

    def see_saved(self, step: StepSeen) -> None:
        """Count a step that the journal answered, if it calls a model."""
        if step.call.function.startswith(MODEL_STEP):
            key = (step.task.action.name, step.call.function.removeprefix(MODEL_STEP))
            if key not in self.saved and len(self.saved) >= self._max:
                self._overflows[names.LLM_CALLS_SAVED.name] = None
                key = (OTHER, OTHER)
            self.saved[key] = self.saved.get(key, 0) + 1


# -- what is shown
def call_values(agent: str, meters: CallMeters, convention: GenAiConvention) -> _Values:
    """Yield what an agent's calls are as of now; from any thread."""
    of_agent = {"agent": agent}
    own: dict[tuple[str, str, str], list[tuple[ModelKey, ModelMeter]]] = {}
    for key, meter in list(meters.models.items()):
        own.setdefault((key.action, key.resource, key.model), []).append((key, meter))
        yield from _convention_values(of_agent, key, meter, convention)
    for (action, resource, model), found in own.items():
        yield from _own_values({**of_agent, "action": action, "resource": resource, "model": model}, found)
    for (action, resource), count in list(meters.saved.items()):
        yield names.LLM_CALLS_SAVED, {**of_agent, "action": action, "resource": resource}, count
    for (action, tool, error), durations in list(meters.tools.items()):
        labels = {**of_agent, "action": action, "tool": tool, **_error(error)}
        yield names.TOOL_CALLS, labels, sum(durations.counts)
        yield names.TOOL_DURATION, labels, _sum([durations], 1e-9)


def _convention_values(of_agent: _Labels, key: ModelKey, meter: ModelMeter, convention: GenAiConvention) -> _Values:
    labels = {
        **of_agent,
        "action": key.action,
        "resource": key.resource,
        names.GEN_AI_OPERATION: names.CHAT,
        names.GEN_AI_PROVIDER: key.provider,
        names.GEN_AI_REQUEST_MODEL: key.model,
    }
    if key.response_model:
        labels[names.GEN_AI_RESPONSE_MODEL] = key.response_model
    if key.server:
        labels[names.SERVER_ADDRESS] = key.server
    if key.server and key.port is not None:
        labels[names.SERVER_PORT] = str(key.port)
    yield convention.duration, {**labels, **_error(key.error)}, _sum([meter.durations])
    if key.error:
        return
    if any(meter.first_chunks.counts):
        yield convention.first_chunk, labels, _sum([meter.first_chunks])
    for kind, metric in convention.tokens_per_call.items():
        typed = len({one.name for one in convention.tokens_per_call.values()}) == 1
        of_type = {names.GEN_AI_TOKEN_TYPE: kind} if typed else {}
        yield metric, {**labels, **of_type}, _sum([meter.per_call[kind]])
    for kind, metric in convention.tokens.items():
        yield metric, labels, meter.tokens[kind]


def _own_values(labels: _Labels, found: Sequence[tuple[ModelKey, ModelMeter]]) -> _Values:
    calls: dict[str, int] = {}
    for key, meter in found:
        calls[key.error] = calls.get(key.error, 0) + meter.calls
    for error, count in calls.items():
        yield names.LLM_CALLS, {**labels, **_error(error)}, count
    meters = [meter for _, meter in found]
    yield names.LLM_RETRIES, labels, sum(meter.retries for meter in meters)
    for kind in _OWN_TOKENS:
        yield names.LLM_TOKENS, {**labels, "token.type": kind}, sum(meter.tokens[kind] for meter in meters)
    yield names.LLM_COST, labels, sum(meter.cost for meter in meters)
    yield names.LIMITER_WAIT, labels, _sum([meter.waits for meter in meters])


def _error(error: str) -> _Labels:
    return {names.ERROR_TYPE: error} if error else {}


def _sum(buckets: Sequence[Buckets], scale: float = 1) -> Buckets:
    """Return the sum of histograms with the same bounds, a copy."""
    first = buckets[0]
    found = Buckets(first.bounds if scale == 1 else [bound * scale for bound in first.bounds])
    found.counts = [sum(counts) for counts in zip(*(one.counts for one in buckets), strict=True)]
    found.sum = sum(one.sum for one in buckets) * scale
    return found


# -- resources
class WatchedResources(Protocol):
    """What metrics see of the resources of a process (`agentflow.runtime.resources.Resources`)."""

    @property
    def traffic(self) -> Any:  # noqa: ANN401 (a `Traffic`)
        """Its gates, by connection: the resource itself."""
        ...

    def health(self) -> Iterable[Any]:
        """How each resource is doing."""
        ...


class GateFigures(msgspec.Struct):
    """The gates of all connections of one name: two agents may each have one.

    Attributes:
        active: Calls that are on their way.
        waiting: Calls that wait.
        is_open_circuit: Whether calls are kept from one of them.
        retry_after_s: How long that lasts still.
    """

    active: int = 0
    waiting: int = 0
    is_open_circuit: bool = False
    retry_after_s: float = 0.0


def gate_figures(resources: WatchedResources) -> dict[str, GateFigures]:
    """Return what the gates do, by the name of the connection, or its class where it has none; from any thread."""
    found: dict[str, GateFigures] = {}
    for connection, gate in list(resources.traffic.gates.items()):
        figures = found.setdefault(connection.name or type(connection).__name__, GateFigures())
        figures.active += gate.active
        figures.waiting += gate.waiting
        figures.is_open_circuit |= gate.is_open_circuit
        figures.retry_after_s = max(figures.retry_after_s, gate.retry_after_s())
    return found


def resource_metrics(
    resources: WatchedResources,
) -> Iterator[tuple[MetricName, Callable[[], list[tuple[float, _Labels]]]]]:
    """Yield the metrics of resources and gates, each with what reads it when an exporter asks."""

    def gates(field: str) -> list[tuple[float, _Labels]]:
        return [(getattr(gate, field), {"connection": name}) for name, gate in gate_figures(resources).items()]

    def states() -> list[tuple[float, _Labels]]:
        # Two agents may each have a resource of one name.
        found = {(one.name, one.type, one.state): None for one in resources.health()}
        return [(1, {"resource": name, "type": kind, "state": state}) for name, kind, state in found]

    yield names.GATE_ACTIVE, lambda: gates("active")
    yield names.GATE_WAITING, lambda: gates("waiting")
    yield names.CIRCUIT_OPEN, lambda: gates("is_open_circuit")
    yield names.RESOURCES, states

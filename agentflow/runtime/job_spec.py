"""What a job is made of, before it runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from agentflow.api.codecs import JSON, Codec
from agentflow.api.metrics import MetricRegistry
from agentflow.core.limits import OperatorLimits
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.codecs import KeyBy
from agentflow.runtime.ports import KeyedState, Observer, Signals, Sink, Source, StreamOutlet
from agentflow.runtime.requests import RequestTable
from agentflow.runtime.resources import Resources
from agentflow.runtime.savepoints import WriteSavepoint
from agentflow.runtime.settings import JobSettings


class AgentStage(msgspec.Struct, frozen=True):
    """One agent of a chain and the key its records are grouped by.

    Raises:
        PlanError: No input triggers anything of the agent.
    """

    plan: AgentPlan
    key_by: KeyBy

    def __post_init__(self) -> None:
        self.plan.check_reach()


class JobSpec(msgspec.Struct, frozen=True):
    """What a job is made of.

    Attributes:
        settings: Settings.
        stages: The chain of agents, first one first.
        open_source: Makes the source; called at each (re)start.
        open_sinks: Makes the sinks by role: ``sink`` and perhaps ``dead-letter``; called at each (re)start.
        open_state: Opens keyed state, at once or as a coroutine; called at each (re)start.
        output_codec: How outputs are encoded for the sink.
        has_tombstones: Whether the sink's records may have no value: that is what an output of None becomes.
        first_interval_share: Share of the checkpoint interval before the first checkpoint; subtasks of one worker have different
            ones, so that they do not all commit at once.
        open_signals: Makes what signals come from, None: the job takes none; called at each (re)start, behind ``open_source``.
        rekeyed_source: Label of the source behind the sink ``repartition``, to which records of all other sources go.
        observers: Makes what looks at an agent, given its plan, its place in the chain and the incarnation; called at each (re)start.
        requests: Inputs that are submitted to the running job; None: it takes none, but those of an `Ingress`.
        is_chain: Each agent but the first gets the outputs of the one before it; else each is asked for itself.
        metrics: What the agents' own metrics are kept in; None: something that nobody exports.
        subtask: Number of the subtask.
        on_end: Called when the job has ended, for good.
        resources: Resources of the worker process, which outlive the job; None: it has its own, and closes them at its end.
        stream_outlet: Takes what actions say while they work (`ctx.stream`); None: only callers of requests may read it.
        write_savepoint: Writes savepoints; None: the job's state cannot be handed out.
    """

    settings: JobSettings
    stages: Sequence[AgentStage]
    open_source: Callable[[], Source]
    open_sinks: Callable[[], Mapping[str, Sink]]
    open_state: Callable[[], KeyedState | Awaitable[KeyedState]]
    output_codec: Codec = JSON
    has_tombstones: bool = False
    first_interval_share: float = 1.0
    rekeyed_source: str | None = None
    open_signals: Callable[[], Signals | None] = lambda: None
    observers: Callable[[AgentPlan, int, str], Sequence[Observer]] = lambda plan, index, incarnation: ()  # noqa: ARG005
    requests: RequestTable | None = None
    is_chain: bool = True
    metrics: MetricRegistry | None = None
    subtask: int = 0
    on_end: Callable[[], Awaitable[None]] | None = None
    write_savepoint: WriteSavepoint | None = None
    resources: Resources | None = None
    stream_outlet: StreamOutlet | None = None


def operator_limits(settings: JobSettings) -> OperatorLimits:
    """Return the limits of each of its operators."""
    return OperatorLimits(
        in_flight_max=settings.run.in_flight_max,
        key_pending_max=settings.key.pending_max,
        is_overflow_dead=settings.on_overflow == "dead-letter",
        tasks_max=settings.run.tasks_max,
        timers_max=settings.timer.pending_max,
        cache_bytes=settings.state.cache_bytes,
        sleeping_max=settings.run.sleeping_max,
        signals_max=settings.signals.pending_max,
        signal_ttl_ms=settings.signals.ttl_ms,
    )

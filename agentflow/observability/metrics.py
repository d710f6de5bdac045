"""Metrics of a job: what its subtasks count, what its agents count, what its actions keep; collected when an exporter asks.

Nothing is counted for an exporter, so nothing waits for one: `JobMetrics.collect` reads, from any thread, what is there. Once a
second the loop itself takes what can only be counted there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from agentflow.api.metrics import Buckets, Counter, Gauge, Histogram, Meter, MetricRegistry
from agentflow.observability import names
from agentflow.observability.admin import LoopWatch
from agentflow.observability.call_metrics import WatchedResources, call_values, resource_metrics
from agentflow.observability.exporting import Destination, Pusher, Reachability, reason_of
from agentflow.observability.logs import log_event
from agentflow.observability.names import MetricKind, MetricName
from agentflow.observability.operator_metrics import AgentMeter, OperatorMetrics, PlanView
from agentflow.observability.series import Points, Series, Value, point
from agentflow.runtime.settings import MetricsSettings

_TICK_S = 1.0
_COMPLETED, _FAILED = {"outcome": "completed"}, {"outcome": "failed"}
_NS = 1e-9
Read = Callable[[], Iterable[tuple[float, Mapping[str, str]]]]


class Watched(Protocol):
    """What metrics see of a job: all its subtasks in this process."""

    @property
    def status(self) -> Any:  # noqa: ANN401 (a `JobStatus`)
        """The sum over everything that ran here."""
        ...

    @property
    def statuses(self) -> Mapping[int, Any]:
        """`JobStatus` of each subtask that runs here; from any thread."""
        ...

    @property
    def figures(self) -> Mapping[int, Any]:
        """`SubtaskFigures` of each subtask that runs here; on the loop."""
        ...


class WatchedWorker(Watched, Protocol):
    """What metrics see of a worker (`agentflow.runtime.worker.Worker`)."""

    rebalances: int

    @property
    def lags(self) -> Mapping[str, int]:
        """Partition → records that are not read yet."""
        ...

    @property
    def transaction_aborts(self) -> int:
        """Transactions that were aborted here."""
        ...


class RequestCounts(Protocol):
    """What metrics see of requests (`agentflow.runtime.requests.RequestTable`)."""

    answered: int
    failed: int

    @property
    def open_count(self) -> int: ...  # noqa: D102
    @property
    def blocked_count(self) -> int: ...  # noqa: D102


class JobMetrics:
    """The metrics of one job in this process.

    Args:
        job: Name of the job.
        settings: Buckets, interval, and how many sets of attributes a metric may have.
        registry: What actions keep.
        convention: What metrics of calls of models are called.
    """

    def __init__(
        self,
        job: str,
        settings: MetricsSettings,
        registry: MetricRegistry,
        convention: names.GenAiConvention = names.GEN_AI_1_41,
    ) -> None:
        self._convention = convention
        self._job = {"job": job}
        self._settings = settings
        self._registry = registry
        self._bounds_ns = settings.bounds_ns()
        self._agents: dict[tuple[int, str], AgentMeter] = {}
        self._read: list[tuple[MetricName, Read]] = []
        self._watched: Watched | None = None
        self._figures: Mapping[int, Any] = {}
        self._told: set[str] = set()
        self._destinations: list[Destination] = []
        self._soundness = Reachability("some metrics", "every exporter")
        self._pushers: list[Pusher] = []
        self._loop: LoopWatch | None = None
        self._ticking: asyncio.Task[None] | None = None
        self.observe(names.METRIC_OVERFLOWS, lambda: [(len(self._overflows()), {})])

    def push_to(self, destination: Destination) -> None:
        """Push everything to a place, from `start` on."""
        self._destinations.append(destination)

    def start(self) -> LoopWatch:
        """Watch the running loop, and push; again: nothing."""
        if self._loop is None:
            self._loop = watch = LoopWatch()
            self.observe(names.LOOP_LAG, lambda: [(watch.lag_s(), {})])
            self._ticking = asyncio.ensure_future(self._tick())
            interval_ms = self._settings.interval_ms
            self._pushers = [Pusher(self.collect, destination, interval_ms) for destination in self._destinations]
        return self._loop

    # -- what is looked at
    def observer(self, plan: PlanView, subtask: int, index: int, incarnation: str) -> OperatorMetrics:  # noqa: ARG002 (the port)
        """Return what looks at an agent in a life of its subtask; on the loop."""
        self.start()
        slot = (index, plan.name)
        if slot not in self._agents:
            self._agents[slot] = AgentMeter(plan, self._bounds_ns, self._settings.cardinality_max)
        return OperatorMetrics(plan, self._agents[slot])

    def observe(self, name: MetricName, read: Read) -> None:
        """Add a metric: ``read`` returns its values with their attributes when somebody asks, in any thread."""
        self._read.append((name, read))

    def watch(self, watched: Watched) -> None:
        """Add the metrics of the job's subtasks."""
        self._watched = watched
        for name, field in _TOTALS:
            self.observe(name, lambda field=field: [(_attempted(watched.status, field), {})])  # type: ignore[misc]
        for name, field, scale in _STATUSES:
            self.observe(name, lambda field=field, scale=scale: _each(watched.statuses, field, scale))  # type: ignore[misc]
        for name, field in _FIGURES:
            self.observe(name, lambda field=field: _each(self._figures, field, 1))  # type: ignore[misc]
        self.observe(names.CHECKPOINT_AGE, lambda: _ages(watched.statuses))
        self.observe(names.STATE_SIZE, lambda: _sizes(self._figures))

    def watch_worker(self, worker: WatchedWorker) -> None:
        """Add the metrics of a worker, and of its subtasks."""
        self.watch(worker)
        self.observe(names.REBALANCES, lambda: [(worker.rebalances, {})])
        self.observe(names.ABORTS, lambda: [(worker.transaction_aborts, {})])
        self.observe(names.LAG, lambda: _lags(worker.lags))

    def watch_requests(self, table: Callable[[], RequestCounts | None]) -> None:
        """Add the metrics of requests; ``table`` returns what counts them, None: the job takes none."""

        def read(field: str, attributes: Mapping[str, str]) -> list[tuple[float, Mapping[str, str]]]:
            found = table()
            return [] if found is None else [(getattr(found, field), attributes)]

        self.observe(names.REQUESTS, lambda: [*read("answered", _COMPLETED), *read("failed", _FAILED)])
        self.observe(names.REQUESTS_OPEN, lambda: read("open_count", {}))
        self.observe(names.REQUESTS_WAITING, lambda: read("blocked_count", {}))

    def watch_resources(self, resources: WatchedResources) -> None:
        """Add the metrics of the process's resources, and of the gates that calls of models pass."""
        for name, read in resource_metrics(resources):
            self.observe(name, read)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._settle()

    def _settle(self) -> None:
        try:
            self.settle()
        except Exception as error:  # noqa: BLE001 (an edge: the job goes on, whatever telemetry does)
            self._soundness.tell(is_sent=False, reason=reason_of(error))

    def settle(self) -> None:
        """Take what only the loop can count."""
        now_s = time.monotonic()
        for meter in self._agents.values():
            meter.settle(now_s)
        if self._watched is not None:
            self._figures = self._watched.figures
        for name in self._overflows():
            if name not in self._told:
                self._told.add(name)
                log_event(
                    "metric has too many sets of attributes; the others are counted together",
                    "warning",
                    metric=name,
                    limit=self._settings.cardinality_max,
                )

    def _overflows(self) -> list[str]:
        own = [name for meter in list(self._agents.values()) for name in list(meter.overflows)]
        return [*own, *(names.USER_PREFIX + name for name in list(self._registry.overflows))]

    async def close(self) -> None:
        """Push what is there, and look no more."""
        self._settle()
        if self._loop is not None and self._ticking is not None:
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking
            await self._loop.close()
        for pusher in self._pushers:
            await asyncio.to_thread(pusher.close)

    # -- what is shown
    def collect(self) -> list[Series]:
        """Return everything as it is now, without what cannot be read or is no number; from any thread."""
        found: dict[MetricName, Points] = {}
        for name, attributes, value in self._values():
            try:
                found.setdefault(name, []).append(point({**self._job, **attributes}, value))
            except Exception as error:  # noqa: BLE001 (an edge: whatever it is, all others are exported)
                self._soundness.tell(is_sent=False, reason=f"{name.name}: {reason_of(error)}")
        return [Series(name, points) for name, points in found.items()]

    def _values(self) -> Iterator[tuple[MetricName, Mapping[str, str], Value]]:
        for name, read in self._read:
            try:
                values = list(read())
            except Exception as error:  # noqa: BLE001 (as above; what is read may be user code)
                self._soundness.tell(is_sent=False, reason=f"{name.name}: {reason_of(error)}")
                continue
            for number, attributes in values:
                yield name, attributes, number
        for meter in list(self._agents.values()):
            yield from _agent_values(meter)
            yield from call_values(meter.agent, meter.calls, self._convention)
        for user_name, series in self._registry.series():
            yield from _user_values(names.USER_PREFIX + user_name, series)


_TOTALS = (
    (names.RECORDS_IN, "records_in"),
    (names.RECORDS_OUT, "records_out"),
    (names.DEAD_LETTERS, "dead_letters"),
    (names.RESTARTS, "restarts"),
)
_STATUSES = (
    (names.RUNS_IN_FLIGHT, "runs_in_flight", 1),
    (names.CHECKPOINT_ID, "checkpoint", 1),
    (names.CHECKPOINT_DURATION, "checkpoint_ms", 0.001),
    (names.CHECKPOINT_SIZE, "checkpoint_bytes", 1),
    (names.RESTORE_DURATION, "restore_ms", 0.001),
)
_FIGURES = (
    (names.RUNS_PENDING, "runs_pending"),
    (names.RUNS_PARKED, "runs_parked"),
    (names.RUNS_SLEEPING, "runs_sleeping"),
    (names.MAILBOX_DEPTH, "mailbox_depth"),
    (names.SOURCE_PAUSED, "is_paused"),
)


def _each(subtasks: Mapping[int, Any], field: str, scale: float) -> list[tuple[float, Mapping[str, str]]]:
    return [(getattr(of, field) * scale, {"subtask": str(number)}) for number, of in subtasks.items()]


def _attempted(status: Any, field: str) -> int:  # noqa: ANN401 (a `JobStatus`)
    """Return a total with what restarts have undone: a counter never falls."""
    return int(getattr(status, field) + getattr(status.undone, field, 0))


def _ages(statuses: Mapping[int, Any]) -> Iterator[tuple[float, Mapping[str, str]]]:
    now_ms = time.time_ns() // 1_000_000
    for number, status in statuses.items():
        if status.checkpoint_completed_ms is not None:
            yield max(0, now_ms - status.checkpoint_completed_ms) / 1000, {"subtask": str(number)}


def _sizes(figures: Mapping[int, Any]) -> Iterator[tuple[float, Mapping[str, str]]]:
    for number, of in figures.items():
        for part, size in of.state_bytes.items():
            yield size, {"subtask": str(number), "part": part}


def _lags(lags: Mapping[str, int]) -> Iterator[tuple[float, Mapping[str, str]]]:
    for label, lag in lags.items():
        topic, _, partition = label.rpartition("/")
        yield lag, {"topic": topic, "partition": partition}


def _seconds(durations_ns: Buckets) -> Buckets:
    """Return a copy of a histogram of nanoseconds in seconds."""
    copy = Buckets([bound / 1_000_000_000 for bound in durations_ns.bounds])
    copy.counts, copy.sum = list(durations_ns.counts), durations_ns.sum * _NS
    return copy


def _copied(buckets: Buckets) -> Buckets:
    copy = Buckets(buckets.bounds)
    copy.counts, copy.sum = list(buckets.counts), buckets.sum
    return copy


def _agent_values(meter: AgentMeter) -> Iterator[tuple[MetricName, Mapping[str, str], Value]]:
    agent = {"agent": meter.agent}
    yield names.EVENTS, agent, meter.events
    yield names.EVENT_RATE, agent, meter.event_rate.per_second
    for name, action in meter.actions.items():
        of_action = {**agent, "action": name}
        yield names.ACTIONS, of_action, action.attempts
        yield names.ACTION_RATE, of_action, meter.action_rates[name].per_second
        yield names.ACTION_DURATION, of_action, _seconds(action.durations)
        yield names.ACTION_RETRIES, of_action, action.retries
        yield names.ACTION_SKIPS, of_action, action.skips
        yield names.ACTION_CANCELLATIONS, of_action, action.cancellations
        for error, attempts in list(action.failures.items()):
            yield names.ACTION_FAILURES, {**of_action, "error.type": error}, attempts
    for (function, error), durations in list(meter.steps.items()):
        attributes = {**agent, "step": function, **({"error.type": error} if error else {})}
        yield names.STEP_DURATION, attributes, _seconds(durations)
        yield names.STEPS_CALLED, attributes, sum(durations.counts)
    for function, count in list(meter.steps_replayed.items()):
        yield names.STEPS_REPLAYED, {**agent, "step": function}, count
    for function, count in list(meter.step_retries.items()):
        yield names.STEP_RETRIES, {**agent, "step": function}, count
    if any(meter.journal_groups.counts):
        yield names.JOURNAL_RECORDS, agent, meter.journal_groups.sum
        yield names.JOURNAL_DURATION, agent, _seconds(meter.journal_durations)
        yield names.JOURNAL_GROUP, agent, _copied(meter.journal_groups)


def _user_values(name: str, series: list[tuple[Any, Any]]) -> Iterator[tuple[MetricName, Mapping[str, str], Value]]:
    """Return the values of one metric that actions keep. A counter that has gone down somewhere goes up and down everywhere."""
    description = "Kept by actions."
    is_monotonic = all(metric.is_monotonic for _, metric in series if isinstance(metric, Counter))
    kind = MetricKind.COUNTER if is_monotonic else MetricKind.UP_DOWN_COUNTER
    for pairs, metric in series:
        attributes = dict(pairs)
        if isinstance(metric, Gauge):
            yield MetricName(name, MetricKind.GAUGE, "1", description), attributes, metric.get_value()
        elif isinstance(metric, Histogram):
            yield MetricName(name, MetricKind.HISTOGRAM, "1", description), attributes, _copied(metric.buckets)
        else:
            yield MetricName(name, kind, "1", description), attributes, metric.get_count()
            if isinstance(metric, Meter):
                rate = MetricName(f"{name}.rate", MetricKind.GAUGE, "1/s", description)
                yield rate, attributes, metric.get_rate()

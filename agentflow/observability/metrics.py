"""Metrics of a worker, through OpenTelemetry's SDK, as Prometheus text.

Everything is read when somebody asks: instruments are observable, so a record costs nothing here. The table below is the whole
list of names; units are UCUM, and Prometheus shows ``agentflow.records.in`` as ``agentflow_records_in_total``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, generate_latest


class WorkerView(Protocol):
    """What metrics see of a worker (`agentflow.runtime.worker.Worker`)."""

    rebalances: int

    @property
    def statuses(self) -> Mapping[int, Any]:
        """`JobStatus` of each subtask that runs here."""
        ...

    @property
    def status(self) -> Any:  # noqa: ANN401 (a `JobStatus`)
        """The sum over everything that ran here."""
        ...

    @property
    def lags(self) -> Mapping[str, int]:
        """Partition → records that are not read yet."""
        ...

    @property
    def transaction_aborts(self) -> int:
        """Transactions that were aborted here."""
        ...


Read = Callable[[WorkerView], Iterable[tuple[float, dict[str, Any]]]]


def _total(name: str) -> Read:
    return lambda worker: [(getattr(worker.status, name), {})]


def _each(name: str, scale: float = 1) -> Read:
    return lambda worker: [
        (getattr(status, name) * scale, {"subtask": number}) for number, status in worker.statuses.items()
    ]


def _ages(worker: WorkerView) -> Iterable[tuple[float, dict[str, Any]]]:
    now_ms = time.time_ns() // 1_000_000
    for number, status in worker.statuses.items():
        if status.checkpoint_completed_ms is not None:
            yield max(0, now_ms - status.checkpoint_completed_ms) / 1000, {"subtask": number}


def _lags(worker: WorkerView) -> Iterable[tuple[float, dict[str, Any]]]:
    for label, lag in worker.lags.items():
        topic, _, partition = label.rpartition("/")
        yield lag, {"topic": topic, "partition": partition}


COUNTERS: dict[str, tuple[str, str, Read]] = {
    "agentflow.records.in": ("{record}", "Records read, rejected ones included.", _total("records_in")),
    "agentflow.records.out": ("{record}", "Outputs given to the sink.", _total("records_out")),
    "agentflow.dead_letters": ("{record}", "Records given to the dead-letter sink.", _total("dead_letters")),
    "agentflow.restarts": ("{restart}", "Restarts of subtasks.", _total("restarts")),
    "agentflow.rebalances": ("{rebalance}", "Assignments by the group.", lambda worker: [(worker.rebalances, {})]),
    "agentflow.transaction.aborts": (
        "{transaction}",
        "Transactions that were aborted.",
        lambda worker: [(worker.transaction_aborts, {})],
    ),
}
GAUGES: dict[str, tuple[str, str, Read]] = {
    "agentflow.runs.in_flight": ("{run}", "Unfinished runs.", _each("runs_in_flight")),
    "agentflow.lag": ("{record}", "Records of a partition that are not read yet.", _lags),
    "agentflow.checkpoint.id": ("1", "Number of the last completed checkpoint.", _each("checkpoint")),
    "agentflow.checkpoint.duration": ("s", "How long the last one took.", _each("checkpoint_ms", 0.001)),
    "agentflow.checkpoint.size": ("By", "Bytes of state in the last one.", _each("checkpoint_bytes")),
    "agentflow.checkpoint.age": ("s", "Time since the last one.", _ages),
    "agentflow.restore.duration": ("s", "How long the last start took to restore state.", _each("restore_ms", 0.001)),
}


class WorkerMetrics:
    """Observes one worker.

    Args:
        job: Name of the job.
        worker: What is observed.
        loop_lag_s: Reads the event loop's lag.
    """

    def __init__(self, job: str, worker: WorkerView, loop_lag_s: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()  # of its own: the process may have other metrics
        reader = PrometheusMetricReader(registry=self._registry, scope_info_enabled=False)
        resource = Resource.create({"service.name": "agentflow", "agentflow.job": job})
        self._provider = MeterProvider([reader], resource)
        meter = self._provider.get_meter("agentflow")

        def observing(read: Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
            return lambda _: [Observation(value, {"job": job, **labels}) for value, labels in read(worker)]

        for name, (unit, description, read) in COUNTERS.items():
            meter.create_observable_counter(name, [observing(read)], unit, description)
        for name, (unit, description, read) in GAUGES.items():
            meter.create_observable_gauge(name, [observing(read)], unit, description)
        lag = observing(lambda _: [(loop_lag_s(), {})])
        meter.create_observable_gauge("agentflow.loop.lag", [lag], "s", "How late the event loop's turns come.")

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

"""What looks at a job: event log, metrics, traces, as its settings say. One per process; subtasks come and go under it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from agentflow.api.metrics import MetricRegistry
from agentflow.environment.event_log import EventListener, EventLogPart, event_log_part
from agentflow.errors import ConfigError
from agentflow.observability import names
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.job import Job
from agentflow.runtime.job_status import JobStatus
from agentflow.runtime.ports import Observer, StreamOutlet
from agentflow.runtime.redaction import Redaction
from agentflow.runtime.resources import Resources
from agentflow.runtime.settings import JobSettings

if TYPE_CHECKING:
    from agentflow.observability.admin import AdminServer
    from agentflow.observability.metrics import JobMetrics
    from agentflow.observability.names import MetricName
    from agentflow.runtime.worker import Worker

Observers = Callable[[AgentPlan, int, str], Sequence[Observer]]
"""Makes the observers of an agent: its plan, its place in the chain, the incarnation of the job's state."""
Read = Callable[[], Iterable[tuple[float, Mapping[str, str]]]]
"""Returns values with their attributes."""


class Part(Protocol):
    """One way to look at a job."""

    def observer(self, plan: AgentPlan, subtask: int, index: int, incarnation: str) -> Observer | None:
        """Return what looks at an agent in a life of its subtask; None: nothing."""
        ...

    async def close(self) -> None:
        """Write what is left, and give everything back."""
        ...


class Telemetry:
    """The parts that a job's settings ask for. A job without any costs nothing.

    Args:
        settings: The job's settings.
        listeners: Functions that are called with each record of the event log.

    Attributes:
        registry: The metrics that actions keep; nobody exports them where there are no metrics.
        stream_outlet: Takes what actions say while they work; None: no topic is set.

    Raises:
        ConfigError: A package that a part needs is not installed, or a setting is wrong.
    """

    def __init__(self, settings: JobSettings, listeners: Sequence[EventListener] = ()) -> None:
        self.registry = MetricRegistry(settings.metrics.cardinality_max)
        self._settings = settings
        self._resources: Resources | None = None
        self._metrics = _metrics(settings, self.registry)
        self._parts: list[Part] = _parts(settings, listeners, self.observe)
        self.stream_outlet = _stream_outlet(settings, self.observe)
        if self._metrics is not None:
            self._parts.append(self._metrics)

    def observers(self, subtask: int) -> Observers:
        """Return what makes the observers of a subtask's agents."""
        parts = self._parts

        def make(plan: AgentPlan, index: int, incarnation: str) -> list[Observer]:
            made = [part.observer(plan, subtask, index, incarnation) for part in parts]
            return [observer for observer in made if observer is not None]

        return make

    @property
    def event_log(self) -> EventLogPart | None:
        """The event log; None: there is none."""
        return next((part for part in self._parts if isinstance(part, EventLogPart)), None)

    def watch(self, watched: Job | Worker, resources: Resources | None = None) -> None:
        """Let metrics and the admin port show what a job, or a worker, says of itself.

        Args:
            watched: The job, or the worker.
            resources: What a worker's agents share: models, tools; a job has its own.
        """
        self._resources = watched.resources if isinstance(watched, Job) else resources
        if self._metrics is None:
            return
        if self._resources is not None:
            self._metrics.watch_resources(self._resources)
        if isinstance(watched, Job):
            self._metrics.watch(_OneJob(watched))
            self._metrics.watch_requests(lambda: watched.requests)
        else:
            self._metrics.watch_worker(watched)

    def observe(self, name: MetricName, read: Read) -> None:
        """Let metrics show something else: ``read`` returns values with their attributes when an exporter asks, in its thread."""
        if self._metrics is not None:
            self._metrics.observe(name, read)

    def serve(self, not_ready: Callable[[], str | None]) -> AdminServer | None:
        """Serve health and metrics on `admin.port`; None: it is not set. On the loop.

        Args:
            not_ready: Says why the process takes no part yet; None: it does.

        Raises:
            ConfigError: The port cannot be had.
        """
        admin = self._settings.admin
        if admin.port is None:
            return None
        assert self._metrics is not None, "a port serves them"
        from agentflow.observability.admin import AdminServer

        with _needing_packages("admin.port: /metrics"):
            from agentflow.observability.otel import resource_of
            from agentflow.observability.otel_metrics import PrometheusText
        prometheus, metrics = PrometheusText(resource_of(self._settings.job)), self._metrics
        loop = metrics.start()
        return AdminServer(
            admin.host,
            admin.port,
            loop.is_alive,
            not_ready,
            lambda: prometheus.text(metrics.collect()),
            lambda: self._resources,
        )

    async def close(self) -> None:
        """Close the parts, all at once: a collector that does not answer is waited for once."""
        outlets = () if self.stream_outlet is None else (self.stream_outlet,)
        await asyncio.gather(*(part.close() for part in (*self._parts, *outlets)))


class _OneJob:
    """A job in the shape of a worker, for metrics: it is subtask 0."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @property
    def status(self) -> JobStatus:
        return self._job.status

    @property
    def statuses(self) -> Mapping[int, JobStatus]:
        return {0: self._job.status}

    @property
    def figures(self) -> Mapping[int, Any]:
        figures = self._job.figures
        return {} if figures is None else {0: figures}


def _parts(
    settings: JobSettings, listeners: Sequence[EventListener], observe: Callable[[MetricName, Read], None]
) -> list[Part]:
    parts: list[Part] = []
    if (event_log := event_log_part(settings, listeners)) is not None:
        parts.append(event_log)
        log = event_log.event_log
        observe(names.EVENT_LOG_RECORDS, log.record_counts)
        observe(names.EVENT_LOG_TRUNCATIONS, lambda: [(log.truncated, {})])
        observe(names.LISTENER_FAILURES, log.listener_failures)
    if settings.tracing.enabled:
        with _needing_packages("tracing.enabled"):
            from agentflow.observability.call_spans import capture_of
            from agentflow.observability.spans import SpanSink
            from agentflow.observability.traces import Tracing
        with _naming_collector():
            sink = SpanSink(settings.job, settings.otlp.endpoint)
        observe(names.SPANS_DROPPED, lambda: [(sink.dropped, {})])
        capture = capture_of(os.environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"))
        parts.append(Tracing(sink, settings.tracing, Redaction(settings.redaction), _convention(), capture))
    return parts


def _stream_outlet(settings: JobSettings, observe: Callable[[MetricName, Read], None]) -> StreamOutlet | None:
    streams = settings.streams
    if streams.kafka.topic is None:
        return None
    from agentflow.connectors.kafka.stream_topic import KafkaStreamTopic

    outlet = KafkaStreamTopic(settings.kafka, settings.topics, streams.kafka.topic, streams.buffer_bytes)
    observe(names.STREAM_CHUNKS, outlet.counts)
    return outlet


def _convention() -> names.GenAiConvention:
    return names.gen_ai_convention(os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN"))


def _metrics(settings: JobSettings, registry: MetricRegistry) -> JobMetrics | None:
    metrics = settings.metrics
    if settings.admin.port is None and not metrics.otlp and metrics.file is None:
        return None
    from agentflow.observability.exporting import MetricsFile
    from agentflow.observability.metrics import JobMetrics

    try:
        made = JobMetrics(settings.job, metrics, registry, _convention())
    except ValueError as error:
        raise ConfigError([f"metrics.histogram-buckets: {error}"]) from error
    if metrics.file is not None:
        made.push_to(MetricsFile(metrics.file))
    if metrics.otlp:
        with _needing_packages("metrics.otlp"):
            from agentflow.observability.otel import resource_of
            from agentflow.observability.otel_metrics import OtlpMetrics
        with _naming_collector():
            made.push_to(OtlpMetrics(resource_of(settings.job), settings.otlp.endpoint))
    return made


@contextlib.contextmanager
def _needing_packages(what: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            [f"{what} needs packages that are not installed ({error.name}): pip install 'agentflow[telemetry]'"]
        ) from error


@contextlib.contextmanager
def _naming_collector() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:  # a wrong variable; a certificate that cannot be read
        raise ConfigError([f"otlp.endpoint, or OpenTelemetry's variables: {error}"]) from error

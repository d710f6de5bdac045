"""Spans with ids of our own, as OpenTelemetry's SDK exports them; and the span that is current while user code runs."""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from agentflow.core.records import ErrorReport
from agentflow.core.trace_context import RunTrace
from agentflow.observability import names
from agentflow.observability.exporting import Reachability
from agentflow.observability.otel import endpoint_of, resource_of

_SCOPE = InstrumentationScope("agentflow")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET = Status(StatusCode.UNSET)
_ADDED_MAX = 128
_DELAY_MS = 1_000  # what a killed process loses
_LAST_EXPORT_S, _GIVE_UP_S = 2.0, 0.2


def context_of(trace_id: int, span_id: int, *, is_remote: bool = False, state: TraceState | None = None) -> SpanContext:
    """Return the context of a span that is exported."""
    return SpanContext(trace_id, span_id, is_remote, _SAMPLED, state)


class LiveSpan(Span):
    """The current span of user code, which may add to it; the engine ends it.

    Args:
        context: Its ids.

    Attributes:
        attributes, events, links: What was added.
        status: As it was set; None: it was not.
    """

    def __init__(self, context: SpanContext) -> None:
        self.attributes = BoundedAttributes(_ADDED_MAX, immutable=False)
        self.events: list[Event] = []
        self.links: list[Link] = []
        self.status: Status | None = None
        self._context = context

    def get_span_context(self) -> SpanContext:
        """Return its ids."""
        return self._context

    def is_recording(self) -> bool:
        """Whether what is added is kept."""
        return True

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Add attributes; there is a limit."""
        for key, value in attributes.items():
            self.attributes[key] = value

    def set_attribute(self, key: str, value: Any) -> None:  # noqa: ANN401 (whatever OpenTelemetry takes)
        """Add an attribute."""
        self.attributes[key] = value

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None) -> None:
        """Add an event."""
        if len(self.events) < _ADDED_MAX:
            self.events.append(Event(name, BoundedAttributes(_ADDED_MAX, attributes), timestamp))

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:
        """Add a link."""
        if len(self.links) < _ADDED_MAX:
            self.links.append(Link(context, attributes))

    def update_name(self, name: str) -> None:
        """Nothing: the name says what it is."""

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status; that of a failed attempt is its error, whatever was set."""
        self.status = status if isinstance(status, Status) else Status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, Any] | None = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: ARG002, FBT001, FBT002 (OpenTelemetry's signature)
    ) -> None:
        """Add an exception as an event."""
        text = "".join(traceback.format_exception(exception))
        own = exception_attributes(type(exception).__name__, str(exception), text)
        self.add_event("exception", {**own, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        """Nothing: the engine knows when it ends."""


def exception_attributes(kind: str, message: str, stacktrace: str = "") -> dict[str, str]:
    """Return the attributes of an exception event."""
    own = {"exception.type": kind, "exception.message": message}
    return own | {"exception.stacktrace": stacktrace} if stacktrace else own


class SpanSink:
    """Takes ended spans, and exports them in a thread.

    Args:
        job: Name of the job.
        endpoint: Base URL of the collector; None: as OpenTelemetry's variables say.
    """

    def __init__(self, job: str, endpoint: str | None) -> None:
        self._resource = resource_of(job)
        url = endpoint_of(endpoint, "traces")
        self._exporter = _Exporter(url)
        delay_ms = None if "OTEL_BSP_SCHEDULE_DELAY" in os.environ else _DELAY_MS
        self._processor = BatchSpanProcessor(self._exporter, schedule_delay_millis=delay_ms)

    def emit(
        self,
        name: str,
        trace: RunTrace,
        span_id: int,
        parent: SpanContext | None,
        began_ns: int,
        ended_ns: int,
        attributes: Mapping[str, Any],
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[Link] = (),
        events: Sequence[Event] = (),
        error: ErrorReport | None = None,
        live: LiveSpan | None = None,
    ) -> None:
        """Take one span.

        Args:
            name: Its name.
            trace: Where its run stands.
            span_id: Its id.
            parent: Its parent's; None: it begins its trace.
            began_ns: When it began, epoch nanoseconds.
            ended_ns: When it ended.
            attributes: What it says.
            kind: Its kind.
            links: To other spans.
            events: What happened in it.
            error: What it failed with.
            live: What user code has added.
        """
        status = _UNSET
        if live is not None:
            attributes = {**live.attributes, **attributes}
            links, events, status = [*links, *live.links], [*events, *live.events], live.status or _UNSET
        if error is not None:
            attributes = {**attributes, names.ERROR_TYPE: error.type}
            status = Status(StatusCode.ERROR, str(error))
            told = exception_attributes(error.type, error.message, error.traceback)
            events = [*events, Event("exception", told, ended_ns)]
        self._processor.on_end(
            ReadableSpan(
                name,
                context_of(trace.trace_id, span_id),
                parent,
                self._resource,
                attributes,
                events,
                links,
                kind,
                status=status,
                start_time=began_ns,
                end_time=max(began_ns, ended_ns),
                instrumentation_scope=_SCOPE,
            )
        )

    async def close(self) -> None:
        """Export what is left; a collector that has not answered is not waited for."""
        closing = threading.Thread(target=self._processor.shutdown, name="agentflow-spans", daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, _GIVE_UP_S if self._exporter.reachability.is_down else _LAST_EXPORT_S)
        self._exporter.shutdown()
        await asyncio.to_thread(closing.join, _GIVE_UP_S)


class _Exporter(SpanExporter):
    """OTLP over HTTP, and few words about a collector that does not answer."""

    def __init__(self, url: str) -> None:
        self._otlp = OTLPSpanExporter(endpoint=url)
        self.reachability = Reachability("spans", url)
        self._is_closed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export a batch."""
        if self._is_closed:
            return SpanExportResult.FAILURE
        result = self._otlp.export(spans)
        self.reachability.tell(is_sent=result is SpanExportResult.SUCCESS)
        return result

    def shutdown(self) -> None:
        """Stop trying. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._otlp.shutdown()  # type: ignore[no-untyped-call]

"""The span that is current while user code runs, and the thread that exports spans."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping
from typing import Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.trace import Span, SpanContext, Status, StatusCode, TraceFlags, TraceState

from agentflow.observability.exporting import Reachability, reason_of
from agentflow.observability.otel import resource_of
from agentflow.observability.otlp import OtlpSender
from agentflow.observability.span_encoding import UNSET, EndedSpan, SpanEvent, SpanLink, encode_request

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_ADDED_MAX = 128
_QUEUE_MAX = 8_192
_BATCH = 1_024
_DELAY_S = 1.0  # what a killed process loses is of its last moment
_REPEAT_S, _BACKOFF_S = 10.0, 1.0
_LAST_EXPORT_S, _GIVE_UP_S = 2.0, 0.2


class LiveSpan(Span):
    """The current span of user code, which may add to it; the engine ends it.

    Args:
        trace_id: Its trace.
        span_id: Its id.
        state: What the vendors of its trace have to say.

    Attributes:
        is_changed: Something was added.
        events, links: What was added.
        status, message: As they were set.
    """

    def __init__(self, trace_id: int, span_id: int, state: TraceState | None) -> None:
        self.is_changed = False
        self.events: list[SpanEvent] = []
        self.links: list[SpanLink] = []
        self.status, self.message = UNSET, ""
        self._attributes: BoundedAttributes | None = None
        self._ids = trace_id, span_id, state
        self._context: SpanContext | None = None

    @property
    def attributes(self) -> BoundedAttributes:
        """What was added; the oldest go when there are too many."""
        if self._attributes is None:
            self._attributes = BoundedAttributes(_ADDED_MAX, immutable=False)
        return self._attributes

    def get_span_context(self) -> SpanContext:
        """Return its ids; made when user code asks first."""
        if self._context is None:
            trace_id, span_id, state = self._ids
            self._context = SpanContext(trace_id, span_id, is_remote=False, trace_flags=_SAMPLED, trace_state=state)
        return self._context

    def is_recording(self) -> bool:
        """Whether what is added is kept."""
        return True

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Add attributes."""
        for key, value in (attributes or {}).items():
            self.set_attribute(key, value)

    def set_attribute(self, key: str, value: Any) -> None:  # noqa: ANN401 (whatever OpenTelemetry takes)
        """Add an attribute."""
        self.is_changed = True
        self.attributes[key] = value

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None) -> None:
        """Add an event."""
        self.is_changed = True
        if len(self.events) < _ADDED_MAX:
            is_time = isinstance(timestamp, int) and 0 <= timestamp < 2**64  # else it is none, or seconds
            at_ns = timestamp if timestamp is not None and is_time else time.time_ns()
            self.events.append(SpanEvent(str(name), at_ns, BoundedAttributes(_ADDED_MAX, attributes)))

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:
        """Add a link."""
        self.is_changed = True
        if len(self.links) < _ADDED_MAX and isinstance(context, SpanContext) and context.is_valid:
            own = BoundedAttributes(_ADDED_MAX, attributes)
            self.links.append(SpanLink(context.trace_id, context.span_id, own))

    def update_name(self, name: str) -> None:
        """Nothing: the name says what it is."""

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status; that of a failed attempt is its error, whatever was set."""
        code = status.status_code if isinstance(status, Status) else status
        if isinstance(status, Status):
            description = status.description
        if isinstance(code, StatusCode):
            self.is_changed = True
            self.status = code.value
            self.message = "" if description is None else str(description)  # many pass the exception itself

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
    """Takes ended spans, and exports them in a thread of its own.

    Args:
        job: Name of the job.
        endpoint: Base URL of the collector; None: as OpenTelemetry's variables say.

    Attributes:
        reachability: Of the collector.
    """

    def __init__(self, job: str, endpoint: str | None) -> None:
        self._crowded_out = self._spoilt = 0  # the first is the loop's, the other the thread's
        self._sender = OtlpSender("traces", endpoint)
        self.reachability = Reachability("spans", self._sender.url)
        self._soundness = Reachability("some spans", self._sender.url)
        self._resource = resource_of(job).attributes
        self._queue: deque[EndedSpan] = deque()
        self._is_awake = threading.Event()
        self._is_closed = False
        self._aborted = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """Spans that found the queue full: the collector is too slow, or away; and those that cannot be encoded."""
        return self._crowded_out + self._spoilt

    def emit(self, span: EndedSpan) -> None:
        """Take one span; on the loop. The first one starts the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="agentflow-spans", daemon=True)
            self._thread.start()
        queue = self._queue
        if len(queue) >= _QUEUE_MAX:
            self._crowded_out += 1
            return
        queue.append(span)
        if len(queue) >= _BATCH and not self._is_awake.is_set():
            self._is_awake.set()

    def _run(self) -> None:
        while not self._is_closed:
            is_full = self._is_awake.wait(_DELAY_S)
            self._is_awake.clear()
            self._export(_BATCH if is_full and not self._is_closed else 1)
        self._export(1)

    def _export(self, least: int) -> None:
        """Export batches for as long as there are so many spans."""
        queue = self._queue
        while len(queue) >= least and not self._aborted.is_set():
            batch = [queue.popleft() for _ in range(min(len(queue), _BATCH))]
            try:
                if (body := self._encoded(batch)) is not None:
                    self._send(body)
            except Exception as error:  # noqa: BLE001 (an edge: whatever it is, the next batch is exported)
                self._spoilt += len(batch)
                self.reachability.tell(is_sent=False, reason=reason_of(error))

    def _encoded(self, batch: list[EndedSpan]) -> bytes | None:
        """Return the request of a batch; spans that cannot be encoded are taken out of it. None: there are no others."""
        try:
            return encode_request(self._resource, "agentflow", batch)
        except Exception:  # noqa: BLE001 (whatever user code has added; which span it is shows when each is tried)
            batch[:] = [span for span in batch if self._is_sound(span)]
        return encode_request(self._resource, "agentflow", batch) if batch else None

    def _is_sound(self, span: EndedSpan) -> bool:
        try:
            encode_request({}, "", [span])
        except Exception as error:  # noqa: BLE001 (as above)
            self._soundness.tell(is_sent=False, reason=f"{span.name}: {reason_of(error)}")
            self._spoilt += 1
            return False
        return True

    def _send(self, body: bytes) -> None:
        """Send a batch, for some seconds where to try again may help."""
        give_up_s, backoff_s = time.monotonic() + _REPEAT_S, _BACKOFF_S
        while True:
            refusal = self._sender.send(body)
            self.reachability.tell(is_sent=refusal is None, reason=None if refusal is None else refusal.reason)
            if refusal is None or not refusal.is_passing:
                return
            wait_s = max(backoff_s * random.uniform(0.8, 1.2), refusal.wait_s)  # noqa: S311 (no secret)
            if time.monotonic() + wait_s >= give_up_s or self._aborted.wait(wait_s):
                return
            backoff_s *= 2

    async def close(self) -> None:
        """Export what is left; a collector that does not answer is not waited for."""
        if self._thread is None:
            return
        self._is_closed = True
        self._is_awake.set()
        await asyncio.to_thread(self._thread.join, _GIVE_UP_S if self.reachability.is_down else _LAST_EXPORT_S)
        self._aborted.set()
        await asyncio.to_thread(self._thread.join, _GIVE_UP_S)

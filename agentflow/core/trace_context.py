"""Trace context of runs (W3C): which trace a run belongs to, whether it is sampled, and what its spans are called by.

Everything is derived from the run's position and its input's headers, by hashing; so an attempt that a crash has interrupted is the
same span when it is made again, what was exported below it keeps its parent, and an output carries the same header after every
recovery. Nothing is stored, and no tracer is needed to know it.

A run continues the trace of its caller, and obeys the caller's decision to sample; a run without caller is sampled by its trace id:

    64 bits: hash of incarnation and source | 30 bits: the lot, which decides | 34 bits: offset

The lot is an arithmetic sequence over the offsets of a source: it spreads evenly, and costs no hash per record. Thirty bits are what
CPython calculates with at once.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

import msgspec

from agentflow.core.records import Headers, Record

if TYPE_CHECKING:
    from agentflow.core.effects import EmitRecord

TRACEPARENT, TRACESTATE, BAGGAGE = "traceparent", "tracestate", "baggage"
TRACE_HEADERS = frozenset({TRACEPARENT, TRACESTATE, BAGGAGE})
TRACEPARENT_BYTES_MAX = 256  # 55 today; a later version may have more behind it
TRACESTATE_BYTES_MAX = 512
BAGGAGE_BYTES_MAX = 8 * 2**10
SPREAD = 663_608_941  # 2**30 over the golden ratio
LOTS = 2**30
LOT_MASK = LOTS - 1
_OFFSET_BITS = 34
_OFFSET_MASK = 2**_OFFSET_BITS - 1
_MASK = 2**64 - 1
_RUN = 0xD6E8FEB86659FD93  # odd: the ids of runs stay apart
_SOURCES_MAX = 1_024
_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class Caller(msgspec.Struct, frozen=True):
    """Whoever sent a record, as its ``traceparent`` says.

    Attributes:
        trace_id: 128 bits.
        span_id: 64 bits.
        is_sampled: Whether it records its trace.
    """

    trace_id: int
    span_id: int
    is_sampled: bool


class RunTrace(msgspec.Struct, frozen=True):
    """Where a run stands in its trace.

    Attributes:
        trace_id: 128 bits.
        span_id: Of the run's span.
        caller: Whose span is its parent; None: it begins the trace.
        is_sampled: Whether its spans are exported although it does not fail.
    """

    trace_id: int
    span_id: int
    caller: Caller | None
    is_sampled: bool


def header(headers: Headers, name: str, bytes_max: int) -> bytes | None:
    """Return the first value of a header that is one: not missing, and not too long."""
    for own, value in headers:
        if own == name and isinstance(value, bytes) and 0 < len(value) <= bytes_max:
            return value
    return None


def caller_of(headers: Headers) -> Caller | None:
    """Return the caller that the first valid ``traceparent`` names; None: there is none, and the others say nothing either."""
    for name, value in headers:
        if name != TRACEPARENT or not isinstance(value, bytes) or len(value) > TRACEPARENT_BYTES_MAX:
            continue
        match = _TRACEPARENT.fullmatch(value.strip())
        if match is None or match[1] == b"ff" or (match[1] == b"00" and match[5] is not None):
            continue
        trace_id, span_id = int(match[2], 16), int(match[3], 16)
        if trace_id and span_id:
            return Caller(trace_id, span_id, bool(int(match[4], 16) & 1))
    return None


class TraceIds:
    """Derives the trace context of one operator's runs.

    Args:
        incarnation: Of the job's state: another job, or the same one begun anew, has other ids.
        sample_ratio: Share of the runs without caller that are sampled.

    Attributes:
        threshold: A run without caller is sampled if its lot is below.
    """

    def __init__(self, incarnation: str, sample_ratio: float) -> None:
        self.threshold = round(sample_ratio * LOTS)
        self._incarnation = incarnation
        self._sources: dict[str, tuple[int, int]] = {}

    def source(self, source: str) -> tuple[int, int]:
        """Return what the trace ids of a source's runs are made of: the high half, and the lot of offset 0."""
        found = self._sources.get(source)
        if found is None:
            digest = hashlib.blake2b(f"{self._incarnation}/{source}".encode("utf-8", "surrogatepass"), digest_size=16)
            number = int.from_bytes(digest.digest(), "big")
            if len(self._sources) >= _SOURCES_MAX:  # the sources of timers and of chained agents are many
                self._sources.clear()
            found = self._sources[source] = number >> 64, number & LOT_MASK
        return found

    def run(self, record: Record) -> RunTrace:
        """Return where the run of a record stands."""
        (high, start), offset = self.source(record.source), record.offset
        lot = (offset * SPREAD + start) & LOT_MASK
        low = lot << _OFFSET_BITS | offset & _OFFSET_MASK
        high ^= offset >> _OFFSET_BITS
        span_id = (low + high) * _RUN & _MASK or 1
        caller = caller_of(record.headers) if record.headers else None
        if caller is not None:
            return RunTrace(caller.trace_id, span_id, caller, caller.is_sampled)
        return RunTrace(high << 64 | low or 1, span_id, None, lot < self.threshold)

    def sampled_trace_id(self, record: Record) -> str | None:
        """Return the trace of a record's run as it is written, None: it is not sampled."""
        trace = self.run(record)
        return f"{trace.trace_id:032x}" if trace.is_sampled else None

    def headers_of(self, output: EmitRecord) -> Headers:
        """Return the headers of an output: what the action set; the span that produced it; what goes along with its trace."""
        own, record = output.own_headers or (), output.task.run.record
        names = {name for name, _ in own}
        trace = self.run(record)
        if TRACEPARENT not in names:
            span_id = trace.span_id
            if trace.is_sampled:
                span_id = attempt_span_id(span_id, output.task.path, output.task.attempt)
            own += ((TRACEPARENT, traceparent(trace.trace_id, span_id, is_sampled=trace.is_sampled)),)
        if record.headers:
            carried = [(BAGGAGE, BAGGAGE_BYTES_MAX)]
            if trace.caller is not None:  # else it is that of another trace
                carried.append((TRACESTATE, TRACESTATE_BYTES_MAX))
            for name, bytes_max in carried:
                value = None if name in names else header(record.headers, name, bytes_max)
                if value is not None:
                    own += ((name, value),)
        return own


def traceparent(trace_id: int, span_id: int, *, is_sampled: bool) -> bytes:
    """Return a header's value."""
    return b"00-%032x-%016x-%02x" % (trace_id, span_id, is_sampled)


def attempt_span_id(run_span_id: int, task: str, attempt: int) -> int:
    """Return the id of an attempt's span, however often it had to begin again; ``task`` is the task's path."""
    return span_id_of(run_span_id, f"{task}#{attempt}")


def step_span_id(attempt_id: int, step: str, call: int) -> int:
    """Return the id of the span of a call of a step."""
    return span_id_of(attempt_id, f"{step}#{call}")


def span_id_of(parent_id: int, name: str) -> int:
    """Return the id of a span by its parent's and what it is called by there."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8, key=parent_id.to_bytes(8, "big"))
    return int.from_bytes(digest.digest(), "big") or 1

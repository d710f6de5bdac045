"""Trace context: headers that nobody can trust, ids that come from nothing but positions, a decision that costs no hash."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from agentflow.core.effects import EmitRecord
from agentflow.core.records import Record
from agentflow.core.trace_context import (
    BAGGAGE_BYTES_MAX,
    TRACESTATE_BYTES_MAX,
    Caller,
    TraceIds,
    attempt_span_id,
    caller_of,
    step_span_id,
    traceparent,
)

TRACE, SPAN = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
VALID = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def output(record: Record, own: tuple | None = None, attempt: int = 1, path: str = "0:act") -> Any:
    task = SimpleNamespace(run=SimpleNamespace(record=record), path=path, attempt=attempt, id=f"{record.run_id}/{path}")
    return EmitRecord(b"1", task, 0, None, own)


# -- headers in
@pytest.mark.parametrize(
    ("values", "caller"),
    [
        ([VALID], Caller(TRACE, SPAN, True)),
        ([VALID[:-2] + b"00"], Caller(TRACE, SPAN, False)),
        ([VALID[:-2] + b"03"], Caller(TRACE, SPAN, True)),
        ([b" " + VALID + b"\t"], Caller(TRACE, SPAN, True)),
        ([b"cc" + VALID[2:] + b"-what the future has"], Caller(TRACE, SPAN, True)),
        ([b"", None, b"\xff\xfe", b"00-zz", VALID], Caller(TRACE, SPAN, True)),
        ([VALID, VALID.replace(b"4bf9", b"ffff")], Caller(TRACE, SPAN, True)),
        ([VALID + b"-more"], None),
        ([b"ff" + VALID[2:]], None),
        ([VALID.upper()], None),
        ([b"00-" + b"0" * 32 + VALID[35:]], None),
        ([VALID[:36] + b"0" * 16 + b"-01"], None),
        ([b"cc" + VALID[2:] + b"-" + b"x" * 1000], None),
        ([VALID.decode()], None),
        ([], None),
    ],
)
def test_first_valid_traceparent_counts_and_others_do_no_harm(values, caller):
    assert caller_of(tuple(("traceparent", value) for value in values)) == caller


@given(st.lists(st.tuples(st.sampled_from(["traceparent", "tracestate", "x"]), st.binary() | st.none() | st.text())))
def test_no_header_breaks_anything(headers):
    record = Record("t/0", 1, 2, b"{}", headers=tuple(headers))
    ids = TraceIds("i", 0.5)
    trace = ids.run(record)
    assert trace.trace_id
    assert trace.span_id
    produced = dict(ids.headers_of(output(record)))
    assert caller_of((("traceparent", produced["traceparent"]),)).trace_id == trace.trace_id


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_what_is_written_is_read_and_is_what_opentelemetry_reads(trace_id, span_id, is_sampled):
    value = traceparent(trace_id, span_id, is_sampled=is_sampled)
    assert caller_of((("traceparent", value),)) == Caller(trace_id, span_id, is_sampled)
    context = TraceContextTextMapPropagator().extract({"traceparent": value.decode()})
    (span,) = context.values()
    found = span.get_span_context()
    assert (found.trace_id, found.span_id, found.trace_flags.sampled) == (trace_id, span_id, is_sampled)


# -- the decision
def test_a_run_obeys_its_caller():
    for ratio in (0.0, 1.0):
        ids = TraceIds("i", ratio)
        for flag, is_sampled in ((b"01", True), (b"00", False)):
            trace = ids.run(Record("t/0", 5, 6, b"", headers=(("traceparent", VALID[:-2] + flag),)))
            assert (trace.trace_id, trace.is_sampled) == (TRACE, is_sampled)
            assert trace.caller == Caller(TRACE, SPAN, is_sampled)


@pytest.mark.parametrize("stride", [1, 2, 3, 100, 101, 4096])
def test_the_ratio_is_kept_whatever_the_distance_of_offsets(stride):
    ids = TraceIds("i", 0.01)
    sampled = sum(ids.run(Record("t/0", n * stride, 0, b"")).is_sampled for n in range(100_000))
    assert sampled == pytest.approx(1000, abs=20)


def test_all_and_none_are_all_and_none():
    for ratio, is_sampled in ((0.0, False), (1.0, True)):
        ids = TraceIds("i", ratio)
        assert {ids.run(Record("t/0", n, 0, b"")).is_sampled for n in range(1000)} == {is_sampled}


def test_a_larger_ratio_samples_what_a_smaller_one_does():
    small, large = TraceIds("i", 0.1), TraceIds("i", 0.3)
    records = [Record("t/0", n, 0, b"") for n in range(1000)]
    assert {n for n, r in enumerate(records) if small.run(r).is_sampled} < {
        n for n, r in enumerate(records) if large.run(r).is_sampled
    }


# -- ids
def test_ids_come_from_the_position_and_the_incarnation_alone():
    record = Record("t/0", 7, 8, b"{}")
    one, again = TraceIds("i", 0.5).run(record), TraceIds("i", 0.5).run(Record("t/0", 7, 9, b"other"))
    assert one == again
    assert one != TraceIds("j", 0.5).run(record)
    assert one.trace_id != TraceIds("i", 0.5).run(Record("t/1", 7, 8, b"{}")).trace_id


def test_ids_of_runs_attempts_and_calls_are_apart():
    ids = TraceIds("i", 1)
    seen: set[int] = set()
    for source in ("t/0", "t/1"):
        for offset in range(50):
            run = ids.run(Record(source, offset, 0, b"")).span_id
            seen.add(run)
            for path in ("0:a", "0:b", "0:a/0:c"):
                for attempt in (1, 2):
                    own = attempt_span_id(run, path, attempt)
                    seen |= {own, *(step_span_id(own, f".{n}", call) for n in range(2) for call in (1, 2))}
    assert len(seen) == 100 * (1 + 3 * 2 * 5)
    assert all(0 < one < 2**64 for one in seen)


def test_runs_of_one_caller_have_spans_of_their_own():
    ids = TraceIds("i", 1)
    headers = (("traceparent", VALID),)
    spans = {ids.run(Record("t/0", offset, 0, b"", headers=headers)).span_id for offset in range(1000)}
    assert len(spans) == 1000


def test_sources_are_kept_up_to_a_limit():
    ids = TraceIds("i", 1)
    first = ids.source("s0")
    for n in range(5000):
        ids.source(f"s{n}")
    assert len(ids._sources) <= 1024
    assert ids.source("s0") == first


# -- headers out
def test_output_of_a_sampled_run_names_the_attempt_that_sent_it():
    ids, record = TraceIds("i", 1), Record("t/0", 7, 8, b"{}")
    trace = ids.run(record)
    (header,) = ids.headers_of(output(record, attempt=2))
    assert header == (
        "traceparent",
        traceparent(trace.trace_id, attempt_span_id(trace.span_id, "0:act", 2), is_sampled=True),
    )
    assert ids.headers_of(output(record, attempt=2)) == (header,)


def test_output_of_a_run_that_is_not_sampled_says_so():
    ids, record = TraceIds("i", 0), Record("t/0", 7, 8, b"{}")
    trace = ids.run(record)
    assert ids.headers_of(output(record)) == (
        ("traceparent", traceparent(trace.trace_id, trace.span_id, is_sampled=False)),
    )


def test_output_continues_the_trace_of_the_caller_with_what_goes_along():
    ids = TraceIds("i", 1)
    carried = (
        ("traceparent", VALID),
        ("tracestate", b"v=1"),
        ("baggage", b"a=b"),
        ("other", b"x"),
        ("tracestate", b"w=2"),
    )
    headers = dict(ids.headers_of(output(Record("t/0", 7, 8, b"{}", headers=carried))))
    assert headers.keys() == {"traceparent", "tracestate", "baggage"}
    assert headers["traceparent"].startswith(b"00-4bf92f3577b34da6a3ce929d0e0e4736-")
    assert headers["traceparent"] != VALID
    assert (headers["tracestate"], headers["baggage"]) == (b"v=1", b"a=b")


def test_state_of_a_trace_that_is_not_continued_stays_behind():
    carried = (("traceparent", b"broken"), ("tracestate", b"v=1"), ("baggage", b"a=b"))
    headers = dict(TraceIds("i", 1).headers_of(output(Record("t/0", 7, 8, b"{}", headers=carried))))
    assert headers.keys() == {"traceparent", "baggage"}


def test_what_is_too_long_stays_behind():
    carried = (
        ("traceparent", VALID),
        ("tracestate", b"v" * (TRACESTATE_BYTES_MAX + 1)),
        ("baggage", b"b" * (BAGGAGE_BYTES_MAX + 1)),
    )
    headers = dict(TraceIds("i", 1).headers_of(output(Record("t/0", 7, 8, b"{}", headers=carried))))
    assert headers.keys() == {"traceparent"}


def test_what_the_action_sets_stays_as_it_is():
    own = (("traceparent", b"mine"), ("x", b"1"))
    record = Record("t/0", 7, 8, b"{}", headers=(("traceparent", VALID), ("tracestate", b"v=1")))
    assert TraceIds("i", 1).headers_of(output(record, own)) == (*own, ("tracestate", b"v=1"))

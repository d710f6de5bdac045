"""Spans as OTLP writes them, read with the official classes."""

from __future__ import annotations

import math
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from agentflow.observability.span_encoding import CONSUMER, ERROR, EndedSpan, SpanEvent, SpanLink, encode_request

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
VALUES = st.recursive(
    TEXTS | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
ATTRIBUTES = st.dictionaries(TEXTS, VALUES, max_size=4)
TIMES = st.integers(0, 2**64 - 1)
TRACES, SPANS = st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1)
ENDED = st.builds(
    EndedSpan,
    name=TEXTS,
    trace_id=TRACES,
    span_id=SPANS,
    parent_id=st.just(0) | SPANS,
    began_ns=TIMES,
    ended_ns=TIMES,
    attributes=ATTRIBUTES,
    kind=st.sampled_from([1, CONSUMER]),
    is_remote=st.booleans(),
    links=st.lists(st.builds(SpanLink, trace_id=TRACES, span_id=SPANS, attributes=ATTRIBUTES), max_size=2),
    events=st.lists(st.builds(SpanEvent, name=TEXTS, at_ns=TIMES, attributes=ATTRIBUTES), max_size=2),
    status=st.sampled_from([0, 1, ERROR]),
    message=TEXTS,
)


def plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(one) for one in value.array_value.values]
    return getattr(value, kind)


def attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: plain(pair.value) for pair in pairs}


@given(ATTRIBUTES, st.lists(ENDED, max_size=3))
def test_what_is_written_is_read(resource, spans):
    request = ExportTraceServiceRequest.FromString(encode_request(resource, "agentflow", spans))
    (of_resource,) = request.resource_spans
    assert attributes(of_resource.resource.attributes) == resource
    (scope,) = of_resource.scope_spans
    assert scope.scope.name == "agentflow"
    assert len(scope.spans) == len(spans)
    for read, span in zip(scope.spans, spans, strict=True):
        assert (read.name, read.kind) == (span.name, span.kind)
        assert int.from_bytes(read.trace_id, "big") == span.trace_id
        assert (len(read.trace_id), len(read.span_id)) == (16, 8)
        assert int.from_bytes(read.span_id, "big") == span.span_id
        assert int.from_bytes(read.parent_span_id, "big") == span.parent_id
        assert (read.start_time_unix_nano, read.end_time_unix_nano) == (span.began_ns, span.ended_ns)
        assert attributes(read.attributes) == span.attributes
        assert [(e.name, e.time_unix_nano, attributes(e.attributes)) for e in read.events] == [
            (e.name, e.at_ns, e.attributes) for e in span.events
        ]
        assert [(int.from_bytes(one.trace_id, "big"), int.from_bytes(one.span_id, "big")) for one in read.links] == [
            (one.trace_id, one.span_id) for one in span.links
        ]
        assert [attributes(one.attributes) for one in read.links] == [one.attributes for one in span.links]
        assert read.status.code == span.status
        assert read.status.message == (span.message if span.status else "")
        assert read.flags == 0x100 | (0x200 if span.is_remote else 0)


def test_what_no_attribute_can_be_is_shown_as_text():
    odd = {"large": 2**70, "none": None, "object": object, "surrogate": "a\ud800", "nan": math.nan}
    span = EndedSpan("x", 1, 2, 0, 3, 4, odd)
    request = ExportTraceServiceRequest.FromString(encode_request({}, "agentflow", [span]))
    read = attributes(request.resource_spans[0].scope_spans[0].spans[0].attributes)
    assert math.isnan(read.pop("nan"))
    assert read == {"large": str(2**70), "none": "None", "object": "<class 'object'>", "surrogate": "a\\ud800"}
    assert struct.calcsize("<cQcQ") == 18

"""The thread that exports spans: a busy collector is asked again, a full queue drops and counts, the end waits for nobody."""

from __future__ import annotations

import asyncio
import time

import pytest

from agentflow.observability import spans
from agentflow.observability.span_encoding import EndedSpan, SpanEvent
from agentflow.observability.spans import SpanSink
from tests.otlp_receiver import collector


def span(n: int) -> EndedSpan:
    return EndedSpan(f"span {n}", 1, n + 1, 0, 1, 2, {"n": n})


def test_spans_are_exported_at_the_end_in_their_order():
    with collector() as seen:
        sink = SpanSink("shop", seen.endpoint)
        for n in range(3):
            sink.emit(span(n))
        asyncio.run(sink.close())
        assert [one.attributes["n"] for one in seen.spans] == [0, 1, 2]
        assert seen.spans[0].resource["service.name"] == "shop"


def test_a_busy_collector_is_asked_again(monkeypatch, caplog):
    caplog.set_level("INFO", "agentflow")
    monkeypatch.setattr(spans, "_DELAY_S", 0.01)
    monkeypatch.setattr(spans, "_BACKOFF_S", 0.01)
    with collector() as seen:
        seen.status = 503
        sink = SpanSink("shop", seen.endpoint)
        sink.emit(span(1))
        seen.wait(lambda: seen.refused >= 2)
        seen.status = 200
        seen.wait(lambda: seen.spans)
        asyncio.run(sink.close())
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert caplog.records[0].agentflow["reason"] == "it answers 503 Service Unavailable"


def test_spans_that_find_the_queue_full_are_dropped_and_counted(monkeypatch):
    monkeypatch.setattr(spans, "_QUEUE_MAX", 10)
    sink = SpanSink("shop", "http://127.0.0.1:9")
    for n in range(100):
        sink.emit(span(n))
    assert sink.dropped >= 80
    asyncio.run(sink.close())


def test_a_span_that_cannot_be_encoded_is_dropped_alone_and_told(monkeypatch, caplog):
    monkeypatch.setattr(spans, "_DELAY_S", 0.01)
    spoilt = EndedSpan("spoilt", 1, 2, 0, 1, 2, {}, events=[SpanEvent("x", time.time(), {})])
    with collector() as seen:
        sink = SpanSink("shop", seen.endpoint)
        for one in (span(0), spoilt, span(1)):
            sink.emit(one)
        seen.wait(lambda: len(seen.spans) == 2)
        sink.emit(spoilt)
        sink.emit(span(2))
        seen.wait(lambda: len(seen.spans) == 3)
        asyncio.run(sink.close())
    assert [one.attributes["n"] for one in seen.spans] == [0, 1, 2]
    assert sink.dropped == 2
    (line,) = caplog.records
    assert line.agentflow["reason"].startswith("spoilt: error: ")


def test_the_thread_outlives_what_nobody_expected(monkeypatch, caplog):
    monkeypatch.setattr(spans, "_BATCH", 1)
    with collector() as seen:
        sink = SpanSink("shop", seen.endpoint)
        sink.emit(None)  # type: ignore[arg-type]
        sink.emit(span(1))
        seen.wait(lambda: seen.spans)
        asyncio.run(sink.close())
    assert [one.attributes["n"] for one in seen.spans] == [1]
    assert sink.dropped == 1
    assert "AttributeError" in caplog.records[-1].agentflow["reason"]


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_the_end_does_not_wait_for_a_collector_that_is_away(count):
    began = time.monotonic()
    sink = SpanSink("shop", "http://127.0.0.1:9")
    for n in range(count):
        sink.emit(span(n))
    asyncio.run(sink.close())
    assert time.monotonic() - began < 4

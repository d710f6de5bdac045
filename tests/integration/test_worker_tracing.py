"""Traces of Kafka jobs: the producer's trace goes on through a worker to whoever reads its outputs, and over a kill -9."""

from __future__ import annotations

import re
import signal

import pytest

from tests.kafka_place import Place
from tests.otlp_receiver import collector

pytestmark = [pytest.mark.kafka, pytest.mark.xdist_group("kafka")]

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = [
    ("traceparent", b"\xff\xfe not one"),
    ("traceparent", f"00-{TRACE}-{SPAN}-01".encode()),
    ("tracestate", b"vendor=1"),
    ("baggage", b"x" * 10_000),
]
TRACED = ["--set", "tracing.enabled=true", "--set", "tracing.sample-ratio=0"]


@pytest.fixture
def place(tmp_path, kafka):
    return Place(tmp_path, kafka)


@pytest.mark.parametrize("key_by", ["record.key", "id"])
def test_trace_of_the_producer_goes_on_to_the_reader(place, key_by):
    place.topics.create(place.source, 2)
    place.topics.write(place.source, [("k", {"id": 1})], headers=SENT)
    with collector() as seen:
        arguments = [*TRACED, "--set", f"otlp.endpoint={seen.endpoint}", "--set", f"key-by={key_by}"]
        with place.worker(*arguments) as worker:
            (output,) = place.wait_for_records(place.sink, 1, worker)
            seen.wait(lambda: seen.by_name("run Count"))
        (run,), (attempt,) = seen.by_name("run Count"), seen.by_name("action count")
    assert (run.trace, run.parent) == (TRACE, SPAN)
    assert attempt.parent == run.id
    assert dict(output.headers) == {
        "traceparent": f"00-{TRACE}-{attempt.id}-01".encode(),
        "tracestate": b"vendor=1",
    }


def test_output_of_a_run_that_is_not_sampled_tells_its_reader_so(place):
    place.topics.create(place.source, 1)
    place.write(2)
    with place.worker(*TRACED, "--set", "otlp.endpoint=http://127.0.0.1:9") as worker:
        outputs = place.wait_for_records(place.sink, 2, worker)
    parents = [dict(output.headers)["traceparent"].decode() for output in outputs]
    assert all(re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", parent) for parent in parents)
    assert len({parent[3:35] for parent in parents}) == 2


def test_a_dead_letter_of_a_run_that_is_not_sampled_is_exported(place):
    place.topics.create(place.source, 1)
    place.topics.write(place.source, [("k", {"id": 1, "bad": True})])
    with collector() as seen:
        with place.worker(*TRACED, "--set", f"otlp.endpoint={seen.endpoint}") as worker:
            place.wait_for_records(place.dead, 1, worker)
            seen.wait(lambda: seen.by_name("run Count"))
        (run,) = seen.by_name("run Count")
        attempts = seen.by_name("action count")
    assert run.is_error
    assert run.attributes["agentflow.run.outcome"] == "dead-letter"
    assert [span.attributes["agentflow.attempt"] for span in attempts] == [1, 2]
    assert {span.parent for span in attempts} == {run.id}
    assert attempts[1].links[0].span == attempts[0].id


def test_ids_are_the_same_on_the_next_owner(place):
    place.topics.create(place.source, 1)
    place.write(1)
    traced = [
        "--set",
        "tracing.enabled=true",
        "--set",
        "tracing.sample-ratio=1",
        "--set",
        "otlp.endpoint=http://127.0.0.1:9",
    ]
    with place.worker(*traced, sends=signal.SIGKILL) as worker:
        (first,) = place.wait_for_records(place.sink, 1, worker)
    place.write(1, start=1)
    with place.worker(*traced) as worker:
        outputs = place.wait_for_records(place.sink, 2, worker)
    assert outputs[0].headers == first.headers
    high = {dict(output.headers)["traceparent"][3:19] for output in outputs}
    assert len(high) == 1, "the first half of the trace id is the subtask's: its incarnation has survived"


def test_metrics_of_a_worker_are_those_of_its_agents_too(place):
    place.topics.create(place.source, 2)
    place.write(30)
    with collector() as seen:
        pushed = [
            "--set",
            "metrics.otlp=true",
            "--set",
            "metrics.interval=100ms",
            "--set",
            f"otlp.endpoint={seen.endpoint}",
        ]
        with place.worker(*pushed) as worker:
            place.wait_for(place.sink, 30, worker)
        (_, duration), *_ = seen.metrics["agentflow.action.duration"]
        assert duration.count == 30
        assert seen.value("agentflow.action.attempts", action="count") == 30
        assert seen.value("agentflow.records.in") == 30
        assert seen.value("agentflow.rebalances") == 1

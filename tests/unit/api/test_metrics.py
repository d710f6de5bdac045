"""Metrics that actions keep: groups, kinds, limits; plain numbers in memory, whoever exports them."""

from __future__ import annotations

import threading

import pytest

from agentflow import Agent, EventType, OutputEvent, Retry
from agentflow.api import metrics
from agentflow.api.metrics import OVERFLOW, Buckets, Counter, Gauge, Histogram, Meter, MetricRegistry
from agentflow.testing import OperatorHarness


def series(registry: MetricRegistry) -> dict[str, dict[tuple, object]]:
    return {name: dict(of_name) for name, of_name in registry.series()}


def test_counter_counts_up_and_down_and_knows_that_it_went_down():
    counter = Counter()
    counter.inc()
    counter.inc(4)
    assert (counter.get_count(), counter.is_monotonic) == (5, True)
    counter.dec(2)
    assert (counter.get_count(), counter.is_monotonic) == (3, False)


def test_meter_gives_the_rate_of_the_last_minute(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    meter = Meter()
    meter.mark(10)
    now[0] += 10
    assert meter.get_rate() == 1.0
    now[0] += 50
    meter.mark(50)
    assert meter.get_rate() == 1.0
    now[0] += 30
    assert meter.get_rate() == pytest.approx(50 / 60)
    now[0] += 120
    assert (meter.get_rate(), meter.get_count()) == (0.0, 60)


def test_gauge_takes_numbers_only():
    gauge = Gauge()
    assert gauge.get_value() == 0
    gauge.update(2.5)
    assert gauge.get_value() == 2.5
    for other in ("3", True, None):
        with pytest.raises(TypeError, match="a gauge takes a number"):
            gauge.update(other)  # type: ignore[arg-type]


def test_histogram_answers_from_its_window_and_exports_everything():
    histogram = Histogram(3, (1, 10))
    assert (histogram.get_mean(), histogram.get_max(), histogram.get_min()) == (0, 0, 0)
    for value in (100, 1, 2, 3):
        histogram.update(value)
    assert (histogram.get_mean(), histogram.get_max(), histogram.get_min(), histogram.get_count()) == (2, 3, 1, 4)
    assert (histogram.buckets.counts, histogram.buckets.sum) == ([1, 2, 1], 106)


def test_bounds_of_buckets_are_inclusive():
    buckets = Buckets((1, 2))
    for number in (1, 2, 2.1):
        buckets.add(number)
    assert buckets.counts == [1, 1, 1]


def test_groups_and_metrics_are_found_again_by_name():
    registry = MetricRegistry()
    group = registry.group("A", "act")
    assert registry.group("A", "act") is group
    assert group.get_sub_group("model", "gpt") is group.get_sub_group("model", "gpt")
    assert group.get_counter("calls") is group.get_counter("calls")
    group.get_sub_group("llm").get_counter("calls").inc()
    group.get_sub_group("model", "gpt").get_counter("calls").inc(2)
    group.get_counter("calls").inc(3)
    by_name = series(registry)
    own = (("agent", "A"), ("action", "act"))
    assert {key: found.get_count() for key, found in by_name["calls"].items()} == {own: 3, (*own, ("model", "gpt")): 2}
    assert {key: found.get_count() for key, found in by_name["llm.calls"].items()} == {own: 1}


def test_a_value_given_again_replaces_the_outer_one():
    registry = MetricRegistry()
    registry.group("A").get_sub_group("model", "gpt").get_sub_group("model", "mini").get_counter("calls").inc()
    assert list(series(registry)["calls"]) == [(("agent", "A"), ("model", "mini"))]


def test_a_name_has_one_kind():
    group = MetricRegistry().group("A")
    group.get_counter("calls")
    with pytest.raises(ValueError, match="'calls' is a counter, and no gauge"):
        group.get_gauge("calls")


@pytest.mark.parametrize("name", ["", "1st", "two words", "ä", "x" * 101])
def test_a_name_that_exporters_cannot_show_is_refused(name):
    group = MetricRegistry().group("A")
    with pytest.raises(ValueError, match="is no name of a metric or a group"):
        group.get_counter(name)
    with pytest.raises(ValueError, match="is no name of a metric or a group"):
        group.get_sub_group(name)


@pytest.mark.parametrize("other", ["llm_calls", "llm-calls", "llm/calls", "llm.-calls"])
def test_names_that_are_one_to_prometheus_are_refused(other):
    registry = MetricRegistry()
    group = registry.group("A")
    calls = group.get_sub_group("llm").get_counter("calls")
    with pytest.raises(ValueError, match=f"'{other}' and metric 'llm.calls' are one to Prometheus"):
        registry.group("B").get_counter(other)
    assert group.get_counter("llm.calls") is calls
    assert list(series(registry)) == ["llm.calls"]


@pytest.mark.parametrize("name", ["job", "agent", "action", "subtask", "le"])
def test_attributes_of_the_engine_are_not_overwritten(name):
    group = MetricRegistry().group("A", "act")
    with pytest.raises(ValueError, match=f"'{name}' is the engine's own"):
        group.get_sub_group(name, "mine")
    group.get_sub_group(name).get_counter("calls").inc()  # a part of the name is none


@pytest.mark.parametrize("bounds", [(10, 1), (1, 1), (1, float("nan")), (1, float("inf"))])
def test_bounds_that_do_not_ascend_are_refused(bounds):
    registry = MetricRegistry()
    group = registry.group("A")
    with pytest.raises(ValueError, match="each above the one before"):
        group.get_histogram("spread", bounds=bounds)
    group.get_histogram("spread", bounds=(1, 10)).update(5)
    ((histogram,),) = (found.values() for found in series(registry).values())
    assert histogram.buckets.counts == [0, 1, 0]


def test_sets_of_attributes_beyond_the_limit_are_counted_together():
    registry = MetricRegistry(cardinality_max=3)
    for user in range(10):
        registry.group("A").get_sub_group("user", str(user)).get_counter("calls").inc()
    registry.group("A").get_sub_group("user", "1").get_counter("calls").inc()
    counts = {dict(key).get("user", "others"): found.get_count() for key, found in series(registry)["calls"].items()}
    assert counts == {"0": 1, "1": 2, "2": 1, "others": 7}
    assert OVERFLOW in series(registry)["calls"]
    assert list(registry.overflows) == ["calls"]


def test_groups_beyond_the_limit_are_not_kept():
    registry = MetricRegistry(cardinality_max=3)
    group = registry.group("A")
    for user in range(1000):
        group.get_sub_group("user", str(user)).get_counter("calls").inc()
    assert len(group._groups) == 3


def test_no_update_of_a_thread_is_lost():
    counter = MetricRegistry().group("A").get_counter("calls")

    def count() -> None:
        for _ in range(20_000):
            counter.inc()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.get_count() == 80_000


def test_actions_keep_metrics_where_nobody_exports_them_and_failed_attempts_count():
    counts = []

    def act(event, ctx):
        ctx.agent_metric_group.get_meter("all").mark()
        counter = ctx.action_metric_group.get_counter("tries")
        counter.inc()
        counts.append(counter.get_count())
        if ctx.attempt == 1:
            raise ValueError
        ctx.send_event(OutputEvent(ctx.agent_metric_group.get_meter("all").get_count()))

    agent = Agent("A").add_action("act", [EventType.InputEvent], act, retry=Retry(attempts=2, initial="1s"))
    with OperatorHarness(agent, key_by="k") as harness:
        harness.process_record({"k": 1})
        harness.advance_time("1m")
        assert harness.outputs == [2]
    assert counts == [1, 2]

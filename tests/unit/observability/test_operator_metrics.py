"""What metrics count of an agent: exactly as many as there were, however they were measured."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

import pytest

from agentflow import Agent, Event, EventType, OutputEvent, Retry
from agentflow.connectors.collections import CollectionSink, CollectionSource
from agentflow.observability import operator_metrics
from agentflow.observability.operator_metrics import OTHER, STRIDE, AgentMeter, OperatorMetrics, Rate
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.job import Job
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.settings import JobSettings
from agentflow.state.memory import MemoryKeyedState

BOUNDS_NS = (1_000, 1_000_000, 1_000_000_000)


class Attentive:
    """An observer that needs every answer: metrics are then counted from these."""

    is_right = True

    def observe(self, turn: Any, now_ms: int) -> None:
        self.is_right &= turn.admitted == len(turn.records)


def metered(agent: Agent, values: list[Any], *others: Any, cardinality_max: int = 100, **fields: Any) -> AgentMeter:
    """Run a job to its end and return what was counted."""
    plan = AgentPlan.from_agent(agent)
    meter = AgentMeter(plan, BOUNDS_NS, cardinality_max)
    sink, dead = CollectionSink(), CollectionSink()
    spec = JobSpec(
        JobSettings(),
        (AgentStage(plan, "k"),),
        lambda: CollectionSource(values),
        lambda: {"sink": sink, "dead-letter": dead},
        MemoryKeyedState,
        observers=lambda plan, index, incarnation: (OperatorMetrics(plan, meter), *others),
        **fields,
    )
    asyncio.run(Job(spec).run())
    assert all(getattr(other, "is_right", True) for other in others)
    meter.settle(0)
    return meter


class Choosy:
    """An observer that has a context for every third attempt, as traces of a share of the runs have."""

    needs_answers = False

    def __init__(self) -> None:
        self.seen = 0

    def context_of(self, task: Any) -> contextvars.Context | None:
        return contextvars.copy_context() if task.run.record.offset % 3 == 0 else None

    def observe(self, turn: Any, now_ms: int) -> None:
        self.seen += len(turn.answers)


def output(event: Event, ctx: Any) -> None:
    ctx.send_event(OutputEvent(ctx.key))


def records(count: int) -> list[dict[str, int]]:
    return [{"k": n % 7} for n in range(count)]


BOTH = pytest.mark.parametrize("others", [(), (Attentive(),)], ids=["alone", "beside one that needs answers"])


@BOTH
@pytest.mark.parametrize("count", [1, STRIDE - 1, STRIDE, STRIDE + 1, 1000])
def test_every_attempt_of_a_quick_action_is_in_the_histogram(count, others):
    meter = metered(Agent("A").add_action("act", [EventType.InputEvent], output), records(count), *others)
    action = meter.actions["act"]
    assert action.attempts == count
    assert sum(action.durations.counts) == count
    assert action.durations.sum > 0
    assert meter.events == 2 * count


@BOTH
def test_an_action_that_waits_is_measured_each_time(others):
    async def wait(event, ctx):
        await asyncio.sleep(0.002)

    action = metered(Agent("A").add_action("act", [EventType.InputEvent], wait), records(20), *others).actions["act"]
    assert action.durations.counts == [0, 0, 20, 0]
    assert action.durations.sum > 20 * 2_000_000


@pytest.mark.parametrize("is_async", [False, True])
def test_attempts_in_a_context_of_another_observer_count_once(*, is_async):
    async def later(event, ctx):
        await asyncio.sleep(0)

    choosy = Choosy()
    action = metered(
        Agent("A").add_action("act", [EventType.InputEvent], later if is_async else output), records(90), choosy
    ).actions["act"]
    assert (action.attempts, sum(action.durations.counts)) == (90, 90)
    assert choosy.seen == (90 if is_async else 30)


@BOTH
def test_an_action_in_a_thread_is_measured(others):
    agent = Agent("A").add_action("act", [EventType.InputEvent], output, blocking=True)
    action = metered(agent, records(5), *others).actions["act"]
    assert (action.attempts, sum(action.durations.counts)) == (5, 5)


def test_a_slow_synchronous_action_is_measured_each_time(monkeypatch):
    clock = iter(range(0, 10**9, 100_000))
    monkeypatch.setattr(operator_metrics, "monotonic_ns", lambda: next(clock))
    action = metered(Agent("A").add_action("act", [EventType.InputEvent], output), records(50)).actions["act"]
    assert action.mask == 0
    assert action.durations.counts == [0, 50, 0, 0]


@pytest.mark.parametrize(
    ("slow", "expected"), [(3 * STRIDE, [199, 0, 1, 0]), (3 * STRIDE + 5, [200, 0, 0, 0])], ids=["measured", "between"]
)
def test_a_slow_attempt_of_a_quick_action_is_one_at_most(slow, expected, monkeypatch):
    now_ns = 0
    monkeypatch.setattr(operator_metrics, "monotonic_ns", lambda: now_ns)
    plan = AgentPlan.from_agent(Agent("A").add_action("act", [EventType.InputEvent], output))
    meter = AgentMeter(plan, BOUNDS_NS, 9)

    def act(task: int) -> str:
        nonlocal now_ns
        now_ns += 100_000_000 if task == slow else 500
        return "answer"

    start = OperatorMetrics(plan, meter).measured(act)
    for n in range(200):
        start(n)
    meter.settle(0)
    action = meter.actions["act"]
    assert (action.attempts, action.durations.counts) == (200, expected)
    assert action.durations.sum == 199 * 500 + (100_000_000 if expected[2] else 500)


def test_attempts_that_answer_later_do_not_stand_for_quick_ones():
    action = AgentMeter(
        AgentPlan.from_agent(Agent("A").add_action("act", [EventType.InputEvent], output)), BOUNDS_NS, 9
    ).actions["act"]
    action.add(500)
    action.attempts += 3  # that were not measured
    action.add(2_000_000)
    action.attempts += 1
    action.settle()
    assert action.durations.counts == [5, 0, 1, 0]
    assert action.durations.sum == 5 * 500 + 2_000_000


@BOTH
def test_events_between_actions_are_counted(others):
    def first(event, ctx):
        ctx.send_event(Event("next", {}))
        ctx.send_event(Event("nobody listens", {}))

    agent = Agent("A").add_action("first", [EventType.InputEvent], first).add_action("second", ["next"], output)
    meter = metered(agent, records(40), *others)
    assert meter.events == 40 * (1 + 2 + 1)
    assert {name: action.attempts for name, action in meter.actions.items()} == {"first": 40, "second": 40}


def failing(event: Event, ctx: Any) -> None:
    raise KeyError(ctx.key)


@BOTH
@pytest.mark.parametrize(
    ("on_error", "attempts", "expected"),
    [
        ("dead-letter", 3, (6, 4, 0)),
        ("skip", 1, (2, 0, 2)),
        ("skip", 2, (4, 2, 2)),
    ],
)
def test_failures_retries_and_skips_are_counted(on_error, attempts, expected, others):
    agent = Agent("A").add_action(
        "act", [EventType.InputEvent], failing, retry=Retry(attempts=attempts, initial="1ms"), on_error=on_error
    )
    action = metered(agent, records(2), *others).actions["act"]
    assert (action.failures["KeyError"], action.retries, action.skips) == expected
    assert action.attempts == 2 * attempts


def test_a_record_that_never_became_a_run_is_no_failure_of_an_action():
    meter = metered(Agent("A").add_action("act", [EventType.InputEvent], output), [{"k": 1}, {"no": "key"}])
    assert meter.actions["act"].failures == {}
    assert meter.events == 2


def test_calls_of_steps_are_measured_and_replays_counted():
    calls: list[int] = []

    def flaky() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("away")
        return 1

    async def act(event, ctx):
        await ctx.durable_execute_async(flaky, name="ask", retry=Retry(attempts=2, initial="1ms"))
        if ctx.attempt == 1:
            raise ValueError

    agent = Agent("A").add_action("act", [EventType.InputEvent], act, retry=Retry(attempts=2, initial="1ms"))
    meter = metered(agent, [{"k": 1}])
    assert {key: sum(found.counts) for key, found in meter.steps.items()} == {
        ("ask", "ConnectionError"): 1,
        ("ask", ""): 1,
    }
    assert (meter.step_retries, meter.steps_replayed) == ({"ask": 1}, {"ask": 1})
    assert meter.journal_groups.sum >= 3
    assert sum(meter.journal_durations.counts) == sum(meter.journal_groups.counts)


def test_steps_beyond_the_limit_are_counted_together():
    def named(n: int) -> Callable[[], int]:
        return lambda: n

    async def act(event, ctx):
        for n in range(5):
            await ctx.durable_execute_async(named(n), name=f"s{n}")

    meter = metered(Agent("A").add_action("act", [EventType.InputEvent], act), [{"k": 1}], cardinality_max=2)
    assert {step: sum(found.counts) for (step, _), found in meter.steps.items()} == {"s0": 1, "s1": 1, OTHER: 3}
    assert list(meter.overflows) == ["agentflow.step.duration"]


def test_a_rate_is_that_of_the_last_minute():
    rate = Rate()
    rate.see(0, 0)
    assert rate.per_second == 0
    rate.see(10, 100)
    assert rate.per_second == 10
    rate.see(70, 160)
    rate.see(71, 160)
    assert rate.per_second == pytest.approx(60 / 61)


def test_counts_only_grow_while_they_are_counted():
    meter = AgentMeter(AgentPlan.from_agent(Agent("A").add_action("act", [EventType.InputEvent], output)), BOUNDS_NS, 9)
    action = meter.actions["act"]
    start = OperatorMetrics(
        AgentPlan.from_agent(Agent("A").add_action("act", [EventType.InputEvent], output)), meter
    ).measured(lambda task: "answer")
    seen = [0, 0]
    for n in range(100):
        start(None)
        if n % 7 == 0:
            meter.settle(n)
        now = [action.attempts, sum(action.durations.counts)]
        assert seen[0] <= now[0] == n + 1
        assert seen[1] <= now[1] <= now[0]
        seen = now

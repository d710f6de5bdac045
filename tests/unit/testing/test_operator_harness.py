"""The harness for tests of agents."""

from __future__ import annotations

import asyncio
import doctest

import pytest

from agentflow import (
    Agent,
    Event,
    EventType,
    JobFailed,
    OutputEvent,
    Resource,
    ResourceType,
    Retry,
    TimerEvent,
)
from agentflow.core.effects import EmitRecord, ScheduleRetry, StartAction, TakeSnapshot
from agentflow.errors import MissingKey
from agentflow.testing import OperatorHarness, operator_harness


def count(event, ctx):
    seen = ctx.short_term_memory.update("seen", lambda seen: (seen or 0) + 1)
    ctx.send_event(OutputEvent([ctx.key, seen]))


async def wait(event, ctx):
    await asyncio.sleep(event.input["seconds"])
    ctx.send_event(OutputEvent([ctx.key, event.input["seconds"]]))


def harness_of(*actions, **options):
    agent = Agent("A")
    for name, trigger, function, extra in actions:
        agent.add_action(name, [trigger], function, **extra)
    return OperatorHarness(agent, key_by="k", **options)


def test_the_example_of_the_docstring_runs():
    assert doctest.testmod(operator_harness).attempted > 0
    assert doctest.testmod(operator_harness).failed == 0


def test_effects_are_the_whole_list_in_order():
    with harness_of(("count", EventType.InputEvent, count, {})) as harness:
        harness.process_record({"k": 1})
        assert [type(effect) for effect in harness.effects] == [StartAction, EmitRecord]
        harness.checkpoint()
        assert type(harness.effects[-1]) is TakeSnapshot


def test_waits_take_virtual_time_only():
    with harness_of(("wait", EventType.InputEvent, wait, {})) as harness:
        harness.process_record({"k": "a", "seconds": 3600})
        harness.process_record({"k": "b", "seconds": 1})
        assert (harness.outputs, harness.runs_unfinished) == ([], 2)
        harness.advance_time("2s")
        assert (harness.outputs, harness.runs_unfinished) == ([["b", 1]], 1)
        harness.advance_time("1h")
        assert (harness.outputs, harness.runs_unfinished) == ([["b", 1], ["a", 3600]], 0)


def test_retries_come_due_as_time_advances():
    def fail_twice(event, ctx):
        if ctx.attempt < 3:
            raise ValueError(ctx.attempt)
        ctx.send_event(OutputEvent(ctx.attempt))

    retry = Retry(attempts=3, initial="1s")
    with harness_of(("fail", EventType.InputEvent, fail_twice, {"retry": retry})) as harness:
        harness.process_record({"k": 1})
        assert harness.outputs == []
        harness.advance_time("1m")
        assert harness.outputs == [3]
        assert sum(isinstance(effect, ScheduleRetry) for effect in harness.effects) == 2


def test_timers_fire_by_their_own_kind_of_time():
    def set_timers(event, ctx):
        ctx.set_timer("clock", after="5s")
        ctx.set_timer("event", after="5ms", is_event_time=True)

    def fired(event, ctx):
        ctx.send_event(OutputEvent(TimerEvent.from_event(event).name))

    with harness_of(
        ("set", EventType.InputEvent, set_timers, {}), ("fired", EventType.TimerEvent, fired, {})
    ) as harness:
        harness.process_record({"k": 1}, timestamp_ms=1_000)
        harness.process_watermark(1_004)
        harness.advance_time("4s")
        assert (harness.outputs, harness.watermarks) == ([], [1_004])
        harness.process_watermark(1_005)
        assert (harness.outputs, harness.watermarks) == (["event"], [1_004, 1_005])
        harness.advance_time("1s")
        assert harness.outputs == ["event", "clock"]


def test_restart_goes_back_to_the_last_checkpoint_with_its_unfinished_runs():
    actions = [
        ("count", EventType.InputEvent, count, {}),
        ("go", EventType.InputEvent, lambda event, ctx: ctx.send_event(Event("go", {"seconds": 5})), {}),
        ("late", "go", late, {}),
    ]
    with harness_of(*actions) as harness:
        harness.process_record({"k": 1})
        harness.checkpoint()
        harness.process_record({"k": 2})
        assert (harness.memory(1), harness.memory(2)) == ({"seen": 1}, {"seen": 1})
        assert harness.restart() == 1
        assert (harness.memory(1), harness.memory(2)) == ({"seen": 1}, {})
        assert harness.runs_unfinished == 1
        harness.advance_time("5s")
        assert harness.outputs == [[1, 1], [2, 1], "late 1"]


async def late(event, ctx):
    await asyncio.sleep(event.attributes["seconds"])
    ctx.send_event(OutputEvent(f"late {ctx.key}"))


def test_blocking_actions_run_at_once():
    with harness_of(("count", EventType.InputEvent, count, {"blocking": True})) as harness:
        harness.process_record({"k": 1})
        assert harness.outputs == [[1, 1]]


def test_dead_letters_and_job_failures_are_told():
    def fail(event, ctx):
        raise KeyError("stars")

    action = ("fail", EventType.InputEvent, fail, {"retry": Retry(attempts=1)})
    with harness_of(action) as harness:
        harness.process_record({"k": 1})
        assert [letter["error-type"] for letter in harness.dead_letters] == ["KeyError"]
    with harness_of(action, has_dead_letters=False) as harness, pytest.raises(JobFailed, match="stars"):
        harness.process_record({"k": 1})


def test_a_record_without_a_key_is_refused():
    with harness_of(("count", EventType.InputEvent, count, {})) as harness, pytest.raises(MissingKey):
        harness.process_record({"n": 1})


def test_what_an_action_has_opened_is_closed_with_the_harness():
    said = []

    class Held(Resource):
        @classmethod
        def resource_type(cls):
            return ResourceType.TOOL

        async def open(self):
            said.append("open")

        async def close(self):
            said.append("close")

    async def use(event, ctx):
        await ctx.get_resource("held", ResourceType.TOOL)

    agent = Agent("A").add_action("use", [EventType.InputEvent], use)
    with OperatorHarness(agent.add_resource("held", ResourceType.TOOL, Held()), key_by="k") as harness:
        harness.process_record({"k": 1})
        harness.process_record({"k": 2})
        assert said == ["open"]
    assert said == ["open", "close"]

"""Threads that user code keeps behind its timeout: there is a limit, whoever has left them, and the job says who."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentflow import Agent, AgentsExecutionEnvironment, CollectionSink, EventType, OutputEvent, Retry, RunnerContext
from agentflow.errors import RestartsExhausted, StateUnavailable
from agentflow.runtime.settings import BlockingSettings, JobSettings, RestartSettings

SETTINGS = JobSettings(blocking=BlockingSettings(leaked_max=2), restart=RestartSettings(strategy="none"))


@pytest.fixture
def look_up() -> Iterator[Callable[[], None]]:
    released = threading.Event()

    def look_up() -> None:
        released.wait(60)

    yield look_up
    released.set()


@pytest.mark.parametrize("place", ["action", "step"])
def test_threads_left_behind_are_limited_and_the_error_names_the_last_one(
    look_up: Callable[[], None], place: str
) -> None:
    def slow_action(event: Any, ctx: RunnerContext) -> None:
        look_up()

    async def slow_step(event: Any, ctx: RunnerContext) -> None:
        await ctx.durable_execute_async(look_up, timeout="200ms")

    agent = Agent("A")
    if place == "action":
        agent.add_action(
            "act",
            [EventType.InputEvent],
            slow_action,
            blocking=True,
            timeout="200ms",
            retry=Retry(attempts=1),
            on_error="skip",
        )
    else:
        agent.add_action("act", [EventType.InputEvent], slow_step, retry=Retry(attempts=1), on_error="skip")
    env = AgentsExecutionEnvironment.get_execution_environment(SETTINGS)
    env.from_list([{"k": n} for n in range(3)]).key_by("k").apply(agent).to_list()
    with pytest.raises(StateUnavailable, match=r"2 threads .* have not come back") as raised:
        env.execute()
    assert {"action": "action act", "step": "look_up"}[place] in str(raised.value)


def test_records_whose_calls_hang_do_not_stop_a_job_for_ever(look_up: Callable[[], None]) -> None:
    def slow(event: Any, ctx: RunnerContext) -> None:
        if event.input["hangs"]:
            look_up()
        ctx.send_event(OutputEvent(event.input["k"]))

    restart = RestartSettings(
        strategy="fixed-delay", delay_ms=1, attempts=1
    )  # a checkpoint in between resets the count
    env = AgentsExecutionEnvironment.get_execution_environment(
        JobSettings(blocking=BlockingSettings(leaked_max=3), restart=restart)
    )
    retry = Retry(attempts=2, initial="1ms")
    agent = Agent("A").add_action("act", [EventType.InputEvent], slow, blocking=True, timeout="200ms", retry=retry)
    dead = CollectionSink()
    stream = env.from_list([{"k": n, "hangs": n % 4 == 0} for n in range(40)]).key_by("k").apply(agent)
    outputs = stream.dead_letters_to(dead).to_list()
    env.execute()
    assert sorted(outputs) == [n for n in range(40) if n % 4]
    assert sorted(letter["value"]["k"] for letter in dead.values) == list(range(0, 40, 4))
    assert {letter["attempt"] for letter in dead.values} == {"2"}


def test_a_job_that_leaves_threads_behind_in_every_life_fails_in_the_end(look_up: Callable[[], None]) -> None:
    def slow(event: Any, ctx: RunnerContext) -> None:
        look_up()

    restart = RestartSettings(strategy="fixed-delay", delay_ms=1)
    env = AgentsExecutionEnvironment.get_execution_environment(
        JobSettings(blocking=BlockingSettings(threads_max=1, leaked_max=1), restart=restart)
    )
    once = Retry(attempts=1)
    agent = Agent("A").add_action(
        "act", [EventType.InputEvent], slow, blocking=True, timeout="20ms", retry=once, on_error="skip"
    )
    one_at_a_time = [{"k": 0}] * 1_000
    env.from_list(one_at_a_time).key_by("k").apply(agent).to_list()
    with pytest.raises(RestartsExhausted, match=r"\d\d threads .* have not come back"):
        env.execute()

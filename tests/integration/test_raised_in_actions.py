"""Whatever user code raises ends visibly: it fails its run, an interrupt from the keyboard the job, and nothing hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from agentflow import Agent, AgentsExecutionEnvironment, CollectionSink, EventType, OutputEvent, Retry, RunnerContext
from agentflow.errors import StepFailed

ONCE = Retry(attempts=1)
LIMIT_S = 30
"""A job that hangs is ended by it, and the test fails."""


class Panic(BaseException):
    """As that of PyO3: no Exception."""


def places(error: type[BaseException]) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Return actions that raise an error for the key "bad", each in another place, and their options."""

    def fail() -> None:
        raise error("on purpose")

    async def fail_at_once() -> None:
        fail()

    async def fail_later() -> None:
        await asyncio.sleep(0)
        fail()

    def action(body: Callable[[RunnerContext], Any]) -> Callable[..., Any]:
        async def act(event: Any, ctx: RunnerContext) -> None:
            if event.input["k"] == "bad":
                await body(ctx)
            ctx.send_event(OutputEvent(event.input["k"]))

        return act

    def sync(event: Any, ctx: RunnerContext) -> None:
        if event.input["k"] == "bad":
            fail()
        ctx.send_event(OutputEvent(event.input["k"]))

    def sync_step(event: Any, ctx: RunnerContext) -> None:
        if event.input["k"] == "bad":
            ctx.durable_execute(fail)
        ctx.send_event(OutputEvent(event.input["k"]))

    async def in_a_task_of_ones_own(ctx: RunnerContext) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.durable_execute_async(fail_later))

    return {
        "plain": (sync, {}),
        "blocking": (sync, {"blocking": True}),
        "at once": (action(lambda ctx: fail_at_once()), {}),
        "later": (action(lambda ctx: fail_later()), {}),
        "step": (action(lambda ctx: ctx.durable_execute_async(fail_later)), {}),
        "step at once": (action(lambda ctx: ctx.durable_execute_async(fail_at_once)), {}),
        "plain step": (action(lambda ctx: ctx.durable_execute_async(fail)), {}),
        "step with a timeout": (action(lambda ctx: ctx.durable_execute_async(fail_later, timeout="5s")), {}),
        "step of a blocking action": (sync_step, {"blocking": True}),
        "branch": (action(lambda ctx: ctx.gather(fail_later(), asyncio.sleep(0))), {}),
        "step of a branch": (action(lambda ctx: ctx.gather(ctx.durable_execute_async(fail_later))), {}),
        "step of a task": (action(in_a_task_of_ones_own), {}),
    }


PLACES = list(places(Panic))


def run(function: Callable[..., Any], options: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Run an action over three keys; return its outputs and its dead letters."""
    agent = Agent("A").add_action(
        "act", [EventType.InputEvent], function, retry=ONCE, on_error="dead-letter", **options
    )
    env = AgentsExecutionEnvironment.get_execution_environment()
    dead = CollectionSink()
    stream = env.from_list([{"k": key} for key in ["a", "bad", "b"]]).key_by("k").apply(agent)
    results = stream.dead_letters_to(dead).to_list()

    async def limited() -> None:
        async with asyncio.timeout(LIMIT_S):
            await env.job().run()

    asyncio.run(limited())
    return sorted(results), list(dead.values)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", [Panic, SystemExit])
def test_what_is_no_exception_fails_only_its_own_run(place: str, error: type[BaseException]) -> None:
    results, (letter,) = run(*places(error)[place])
    assert results == ["a", "b"]
    assert letter["value"] == {"k": "bad"}
    assert error.__name__ in str(letter)
    assert "on purpose" in str(letter)


@pytest.mark.parametrize("place", PLACES)
def test_an_interrupt_from_the_keyboard_fails_the_job(place: str) -> None:
    with pytest.raises(KeyboardInterrupt, match="on purpose"):
        run(*places(KeyboardInterrupt)[place])


@pytest.mark.parametrize("place", PLACES)
def test_a_cancellation_that_nobody_asked_for_fails_only_its_own_run(place: str) -> None:
    results, (letter,) = run(*places(asyncio.CancelledError)[place])
    assert results == ["a", "b"]
    assert letter["value"] == {"k": "bad"}
    assert "Cancel" in str(letter)


def test_a_step_that_raised_cancelled_error_by_itself_has_failed_and_a_replay_does_not_wait_for_it() -> None:
    calls = []

    async def call() -> None:
        calls.append(1)
        lost = asyncio.get_running_loop().create_future()
        lost.cancel()
        await lost

    async def act(event: Any, ctx: RunnerContext) -> None:
        try:
            await ctx.durable_execute_async(call)
        except StepFailed as error:
            if ctx.attempt < 2:
                raise
            ctx.send_event(OutputEvent(error.original))

    agent = Agent("A").add_action(
        "act", [EventType.InputEvent], act, timeout="5s", retry=Retry(attempts=2, initial="1ms")
    )
    env = AgentsExecutionEnvironment.get_execution_environment()
    results = env.from_list([{"k": 1}]).key_by("k").apply(agent).to_list()
    env.execute()
    assert list(results) == ["asyncio.exceptions.CancelledError"]

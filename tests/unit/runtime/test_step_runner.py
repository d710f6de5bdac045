"""What a step runner holds of attempts: nothing, once they have ended."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from agentflow import Agent, EventType, RunnerContext
from agentflow.environment.streams import AgentsExecutionEnvironment
from agentflow.runtime import step_runner
from agentflow.runtime.step_runner import StepRunner


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch) -> list[StepRunner]:
    """Every step runner that is made."""
    made: list[StepRunner] = []
    init = StepRunner.__init__

    def note(self: StepRunner, *arguments: Any) -> None:
        init(self, *arguments)
        made.append(self)

    monkeypatch.setattr(step_runner.StepRunner, "__init__", note)
    return made


def run(act: Any, **options: Any) -> None:
    agent = Agent("A").add_action("act", [EventType.InputEvent], act, on_error="skip", **options)
    environment = AgentsExecutionEnvironment.get_execution_environment()
    environment.from_list([{"k": n} for n in range(20)]).key_by("k").apply(agent).to_list()
    environment.execute()


def test_an_attempt_that_has_ended_leaves_nothing(runners: list[StepRunner]) -> None:
    counts: list[int] = []

    async def act(event: object, ctx: RunnerContext) -> None:
        await ctx.durable_execute_async(abs, -1)  # type: ignore[arg-type]
        await ctx.durable_execute_async(asyncio.sleep, 0.001)
        counts.append(len(runners[0]._tasks))
        if ctx.attempt == 1:
            raise KeyError

    run(act)
    assert max(counts) <= 20
    assert runners[0]._tasks == {}


def test_a_blocking_action_that_has_ended_leaves_nothing(runners: list[StepRunner]) -> None:
    def act(event: object, ctx: RunnerContext) -> None:
        ctx.durable_execute(abs, -1)

    run(act)
    assert runners[0]._tasks == {}


def test_an_action_that_timed_out_in_a_step_leaves_nothing_and_may_not_go_on(runners: list[StepRunner]) -> None:
    refused = threading.Event()

    async def act(event: object, ctx: RunnerContext) -> None:
        try:
            await ctx.durable_execute_async(asyncio.sleep, 60)
        finally:
            refused.set()

    run(act, timeout="20ms")
    assert refused.is_set()
    assert runners[0]._tasks == {}

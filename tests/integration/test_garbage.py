"""What is over is freed at once: a job that owns its process lets the cyclic collector run seldom."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from agentflow import Agent, AgentsExecutionEnvironment, EventType, OutputEvent, Retry, RunnerContext
from agentflow.runtime.settings import CheckpointSettings, JobSettings, RunSettings

RUNS = 50
OF_A_RUN = {"Run", "ActionTask", "RunnerContext", "TaskSteps", "Task", "_EagerTask", "coroutine", "Context", "frame"}


async def pay(n: int) -> int:
    await asyncio.sleep(0)
    return n


async def steps(event: object, ctx: RunnerContext) -> None:
    for n in range(3):
        await ctx.durable_execute_async(pay, n)
    ctx.send_event(OutputEvent(ctx.key))


async def branches(event: object, ctx: RunnerContext) -> None:
    await ctx.gather(*(ctx.durable_execute_async(pay, n) for n in range(3)))
    async with asyncio.TaskGroup() as group:
        for n in range(3):
            group.create_task(ctx.durable_execute_async(pay, n))


async def sleeps(event: object, ctx: RunnerContext) -> None:
    await ctx.sleep("10ms")


def blocks(event: object, ctx: RunnerContext) -> None:
    ctx.durable_execute(len, "abc")


async def waits(event: object, ctx: RunnerContext) -> None:
    await asyncio.sleep(0)
    ctx.short_term_memory.set("n", 1)


def plain(event: object, ctx: RunnerContext) -> None:
    ctx.sensory_memory.set("n", [1])
    ctx.send_event(OutputEvent(ctx.key))


@pytest.fixture
def garbage() -> Iterator[list[Any]]:
    """Collect what only the cyclic collector frees."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield gc.garbage
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


@pytest.mark.parametrize("act", [plain, waits, steps, branches, sleeps, blocks])
def test_a_run_that_is_over_leaves_no_cycles(act: Any, garbage: list[Any]) -> None:
    agent = Agent("A").add_action("act", [EventType.InputEvent], act, retry=Retry(attempts=1))
    settings = JobSettings(checkpoint=CheckpointSettings(interval_ms=20), run=RunSettings(park_after_ms=1))
    environment = AgentsExecutionEnvironment.get_execution_environment(settings)
    environment.from_list([{"k": n} for n in range(RUNS)]).key_by("k").apply(agent).to_list()
    environment.execute()
    gc.collect()
    kinds = Counter(type(one).__name__ for one in garbage)
    assert {kind: count for kind, count in kinds.items() if kind in OF_A_RUN and count >= RUNS} == {}

"""Engines for tests: an agent that counts, and what lets a test wait for something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from agentflow import Agent, Engine, EventType, InputEvent, OutputEvent, Retry, RunnerContext, action

ONCE = Retry(attempts=1)


class Counting(Agent):
    """Counts the inputs of its key."""

    @staticmethod
    @action(EventType.InputEvent)
    def count(event: InputEvent[Any], ctx: RunnerContext) -> None:
        number = ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)
        ctx.send_event(OutputEvent({"key": ctx.key, "n": number, "input": event.input}))


def agent_of(function: Callable[..., Any], **options: Any) -> Agent:
    return Agent("A").add_action("act", [EventType.InputEvent], function, **options)


async def checkpointed(engine: Engine) -> None:
    """Let keyed state have everything that was answered."""
    job = engine._job
    assert job is not None
    await job.checkpoint_now()
    await job.checkpoint_now()  # what was answered while the first one was under way


async def until(is_so: Callable[[], bool]) -> None:
    """Let the loop turn until something is so; the test's timeout ends it."""
    while not is_so():  # noqa: ASYNC110 (of what an engine shows, and nobody tells)
        await asyncio.sleep(0)

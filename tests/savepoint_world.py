"""A job in code with everything that a savepoint has to carry: memory, unfinished and sleeping runs, steps, timers, early signals."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from agentflow import (
    Agent,
    AgentsExecutionEnvironment,
    EventType,
    InputEvent,
    OutputEvent,
    RunnerContext,
    TimerEvent,
    action,
)
from agentflow.connectors.collections import CollectionSink, CollectionSource
from agentflow.core.records import Record
from agentflow.runtime.job import Job
from agentflow.runtime.settings import CheckpointSettings, JobSettings, RunSettings, ShutdownSettings, StateSettings

PAID: list[str] = []
"""Every call of the step, in order; a test clears it."""


def pay(order: str) -> str:
    PAID.append(order)
    return f"receipt of {order}"


class Orders(Agent):
    """What each input does to its key is in its ``does``; what leaves depends on all that the key has seen."""

    @staticmethod
    @action(EventType.InputEvent)
    async def order(event: InputEvent, ctx: RunnerContext) -> None:
        memory, order = ctx.short_term_memory, event.input["id"]
        does = event.input["does"]
        number = memory.update("n", lambda n: (n or 0) + 1)
        memory.set(f"seen.{order}", {"bytes": bytes((number,)), "luck": ctx.random.random()})
        if does == "large":
            memory.set("large", order * 700_000)
        if does in ("sleep", "ask"):
            receipt = await ctx.durable_execute_async(pay, order)
            ctx.send_event(OutputEvent({"id": order, "receipt": receipt}))  # visible when the wait is recorded
            if does == "sleep":
                await ctx.sleep(event.input["for"])
                answer = "slept"
            else:
                answer = await ctx.wait_for("approval", timeout="1h", correlation=event.input.get("about", ""))
            ctx.send_event(OutputEvent({"id": order, "answer": answer, "luck": ctx.random.random()}))
        elif does == "timer":
            ctx.set_timer(order, after=event.input["for"])
        large = len(memory.get("large") or "")
        ctx.send_event(OutputEvent({"id": order, "n": number, "large": large, "luck": ctx.random.random()}))

    @staticmethod
    @action(TimerEvent)
    def fire(event: TimerEvent, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent({"id": event.name, "n": ctx.short_term_memory.get("n"), "fired": True}))


class Feed(CollectionSource):
    """A collection that never ends, as a topic does not."""

    async def fetch(self, records_max: int) -> Sequence[Record]:
        records = await super().fetch(records_max)
        if not records:
            await asyncio.Event().wait()
        return records


class Outputs(CollectionSink):
    """Says when an output is visible, and with which checkpoint it became so."""

    def __init__(self) -> None:
        super().__init__()
        self.published = asyncio.Event()
        self.checkpoints: list[int] = []

    async def publish(self, checkpoint: int, staged: Any) -> None:
        await super().publish(checkpoint, staged)
        self.checkpoints += [checkpoint] * (len(self.values) - len(self.checkpoints))
        self.published.set()

    def behind(self, checkpoint: int) -> list[Any]:
        return [value for value, at in zip(self.values, self.checkpoints, strict=True) if at > checkpoint]

    async def until(self, count: int) -> list[Any]:
        async with asyncio.timeout(30):
            while len(self.values) < count:
                self.published.clear()
                await self.published.wait()
        return self.values


class Life:
    """A job that runs inside of the ``async with`` block, and is stopped at its end: what is unfinished stays state."""

    def __init__(self, state: Path, inputs: Sequence[object], *, job: str = "orders", interval_ms: int = 20) -> None:
        settings = JobSettings(
            job=job,
            checkpoint=CheckpointSettings(interval_ms=interval_ms),
            run=RunSettings(park_after_ms=50),
            state=StateSettings(dir=str(state), free_min_bytes=0),
            shutdown=ShutdownSettings(drain_timeout_ms=0),
        )
        environment = AgentsExecutionEnvironment.get_execution_environment(settings)
        self.outputs = Outputs()
        environment.from_source(lambda: Feed(inputs)).key_by("k").apply(Orders()).to_sink(self.outputs)
        self.job: Job = environment.job()
        self._running: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.job.run())
        while self.job.status.state != "running":
            assert not self._running.done(), self._running.exception()
            await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._running is not None
        self.job.request_stop()
        await self._running


def by_id(outputs: Sequence[Any]) -> dict[str, list[Any]]:
    """Return outputs by the input that they are of, each in order: across keys there is none."""
    found: dict[str, list[Any]] = {}
    for output in outputs:
        found.setdefault(output["id"], []).append(output)
    return dict(sorted(found.items()))

"""Crash before and after every call to a port, and lose what was not synced: the world goes on as if nothing had happened.

The real job, subtask, operator and checkpoint protocol run over a disk in memory that knows what is synced. The oracle is the
sequential run: outputs once and in order per key, with the memory values of one record after the other. Two deliberate breaks of
the protocol show that the test can fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import pytest

from agentflow.api.agent import Agent
from agentflow.api.events import Event, EventType, InputEvent, OutputEvent
from agentflow.api.failure import Retry
from agentflow.api.runner_context import RunnerContext
from agentflow.connectors.collections import CollectionSource
from agentflow.core.delta import DeltaSlices, StateWrite, Table
from agentflow.core.effects import DeadLetter, EmitRecord
from agentflow.core.epoch import EpochDelta
from agentflow.plan.plan import AgentPlan
from agentflow.runtime import checkpoints
from agentflow.runtime.job import AgentStage, Job, JobSpec
from agentflow.runtime.ports import Guarantee, Staged
from agentflow.runtime.settings import CheckpointSettings, JobSettings, RestartSettings
from agentflow.state.memory import MemoryKeyedState, MemoryStorage

RECORDS = [{"k": key, "n": n} for n, key in enumerate("abacbaabcaab")]
CALLS_MAX = 400


class SimulatedCrash(BaseException):
    """The process is gone."""


class World:
    """What survives a crash, and when the next one comes."""

    def __init__(self) -> None:
        self.storage = MemoryStorage()
        self.staged: dict[str, tuple[bytes, ...]] = {}
        self.published: dict[int, tuple[bytes, ...]] = {}
        self.calls = 0
        self.crash_at = 0

    def step(self) -> None:
        """Count a place where the process may die."""
        self.calls += 1
        if self.calls == self.crash_at:
            raise SimulatedCrash


class DiskSink:
    """A staging sink over the world's disk."""

    name = "disk"
    guarantee = Guarantee.EXACTLY_ONCE

    def __init__(self, world: World) -> None:
        self._world = world
        self._open: list[bytes] = []
        self._closed: list[bytes] = []

    async def open(self, prepared: tuple[int, Staged] | None) -> None:
        self._world.step()
        kept = prepared[1].names if prepared is not None else ()
        self._world.staged = {name: outputs for name, outputs in self._world.staged.items() if name in kept}

    def write(self, record: EmitRecord | DeadLetter) -> None:
        self._open.append(record.value)

    def barrier(self, checkpoint: int) -> None:
        self._closed, self._open = self._open, []

    async def stage(self, checkpoint: int) -> Staged:
        self._world.step()
        if not self._closed:
            return Staged()
        self._world.staged[f"part-{checkpoint}"] = tuple(self._closed)
        self._world.step()
        return Staged(names=(f"part-{checkpoint}",))

    async def publish(self, checkpoint: int, staged: Staged) -> None:
        self._world.step()
        for name in staged.names:
            if name in self._world.staged:
                assert checkpoint not in self._world.published, "published twice"
                self._world.published[checkpoint] = self._world.staged.pop(name)
        self._world.step()

    async def close(self) -> None:
        pass


class CrashingState(MemoryKeyedState):
    """Keyed state that may die around each step of the protocol."""

    def __init__(self, world: World) -> None:
        super().__init__(world.storage)
        self._world = world

    async def prepare(self, checkpoint: int, delta: DeltaSlices, staged: Mapping[str, Staged]) -> None:
        self._world.step()
        await super().prepare(checkpoint, delta, staged)
        self._world.step()

    async def complete(self) -> None:
        self._world.step()
        await super().complete()
        self._world.step()


def start(event: InputEvent[Any], ctx: RunnerContext) -> None:
    if ctx.attempt == 1 and event.input["n"] % 5 == 3:
        msg = "the first attempt fails"
        raise ValueError(msg)
    seen = ctx.short_term_memory.update("seen", lambda seen: [*(seen or []), event.input["n"]])
    ctx.send_event(Event("seen", {"seen": seen}))


async def wait(event: Event, ctx: RunnerContext) -> None:
    await asyncio.sleep(0.001 * (len(event.attributes["seen"]) % 3))
    count = ctx.short_term_memory.update("count", lambda count: (count or 0) + 1)
    ctx.send_event(OutputEvent([ctx.key, count, event.attributes["seen"]]))


PLAN = AgentPlan.from_agent(
    Agent("A")
    .add_action("start", [EventType.InputEvent], start, retry=Retry(attempts=2, initial="1ms"))
    .add_action("wait", ["seen"], wait)
)


def live(world: World) -> bool:
    """Run the job until it ends or dies; whether it ended."""
    settings = JobSettings(checkpoint=CheckpointSettings(interval_ms=1), restart=RestartSettings(strategy="none"))
    source, sink = CollectionSource(RECORDS), DiskSink(world)
    stage = AgentStage(PLAN, "k")
    spec = JobSpec(settings, (stage,), lambda: source, lambda: {"sink": sink}, lambda: CrashingState(world))

    async def run() -> bool:
        try:
            await Job(spec).run()
        except SimulatedCrash:
            return False
        return True

    return asyncio.run(run())


def check(world: World) -> None:
    """Compare the world with the sequential run."""
    outputs = [msgspec.json.decode(value) for n in sorted(world.published) for value in world.published[n]]
    for key in "abc":
        numbers = [record["n"] for record in RECORDS if record["k"] == key]
        expected = [[key, place + 1, numbers[: place + 1]] for place in range(len(numbers))]
        assert [output for output in outputs if output[0] == key] == expected
    assert not world.storage.table(Table.RUNS) or not any(world.storage.table(Table.RUNS).values())
    memory = {name for rows in world.storage.table(Table.MEMORY).values() for name in rows}
    assert memory == {"seen", "count"}


def crash_once_at(call: int, *, is_power_lost: bool) -> bool:
    """Live with one crash at a call number, then to the end; False when there is no such call."""
    world = World()
    world.crash_at = call
    if live(world):
        return False
    if is_power_lost:
        world.storage.lose_unsynced()
    world.crash_at = 0
    assert live(world)
    check(world)
    return True


@pytest.mark.parametrize("is_power_lost", [False, True], ids=["killed", "power lost"])
def test_crash_at_every_call_loses_and_doubles_nothing(*, is_power_lost: bool) -> None:
    call = 1
    while crash_once_at(call, is_power_lost=is_power_lost):
        call += 1
        assert call < CALLS_MAX
    assert call > 10


def test_crashing_again_and_again_still_ends_with_the_same_result() -> None:
    for every in range(7, 23):
        world, calls = World(), every
        world.crash_at = calls
        while not live(world):
            calls += 2  # a life must be long enough in the end for a coroutine to get through its wait
            world.crash_at = world.calls + calls
        check(world)


def break_order(patch: pytest.MonkeyPatch) -> None:
    """Publish before the checkpoint is decided."""

    async def complete(self: Any, checkpoint: int, delta: DeltaSlices) -> None:
        staged = {role: await sink.stage(checkpoint) for role, sink in self._sinks.items()}
        await self._publish(checkpoint, staged)
        await self._state.prepare(checkpoint, delta, staged)
        await self._state.complete()

    patch.setattr(checkpoints.EmbeddedCheckpoints, "complete", complete)


def break_recovery(patch: pytest.MonkeyPatch) -> None:
    """Delete all staging at recovery, also that of a decided checkpoint."""

    async def recover(self: Any) -> int:
        for sink in self._sinks.values():
            await sink.open(None)
        if self._state.prepared is not None:
            await self._state.complete()
        return int(self._state.checkpoint)

    patch.setattr(checkpoints.EmbeddedCheckpoints, "recover", recover)


def break_delta(patch: pytest.MonkeyPatch) -> None:
    """Leave unfinished runs out of the epoch delta."""
    whole = EpochDelta._run_slices

    def nothing(self: EpochDelta, between: Callable[[], None]) -> Iterator[list[StateWrite]]:
        for writes in whole(self, between):
            yield [write for write in writes if write.table is not Table.RUNS]

    patch.setattr(EpochDelta, "_run_slices", nothing)


def crash_everywhere() -> None:
    """Crash once at each call, five times over, because the calls of a life depend on its timing."""
    for _ in range(5):
        call = 1
        while crash_once_at(call, is_power_lost=False) and call < CALLS_MAX:
            call += 1


@pytest.mark.parametrize("break_protocol", [break_order, break_recovery, break_delta])
def test_broken_protocol_is_found(break_protocol: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_protocol(patch)
        with pytest.raises(AssertionError):
            crash_everywhere()

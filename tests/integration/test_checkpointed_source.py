"""A source that takes part in checkpoints: what it keeps is what it gets back, and it is told when that is complete."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentflow import (
    Agent,
    AgentsExecutionEnvironment,
    CollectionSink,
    EventType,
    JobSettings,
    OutputEvent,
    StateSettings,
)
from agentflow.api.codecs import JSON
from agentflow.core.delta import POSITIONS_NAME, Table, decode_positions
from agentflow.core.records import Record
from agentflow.errors import SourceUnavailable
from agentflow.runtime.settings import RestartSettings
from agentflow.state.rocksdb import RocksDBKeyedState


class PassingLabels:
    """Each record has a label of its own, which is dropped as soon as the record is applied; without an end."""

    name = "passing"
    is_replayable = True
    codec = JSON
    partitions = ()
    idle_timeout_ms = None

    def __init__(self, sink: CollectionSink, count: int) -> None:
        self.opened: list[dict[str, int]] = []
        self.released: list[tuple[dict[str, int], int]] = []
        self.sink = sink
        self.count = count
        self.done = asyncio.Event()
        self._next = 0

    async def open(self, positions: Mapping[str, int]) -> None:
        self.opened.append(dict(positions))
        self._next = positions.get("count", 0)

    async def fetch(self, records_max: int) -> Sequence[Record]:
        if self._next == self.count:
            await asyncio.Event().wait()
        self._next += 1
        return [Record(f"label-{self._next}", 0, 1, b'{"k": 1}')]

    def barrier(self, positions: Mapping[str, int]) -> Mapping[str, int]:
        count = positions.get("count", 0) + sum(name.startswith("label-") for name in positions)
        return {"count": count}

    async def release(self, positions: Mapping[str, int]) -> None:
        self.released.append((dict(positions), len(self.sink.values)))
        if len(self.sink.values) == self.count:
            self.done.set()

    async def close(self) -> None:
        pass


def agent() -> Agent:
    def act(event: Any, ctx: Any) -> None:
        ctx.send_event(OutputEvent(1))

    return Agent("A").add_action("act", [EventType.InputEvent], act)


async def run(directory: Path, count: int) -> PassingLabels:
    sink = CollectionSink()
    source = PassingLabels(sink, count)
    env = AgentsExecutionEnvironment(JobSettings(state=StateSettings(dir=str(directory))))
    env.from_source(source).key_by("k").apply(agent()).to_sink(sink)
    job = env.job()
    running = asyncio.ensure_future(job.run())
    await source.done.wait()
    await job.signal(1, "hello")
    await job.checkpoint_now()
    job.request_stop()
    await running
    return source


async def test_dropped_labels_are_forgotten_and_positions_of_signals_are_not(state_dir):
    source = await run(state_dir, 5)
    assert source.opened == [{}]
    for positions, outputs in source.released:
        assert positions.get("count", 0) == outputs, "a checkpoint is complete when its outputs are there"
    state = RocksDBKeyedState.open(str(state_dir / "subtask-0"), job="agentflow")
    try:
        stored = {row.name: row.value for row in state.rows(Table.META)}
    finally:
        state.close()
    assert decode_positions(stored[POSITIONS_NAME]) == {"count": 5, "signals": 1}


class UnreleasedOnce(PassingLabels):
    """The other side does not answer when it is told that a checkpoint is complete."""

    failures = 0

    async def release(self, positions: Mapping[str, int]) -> None:
        if positions.get("count") == self.count and not self.failures:
            self.failures += 1
            raise SourceUnavailable("nobody answers")
        await super().release(positions)


async def test_release_that_fails_restarts_the_job_behind_the_complete_checkpoint():
    sink = CollectionSink()
    source = UnreleasedOnce(sink, 4)
    env = AgentsExecutionEnvironment(JobSettings(restart=RestartSettings(delay_ms=1)))
    env.from_source(source).key_by("k").apply(agent()).to_sink(sink)
    job = env.job()
    running = asyncio.ensure_future(job.run())
    await source.done.wait()
    job.request_stop()
    status = await running
    assert source.opened == [{}, {"count": 4}]
    assert (status.restarts, sink.values) == (1, [1, 1, 1, 1])


async def test_what_was_kept_is_what_the_next_life_opens_with(state_dir):
    await run(state_dir, 3)
    source = PassingLabels(CollectionSink(), 3)
    env = AgentsExecutionEnvironment(JobSettings(state=StateSettings(dir=str(state_dir))))
    env.from_source(source).key_by("k").apply(agent()).to_list()
    job = env.job()
    job.request_stop()
    await job.run()
    assert source.opened[0]["count"] == 3

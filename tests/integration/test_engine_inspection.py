"""What others see of an engine that runs: its unfinished runs, read beside it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agentflow import Engine, Event, OutputEvent, RunnerContext
from agentflow.core.delta import Table
from agentflow.runtime.inspection import RunView, unfinished_runs
from agentflow.state.rocksdb_rows import StateView
from tests.engines import ONCE, Counting, agent_of, checkpointed


def seen_beside(state_dir: Path) -> list[RunView]:
    view = StateView(state_dir / "subtask-0")
    try:
        return unfinished_runs(view.rows(Table.RUNS), view.rows(Table.STEPS), view.journal, view.checkpoint)
    finally:
        view.close()


async def ask(event: Event, ctx: RunnerContext) -> None:
    answer = await ctx.wait_for("answer")
    ctx.send_event(OutputEvent([event.input, answer]))


@pytest.mark.parametrize("is_in_checkpoint", [False, True])
async def test_the_run_of_a_request_is_seen_with_what_it_waits_for(tmp_path: Path, *, is_in_checkpoint: bool) -> None:
    async with Engine(agent_of(ask), state_dir=str(tmp_path), config={"checkpoint.interval": "1h"}) as engine:
        run_id = await engine.send("a", "question", request_id="r-1")
        while not any(run.steps for run in seen_beside(tmp_path)):  # noqa: ASYNC110 (of a process's files)
            await asyncio.sleep(0.01)
        if is_in_checkpoint:
            await checkpointed(engine)
        (run,) = seen_beside(tmp_path)
        assert (run.run, run.key, run.state) == (run_id, "a", "waiting")
        assert run.admitted_ms is not None
        assert [(step.kind, step.function) for step in run.steps] == [("wait", "ctx.wait_for:answer")]
        await engine.signal("a", "answer", 42)
        assert await engine.result(run_id) == [["question", 42]]
        assert seen_beside(tmp_path) == []


async def test_answered_requests_are_not_unfinished_before_the_checkpoint_has_them(tmp_path: Path) -> None:
    async with Engine(Counting(), state_dir=str(tmp_path), config={"checkpoint.interval": "1h"}) as engine:
        await asyncio.gather(*(engine.submit(n % 3, n) for n in range(20)))
        assert seen_beside(tmp_path) == []


async def test_a_failed_request_is_not_unfinished(tmp_path: Path) -> None:
    def fail(event: Event, ctx: RunnerContext) -> Any:
        raise ValueError(event.input)

    agent = agent_of(fail, retry=ONCE)

    async with Engine(agent, state_dir=str(tmp_path), config={"checkpoint.interval": "1h"}) as engine:
        with pytest.raises(Exception, match="boom"):
            await engine.submit("a", "boom")
        assert seen_beside(tmp_path) == []

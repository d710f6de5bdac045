"""What others see of an engine that runs: its unfinished runs, read beside it."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from agentflow import Engine, EngineClosed, Event, NotConfigured, OutputEvent, RunnerContext
from agentflow.core.delta import Table
from agentflow.environment.savepoints import EmbeddedState, restore_savepoint, savepoint_at, verify_savepoint
from agentflow.errors import ConfigError
from agentflow.runtime.inspection import RunView, unfinished_runs
from agentflow.state.rocksdb_rows import StateView
from tests.engines import ONCE, Counting, agent_of, checkpointed

ROOT = Path(__file__).parents[2]


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


async def test_the_commands_that_look_and_talk_take_the_state_directory(tmp_path: Path) -> None:
    async def agentflow(*arguments: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agentflow", *arguments, stdout=PIPE, stderr=PIPE, cwd=ROOT
        )
        written, errors = await process.communicate()
        return process.returncode or 0, written.decode(), errors.decode()

    state = str(tmp_path / "state")
    async with Engine(agent_of(ask), state_dir=state) as engine:
        run_id = await engine.send("a", "question")
        while not any(run.steps for run in seen_beside(tmp_path / "state")):  # noqa: ASYNC110 (of a process's files)
            await asyncio.sleep(0.01)
        assert run_id in (await agentflow("runs", "list", state))[1]
        shown = json.loads((await agentflow("runs", "show", state, run_id, "--json"))[1])
        assert (shown["key"], shown["state"]) == ("a", "waiting")
        (waiting,) = json.loads((await agentflow("inbox", state, "--json"))[1])
        assert (waiting["key"], waiting["name"]) == ("a", "answer")
        assert await agentflow("signal", state, "a", "answer", "42") == (0, "signal 'answer' sent to key 'a'\n", "")
        assert await engine.result(run_id) == [["question", 42]]
    status, written, errors = await agentflow("signal", str(tmp_path), "a", "answer")
    assert (status, written) == (2, "")
    assert errors.startswith(f"error: {tmp_path} is no state directory: there is no subtask-0 in it\nhelp: ")


async def test_a_savepoint_has_open_and_answered_requests(tmp_path: Path) -> None:
    async with Engine(agent_of(ask), state_dir=str(tmp_path / "state")) as engine:
        await engine.signal("b", "answer", 1)
        assert await engine.submit("b", "x", request_id="answered") == [["x", 1]]
        run_id = await engine.send("a", "question", request_id="open")
        while not any(run.steps for run in seen_beside(tmp_path / "state")):  # noqa: ASYNC110 (of a process's files)
            await asyncio.sleep(0.01)
        place = await engine.savepoint(tmp_path / "backups")
        await engine.signal("a", "answer", "not in the savepoint")
        await engine.result(run_id)
    savepoint = savepoint_at(place)
    assert verify_savepoint(savepoint).damage == []
    restore_savepoint(savepoint, EmbeddedState(tmp_path / "other", "elsewhere"))
    async with Engine(agent_of(ask), state_dir=str(tmp_path / "other"), config={"job": "elsewhere"}) as engine:
        assert await engine.submit("b", "x", request_id="answered") == [["x", 1]]
        assert [(run.run, run.state) for run in engine.runs()] == [(run_id, "waiting")]
        await engine.signal("a", "answer", 42)
        assert await engine.result(request_id="open") == [["question", 42]]


async def test_a_savepoint_has_a_place_of_its_own(tmp_path: Path) -> None:
    async with Engine(Counting(), state_dir=str(tmp_path / "state")) as engine:
        with pytest.raises(ConfigError, match="the text is empty"):
            await engine.savepoint("")
        with pytest.raises(ConfigError, match="within the state directory"):
            await engine.savepoint(tmp_path / "state" / "backups")
        assert await engine.submit("k", 1)


async def test_no_savepoint_is_taken_of_an_engine_in_memory_or_one_that_is_closed(tmp_path: Path) -> None:
    async with Engine(Counting(), in_memory=True) as engine:
        with pytest.raises(NotConfigured, match="in no directory"):
            await engine.savepoint(tmp_path)
    with pytest.raises(EngineClosed):
        await engine.savepoint(tmp_path)

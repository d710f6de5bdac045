"""How an engine lives inside of a service: several agents, closing, being cancelled, being killed."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentflow import (
    Agent,
    ConfigError,
    Engine,
    EngineClosed,
    Event,
    EventType,
    OutputEvent,
    PlanError,
    RunnerContext,
)
from agentflow.errors import StateLocked
from agentflow.plan.plan import AgentPlan
from tests.engines import Counting, agent_of, until


# -- several agents, life
async def test_several_agents_are_asked_by_name_and_share_nothing_but_the_directory(
    new_engine: Callable[..., Engine],
) -> None:
    def shout(event: Event, ctx: RunnerContext) -> None:
        number = ctx.short_term_memory.update("n", lambda n: (n or 0) + 10)
        ctx.send_event(OutputEvent([str(event.input).upper(), number]))

    shouting = Agent("Shouting").add_action("shout", [EventType.InputEvent], shout)
    async with new_engine([Counting(), AgentPlan.from_agent(shouting)]) as engine:
        assert await engine.submit("k", "x", agent="Shouting", request_id="r") == [["X", 10]]
        assert (await engine.submit("k", "x", agent="Counting", request_id="r"))[0]["n"] == 1
        assert await engine.result(request_id="r", agent="Shouting") == [["X", 10]]
        assert engine.memory("k", agent="Shouting").get("n") == 10
        run = await engine.send("k", "y", agent="Shouting")
        assert await engine.result(run) == [["Y", 20]]
        with pytest.raises(ConfigError, match="several agents: name one of Counting, Shouting"):
            await engine.submit("k", 1)


def test_an_engine_that_cannot_be_is_refused_when_it_is_made(tmp_path: Path) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"agent": Counting()}, "has to know where state is"),
        ({"agent": Counting(), "in_memory": True, "state_dir": str(tmp_path)}, "exclude each other"),
        ({"agent": [], "in_memory": True}, "one agent or several"),
        ({"agent": [Counting(), Counting()], "in_memory": True}, "a name of its own"),
        ({"agent": Counting, "in_memory": True}, r"give an agent, not its class: Counting\(\)"),
        ({"agent": Counting(), "in_memory": True, "on_overload": "explode"}, "'wait' or 'raise'"),
        ({"agent": Counting(), "in_memory": True, "config": {"checkpoint.intervall": "1s"}}, "checkpoint.interval'"),
    ]
    for options, said in wrong:
        with pytest.raises(ConfigError, match=said):
            Engine(**options)
    with pytest.raises(PlanError):
        Engine(Agent("Empty"), in_memory=True)


async def test_one_engine_owns_a_directory_and_leaves_it_to_the_next(tmp_path: Path) -> None:
    async with Engine(Counting(), state_dir=str(tmp_path)):
        with pytest.raises(StateLocked):
            await Engine(Counting(), state_dir=str(tmp_path)).start()
    async with Engine(Counting(), state_dir=str(tmp_path)) as engine:
        with pytest.raises(RuntimeError, match="started once"):
            await engine.start()
        await engine.close()
        await engine.close()
        with pytest.raises(EngineClosed):
            await engine.submit("k", 1)


async def test_close_drains_what_was_accepted_and_refuses_what_comes(new_engine: Callable[..., Engine]) -> None:
    gate = asyncio.Event()

    async def act(event: Event, ctx: RunnerContext) -> None:
        await gate.wait()
        ctx.send_event(OutputEvent("done"))

    engine = new_engine(agent_of(act))
    await engine.start()
    caller = asyncio.ensure_future(engine.submit("k", 1))
    await asyncio.sleep(0.01)
    closing = asyncio.ensure_future(engine.close())
    await asyncio.sleep(0.01)
    with pytest.raises(EngineClosed):
        await engine.submit("k", 2)
    gate.set()
    assert await caller == ["done"]
    await closing


async def test_what_does_not_end_in_time_goes_on_in_the_next_engine(tmp_path: Path) -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    gates[1].set()

    def make(life: int) -> Engine:
        async def act(event: Event, ctx: RunnerContext) -> None:
            await gates[life].wait()
            ctx.send_event(OutputEvent(life))

        return Engine(agent_of(act), state_dir=str(tmp_path), config={"shutdown.drain-timeout": "10ms"})

    async with make(0) as engine:
        run = await engine.send("k", 1)
        plain = asyncio.ensure_future(engine.submit("l", 1))
        await asyncio.sleep(0)
    with pytest.raises(EngineClosed, match="goes on when an engine is started"):
        await plain
    async with make(1) as engine:
        assert engine.stats().restored_runs in (0, 1, 2)
        assert await engine.result(run) == [1]


async def test_a_cancelled_service_closes_its_engine_and_loses_nothing(tmp_path: Path) -> None:
    started = asyncio.Event()

    async def act(event: Event, ctx: RunnerContext) -> None:
        if not gate.is_set():
            started.set()
        await gate.wait()
        ctx.send_event(OutputEvent("done"))

    gate = asyncio.Event()
    runs: list[str] = []

    async def service() -> None:
        async with Engine(agent_of(act), state_dir=str(tmp_path)) as engine:
            runs.append(await engine.send("k", 1))
            await asyncio.Event().wait()

    task = asyncio.ensure_future(service())
    await started.wait()
    await until(lambda: bool(runs))
    task.cancel()
    await asyncio.sleep(0.01)
    task.cancel()  # in a hurry
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    async with Engine(agent_of(act), state_dir=str(tmp_path)) as engine:
        assert await engine.result(runs[0]) == ["done"]


async def test_an_engine_whose_start_is_cancelled_gives_its_directory_back(tmp_path: Path) -> None:
    for _ in range(3):
        starting = asyncio.ensure_future(Engine(Counting(), state_dir=str(tmp_path)).start())
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    async with Engine(Counting(), state_dir=str(tmp_path)) as engine:
        assert (await engine.submit("k", 1))[0]["n"] == 1


async def test_an_engine_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    def facts() -> list[object]:
        loop = asyncio.get_running_loop()
        return [
            [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
            [(logger.handlers[:], logger.level) for logger in (logging.getLogger(), logging.getLogger("agentflow"))],
            asyncio.get_event_loop_policy(),
            loop.get_exception_handler(),
            loop.get_debug(),
            gc.get_threshold(),
            Path.cwd(),
            sys.excepthook,
        ]

    before = facts()
    async with Engine(Counting(), state_dir=str(tmp_path)) as engine:
        await engine.submit("k", 1)
        assert facts() == before
    assert facts() == before


PROGRAM = """
import asyncio, os, sys
from agentflow import Agent, Engine, EventType, OutputEvent

async def act(event, ctx):
    number = ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)
    if event.input == "wait":
        await asyncio.sleep(60)
    ctx.send_event(OutputEvent(number))

async def main():
    async with Engine(Agent("A").add_action("act", [EventType.InputEvent], act), state_dir=sys.argv[1]) as engine:
        for n in range(3):
            print(await engine.submit("k", n, request_id=f"r{n}"), flush=True)
        print(await engine.send("l", "go"), flush=True)
        print(await engine.send("m", "wait"), flush=True)
        os.kill(os.getpid(), 9)

if len(sys.argv) > 2:
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_what_was_answered_or_accepted_survives_kill_nine(tmp_path: Path, loop: str) -> None:
    arguments = [str(tmp_path / "state"), *(["uvloop"] if loop == "uvloop" else [])]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    *answers, sent, waiting = done.stdout.splitlines()
    assert answers == ["[1]", "[2]", "[3]"]

    def act(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)))

    async def look() -> None:
        async with Engine(agent_of(act), state_dir=str(tmp_path / "state")) as engine:
            assert [await engine.submit("k", n, request_id=f"r{n}") for n in range(3)] == [[1], [2], [3]]
            assert await engine.result(sent) == [1]
            assert await engine.result(waiting) == [1]
            assert engine.memory("k").get("n") == 3

    asyncio.run(look())

"""Whatever a tool raises is a text for the model, and no other key hears of it; only who cancels a call, or ends the process, passes."""

from __future__ import annotations

import argparse
import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentflow import Engine, Retry
from agentflow.api.chat_messages import tool_call
from agentflow.api.steps import StepIntent, reconcile
from agentflow.api.tools import Tool
from agentflow.errors import RunFailed, StateUnavailable
from agentflow.testing import ScriptedChatModel
from tests.model_agents import HURRY, scripted

RETRIES = [None, Retry(attempts=2, initial="1ms")]


class Panic(BaseException):
    """As that of PyO3: no Exception."""


def calling(name: str) -> ScriptedChatModel:
    """Return a model that wants a tool at its first question, and answers each later one."""
    return ScriptedChatModel([[tool_call(name, {}, "id-0")], "done", "hello"], tools=[name])


def told(model: ScriptedChatModel) -> list[str]:
    """Return what tools have said to the second question."""
    return [message.text for message in model.requests[1].messages if message.role == "tool"]


async def ask_twice(model: ScriptedChatModel, **tools: Any) -> None:
    """Ask for one key, then for another one."""
    async with Engine(scripted(model, **tools), in_memory=True) as engine, asyncio.timeout(20):
        assert (await engine.submit("k", "hello"))[0]["text"] == "done"
        assert (await engine.submit("another", "hello"))[0]["text"] == "hello"


def parse() -> None:
    argparse.ArgumentParser(exit_on_error=True).parse_args(["--n", "five"])


def exit_with_a_text() -> None:
    raise SystemExit("no such order")


def panic() -> None:
    raise Panic("index out of bounds")


def cancelled() -> None:
    raise asyncio.CancelledError


async def lost() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


def in_a_coroutine(function: Callable[[], None]) -> Callable[[], Any]:
    async def call() -> None:
        await asyncio.sleep(0)
        function()

    return call


@pytest.mark.parametrize("retry", RETRIES, ids=["once", "retried"])
@pytest.mark.parametrize("is_plain", [True, False], ids=["plain", "coroutine"])
@pytest.mark.parametrize(
    ("function", "says"),
    [
        (parse, "SystemExit: 2"),
        (exit_with_a_text, "SystemExit: no such order"),
        (panic, "Panic: index out of bounds"),
        (cancelled, "CancelledError"),
        (lost, "CancelledError"),
    ],
)
async def test_whatever_a_tool_raises_is_told_to_the_model(
    function: Callable[[], Any], says: str, is_plain: bool, retry: Retry | None
) -> None:
    calls = []

    def noted() -> Any:
        calls.append(1)
        return function()

    called = noted if is_plain else in_a_coroutine(noted)
    if function is lost:

        async def called() -> None:
            calls.append(1)
            await lost()

    model = calling("act")
    await ask_twice(model, act=Tool.from_callable(called, name="act", retry=retry))
    assert told(model) == [f"Tool `act` execute failed. {says}"]
    assert len(calls) == (1 if retry is None else 2)


async def test_whatever_a_reconciler_of_a_tool_raises_is_told_to_the_model(tmp_path: Path) -> None:
    entered = asyncio.Event()

    async def pay() -> str:
        entered.set()
        await asyncio.Event().wait()
        return "never"

    def look(intent: StepIntent) -> None:
        parse()

    model = calling("pay")
    tool = Tool.from_callable(pay, idempotent=False, reconciler=reconcile(look))
    async with Engine(scripted(model, pay=tool), state_dir=tmp_path, config=HURRY) as engine:
        await engine.send("k", "hello", request_id="r")
        await entered.wait()
    async with Engine(scripted(model, pay=tool), state_dir=tmp_path) as engine:
        assert (await engine.result(request_id="r", timeout="20s"))[0]["text"] == "done"
    assert told(model) == ["Tool `pay` execute failed. SystemExit: 2"]


async def test_a_call_that_is_cancelled_by_a_person_tells_the_model_nothing() -> None:
    entered, left = asyncio.Event(), []

    async def hang() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            left.append(1)
            raise

    model = calling("hang")
    async with Engine(scripted(model, hang=hang), in_memory=True) as engine:
        asked = asyncio.ensure_future(engine.submit("k", "hello"))
        await entered.wait()
        await engine.cancel("k")
        with pytest.raises(RunFailed):
            await asked
    assert left == [1]
    assert len(model.requests) == 1


@pytest.mark.parametrize("retry", RETRIES, ids=["once", "retried"])
async def test_a_timeout_of_the_tools_own_is_not_told_as_that_of_the_engine(retry: Retry | None) -> None:
    async def impatient() -> None:
        raise TimeoutError

    model = calling("impatient")
    await ask_twice(model, impatient=Tool.from_callable(impatient, retry=retry))
    assert told(model) == ["Tool `impatient` execute failed. TimeoutError"]


@pytest.mark.parametrize("retry", RETRIES, ids=["once", "retried"])
async def test_a_tool_that_took_too_long_is_told_so(retry: Retry | None) -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    model = calling("hang")
    await ask_twice(model, hang=Tool.from_callable(hang, timeout="10ms", retry=retry))
    assert told(model) == ["Tool `hang` execute failed. TimeoutError: it took longer than 0.01 s"]


async def test_plain_tools_that_hang_behind_their_timeouts_are_limited_and_the_error_names_one() -> None:
    release = threading.Event()

    async def think(request: object) -> str:
        return await asyncio.Event().wait() and "never said"

    def look_up() -> None:
        release.wait(60)

    model = ScriptedChatModel([[tool_call("look_up", {}, f"id-{n}") for n in range(3)], think], tools=["look_up"])
    config = {"blocking.leaked-max": 2, "restart.strategy": "none"}
    agent = scripted(model, look_up=Tool.from_callable(look_up, timeout="200ms"))
    try:
        with pytest.raises(StateUnavailable, match=r"2 threads .* have not come back") as raised:
            async with Engine(agent, in_memory=True, config=config) as engine:
                await engine.submit("k", "hello", timeout="20s")
    finally:
        release.set()
    assert "look_up" in str(raised.value)

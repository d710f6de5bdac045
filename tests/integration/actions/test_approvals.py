"""Tools that a person has to approve: who is asked, what an answer does, and that it does nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentflow import Engine
from agentflow.actions.approvals import APPROVAL
from agentflow.api.chat_messages import tool_call
from agentflow.api.tools import Tool
from agentflow.runtime.inspection import waits_for_signals
from agentflow.testing import ScriptedChatModel
from tests.engines import until
from tests.model_agents import HURRY, scripted


class Shop:
    """An agent that pays when it is allowed to."""

    def __init__(self, *replies: Any, **policy: Any) -> None:
        self.paid: list[int] = []
        self.model = ScriptedChatModel(list(replies), tools=["pay"])

        async def pay(amount: int) -> str:
            self.paid.append(amount)
            return f"paid {amount}"

        self.agent = scripted(self.model, pay=Tool.from_callable(pay, requires_approval=True, **policy))

    @property
    def told(self) -> list[str]:
        return [message.text for message in self.model.requests[-1].messages if message.role == "tool"]


async def waits(engine: Engine, count: int = 1) -> list[str]:
    """Return the correlations that are waited for, when there are so many."""

    def found() -> list[str]:
        return [wait.correlation for wait in waits_for_signals(engine.runs()) if wait.name == APPROVAL]

    await until(lambda: len(found()) >= count)
    return found()


def wanting(*amounts: int) -> list[Any]:
    return [tool_call("pay", {"amount": amount}, f"id-{amount}") for amount in amounts]


async def answered(shop: Shop, *answers: Any) -> None:
    async with Engine(shop.agent, in_memory=True) as engine:
        said = asyncio.create_task(engine.submit("k", "hello"))
        for correlation, answer in zip(await waits(engine, len(answers)), answers, strict=True):
            await engine.signal("k", APPROVAL, answer, correlation=correlation)
        assert (await said)[0]["text"] == "done"


@pytest.mark.parametrize(
    ("answer", "paid", "told"),
    [
        ({"approved": True}, [5], "paid 5"),
        ({"approved": True, "arguments": {"amount": 3}}, [3], "paid 3"),
        ({"approved": False}, [], "The call of tool `pay` was denied."),
        ({"approved": False, "reason": "too much"}, [], "The call of tool `pay` was denied: too much"),
        ({"approved": "yes"}, [], "The call of tool `pay` was denied."),
        ("yes", [], "The call of tool `pay` was denied."),
    ],
)
async def test_answer_decides_about_the_call(answer: Any, paid: list[int], told: str) -> None:
    shop = Shop(wanting(5), "done")
    await answered(shop, answer)
    assert (shop.paid, shop.told) == (paid, [told])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"amount": "many"}, "amount"),
        ({}, "amount"),
        ({"amount": 1, "sum": 1}, "sum"),
        ('{"amount": 1}', "no JSON object"),
        ([1], "no JSON object"),
        (False, "no JSON object"),
    ],
)
async def test_a_persons_arguments_that_do_not_fit_deny_the_call_and_are_not_the_models_mistake(
    arguments: Any, why: str
) -> None:
    shop = Shop(wanting(5), "done")
    await answered(shop, {"approved": True, "arguments": arguments})
    assert shop.paid == [], "least of all what the model wanted"
    assert "The person's arguments do not fit: " in shop.told[0]
    assert why in shop.told[0]
    assert "Call it again" not in shop.told[0]


async def test_calls_of_one_turn_are_approved_one_by_one() -> None:
    shop = Shop(wanting(1, 2), "done")
    await answered(shop, {"approved": False}, {"approved": True})
    assert shop.paid == [2]


async def test_nobody_is_asked_about_a_call_that_cannot_be_made() -> None:
    shop = Shop([tool_call("pay", {"sum": 5})], "done")
    async with Engine(shop.agent, in_memory=True) as engine:
        assert (await engine.submit("k", "hello"))[0]["text"] == "done"
    assert "wrong" in shop.told[0]


async def test_time_that_is_up_denies() -> None:
    shop = Shop(wanting(5), "done", approval_timeout="50ms")
    async with Engine(shop.agent, in_memory=True) as engine:
        assert (await engine.submit("k", "hello"))[0]["text"] == "done"
    assert shop.paid == []
    assert "nobody has approved it in time" in shop.told[0]


async def test_approval_of_one_call_is_none_of_a_later_turn_or_run_with_the_same_provider_id() -> None:
    shop = Shop(wanting(5), wanting(5), "done", wanting(5), "done", approval_timeout="200ms")
    async with Engine(shop.agent, in_memory=True) as engine:
        said = asyncio.create_task(engine.submit("k", "hello"))
        (first,) = await waits(engine)
        await engine.signal("k", APPROVAL, {"approved": True}, correlation=first)
        await engine.signal("k", APPROVAL, {"approved": True}, correlation=first)  # once too often
        await said
        assert shop.paid == [5]
        assert "nobody" in shop.told[1]
        await engine.signal("k", APPROVAL, {"approved": True}, correlation=first)  # too late
        await engine.submit("k", "again")
        assert shop.paid == [5]


async def test_approval_outlives_the_process(tmp_path: Path) -> None:
    def make(*replies: Any) -> tuple[Shop, Callable[[], Engine]]:
        shop = Shop(*replies)
        return shop, lambda: Engine(shop.agent, state_dir=str(tmp_path), config=HURRY)

    _, engine_of = make(wanting(5))
    async with engine_of() as engine:
        await engine.send("k", "hello", request_id="r")
        (before,) = await waits(engine)
    shop, engine_of = make("done")
    async with engine_of() as engine:
        (after,) = await waits(engine)
        assert after == before
        await engine.signal("k", APPROVAL, {"approved": True}, correlation=after)
        assert (await engine.submit("k", "hello", request_id="r"))[0]["text"] == "done"
    assert shop.paid == [5]

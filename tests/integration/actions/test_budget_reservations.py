"""Budgets and calls at the same time: what is reserved, who waits, and what has to be known for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agentflow import BaseChatModelSetup, Engine, Event, OutputEvent, RunFailed, RunnerContext
from agentflow.api.budgets import Budget
from agentflow.api.chat_messages import ChatMessage, Usage
from agentflow.api.resources import ResourceType
from agentflow.errors import BudgetExhausted, ModelRejected
from agentflow.testing import ScriptedChatModel, ScriptedConnection
from tests.engines import ONCE, agent_of, until
from tests.model_agents import HURRY, asking, scripted


def saying(tokens: int = 10) -> ChatMessage:
    return ChatMessage(content="hi", usage=Usage(tokens // 2, tokens - tokens // 2))


def always(budgets: list[Any], **arguments: Any) -> ScriptedChatModel:
    return ScriptedChatModel(rules=[{"when": "", "reply": lambda request: saying()}], budgets=budgets, **arguments)


@pytest.mark.parametrize(
    ("budget", "calls"), [({"tokens": 40}, 4), ({"money": 0.000_025}, 3), ({"per": "key", "tokens": 40}, 4)]
)
async def test_calls_at_the_same_time_spend_no_more_than_one_after_the_other(
    budget: dict[str, Any], calls: int
) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        asked = [asyncio.ensure_future(ctx.chat("m", [f"{n}"])) for n in range(10)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(one) for one in found} == {ChatMessage, BudgetExhausted}
        ctx.send_event(OutputEvent(sum(isinstance(one, ChatMessage) for one in found)))

    model = always([budget], model="priced")
    config = {"config": {"chat.prices.priced.input": 1, "chat.prices.priced.output": 1}}
    async with Engine(scripted(model, agent_of(act, retry=ONCE)), in_memory=True, config=config) as engine:
        assert await engine.submit("k", 1) == [calls]
    assert len(model.requests) == calls


async def test_calls_that_a_budget_has_room_for_are_made_at_the_same_time() -> None:
    everybody = asyncio.Barrier(5)

    async def reply(request: Any) -> ChatMessage:
        await everybody.wait()
        return saying()

    async def act(event: Event, ctx: RunnerContext) -> None:
        await ctx.gather(*(ctx.chat("m", [f"{n}"]) for n in range(5)))
        ctx.send_event(OutputEvent("done"))

    model = ScriptedChatModel(rules=[{"when": "", "reply": reply}], budgets=[Budget(tokens=5_000)])
    async with Engine(scripted(model, agent_of(act)), in_memory=True) as engine:
        assert await engine.submit("k", 1) == ["done"]


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_a_call_that_waits_for_what_another_costs_goes_on_however_that_ends(how: str) -> None:
    async def reply(request: Any) -> ChatMessage:
        if request.messages[-1].text == "first" and how == "fails":
            raise ModelRejected("no")
        if request.messages[-1].text == "first":
            await asyncio.Event().wait()
        return saying()

    async def act(event: Event, ctx: RunnerContext) -> None:
        first, second = (asyncio.ensure_future(ctx.chat("m", [name])) for name in ("first", "second"))
        await until(lambda: len(model.requests) > 0)
        if how == "is cancelled":
            assert not second.done()
            first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        ctx.send_event(OutputEvent((await second).text))

    model = ScriptedChatModel(rules=[{"when": "", "reply": reply}], budgets=[Budget(tokens=100)])
    async with Engine(scripted(model, agent_of(act, retry=ONCE)), in_memory=True) as engine:
        assert await engine.submit("k", 1) == ["hi"]


async def test_a_budget_of_money_wants_the_prices_of_all_models_that_it_limits() -> None:
    def refuse(request: Any) -> ChatMessage:
        raise ModelRejected("no such model")

    asked = ScriptedChatModel(
        rules=[{"when": "", "reply": refuse}], model="first", fallback_models=["other"],
        error_handling_strategy="fallback", budgets=[Budget(money=1)],
    )  # fmt: skip
    agent = scripted(asked, asking()).add_resource("other", ResourceType.CHAT_MODEL, always([], model="second"))
    prices: dict[str, Any] = {}
    for model in ("first", "second"):
        async with Engine(agent, in_memory=True, config={"config": prices}) as engine:
            with pytest.raises(RunFailed, match=rf"model '{model}' has no price(.|\n)*chat\.prices\.{model}\.input"):
                await engine.submit("k", "hello")
        prices |= {f"chat.prices.{model}.input": 1, f"chat.prices.{model}.output": 1}
    async with Engine(agent, in_memory=True, config={"config": prices}) as engine:
        assert await engine.submit("k", "hello")


async def test_a_process_that_dies_before_its_connection_is_open_has_made_no_call(tmp_path: Path) -> None:
    opening = asyncio.Event()

    class Slow(ScriptedConnection):
        async def open(self) -> None:
            opening.set()
            if not is_second:
                await asyncio.Event().wait()
            await super().open()

    def make() -> Engine:
        setup = BaseChatModelSetup(connection="slow", model="m", budgets=[Budget(per="key", calls=1)])
        agent = scripted(setup).add_resource(
            "slow", ResourceType.CHAT_MODEL_CONNECTION, Slow(rules=[{"when": "", "reply": "hi"}])
        )
        return Engine(agent, state_dir=str(tmp_path), config=HURRY)

    is_second = False
    async with make() as engine:
        await engine.send("k", "hello", request_id="r")
        await opening.wait()
    is_second = True
    async with make() as engine:
        (said,) = await engine.submit("k", "hello", request_id="r")
    assert said["text"] == "hi"

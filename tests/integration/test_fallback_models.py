"""Fallback models: when the next one is asked, and when the first one is asked again."""

from __future__ import annotations

from typing import Any

import pytest

from agentflow import Agent, Engine, OutputEvent, ResourceType, RunnerContext
from agentflow.errors import ContextTooLong, ModelRejected, ModelUnavailable, RateLimited
from agentflow.testing import ScriptedChatModel
from tests.engines import agent_of

LATER_S = 3600.0


def agent_with(first: ScriptedChatModel) -> Agent:
    async def act(event: Any, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent((await ctx.chat("first", event.input)).text))

    agent = agent_of(act).add_resource("first", ResourceType.CHAT_MODEL, first)
    return agent.add_resource(
        "second", ResourceType.CHAT_MODEL, ScriptedChatModel(rules=[{"when": "", "reply": "two"}])
    )


def falling_back(*replies: Any) -> ScriptedChatModel:
    return ScriptedChatModel(
        replies,
        error_handling_strategy="fallback",
        fallback_models=["second"],
        retry_wait_interval="1ms",
        max_retries=2,
    )


@pytest.mark.parametrize(
    "error",
    [
        RateLimited("slow down"),
        RateLimited("slow down", retry_after_s=LATER_S),
        ModelUnavailable("closed", status=503, retry_after_s=LATER_S),
        ModelRejected("no such model"),
        ContextTooLong("too long"),
    ],
)
async def test_nobody_waits_for_a_model_that_will_not_answer_now(error: Exception) -> None:
    first = falling_back(error, "one")
    async with Engine(agent_with(first), in_memory=True) as engine:
        assert await engine.submit("k", "hi", timeout="20s") == ["two"]
    assert len(first.requests) == 1


async def test_a_model_that_may_answer_is_asked_again_first() -> None:
    first = falling_back(ModelUnavailable("cut"), ModelUnavailable("cut"), "one")
    async with Engine(agent_with(first), in_memory=True) as engine:
        assert await engine.submit("k", "hi", timeout="20s") == ["one"]


async def test_a_connection_whose_circuit_is_open_is_not_waited_for() -> None:
    first = falling_back(ModelUnavailable("cut"), "one")
    config = {"config": {"chat.breaker.failures": 1, "chat.breaker.open-for": "1h"}}
    async with Engine(agent_with(first), in_memory=True, config=config) as engine:
        assert await engine.submit("k", "hi", timeout="20s") == ["two"]
        assert await engine.submit("k", "hi", timeout="20s") == ["two"]
    assert len(first.requests) == 1

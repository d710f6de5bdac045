"""Conversations in an engine: what models are told over many runs, and a summary that is paid once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agentflow import Agent, Engine, Event, EventType, OutputEvent, ResourceType, RunFailed, RunnerContext
from agentflow.api.chat_history import KeepLast, Summarise
from agentflow.api.chat_messages import ChatMessage, MessageRole
from agentflow.testing.scripted_models import ScriptedChatModel
from tests.engines import ONCE, agent_of, until


def with_model(agent: Agent, *replies: Any) -> tuple[Agent, ScriptedChatModel]:
    model = ScriptedChatModel(replies)
    return agent.add_resource("model", ResourceType.CHAT_MODEL, model), model


async def test_a_model_is_told_what_was_said_in_earlier_runs_of_the_key() -> None:
    async def act(event: Any, ctx: RunnerContext) -> None:
        history = ctx.chat_history()
        history.append(event.input)
        answer = await ctx.chat("model", history.messages())
        history.append(answer)
        await history.compact(KeepLast(2))
        ctx.send_event(OutputEvent(answer.text))

    agent, model = with_model(agent_of(act), "a1", "a2", "b1", "a3")
    async with Engine(agent, in_memory=True) as engine:
        for key, text in (("a", "u1"), ("a", "u2"), ("b", "u1"), ("a", "u3")):
            await engine.submit(key, text)
    asked = [[message.text for message in request.messages] for request in model.requests]
    assert asked == [["u1"], ["u1", "a1", "u2"], ["u1"], ["u2", "a2", "u3"]]


async def test_a_summary_is_paid_once_and_the_same_after_a_restart(tmp_path: Path) -> None:
    waits = []

    async def act(event: Event, ctx: RunnerContext) -> None:
        history = ctx.chat_history()
        history.append("a first question that is rather long", ChatMessage(MessageRole.ASSISTANT, "yes"), "and this?")
        waits.append(await history.compact(Summarise("model", above=10, keep_last=1)))
        await ctx.wait_for("go")
        history.append(ChatMessage(MessageRole.ASSISTANT, "that"))
        ctx.send_event(OutputEvent([message.text for message in history.messages()]))

    agent, model = with_model(agent_of(act), "the gist")
    async with Engine(agent, state_dir=str(tmp_path)) as engine:
        await engine.send("k", 1, request_id="r")
        await until(lambda: bool(waits))
    async with Engine(with_model(agent_of(act))[0], state_dir=str(tmp_path)) as engine:
        answer = asyncio.ensure_future(engine.submit("k", 1, request_id="r"))
        await engine.signal("k", "go", None)
        assert await answer == [["Summary of the conversation so far:\nthe gist", "and this?", "that"]]
    assert (len(model.requests), waits) == (1, [1, 1])


async def test_parallel_actions_that_append_to_one_history_are_in_conflict() -> None:
    def say(event: Event, ctx: RunnerContext) -> None:
        ctx.chat_history().append("I")

    def say_elsewhere(event: Event, ctx: RunnerContext) -> None:
        ctx.chat_history(ctx.action_config["history"]).append("I")

    def agent(function: Any) -> Agent:
        made = Agent("A")
        for name in ("one", "other"):
            made.add_action(name, [EventType.InputEvent], function, parallel=True, retry=ONCE, history=name)
        return made

    async with Engine(agent(say), in_memory=True) as engine:
        with pytest.raises(RunFailed, match="MemoryConflict"):
            await engine.submit("k", 1)
    async with Engine(agent(say_elsewhere), in_memory=True) as engine:
        assert await engine.submit("k", 1) == []

"""Conversations in an engine: a summary is paid once, also when the run goes on in another process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentflow import Agent, Engine, Event, EventType, OutputEvent, RunFailed, RunnerContext
from agentflow.api.chat_history import ChatHistory, Summarise
from agentflow.api.chat_messages import ChatMessage, MessageRole
from tests.engines import ONCE, agent_of, until

POLICY = Summarise("small", above=10, keep_last=1)


class Summarising:
    """A context whose model counts its calls; each is a durable step."""

    calls = 0

    def __init__(self, ctx: RunnerContext) -> None:
        self.short_term_memory, self._ctx = ctx.short_term_memory, ctx

    async def chat(self, model: str, messages: Sequence[ChatMessage]) -> ChatMessage:
        answer = await self._ctx.durable_execute_async(self._answer, model, messages[-1].text, name="chat")
        return ChatMessage(MessageRole.ASSISTANT, answer)

    @classmethod
    def _answer(cls, model: str, text: str) -> str:
        cls.calls += 1
        return f"call {cls.calls} of {model}"


async def test_a_summary_is_paid_once_and_the_same_after_a_restart(tmp_path: Path) -> None:
    Summarising.calls = 0
    waits = []

    async def act(event: Event, ctx: RunnerContext) -> None:
        history = ChatHistory(Summarising(ctx))
        history.append("a first question that is rather long", ChatMessage(MessageRole.ASSISTANT, "yes"), "and this?")
        gone = await history.compact(POLICY)
        waits.append(gone)
        await ctx.wait_for("go")
        history.append(ChatMessage(MessageRole.ASSISTANT, "that"))
        ctx.send_event(OutputEvent([gone, *(message.text for message in history.messages())]))

    def make() -> Engine:
        return Engine(agent_of(act), state_dir=str(tmp_path))

    async with make() as engine:
        await engine.send("k", 1, request_id="r")
        await until(lambda: bool(waits))
    async with make() as engine:
        answer = asyncio.ensure_future(engine.submit("k", 1, request_id="r"))
        await engine.signal("k", "go", None)
        assert await answer == [[1, "Summary of the conversation so far:\ncall 1 of small", "and this?", "that"]]
    assert (Summarising.calls, waits) == (1, [1, 1])


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

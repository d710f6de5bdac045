"""An agent for services: it answers questions of customers, and remembers what each has asked.

``model`` stands for a call that costs money and seconds. It is a durable step: once its answer is recorded it is never asked again,
whatever happens to the process. A real one would be a request to a provider, with `ctx.idempotency_key`.
"""

from __future__ import annotations

import asyncio

import msgspec

from agentflow import Agent, Event, EventType, InputEvent, OutputEvent, RunnerContext, action

HISTORY_MAX = 20


class Question(msgspec.Struct):
    """What a customer asks."""

    text: str


async def model(question: str, asked_before: int) -> str:
    """Answer a question."""
    await asyncio.sleep(0.005)
    return f"answer {asked_before + 1} to {question!r}"


class SupportAgent(Agent):
    """Two outputs per question: that it is being worked on, and the answer."""

    @action(EventType.InputEvent, input=Question)
    def take(event: InputEvent[Question], ctx: RunnerContext) -> None:
        """Number the question, and say that somebody is at it."""
        memory = ctx.short_term_memory
        number = memory.update("asked", lambda asked: (asked or 0) + 1)
        ctx.send_event(OutputEvent({"customer": ctx.key, "number": number, "state": "thinking"}))
        ctx.send_event(Event("asked", {"text": event.input.text, "number": number}))

    @action("asked")
    async def answer(event: Event, ctx: RunnerContext) -> None:
        """Ask the model, once, and remember the answer."""
        text, number = event.attributes["text"], event.attributes["number"]
        said = await ctx.durable_execute_async(model, text, number - 1)
        ctx.short_term_memory.update("history", lambda known: [*(known or []), [text, said]][-HISTORY_MAX:])
        ctx.send_event(OutputEvent({"customer": ctx.key, "number": number, "answer": said}))

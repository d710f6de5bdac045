"""An agent in a service that shows its answers while the model writes them.

    python -m examples.agents.streaming_service [--model anthropic:claude-sonnet-5-5]

Tokens are for eyes: they come at once, and are lost with the process. The output at the end is durable: a service that was killed gives the
same one for the same ``request_id``, and calls no model again. `agentflow.integrations.asgi` has the same as server-sent events.
"""

from __future__ import annotations

import asyncio
import tempfile

import msgspec

from agentflow import (
    Agent,
    ChunkKind,
    Engine,
    EventType,
    InputEvent,
    OutputEvent,
    ResourceType,
    RunnerContext,
    StreamChunk,
    action,
    tool,
)
from examples.agents.models import ChosenModel, model_from_command_line, run_example

QUESTIONS = ["Is the Saltire pan in stock?", "Can I put it into the oven?"]


class Question(msgspec.Struct):
    """What a customer asks."""

    text: str


class AdviceAgent(Agent):
    """Advises customers, who see its answers come."""

    def __init__(self, model: ChosenModel) -> None:
        self.add_resource("advice_model", ResourceType.CHAT_MODEL, model.setup(tools=["stock"]))

    @tool
    @staticmethod
    async def stock(product: str) -> int:
        """Say how many pieces of a product are in stock."""
        return {"pan-saltire": 3}.get(product, 0)

    @action(EventType.InputEvent, input=Question)
    async def advise(event: InputEvent[Question], ctx: RunnerContext) -> None:
        """Answer a question, as part of the customer's conversation."""
        ctx.stream("progress").write("thinking …")
        said = await ctx.chat("advice_model", event.input.text, history=ctx.chat_history(), stream=ctx.stream("answer"))
        ctx.send_event(OutputEvent(said.text))


async def show(engine: Engine, customer: str, text: str, request_id: str) -> str:
    """Print what comes while the agent works, and return its answer."""
    answer = ""
    async for one in engine.stream(customer, {"text": text}, request_id=request_id, tokens=True):
        if not isinstance(one, StreamChunk):
            answer = one
        elif one.stream == "progress" and one.kind is ChunkKind.TEXT:
            print(f"  ({one.text})")
        elif one.kind is ChunkKind.TOOL_CALL:
            print(f"  (asks the shop: {one.text})")
        elif one.kind is ChunkKind.TEXT:
            print(one.text, end="", flush=True)
        elif one.kind is ChunkKind.RESET:
            print("\n  (once more)")  # the call was cut: what it has said is void
    print()
    return answer


async def serve(model: ChosenModel, state_dir: str) -> None:
    """Let a customer ask, and ask the first thing again."""
    async with Engine(AdviceAgent(model), state_dir=state_dir, resources=[model.resource]) as engine:
        answers = []
        for number, text in enumerate(QUESTIONS):
            print(f"ann: {text}")
            answers.append(await show(engine, "ann", text, f"q-{number}"))
    async with Engine(AdviceAgent(model), state_dir=state_dir, resources=[model.resource]) as engine:  # another process
        assert await engine.submit("ann", {"text": QUESTIONS[0]}, request_id="q-0") == answers[:1]


def main() -> None:
    """Answer some questions, token by token."""
    model = model_from_command_line(__doc__, "advice.yaml")
    with tempfile.TemporaryDirectory() as state_dir:
        asyncio.run(serve(model, state_dir))


if __name__ == "__main__":
    run_example(main)

"""Customer support with a memory, a budget, and a tool that a person has to approve.

    python -m examples.agents.support_agent [--model openai:gpt-5-mini]

The engine is embedded here, as in a service. Each customer has a conversation of its own, which later messages go on with. Who writes too
much has used up the budget: the model is not called any more that day. A refund waits until somebody approves it: in scripted mode a
scripted person does; with a real model it is you, in another terminal, with the command that is printed.
"""

from __future__ import annotations

import asyncio
import tempfile

import msgspec

from agentflow import (
    Agent,
    Budget,
    BudgetExhausted,
    Engine,
    EventType,
    InjectedArg,
    InputEvent,
    KeepLast,
    OutputEvent,
    Prompt,
    ResourceType,
    RunnerContext,
    action,
    prompt,
    tool,
)
from examples.agents.models import ChosenModel, model_from_command_line, run_example

ORDERS = {"ann": {"A-17": 39.0, "A-21": 12.5}, "bob": {"B-4": 89.0}}
CALLS_PER_DAY = 6
HISTORY_MAX = 20  # messages
STATE_DIR = "./state/support-agent"  # with a real model; kept, so the next start goes on with the conversations

MESSAGES = [
    ("ann", "Hello! What have I ordered?"),
    ("bob", "Where is my parcel?"),
    ("ann", "The pan of A-17 has a dent. I want my money back."),
    ("ann", "Thank you. Which order was that again?"),
    ("ann", "And tell me a joke."),
    ("ann", "Another one!"),
]


class Message(msgspec.Struct):
    """What a customer writes."""

    text: str


class SupportAgent(Agent):
    """Answers customers, which are its keys."""

    def __init__(self, model: ChosenModel) -> None:
        setup = model.setup(
            prompt="support_prompt",
            tools=["find_orders", "refund"],
            budgets=[Budget(per="day", calls=CALLS_PER_DAY)],  # of each customer
        )
        self.add_resource("support_model", ResourceType.CHAT_MODEL, setup)

    @prompt
    @staticmethod
    def support_prompt() -> Prompt:
        """Return what the model is told before each conversation."""
        return Prompt.from_text(
            "You are the support of a shop. Look orders up before you speak of them. Refund what arrived broken. Be brief."
        )

    @tool(injected_args={"customer": InjectedArg.from_short_term_memory("customer")})
    @staticmethod
    async def find_orders(customer: str) -> dict[str, float]:
        """Find the customer's orders: their numbers, and what was paid."""
        return ORDERS.get(customer, {})  # whose they are is not for the model to say

    @tool(
        injected_args={"customer": InjectedArg.from_short_term_memory("customer")},
        requires_approval=True,
        approval_timeout="1h",
        idempotent=False,
    )
    @staticmethod
    async def refund(order_id: str, amount: float, customer: str) -> str:
        """Give a customer money back for an order.

        Args:
            order_id: Number of the order.
            amount: How much.
        """
        if amount > ORDERS[customer][order_id]:
            raise ValueError("that is more than was paid")
        print(f"  {amount:.2f} paid back to {customer} for {order_id}")
        return f"{amount:.2f} is on its way."

    @action(EventType.InputEvent, input=Message)
    async def answer(event: InputEvent[Message], ctx: RunnerContext) -> None:
        """Answer a message, as part of the customer's conversation."""
        ctx.short_term_memory.set("customer", ctx.key)
        history = ctx.chat_history()
        try:
            said = await ctx.chat("support_model", event.input.text, history=history)
        except BudgetExhausted:
            ctx.send_event(OutputEvent("A colleague will get back to you."))
            return
        await history.compact(KeepLast(HISTORY_MAX))
        ctx.send_event(OutputEvent(said.text))


async def converse(model: ChosenModel, state_dir: str) -> None:
    """Let customers write one after the other, and print what they are told."""
    engine = Engine(SupportAgent(model), state_dir=state_dir, resources=[model.resource])
    async with engine, asyncio.TaskGroup() as tasks:
        approving = tasks.create_task(approve(engine, state_dir, is_scripted=model.is_scripted))
        for customer, text in MESSAGES:
            print(f"{customer}: {text}")
            answers: list[str] = await engine.submit(customer, {"text": text})
            print(f"  support: {answers[0]}")
        approving.cancel()


async def approve(engine: Engine, state_dir: str, *, is_scripted: bool) -> None:
    """Approve each call that waits for it: a scripted person does, or a person is told how."""
    asked: set[str] = set()
    while True:
        for wait in engine.inbox():
            if wait.id in asked:
                continue
            asked.add(wait.id)
            print(f"  to be approved: {wait.about['tool']} {wait.about['arguments']}")
            if is_scripted:
                await engine.approve(wait.id, by="a scripted person", reason="it was broken")
            else:
                print(f"  agentflow inbox approve {state_dir} {wait.id}   (or deny)")
        await asyncio.sleep(0.05)


def main() -> None:
    """Answer some customers."""
    model = model_from_command_line(__doc__, "support.yaml")
    if not model.is_scripted:
        asyncio.run(converse(model, STATE_DIR))
        return
    with tempfile.TemporaryDirectory() as state_dir:
        asyncio.run(converse(model, state_dir))


if __name__ == "__main__":
    run_example(main)

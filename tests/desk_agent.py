"""An agent in a file of its own whose model wants a refund for each input, which a person has to approve."""

DESK = '''\
import os
import signal

from agentflow import Agent, EventType, OutputEvent, ResourceType, Tool
from agentflow.api.chat_messages import tool_call
from agentflow.testing.scripted_models import ScriptedChatModel


def refund(order: str, amount: int, card_token: str = "") -> str:
    """Pay money back."""
    if os.path.exists("die"):
        os.remove("die")
        os.kill(os.getpid(), signal.SIGKILL)
    with open("refunds", "a") as refunds:
        refunds.write(f"{order} {amount}\\n")
    return f"refunded {amount}"


def want(request):
    return tool_call("refund", {"order": request.messages[-1].text, "amount": 25, "card_token": "tok-1"}, "call-1")


def say(request):
    return "told: " + request.messages[-1].text


async def act(event, ctx):
    order = event.input["order"]
    ctx.send_event(OutputEvent({"asked": order}))
    answer = await ctx.chat("model", order)
    ctx.send_event(OutputEvent({"order": order, "answer": answer.text}))


agent = Agent("Desk").add_action("act", [EventType.InputEvent], act)
agent.add_resource(
    "model", ResourceType.CHAT_MODEL, ScriptedChatModel(rules=[{"replies": [want, say]}], tools=["refund"])
)
timeout = os.environ.get("APPROVAL_TIMEOUT")
agent.add_resource("refund", ResourceType.TOOL, Tool.from_callable(refund, requires_approval=True, approval_timeout=timeout))
'''

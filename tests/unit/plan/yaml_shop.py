"""What the YAML documents of tests name."""

from __future__ import annotations

from agentflow import BaseChatModelConnection, OutputEvent, Resource, ResourceType, Verdict, tool


def review(event, ctx):
    ctx.send_event(OutputEvent({"got": event.input, "config": ctx.action_config}))


async def answer(event, ctx):
    ctx.send_event(OutputEvent(event.attributes))


def find_orders(customer: str, tenant: str = "", limit: int = 3) -> list:
    """Find orders.

    Args:
        customer: Whose.
        tenant: Where.
        limit: Most of them.
    """
    return [f"{tenant}/{customer}"][:limit]


@tool(injected_args={"tenant": {"key": "tenant"}}, timeout="5s", idempotent=False)
def refund(order: str, tenant: str) -> str:
    """Refund an order."""
    return f"{tenant}/{order}"


def has_happened(intent):
    return Verdict.NOT_DONE


class Connection(BaseChatModelConnection):
    """A connection of one's own."""

    address_of: str = ""


class Store(Resource):
    """A vector store."""

    path: str

    @classmethod
    def resource_type(cls):
        return ResourceType.VECTOR_STORE


not_a_function = 5

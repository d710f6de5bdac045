"""Agents that talk to models, for tests: over HTTP to a model server, or to a scripted model."""

from __future__ import annotations

from typing import Any

from agentflow import Agent, Event, EventType, OutputEvent, RunnerContext
from agentflow.api.chat_events import BudgetExhaustedEvent, ChatRequestEvent, ChatResponseEvent
from agentflow.api.resources import ResourceDescriptor, ResourceType
from agentflow.integrations.openai_compatible import OpenAICompatibleConnection, OpenAICompatibleSetup

HURRY = {"shutdown.drain-timeout": "50ms"}
"""Of engines that end in the middle of a call."""

KEY = "sk-test-0123456789"


def connection(url: str, **arguments: Any) -> ResourceDescriptor:
    return ResourceDescriptor(OpenAICompatibleConnection, **{"base_url": f"{url}/v1", "api_key": KEY, **arguments})


def setup(model: str = "m", connection: str = "http", **arguments: Any) -> ResourceDescriptor:
    return ResourceDescriptor(
        OpenAICompatibleSetup, **{"connection": connection, "model": model, "retry_wait_interval": "10ms", **arguments}
    )


def ask(event: Event, ctx: RunnerContext) -> None:
    """Ask the model "m"; an input that is a dict has arguments of the request."""
    value = event.attributes["input"]
    options = dict(value) if isinstance(value, dict) else {"messages": [str(value)]}
    ctx.send_event(ChatRequestEvent(options.pop("model", "m"), options.pop("messages", ["hello"]), **options))


def answer(event: Event, ctx: RunnerContext) -> None:
    answered = ChatResponseEvent.from_event(event)
    response = answered.response
    ctx.send_event(
        OutputEvent(
            {
                "text": response.content,
                "error": answered.error,
                "retries": answered.retry_count,
                "output": response.output,
                "model": response.extra_args.get("model_name"),
            }
        )
    )


def exhausted(event: Event, ctx: RunnerContext) -> None:
    told = BudgetExhaustedEvent.from_event(event)
    partial = None if told.partial is None else told.partial.content
    ctx.send_event(OutputEvent({"budget": told.budget, "partial": partial}))


def asking(name: str = "A", *, listens: bool = False) -> Agent:
    """Return an agent that asks a model about each input, and sends the answer out; it has no models yet."""
    agent = Agent(name).add_action("ask", [EventType.InputEvent], ask)
    agent.add_action("answer", [EventType.ChatResponseEvent], answer)
    return agent.add_action("exhausted", [EventType.BudgetExhaustedEvent], exhausted) if listens else agent


def over_http(url: str, agent: Agent | None = None, **arguments: Any) -> Agent:
    """Return an agent whose model "m" is at a model server."""
    agent = asking() if agent is None else agent
    agent.add_resource("http", ResourceType.CHAT_MODEL_CONNECTION, connection(url))
    return agent.add_resource("m", ResourceType.CHAT_MODEL, setup(**arguments))


def scripted(model: Any, agent: Agent | None = None, **tools: Any) -> Agent:
    """Return an agent with a scripted model "m", and tools."""
    agent = (asking() if agent is None else agent).add_resource("m", ResourceType.CHAT_MODEL, model)
    for name, tool in tools.items():
        agent.add_resource(name, ResourceType.TOOL, tool)
    return agent

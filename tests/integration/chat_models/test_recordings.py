"""A conversation over the adapter of OpenAI is recorded, and replayed when the server is gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentflow import Agent, Engine, EventType, OutputEvent, ResourceDescriptor, ResourceType, RunnerContext
from agentflow.testing.model_server import HttpError, ModelServer, Reply, ToolCall, Usage

KEY = "sk-recorded-4711"


class Answer(msgspec.Struct):
    orders: int


def find_orders(customer: str) -> list[str]:
    """Find the orders of a customer."""
    return [f"{customer}-1", f"{customer}-2"]


def shop(url: str, directory: Path, mode: str) -> Agent:
    async def act(event: Any, ctx: RunnerContext) -> None:
        answer = await ctx.chat("model", event.input, output=Answer)
        ctx.send_event(OutputEvent([answer.output.orders, answer.usage.input_tokens]))

    agent = Agent("Shop").add_action("act", [EventType.InputEvent], act)
    real = ResourceDescriptor("openai", api_key="${env:RECORDED_KEY}", api_base_url=f"{url}/v1")
    recorded = ResourceDescriptor("recorded", directory=str(directory), mode=mode, connection="real")
    setup = ResourceDescriptor(
        "openai", connection="recorded", model="gpt-4o-mini", tools=["find_orders"], retry_wait_interval="1ms"
    )
    agent.add_resource("real", ResourceType.CHAT_MODEL_CONNECTION, real)
    agent.add_resource("recorded", ResourceType.CHAT_MODEL_CONNECTION, recorded)
    agent.add_resource("model", ResourceType.CHAT_MODEL, setup)
    return agent.add_resource("find_orders", ResourceType.TOOL, find_orders)


def files(directory: Path) -> list[str]:
    return [path.read_text() for path in sorted(directory.iterdir())]


async def answer_of(agent: Agent) -> Any:
    async with Engine(agent, in_memory=True) as engine:
        return await engine.submit("ann", "How many orders has ann?", timeout="30s")


async def test_a_conversation_is_replayed_without_server_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECORDED_KEY", KEY)
    script = [
        HttpError(503),
        Reply(tool_calls=[ToolCall("find_orders", {"customer": "ann"})]),
        Reply('{"orders": 2}', usage=Usage(input=31, output=4)),
    ]
    async with ModelServer(script) as server:
        url = server.url
        assert await answer_of(shop(url, tmp_path, "record")) == [[2, 31]]
        assert len(server.requests) == 3
        assert await answer_of(shop(url, tmp_path, "auto")) == [[2, 31]]
        assert len(server.requests) == 3
    monkeypatch.delenv("RECORDED_KEY")
    assert await answer_of(shop(url, tmp_path, "replay")) == [[2, 31]]
    assert await answer_of(shop(url, tmp_path, "auto")) == [[2, 31]]

    texts = files(tmp_path)
    assert not any(KEY in text for text in texts)
    kinds = sorted(next(iter({"answer", "failure"} & json.loads(text).keys())) for text in texts)
    assert kinds == ["answer", "answer", "failure"]
    assert all(json.loads(text)["request"]["output_schema"] for text in texts)

"""Agents with MCP servers: what a server does harms its own calls, and a replay asks none."""

from __future__ import annotations

import asyncio
import json

from agentflow import (
    Agent,
    ChatRequestEvent,
    ChatResponseEvent,
    Engine,
    EventType,
    OutputEvent,
    Prompt,
    ReActAgent,
    ResourceDescriptor,
    ResourceType,
)
from agentflow.api.chat_messages import tool_call
from agentflow.integrations.mcp import MCPServer
from agentflow.testing import ScriptedChatModel
from tests.mcp_servers import HTTPProcess, HTTPServer


def agent_with(
    server: HTTPServer | HTTPProcess, model: ScriptedChatModel, tools: list[str], **more: object
) -> ReActAgent:
    agent = ReActAgent(chat_model=model, tools=tools)
    descriptor = ResourceDescriptor("mcp", endpoint=server.url, timeout=2, **more)
    agent.add_resource("shop", ResourceType.MCP_SERVER, descriptor)
    return agent


def told(model: ScriptedChatModel, turn: int = -1) -> list[str]:
    return [message.content for message in model.requests[turn].messages if message.role == "tool"]


async def test_a_model_calls_the_tools_of_a_server_by_the_servers_name(http_server):
    model = ScriptedChatModel([[tool_call("echo", {"text": "a"}), tool_call("order", {"item": "b"})], "done"])
    async with Engine(agent_with(http_server, model, ["shop"]), in_memory=True) as engine:
        assert await engine.submit("k", "go") == ["done"]
    assert told(model) == ["a", '{"item":"b","count":1}']
    assert {"echo", "order"} <= {tool.name for tool in model.requests[0].tools}


async def test_a_model_may_call_the_named_tools_of_a_server_only(http_server):
    model = ScriptedChatModel([tool_call("order", {"item": "b"}), "done"])
    async with Engine(agent_with(http_server, model, ["echo"]), in_memory=True) as engine:
        assert await engine.submit("k", "go") == ["done"]
    assert told(model) == ["Tool `order` does not exist."]
    assert [tool.name for tool in model.requests[0].tools] == ["echo"]


async def test_a_server_does_not_put_a_tool_of_its_own_in_the_place_of_one_of_the_agent(http_server):
    def order(item: str) -> str:
        """Order as the agent does."""
        return f"the agent has ordered {item}"

    model = ScriptedChatModel([tool_call("order", {"item": "b"}), "done"])
    agent = agent_with(http_server, model, ["order", "shop"])
    agent.add_resource("order", ResourceType.TOOL, order)
    async with Engine(agent, in_memory=True) as engine:
        assert await engine.submit("k", "go") == ["done"]
    assert told(model) == ["the agent has ordered b"]
    assert [tool.description for tool in model.requests[0].tools if tool.name == "order"] == [
        "Order as the agent does."
    ]


async def test_a_server_that_was_closed_with_one_engine_is_opened_by_the_next(http_server):
    model = ScriptedChatModel([tool_call("echo", {"text": "a"}), "done"] * 2)
    agent = ReActAgent(chat_model=model, tools=["echo"])
    agent.add_resource("shop", ResourceType.MCP_SERVER, MCPServer(endpoint=http_server.url, timeout=2))
    for _ in range(2):
        async with Engine(agent, in_memory=True) as engine:
            assert await engine.submit("k", "go") == ["done"]
        assert told(model) == ["a"]


async def test_a_call_takes_its_idempotency_key_along(http_server):
    model = ScriptedChatModel([tool_call("meta", {}), "done"])
    async with Engine(agent_with(http_server, model, ["meta"]), in_memory=True) as engine:
        await engine.submit("k", "go")
    assert len(json.loads(told(model)[0])["agentflow/idempotency-key"]) == 32


async def test_a_server_that_dies_in_a_call_fails_that_call_and_the_run_goes_on(http_process):
    model = ScriptedChatModel([[tool_call("dies", {}), tool_call("here", {})], "done"])
    agent = agent_with(http_process, model, ["dies"])
    agent.add_resource("here", ResourceType.TOOL, here)
    agent.tools.append("here")
    async with Engine(agent, in_memory=True) as engine:
        assert await engine.submit("k", "go") == ["done"]
    failed, answered = told(model)
    assert failed.startswith("Tool `dies` execute failed. ToolServerUnavailable: ")
    assert answered == "here"


async def test_a_model_is_told_of_tools_that_a_server_has_got_at_run_time(http_server):
    model = ScriptedChatModel([tool_call("grow", {"name": "brand_new"}), tool_call("brand_new", {}), "done"])
    async with Engine(agent_with(http_server, model, ["shop"]), in_memory=True) as engine:
        assert await engine.submit("k", "go") == ["done"]
    assert told(model)[-1] == "brand_new"


async def test_a_replay_asks_no_server(http_process, tmp_path):
    gate = asyncio.Event()

    async def wait_for_ever(request: object) -> str:
        gate.set()
        return await asyncio.Event().wait()

    first = ScriptedChatModel([tool_call("echo", {"text": "a"}), wait_for_ever], tools=["echo"])
    engine = Engine(
        agent_with(http_process, first, []), state_dir=str(tmp_path), config={"shutdown.drain-timeout": "10ms"}
    )
    await engine.start()
    asked = asyncio.ensure_future(engine.submit("k", "go", request_id="r"))
    await gate.wait()
    await engine.close()
    await asyncio.wait([asked])
    http_process.kill()
    second = ScriptedChatModel(["done"])  # without tools, which it would have to be told of
    agent = agent_with(http_process, second, [])
    async with Engine(agent, state_dir=str(tmp_path)) as again:
        assert await again.submit("k", "go", request_id="r") == ["done"]
    assert told(second) == ["a"]
    assert isinstance(asked.exception(), Exception)


async def test_a_prompt_of_a_server_is_the_prompt_of_a_model(http_server):
    model = ScriptedChatModel(["done"], prompt="review")
    agent = Agent("reviewer").add_resource("m", ResourceType.CHAT_MODEL, model)
    agent.add_resource("shop", ResourceType.MCP_SERVER, ResourceDescriptor("mcp", endpoint=http_server.url))
    agent.add_action("ask", EventType.InputEvent, ask_for_review)
    agent.add_action("answer", EventType.ChatResponseEvent, answer)
    async with Engine(agent, in_memory=True) as engine:
        assert await engine.submit("k", "go") == ["done"]
    texts = [message.text for message in model.requests[0].messages]
    assert any("lamp" in text for text in texts)
    assert texts[-1] == "go on"


async def test_of_two_prompts_of_one_name_the_agents_own_counts(http_server):
    model = ScriptedChatModel(["done"], prompt="review")
    agent = Agent("reviewer").add_resource("m", ResourceType.CHAT_MODEL, model)
    agent.add_resource("review", ResourceType.PROMPT, Prompt.from_text("our own, of {product}"))
    agent.add_resource("shop", ResourceType.MCP_SERVER, ResourceDescriptor("mcp", endpoint=http_server.url))
    agent.add_action("ask", EventType.InputEvent, ask_for_review)
    agent.add_action("answer", EventType.ChatResponseEvent, answer)
    async with Engine(agent, in_memory=True) as engine:
        await engine.submit("k", "go")
    assert [message.text for message in model.requests[0].messages] == ["our own, of lamp", "go on"]


def here() -> str:
    """Answer from here."""
    return "here"


def ask_for_review(event, ctx):
    ctx.send_event(ChatRequestEvent("m", ["go on"], prompt_args={"product": "lamp"}))


def answer(event, ctx):
    ctx.send_event(OutputEvent(ChatResponseEvent.from_event(event).response.content))

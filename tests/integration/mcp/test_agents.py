"""Agents with MCP servers: what a server does harms its own calls, and a replay asks none."""

from __future__ import annotations

import asyncio
import json

import pytest

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
from agentflow.errors import RunFailed
from agentflow.integrations.mcp import MCPServer
from agentflow.testing import ScriptedChatModel
from tests.engines import until
from tests.mcp_servers import HTTPProcess, HTTPServer, silent_server


def agent_with(
    server: HTTPServer | HTTPProcess, model: ScriptedChatModel, tools: list[str], **more: object
) -> ReActAgent:
    agent = ReActAgent(chat_model=model, tools=tools)
    descriptor = ResourceDescriptor("mcp", endpoint=server.url, timeout=2, **more)
    agent.add_resource("shop", ResourceType.MCP_SERVER, descriptor)
    return agent


async def ended_in_a_call(agent: ReActAgent, state_dir: str, is_called: asyncio.Event) -> asyncio.Future[object]:
    """Submit to an engine that ends in the middle of a call; return what came of it."""
    engine = Engine(agent, state_dir=state_dir, config={"shutdown.drain-timeout": "10ms"})
    await engine.start()
    asked = asyncio.ensure_future(engine.submit("k", "go", request_id="r"))
    await is_called.wait()
    await engine.close()
    await asyncio.wait([asked])
    return asked


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
    asked = await ended_in_a_call(agent_with(http_process, first, []), str(tmp_path), gate)
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


async def test_a_prompt_of_a_server_is_the_prompt_of_an_agent_and_takes_the_fields_that_it_knows(http_server):
    model = ScriptedChatModel(["done"])
    agent = ReActAgent(chat_model=model, prompt="review")
    agent.add_resource("shop", ResourceType.MCP_SERVER, ResourceDescriptor("mcp", endpoint=http_server.url))
    async with Engine(agent, in_memory=True) as engine:
        assert await engine.submit("k", {"product": "lamp", "price": 3}) == ["done"]
    assert [message.text for message in model.requests[0].messages[:2]] == ["review lamp, friendly", "show me"]


async def test_a_prompt_that_is_neither_of_the_agent_nor_of_a_server_fails_the_run(http_server):
    agent = ReActAgent(chat_model=ScriptedChatModel([]), prompt="revue")
    agent.add_resource("shop", ResourceType.MCP_SERVER, ResourceDescriptor("mcp", endpoint=http_server.url))
    async with Engine(agent, in_memory=True) as engine:
        with pytest.raises(RunFailed, match="there is no prompt 'revue'"):
            await engine.submit("k", "go")


def asker_of_a_reviewer(server: HTTPProcess, asker: ScriptedChatModel, reviewer: ScriptedChatModel) -> ReActAgent:
    inner = ReActAgent(chat_model=reviewer, prompt="about", name="reviewer")
    agent = ReActAgent(chat_model=asker, tools=[inner.as_tool("reviewer", "Reviews.")], name="asker")
    return agent.add_resource(
        "shop", ResourceType.MCP_SERVER, ResourceDescriptor("mcp", endpoint=server.url, timeout=2)
    )


async def test_a_replay_asks_no_server_for_a_prompt(http_process, tmp_path):
    gate = asyncio.Event()

    async def wait_for_ever(request: object) -> str:
        gate.set()
        return await asyncio.Event().wait()

    wanted = tool_call("reviewer", {"input": "cup"})
    first = ScriptedChatModel([wait_for_ever])
    agent = asker_of_a_reviewer(http_process, ScriptedChatModel([wanted]), first)
    asked = await ended_in_a_call(agent, str(tmp_path), gate)
    http_process.kill()
    second = ScriptedChatModel(["good"])
    agent = asker_of_a_reviewer(http_process, ScriptedChatModel(["done"]), second)
    async with Engine(agent, state_dir=str(tmp_path)) as again:
        assert await again.submit("k", "go", request_id="r") == ["done"]
    assert second.requests[0].messages == first.requests[0].messages
    assert second.requests[0].messages[0].text == "about cup"
    assert isinstance(asked.exception(), Exception)


async def test_an_agent_whose_prompt_cannot_be_had_is_a_tool_that_fails(http_process):
    http_process.kill()
    asker = ScriptedChatModel([tool_call("reviewer", {"input": "cup"}), "done"])
    async with Engine(asker_of_a_reviewer(http_process, asker, ScriptedChatModel([])), in_memory=True) as engine:
        assert await engine.submit("k", "go") == ["done"]
    (failed,) = told(asker)
    assert failed.startswith("Tool `reviewer` execute failed. ModelUnavailable: agent 'reviewer' has asked nothing: ")
    assert "the server of tools 'shop' is not available" in failed


def agent_with_both(
    first: object, second: object, model: ScriptedChatModel, wanted: list[str], **more: object
) -> ReActAgent:
    """Return an agent with two servers; ``more`` is of the first one."""
    agent = ReActAgent(chat_model=model, tools=wanted)
    agent.add_resource(
        "first", ResourceType.MCP_SERVER, ResourceDescriptor("mcp", endpoint=first.url, timeout=2, **more)
    )
    agent.add_resource("second", ResourceType.MCP_SERVER, ResourceDescriptor("mcp", endpoint=second.url, timeout=2))
    return agent


@pytest.mark.parametrize("is_dead_first", [False, True])
async def test_a_server_that_does_not_answer_does_not_harm_the_tools_of_others(
    http_server, http_process, is_dead_first
):
    http_process.kill()
    servers = (http_process, http_server) if is_dead_first else (http_server, http_process)
    model = ScriptedChatModel([tool_call("echo", {"text": "a"}), "done"], max_retries=0)
    async with Engine(agent_with_both(*servers, model, ["echo"]), in_memory=True) as engine:
        assert await engine.submit("k", "go") == ["done"]
    assert told(model) == ["a"]
    assert len(model.requests) == 2


async def test_a_prompt_is_had_although_another_server_does_not_answer(http_server, http_process):
    http_process.kill()
    model = ScriptedChatModel(["done"], prompt="about", max_retries=0)
    agent = agent_with_both(http_process, http_server, model, [])
    agent.prompt = "review"
    async with Engine(agent, in_memory=True) as engine:
        assert await engine.submit("k", {"product": "lamp", "input": "cup"}) == ["done"]
    assert [message.text for message in model.requests[0].messages[:2]] == ["about cup", "review lamp, friendly"]


async def test_the_tool_of_a_server_that_had_it_is_not_taken_from_another_one_while_it_does_not_answer(
    http_server, http_process
):
    async def kill(request: object) -> object:
        await asyncio.to_thread(http_process.kill)
        return tool_call("echo", {"text": "b"})

    model = ScriptedChatModel([tool_call("echo", {"text": "a"}), kill, "done"], max_retries=0)
    async with Engine(agent_with_both(http_process, http_server, model, ["echo"]), in_memory=True) as engine:
        assert await engine.submit("k", "go") == ["done"]
    answered, failed = told(model)
    assert answered == "a"
    assert "the server of tools 'first' is not available" in failed
    assert "tools/call" not in http_server.guard.seen


@pytest.mark.parametrize(
    ("tools", "more"),
    [
        (["echo"], {"tools": ["echo"]}),
        (["echo"], {"policies": {"echo": {"timeout": "1s"}}}),
        (["first"], {}),
        (["nothing"], {}),
    ],
)
async def test_a_server_without_which_a_model_cannot_be_called_is_named_as_the_cause(
    http_server, http_process, tools, more
):
    http_process.kill()
    model = ScriptedChatModel([], max_retries=0)
    async with Engine(agent_with_both(http_process, http_server, model, tools, **more), in_memory=True) as engine:
        with pytest.raises(RunFailed) as failed:
            await engine.submit("k", "go")
    assert "was not called: the server of tools 'first' is not available" in failed.value.error_message
    assert "provider" not in failed.value.error_message


async def test_a_server_that_cannot_have_a_tool_by_its_configuration_is_not_asked_for_it(http_server):
    with silent_server() as url:
        model = ScriptedChatModel([tool_call("echo", {"text": "a"}), "done"], max_retries=0)
        agent = ReActAgent(chat_model=model, tools=["echo"])
        for name, more in {"prefixed": {"prefix": "a_"}, "narrow": {"tools": ["find"]}}.items():
            agent.add_resource(
                name, ResourceType.MCP_SERVER, ResourceDescriptor("mcp", endpoint=url, timeout="1h", **more)
            )
        agent.add_resource("shop", ResourceType.MCP_SERVER, ResourceDescriptor("mcp", endpoint=http_server.url))
        async with Engine(agent, in_memory=True) as engine:
            assert await engine.submit("k", "go") == ["done"]
    assert told(model) == ["a"]


async def test_a_server_that_does_not_answer_does_not_open_the_circuit_of_a_connection(http_process):
    http_process.kill()
    model = ScriptedChatModel(["done"], max_retries=0)
    agent = agent_with(http_process, model, ["shop"])
    agent.add_resource("here", ResourceType.TOOL, here)
    async with Engine(agent, in_memory=True, config={"config": {"chat.breaker.failures": 1}}) as engine:
        with pytest.raises(RunFailed):
            await engine.submit("k", "go")
        agent.tools[:] = ["here"]
        assert await engine.submit("k", "go") == ["done"]


@pytest.mark.parametrize("tools", [["shop_order"], ["shop"]])
async def test_a_person_approves_a_call_of_a_servers_tool(http_server, tools):
    model = ScriptedChatModel([[tool_call("shop_order", {"item": i}) for i in "ab"], "done"])
    agent = agent_with(http_server, model, tools, prefix="shop_", policies={"order": {"requires_approval": True}})
    async with Engine(agent, in_memory=True) as engine:
        run = await engine.send("k", "go")
        await until(lambda: len(engine.inbox()) == 2)
        first, second = sorted(engine.inbox(), key=lambda wait: wait.about["arguments"]["item"])
        assert first.about == {"tool": "shop_order", "arguments": {"item": "a"}}
        await engine.approve(first.id, arguments={"item": "c", "count": 2})
        await engine.deny(second.id, reason="no")
        assert await engine.result(run) == ["done"]
    assert told(model) == ['{"item":"c","count":2}', "The call of tool `shop_order` was denied: no"]


async def test_nobody_is_asked_about_a_servers_tool_that_the_model_may_not_call(http_server):
    model = ScriptedChatModel([tool_call("order", {"item": "b"}), "done"])
    agent = agent_with(http_server, model, ["echo"], policies={"order": {"requires_approval": True}})
    async with Engine(agent, in_memory=True) as engine:
        assert await engine.submit("k", "go") == ["done"]
    assert told(model) == ["Tool `order` does not exist."]


async def test_a_wait_for_an_approval_outlives_the_engine_and_the_server(http_process, tmp_path):
    wanted = tool_call("echo", {"text": "a"})
    policies = {"echo": {"requires_approval": True}}
    first = ScriptedChatModel([wanted])
    async with Engine(agent_with(http_process, first, ["echo"], policies=policies), state_dir=str(tmp_path)) as engine:
        await engine.send("k", "go", request_id="r")
        await until(lambda: len(engine.inbox()) == 1)
    http_process.kill()
    second = ScriptedChatModel(["done"])
    agent = agent_with(http_process, second, ["echo"], policies=policies)
    async with Engine(agent, state_dir=str(tmp_path)) as engine:
        (wait,) = engine.inbox()
        http_process.start()
        await engine.approve(wait.id)
        assert await engine.submit("k", "go", request_id="r") == ["done"]
    assert told(second) == ["a"]


async def test_timeout_retry_and_result_size_of_a_servers_tool_are_those_of_its_policy(http_server):
    model = ScriptedChatModel([tool_call("echo", {"text": "a" * 20}), tool_call("hang", {}), "done"])
    retry = {"attempts": 2, "initial": "1ms"}
    policies = {"hang": {"timeout": "500ms", "retry": retry}, "echo": {"result_max": 5}}
    async with Engine(agent_with(http_server, model, ["shop"], policies=policies), in_memory=True) as engine:
        assert await engine.submit("k", "go") == ["done"]
    long, late = told(model)
    assert late.endswith("TimeoutError: it took longer than 0.5 s")
    assert long.startswith("aaaaa\n[the result has 20 characters")
    assert http_server.hung.begun.acquire(blocking=False)
    assert http_server.hung.begun.acquire(blocking=False)


def here() -> str:
    """Answer from here."""
    return "here"


def ask_for_review(event, ctx):
    ctx.send_event(ChatRequestEvent("m", ["go on"], prompt_args={"product": "lamp"}))


def answer(event, ctx):
    ctx.send_event(OutputEvent(ChatResponseEvent.from_event(event).response.content))

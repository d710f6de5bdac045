"""MCP servers as processes: they hang, die, complain, and are started again."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys

import pytest

from agentflow.errors import NotConfigured, ToolFailed, ToolServerUnavailable
from tests.engines import until
from tests.mcp_servers import SCRIPT


@pytest.fixture
def start(connect):
    def make(kind: str = "stdio", **arguments):
        return connect(command=sys.executable, args=[str(SCRIPT), kind], **arguments)

    return make


async def process_of(server) -> dict[str, str]:
    return json.loads(await server.call_tool("environment", {}))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_tools_and_prompts_of_a_process(start):
    server = start()
    tools = {tool.metadata.name: tool for tool in await server.list_tools()}
    assert await tools["echo"].call(text="hello") == "hello"
    assert [message.role for message in await server.get_prompt("review", product="cup")][:2] == ["user", "assistant"]
    with pytest.raises(ToolFailed, match="sold out"):
        await tools["fails"].call(text="sold out")


async def test_a_tool_that_is_none_is_left_out_and_told_and_the_others_are_there(start, caplog):
    server = start("wrong", tools=["bad", "good"], env={"SHOP_TOKEN": "s3cret-token"})
    assert [tool.metadata.name for tool in await server.list_tools()] == ["good"]
    told = [line.getMessage() for line in caplog.records if line.levelno == logging.WARNING]
    assert told == [
        f"mcp server {server.label}: tool bad is left out: inputSchema: Field required",
        f"mcp server {server.label}: has no tool bad, which tools= or policies= names",
    ]


async def test_tools_that_change_are_discovered_again(start):
    server = start()
    assert "more" not in {tool.metadata.name for tool in await server.list_tools()}
    await server.call_tool("grow", {"name": "more"})
    await until(lambda: not server._listed)
    assert "more" in {tool.metadata.name for tool in await server.list_tools()}


async def test_a_process_gets_what_is_safe_and_what_it_is_given(start, tmp_path, monkeypatch):
    monkeypatch.setenv("DATABASE_PASSWORD", "of the worker")
    server = start(env={"REGION": "north", "SHOP_TOKEN": "s3cret-token"}, cwd=str(tmp_path))
    given = await process_of(server)
    assert (given["REGION"], given["cwd"], given["SHOP_TOKEN"]) == ("north", str(tmp_path), "***")
    assert "DATABASE_PASSWORD" not in given
    assert given["PATH"] == os.environ["PATH"]


async def test_many_calls_share_one_process(start):
    server = start()
    answers = await asyncio.gather(*(server.call_tool("echo", {"text": str(n)}) for n in range(200)))
    assert answers == [str(n) for n in range(200)]
    assert len({(await process_of(server))["pid"] for _ in range(3)}) == 1


async def test_a_process_that_dies_in_a_call_is_started_again_by_the_next(start):
    server = start()
    first = await process_of(server)
    beside = asyncio.create_task(server.call_tool("hang", {}))
    with pytest.raises(ToolServerUnavailable):
        await server.call_tool("dies", {})
    with pytest.raises(ToolServerUnavailable):
        await beside
    assert await server.call_tool("echo", {"text": "again"}) == "again"
    assert (await process_of(server))["pid"] != first["pid"]


async def test_tools_are_discovered_again_of_a_process_that_was_started_again(start):
    server = start()
    await server.call_tool("grow", {"name": "more"})
    assert "more" in {tool.metadata.name for tool in await server.list_tools()}
    with pytest.raises(ToolServerUnavailable):
        await server.call_tool("dies", {})
    assert "more" not in {tool.metadata.name for tool in await server.list_tools()}


async def test_a_process_that_was_killed_between_calls_is_reaped_and_started_again(start):
    server = start()
    pid = (await process_of(server))["pid"]
    os.kill(pid, signal.SIGKILL)
    await server._sessions._session.task
    assert not is_alive(pid)  # a process that nobody has reaped is still there
    assert await server.call_tool("echo", {"text": "again"}) == "again"


async def test_a_process_that_never_answers_fails_its_calls_only(start):
    mute, good = start("mute", timeout=0.5), start()
    calls = [asyncio.create_task(mute.list_tools()) for _ in range(3)]
    assert await good.call_tool("echo", {"text": "hi"}) == "hi"
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, ToolServerUnavailable)
        assert outcome.why == "not open after 0.5 s"


async def test_a_hung_call_ends_at_its_limit_and_the_process_goes_on(start):
    server = start(call_timeout=5)
    pid = (await process_of(server))["pid"]
    call = asyncio.create_task(server.call_tool("hang", {}))
    assert await server.call_tool("echo", {"text": "beside"}) == "beside"
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (await process_of(server))["pid"] == pid


async def test_standard_error_goes_to_the_log_without_secrets(start, caplog, capfd):
    caplog.set_level(logging.INFO, "agentflow.integrations.mcp")
    server = start(env={"SHOP_TOKEN": "s3cret-token"})
    await server.call_tool("complains", {"text": "the token s3cret-token is old"})
    await server.close()
    lines = [line.getMessage() for line in caplog.records if line.name == "agentflow.integrations.mcp"]
    assert any("the token *** is old" in line for line in lines)
    assert "s3cret" not in "\n".join(lines)
    assert "is old" not in capfd.readouterr().err


async def test_close_leaves_no_process_behind(start):
    server = start()
    pid = (await process_of(server))["pid"]
    hung = asyncio.create_task(server.call_tool("hang", {}))
    assert await server.call_tool("echo", {"text": "hi"}) == "hi"
    await server.close()
    with pytest.raises(ToolServerUnavailable):
        await hung
    assert not is_alive(pid)


async def test_a_command_that_is_not_there_is_a_mistake_in_the_configuration(connect):
    with pytest.raises(NotConfigured, match="cannot be started"):
        await connect(command="/no/such/program").list_tools()


async def test_a_process_that_ends_at_once_is_unavailable(connect):
    with pytest.raises(ToolServerUnavailable, match="closed the connection"):
        await connect(command=sys.executable, args=["-c", "pass"]).list_tools()

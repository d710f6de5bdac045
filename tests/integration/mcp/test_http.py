"""MCP over streamable HTTP, with servers of the official SDK: of the protocol of 2026, and of the one before."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from pathlib import Path

import pytest
from mcp import types

from agentflow.api.chat_messages import ChatMessage, FilePart, ImagePart, TextPart
from agentflow.api.tools import ToolType
from agentflow.errors import (
    MissingPromptVariable,
    NotConfigured,
    ToolArgumentsInvalid,
    ToolFailed,
    ToolServerUnavailable,
)
from tests.engines import until
from tests.mcp_servers import PIXEL, HTTPServer, silent_server


async def acquired(semaphore: threading.Semaphore) -> None:
    assert await asyncio.to_thread(semaphore.acquire, timeout=10)


async def names(server) -> list[str]:
    return [tool.metadata.name for tool in await server.list_tools()]


@pytest.fixture(params=["2026", "2025", "json"])
def any_server(request):
    """The protocol of 2026, the one with sessions, and answers that are no streams."""
    server = HTTPServer(json_response=request.param == "json")
    server.guard.is_old = request.param == "2025"
    yield server
    server.stop()


async def test_a_tool_is_described_as_its_server_describes_it(any_server, connect):
    tools = {tool.metadata.name: tool for tool in await connect(any_server.url).list_tools()}
    order = tools["order"]
    assert order.metadata.description == "Order something."
    assert order.metadata.args_schema["properties"].keys() == {"item", "count"}
    assert order.metadata.args_schema["required"] == ["item"]
    assert order.tool_type() is ToolType.MCP
    assert not order.policy.idempotent
    assert tools["echo"].policy.idempotent


async def test_a_tool_answers_with_text(any_server, connect):
    tools = {tool.metadata.name: tool for tool in await connect(any_server.url).list_tools()}
    assert await tools["echo"].call(text="hello") == "hello"
    assert json.loads(await tools["order"].call(item="cup")) == {"item": "cup", "count": 1}
    assert await tools["picture"].call() == "a pixel\n[image, image/png, 70 bytes]\nthat was it"


async def test_a_bound_call_sends_what_the_model_says_what_it_cannot_say_and_meta(any_server, connect):
    tools = {tool.metadata.name: tool for tool in await connect(any_server.url).list_tools()}
    bound = tools["order"].bind({"item": "cup", "count": 1}, {"count": 7})
    assert json.loads(await bound()) == {"item": "cup", "count": 7}
    keyed = tools["meta"].bind({}, {}, meta={"agentflow/idempotency-key": "k1", "traceparent": "00-1-2-01"})
    said = json.loads(await keyed())
    assert said["agentflow/idempotency-key"] == "k1"
    assert said["traceparent"] == "00-1-2-01"


async def test_a_failed_tool_says_what_the_server_says(any_server, connect):
    with pytest.raises(ToolFailed) as failed:
        await connect(any_server.url).call_tool("fails", {"text": "sold out"})
    assert str(failed.value) == "Error executing tool fails: sold out"


async def test_arguments_that_the_protocol_refuses_are_the_models_fault(http_server, connect):
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32602, "message": "no such item"}}
    http_server.guard.trouble["tools/call"] = (400, json.dumps(error).encode())
    with pytest.raises(ToolArgumentsInvalid, match="no such item"):
        await connect(http_server.url).call_tool("order", {"item": "moon"})


async def test_only_allowed_tools_are_there_under_their_prefix(http_server, connect):
    server = connect(http_server.url, tools=["echo", "order"], prefix="shop_")
    assert await names(server) == ["shop_echo", "shop_order"]
    echo, _ = await server.list_tools()
    assert await echo.call(text="hi") == "hi"


async def test_a_tool_that_is_wanted_and_not_there_is_told_once(http_server, connect, caplog):
    server = connect(http_server.url, tools=["echo", "ehco"])
    assert await names(server) == ["echo"]
    assert await names(server) == ["echo"]
    told = [line.getMessage() for line in caplog.records if "ehco" in line.getMessage()]
    assert told == [f"mcp server {server.label}: has no tool ehco, which tools= or policies= names"]


async def test_tools_and_prompts_are_asked_for_once(any_server, connect):
    server = connect(any_server.url)
    await server.call_tool("echo", {"text": "the session is open"})
    await asyncio.gather(*(names(server) for _ in range(20)))
    await asyncio.gather(*(server.list_prompts() for _ in range(20)))
    assert any_server.guard.seen.count("tools/list") <= 2  # a second one, if the server is listened to meanwhile
    assert any_server.guard.seen.count("prompts/list") <= 2


async def test_tools_and_prompts_that_change_are_discovered_again(any_server, connect):
    server = connect(any_server.url)
    await names(server)
    await until(lambda: bool({"subscriptions/listen", "GET"} & set(any_server.guard.seen)))
    assert "more" not in await names(server)
    assert [prompt.name for prompt in await server.list_prompts()] == ["about", "review"]
    await server.call_tool("grow", {"name": "more"})
    await until(lambda: not server._listed)
    assert "more" in await names(server)
    assert [prompt.name for prompt in await server.list_prompts()] == ["about", "review", "more"]
    assert await server.call_tool("more", {}) == "more"
    assert await server.get_prompt("more") == [ChatMessage("user", "about more")]


async def test_a_list_of_many_pages_is_read_to_its_end(http_server, connect):
    pages = {None: (["a", "b"], "2"), "2": (["c"], "3"), "3": (["d"], None)}

    async def list_page(ctx, params):
        tools, cursor = pages[params.cursor if params else None]
        listed = [types.Tool(name=name, input_schema={"type": "object"}) for name in tools]
        return types.ListToolsResult(tools=listed, next_cursor=cursor)

    http_server.server._lowlevel_server.add_request_handler("tools/list", types.PaginatedRequestParams, list_page)
    assert await names(connect(http_server.url)) == ["a", "b", "c", "d"]


async def test_a_prompt_becomes_messages_with_parts(any_server, connect):
    server = connect(any_server.url)
    _, review = await server.list_prompts()
    assert (review.description, review.arguments, review.required) == (
        "Review a product.",
        ("product", "tone"),
        ("product",),
    )
    assert await server.get_prompt("review", product="cup", tone="dry") == [
        ChatMessage("user", "review cup, dry"),
        ChatMessage("assistant", "show me"),
        ChatMessage("user", parts=[ImagePart("image/png", PIXEL)]),
        ChatMessage("user", parts=[TextPart("no returns")]),
        ChatMessage("user", parts=[FilePart("application/pdf", b"%PDF", name="shop://manual")]),
    ]


async def test_a_prompt_without_an_argument_that_it_needs_is_not_asked_for(http_server, connect):
    server = connect(http_server.url)
    with pytest.raises(MissingPromptVariable, match="product"):
        await server.get_prompt("review", tone="dry")
    with pytest.raises(NotConfigured, match="no prompt 'rewiev'"):
        await server.get_prompt("rewiev")
    assert "prompts/get" not in http_server.guard.seen


async def test_arguments_that_a_prompt_does_not_have_are_left_out(any_server, connect):
    server = connect(any_server.url)
    assert await server.get_prompt("about", input="cup", tone="dry") == [ChatMessage("user", "about cup")]


async def test_a_list_that_cannot_be_read_is_that_of_a_server_that_is_named(http_server, connect):
    server = connect(http_server.url)
    await server.call_tool("echo", {"text": "hi"})
    http_server.guard.trouble["tools/list"] = (413, b"too much")
    with pytest.raises(ToolFailed, match=f"the MCP server '{server.label}' says: HTTP 413 .*: too much"):
        await server.list_tools()
    http_server.guard.trouble["tools/list"] = (200, b"{no json")
    with pytest.raises(ToolFailed, match=f"the MCP server '{server.label}'"):
        await server.list_tools()


@pytest.mark.parametrize("path", ["/mpc", "/mcp/more?key=s3cret"])
async def test_a_url_where_no_server_is_is_a_mistake_in_the_configuration(any_server, connect, path):
    server = connect(any_server.url.replace("/mcp", path).replace("//", "//ann:s3cret@"))
    place = any_server.url.replace("/mcp", path.partition("?")[0])
    with pytest.raises(NotConfigured, match=f"no MCP server '{server.label}' at {place}: HTTP 404") as raised:
        await server.list_tools()
    assert "look at endpoint=" in str(raised.value)
    assert "s3cret" not in str(raised.value)


async def test_many_calls_share_one_session(any_server, connect):
    server = connect(any_server.url)
    answers = await asyncio.gather(*(server.call_tool("echo", {"text": str(n)}) for n in range(200)))
    assert answers == [str(n) for n in range(200)]
    seen = any_server.guard.seen
    assert seen.count("initialize") + seen.count("server/discover") <= 2
    assert seen.count("tools/call") == 200


async def test_a_hung_call_ends_at_its_limit_and_others_go_on(any_server, connect):
    server = connect(any_server.url, call_timeout="1s")
    hung = [asyncio.create_task(server.call_tool("hang", {})) for _ in range(3)]
    for _ in hung:
        await acquired(any_server.hung.begun)
    assert await server.call_tool("echo", {"text": "hi"}) == "hi"
    for outcome in await asyncio.gather(*hung, return_exceptions=True):
        assert isinstance(outcome, ToolServerUnavailable)
        assert outcome.why == "no answer in 1 s"
    for _ in hung if any_server.is_told_of_cancelling else ():
        await acquired(any_server.hung.cancelled)
    assert await server.call_tool("echo", {"text": "still"}) == "still"
    assert any_server.guard.seen.count("server/discover") == 1


async def test_a_cancelled_call_is_cancelled_at_the_server_and_the_session_goes_on(any_server, connect):
    server = connect(any_server.url)
    call = asyncio.create_task(server.call_tool("hang", {}))
    await acquired(any_server.hung.begun)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    if any_server.is_told_of_cancelling:
        await acquired(any_server.hung.cancelled)
    assert await server.call_tool("echo", {"text": "hi"}) == "hi"
    assert any_server.guard.seen.count("server/discover") == 1


@pytest.mark.parametrize("is_old", [False, True])
async def test_progress_is_a_sign_of_life(http_server, connect, is_old):
    http_server.guard.is_old = is_old
    server = connect(http_server.url, call_timeout=1.5)
    assert await server.call_tool("work", {"steps": 5, "step_s": 0.4}) == "worked"


async def test_a_server_that_hangs_at_initialisation_harms_itself_only(http_server, connect):
    with silent_server() as url:
        hung, good = connect(url, timeout=0.5), connect(http_server.url)
        calls = [asyncio.create_task(hung.list_tools()) for _ in range(10)]
        assert await good.call_tool("echo", {"text": "hi"}) == "hi"
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, ToolServerUnavailable)
            assert outcome.why in {"not open after 0.5 s", "ReadTimeout"}


async def test_a_server_that_is_not_there_is_unavailable(connect):
    with silent_server() as url:
        pass
    with pytest.raises(ToolServerUnavailable, match="ConnectError"):
        await connect(url).list_tools()


async def test_a_server_killed_in_a_call_fails_that_call_and_serves_the_next_when_it_is_back(http_process, connect):
    server = connect(http_process.url)
    assert await server.call_tool("echo", {"text": "hi"}) == "hi"
    call = asyncio.create_task(server.call_tool("hang", {}))
    assert await server.call_tool("echo", {"text": "beside it"}) == "beside it"
    await asyncio.to_thread(http_process.kill)
    with pytest.raises(ToolServerUnavailable):
        await call
    with pytest.raises(ToolServerUnavailable):
        await server.call_tool("echo", {"text": "nobody there"})
    await asyncio.to_thread(http_process.start)
    assert await server.call_tool("echo", {"text": "back"}) == "back"
    assert "echo" in await names(server)


async def test_a_server_that_dies_of_a_call_fails_that_call(http_process, connect):
    server = connect(http_process.url)
    with pytest.raises(ToolServerUnavailable):
        await server.call_tool("dies", {})
    await asyncio.to_thread(http_process.wait)
    await asyncio.to_thread(http_process.start)
    assert await server.call_tool("echo", {"text": "back"}) == "back"


async def test_a_session_that_the_server_has_forgotten_is_opened_again_within_the_call(http_server, connect):
    http_server.guard.is_old = True
    server = connect(http_server.url)
    assert await server.call_tool("echo", {"text": "hi"}) == "hi"
    port = http_server.port
    await asyncio.to_thread(http_server.stop)
    again = HTTPServer(port)
    again.guard.is_old = True
    try:
        assert await server.call_tool("echo", {"text": "again"}) == "again"
        assert again.guard.seen.count("initialize") == 1
        await server.close()
    finally:
        await asyncio.to_thread(again.stop)


async def test_tools_are_discovered_again_when_a_server_is_back_that_has_no_sessions(http_server, connect):
    server = connect(http_server.url)
    await server.call_tool("grow", {"name": "more"})
    assert "more" in await names(server)
    await until(lambda: "subscriptions/listen" in http_server.guard.seen)
    await asyncio.to_thread(http_server.stop)
    again = HTTPServer(http_server.port)
    try:
        await until(lambda: not server._listed)
        assert "more" not in await names(server)
        await server.close()
    finally:
        await asyncio.to_thread(again.stop)


async def test_a_failed_opening_is_tried_again_by_the_next_call(http_server, connect):
    http_server.guard.trouble = {"server/discover": (503, b"later"), "initialize": (503, b"later")}
    server = connect(http_server.url)
    with pytest.raises(ToolServerUnavailable, match="503 Service Unavailable: later"):
        await server.list_tools()
    http_server.guard.trouble.clear()
    assert await server.call_tool("echo", {"text": "hi"}) == "hi"


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (500, b"oops", ToolServerUnavailable),
        (429, b"slow down", ToolServerUnavailable),
        (403, b"not you", NotConfigured),
        (413, b"too much", ToolFailed),
        (200, b"{no json", ToolFailed),
        (200, b"", ToolFailed),
        (202, b"", ToolFailed),
    ],
)
async def test_a_wrong_answer_harms_its_call_only(http_server, connect, status, body, error):
    server = connect(http_server.url)
    hung = asyncio.create_task(server.call_tool("hang", {}))
    await acquired(http_server.hung.begun)
    http_server.guard.trouble["tools/call"] = (status, body)
    with pytest.raises(error) as raised:
        await server.call_tool("echo", {"text": "hi"})
    if status >= 400:
        assert body.decode() in str(raised.value)
    http_server.guard.trouble.clear()
    assert await server.call_tool("echo", {"text": "hi"}) == "hi"
    assert not hung.done()
    hung.cancel()


@pytest.mark.parametrize("kind", [b"application/json", b"text/event-stream"])
async def test_an_answer_that_breaks_harms_its_call_only(http_server, connect, kind):
    server = connect(http_server.url)
    hung = asyncio.create_task(server.call_tool("hang", {}))
    await acquired(http_server.hung.begun)
    http_server.guard.cut["tools/call"] = kind
    with pytest.raises(ToolServerUnavailable):
        await server.call_tool("echo", {"text": "hi"})
    http_server.guard.cut.clear()
    assert await server.call_tool("echo", {"text": "hi"}) == "hi"
    assert not hung.done()
    hung.cancel()


async def test_openings_that_fail_are_tried_ever_more_slowly(http_server, connect):
    http_server.guard.trouble = {"server/discover": (503, b""), "initialize": (503, b"")}
    server = connect(http_server.url)
    began_s = asyncio.get_running_loop().time()
    for _ in range(4):
        with pytest.raises(ToolServerUnavailable):
            await server.list_tools()
    assert asyncio.get_running_loop().time() - began_s >= 0.1 + 0.2 + 0.4
    assert http_server.guard.seen.count("initialize") == 4


async def test_headers_go_with_each_request_and_are_no_part_of_any_text(http_server, connect, caplog):
    caplog.set_level(logging.DEBUG)
    http_server.guard.may = lambda headers: headers.get("x-api-token") == "s3cret-token"
    server = connect(http_server.url, headers={"X-Api-Token": "s3cret-token", "X-Tenant": "acme"})
    assert await server.call_tool("echo", {"text": "I am s3cret-token of acme"}) == "I am *** of acme"
    with pytest.raises(ToolFailed, match=r"\*\*\* is unknown"):
        await server.call_tool("fails", {"text": "s3cret-token is unknown"})
    assert all(headers["x-tenant"] == "acme" for headers in http_server.guard.headers)
    assert "s3cret" not in repr(server) + server.model_dump_json()
    assert "s3cret" not in "\n".join(line.getMessage() for line in caplog.records if line.name.startswith("agentflow"))


def sockets_open() -> int:
    kinds = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of the directory itself
            kinds.append(descriptor.readlink().name.partition(":")[0])
    return kinds.count("socket")


async def test_close_leaves_no_connection_behind(http_process, connect):
    before = sockets_open()
    server = connect(http_process.url)
    hung = asyncio.create_task(server.call_tool("hang", {}))
    await asyncio.gather(*(server.call_tool("echo", {"text": "hi"}) for _ in range(20)))
    assert sockets_open() > before
    await server.close()
    with pytest.raises(ToolServerUnavailable):
        await hung
    await asyncio.sleep(0)  # asyncio closes a socket in the turn after its transport
    assert sockets_open() == before
    with pytest.raises(ToolServerUnavailable, match="it is closed"):
        await server.call_tool("echo", {"text": "too late"})

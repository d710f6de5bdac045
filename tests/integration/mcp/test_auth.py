"""Who asks an MCP server: each way is checked by the server; nothing secret is seen anywhere."""

from __future__ import annotations

import asyncio
import base64
import logging

import pytest

from agentflow.errors import NotConfigured, ToolServerUnavailable
from agentflow.integrations.mcp import ApiKeyAuth, BasicAuth, BearerTokenAuth, OAuthClientCredentials
from agentflow.runtime.redaction import Redaction

BASIC = "Basic " + base64.b64encode(b"ann:s3cret-pass").decode()
WAYS = [
    (BearerTokenAuth(token="s3cret-token"), ("authorization", "Bearer s3cret-token")),
    (BasicAuth(username="ann", password="s3cret-pass"), ("authorization", BASIC)),
    (ApiKeyAuth(key="s3cret-key"), ("x-api-key", "s3cret-key")),
    (ApiKeyAuth(key="s3cret-key", header="X-Shop"), ("x-shop", "s3cret-key")),
    ({"type": "bearer", "token": "s3cret-token"}, ("authorization", "Bearer s3cret-token")),
    ({"type": "basic", "username": "ann", "password": "s3cret-pass"}, ("authorization", BASIC)),
    ({"type": "api_key", "key": "s3cret-key", "header": "X-Shop"}, ("x-shop", "s3cret-key")),
]


@pytest.mark.parametrize(("auth", "expected"), WAYS)
async def test_the_server_sees_who_asks(http_server, connect, auth, expected):
    name, value = expected
    http_server.guard.may = lambda headers: headers.get(name) == value
    assert await connect(http_server.url, auth=auth).call_tool("echo", {"text": "hi"}) == "hi"


async def test_refused_credentials_are_a_mistake_in_the_configuration_and_are_not_shown(http_server, connect, caplog):
    caplog.set_level(logging.INFO)
    http_server.guard.may = lambda _: False
    server = connect(http_server.url, auth=BearerTokenAuth(token="s3cret-token"))
    with pytest.raises(NotConfigured, match="refuses the credentials") as refused:
        await server.list_tools()
    assert "who are you? not Bearer ***" in str(refused.value)
    assert (
        "s3cret" not in str(refused.value) + repr(server) + repr(server.auth) + server.model_dump_json() + caplog.text
    )


async def test_rules_of_redaction_leave_the_reason_why_credentials_are_refused(http_server, connect):
    http_server.guard.may = lambda _: False
    with pytest.raises(NotConfigured) as refused:
        await connect(http_server.url).list_tools()
    assert "refuses the credentials with HTTP 401 Unauthorized: who are you?" in Redaction().text(str(refused.value))


@pytest.mark.parametrize("token", ["s3cret\ntoken", "s3crét"])
async def test_a_token_that_cannot_be_sent_ends_the_call_and_is_not_shown(http_server, connect, caplog, token):
    caplog.set_level(logging.INFO)
    http_server.guard.token = token
    with pytest.raises(ToolServerUnavailable, match="a token that cannot be sent") as raised:
        await connect(http_server.url, auth=oauth(http_server)).list_tools()
    assert "s3cr" not in str(raised.value) + caplog.text


def oauth(http_server, **more):
    url = http_server.url.replace("/mcp", "/token")
    return OAuthClientCredentials(token_url=url, client_id="shop", client_secret="s3cret-client", **more)


async def test_a_token_is_asked_for_once_and_used_by_all_calls(http_server, connect):
    guard = http_server.guard
    guard.may = lambda headers: headers.get("authorization") == f"Bearer token-{guard.tokens}"
    server = connect(
        http_server.url,
        auth=oauth(http_server, scope="read write", resource="https://shop"),
        headers={"X-Tenant": "acme"},
    )
    answers = await asyncio.gather(*(server.call_tool("echo", {"text": str(n)}) for n in range(50)))
    assert answers == [str(n) for n in range(50)]
    expected = {"grant_type": ["client_credentials"], "scope": ["read write"], "resource": ["https://shop"]}
    assert guard.forms == [("Basic " + base64.b64encode(b"shop:s3cret-client").decode(), expected)]


async def test_a_token_outlives_the_session(http_server, connect):
    http_server.guard.is_old = True
    server = connect(http_server.url, auth=oauth(http_server))
    await server.call_tool("echo", {"text": "hi"})
    server._sessions._session.end("for the test")
    await server.call_tool("echo", {"text": "hi"})
    assert http_server.guard.seen.count("initialize") == 2
    assert http_server.guard.tokens == 1


async def test_a_token_that_expires_is_renewed_before(http_server, connect):
    http_server.guard.expires_in = 0
    server = connect(http_server.url, auth=oauth(http_server))
    await server.call_tool("echo", {"text": "hi"})
    given = http_server.guard.tokens
    await server.call_tool("echo", {"text": "hi"})
    assert http_server.guard.tokens > given


async def test_a_refused_token_is_renewed_once_for_all_calls(http_server, connect):
    guard = http_server.guard
    server = connect(http_server.url, auth=oauth(http_server))
    await server.call_tool("echo", {"text": "hi"})
    guard.may = lambda headers: headers.get("authorization") == "Bearer token-2"
    await asyncio.gather(*(server.call_tool("echo", {"text": "hi"}) for _ in range(20)))
    assert guard.tokens == 2


async def test_a_token_that_is_refused_again_ends_the_call_and_not_the_session(http_server, connect):
    guard = http_server.guard
    server = connect(http_server.url, auth=oauth(http_server))
    await server.call_tool("echo", {"text": "hi"})
    given, guard.may = guard.tokens, lambda _: False
    with pytest.raises(NotConfigured, match=r"not Bearer \*\*\*"):
        await server.call_tool("echo", {"text": "hi"})
    assert guard.tokens == given + 1
    guard.may = lambda _: True
    assert await server.call_tool("echo", {"text": "hi"}) == "hi"


@pytest.mark.parametrize(
    ("status", "error"), [(400, NotConfigured), (401, NotConfigured), (503, ToolServerUnavailable)]
)
async def test_a_server_of_tokens_that_gives_none_ends_the_call(http_server, connect, status, error):
    http_server.guard.token_status = status
    server = connect(http_server.url, auth=oauth(http_server))
    with pytest.raises(error, match="invalid_client") as raised:
        await server.list_tools()
    assert "s3cret" not in str(raised.value)
    http_server.guard.token_status = 200
    assert await server.call_tool("echo", {"text": "hi"}) == "hi"


async def test_a_token_is_not_shown_when_the_server_echoes_it(http_server, connect):
    server = connect(http_server.url, auth=oauth(http_server))
    assert await server.call_tool("echo", {"text": "you have token-1"}) == "you have ***"

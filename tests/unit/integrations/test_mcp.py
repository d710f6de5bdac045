"""MCP without a server: what content becomes, what is secret, what cannot be."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

import pytest
from mcp import types

from agentflow.api.chat_messages import ChatMessage, FilePart, ImagePart, TextPart
from agentflow.api.failure import Retry
from agentflow.api.resources import ResourceDescriptor, ResourceType
from agentflow.api.tools import ToolPolicy
from agentflow.errors import NotConfigured, ToolServerUnavailable
from agentflow.integrations.mcp import (
    ApiKeyAuth,
    BasicAuth,
    BearerTokenAuth,
    MCPServer,
    OAuthClientCredentials,
)
from agentflow.integrations.mcp_auth import Secrets
from agentflow.integrations.mcp_content import argument_text, prompt_message, remove_wrong_tools, result_text

TEXT = types.TextContent(text="hello")
IMAGE = types.ImageContent(data=base64.b64encode(b"1234").decode(), mime_type="image/png")
AUDIO = types.AudioContent(data=base64.b64encode(b"12345").decode(), mime_type="audio/wav")
LINK = types.ResourceLink(uri="shop://list", name="list", mime_type="text/csv")
NOTE = types.EmbeddedResource(resource=types.TextResourceContents(uri="shop://note", text="a note"))
BLOB = types.EmbeddedResource(
    resource=types.BlobResourceContents(uri="shop://b", blob=base64.b64encode(b"b").decode(), mime_type="image/gif")
)


@pytest.mark.parametrize(
    ("content", "structured", "text"),
    [
        ([], None, ""),
        ([TEXT], None, "hello"),
        ([TEXT, TEXT], None, "hello\nhello"),
        ([TEXT, IMAGE, AUDIO], None, "hello\n[image, image/png, 4 bytes]\n[audio, audio/wav, 5 bytes]"),
        ([LINK, NOTE, BLOB], None, "[resource list: shop://list]\na note\n[resource shop://b, image/gif]"),
        ([TEXT], {"a": [1, None]}, '{"a":[1,null]}'),
        ([TEXT, IMAGE], {"a": 1}, '{"a":1}\n[image, image/png, 4 bytes]'),
        ([TEXT], {}, "{}"),
    ],
)
def test_a_result_becomes_text(content, structured, text):
    assert result_text(types.CallToolResult(content=content, structured_content=structured)) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT, ChatMessage("user", "hello")),
        (IMAGE, ChatMessage("user", parts=[ImagePart("image/png", b"1234")])),
        (AUDIO, ChatMessage("user", parts=[FilePart("audio/wav", b"12345")])),
        (LINK, ChatMessage("user", parts=[FilePart("text/csv", url="shop://list", name="list")])),
        (NOTE, ChatMessage("user", parts=[TextPart("a note")])),
        (BLOB, ChatMessage("user", parts=[ImagePart("image/gif", b"b")])),
    ],
)
def test_content_of_a_prompt_becomes_a_part(content, message):
    assert prompt_message(types.PromptMessage(role="user", content=content)) == message


@pytest.mark.parametrize(
    ("value", "text"), [("a", "a"), (3, "3"), (True, "true"), (None, "null"), ([1, "b"], '[1,"b"]')]
)
def test_an_argument_of_a_prompt_becomes_text(value, text):
    assert argument_text(value) == text


@pytest.mark.parametrize(
    "auth",
    [
        BearerTokenAuth(token="s3cret"),
        BasicAuth(username="ann", password="s3cret"),
        ApiKeyAuth(key="s3cret"),
        OAuthClientCredentials(token_url="http://auth/token", client_id="shop", client_secret="s3cret"),
    ],
)
def test_credentials_are_shown_nowhere(auth):
    server = MCPServer(endpoint="http://shop/mcp", auth=auth)
    assert "s3cret" not in repr(auth) + str(auth) + repr(server) + server.model_dump_json()
    assert Secrets(auth).mask(f"a s3cret, {auth.headers}").count("s3cret") == 0


def test_values_are_secret_whose_names_sound_like_it():
    secrets = Secrets(
        None, {"Authorization": "Bearer abc", "X-Tenant": "acme"}, {"GITHUB_TOKEN": "def", "REGION": "north"}
    )
    assert secrets.mask("abc def acme north, Bearer abc") == "*** *** acme north, ***"


def test_tokens_that_were_renewed_are_secret_for_a_while():
    secrets = Secrets(None)
    for number in range(100):
        secrets.add_token(f"token-{number}.")
    assert secrets.mask("token-98. token-99.") == "*** ***"
    assert secrets.mask("token-1.") == "token-1."


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "one of two ways"),
        ({"endpoint": "http://shop/mcp", "command": "shop"}, "one of two ways"),
        ({"endpoint": "shop/mcp"}, "no URL"),
        ({"endpoint": "ftp://shop/mcp"}, "no URL"),
        ({"command": "shop", "auth": {"type": "bearer", "token": "t"}}, "by env"),
        ({"command": "shop", "headers": {"a": "b"}}, "by env"),
    ],
)
def test_a_server_that_cannot_be_reached_is_refused_when_it_is_built(arguments, why):
    with pytest.raises(NotConfigured, match=why):
        MCPServer(**arguments)


@pytest.mark.parametrize(
    "auth", [{"type": "magic"}, {"type": "bearer"}, {"token": "s3cret"}, {"type": "basic", "password": 1}]
)
async def test_credentials_that_are_none_are_refused_when_it_is_opened(auth):
    with pytest.raises(NotConfigured, match="auth of the MCP server 'shop'") as refused:
        await MCPServer(endpoint="http://shop/mcp", auth=auth)
    assert "s3cret" not in str(refused.value)


def test_a_duration_without_a_unit_is_seconds():
    server = MCPServer(endpoint="http://shop/mcp", timeout="1.5m", call_timeout=2)
    assert (server._timeout_s, server._call_timeout_s) == (90.0, 2.0)
    with pytest.raises(ValueError, match="not a duration"):
        MCPServer(endpoint="http://shop/mcp", timeout="soon")


@pytest.mark.parametrize(
    ("arguments", "label"),
    [
        ({"endpoint": "https://ann:s3cret@shop:8000/mcp?key=s3cret"}, "shop:8000"),
        ({"command": "shop-server"}, "shop-server"),
    ],
)
def test_a_server_is_named_without_secrets(arguments, label):
    assert MCPServer(**arguments).label == label


def test_a_descriptor_is_json_and_builds_a_server():
    descriptor = ResourceDescriptor(
        MCPServer, endpoint="http://shop/mcp", auth={"type": "bearer", "token": "${env:TOKEN}"}
    )
    assert descriptor.clazz == "agentflow.integrations.mcp.MCPServer"
    assert MCPServer(**descriptor.arguments).resource_type() is ResourceType.MCP_SERVER


async def test_a_server_that_nobody_asked_is_closed_without_a_session():
    await MCPServer(endpoint="http://shop/mcp").close()


def test_an_unavailable_server_is_recorded_as_what_it_is():
    error = ToolServerUnavailable("shop", "no answer in 5 s")
    assert type(error)(*error.args).why == "no answer in 5 s"


def test_the_sdk_is_imported_by_the_first_use_only():
    code = """
import asyncio, sys
from agentflow.integrations.mcp import MCPServer
from agentflow.errors import NotConfigured
assert not {"mcp", "httpx2", "anyio", "pydantic"} & set(sys.modules)
sys.modules["mcp"] = None  # as if it were not installed
server = MCPServer(endpoint="http://shop/mcp")
try:
    asyncio.run(server.open())
except NotConfigured as error:
    assert "pip install 'agentflow[mcp]'" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        ({"requires_approval": "yes"}, "Expected `bool`, got `str`"),
        ({"aproval": True}, "unknown field `aproval`"),
        ({"timeout": "soon"}, "'soon' is not a duration"),
        ({"result_max": 0}, "`int` >= 1"),
        ({"retry": {"attempts": 0}}, "`int` >= 1"),
        ({"retry": {"multiplier": 0.5}}, "multiplier is at least 1"),
        (5, "Expected `object`, got `int`"),
    ],
)
def test_a_policy_that_is_none_is_refused_before_anything_is_called(policy, problem):
    with pytest.raises(NotConfigured, match=f"policies of the MCP server 'shop': tool 'order': .*{problem}"):
        MCPServer(command="shop", policies={"order": policy})


def test_a_policy_is_for_a_tool_that_is_taken():
    with pytest.raises(NotConfigured, match="tool 'ordr' is none of tools="):
        MCPServer(command="shop", tools=["order"], policies={"ordr": {"requires_approval": True}})


def test_a_policy_goes_by_the_name_that_the_model_sees_and_says_what_the_server_does_not_know():
    server = MCPServer(
        command="shop", prefix="shop_", policies={"order": {"requires_approval": True, "retry": {"attempts": 2}}}
    )
    assert server.policy_of("shop_order") == ToolPolicy(requires_approval=True, retry=Retry(2))
    assert (server.policy_of("order"), server.policy_of("shop_find")) == (None, None)


@pytest.mark.parametrize(
    "secret", ["s3cret-token\n", " s3cret-token", "s3cret\ntoken", "s3cret-töken", "s3\x01cret", 's3"cret']
)
def test_a_credential_is_not_shown_however_a_text_writes_it(secret):
    secrets = Secrets(BearerTokenAuth(token=secret))
    sent = f"Bearer {secret}"
    for text in (
        secret,
        secret.strip(),
        repr(sent),
        repr(sent.encode()),
        json.dumps(sent),
        f"{ValueError(sent.encode())!r}",
    ):
        assert "***" in secrets.mask(text)
        assert "s3" not in secrets.mask(text)


@pytest.mark.parametrize("secret", ["s3cret\n", "s3cr\net", "s3cr\x00et", "s3crét", " s3cret "])
@pytest.mark.parametrize(
    "way",
    [
        lambda secret: BearerTokenAuth(token=secret),
        lambda secret: ApiKeyAuth(key=secret),
        lambda secret: {"type": "bearer", "token": secret},
    ],
)
def test_a_credential_that_cannot_be_sent_is_refused_when_the_server_is_built_and_is_not_shown(way, secret):
    with pytest.raises(NotConfigured, match=r"the value of header '.*' cannot be sent") as refused:
        MCPServer(endpoint="http://shop/mcp", auth=way(secret))
    assert "s3cr" not in str(refused.value)


def test_a_header_that_cannot_be_sent_is_refused_when_the_server_is_built():
    with pytest.raises(NotConfigured, match="the value of header 'X-Shop' cannot be sent"):
        MCPServer(endpoint="http://shop/mcp", headers={"X-Tenant": "a b", "X-Shop": "a\r\nb"})


def test_a_password_may_have_what_a_header_may_not():
    MCPServer(endpoint="http://shop/mcp", auth=BasicAuth(username="ann", password="pä\n"))


GOOD = {"name": "good", "inputSchema": {"type": "object"}}


@pytest.mark.parametrize(
    ("tool", "told"),
    [
        ({"name": "bad"}, ("bad", "inputSchema: Field required")),
        ({"name": "bad", "inputSchema": 5}, ("bad", "inputSchema: Input should be")),
        ({"inputSchema": {"type": "object"}}, ("", "name: Field required")),
        (5, ("5", "Input should be")),
    ],
)
@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
def test_a_tool_that_is_none_is_taken_out_of_a_list_and_named(tool, told, version):
    page = {"tools": [tool, GOOD], "nextCursor": "2", "resultType": "complete", "cacheScope": "private", "ttlMs": 0}
    ((name, why),) = remove_wrong_tools(page, version)
    assert (name, page["tools"], page["nextCursor"]) == (told[0], [GOOD], "2")
    assert why.startswith(told[1])


@pytest.mark.parametrize(
    "result",
    [
        {"tools": [GOOD]},
        {"tools": [{"name": "bad"}], "content": []},
        {"tools": [{"name": "bad"}], "nextCursor": 5},
        {"tools": "none"},
        {},
    ],
)
def test_what_is_no_list_with_wrong_tools_is_left_as_it_is(result):
    before = json.loads(json.dumps(result))
    assert remove_wrong_tools(result, "2025-11-25") == []
    assert result == before


def test_a_server_that_is_not_asked_is_known_to_have_what_its_configuration_says():
    server = MCPServer(command="shop", prefix="shop_", tools=["order"], policies={"order": {"timeout": "1s"}})
    asked = [server.offers("tools", name) for name in ("shop_order", "order", "shop_find")]
    assert asked == [True, False, False]
    free = MCPServer(command="shop", policies={"order": {"timeout": "1s"}})
    assert [free.offers("tools", name) for name in ("order", "find")] == [True, None]
    assert free.offers("prompts", "order") is None

"""The adapter of Anthropic on the local server."""

from __future__ import annotations

import pytest

from agentflow.api.chat_messages import ChatMessage
from agentflow.api.chat_models import ChatRequest
from agentflow.errors import ModelRejected, NotConfigured
from agentflow.integrations.anthropic import AnthropicConnection
from agentflow.testing.conformance.chat_model import ChatModelConformance
from agentflow.testing.model_server import ModelServer, Reply, Unauthorized


class TestAnthropic(ChatModelConformance):
    reads_retry_after_ms = True

    @pytest.fixture
    def new_connection(self):
        return lambda url: AnthropicConnection(api_key=self.credential, base_url=url)


def asked(**options):
    return ChatRequest(model="claude-opus-4-5", messages=[ChatMessage(content="hi")], options=options)


async def test_sampling_is_asked_for_in_the_version_of_the_api_that_has_it():
    async with ModelServer(Reply("ok")) as server:
        connection = AnthropicConnection(api_key="k", base_url=server.url)
        await connection.complete(asked())
        await connection.complete(asked(temperature=0.1))
        await connection.close()
    now, before = (request.headers["anthropic-version"] for request in server.requests)
    assert before == "2023-06-01"
    assert now > before


async def test_answer_that_was_begun_for_the_model_comes_whole():
    async with ModelServer(Reply('"a": 1}')) as server:
        connection = AnthropicConnection(api_key="k", base_url=server.url)
        answer = await connection.complete(asked(json_prefill=True))
        await connection.close()
    assert answer.content == '{"a": 1}'


async def test_connection_without_a_key_is_not_configured(monkeypatch, tmp_path):
    for name in "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_CONFIG_DIR", str(tmp_path))
    with pytest.raises(NotConfigured):
        await AnthropicConnection()


async def test_key_of_the_environment_is_in_no_error(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-of-the-environment")
    async with ModelServer(Unauthorized()) as server:
        connection = AnthropicConnection(base_url=server.url)
        with pytest.raises(ModelRejected) as raised:
            await connection.complete(asked())
        await connection.close()
    assert server.requests[0].api_key == "sk-of-the-environment"
    assert "sk-of-the-environment" not in str(raised.value)

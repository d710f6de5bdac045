"""The adapter of Gemini on the local server."""

from __future__ import annotations

import pytest

from agentflow.api.chat_messages import ChatMessage, tool_message
from agentflow.api.chat_models import ChatRequest
from agentflow.errors import ModelRejected, NotConfigured
from agentflow.integrations.google_genai import GeminiConnection
from agentflow.testing.conformance.chat_model import ChatModelConformance
from agentflow.testing.model_server import ModelServer, Reply, ToolCall
from agentflow.testing.model_server.gemini_content import SIGNATURE


class TestGemini(ChatModelConformance):
    model = "gemini-3-flash"
    usage_fields = frozenset({"cached_tokens", "reasoning_tokens"})
    returns_reasoning = False  # but its signature
    malformed_arguments = frozenset()

    @pytest.fixture
    def new_connection(self):
        return lambda url: GeminiConnection(api_key=self.credential, base_url=url)


async def test_connection_without_a_key_is_not_configured(monkeypatch):
    for name in "GEMINI_API_KEY", "GOOGLE_API_KEY":
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(NotConfigured):
        await GeminiConnection()


async def test_signature_goes_back_with_its_call():
    thought = Reply("", [ToolCall("get_time", {}, "call_x")], reasoning="The time?")
    async with ModelServer([thought, Reply("noon")]) as server:
        connection = GeminiConnection(api_key="k", base_url=server.url)
        request = ChatRequest(model="gemini-3-flash", messages=[ChatMessage(content="time?")])
        answer = await connection.complete(request)
        request.messages += [answer, tool_message(answer.tool_calls[0], "noon")]
        await connection.complete(request)
        await connection.close()
    (part,) = server.requests[1].body["contents"][1]["parts"]
    assert part["functionCall"]["id"] == "call_x"
    assert part["thoughtSignature"] == SIGNATURE


async def test_option_that_gemini_does_not_have_is_a_rejection_before_it_is_sent():
    async with ModelServer(Reply("ok")) as server:
        connection = GeminiConnection(api_key="k", base_url=server.url)
        with pytest.raises(ModelRejected):
            await connection.complete(
                ChatRequest(model="gemini-3-flash", messages=[ChatMessage(content="hi")], options={"colour": 1})
            )
        await connection.close()
        assert server.count() == 0

"""The adapter of Ollama on the local server."""

from __future__ import annotations

import pytest

from agentflow.api.chat_messages import ChatMessage
from agentflow.api.chat_models import ChatRequest, DeltaKind
from agentflow.integrations.ollama import OllamaConnection, OllamaSetup
from agentflow.testing.conformance.chat_model import ChatModelConformance
from agentflow.testing.model_server import ModelServer, Reply


class TestOllama(ChatModelConformance):
    usage_fields = frozenset()
    refuses = False
    filters = False
    malformed_arguments = frozenset()
    takes_image_urls = False
    takes_files = False

    @pytest.fixture
    def new_connection(self, monkeypatch):
        monkeypatch.setenv("OLLAMA_API_KEY", self.credential)
        return lambda url: OllamaConnection(base_url=url)


async def test_thinking_between_tags_is_reasoning_in_a_stream_too():
    deltas = []
    async with ModelServer(Reply("<think>hm</think>\n\nyes", chunk_count=9)) as server:
        connection = OllamaConnection(base_url=server.url)
        options = OllamaSetup(model="m").model_kwargs
        request = ChatRequest(model="m", messages=[ChatMessage(content="hi")], options=options)
        answer = await connection.complete(request, deltas.append)
        await connection.close()
    assert (answer.content, [part.text for part in answer.reasoning]) == ("yes", ["hm"])
    assert "".join(delta.text for delta in deltas if delta.kind == DeltaKind.TEXT) == "yes"


async def test_error_of_whoever_reads_the_stream_is_no_error_of_the_model():
    def on_delta(_):
        raise ValueError("the reader's own")

    async with ModelServer(Reply("yes")) as server:
        connection = OllamaConnection(base_url=server.url)
        with pytest.raises(ValueError, match="the reader's own"):
            await connection.complete(ChatRequest(model="m", messages=[ChatMessage(content="hi")]), on_delta)
        await connection.close()

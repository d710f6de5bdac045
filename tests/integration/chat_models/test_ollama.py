"""The adapter of Ollama on the local server."""

from __future__ import annotations

import pytest

from agentflow.integrations.ollama import OllamaConnection
from agentflow.testing.conformance.chat_model import ChatModelConformance


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

"""The adapter of Gemini on the local server."""

from __future__ import annotations

import pytest

from agentflow.integrations.google_genai import GeminiConnection
from agentflow.testing.conformance.chat_model import ChatModelConformance


class TestGemini(ChatModelConformance):
    model = "gemini-3-flash"
    usage_fields = frozenset({"cached_tokens", "reasoning_tokens"})
    returns_reasoning = False  # but its signature
    malformed_arguments = frozenset()

    @pytest.fixture
    def new_connection(self):
        return lambda url: GeminiConnection(api_key=self.credential, base_url=url)

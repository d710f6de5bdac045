"""The adapter of Anthropic on the local server."""

from __future__ import annotations

import pytest

from agentflow.integrations.anthropic import AnthropicConnection
from agentflow.testing.conformance.chat_model import ChatModelConformance


class TestAnthropic(ChatModelConformance):
    reads_retry_after_ms = True

    @pytest.fixture
    def new_connection(self):
        return lambda url: AnthropicConnection(api_key=self.credential, base_url=url)

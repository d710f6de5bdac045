"""The adapter of LiteLLM on the local server."""

from __future__ import annotations

import pytest

from agentflow.integrations.litellm import LiteLLMConnection
from agentflow.testing.conformance.chat_model import ChatModelConformance

pytestmark = [  # pydantic's, of LiteLLM's own code
    pytest.mark.filterwarnings("ignore:Item .* on TypedDict class"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_computed_fields' attribute"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute"),
]


class TestLiteLLM(ChatModelConformance):
    refuses = False  # it drops the words of a refusal from a stream

    @pytest.fixture
    def new_connection(self):
        return lambda url: LiteLLMConnection(
            api_key=self.credential, api_base_url=f"{url}/v1", custom_llm_provider="openai"
        )

"""The adapters of OpenAI's protocols on the local server: OpenAI itself, Azure, vLLM, DashScope, any other."""

from __future__ import annotations

import pytest

from agentflow.integrations.azure_openai import AzureOpenAIConnection
from agentflow.integrations.openai import OpenAICompletionsConnection, OpenAIResponsesConnection
from agentflow.integrations.openai_compatible import OpenAICompatibleConnection, TongyiConnection, VLLMConnection
from agentflow.testing.conformance.chat_model import ChatModelConformance


class TestOpenAICompletions(ChatModelConformance):
    reads_retry_after_ms = True
    returns_reasoning = False  # OpenAI shows none here, and takes none

    @pytest.fixture
    def new_connection(self):
        return lambda url: OpenAICompletionsConnection(api_key=self.credential, api_base_url=f"{url}/v1")


class TestOpenAIResponses(ChatModelConformance):
    reads_retry_after_ms = True

    @pytest.fixture
    def new_connection(self):
        return lambda url: OpenAIResponsesConnection(api_key=self.credential, base_url=f"{url}/v1")


class TestAzureOpenAI(ChatModelConformance):
    reads_retry_after_ms = True
    returns_reasoning = False

    @pytest.fixture
    def new_connection(self):
        return lambda url: AzureOpenAIConnection(
            api_key=self.credential, azure_endpoint=url, api_version="2024-10-21", timeout="1 min"
        )


class TestOpenAICompatible(ChatModelConformance):
    reads_retry_after_ms = True

    @pytest.fixture
    def new_connection(self):
        return lambda url: OpenAICompatibleConnection(
            api_key=self.credential, base_url=f"{url}/v1", structured_output=True
        )


class TestVLLM(ChatModelConformance):
    reads_retry_after_ms = True

    @pytest.fixture
    def new_connection(self):
        return lambda url: VLLMConnection(api_key=self.credential, base_url=f"{url}/v1")


class TestTongyi(ChatModelConformance):
    reads_retry_after_ms = True

    @pytest.fixture
    def new_connection(self, monkeypatch):
        monkeypatch.setenv("DASHSCOPE_API_KEY", self.credential)
        return lambda url: TongyiConnection(base_url=f"{url}/compatible-mode/v1", structured_output=True)

"""The adapter of Bedrock on the local server."""

from __future__ import annotations

import pytest

from agentflow.integrations.aiobotocore_bedrock import BedrockConnection
from agentflow.testing.conformance.chat_model import ChatModelConformance


class TestBedrock(ChatModelConformance):
    model = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
    usage_fields = frozenset({"cached_tokens", "cache_write_tokens"})
    malformed_arguments = frozenset({"streamed"})
    takes_image_urls = False

    @pytest.fixture
    def new_connection(self):
        return lambda url: BedrockConnection(
            region_name="eu-central-1",
            endpoint_url=url,
            aws_access_key_id=self.credential,
            aws_secret_access_key="wJalrXUtnFEMI",
        )

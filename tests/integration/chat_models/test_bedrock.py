"""The adapter of Bedrock on the local server."""

from __future__ import annotations

import pytest

from agentflow.api.chat_messages import ChatMessage
from agentflow.api.chat_models import ChatRequest
from agentflow.errors import NotConfigured, RateLimited
from agentflow.integrations.aiobotocore_bedrock import BedrockConnection
from agentflow.testing.conformance.chat_model import ChatModelConformance
from agentflow.testing.model_server import ModelServer, StreamFailed


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


async def test_connection_without_a_region_is_not_configured(monkeypatch, tmp_path):
    for name in "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(NotConfigured):
        await BedrockConnection(aws_access_key_id="a", aws_secret_access_key="b")


async def test_throttling_within_a_stream_is_a_rate_limit():
    async with ModelServer(StreamFailed(status=429)) as server:
        connection = BedrockConnection(
            region_name="eu-central-1", endpoint_url=server.url, aws_access_key_id="a", aws_secret_access_key="b"
        )
        with pytest.raises(RateLimited):
            await connection.complete(
                ChatRequest(model="m", messages=[ChatMessage(content="hi")]), on_delta=lambda _: None
            )
        await connection.close()

"""What the laws of all adapters do not say of OpenAI's protocols and of LiteLLM, on the local server."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from agentflow.api.chat_messages import ChatMessage
from agentflow.api.chat_models import ChatRequest
from agentflow.errors import ModelRejected, NotConfigured
from agentflow.integrations.azure_openai import AzureOpenAIConnection
from agentflow.integrations.litellm import LiteLLMConnection
from agentflow.integrations.openai import OpenAICompletionsConnection, OpenAIResponsesConnection
from agentflow.integrations.openai_compatible import OpenAICompatibleConnection, TongyiConnection
from agentflow.testing.conformance.chat_model_world import Arrivals
from agentflow.testing.model_server import HttpError, ModelServer, Reply


def asked(text="hello", **fields):
    return ChatRequest(model="model-1", messages=[ChatMessage(content=text)], **fields)


def test_sdks_are_not_imported_before_a_connection_is_opened():
    modules = ["openai", "azure_openai", "openai_compatible", "litellm"]
    code = "\n".join(
        [
            "import sys",
            *(f"import agentflow.integrations.{module}" for module in modules),
            "print({'openai', 'litellm', 'httpx2', 'aiohttp', 'pydantic'} & sys.modules.keys())",
        ]
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("kind", "sdk"), [(OpenAICompletionsConnection, "openai"), (OpenAIResponsesConnection, "openai"), (LiteLLMConnection, "litellm")]
)  # fmt: skip
async def test_sdk_that_is_missing_is_named_with_its_extra(kind, sdk, monkeypatch):
    monkeypatch.setitem(sys.modules, sdk, None)
    with pytest.raises(NotConfigured, match=rf"pip install 'agentflow\[{sdk}\]'"):
        await kind(api_key="sk-secret-1").complete(asked())


@pytest.mark.parametrize(
    ("connection", "missing"),
    [
        (OpenAICompletionsConnection(), "api_key"),
        (AzureOpenAIConnection(api_key="sk-secret-1", azure_endpoint="http://127.0.0.1:1"), "api_version"),
        (OpenAICompatibleConnection(), "base_url"),
        (TongyiConnection(), "DASHSCOPE_API_KEY"),
    ],
)
async def test_what_a_connection_lacks_is_said_when_it_is_opened(connection, missing, monkeypatch):
    for name in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "OPENAI_API_VERSION", "DASHSCOPE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(NotConfigured, match=missing):
        await connection.open()


@pytest.mark.parametrize("kind", [OpenAICompletionsConnection, OpenAIResponsesConnection])
async def test_more_calls_than_any_pool_has_go_out_at_once(kind):
    count = 1_200  # OpenAI's SDK has 1,000 connections
    async with ModelServer(Arrivals(Reply("ok"), count).together) as server:
        connection = kind(api_key="sk-secret-1", base_url=f"{server.url}/v1")
        answers = await asyncio.gather(*(connection.complete(asked(str(number))) for number in range(count)))
        await connection.close()
        assert server.in_flight_max == count
    assert {answer.content for answer in answers} == {"ok"}


async def test_who_asks_arrives_in_headers():
    async with ModelServer(Reply("ok")) as server:
        connection = OpenAICompletionsConnection(
            api_key="sk-secret-1",
            base_url=f"{server.url}/v1",
            organization="org-1",
            project="proj-1",
            default_headers={"X-Team": "agents"},
        )
        options = {"extra_headers": {"X-Call": "7"}, "extra_body": {"guided_choice": ["a", "b"]}}
        await connection.complete(asked(options=options, idempotency_key="k"))
        await connection.close()
    (request,) = server.requests
    named = ("Authorization", "OpenAI-Organization", "OpenAI-Project", "X-Team", "X-Call", "Idempotency-Key")
    sent = [request.headers[name] for name in named]
    assert sent == ["Bearer sk-secret-1", "org-1", "proj-1", "agents", "7", "k"]
    assert request.body["guided_choice"] == ["a", "b"]
    assert not {"extra_headers", "extra_body"} & request.body.keys()


async def test_deployment_of_azure_is_in_the_path_and_its_version_in_the_query():
    async with ModelServer(Reply("ok")) as server:
        connection = AzureOpenAIConnection(
            api_key="azure-secret-1", azure_endpoint=server.url, api_version="2024-10-21"
        )
        await connection.complete(asked())
        await connection.close()
    (request,) = server.requests
    assert (request.provider, request.path) == ("azure", "/openai/deployments/model-1/chat/completions")
    assert request.headers["api-key"] == "azure-secret-1"


@pytest.mark.parametrize("key", [{}, {"api_key": ""}])
async def test_key_of_openai_goes_to_nobody_else(key, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    async with ModelServer(Reply("ok")) as server:
        connection = OpenAICompatibleConnection(base_url=f"{server.url}/v1", **key)
        await connection.complete(asked())
        await connection.close()
    assert server.requests[0].api_key == "EMPTY"


async def test_quota_that_is_used_up_is_no_rate_limit():
    spent = HttpError(429, code="insufficient_quota", message="You exceeded your current quota.")
    async with ModelServer(spent) as server:
        connection = OpenAICompletionsConnection(api_key="sk-secret-1", base_url=f"{server.url}/v1")
        with pytest.raises(ModelRejected, match="exceeded your current quota") as raised:
            await connection.complete(asked())
        await connection.close()
    assert raised.value.status == 429


async def test_connections_to_one_place_through_litellm_live_and_end_apart():
    async with ModelServer(Reply("ok")) as server:
        first, second, third = (
            LiteLLMConnection(api_key="sk-secret-1", base_url=f"{server.url}/v1", custom_llm_provider="openai")
            for _ in range(3)
        )
        await asyncio.gather(first.complete(asked()), second.complete(asked()))
        await first.close()
        assert (await second.complete(asked())).content == "ok"
        await second.close()
        assert (await third.complete(asked())).content == "ok"
        await third.close()


async def test_model_that_litellm_does_not_know_is_rejected():
    connection = LiteLLMConnection(api_key="sk-secret-1", base_url="http://127.0.0.1:1")
    with pytest.raises(ModelRejected):
        await connection.complete(asked())
    await connection.close()

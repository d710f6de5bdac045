"""Converse through the asynchronous client of AWS."""

from __future__ import annotations

import base64
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore import exceptions
from botocore.eventstream import ChecksumMismatch

from agentflow.testing.model_server import (
    ContextTooLong,
    Cut,
    Dropped,
    HttpError,
    Hung,
    MalformedBody,
    Reply,
    Stalled,
    StreamFailed,
    ToolCall,
    Unauthorized,
    Usage,
)

USAGE = Usage(input=100, output=50, cached=60, cache_written=30)
MODEL = "anthropic.claude-v2:0"
ASK = {"modelId": MODEL, "messages": [{"role": "user", "content": [{"text": "Where?"}]}]}
FULL = Reply("In Bern.", [ToolCall("weather", {"city": "Bern"})], reasoning="Thinking.", usage=USAGE)


@pytest.fixture
async def client_of():
    """Return a function that makes a client of a server."""
    async with AsyncExitStack() as stack:

        async def make(server, patience_s=20):
            client = get_session().create_client(
                "bedrock-runtime",
                endpoint_url=server.url,
                region_name="us-east-1",
                aws_access_key_id="AKIASECRET",
                aws_secret_access_key="x",
                config=AioConfig(read_timeout=patience_s, retries={"total_max_attempts": 1}),
            )
            return await stack.enter_async_context(client)

        yield make


@pytest.fixture
def ask(serve, client_of):
    """Return a function that starts a server with an answer, and calls it."""

    async def call(answer, patience_s=20):
        return await (await client_of(await serve(answer), patience_s)).converse(**ASK)

    return call


@pytest.fixture
def stream(serve, client_of):
    """Return a function that starts a server with an answer, and yields what it streams."""

    async def call(answer, patience_s=20):
        answered = await (await client_of(await serve(answer), patience_s)).converse_stream(**ASK)
        try:
            async for event in answered["stream"]:
                yield event
        finally:
            answered["stream"].close()  # the client does not do it after an error

    return call


def check_usage(usage):
    assert usage == {
        "inputTokens": 10,
        "cacheReadInputTokens": 60,
        "cacheWriteInputTokens": 30,
        "outputTokens": 50,
        "totalTokens": 150,
    }


async def test_reply_has_text_reasoning_calls_and_usage(ask):
    answer = await ask(FULL)
    thinking, text, call = answer["output"]["message"]["content"]
    assert thinking["reasoningContent"]["reasoningText"]["text"] == "Thinking."
    assert text == {"text": "In Bern."}
    assert call["toolUse"] == {"toolUseId": "call_1_0", "name": "weather", "input": {"city": "Bern"}}
    assert answer["stopReason"] == "tool_use"
    check_usage(answer["usage"])


async def test_stream_adds_up_to_the_reply(stream):
    events = [event async for event in stream(FULL)]
    deltas = [event["contentBlockDelta"]["delta"] for event in events if "contentBlockDelta" in event]
    assert "".join(delta.get("text", "") for delta in deltas) == "In Bern."
    assert "".join(delta.get("reasoningContent", {}).get("text", "") for delta in deltas) == "Thinking."
    assert "".join(delta.get("toolUse", {}).get("input", "") for delta in deltas) == '{"city":"Bern"}'
    [start] = [event["contentBlockStart"] for event in events if "contentBlockStart" in event]
    assert start == {"contentBlockIndex": 2, "start": {"toolUse": {"toolUseId": "call_1_0", "name": "weather"}}}
    assert events[0] == {"messageStart": {"role": "assistant"}}
    assert events[-2] == {"messageStop": {"stopReason": "tool_use"}}
    check_usage(events[-1]["metadata"]["usage"])


async def test_refusals_have_their_reasons(ask):
    assert (await ask(Reply("No.", finish_reason="refusal")))["stopReason"] == "guardrail_intervened"
    assert (await ask(Reply("No.", finish_reason="content_filter")))["stopReason"] == "content_filtered"


async def test_malformed_arguments_are_a_stop_reason_or_streamed_as_they_are(ask, stream):
    wrong = Reply(tool_calls=[ToolCall("weather", '{"city": "Be')])
    answer = await ask(wrong)
    assert (answer["stopReason"], answer["output"]["message"]["content"]) == ("malformed_tool_use", [])
    deltas = [event["contentBlockDelta"]["delta"] async for event in stream(wrong) if "contentBlockDelta" in event]
    assert "".join(delta["toolUse"]["input"] for delta in deltas) == '{"city": "Be'


async def test_request_is_understood(serve, client_of, schema, pixel):
    server = await serve(Reply("In Bern."))
    client = await client_of(server)
    await client.converse(
        modelId=MODEL,
        system=[{"text": "Be short."}],
        messages=[
            {
                "role": "user",
                "content": [
                    {"text": "Where?"},
                    {"image": {"format": "png", "source": {"bytes": base64.b64decode(pixel)}}},
                ],
            },
            {
                "role": "assistant",
                "content": [{"toolUse": {"toolUseId": "t1", "name": "weather", "input": {"city": "Bern"}}}],
            },
            {"role": "user", "content": [{"toolResult": {"toolUseId": "t1", "content": [{"text": "sunny"}]}}]},
        ],
        toolConfig={
            "tools": [{"toolSpec": {"name": "weather", "description": "Of now.", "inputSchema": {"json": schema}}}]
        },
        inferenceConfig={"temperature": 0.5, "maxTokens": 99},
    )
    [request] = server.requests
    assert (request.provider, request.model, request.api_key) == ("bedrock", MODEL, "AKIASECRET")
    assert [(one.role, one.text) for one in request.messages] == [
        ("system", "Be short."),
        ("user", "Where?"),
        ("assistant", ""),
        ("tool", "sunny"),
    ]
    image = request.messages[1].parts[1]
    assert (image.kind, image.media_type, image.base64) == ("image", "image/png", pixel)
    assert request.messages[2].tool_calls == [ToolCall("weather", {"city": "Bern"}, "t1")]
    assert request.messages[3].tool_call_id == "t1"
    assert (request.tools[0].name, request.tools[0].schema) == ("weather", schema)
    assert request.options == {"temperature": 0.5, "max_tokens": 99}


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (HttpError(429), "ThrottlingException", "Rate limit"),
        (HttpError(500), "InternalServerException", "error"),
        (HttpError(503), "ServiceUnavailableException", "unavailable"),
        (ContextTooLong(), "ValidationException", "Input is too long for requested model"),
        (Unauthorized(), "UnrecognizedClientException", "AKIASECRET"),
    ],
)
async def test_error_of_the_provider_has_its_code_and_words(ask, stream, fault, code, words, is_stream):
    with pytest.raises(exceptions.ClientError, match=words) as raised:  # noqa: PT012 (a stream raises when it is read)
        if is_stream:
            [event async for event in stream(fault)]
        await ask(fault)
    assert raised.value.response["Error"]["Code"] == code


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Dropped(), exceptions.ConnectionClosedError),
        (Hung(), exceptions.ReadTimeoutError),
        (Stalled(), exceptions.ReadTimeoutError),
        (Cut(), exceptions.ConnectionClosedError),
    ],
)
async def test_missing_answer_raises_its_class(ask, patience, fault, error):
    with pytest.raises(error):
        await ask(fault, patience(fault))


async def test_malformed_body_is_an_answer_without_output(ask):
    assert "output" not in await ask(MalformedBody())  # the client takes it, and says nothing


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        # Within a stream the client lets the errors of its transport through.
        (Stalled(after_chunks=2, reply=Reply("abcdefgh")), aiohttp.SocketTimeoutError),
        (Cut(after_chunks=2, reply=Reply("abcdefgh")), aiohttp.ClientPayloadError),
        (StreamFailed(after_chunks=2, status=429, reply=Reply("abcdefgh")), exceptions.EventStreamError),
        (MalformedBody(reply=Reply("abcdefgh")), ChecksumMismatch),
    ],
)
async def test_broken_stream_raises_its_class(stream, patience, fault, error):
    seen = ""
    with pytest.raises(error):  # noqa: PT012 (the loop is what raises)
        async for event in stream(fault, patience(fault)):
            seen += event["contentBlockDelta"]["delta"]["text"] if "contentBlockDelta" in event else ""
    assert seen in {"abcd", "ab"}

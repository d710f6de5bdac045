"""Chat and embeddings through Ollama's own client."""

from __future__ import annotations

import base64

import httpx
import ollama
import pytest

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
    embedding,
)

ASK = {"model": "qwen3", "messages": [{"role": "user", "content": "Where?"}]}
FULL = Reply(
    "In Bern.", [ToolCall("weather", {"city": "Bern"})], reasoning="Thinking.", usage=Usage(input=100, output=50)
)


@pytest.fixture
async def client_of():
    """Return a function that makes a client of a server."""
    clients = []

    def make(server, patience_s=20):
        headers = {"Authorization": "Bearer secret"}
        clients.append(ollama.AsyncClient(host=server.url, timeout=patience_s, headers=headers))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


@pytest.fixture
def ask(serve, client_of):
    """Return a function that starts a server with an answer, and calls it."""

    async def call(answer, patience_s=20, **options):
        return await client_of(await serve(answer), patience_s).chat(**ASK, **options)

    return call


async def test_reply_has_text_reasoning_calls_and_usage(ask):
    answer = await ask(FULL)
    assert (answer.message.content, answer.message.thinking) == ("In Bern.", "Thinking.")
    [call] = answer.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Bern"})
    assert (answer.done, answer.done_reason, answer.prompt_eval_count, answer.eval_count) == (True, "stop", 100, 50)


async def test_stream_adds_up_to_the_reply(ask):
    lines = [line async for line in await ask(FULL, stream=True)]
    assert "".join(line.message.content for line in lines) == "In Bern."
    assert "".join(line.message.thinking or "" for line in lines) == "Thinking."
    assert [call.function.name for line in lines for call in line.message.tool_calls or ()] == ["weather"]
    assert [line.done for line in lines] == [False] * 8 + [True]
    assert (lines[-1].prompt_eval_count, lines[-1].eval_count) == (100, 50)


async def test_request_is_understood(serve, client_of, schema, pixel):
    server = await serve(Reply("{}"))
    await client_of(server).chat(
        model="qwen3",
        messages=[
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Where?", "images": [base64.b64decode(pixel)]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Bern"}}}]},
            {"role": "tool", "content": "sunny", "tool_name": "weather"},
        ],
        tools=[{"type": "function", "function": {"name": "weather", "description": "Of now.", "parameters": schema}}],
        format=schema,
        options={"temperature": 0.5, "num_predict": 99},
    )
    [request] = server.requests
    assert (request.provider, request.api_key, request.is_stream) == ("ollama", "secret", False)
    assert [(one.role, one.text) for one in request.messages] == [
        ("system", "Be short."),
        ("user", "Where?"),
        ("assistant", ""),
        ("tool", "sunny"),
    ]
    assert request.messages[1].parts[1].base64 == pixel
    assert request.messages[2].tool_calls == [ToolCall("weather", {"city": "Bern"})]
    assert request.messages[3].tool_call_id == "weather"
    assert request.tools[0].name == "weather"
    assert request.options == {"temperature": 0.5, "max_tokens": 99}
    assert request.output_schema == schema


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (HttpError(429), 429, "Rate limit"),
        (HttpError(503), 503, "unavailable"),
        (ContextTooLong(), 400, "exceeds the context length"),
        (Unauthorized(), 401, "secret"),
        (Reply(tool_calls=[ToolCall("weather", '{"city": "Be')]), 500, "error parsing tool call"),
    ],
)
async def test_error_of_the_provider_has_its_status_and_words(ask, fault, status, words, is_stream):
    with pytest.raises(ollama.ResponseError, match=words) as raised:  # noqa: PT012 (a stream raises when it is read)
        answer = await ask(fault, stream=is_stream)
        [line async for line in answer]
    assert raised.value.status_code == status


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Dropped(), httpx.RemoteProtocolError),
        (Hung(), httpx.ReadTimeout),
        (Stalled(), httpx.ReadTimeout),
        (Cut(), httpx.RemoteProtocolError),
        (MalformedBody(), ValueError),
    ],
)
async def test_missing_answer_raises_its_class(ask, patience, fault, error):
    with pytest.raises(error):
        await ask(fault, patience(fault))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Stalled(after_chunks=2, reply=Reply("abcdefgh")), httpx.ReadTimeout),
        (Cut(after_chunks=2, reply=Reply("abcdefgh")), httpx.RemoteProtocolError),
        (StreamFailed(after_chunks=2, reply=Reply("abcdefgh")), ollama.ResponseError),
        (MalformedBody(reply=Reply("abcdefgh")), ValueError),
    ],
)
async def test_broken_stream_raises_its_class(ask, patience, fault, error):
    seen = ""
    with pytest.raises(error):  # noqa: PT012 (the loop is what raises)
        async for line in await ask(fault, patience(fault), stream=True):
            seen += line.message.content
    assert seen in {"abcd", "ab"}


async def test_embeddings_depend_on_the_text_alone(serve, client_of):
    client = client_of(await serve())
    answer = await client.embed(model="nomic", input=["one", "two"])
    assert answer.embeddings == [pytest.approx(embedding("one")), pytest.approx(embedding("two"))]

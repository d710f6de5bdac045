"""generateContent through Google's own client."""

from __future__ import annotations

import base64

import aiohttp
import pytest
from google import genai
from google.genai import errors, types

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

# What the client does on its first request, with every version of aiohttp so far.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

USAGE = Usage(input=100, output=50, cached=80, reasoning=20)
ASK = {"model": "gemini-3", "contents": "Where?"}
FULL = Reply("In Bern.", [ToolCall("weather", {"city": "Bern"})], reasoning="Thinking.", usage=USAGE)


@pytest.fixture
async def client_of():
    """Return a function that makes a client of a server."""
    clients = []

    def make(server, patience_s=20):
        options = types.HttpOptions(
            base_url=server.url, timeout=round(patience_s * 1_000), retry_options=types.HttpRetryOptions(attempts=1)
        )
        clients.append(genai.Client(api_key="secret", vertexai=False, http_options=options))
        return clients[-1].aio.models

    yield make
    for client in clients:
        await client.aio.aclose()
        client.close()


@pytest.fixture
def ask(serve, client_of):
    """Return a function that starts a server with an answer, and calls it."""

    async def call(answer, patience_s=20, **options):
        return await client_of(await serve(answer), patience_s).generate_content(**{**ASK, **options})

    return call


@pytest.fixture
def stream(serve, client_of):
    """Return a function that starts a server with an answer, and yields what it streams."""

    async def call(answer, patience_s=20):
        client = client_of(await serve(answer), patience_s)
        async for chunk in await client.generate_content_stream(**ASK):
            yield chunk

    return call


def check_usage(usage):
    assert (usage.prompt_token_count, usage.cached_content_token_count) == (100, 80)
    assert (usage.candidates_token_count, usage.thoughts_token_count, usage.total_token_count) == (30, 20, 150)


async def test_reply_has_text_reasoning_calls_and_usage(ask):
    answer = await ask(FULL)
    thought, text, call = answer.candidates[0].content.parts
    assert (thought.thought, thought.text, text.text) == (True, "Thinking.", "In Bern.")
    assert (call.function_call.name, call.function_call.args) == ("weather", {"city": "Bern"})
    assert call.thought_signature
    assert answer.candidates[0].finish_reason == types.FinishReason.STOP
    assert answer.model_version == "gemini-3"
    check_usage(answer.usage_metadata)


async def test_stream_adds_up_to_the_reply(stream):
    chunks = [chunk async for chunk in stream(FULL)]
    parts = [part for chunk in chunks for part in chunk.candidates[0].content.parts or ()]
    assert "".join(part.text for part in parts if part.thought) == "Thinking."
    assert "".join(part.text for part in parts if part.text and not part.thought) == "In Bern."
    assert [part.function_call.args for part in parts if part.function_call] == [{"city": "Bern"}]
    assert chunks[-1].candidates[0].finish_reason == types.FinishReason.STOP
    check_usage(chunks[-1].usage_metadata)


async def test_refusals_have_their_reasons(ask):
    refused = await ask(Reply("", finish_reason="refusal"))
    assert refused.candidates[0].finish_reason == types.FinishReason.SAFETY
    blocked = await ask(Reply("", finish_reason="content_filter"))
    assert blocked.candidates is None
    assert blocked.prompt_feedback.block_reason == types.BlockedReason.SAFETY
    long = await ask(Reply("In B", finish_reason="length"))
    assert long.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS


async def test_malformed_arguments_are_a_finish_reason(ask):
    answer = await ask(Reply(tool_calls=[ToolCall("weather", '{"city": "Be')]))
    assert answer.candidates[0].finish_reason == types.FinishReason.MALFORMED_FUNCTION_CALL
    assert answer.function_calls is None


async def test_request_is_understood(serve, client_of, schema, pixel):
    server = await serve(Reply("{}"))
    await client_of(server).generate_content(
        model="gemini-3",
        contents=[
            types.Content(
                role="user",
                parts=[
                    types.Part.from_text(text="Where?"),
                    types.Part.from_bytes(data=base64.b64decode(pixel), mime_type="image/png"),
                ],
            ),
            types.Content(role="model", parts=[types.Part.from_function_call(name="weather", args={"city": "Bern"})]),
            types.Content(
                role="user", parts=[types.Part.from_function_response(name="weather", response={"result": "sunny"})]
            ),
        ],
        config=types.GenerateContentConfig(
            system_instruction="Be short.",
            temperature=0.5,
            max_output_tokens=99,
            response_mime_type="application/json",
            response_json_schema=schema,
            tools=[
                types.Tool(
                    function_declarations=[
                        types.FunctionDeclaration(name="weather", description="Of now.", parameters_json_schema=schema)
                    ]
                )
            ],
            http_options=types.HttpOptions(headers={"Idempotency-Key": "k-1"}),
        ),
    )
    [request] = server.requests
    assert (request.provider, request.model, request.api_key) == ("gemini", "gemini-3", "secret")
    assert request.idempotency_key == "k-1"
    assert [(one.role, one.text) for one in request.messages] == [
        ("system", "Be short."),
        ("user", "Where?"),
        ("assistant", ""),
        ("tool", '{"result":"sunny"}'),
    ]
    image = request.messages[1].parts[1]
    assert (image.kind, image.media_type, base64.urlsafe_b64decode(image.base64)) == (
        "image",
        "image/png",
        base64.b64decode(pixel),
    )
    assert request.messages[2].tool_calls == [ToolCall("weather", {"city": "Bern"})]
    assert request.messages[3].tool_call_id == "weather"
    assert (request.tools[0].name, request.tools[0].schema) == ("weather", schema)
    assert request.options == {"temperature": 0.5, "max_tokens": 99}
    assert request.output_schema == schema


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "error", "code", "status"),
    [
        (HttpError(429, retry_after_s=2), errors.ClientError, 429, "RESOURCE_EXHAUSTED"),
        (HttpError(500), errors.ServerError, 500, "INTERNAL"),
        (HttpError(503), errors.ServerError, 503, "UNAVAILABLE"),
        (ContextTooLong(), errors.ClientError, 400, "INVALID_ARGUMENT"),
        (Unauthorized(), errors.ClientError, 401, "UNAUTHENTICATED"),
    ],
)
async def test_error_of_the_provider_raises_its_class(ask, stream, fault, error, code, status, is_stream):
    with pytest.raises(error) as raised:  # noqa: PT012 (a stream raises when it is read)
        if is_stream:
            [chunk async for chunk in stream(fault)]
        await ask(fault)
    assert (raised.value.code, raised.value.status) == (code, status)


async def test_errors_have_the_provider_s_words(ask):
    with pytest.raises(errors.ClientError, match="exceeds the maximum number of tokens"):
        await ask(ContextTooLong())
    with pytest.raises(errors.ClientError, match="secret"):
        await ask(Unauthorized())
    with pytest.raises(errors.ClientError) as limited:
        await ask(HttpError(429, retry_after_s=2))
    assert limited.value.details["error"]["details"][0]["retryDelay"] == "2s"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        # The client lets the errors of its transport through.
        (Dropped(), aiohttp.ServerDisconnectedError),
        (Hung(), TimeoutError),
        (Stalled(), TimeoutError),
        (Cut(), aiohttp.ClientPayloadError),
        (MalformedBody(), ValueError),
    ],
)
async def test_missing_answer_raises_its_class(ask, patience, fault, error):
    with pytest.raises(error):
        await ask(fault, patience(fault))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Stalled(after_chunks=2, reply=Reply("abcdefgh")), TimeoutError),
        (Cut(after_chunks=2, reply=Reply("abcdefgh")), aiohttp.ClientPayloadError),
        (StreamFailed(after_chunks=2, status=503, reply=Reply("abcdefgh")), errors.ServerError),
        (MalformedBody(reply=Reply("abcdefgh")), errors.UnknownApiResponseError),
    ],
)
async def test_broken_stream_raises_its_class(stream, patience, fault, error):
    seen = ""
    with pytest.raises(error):  # noqa: PT012 (the loop is what raises)
        async for chunk in stream(fault, patience(fault)):
            seen += chunk.text
    assert seen in {"abcd", "ab"}

"""Messages through Anthropic's own client."""

from __future__ import annotations

import anthropic
import httpx2
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
)

USAGE = Usage(input=100, output=50, cached=60, cache_written=30, reasoning=20)
ASK = {"model": "claude", "max_tokens": 99, "messages": [{"role": "user", "content": "Where?"}]}
FULL = Reply("In Bern.", [ToolCall("weather", {"city": "Bern"}), ToolCall("time")], reasoning="Thinking.", usage=USAGE)


@pytest.fixture
async def client_of():
    """Return a function that makes a client of a server."""
    clients = []

    def make(server):
        clients.append(anthropic.AsyncAnthropic(base_url=server.url, api_key="sk-secret", max_retries=0, timeout=20))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


@pytest.fixture
def ask(serve, client_of):
    """Return a function that starts a server with an answer, and calls it."""

    async def call(answer, **options):
        return await client_of(await serve(answer)).messages.create(**{**ASK, **options})

    return call


def check(message):
    thinking, text, weather, time = message.content
    assert (thinking.type, thinking.thinking, bool(thinking.signature)) == ("thinking", "Thinking.", True)
    assert (text.type, text.text) == ("text", "In Bern.")
    assert (weather.type, weather.id, weather.name, weather.input) == (
        "tool_use",
        "call_1_0",
        "weather",
        {"city": "Bern"},
    )
    assert (time.name, time.input) == ("time", {})
    assert message.stop_reason == "tool_use"
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (10, 60, 30)
    assert (usage.output_tokens, usage.output_tokens_details.thinking_tokens) == (50, 20)


async def test_reply_has_text_reasoning_calls_and_usage(ask):
    message = await ask(FULL)
    check(message)
    assert message._request_id == "req_1"


async def test_stream_adds_up_to_the_reply(serve, client_of):
    async with client_of(await serve(FULL)).messages.stream(**ASK) as stream:
        events = [event async for event in stream]
        check(await stream.get_final_message())
    assert "".join(event.text for event in events if event.type == "text") == "In Bern."
    assert "".join(event.thinking for event in events if event.type == "thinking") == "Thinking."
    assert "".join(event.partial_json for event in events if event.type == "input_json") == '{"city":"Bern"}{}'


async def test_reply_without_calls_ends_the_turn(ask):
    assert (await ask(Reply("In Bern."))).stop_reason == "end_turn"
    assert (await ask(Reply("In B", finish_reason="length"))).stop_reason == "max_tokens"


async def test_refusal_is_a_stop_reason(ask):
    refused = await ask(Reply("Not this.", finish_reason="refusal"))
    assert (refused.stop_reason, refused.stop_details.explanation) == ("refusal", "Not this.")


async def test_request_is_understood(serve, client_of, schema, pixel):
    server = await serve(Reply('{"city":"Bern"}'))
    await client_of(server).messages.create(
        model="claude",
        max_tokens=99,
        system=[{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Where?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": pixel}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Bern"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "sunny"},
                    {"type": "text", "text": "And now?"},
                ],
            },
        ],
        tools=[{"name": "weather", "description": "Of now.", "input_schema": schema}],
        output_config={"format": {"type": "json_schema", "schema": schema}},
        extra_headers={"Idempotency-Key": "k-1"},
    )
    [request] = server.requests
    assert (request.provider, request.model, request.api_key, request.idempotency_key) == (
        "anthropic",
        "claude",
        "sk-secret",
        "k-1",
    )
    assert [(one.role, one.text) for one in request.messages] == [
        ("system", "Be short."),
        ("user", "Where?"),
        ("assistant", ""),
        ("tool", "sunny"),
        ("user", "And now?"),
    ]
    image = request.messages[1].parts[1]
    assert (image.kind, image.media_type, image.base64) == ("image", "image/png", pixel)
    assert request.messages[2].tool_calls == [ToolCall("weather", {"city": "Bern"}, "t1")]
    assert (request.messages[2].reasoning, request.messages[3].tool_call_id) == ("Hm.", "t1")
    assert (request.tools[0].name, request.tools[0].schema) == ("weather", schema)
    assert request.options == {"max_tokens": 99}
    assert request.output_schema == schema


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "error", "kind"),
    [
        (HttpError(429, retry_after_s=3), anthropic.RateLimitError, "rate_limit_error"),
        (HttpError(500), anthropic.InternalServerError, "api_error"),
        (HttpError(503), anthropic.InternalServerError, "api_error"),
        (HttpError(529), anthropic.InternalServerError, "overloaded_error"),
        (HttpError(403), anthropic.PermissionDeniedError, "permission_error"),
        (ContextTooLong(), anthropic.BadRequestError, "invalid_request_error"),
        (Unauthorized(), anthropic.AuthenticationError, "authentication_error"),
    ],
)
async def test_error_of_the_provider_raises_its_class(ask, fault, error, kind, is_stream):
    with pytest.raises(error) as raised:
        await ask(fault, stream=is_stream)
    assert (raised.value.type, raised.value.request_id) == (kind, "req_1")


async def test_errors_have_the_provider_s_words(ask):
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        await ask(ContextTooLong())
    with pytest.raises(anthropic.AuthenticationError, match="sk-secret"):
        await ask(Unauthorized())


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "error"), [(Dropped(), anthropic.APIConnectionError), (Hung(), anthropic.APITimeoutError)]
)
async def test_missing_answer_raises_its_class(ask, patience, fault, error, is_stream):
    with pytest.raises(error):
        await ask(fault, stream=is_stream, timeout=patience(fault))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        # Within a stream the client lets the errors of its transport through.
        (Stalled(after_chunks=2, reply=Reply("abcdefgh")), httpx2.ReadTimeout),
        (Cut(after_chunks=2, reply=Reply("abcdefgh")), httpx2.RemoteProtocolError),
        (StreamFailed(after_chunks=2, reply=Reply("abcdefgh")), anthropic.APIStatusError),
        (MalformedBody(reply=Reply("abcdefgh")), ValueError),
    ],
)
async def test_broken_stream_raises_its_class(ask, patience, fault, error):
    seen = ""
    stream = await ask(fault, stream=True, timeout=patience(fault))
    with pytest.raises(error):  # noqa: PT012 (the loop is what raises)
        async for event in stream:
            seen += event.delta.text if event.type == "content_block_delta" else ""
    assert seen in {"abcd", "ab"}


async def test_malformed_arguments_are_sent_as_they_are(ask):
    wrong = Reply(tool_calls=[ToolCall("weather", '{"city": "Be')])
    assert (await ask(wrong)).content[0].input == '{"city": "Be'
    events = [event async for event in await ask(wrong, stream=True)]
    deltas = [event.delta.partial_json for event in events if event.type == "content_block_delta"]
    assert "".join(deltas) == '{"city": "Be'

"""Responses through OpenAI's own client."""

from __future__ import annotations

import openai
import pytest

from agentflow.testing.model_server import (
    ContextTooLong,
    Cut,
    HttpError,
    MalformedBody,
    Reply,
    Stalled,
    StreamFailed,
    ToolCall,
    Unauthorized,
    Usage,
)

USAGE = Usage(input=100, output=50, cached=80, reasoning=20)
ASK = {"model": "gpt-5", "input": "Where?"}


@pytest.fixture
async def ask(serve):
    """Return a function that starts a server with an answer, and calls it."""
    clients = []

    async def call(answer, **options):
        server = await serve(answer)
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-secret", max_retries=0, timeout=20)
        clients.append(client)
        return await client.responses.create(**{**ASK, **options})

    yield call
    for client in clients:
        await client.close()


async def test_reply_has_text_reasoning_calls_and_usage(ask):
    calls = [ToolCall("weather", {"city": "Bern"}), ToolCall("time", {})]
    answer = await ask(Reply("In Bern.", calls, reasoning="Thinking of it.", usage=USAGE))
    assert (answer.output_text, answer.status) == ("In Bern.", "completed")
    reasoning, message, weather, time = answer.output
    assert (reasoning.type, reasoning.summary[0].text, message.type) == ("reasoning", "Thinking of it.", "message")
    assert (weather.type, weather.call_id, weather.arguments) == ("function_call", "call_1_0", '{"city":"Bern"}')
    assert (time.name, time.arguments) == ("time", "{}")
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (100, 50, 150)
    assert (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens) == (80, 20)


async def test_stream_adds_up_to_the_reply(serve):
    reply = Reply("In Bern.", [ToolCall("weather", {"city": "Bern"})], reasoning="Thinking of it.", usage=USAGE)
    server = await serve(reply)
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k")
    async with client, client.responses.stream(**ASK) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    deltas = dict.fromkeys(("output_text", "reasoning_summary_text", "function_call_arguments"), "")
    for event in events:
        if event.type.endswith(".delta"):
            deltas[event.type.split(".")[1]] += event.delta
    assert deltas == {
        "output_text": "In Bern.",
        "reasoning_summary_text": "Thinking of it.",
        "function_call_arguments": '{"city":"Bern"}',
    }
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert (final.output_text, final.usage.output_tokens_details.reasoning_tokens) == ("In Bern.", 20)
    assert final.output[2].arguments == '{"city":"Bern"}'


async def test_every_event_is_one_that_the_client_knows(ask):
    reply = Reply("In Bern.", [ToolCall("weather", {"city": "Bern"})], reasoning="Thinking.", usage=USAGE)
    async for event in await ask(reply, stream=True):
        type(event).model_validate(
            event.model_dump(by_alias=True, exclude_unset=True)
        )  # with all the fields that it must have


async def test_refusal_and_limits_are_told(ask):
    refused = await ask(Reply("I will not.", finish_reason="refusal"))
    assert refused.output[0].content[0].refusal == "I will not."
    events = [event async for event in await ask(Reply("I will not.", finish_reason="refusal"), stream=True)]
    assert "".join(event.delta for event in events if event.type == "response.refusal.delta") == "I will not."
    filtered = await ask(Reply("In B", finish_reason="content_filter"))
    assert (filtered.status, filtered.incomplete_details.reason) == ("incomplete", "content_filter")
    cut_short = [event async for event in await ask(Reply("In B", finish_reason="length"), stream=True)][-1]
    assert cut_short.type == "response.incomplete"
    assert cut_short.response.incomplete_details.reason == "max_output_tokens"


async def test_request_is_understood(serve, schema, pixel):
    server = await serve(Reply('{"city":"Bern"}'))
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-secret") as client:
        await client.responses.create(
            model="gpt-5",
            instructions="Be short.",
            input=[
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "Where?"},
                        {"type": "input_image", "image_url": f"data:image/png;base64,{pixel}", "detail": "auto"},
                    ],
                },
                {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
                {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city":"Bern"}'},
                {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            ],
            tools=[{"type": "function", "name": "weather", "parameters": schema, "strict": True}],
            temperature=0.5,
            max_output_tokens=99,
            text={"format": {"type": "json_schema", "name": "place", "schema": schema}},
        )
    [request] = server.requests
    assert (request.provider, request.api) == ("openai", "responses")
    assert [(one.role, one.text) for one in request.messages] == [
        ("system", "Be short."),
        ("user", "Where?"),
        ("assistant", ""),
        ("tool", "sunny"),
    ]
    assert request.messages[1].parts[1].base64 == pixel
    assert request.messages[2].reasoning == "Hm."
    assert request.messages[2].tool_calls == [ToolCall("weather", {"city": "Bern"}, "c1")]
    assert request.messages[3].tool_call_id == "c1"
    assert (request.tools[0].name, request.tools[0].schema) == ("weather", schema)
    assert request.options == {"temperature": 0.5, "max_tokens": 99}
    assert request.output_schema == schema


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "error", "code"),
    [
        (HttpError(429), openai.RateLimitError, "rate_limit_exceeded"),
        (HttpError(500), openai.InternalServerError, None),
        (ContextTooLong(), openai.BadRequestError, "context_length_exceeded"),
        (Unauthorized(), openai.AuthenticationError, "invalid_api_key"),
    ],
)
async def test_error_of_the_provider_raises_its_class(ask, fault, error, code, is_stream):
    with pytest.raises(error) as raised:
        await ask(fault, stream=is_stream)
    assert raised.value.code == code


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Stalled(after_chunks=2, reply=Reply("abcdefgh")), openai.APITimeoutError),
        (Cut(after_chunks=2, reply=Reply("abcdefgh")), openai.APIConnectionError),
        (MalformedBody(reply=Reply("abcdefgh")), ValueError),
    ],
)
async def test_broken_stream_raises_its_class(ask, patience, fault, error):
    seen = ""
    stream = await ask(fault, stream=True, timeout=patience(fault))
    with pytest.raises(error):  # noqa: PT012 (the loop is what raises)
        async for event in stream:
            seen += event.delta if event.type == "response.output_text.delta" else ""
    assert seen in {"abcd", "ab"}


async def test_error_in_a_stream_is_an_event(ask):
    events = [event async for event in await ask(StreamFailed(status=429), stream=True)]
    assert (events[-1].type, events[-1].code) == ("error", "requests")


async def test_azure_has_a_path_of_its_own(serve):
    server = await serve(Reply("In Bern."))
    azure = openai.AsyncAzureOpenAI(azure_endpoint=server.url, api_key="k", api_version="2025-03-01")
    async with azure as client:
        assert (await client.responses.create(**ASK)).output_text == "In Bern."
    assert server.requests[0].provider == "azure"

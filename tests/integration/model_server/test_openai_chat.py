"""Chat Completions through OpenAI's own client."""

from __future__ import annotations

import openai
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

USAGE = Usage(input=100, output=50, cached=80, reasoning=20)
ASK = {"model": "gpt-5", "messages": [{"role": "user", "content": "Where?"}]}
CALLS = [ToolCall("weather", {"city": "Bern"}), ToolCall("time", {"zone": "CET"}, id="call_mine")]


@pytest.fixture
async def ask(serve):
    """Return a function that starts a server with an answer, and calls it."""
    clients = []

    async def call(answer, **options):
        server = await serve(answer)
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-secret", max_retries=0, timeout=20)
        clients.append(client)
        return await client.chat.completions.create(**{**ASK, **options})

    yield call
    for client in clients:
        await client.close()


async def test_reply_has_text_reasoning_and_usage(ask):
    answer = await ask(Reply("In Bern.", reasoning="Thinking of it.", usage=USAGE))
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("In Bern.", "stop")
    assert choice.message.reasoning_content == "Thinking of it."
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (100, 50, 150)
    assert answer.usage.prompt_tokens_details.cached_tokens == 80
    assert answer.usage.completion_tokens_details.reasoning_tokens == 20
    assert answer._request_id == "req_1"


async def test_tool_calls_come_whole(ask):
    answer = await ask(Reply(tool_calls=CALLS))
    called = [(one.id, one.function.name, one.function.arguments) for one in answer.choices[0].message.tool_calls]
    assert called == [("call_1_0", "weather", '{"city":"Bern"}'), ("call_mine", "time", '{"zone":"CET"}')]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None


async def test_stream_adds_up_to_the_reply(ask):
    stream = await ask(
        Reply("In Bern.", reasoning="Thinking.", usage=USAGE), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "In Bern."
    assert "".join(getattr(delta, "reasoning_content", "") or "" for delta in deltas) == "Thinking."
    assert sum(bool(delta.content) for delta in deltas) == 4
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert (chunks[-1].choices, chunks[-1].usage.prompt_tokens) == ([], 100)


async def test_stream_without_include_usage_has_none(ask):
    chunks = [chunk async for chunk in await ask(Reply("In Bern."), stream=True)]
    assert [chunk.usage for chunk in chunks if chunk.usage] == []


async def test_arguments_of_tools_come_in_pieces(serve):
    server = await serve(Reply("Let me see.", tool_calls=CALLS))
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k")
    async with client, client.chat.completions.stream(**ASK) as stream:
        events = [event async for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = await stream.get_final_completion()
    assert len([event for event in events if event.arguments_delta]) == 8
    message = final.choices[0].message
    assert message.content == "Let me see."
    assert [(one.id, one.function.arguments) for one in message.tool_calls] == [
        ("call_1_0", '{"city":"Bern"}'),
        ("call_mine", '{"zone":"CET"}'),
    ]


async def test_request_is_understood(serve, schema, pixel):
    server = await serve(Reply('{"city":"Bern"}'))
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-secret") as client:
        await client.chat.completions.create(
            model="gpt-5",
            messages=[
                {"role": "developer", "content": "Be short."},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Where?"},
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{pixel}"}},
                        {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}},
                    ],
                },
                {
                    "role": "assistant",
                    "tool_calls": [
                        {
                            "id": "c1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city":"Bern"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            ],
            tools=[
                {"type": "function", "function": {"name": "weather", "description": "Of now.", "parameters": schema}}
            ],
            temperature=0.5,
            max_completion_tokens=99,
            response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": schema}},
            extra_headers={"Idempotency-Key": "run-1/step-2"},
        )
    [request] = server.requests
    assert (request.provider, request.api, request.model, request.number) == ("openai", "chat", "gpt-5", 1)
    assert (request.path, request.is_stream, request.is_answered) == ("/v1/chat/completions", False, True)
    assert [one.role for one in request.messages] == ["system", "user", "assistant", "tool"]
    asked = request.messages[1]
    assert asked.text == "Where?"
    assert [(part.kind, part.media_type, part.base64, part.url) for part in asked.parts[1:]] == [
        ("image", "image/png", pixel, ""),
        ("image", "", "", "https://example.com/x.png"),
    ]
    assert request.messages[2].tool_calls == [ToolCall("weather", {"city": "Bern"}, "c1")]
    assert (request.messages[3].tool_call_id, request.text) == ("c1", "sunny")
    assert [(tool.name, tool.description, tool.schema) for tool in request.tools] == [("weather", "Of now.", schema)]
    assert request.options == {"temperature": 0.5, "max_tokens": 99}
    assert request.output_schema == schema
    assert (request.idempotency_key, request.api_key) == ("run-1/step-2", "sk-secret")
    assert server.count(idempotency_key="run-1/step-2") == server.count(model="gpt-5") == 1


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "error", "code"),
    [
        (HttpError(429), openai.RateLimitError, "rate_limit_exceeded"),
        (HttpError(429, code="insufficient_quota"), openai.RateLimitError, "insufficient_quota"),
        (HttpError(500), openai.InternalServerError, None),
        (HttpError(503), openai.InternalServerError, None),
        (HttpError(529), openai.InternalServerError, None),
        (HttpError(403), openai.PermissionDeniedError, None),
        (HttpError(404), openai.NotFoundError, "model_not_found"),
        (HttpError(400, code="content_filter"), openai.BadRequestError, "content_filter"),
        (ContextTooLong(), openai.BadRequestError, "context_length_exceeded"),
        (Unauthorized(), openai.AuthenticationError, "invalid_api_key"),
    ],
)
async def test_error_of_the_provider_raises_its_class(ask, fault, error, code, is_stream):
    with pytest.raises(error) as raised:
        await ask(fault, stream=is_stream)
    assert raised.value.code == code


async def test_unauthorized_shows_the_key(ask):
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key provided: sk-secret"):
        await ask(Unauthorized())


async def test_error_says_how_long_to_wait(ask):
    with pytest.raises(openai.RateLimitError) as raised:
        await ask(HttpError(429, retry_after_s=1.5, retry_after_ms=1_500))
    headers = raised.value.response.headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1.5", "1500")


@pytest.mark.parametrize("is_stream", [False, True])
async def test_dropped_connection_is_a_connection_error(ask, is_stream):
    with pytest.raises(openai.APIConnectionError):
        await ask(Dropped(), stream=is_stream)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_hung_request_is_a_timeout(ask, is_stream):
    with pytest.raises(openai.APITimeoutError):
        await ask(Hung(), stream=is_stream, timeout=0.2)


async def test_stalled_body_is_a_timeout(ask):
    with pytest.raises(openai.APITimeoutError):
        await ask(Stalled(), timeout=0.2)


async def test_cut_body_is_a_connection_error(ask):
    with pytest.raises(openai.APIConnectionError):
        await ask(Cut())


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Stalled(after_chunks=2, reply=Reply("abcdefgh")), openai.APITimeoutError),
        (Cut(after_chunks=2, reply=Reply("abcdefgh")), openai.APIConnectionError),
        (StreamFailed(after_chunks=2, reply=Reply("abcdefgh")), openai.APIError),
    ],
)
async def test_stream_breaks_after_the_pieces_that_were_asked_for(ask, patience, fault, error):
    seen = []
    stream = await ask(fault, stream=True, timeout=patience(fault))
    with pytest.raises(error):  # noqa: PT012 (the loop is what raises)
        async for chunk in stream:
            seen.append(chunk.choices[0].delta.content)  # noqa: PERF401 (what was seen before the error)
    assert seen == ["", "ab", "cd"]


async def test_malformed_body_is_no_completion(ask):
    with pytest.raises(ValueError, match="Unterminated"):  # the client passes json's own error on
        await ask(MalformedBody())


async def test_malformed_piece_ends_a_stream(ask):
    with pytest.raises(ValueError, match="Expecting"):
        [chunk async for chunk in await ask(MalformedBody(), stream=True)]


async def test_malformed_arguments_are_sent_as_they_are(ask):
    answer = await ask(Reply(tool_calls=[ToolCall("weather", '{"city": "Be')]))
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"city": "Be'


async def test_refusal_and_content_filter_are_told_apart(ask):
    refused = (await ask(Reply("I will not.", finish_reason="refusal"))).choices[0]
    assert (refused.message.refusal, refused.message.content, refused.finish_reason) == ("I will not.", None, "stop")
    filtered = (await ask(Reply("", finish_reason="content_filter"))).choices[0]
    assert filtered.finish_reason == "content_filter"


async def test_refusal_is_streamed(ask):
    chunks = [chunk async for chunk in await ask(Reply("I will not.", finish_reason="refusal"), stream=True)]
    assert "".join(chunk.choices[0].delta.refusal or "" for chunk in chunks) == "I will not."


@pytest.mark.parametrize("is_stream", [False, True])
async def test_azure_has_a_path_and_errors_of_its_own(serve, is_stream):
    server = await serve([Reply("In Bern."), HttpError(429, retry_after_s=2), ContextTooLong()])
    azure = openai.AsyncAzureOpenAI(
        azure_endpoint=server.url, api_key="azure-key", api_version="2025-03-01", max_retries=0
    )
    async with azure as client:
        answer = await client.chat.completions.create(**ASK, stream=is_stream)
        if is_stream:
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in answer]) == "In Bern."
        else:
            assert answer.choices[0].message.content == "In Bern."
        with pytest.raises(openai.RateLimitError) as limited:
            await client.chat.completions.create(**ASK, stream=is_stream)
        assert (limited.value.code, limited.value.response.headers["retry-after"]) == ("429", "2")
        with pytest.raises(openai.BadRequestError) as too_long:
            await client.chat.completions.create(**ASK, stream=is_stream)
        assert too_long.value.code == "context_length_exceeded"
    request = server.requests[0]
    assert (request.provider, request.model, request.api_key) == ("azure", "gpt-5", "azure-key")
    assert request.path == "/openai/deployments/gpt-5/chat/completions"


async def test_dashscope_has_a_path_of_its_own(serve):
    server = await serve([Reply("In Bern.", reasoning="Hm."), ContextTooLong()])
    async with openai.AsyncOpenAI(base_url=f"{server.url}/compatible-mode/v1", api_key="k", max_retries=0) as client:
        answer = await client.chat.completions.create(**ASK)
        assert answer.choices[0].message.reasoning_content == "Hm."
        with pytest.raises(openai.BadRequestError, match="Range of input length"):
            await client.chat.completions.create(**ASK)
    assert {request.provider for request in server.requests} == {"dashscope"}


async def test_embeddings_depend_on_the_text_alone(serve):
    server = await serve(Reply(usage=Usage(input=7)))
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k") as client:
        packed = await client.embeddings.create(model="small", input=["one", "two", "one"])
        plain = await client.embeddings.create(model="small", input="one", encoding_format="float", dimensions=16)
    assert [one.embedding for one in packed.data] == [pytest.approx(embedding(text)) for text in ("one", "two", "one")]
    assert packed.data[0].embedding != packed.data[1].embedding
    assert (plain.data[0].embedding, plain.usage.prompt_tokens) == (embedding("one", 16), 7)
    assert [one.text for one in server.requests[0].messages] == ["one", "two", "one"]

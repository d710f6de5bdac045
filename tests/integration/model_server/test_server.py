"""Who decides the answers, what is counted, and how it is waited, whatever the protocol."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from agentflow.errors import ConfigError
from agentflow.testing.model_server import HttpError, Hung, Reply, Stalled, ToolCall, Usage
from agentflow.testing.model_server.script import read_replies, read_script

CHAT = "/v1/chat/completions"


@pytest.fixture
async def http():
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


async def chat(http, server, text="hello", model="m", path=CHAT, **options):
    """Return status and body of a call."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], **options}
    async with http.post(server.url + path, json=body, headers={"Idempotency-Key": f"{model}/{text}"}) as answer:
        return answer.status, await answer.json()


def text_of(answer):
    return answer[1]["choices"][0]["message"]["content"]


async def test_without_a_script_the_server_echoes(serve, http):
    assert text_of(await chat(http, await serve(), "hello")) == "hello"


async def test_list_is_given_in_order_and_its_end_is_an_error(serve, http):
    server = await serve([Reply("one"), HttpError(500), Reply("two")])
    answers = [await chat(http, server) for _ in range(4)]
    assert [status for status, _ in answers] == [200, 500, 200, 400]
    assert "no reply left" in answers[3][1]["error"]["message"]
    assert await chat(http, server, path="/v1/embeddings", input="x") != answers[3]  # takes nothing of a list
    server.reset()
    assert text_of(await chat(http, server)) == "one"


async def test_function_decides_by_what_it_sees(serve, http):
    def answer(request):
        return HttpError(429) if request.model == "busy" else Reply(f"{request.number}: {request.text}")

    server = await serve(answer)
    assert (await chat(http, server, model="busy"))[0] == 429
    assert text_of(await chat(http, server, "hello")) == "2: hello"


async def test_requests_are_counted_by_model_and_key(serve, http):
    server = await serve(Reply("x"))
    for model, text in (("a", "1"), ("a", "1"), ("a", "2"), ("b", "1")):
        await chat(http, server, text, model)
    assert (server.count(), server.count("a"), server.count("b"), server.count("c")) == (4, 3, 1, 0)
    assert (server.count(idempotency_key="a/1"), server.count("b", "a/1")) == (2, 0)
    assert [request.number for request in server.requests] == [1, 2, 3, 4]
    assert server.answered == 4


async def test_highest_number_of_requests_at_a_time_is_kept(serve, http):
    everybody = asyncio.Barrier(5)

    async def answer(request):
        await everybody.wait()
        return Reply("x")

    server = await serve(answer)
    await asyncio.gather(*(chat(http, server) for _ in range(5)))
    assert (server.in_flight_max, server.in_flight, server.answered) == (5, 0, 5)


@pytest.mark.parametrize("fault", [Hung(), Stalled()])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_request_of_a_client_that_goes_away_is_received_and_not_answered(serve, http, fault, is_stream):
    came = asyncio.Event()

    def answer(request):
        came.set()
        return fault

    server = await serve(answer)
    call = asyncio.create_task(chat(http, server, stream=is_stream))
    await came.wait()
    call.cancel()
    while server.in_flight:  # noqa: ASYNC110 (the server has no event for it)
        await asyncio.sleep(0)
    assert (server.count(), server.answered, [one.is_answered for one in server.requests]) == (1, 0, [False])


async def test_without_requests_kept_they_are_still_counted(serve, http):
    server = await serve(Reply("x"), keep_requests=False)
    await chat(http, server)
    assert (server.requests, server.count("m", "m/hello"), server.answered) == ([], 1, 1)


async def test_reply_that_never_changes_is_encoded_once_per_shape(serve, http):
    server = await serve(Reply("x"), keep_requests=False)
    first, second, other = [(await chat(http, server, model=model))[1] for model in ("a", "a", "b")]
    assert first == second
    assert (first["model"], other["model"]) == ("a", "b")


async def test_calls_of_tools_have_ids_of_their_own_although_the_reply_never_changes(serve, http):
    server = await serve(Reply(tool_calls=[ToolCall("t")]))
    ids = {(await chat(http, server))[1]["choices"][0]["message"]["tool_calls"][0]["id"] for _ in range(3)}
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("reply", "least_s"), [(Reply("x"), 0.05), (Reply("x", latency_ms=100), 0.1), (HttpError(500), 0.05)]
)
async def test_answer_waits_for_its_latency(serve, http, reply, least_s):
    server = await serve(reply, latency_ms=50)
    clock = asyncio.get_running_loop().time
    begun = clock()
    await chat(http, server)
    assert clock() - begun >= least_s


async def test_pieces_of_a_stream_come_one_by_one(serve, http):
    server = await serve(Reply("abcd", chunk_latency_ms=20))
    body = {"model": "m", "messages": [], "stream": True}
    clock = asyncio.get_running_loop().time
    async with http.post(server.url + CHAT, json=body) as answer:
        times = [clock() async for line in answer.content if b'"content":"' in line]
    assert times[-1] - times[0] >= 0.05


async def test_body_that_is_no_json_is_an_error_and_no_request(serve, http):
    server = await serve()
    async with http.post(server.url + CHAT, data=b'{"model": ') as answer:
        assert (answer.status, (await answer.json())["error"]["type"]) == (400, "invalid_request_error")
    assert server.count() == 0


@pytest.mark.parametrize("name", ["Idempotency-Key", "X-Idempotency-Key", "idempotency-key"])
async def test_idempotency_key_has_two_names(serve, http, name):
    server = await serve()
    async with http.post(server.url + CHAT, json={"model": "m", "messages": []}, headers={name: "k-1"}):
        assert server.requests[0].idempotency_key == "k-1"
    assert (server.count(idempotency_key="k-1"), server.count("m", "k-1"), server.count(idempotency_key="k-2")) == (
        1,
        1,
        0,
    )


async def test_unknown_path_is_not_found(serve, http):
    server = await serve()
    async with http.post(f"{server.url}/v2/other", json={}) as answer:
        assert answer.status == 404


async def test_script_that_fails_is_an_error_of_the_server(serve, http, caplog):
    def answer(request):
        raise LookupError("the test is wrong")

    server = await serve(answer)
    async with http.post(server.url + CHAT, json={"model": "m"}) as answered:
        assert answered.status == 500
    assert "the test is wrong" in caplog.text


def test_file_of_replies_holds_replies_and_faults(tmp_path):
    file = tmp_path / "replies.json"
    call = {"name": "t", "arguments": {"a": 1}}
    items = [
        {"text": "hi", "usage": {"input": 3}, "tool_calls": [call]},
        {"fault": "http-error", "status": 429, "retry_after_s": 2},
        {"fault": "stalled", "after_chunks": 2, "reply": {"text": "abc"}},
        {"fault": "hung"},
    ]
    file.write_text(json.dumps(items))
    assert read_replies(file) == [
        Reply("hi", [ToolCall("t", {"a": 1})], usage=Usage(input=3)),
        HttpError(429, retry_after_s=2),
        Stalled(2, Reply("abc")),
        Hung(),
    ]


@pytest.mark.parametrize("text", ['[{"txt": "hi"}]', '[{"fault": "unheard-of"}]', "{}", "["])
def test_file_of_replies_that_is_wrong_says_so(tmp_path, text):
    file = tmp_path / "replies.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match="no list of replies"):
        read_replies(file)


@pytest.mark.parametrize("name", ["missing.py:answer", "script.py:other"])
def test_script_that_is_not_there_says_so(tmp_path, name):
    (tmp_path / "script.py").write_text("def answer(request): ...")
    with pytest.raises(ConfigError):
        read_script(str(tmp_path / name))


INNER = {"type": "object", "properties": {"of": {"type": "object", "properties": {}}}, "required": ["of"]}
CLOSED = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
TREE = CLOSED | {
    "properties": {"n": {"$ref": "#/$defs/T"}},
    "$defs": {"T": CLOSED | {"properties": {"n": {"$ref": "#/$defs/T"}}}},
}


def by_openai(schema, *, strict):
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": strict}}
    }


def by_anthropic(schema):
    return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}


@pytest.mark.parametrize(
    ("path", "asked", "status"),
    [
        (CHAT, by_openai({"type": "array", "items": {}}, strict=False), 400),
        (CHAT, by_openai({"anyOf": [CLOSED]}, strict=False), 400),
        (CHAT, by_openai(INNER, strict=True), 400),
        (CHAT, by_openai(CLOSED | {"required": []}, strict=True), 400),
        (CHAT, by_openai(INNER, strict=False), 200),
        (CHAT, by_openai(TREE, strict=True), 200),
        ("/v1/messages", by_anthropic(INNER), 400),
        ("/v1/messages", by_anthropic(CLOSED | {"additionalProperties": {"type": "integer"}}), 400),
        ("/v1/messages", by_anthropic(TREE), 400),
        ("/v1/messages", by_anthropic(CLOSED), 200),
        ("/v1/messages", by_anthropic({"type": "array", "items": CLOSED}), 200),
    ],
)
async def test_schema_of_an_answer_is_refused_as_the_provider_refuses_it_and_takes_no_reply(
    serve, http, path, asked, status
):
    server = await serve([Reply("one")])
    assert (await chat(http, server, path=path, **asked))[0] == status
    assert (await chat(http, server))[0] == (200 if status == 400 else 400)

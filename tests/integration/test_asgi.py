"""The endpoints of an engine: every one of them, its errors, and the document that describes them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from agentflow import Agent, Engine, Event, EventType, InputEvent, OutputEvent, Retry, RunnerContext
from agentflow.integrations.asgi import engine_app
from tests.engines import ONCE, agent_of


class Order(msgspec.Struct):
    amount: int


async def act(event: InputEvent[Order], ctx: RunnerContext) -> None:
    number = ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)
    ctx.send_event(
        OutputEvent(
            {"n": number, "amount": event.input.amount, "trace": dict(ctx.headers).get("traceparent", b"").decode()}
        )
    )
    if event.input.amount > 100:
        ctx.send_event(OutputEvent(await ctx.wait_for("approval")))
    if event.input.amount < 0:
        raise ValueError("no negative amounts")


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    agent = agent_of(act, input=Order, retry=ONCE)
    async with Engine(agent, in_memory=True, config={"checkpoint.interval": "10ms"}) as engine:
        yield engine


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(engine_app(engine, title="orders", body_max_bytes=10_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client


async def test_submit_answers_with_the_outputs_and_once_per_id(client: httpx.AsyncClient) -> None:
    body = {"key": "k", "value": {"amount": 5}, "request_id": "r"}
    for _ in range(2):
        answer = await client.post("/submit", json=body)
        assert (answer.status_code, answer.json()) == (200, {"outputs": [{"n": 1, "amount": 5, "trace": ""}]})
    headers = {"Idempotency-Key": "h", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    for _ in range(2):
        answer = await client.post("/submit", json={"key": "k", "value": {"amount": 5}}, headers=headers)
        assert answer.json() == {"outputs": [{"n": 2, "amount": 5, "trace": headers["traceparent"]}]}


@pytest.mark.parametrize("path", ["/submit", "/send", "/stream"])
async def test_an_empty_request_id_is_refused_as_one_that_is_too_long(client: httpx.AsyncClient, path: str) -> None:
    body = {"key": "k", "value": {"amount": 5}}
    for request_id in ("", "x" * 501):
        answers = [
            await client.post(path, json={**body, "request_id": request_id}),
            await client.post(path, json=body, headers={"Idempotency-Key": request_id}),
            await client.post(path, json={**body, "request_id": request_id}, headers={"Idempotency-Key": request_id}),
        ]
        for answer in answers:
            assert answer.status_code == 422
            assert answer.json()["error"]["message"].startswith("a request id is a text of 1 to 500 characters")
    assert (await client.post("/submit", json={**body, "request_id": None})).json()["outputs"][0]["n"] == 1


@pytest.mark.parametrize(("request_id", "header"), [("r", "h"), ("", "h"), ("r", "")])
async def test_a_request_id_and_an_idempotency_key_that_disagree_are_refused(
    client: httpx.AsyncClient, request_id: str, header: str
) -> None:
    body = {"key": "k", "value": {"amount": 5}}
    answer = await client.post("/submit", json={**body, "request_id": request_id}, headers={"Idempotency-Key": header})
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        422,
        f"the request_id of the body is {request_id!r}, and the header Idempotency-Key says {header!r}: send one of them",
    )
    for _ in range(2):
        answer = await client.post("/submit", json={**body, "request_id": "r"}, headers={"Idempotency-Key": "r"})
        assert answer.json()["outputs"][0]["n"] == 1


async def test_send_accepts_and_the_run_can_be_looked_at_and_signalled(client: httpx.AsyncClient) -> None:
    answer = await client.post("/send", json={"key": 7, "value": {"amount": 500}})
    assert answer.status_code == 202
    run_id = answer.json()["run_id"]
    assert answer.headers["location"] == f"/runs/{run_id}"
    answer = await client.get(f"/runs/{run_id}")
    assert (answer.status_code, answer.json()["state"], answer.json()["run"]["key"]) == (202, "unfinished", 7)
    runs = (await client.get("/runs")).json()["runs"]
    assert [(run["run"], run["key"], run["state"]) for run in runs] == [(run_id, 7, "waiting")]
    answer = await client.post("/signal", json={"key": 7, "name": "approval", "value": {"by": "ann"}})
    assert answer.status_code == 202
    answer = await client.get(f"/runs/{run_id}?wait=5s")
    outputs = [{"n": 1, "amount": 500, "trace": ""}, {"by": "ann"}]
    assert (answer.status_code, answer.json()) == (200, {"run_id": run_id, "state": "done", "outputs": outputs})
    assert (await client.get("/runs")).json() == {"runs": []}


async def test_a_run_that_fails_or_is_cancelled_says_so_everywhere(client: httpx.AsyncClient) -> None:
    answer = await client.post("/submit", json={"key": "k", "value": {"amount": -1}, "request_id": "r"})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["error_type"], error["error_message"]) == (
        500, "RunFailed", "ValueError", "no negative amounts",
    )  # fmt: skip
    answer = await client.get(f"/runs/{error['run_id']}")
    assert (answer.status_code, answer.json()["state"]) == (200, "failed")
    run_id = (await client.post("/send", json={"key": "k", "value": {"amount": 500}})).json()["run_id"]
    assert (await client.post("/cancel", json={"key": "k", "run": run_id, "reason": "late"})).status_code == 202
    answer = await client.get(f"/runs/{run_id}?wait=5s")
    assert answer.json()["error"]["error_message"] == "late"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("POST", "/submit", b"{", 400, "BadRequest"),
        ("POST", "/submit", b'{"value": 1}', 400, "BadRequest"),
        ("POST", "/submit", b'{"key": "k", "valeu": 1}', 400, "BadRequest"),
        ("POST", "/submit", b'{"key": []}', 422, "TypeError"),
        ("POST", "/submit", b'{"key": "k", "value": {"amount": "many"}}', 422, "RunFailed"),
        ("POST", "/submit", b'{"key": "k", "agent": "B"}', 422, "ConfigError"),
        ("POST", "/submit", b'{"key": "k", "timeout": "soon"}', 422, "ValueError"),
        ("POST", "/submit", b'{"key": "k", "request_id": ""}', 422, "TypeError"),
        ("POST", "/send", b'{"key": "k", "request_id": ""}', 422, "TypeError"),
        ("POST", "/stream", b'{"key": "k", "request_id": ""}', 422, "TypeError"),
        ("POST", "/submit", b'{"key": "k", "timeout": -1}', 422, "ValueError"),
        ("POST", "/submit", b'{"key": %d}' % 10**30, 422, "TypeError"),
        ("POST", "/stream", b'{"key": "k", "value": %d}' % 10**30, 422, "TypeError"),
        ("POST", "/send", b'{"key": "k", "value": ' + b"[" * 3_000 + b"]" * 3_000 + b"}", 422, "RecursionError"),
        ("POST", "/stream", b'{"key": null}', 422, "TypeError"),
        ("POST", "/send", b'{"key": "k", "value": "' + b"x" * 10_000 + b'"}', 413, "RecordTooLarge"),
        ("POST", "/signal", b'{"key": "k"}', 400, "BadRequest"),
        ("POST", "/signal", b'{"key": "k", "name": ""}', 422, "ValueError"),
        ("POST", "/cancel", b"[]", 400, "BadRequest"),
        ("GET", "/runs/requests/9/9", b"", 404, "UnknownRun"),
        ("GET", "/runs?limit=0", b"", 400, "BadRequest"),
        ("GET", "/runs?limit=" + "9" * 5_000, b"", 400, "BadRequest"),
        ("GET", "/runs/requests/1/" + "9" * 5_000, b"", 422, "ValueError"),
        ("GET", "/nothing", b"", 404, "NotFound"),
        ("GET", "/submit", b"", 405, "MethodNotAllowed"),
    ],
)
async def test_what_is_wrong_is_told(
    client: httpx.AsyncClient, method: str, path: str, body: bytes, status: int, kind: str
) -> None:
    answer = await client.request(method, path, content=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind), answer.text
    assert answer.json()["error"]["message"]


async def test_an_error_tells_what_is_wrong_and_no_internals(client: httpx.AsyncClient) -> None:
    answer = await client.post("/submit", json={"key": "k", "agent": "B"})
    assert answer.json()["error"]["message"] == "there is no agent 'B': name one of A (agent=…)"
    answer = await client.put("/submit")
    assert (answer.headers["allow"], answer.json()["error"]["message"]) == ("POST", "/submit takes POST, not PUT")
    for number in ("9" * 5_000, "x"):
        body = {"key": "k", "value": {"amount": 5}, "request_id": "r"}
        answer = await client.post("/stream", json=body, headers={"Last-Event-ID": number})
        assert answer.status_code == 422
        assert answer.json()["error"]["message"].startswith("Last-Event-ID is the id of an output of the stream")


@pytest.mark.parametrize(
    "request_id", ["ä", "日本", "a b", "q?x=1", "h#1", "p%2F", "a/b/7", " ", "../x", "./x", "..", "a//b", "/"]
)
async def test_the_location_of_a_run_leads_to_it_whatever_its_request_id(
    client: httpx.AsyncClient, request_id: str
) -> None:
    sent = await client.post("/send", json={"key": "k", "value": {"amount": 5}, "request_id": request_id})
    assert sent.headers["location"].isascii()
    answer = await client.get(sent.headers["location"], params={"wait": "5s"})
    assert (answer.status_code, answer.json()["run_id"]) == (200, sent.json()["run_id"])
    assert answer.json()["state"] == "done"


async def test_the_same_id_for_another_request_is_a_conflict(client: httpx.AsyncClient) -> None:
    for amount, status in ((1, 200), (2, 409)):
        body = {"key": "k", "value": {"amount": amount}, "request_id": "r"}
        assert (await client.post("/submit", json=body)).status_code == status


async def test_a_timeout_is_told_and_the_run_goes_on(client: httpx.AsyncClient) -> None:
    body = {"key": "k", "value": {"amount": 500}, "request_id": "r", "timeout": 0.01}
    answer = await client.post("/submit", json=body)
    assert answer.status_code == 504
    assert "it goes on" in answer.json()["error"]["message"]
    assert "with the same request_id it joins the run, or gets its outputs" in answer.json()["error"]["fix"]
    await client.post("/signal", json={"key": "k", "name": "approval", "value": 1})
    answer = await client.post("/submit", json={**body, "timeout": "5s"})
    assert answer.json()["outputs"][-1] == 1


async def test_a_stream_ends_with_an_error_at_its_timeout_and_can_be_taken_up(client: httpx.AsyncClient) -> None:
    body = {"key": "k", "value": {"amount": 500}, "request_id": "r"}
    events = (await client.post("/stream", json={**body, "timeout": 0.01})).text.split("\n\n")
    assert events[-2].startswith('event: error\ndata: {"type":"TimeoutError","message":"the timeout is over')
    await client.post("/signal", json={"key": "k", "name": "approval", "value": 1})
    events = (await client.post("/stream", json={**body, "timeout": "5s"}, headers={"Last-Event-ID": "0"})).text
    assert events == "event: output\nid: 1\ndata: 1\n\nevent: end\ndata: {}\n\n"


async def test_a_timeout_of_send_is_that_of_its_acceptance() -> None:
    full = Engine(agent_of(act, input=Order), in_memory=True, config={"run.in-flight-max": 1})
    transport = httpx.ASGITransport(engine_app(full))
    async with full, httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        body = {"key": "k", "value": {"amount": 500}, "timeout": "5s"}
        assert (await client.post("/send", json=body)).status_code == 202
        answer = await client.post("/send", json={**body, "timeout": 0.01})
        assert (answer.status_code, answer.json()["error"]["type"]) == (504, "TimeoutError")
        assert "before the input is durable" in answer.json()["error"]["message"]
        await client.post("/signal", json={"key": "k", "name": "approval", "value": 1})


async def test_a_full_or_closed_engine_is_not_available(engine: Engine) -> None:
    async def wait(event: Event, ctx: RunnerContext) -> None:
        await asyncio.Event().wait()

    full = Engine(
        agent_of(wait),
        in_memory=True,
        config={"run.in-flight-max": 1, "shutdown.drain-timeout": "1ms"},
        on_overload="raise",
    )
    transport = httpx.ASGITransport(engine_app(full))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        async with full:
            assert (await client.post("/send", json={"key": 1})).status_code == 202
            for path in ("/send", "/submit", "/stream"):
                answer = await client.post(path, json={"key": 2})
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert answer.json()["error"]["type"] == "EngineOverloaded"
            assert (await client.get("/stats")).json()["open"] == 1
        answer = await client.post("/submit", json={"key": 2})
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "EngineClosed")


async def test_the_document_describes_what_is_there(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    assert document["info"]["title"] == "orders"
    assert set(document["paths"]) == {
        "/submit", "/stream", "/send", "/runs", "/runs/{run_id}", "/signal", "/cancel", "/inbox", "/inbox/{wait_id}/approve", "/inbox/{wait_id}/deny", "/stats",
    }  # fmt: skip
    schemas = document["components"]["schemas"]
    assert schemas["Input"]["properties"]["value"]["$ref"] == "#/components/schemas/Order"
    assert schemas["Order"]["properties"] == {"amount": {"type": "integer"}}
    text = msgspec.json.encode(document).decode()
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in schemas
    for path, methods in document["paths"].items():
        for method in methods:
            answer = await client.request(method, path.replace("{run_id}", "none"), content=b"")
            assert answer.status_code not in (404, 405) or path == "/runs/{run_id}"


async def test_several_agents_are_in_the_document_by_name() -> None:
    def other(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(str(event.input)))

    agents: list[Any] = [agent_of(act, input=Order), Agent("B").add_action("b", [EventType.InputEvent], other)]
    async with Engine(agents, in_memory=True) as engine:
        transport = httpx.ASGITransport(engine_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            document = (await client.get("/openapi.json")).json()
            properties = document["components"]["schemas"]["Input"]["properties"]
            assert properties["agent"]["enum"] == ["A", "B", None]
            answer = await client.post("/submit", json={"key": 1, "value": "x", "agent": "B"})
            assert answer.json() == {"outputs": ["x"]}


async def test_an_application_that_stands_alone_opens_and_closes_its_engine() -> None:
    engine = Engine(agent_of(act, retry=Retry()), in_memory=True)
    app = engine_app(engine, starts_engine=True)
    received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    running = asyncio.ensure_future(app({"type": "lifespan", "asgi": {}, "state": {}}, received.get, sent.put))  # type: ignore[arg-type]
    await received.put({"type": "lifespan.startup"})
    assert (await sent.get())["type"] == "lifespan.startup.complete"
    assert engine.stats().state == "running"
    await received.put({"type": "lifespan.shutdown"})
    assert (await sent.get())["type"] == "lifespan.shutdown.complete"
    await running
    assert engine.stats().state == "stopped"

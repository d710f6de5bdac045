"""Tokens as server-sent events: what each event is, and that Last-Event-ID goes on behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from agentflow import Engine, Event, OutputEvent, ResourceType, RunnerContext
from agentflow.integrations.asgi import engine_app
from agentflow.testing import ScriptedChatModel
from tests.engines import agent_of, until

BODY = {"key": "k", "value": "hi", "request_id": "r"}


async def act(event: Event, ctx: RunnerContext) -> None:
    ctx.send_event(OutputEvent("asking"))
    if event.input == "wait":
        await ctx.wait_for("go")
    answer = await ctx.chat("m", str(event.input), stream=ctx.stream("answer"))
    ctx.send_event(OutputEvent(answer.content))


def new_engine(**options: Any) -> Engine:
    model = ScriptedChatModel(rules=[{"when": "", "reply": "one two"}])
    return Engine(agent_of(act).add_resource("m", ResourceType.CHAT_MODEL, model), **options)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with new_engine(in_memory=True, config={"checkpoint.interval": "1h"}) as engine:
        transport = httpx.ASGITransport(engine_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            yield client


def read(text: str) -> list[tuple[str, str, Any]]:
    """Event, number and data of each server-sent event."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
    return found


def short(events: list[tuple[str, str, Any]]) -> list[tuple[str, str, Any]]:
    return [(event, number, data.get("text", "") if isinstance(data, dict) else data) for event, number, data in events]


WHOLE = [
    ("token", "0-1", "one "),
    ("token", "0-2", "two"),
    ("step-end", "0-3", ""),
    ("output", "1-3", "asking"),
    ("output", "2-3", "one two"),
    ("end", "", ""),
]


async def test_tokens_are_events_between_outputs_and_can_be_taken_up_behind_any_of_them(
    client: httpx.AsyncClient,
) -> None:
    body = {**BODY, "tokens": True}
    events = read((await client.post("/stream", json=body)).text)
    assert short(events) == WHOLE
    assert events[0][2] == {
        "stream": "answer", "run": "requests/1/r/1", "step": "0:act.0", "attempt": 1, "offset": 1, "kind": "text", "text": "one ",
    }  # fmt: skip
    for place, (_, number, _) in enumerate(WHOLE[:-1]):
        answer = await client.post("/stream", json=body, headers={"Last-Event-ID": number})
        assert short(read(answer.text)) == WHOLE[place + 1 :], number


async def test_who_does_not_ask_for_tokens_gets_outputs_alone_and_their_ids(client: httpx.AsyncClient) -> None:
    events = read((await client.post("/stream", json=BODY)).text)
    assert short(events) == [("output", "0", "asking"), ("output", "1", "one two"), ("end", "", "")]
    for number in ("0", "1-2"):
        answer = await client.post("/stream", json=BODY, headers={"Last-Event-ID": number})
        assert short(read(answer.text)) == [("output", "1", "one two"), ("end", "", "")]


async def test_an_id_of_outputs_alone_is_understood_where_tokens_are_asked_for(client: httpx.AsyncClient) -> None:
    answer = await client.post("/stream", json={**BODY, "tokens": True}, headers={"Last-Event-ID": "0"})
    assert short(read(answer.text)) == [
        ("token", "1-1", "one "), ("token", "1-2", "two"), ("step-end", "1-3", ""), ("output", "2-3", "one two"), ("end", "", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("number", ["-", "1-", "-1", "1-2-3", "1-" + "9" * 20, "a-b"])
async def test_an_id_that_is_none_is_refused(client: httpx.AsyncClient, number: str) -> None:
    answer = await client.post("/stream", json={**BODY, "tokens": True}, headers={"Last-Event-ID": number})
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "ValueError")


async def test_tokens_are_asked_of_a_stream_only(client: httpx.AsyncClient) -> None:
    assert (await client.post("/submit", json={**BODY, "tokens": True})).status_code == 400
    assert (await client.post("/stream", json={**BODY, "tokens": "yes"})).status_code == 400
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert set(schemas["Followed"]["properties"]) - set(schemas["Input"]["properties"]) == {"tokens"}


async def test_a_client_of_a_real_server_gets_tokens_as_they_come_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    directory, body = str(tmp_path / "state"), {**BODY, "value": "wait", "tokens": True}
    async with new_engine(state_dir=directory) as engine, served(engine) as client:
        async with client.stream("POST", "/stream", json=body) as response:
            lines = response.aiter_lines()
            assert [await anext(lines) for _ in range(2)] == ["event: output", "id: 1-0"]
            await client.post("/signal", json={"key": "k", "name": "go"})
            seen = [line async for line in lines if line.startswith(("event:", "id:"))]
        assert seen[:3] == ["event: token", "id: 1-1", "event: token"]
        assert seen[-1] == "event: end"
    async with new_engine(state_dir=directory) as engine, served(engine) as client:
        answer = await client.post("/stream", json=body, headers={"Last-Event-ID": "1-2"})
        assert [(event, number) for event, number, _ in read(answer.text)] == [
            ("reset", "1-2"),
            ("output", "2-2"),
            ("end", ""),
        ]


@contextlib.asynccontextmanager
async def served(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an engine behind a real server."""
    server = uvicorn.Server(uvicorn.Config(engine_app(engine), port=0, log_config=None, lifespan="off"))
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        yield client
    server.should_exit = True
    await running

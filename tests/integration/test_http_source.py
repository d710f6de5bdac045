"""Records by HTTP: what was answered with 202 is in the output exactly once, whatever happens to the job."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentflow import AgentsExecutionEnvironment, ConfigError, JobSettings, OutputEvent, RunnerContext, StateSettings
from agentflow.api.events import InputEvent
from agentflow.connectors.http_source import HttpSource
from agentflow.errors import SourceError
from agentflow.runtime.settings import CheckpointSettings, KeySettings, RunSettings
from tests.engines import agent_of
from tests.services import ROOT, Service, free_port

AGENTS = """
from agentflow import Agent, EventType, InputEvent, OutputEvent, RunnerContext, action

class Count(Agent):
    @action(EventType.InputEvent)
    def count(event: InputEvent, ctx: RunnerContext) -> None:
        number = ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)
        if event.input.get("bad"):
            raise ValueError("bad")
        ctx.send_event(OutputEvent({"k": ctx.key, "id": event.input["id"], "n": number}))
"""
JOB = """
job: ingress
agent: agents:Count
key-by: k
source: {http: {port: PORT}}
sink: {jsonl: {path: out/}}
dead-letter: {jsonl: {path: dead/}}
state.dir: state/
checkpoint.interval: 50ms
"""


def outputs(directory: Path, name: str = "out") -> list[dict[str, Any]]:
    parts = sorted((directory / name).glob("part-*"))
    return [json.loads(line) for part in parts for line in part.read_text().splitlines()]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Service]:
    port = free_port()
    (tmp_path / "agents.py").write_text(AGENTS)
    (tmp_path / "job.yaml").write_text(JOB.replace("PORT", str(port)))
    service = Service(["-m", "agentflow", "run", "job.yaml"], port, tmp_path, {})
    service.start()
    yield service
    assert service.process is not None
    service.process.kill()
    service.process.wait()


def test_a_key_of_a_request_that_is_no_text_is_refused_and_disturbs_nobody(job: Service, tmp_path: Path) -> None:
    with httpx.Client(base_url=job.url, timeout=20) as client:
        for raw in (b"a\xff", b"a\x7f"):
            answer = client.post("/records", json={"k": "b", "id": 1}, headers={b"Idempotency-Key": raw})
            assert answer.status_code in (400, 422), answer.text
        answer = client.post("/records", json={"k": "b", "id": 1}, headers={b"traceparent": b"\xff"})
        assert answer.status_code == 202
    assert job.stop() == 143
    assert outputs(tmp_path) == [{"k": "b", "id": 1, "n": 1}]


def test_what_was_accepted_is_in_the_output_once_over_kills(job: Service, tmp_path: Path) -> None:
    luck, accepted = random.Random(1), []
    for life in range(4):
        with httpx.Client(base_url=job.url, timeout=20) as client:
            for number in range(30):
                ids = [f"{life}-{number}-{line}" for line in range(luck.randint(1, 5))]
                lines = "\n".join(json.dumps({"k": f"k{luck.randrange(4)}", "id": one}) for one in ids)
                headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": f"{life}-{number}"}
                answers = [client.post("/records", content=lines, headers=headers) for _ in range(luck.randint(1, 2))]
                assert [answer.status_code for answer in answers] == [202] * len(answers)
                assert len({tuple(answer.json()["run_ids"]) for answer in answers}) == 1
                accepted += ids
        if life < 3:
            job.kill()
            job.start()
    assert job.stop() == 143
    found = outputs(tmp_path)
    assert sorted(one["id"] for one in found) == sorted(accepted)
    by_key: dict[str, list[int]] = {}
    for one in found:
        by_key.setdefault(one["k"], []).append(one["n"])
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in by_key.values()), "in order, per key"


def test_a_failed_run_is_a_dead_letter_and_what_is_no_record_is_told_at_once(job: Service, tmp_path: Path) -> None:
    with httpx.Client(base_url=job.url, timeout=20) as client:
        assert client.post("/records", json={"k": 1, "id": 1}).status_code == 202
        assert client.post("/records", json={"k": 1, "bad": True}).status_code == 202
        wrong: list[tuple[bytes, int, str]] = [
            (b'{"k": 1', 400, "DecodeError"),
            (b'{"id": 1}', 422, "MissingKey"),
            (b'{"k": 1, "text": "' + b"x" * 5_000_000 + b'"}', 413, "RecordTooLarge"),
            (b"x" * 20_000_000, 413, "RecordTooLarge"),
        ]
        for body, status, kind in wrong:
            answer = client.post("/records", content=body)
            assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
        for kind in ("application/json", "application/x-ndjson"):
            headers = {"Content-Type": kind, "Idempotency-Key": ""}
            answer = client.post("/records", content=b'{"k": 1, "id": 9}', headers=headers)
            assert answer.status_code == 422
            assert "a request id is a text of 1 to 500 characters" in answer.text
        lines = b'{"k": 2, "id": 2}\n\n{"id": 3}\n{"k": 4, "id": 4}\n{'
        answer = client.post("/records", content=lines, headers={"Content-Type": "application/x-ndjson"})
        assert answer.status_code == 422
        assert [(one["line"], one["type"]) for one in answer.json()["errors"]] == [
            (3, "MissingKey"),
            (5, "DecodeError"),
        ]
        assert [run is None for run in answer.json()["run_ids"]] == [False, True, False, True]
        for value, status in (({"k": 5, "id": 5}, 202), ({"k": 5, "id": 6}, 409)):
            assert client.post("/records", json=value, headers={"Idempotency-Key": "x"}).status_code == status
        assert client.get("/records").status_code == 405
        assert client.post("/elsewhere").status_code == 404
    assert job.stop() == 143
    assert sorted(one["id"] for one in outputs(tmp_path)) == [1, 2, 4, 5]
    (dead,) = outputs(tmp_path, "dead")
    assert (dead["error-type"], dead["value"]) == ("ValueError", {"k": 1, "bad": True})
    assert 'source="http 127.0.0.1' in job.log or "http 127.0.0.1" in job.log


def test_a_record_that_stops_the_job_is_answered_and_not_lost(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "agents.py").write_text(AGENTS)
    (tmp_path / "job.yaml").write_text(
        JOB.replace("PORT", str(port)).replace("dead-letter: {jsonl: {path: dead/}}", "")
    )
    job = Service(["-m", "agentflow", "run", "job.yaml"], port, tmp_path, {})
    job.start()
    assert job.process is not None
    with httpx.Client(base_url=job.url, timeout=20) as client:
        answer = client.post("/records", json={"k": 1, "bad": True}, headers={"Idempotency-Key": "x"})
        if answer.status_code != 202:  # the record was durable before its run had failed, or was not known to be
            assert (answer.status_code, answer.json()["error"]["type"]) == (503, "EngineClosed")
    assert job.process.wait(30) == 1
    assert "ValueError: bad" in job.log
    job = Service(["-m", "agentflow", "run", "job.yaml", "--set", "dead-letter.jsonl.path=dead/"], port, tmp_path, {})
    job.start()
    with httpx.Client(base_url=job.url, timeout=20) as client:
        answer = client.post("/records", json={"k": 1, "bad": True}, headers={"Idempotency-Key": "x"})
        assert answer.status_code == 202
    assert job.stop() == 143
    assert [one["value"] for one in outputs(tmp_path, "dead")] == [{"k": 1, "bad": True}]


def test_a_port_that_is_taken_and_a_job_that_could_lose_records_are_refused(tmp_path: Path) -> None:
    (tmp_path / "agents.py").write_text(AGENTS)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (tmp_path / "job.yaml").write_text(JOB.replace("PORT", str(taken.getsockname()[1])))

        def run(*settings: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "agentflow", "run", "job.yaml", *settings]
            environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
            return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

        done = run()
        assert (done.returncode, "the port cannot be listened on" in done.stderr) == (1, True), done.stderr
        done = run("--set", "state.dir=null", "--set", "guarantee=at-least-once")
        assert (done.returncode, "tells its senders that records are durable" in done.stderr) == (2, True), done.stderr
        done = run("--set", "source.http.path=records")
        assert (done.returncode, "does not begin with a /" in done.stderr) == (2, True), done.stderr


@pytest.fixture
async def paused(tmp_path: Path) -> AsyncIterator[tuple[HttpSource, asyncio.Event]]:
    """A job in code whose runs wait for an event, with low limits."""
    gate = asyncio.Event()

    async def act(event: InputEvent[Any], ctx: RunnerContext) -> None:
        await gate.wait()
        ctx.send_event(OutputEvent(event.input))

    settings = JobSettings(
        state=StateSettings(dir=str(tmp_path / "state")),
        run=RunSettings(in_flight_max=3),
        key=KeySettings(pending_max=2),
        checkpoint=CheckpointSettings(interval_ms=20),
        on_overflow="dead-letter",
    )
    env = AgentsExecutionEnvironment.get_execution_environment(settings)
    source = HttpSource(port=0)
    env.from_source(source).key_by("k").apply(agent_of(act)).to_list()
    job = env.job()
    running = asyncio.ensure_future(job.run())
    while not source.address:  # noqa: ASYNC110 (it listens a moment later, and tells nobody)
        await asyncio.sleep(0)
    yield source, gate
    gate.set()
    job.request_stop()
    await running
    assert source.address == ""


async def test_senders_are_asked_to_come_again_at_a_limit(paused: tuple[HttpSource, asyncio.Event]) -> None:
    source, gate = paused
    async with httpx.AsyncClient(base_url=f"http://{source.address}", timeout=20) as client:
        first = [await client.post("/records", json={"k": "busy"}) for _ in range(3)]
        assert [answer.status_code for answer in first] == [202, 202, 202]
        answer = await client.post("/records", json={"k": "idle"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["type"] == "EngineOverloaded"
        gate.set()
        while (await client.post("/records", json={"k": "idle"})).status_code != 202:
            pass


async def test_the_source_that_is_not_started_yet_asks_to_come_again_and_closes_twice() -> None:
    source = HttpSource(port=0)
    await source.close()
    await source.open({})
    async with httpx.AsyncClient(base_url=f"http://{source.address}") as client:
        assert (await client.post("/records", json={"k": 1})).status_code == 503
    other = HttpSource(port=int(source.address.rpartition(":")[2]))
    with pytest.raises(SourceError):
        await other.open({})
    await other.close()
    await source.close()
    await source.close()
    with pytest.raises(ConfigError):
        HttpSource(path="records")

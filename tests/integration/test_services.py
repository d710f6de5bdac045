"""The examples of services, as processes: what they answer, stream, and still know after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.kafka_topics import Topics
from tests.services import fastapi_command, free_port, running

QUESTION = {"text": "Where is my parcel?"}


def events(response: httpx.Response) -> list[dict[str, str]]:
    """Read server-sent events."""
    return [
        dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        for block in response.read().decode().strip().split("\n\n")
    ]


def test_fastapi_answers_streams_and_remembers_over_a_kill(tmp_path: Path) -> None:
    port = free_port()
    with running(fastapi_command(port), port, tmp_path, STATE_DIR=str(tmp_path / "state")) as service:
        with httpx.Client(base_url=service.url, timeout=20) as client:
            headers = {"Idempotency-Key": "q-1"}
            first = client.post("/customers/ann/questions", json=QUESTION, headers=headers).json()
            assert first == {"customer": "ann", "number": 1, "answer": "answer 1 to 'Where is my parcel?'"}
            with client.stream("POST", "/customers/ann/questions/stream", json=QUESTION) as response:
                assert response.headers["content-type"].startswith("text/event-stream")
                shown = [json.loads(event["data"]) for event in events(response)]
            assert [one.get("state", one.get("answer")) for one in shown] == [
                "thinking", "answer 2 to 'Where is my parcel?'",
            ]  # fmt: skip
        service.kill()
        service.start()
        with httpx.Client(base_url=service.url, timeout=20) as client:
            assert client.post("/customers/ann/questions", json=QUESTION, headers=headers).json() == first
            history = client.get("/customers/ann/history").json()
            assert [said for _, said in history] == [f"answer {n} to 'Where is my parcel?'" for n in (1, 2)]
            other = client.post("/customers/ann/questions", json={"text": "Else?"}, headers=headers)
            assert other.status_code == 409
            assert client.post("/customers/bob/questions", json={"text": 1}).status_code == 422
        assert service.stop() in (0, -15)  # by the version of uvicorn: it ends by the signal that it got
    assert "Traceback" not in service.log


def test_mounted_endpoints_stream_events_that_can_be_resumed(tmp_path: Path) -> None:
    port = free_port()
    with (
        running(fastapi_command(port), port, tmp_path, STATE_DIR=str(tmp_path / "state")) as service,
        httpx.Client(base_url=f"{service.url}/agents", timeout=20) as client,
    ):
        body = {"key": "ann", "value": QUESTION, "request_id": "q-1"}
        with client.stream("POST", "/stream", json=body) as response:
            seen = events(response)
        assert [(event["event"], event.get("id")) for event in seen] == [
            ("output", "0"),
            ("output", "1"),
            ("end", None),
        ]
        assert json.loads(seen[1]["data"])["answer"] == "answer 1 to 'Where is my parcel?'"
        with client.stream("POST", "/stream", json=body, headers={"Last-Event-ID": "0"}) as response:
            assert events(response) == seen[1:]
        with client.stream("POST", "/stream", json={"key": "ann", "value": {"text": 1}}) as response:
            (error,) = events(response)
        assert (error["event"], json.loads(error["data"])["error_type"]) == ("error", "DecodeError")
        document = client.get("/openapi.json").json()
        assert document["servers"] == [{"url": "/agents"}]
        sent = client.post("/send", json={"key": "ann", "value": QUESTION})
        assert sent.headers["location"] == f"/agents/runs/{sent.json()['run_id']}"
        assert client.get(f"{service.url}{sent.headers['location']}?wait=5s").json()["state"] == "done"


def test_aiohttp_answers_and_remembers_over_a_kill(tmp_path: Path) -> None:
    port = free_port()
    command = ["-m", "examples.service.aiohttp_service", str(port)]
    with running(command, port, tmp_path, STATE_DIR=str(tmp_path / "state")) as service:
        headers = {"Idempotency-Key": "q-1"}
        with httpx.Client(base_url=service.url, timeout=20) as client:
            first = client.post("/customers/ann/questions", json=QUESTION, headers=headers).json()
            assert first["answer"] == "answer 1 to 'Where is my parcel?'"
            assert client.post("/customers/ann/questions", json={"text": 1}).status_code == 422
        service.kill()
        service.start()
        with httpx.Client(base_url=service.url, timeout=20) as client:
            assert client.post("/customers/ann/questions", json=QUESTION, headers=headers).json() == first
        assert service.stop() == 0


@pytest.mark.kafka
def test_a_consumer_of_a_services_own_runs_each_record_once_over_a_kill(tmp_path: Path, kafka: str) -> None:
    topics, name = Topics(kafka), f"questions{os.getpid()}"
    for topic in (name, f"{name}-answers"):
        topics.create(topic, 2)
    command = [sys.executable, "-m", "examples.service.kafka_consumer", name, f"{name}-answers"]
    environment = {**os.environ, "KAFKA": kafka, "STATE_DIR": str(tmp_path / "state")}

    def answers() -> list[dict[str, str]]:
        return [json.loads(record.value) for record in topics.read(f"{name}-answers")]

    for kills, wanted in ((True, 20), (False, 60)):
        numbers = range(40) if kills else range(40, 60)
        topics.write(name, [(f"c{n % 5}", json.dumps({"text": f"q{n}"}).encode()) for n in numbers])
        with subprocess.Popen(command, env=environment) as process:
            deadline = time.monotonic() + 60
            while len({one["answer"] for one in answers()}) < wanted:
                assert process.poll() is None
                assert time.monotonic() < deadline
            process.kill() if kills else process.terminate()
            assert process.wait(30) == (-9 if kills else 0)
    unique = {(one["customer"], one["number"], one["answer"]) for one in answers()}
    assert len(unique) == 60, "an answer comes again, if at all, word for word"
    assert {(customer, number) for customer, number, _ in unique} == {
        (f"c{k}", n) for k in range(5) for n in range(1, 13)
    }

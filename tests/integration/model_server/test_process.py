"""The server as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import openai
import pytest

from tests.model_servers import model_server

ASK = {"model": "gpt-5", "messages": [{"role": "user", "content": "Where?"}]}


def client_of(server):
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0, timeout=20)


async def test_process_answers_and_keeps_the_oracle():
    with model_server("--latency", "1ms") as server:
        async with client_of(server) as client:
            answer = await client.chat.completions.create(**ASK, extra_headers={"Idempotency-Key": "k-1"})
        assert answer.choices[0].message.content == "Where?"
        [request] = server.requests()
        assert (request["number"], request["provider"], request["is_answered"]) == (1, "openai", True)
        assert (request["idempotency_key"], request["messages"][0]["text"]) == ("k-1", "Where?")
        assert server.counts() == {
            "received": 1,
            "answered": 1,
            "in_flight": 0,
            "in_flight_max": 1,
            "models": {"gpt-5": 1},
            "idempotency_keys": {"k-1": 1},
        }
        server.reset()
        assert (server.requests(), server.counts()["received"]) == ([], 0)
        assert server.stop() == 0


async def test_process_reads_replies_from_a_file(tmp_path):
    file = tmp_path / "replies.json"
    file.write_text(json.dumps([{"text": "In Bern."}, {"fault": "http-error", "status": 429}]))
    with model_server("--replies", str(file)) as server:
        async with client_of(server) as client:
            assert (await client.chat.completions.create(**ASK)).choices[0].message.content == "In Bern."
            with pytest.raises(openai.RateLimitError):
                await client.chat.completions.create(**ASK)


async def test_process_asks_the_function_of_a_script(tmp_path):
    file = tmp_path / "script.py"
    file.write_text(
        "from agentflow.testing.model_server import Reply\n"
        "def answer(request):\n"
        "    return Reply(f'{request.number} {request.text}')\n"
    )
    with model_server("--script", f"{file}:answer") as server:
        async with client_of(server) as client:
            answers = [await client.chat.completions.create(**ASK) for _ in range(2)]
    assert [one.choices[0].message.content for one in answers] == ["1 Where?", "2 Where?"]


def test_process_remembers_a_client_that_was_killed(tmp_path):
    file = tmp_path / "replies.json"
    file.write_text(json.dumps([{"fault": "hung"}]))
    call = (
        "import sys, openai\n"
        "client = openai.OpenAI(base_url=sys.argv[1] + '/v1', api_key='k', max_retries=0)\n"
        "client.chat.completions.create(model='gpt-5', messages=[])\n"
    )
    with model_server("--replies", str(file)) as server:
        client = subprocess.Popen([sys.executable, "-c", call, server.url])
        while server.counts()["in_flight"] == 0:
            pass
        client.kill()
        client.wait()
        while server.counts()["in_flight"]:
            pass
        [request] = server.requests()
        assert (request["is_answered"], server.counts()["answered"]) == (False, 0)


def test_wrong_option_is_told_in_one_line(tmp_path):
    command = [sys.executable, "-m", "agentflow.testing.model_server", "--replies", str(tmp_path / "missing.json")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "missing.json" in ended.stderr
    assert "Traceback" not in ended.stderr

"""SIGKILL under agents that talk to a model: the server's own counters say what was called, and what was called twice.

Fourteen kills of tool loops and ten of budgets; more with ``MODELS_CHAOS_KILLS``.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.model_servers import ROOT, ModelServerProcess, model_server

KILLS = int(os.environ.get("MODELS_CHAOS_KILLS", "14"))
SEED = 20261126
TURNS, TOOLS = 3, 3
LOOPS, KEYS = 36, 6
FAN_OUTS, QUESTIONS, CALLS = 24, 10, 3

SCRIPT = f"""
import re
from agentflow.testing.model_server import Reply, ToolCall

def decide(request):
    asked = next(message.text for message in request.messages if message.role == "user")
    turn = sum(message.role == "assistant" for message in request.messages)
    if not asked.startswith("loop") or turn == {TURNS}:
        return Reply(f"answer to {{asked}}")
    return Reply(tool_calls=[ToolCall("work", {{"loop": asked, "turn": turn, "n": n}}) for n in range({TOOLS})])
"""

AGENT = f"""
import asyncio
import os
from agentflow import Agent, EventType, OutputEvent, action
from agentflow.api.chat_events import ChatRequestEvent, ChatResponseEvent
from agentflow.api.resources import ResourceDescriptor, chat_model_connection, chat_model_setup
from agentflow.api.tools import tool

PACKAGE = "agentflow.integrations.openai_compatible"


class Asking(Agent):
    @staticmethod
    @chat_model_connection
    def http():
        return ResourceDescriptor(f"{{PACKAGE}}.OpenAICompatibleConnection", base_url="${{env:MODEL_URL}}/v1")

    @staticmethod
    @tool
    async def work(loop: str, turn: int, n: int) -> str:
        with open("tools.log", "a") as log:
            log.write(f"{{loop}} {{turn}} {{n}}\\n")
        await asyncio.sleep(0.01 * n)
        return f"{{loop}} {{turn}} {{n}} is done"


class Loops(Asking):
    @staticmethod
    @chat_model_setup
    def m():
        return ResourceDescriptor(
            f"{{PACKAGE}}.OpenAICompatibleSetup", connection="http", model="m", tools=["work"],
            budgets=[{{"per": "key", "tokens": 10**9}}],
        )

    @action(EventType.InputEvent)
    def ask(event, ctx):
        ctx.send_event(ChatRequestEvent("m", [event.attributes["input"]["ask"]]))

    @action(EventType.ChatResponseEvent)
    def answer(event, ctx):
        spent = ctx.short_term_memory.get("__spent__.key").get_fields().values()
        tokens = sum(entry[1] for entry in spent)
        ctx.send_event(OutputEvent({{"k": ctx.key, "text": ChatResponseEvent.from_event(event).response.content, "tokens": tokens}}))


class FanOuts(Asking):
    @staticmethod
    @chat_model_setup
    def m():
        return ResourceDescriptor(
            f"{{PACKAGE}}.OpenAICompatibleSetup", connection="http", model="m", budgets=[{{"calls": {CALLS}}}],
        )

    @action(EventType.InputEvent)
    def ask(event, ctx):
        for n in range({QUESTIONS}):
            ctx.send_event(ChatRequestEvent("m", [f"{{event.attributes['input']['ask']}} {{n}}"]))

    @action(EventType.ChatResponseEvent, EventType.BudgetExhaustedEvent)
    def note(event, ctx):
        counts = ctx.sensory_memory.get("counts") or {{}}
        counts[event.type] = counts.get(event.type, 0) + 1
        ctx.sensory_memory.set("counts", counts)
        if sum(counts.values()) == {QUESTIONS}:
            ctx.send_event(OutputEvent({{"k": ctx.key, "counts": counts}}))
"""


def run_with_kills(
    tmp_path: Path, server: ModelServerProcess, agent: str, inputs: list[dict[str, Any]], *, kills: int, requests: int
) -> list[dict[str, Any]]:
    """Run a job to its end, over ``kills`` kills while the server sees ``requests`` requests; return its outputs."""
    (tmp_path / "asking.py").write_text(AGENT)
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in inputs))
    (tmp_path / "job.yaml").write_text(
        f"job: asking\nagent: asking:{agent}\nsource: {{jsonl: {{path: in.jsonl}}}}\nkey-by: k\n"
        "sink: {jsonl: {path: out}}\ncheckpoint: {interval: 100ms}\nstate: {dir: state}\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "MODEL_URL": server.url}
    command = [sys.executable, "-m", "agentflow", "run", "job.yaml"]
    luck = random.Random(SEED)
    for _ in range(kills):
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            try:
                until = server.counts()["received"] + luck.uniform(0.2, 1.2) * requests / kills
                while server.counts()["received"] < until and process.poll() is None:
                    time.sleep(0.002)
                time.sleep(luck.uniform(0, 0.06))  # before, within and behind calls
            finally:
                process.kill()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    parts = sorted((tmp_path / "out").glob("part-*"))
    return [json.loads(line) for part in parts for line in part.read_text().splitlines()]


def asked_by(request: dict[str, Any]) -> str:
    return next(message["text"] for message in request["messages"] if message["role"] == "user")


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_killed_tool_loops_go_on_and_repeat_nothing_that_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    inputs = [{"k": f"k{n % KEYS}", "ask": f"loop{n}"} for n in range(LOOPS)]
    with model_server("--latency", "30ms", "--script", f"{tmp_path / 'script.py'}:decide") as server:
        calls = LOOPS * (TURNS + 1)
        outputs = run_with_kills(tmp_path, server, "Loops", inputs, kills=KILLS, requests=calls)
        requests = server.requests()
    assert sorted(output["text"] for output in outputs) == sorted(f"answer to loop{n}" for n in range(LOOPS))

    turns: dict[str, list[int]] = defaultdict(list)
    keys: dict[tuple[str, int], set[str]] = defaultdict(set)
    for request in requests:
        turn = sum(message["role"] == "assistant" for message in request["messages"])
        turns[asked_by(request)].append(turn)
        keys[asked_by(request), turn].add(request["headers"]["idempotency-key"])
    assert {name: seen for name, seen in turns.items() if seen != sorted(seen)} == {}, "a recorded call was repeated"
    assert {name: set(seen) for name, seen in turns.items()} == {
        f"loop{n}": set(range(TURNS + 1)) for n in range(LOOPS)
    }
    assert [key for key in keys.values() if len(key) != 1] == []

    worked: dict[str, list[int]] = defaultdict(list)
    counted: Counter[str] = Counter()
    for line in (tmp_path / "tools.log").read_text().splitlines():
        loop, turn, _ = line.split()
        worked[loop].append(int(turn))
        counted[line] += 1
    assert {name: seen for name, seen in worked.items() if seen != sorted(seen)} == {}, "a recorded tool was repeated"
    assert len(counted) == LOOPS * TURNS * TOOLS
    again = len(requests) - calls, counted.total() - len(counted)
    assert again[0] <= KILLS * KEYS
    assert again[1] <= KILLS * KEYS * TOOLS

    spent: dict[str, int] = {}
    for output in outputs:
        spent[output["k"]] = max(spent.get(output["k"], 0), output["tokens"])
    of_a_call = 15
    assert spent == {f"k{n}": LOOPS // KEYS * (TURNS + 1) * of_a_call for n in range(KEYS)}
    told = (
        f"{KILLS} kills: {again[0]} of {calls} calls of the model and {again[1]} of {len(counted)} of tools made again"
    )
    print(told)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_budget_of_calls_never_sees_one_call_more_over_kills(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    inputs = [{"k": f"k{n % KEYS}", "ask": f"fan{n}"} for n in range(FAN_OUTS)]
    kills = max(1, KILLS * 5 // 7)
    with model_server("--latency", "30ms", "--script", f"{tmp_path / 'script.py'}:decide") as server:
        outputs = run_with_kills(tmp_path, server, "FanOuts", inputs, kills=kills, requests=FAN_OUTS * CALLS)
        requests = server.requests()
    assert len(outputs) == FAN_OUTS
    by_run = Counter(asked_by(request).split()[0] for request in requests)
    assert {run: count for run, count in by_run.items() if count > CALLS} == {}
    for output in outputs:
        answered = output["counts"].get("_chat_response_event", 0)
        assert answered <= CALLS
        assert answered + output["counts"]["_budget_exhausted_event"] == QUESTIONS
    lost = FAN_OUTS * CALLS - sum(output["counts"].get("_chat_response_event", 0) for output in outputs)
    print(f"{kills} kills: {lost} of {FAN_OUTS * CALLS} calls were in doubt, and count")

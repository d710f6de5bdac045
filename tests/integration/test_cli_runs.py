"""Commands that look at runs and talk to them, beside a job that runs and on one that was killed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentflow.cli.main import main
from tests.cli_jobs import running, until

AGENT = """\
from agentflow import Agent, CancelEvent, EventType, OutputEvent, Retry, action


class Orders(Agent):
    @action(EventType.InputEvent, timeout="%s")
    async def order(event, ctx):
        def draft(order, number):
            return {"text": f"draft of {order}", "api_key": "sk-123"}

        def fail():
            raise ConnectionError("no supplier")

        %s
        made = await ctx.durable_execute_async(draft, event.input["order"], str(ctx.uuid()))
        if event.input.get("fails"):
            await ctx.durable_execute_async(fail, retry=Retry(attempts=5, initial="1h", wait_max="1h"))
        answer = await ctx.wait_for("approval", timeout="1h", correlation=ctx.key)
        ctx.send_event(OutputEvent({"made": made["text"], "answer": answer}))

    @action(CancelEvent)
    def undo(event, ctx):
        ctx.send_event(OutputEvent({"undone": event.input["order"], "reason": event.reason}))
"""
JOB = """\
job: orders
agent: orders:Orders
source: {jsonl: {path: in.jsonl}}
key-by: order
sink: {jsonl: {path: out/}}
state: {dir: ./state}
checkpoint: {interval: 50ms}
run: {park-after: 100ms}
"""
INPUTS = ({"order": "o-1"}, {"order": "o-2"}, {"order": "o-3", "fails": True})
Command = Callable[..., Any]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_agent(tmp_path)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in INPUTS))
    return tmp_path


def write_agent(place: Path, *, timeout: str = "1m", first: str = "") -> None:
    (place / "orders.py").write_text(AGENT % (timeout, first))


@pytest.fixture
def agentflow(place: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str, status: int = 0) -> Any:
        assert main([*arguments, "--json"]) == status
        return json.loads(capsys.readouterr().out)

    return run


def outputs(place: Path) -> list[dict[str, Any]]:
    lines = [line for part in sorted((place / "out").glob("part-*")) for line in part.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def all_wait(agentflow: Command) -> bool:
    runs = agentflow("runs", "list", "job.yaml")
    return len(runs) == len(INPUTS) and all(run["state"] == "waiting" for run in runs)


def test_runs_are_seen_and_answered_beside_a_running_job(place: Path, agentflow: Command) -> None:
    with running(place) as job:
        until((place / "state" / "subtask-0" / "journal").exists, place)
        until(lambda: all_wait(agentflow), place)
        waits = agentflow("inbox", "job.yaml")
        assert sorted((wait["key"], wait["name"], wait["correlation"]) for wait in waits) == [
            ("o-1", "approval", "o-1"),
            ("o-2", "approval", "o-2"),
        ]
        first, _, third = agentflow("runs", "list", "job.yaml")
        shown = agentflow("runs", "show", "job.yaml", first["run"])
        draft, wait = shown["steps"]
        assert (draft["kind"], draft["preview"]) == ("result", '{"text":"draft of o-1","api_key":"***"}')
        assert (wait["kind"], wait["function"]) == ("wait", "ctx.wait_for:approval")
        attempt = agentflow("journal", "show", "job.yaml", third["run"])["steps"][-1]
        assert attempt["preview"] == "call 1 failed: ConnectionError: no supplier"
        assert attempt["due-ms"] - attempt["at-ms"] > 2_000_000
        agentflow("runs", "retry", "job.yaml", "o-3")
        until(lambda: "call 2" in agentflow("journal", "show", "job.yaml", third["run"])["steps"][-1]["preview"], place)
        agentflow("signal", "job.yaml", "o-1", "approval", '{"by": "ann"}', "--correlation", "o-1")
        agentflow("runs", "cancel", "job.yaml", "o-2", "--reason", "too late")
        until(lambda: len(outputs(place)) == 2, place)
        assert job.poll() is None, "nobody was locked out"
    assert sorted(outputs(place), key=str) == [
        {"made": "draft of o-1", "answer": {"by": "ann"}},
        {"undone": "o-2", "reason": "too late"},
    ]


def test_a_killed_job_is_seen_and_gets_its_signals_when_it_starts(place: Path, agentflow: Command) -> None:
    with running(place):
        until((place / "state" / "subtask-0" / "journal").exists, place)
        until(lambda: all_wait(agentflow), place)
    for key in ("o-1", "o-2"):
        agentflow("signal", "job.yaml", key, "approval", "1", "--correlation", key)
    agentflow("runs", "cancel", "job.yaml", "o-3")
    agentflow(
        "signal", "state", "o-1", "approval", "2", "--agent", "wrong"
    )  # a directory does not say which agents there are
    assert len(agentflow("inbox", "job.yaml")) == 2
    with running(place) as job:
        assert job.wait(30) == 0, (place / "log").read_text()
    assert "is dropped: its agent is 'wrong'" in (place / "log").read_text()
    assert len(outputs(place)) == 3
    assert agentflow("runs", "list", "job.yaml") == []


def test_changed_code_that_unfinished_runs_would_diverge_from_is_refused(place: Path, agentflow: Command) -> None:
    with running(place):
        until((place / "state" / "subtask-0" / "journal").exists, place)
        until(lambda: all_wait(agentflow), place)
    assert agentflow("runs", "check", "job.yaml") == []
    write_agent(place, timeout="2m", first='await ctx.durable_execute_async(print, "checked")')
    sys.modules.pop("orders", None)
    found = agentflow("runs", "check", "job.yaml", status=3)
    assert len(found) == len(INPUTS)
    assert "calls builtins.print" in found[0]["message"]
    assert "is recorded as orders.Orders.order.<locals>.draft" in found[0]["message"]
    with running(place) as job:
        assert job.wait(30) == 1
    assert "3 unfinished runs would diverge" in (place / "log").read_text()
    write_agent(place, timeout="2m", first='ctx.patch("check") and await ctx.durable_execute_async(print, "checked")')
    with running(place):
        agentflow("signal", "job.yaml", "o-1", "approval", "1", "--correlation", "o-1")
        until(lambda: outputs(place), place)


ASKING = """\
from agentflow import Agent, BaseChatModelConnection, BaseChatModelSetup, EventType, ResourceDescriptor, action
from agentflow import chat_model_connection, chat_model_setup
from agentflow.api.chat_messages import ChatMessage


class Local(BaseChatModelConnection):
    api_key: str

    async def chat(self, messages, tools=None, output_schema=None, **kwargs):
        return ChatMessage("assistant", "as you wish")


class Orders(Agent):
    @chat_model_connection
    def local():
        return ResourceDescriptor(Local, api_key="${env:MODEL_KEY}")

    @chat_model_setup
    def model():
        return ResourceDescriptor(BaseChatModelSetup, connection="local", model="m")

    @action(EventType.InputEvent)
    async def order(event, ctx):
        await ctx.chat("model", event.input["order"])
        await ctx.wait_for("approval", timeout="1h", correlation=ctx.key)
"""


def test_runs_whose_models_cannot_be_built_are_not_said_to_go_on(
    place: Path, agentflow: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_KEY", "sk-0123456789")
    (place / "orders.py").write_text(ASKING)
    sys.modules.pop("orders", None)
    with running(place):
        until((place / "state" / "subtask-0" / "journal").exists, place)
        until(lambda: all_wait(agentflow), place)
    assert agentflow("runs", "check", "job.yaml") == []
    monkeypatch.delenv("MODEL_KEY")
    found = agentflow("runs", "check", "job.yaml", status=3)
    assert len(found) == len(INPUTS)
    assert "the environment variable MODEL_KEY of 'api_key' is not set" in found[0]["message"]


def test_what_cannot_be_seen_or_sent_is_told_with_its_fix(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list", "job.yaml"]) == 1
    assert "there is no state" in capsys.readouterr().err
    for command in (["signal", "job.yaml", "o-1", "approval"], ["runs", "cancel", "job.yaml", "o-1"]):
        assert main([*command, "--agent", "wrong"]) == 2
        assert "--agent wrong: job.yaml has the agent 'Orders'" in capsys.readouterr().err
    assert not (place / "state").exists()
    assert main(["signal", "job.yaml", "o-1", "approval", "yes"]) == 2
    assert "texts have quotes" in capsys.readouterr().err
    (place / "job.yaml").write_text(JOB.replace("state: {dir: ./state}\n", "guarantee: none\n"))
    assert main(["signal", "job.yaml", "o-1", "approval"]) == 2
    assert "set state.dir" in capsys.readouterr().err

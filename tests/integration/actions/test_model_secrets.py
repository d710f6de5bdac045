"""A key by reference is nowhere in what a run writes, though the server, the model, a tool and an error show it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from agentflow import Engine, Event, InjectedArg, OutputEvent, Retry, RunFailed, RunnerContext
from agentflow.api.resources import ResourceType
from agentflow.api.tools import Tool
from agentflow.plan.plan import AgentPlan
from agentflow.testing.model_server import Fault, HttpError, ModelServer, Reply, ToolCall, Unauthorized
from tests.engines import agent_of
from tests.model_agents import asking, connection, over_http, setup
from tests.otlp_receiver import collector

SECRET = 'sk-live-8f3a"b\\c-0123456789'


@pytest.fixture(params=["env", "file"])
def reference(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "env":
        monkeypatch.setenv("MODEL_KEY", SECRET)
        return "${env:MODEL_KEY}"
    path = tmp_path / "secrets" / "key"
    path.parent.mkdir()
    path.write_text(f"{SECRET}\n")
    return f"${{file:{path}}}"


async def leak() -> dict[str, str]:
    return {"key": SECRET}


async def retried() -> str:
    raise LookupError(f"no entry for {SECRET}")


async def fail() -> str:
    raise LookupError(f"no entry for {SECRET}")


def decide(request: Any) -> Reply | Fault:
    turn = sum(message.role == "assistant" for message in request.messages)
    match request.messages[0].text:
        case "refuse":
            return Unauthorized()
        case "fail":
            return HttpError(500, message=f"cannot use {SECRET}")
    calls = [ToolCall("leak", {}), ToolCall("fail", {}), ToolCall("retried", {}), ToolCall("fail", {"wrong": SECRET})]
    return Reply(f"let me show {SECRET}", tool_calls=calls) if turn == 0 else Reply(f"it is {SECRET}", reasoning=SECRET)


def written(directory: Path) -> dict[str, bytes]:
    """Return all files of a run but the secret's own."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.parent.name != "secrets")
    return {str(path): path.read_bytes() for path in files}


@pytest.mark.parametrize("strategy", [None, "ignore"])
async def test_secret_of_a_connection_is_in_no_file_log_trace_or_plan(
    tmp_path: Path,
    reference: str,
    strategy: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_AND_EVENT")
    caplog.set_level(logging.DEBUG)
    heard: list[Any] = []
    said: list[Any] = []
    async with ModelServer(decide) as server:
        agent = asking().add_resource(
            "http", ResourceType.CHAT_MODEL_CONNECTION, connection(server.url, api_key=reference)
        )
        agent.add_resource(
            "m",
            ResourceType.CHAT_MODEL,
            setup(tools=["leak", "fail", "retried"], max_retries=1, error_handling_strategy=strategy),
        )
        agent.add_resource("leak", ResourceType.TOOL, leak)
        retry = Retry(attempts=2, initial="1ms")
        agent.add_resource("retried", ResourceType.TOOL, Tool.from_callable(retried, retry=retry))
        agent.add_resource("fail", ResourceType.TOOL, Tool.from_callable(fail))
        with collector() as seen:
            config = {
                "job": "secrets",
                "otlp.endpoint": seen.endpoint,
                "metrics.otlp": True,
                "tracing": {"enabled": True, "sample-ratio": 1.0},
                "event-log.level": "verbose",
                "event-log.dir": str(tmp_path / "logs"),
            }
            async with Engine(
                agent, state_dir=str(tmp_path / "state"), config=config, event_listeners=[heard.append]
            ) as engine:
                for kind in ("answer", "refuse", "fail"):
                    try:
                        said += await engine.submit(kind, kind, request_id=kind)
                    except RunFailed as error:
                        said.append(str(error))
        assert {request.headers["authorization"] for request in server.requests} <= {f"Bearer {SECRET}", "***"}
        assert len(server.requests) == 5
    assert len(said) == 3
    shown = {
        "outputs": repr(said).encode(),
        "plan": AgentPlan.from_agent(agent).to_json(),
        "listeners": repr(heard).encode(),
        "log": caplog.text.encode(),
        "streams": "".join(capfd.readouterr()).encode(),
        "telemetry": b"".join(seen.bodies),
    }
    files = written(tmp_path)
    assert any(b"let me show" in body for body in seen.bodies)  # what is said is captured
    assert any("/logs/" in path for path in files)
    assert any("/state/" in path for path in files)
    shown |= files
    secrets = [form.encode() for form in (SECRET, SECRET.replace("\\", "\\\\").replace('"', '\\"'), SECRET[-11:])]
    assert [where for where, text in shown.items() if any(secret in text for secret in secrets)] == []


@pytest.mark.parametrize("pieces", [1, 3, 40])
async def test_a_stream_shows_no_secret_though_it_comes_in_pieces(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        answer = await ctx.chat("m", str(event.input), stream="answer")
        ctx.send_event(OutputEvent(answer.text))

    monkeypatch.setenv("MODEL_KEY", SECRET)
    reply = Reply(f"it is {SECRET}, sk-", reasoning=f"say {SECRET}?", chunk_count=pieces)
    async with ModelServer(reply) as server:
        agent = agent_of(act).add_resource(
            "http", ResourceType.CHAT_MODEL_CONNECTION, connection(server.url, api_key="${env:MODEL_KEY}")
        )
        agent.add_resource("m", ResourceType.CHAT_MODEL, setup())
        async with Engine(agent, in_memory=True) as engine:
            chunks = [one async for one in engine.stream("k", "hello", tokens=True)]
    output = chunks.pop()
    told = {kind: "".join(one.text for one in chunks if one.kind == kind) for kind in ("text", "reasoning")}
    assert output == told["text"] == "it is ***, sk-"
    assert told["reasoning"] == "say ***?"


async def test_secrets_of_the_configuration_are_not_told_to_models_or_written(tmp_path: Path) -> None:
    def look(key: str) -> str:
        raise LookupError(f"401 for https://shop.example/?tok={key}")

    def decide_call(request: Any) -> Reply:
        return Reply("done") if request.messages[-1].role == "tool" else Reply(tool_calls=[ToolCall("look", {})])

    tool = Tool.from_callable(look, injected_args={"key": InjectedArg.from_config("shop.api-key")})
    async with ModelServer(decide_call) as server:
        agent = over_http(server.url, tools=["look"]).add_resource("look", ResourceType.TOOL, tool)
        config = {"config": {"shop.api-key": SECRET}}
        async with Engine(agent, state_dir=str(tmp_path), config=config) as engine:
            assert [said["text"] for said in await engine.submit("k", "hello")] == ["done"]
        told = server.requests[-1].messages[-1].text
    assert told.endswith("401 for https://shop.example/?tok=***")
    assert [path for path, text in written(tmp_path).items() if SECRET[-11:].encode() in text] == []

"""Calls of models and tools as a collector, Prometheus and the admin port see them; and what nobody is to see."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from typing import Any

import msgspec
import pytest

from agentflow import (
    Agent,
    BaseChatModelConnection,
    ChatMessage,
    Engine,
    EventType,
    OutputEvent,
    RateLimit,
    ResourceDescriptor,
    ResourceType,
    Retry,
    RunnerContext,
    Tool,
    Usage,
)
from agentflow.cli.top import summary
from agentflow.errors import ModelUnavailable
from agentflow.observability.admin import resources_document
from agentflow.observability.job_scraper import JobScraper
from agentflow.testing import ScriptedChatModel
from tests.engines import until
from tests.otlp_receiver import Collector, collector

USAGE = Usage(input_tokens=120, output_tokens=30, cached_tokens=100, cache_write_tokens=5, reasoning_tokens=7)
CALL = {"tool": "find_orders", "arguments": {"customer": "c-1", "password": "hunter22"}, "id": "call_9"}
PRICES = {"config.chat.prices.small.input": 1.0, "config.chat.prices.small.output": 10.0}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_SEMCONV_STABILITY_OPT_IN", "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"):
        monkeypatch.delenv(name, raising=False)


def find_orders(customer: str, password: str) -> str:
    """Find the orders of a customer."""
    if customer == "nobody":
        raise LookupError("there is no such customer; api_key=sk-12345")
    return f"order 17 of {customer}; api_key=sk-12345"


def shop(*replies: Any, **arguments: Any) -> Agent:
    model = ScriptedChatModel(
        replies,
        model="small",
        tools=["find_orders"],
        prompt=None,
        max_retries=2,
        retry_wait_interval="1ms",
        **arguments,
    )

    async def answer(event: Any, ctx: RunnerContext) -> None:
        said = await ctx.chat("assistant", event.input["question"])
        if event.input.get("waits"):
            await ctx.sleep("1ms")
            await ctx.durable_execute_async(fail_once, event.input["question"])
        ctx.send_event(OutputEvent(said.content))

    failed: list[str] = []

    def fail_once(question: str) -> str:
        if question not in failed:
            failed.append(question)
            raise OSError("again")
        return question

    agent = Agent("Shop").add_action("answer", [EventType.InputEvent], answer, retry=Retry(attempts=1))
    agent.add_resource("find_orders", ResourceType.TOOL, Tool.from_callable(find_orders))
    return agent.add_resource("assistant", ResourceType.CHAT_MODEL, model)


def message(text: str) -> ChatMessage:
    return ChatMessage(content=text, usage=USAGE, extra_args={"model_name": "small-2", "response_id": "resp_1"})


def watched(agent: Agent, questions: list[dict[str, Any]], **config: Any) -> Collector:
    """Ask an engine, and return what a collector has got of it."""

    async def ask() -> None:
        settings = {
            "job": "orders",
            "otlp.endpoint": seen.endpoint,
            "metrics.otlp": True,
            "tracing": {"enabled": True, "sample-ratio": 1.0},
            **PRICES,
            **config,
        }
        async with Engine(agent, in_memory=True, config=settings) as engine:
            for place, question in enumerate(questions):
                await engine.submit(f"k{place}", question)

    with collector() as seen:
        asyncio.run(ask())
    return seen


def test_calls_are_spans_below_their_steps_with_what_the_conventions_want():
    seen = watched(shop(CALL, message("One order.")), [{"question": "Where is it?"}])
    chats, (tool,) = seen.by_name("chat small"), seen.by_name("execute_tool find_orders")
    assert [chat.kind for chat in chats] == ["client", "client"]
    by_id = {span.id: span for span in seen.spans}
    assert [by_id[chat.parent].name for chat in chats] == ["step chat:assistant"] * 2
    assert by_id[tool.parent].name == "step tool:find_orders"
    for span in (*chats, tool):
        assert span.trace == by_id[span.parent].trace
        assert by_id[span.parent].began_ns <= span.began_ns <= span.ended_ns <= by_id[span.parent].ended_ns
    assert chats[1].attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "scripted",
        "gen_ai.request.model": "small",
        "gen_ai.agent.name": "Shop",
        "gen_ai.response.model": "small-2",
        "gen_ai.response.id": "resp_1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 120,
        "gen_ai.usage.output_tokens": 30,
        "gen_ai.usage.cache_read.input_tokens": 100,
        "gen_ai.usage.cache_creation.input_tokens": 5,
        "gen_ai.usage.reasoning.output_tokens": 7,
        "agentflow.resource.name": "assistant",
        "agentflow.call.attempt": 1,
        "agentflow.cost": pytest.approx((120 * 1 + 30 * 10) / 1e6),
    }
    assert (tool.kind, tool.attributes) == (
        "internal",
        {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "find_orders",
            "gen_ai.tool.call.id": tool.attributes["gen_ai.tool.call.id"],
            "gen_ai.tool.type": "function",
            "gen_ai.agent.name": "Shop",
        },
    )
    assert tool.attributes["gen_ai.tool.call.id"].startswith("call_"), "that of the run, not the provider's"
    (run,), (action,) = seen.by_name("run Shop"), seen.by_name("action answer")
    assert (run.attributes["gen_ai.operation.name"], run.attributes["gen_ai.agent.name"]) == ("invoke_agent", "Shop")
    assert action.attributes["agentflow.usage.model_calls"] == 2
    assert action.attributes["agentflow.usage.output_tokens"] > 30
    assert len(by_id) == len(seen.spans), "an id came twice"


def test_calls_that_fail_are_spans_with_their_error_and_retries_are_counted():
    away = ModelUnavailable("no answer; api_key=sk-12345", "scripted", "small", 503)
    nobody = {"tool": "find_orders", "arguments": {"customer": "nobody", "password": ""}}
    seen = watched(shop(away, nobody, message("I do not know.")), [{"question": "Where?"}])
    first, second, _ = sorted(seen.by_name("chat small"), key=lambda span: span.began_ns)
    assert (first.is_error, first.attributes["error.type"]) == (True, "ModelUnavailable")
    assert "gen_ai.usage.input_tokens" not in first.attributes
    assert (second.is_error, second.attributes["agentflow.call.attempt"]) == (False, 2)
    (tool,) = seen.by_name("execute_tool find_orders")
    assert (tool.is_error, tool.attributes["error.type"]) == (True, "LookupError")
    labels = {"agent": "Shop", "action": "answer"}
    own = {**labels, "resource": "assistant", "model": "small"}
    failed = [point.as_int for attributes, point in seen.metrics["agentflow.llm.calls"] if "error.type" in attributes]
    assert failed == [1]
    assert seen.value("agentflow.llm.retries", **own) == 1
    assert seen.value("agentflow.tool.calls", **labels, tool="find_orders", **{"error.type": "LookupError"}) == 1
    assert not any(b"sk-12345" in body for body in seen.bodies)


def test_metrics_have_the_names_and_buckets_of_the_conventions_and_our_own_beside_them():
    seen = watched(shop(message("a"), message("b")), [{"question": "1"}, {"question": "2"}])
    names = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "scripted", "gen_ai.request.model": "small"}
    ((attributes, duration),) = seen.metrics["gen_ai.client.operation.duration"]
    assert names.items() <= attributes.items()
    assert attributes["gen_ai.response.model"] == "small-2"
    assert (duration.count, list(duration.explicit_bounds)[:2], duration.explicit_bounds[-1]) == (
        2,
        [0.01, 0.02],
        81.92,
    )
    usage = {attributes["gen_ai.token.type"]: point for attributes, point in seen.metrics["gen_ai.client.token.usage"]}
    assert {kind: (point.count, point.sum) for kind, point in usage.items()} == {"input": (2, 240), "output": (2, 60)}
    assert list(usage["input"].explicit_bounds) == [4**power for power in range(14)]
    assert "gen_ai.client.operation.time_to_first_chunk" not in seen.metrics, "nothing was streamed"

    own = {"agent": "Shop", "action": "answer", "resource": "assistant", "model": "small"}
    assert seen.value("agentflow.llm.calls", **own) == 2
    tokens = {kind: seen.value("agentflow.llm.tokens", **own, **{"token.type": kind}) for kind in ("input", "output")}
    assert tokens == {"input": 240, "output": 60}
    assert seen.value("agentflow.llm.tokens", **own, **{"token.type": "cached"}) == 200
    assert seen.value("agentflow.llm.tokens", **own, **{"token.type": "reasoning"}) == 14
    assert seen.value("agentflow.llm.cost", **own) == pytest.approx(2 * (120 + 300) / 1e6)
    (waits,) = [point for _, point in seen.metrics["agentflow.limiter.wait.duration"]]
    assert waits.count == 2


def test_first_pieces_are_measured_where_the_provider_streams():
    seen = watched(shop(message("one two three"), first_token_timeout="5s"), [{"question": "1"}])
    (chat,) = seen.by_name("chat small")
    assert chat.attributes["gen_ai.request.stream"] is True
    assert 0 <= chat.attributes["gen_ai.response.time_to_first_chunk"] <= (chat.ended_ns - chat.began_ns) / 1e9
    ((_, first),) = seen.metrics["gen_ai.client.operation.time_to_first_chunk"]
    assert first.count == 1


def test_who_opts_in_gets_the_names_of_the_latest_conventions(monkeypatch):
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http, gen_ai_latest_experimental")
    seen = watched(shop(message("a")), [{"question": "1"}])
    assert "gen_ai.client.token.usage" not in seen.metrics
    assert (
        seen.value("gen_ai.client.inference.usage.cache_write.input_tokens", **{"gen_ai.request.model": "small"}) == 5
    )
    ((attributes, point),) = seen.metrics["gen_ai.client.inference.operation.input_tokens"]
    assert (point.count, point.sum, "gen_ai.token.type" in attributes) == (1, 120, False)
    (chat,) = seen.by_name("chat small")
    assert chat.attributes["gen_ai.usage.cache_write.input_tokens"] == 5


def test_what_was_said_leaves_the_process_only_where_it_is_asked_for(monkeypatch):
    seen = watched(shop(CALL, message("One order.")), [{"question": "Where is it?"}])
    assert not any(
        word in body for body in seen.bodies for word in (b"Where is it?", b"One order", b"hunter22", b"order 17")
    )
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "all of it")
    seen = watched(shop(message("One order.")), [{"question": "Where is it?"}])
    assert not any(b"Where is it?" in body for body in seen.bodies), "what is not known captures nothing"


@pytest.mark.parametrize("where", ["SPAN_ONLY", "EVENT_ONLY", "SPAN_AND_EVENT"])
def test_what_was_said_is_captured_without_secrets(monkeypatch, tmp_path, where):
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", where)
    log = {"event-log.level": "verbose", "event-log.trace.enabled": True, "event-log.dir": str(tmp_path)}
    seen = watched(
        shop(CALL, message("One order.")),
        [{"question": "Where is order 4711-0815?"}],
        **{"redaction.patterns": [r"\d{4}-\d{4}"]},
        **log,
    )
    chat = max(seen.by_name("chat small"), key=lambda span: span.began_ns)
    (tool,) = seen.by_name("execute_tool find_orders")
    events = [attributes for name, _, attributes in chat.events if name == "gen_ai.client.inference.operation.details"]
    assert len(events) == (0 if where == "SPAN_ONLY" else 1)
    assert ("gen_ai.input.messages" in chat.attributes) == (where != "EVENT_ONLY")
    said = chat.attributes if where != "EVENT_ONLY" else events[0]
    question, call, result = msgspec.json.decode(said["gen_ai.input.messages"])
    assert question == {"role": "user", "parts": [{"type": "text", "content": "Where is order ***?"}]}
    assert call["parts"][0]["arguments"] == {"customer": "c-1", "password": "***"}
    assert result["role"] == "tool"
    assert result["parts"][0]["response"] == "order 17 of c-1; api_key=***"
    (answer,) = msgspec.json.decode(said["gen_ai.output.messages"])
    assert answer == {
        "role": "assistant",
        "parts": [{"type": "text", "content": "One order."}],
        "finish_reason": "stop",
    }
    (definition,) = msgspec.json.decode(said["gen_ai.tool.definitions"])
    assert (definition["name"], definition["type"]) == ("find_orders", "function")
    if where == "SPAN_ONLY":
        assert msgspec.json.decode(tool.attributes["gen_ai.tool.call.arguments"])["password"] == "***"
        assert tool.attributes["gen_ai.tool.call.result"] == "order 17 of c-1; api_key=***"
    assert not any(word in body for body in seen.bodies for word in (b"hunter22", b"sk-12345", b"4711-0815"))
    lines = [msgspec.json.decode(line) for path in tmp_path.iterdir() for line in path.read_bytes().splitlines()]
    reports = [line for line in lines if line.get("entityType") in ("llm", "tool")]
    assert reports
    assert not any("messages" in str(line) or "Where is" in str(line) for line in reports)


def test_secrets_of_resources_are_in_no_span(monkeypatch):
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_ONLY")
    monkeypatch.setenv("SHOP_KEY", "s3cr3t-of-the-shop")
    agent = shop(message("The key is s3cr3t-of-the-shop."))
    agent.add_resource("keyed", ResourceType.CHAT_MODEL_CONNECTION, ResourceDescriptor(Keyed, token="${env:SHOP_KEY}"))
    agent.add_action("use", ["never"], lambda event, ctx: None)

    async def ask(event: Any, ctx: RunnerContext) -> None:
        ctx.get_resource("keyed", ResourceType.CHAT_MODEL_CONNECTION)
        await ctx.chat("assistant", "Say s3cr3t-of-the-shop")
        ctx.send_event(OutputEvent(1))

    asking = Agent("Asks").add_action("ask", [EventType.InputEvent], ask)
    for name, kind, resource in agent.resources:
        asking.add_resource(name, kind, resource)
    seen = watched(asking, [{"question": ""}])
    (chat,) = seen.by_name("chat small")
    assert "The key is ***." in chat.attributes["gen_ai.output.messages"]
    assert not any(b"s3cr3t" in body for body in seen.bodies)


class Keyed(BaseChatModelConnection):
    token: str


class Unreachable(BaseChatModelConnection):
    token: str = ""

    async def open(self) -> None:
        raise OSError("no route to host")


def test_replayed_calls_are_counted_as_saved_and_are_no_spans():
    async def ask(event: Any, ctx: RunnerContext) -> None:
        said = await ctx.chat("assistant", "Where is it?")
        await ctx.sleep("80ms")
        ctx.send_event(OutputEvent(said.content))

    agent = Agent("Shop").add_action("ask", [EventType.InputEvent], ask)
    agent.add_resource("assistant", ResourceType.CHAT_MODEL, ScriptedChatModel([message("a")], model="small"))
    seen = watched(agent, [{}], **{"run.park-after": "1ms"})
    assert seen.value("agentflow.llm.calls.saved", agent="Shop", action="ask", resource="assistant") == 1
    assert seen.value("agentflow.steps.replayed", step="chat:assistant") == 1
    assert seen.value("agentflow.llm.calls", agent="Shop", resource="assistant") == 1
    assert len(seen.by_name("chat small")) == len(seen.by_name("step chat:assistant")) == 1


def answer_of(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
        return answer.read().decode()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


async def test_gates_are_shown_as_they_are_while_calls_wait():
    port, goes_on, is_asked = free_port(), asyncio.Event(), asyncio.Event()

    async def reply(request: Any) -> ChatMessage:
        is_asked.set()
        await goes_on.wait()
        return message("a")

    async def ask(event: Any, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent((await ctx.chat("assistant", "Where is it?")).content))

    model = ScriptedChatModel([reply, reply], model="small", limits=[RateLimit(concurrency=1)])
    agent = Agent("Shop").add_action("ask", [EventType.InputEvent], ask)
    agent.add_resource("assistant", ResourceType.CHAT_MODEL, model)
    config = {"job": "orders", "admin.host": "127.0.0.1", "admin.port": port, **PRICES}
    scraper = JobScraper([f"http://127.0.0.1:{port}"])
    async with Engine(agent, in_memory=True, config=config) as engine:
        asking = [asyncio.ensure_future(engine.submit(key, {})) for key in ("a", "b")]
        await is_asked.wait()
        await until(lambda: b'"waiting":1' in msgspec.json.encode(resources_document(engine._job.resources)))
        view = await asyncio.to_thread(scraper.poll)
        assert view.models is not None
        assert (view.models.active, view.models.waiting) == (1, 1)
        (gate,) = msgspec.json.decode(await asyncio.to_thread(answer_of, port, "resources"))["gates"]
        assert gate == {
            "connection": "ScriptedConnection",
            "active": 1,
            "waiting": 1,
            "circuitOpen": False,
            "retryAfterSeconds": 0.0,
        }
        goes_on.set()
        await asyncio.gather(*asking)
        view = await asyncio.to_thread(scraper.poll)
        assert view.models is not None
        assert (view.models.active, view.models.waiting) == (0, 0)
        assert view.models.cost == pytest.approx(2 * (120 + 300) / 1e6)
        assert dict(summary(view))["cost"] == "0.00084"
        assert view.models.calls_per_s > 0
        waited = await asyncio.to_thread(answer_of, port, "metrics")
    assert "agentflow_limiter_wait_duration_seconds_count" in waited


async def test_a_resource_that_failed_is_shown_and_the_process_stays_ready():
    port = free_port()

    async def ask(event: Any, ctx: RunnerContext) -> None:
        try:
            await ctx.get_resource("away", ResourceType.CHAT_MODEL_CONNECTION)
        except OSError:
            ctx.send_event(OutputEvent("away"))

    agent = Agent("Shop").add_action("ask", [EventType.InputEvent], ask)
    agent.add_resource("away", ResourceType.CHAT_MODEL_CONNECTION, ResourceDescriptor(Unreachable))
    config = {"job": "orders", "admin.host": "127.0.0.1", "admin.port": port}
    async with Engine(agent, in_memory=True, config=config) as engine:
        assert await asyncio.to_thread(answer_of, port, "readyz") == "ok\n"
        assert await engine.submit("k", {}) == ["away"]
        (failed,) = engine.stats().resources
        assert (failed.name, failed.state, failed.error) == ("away", "failed", "no route to host")
        ready = await asyncio.to_thread(answer_of, port, "readyz")
        assert ready == "ok\nchat_model_connection 'away' failed: no route to host\n"
        document = msgspec.json.decode(await asyncio.to_thread(answer_of, port, "resources"))
        assert document["resources"] == [
            {"name": "away", "type": "chat_model_connection", "state": "failed", "error": "no route to host"}
        ]
        metrics = await asyncio.to_thread(answer_of, port, "metrics")
        assert (
            'agentflow_resources{job="orders",resource="away",state="failed",type="chat_model_connection"} 1.0'
            in metrics
        )

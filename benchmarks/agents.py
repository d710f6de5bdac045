"""Agents that talk to models: calls a second through the official SDKs, beside the SDK alone, and what a turn of tools costs.

The model is a local server that speaks the provider's protocol, a process of its own, with 50 ms latency; all the rest is one process.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from agentflow import (
    Agent,
    BaseChatModelSetup,
    ChatMessage,
    ChatRequestEvent,
    ChatResponseEvent,
    Engine,
    EventType,
    JobSettings,
    OutputEvent,
    ReActAgent,
    ResourceDescriptor,
    ResourceType,
    RunnerContext,
    StateSettings,
)
from agentflow.api.chat_models import ChatRequest, OnDelta
from agentflow.environment.openers import new_event_loop, state_opener
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.collection import rare_collections
from agentflow.runtime.job import Job
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.settings import RunSettings
from agentflow.testing.model_server import HttpError, Reply
from agentflow.testing.model_server import ToolCall as ServedCall
from agentflow.testing.scripted_models import ScriptedConnection
from benchmarks.workloads import CountingSink, PreparedSource, check_outputs

ROOT = Path(__file__).resolve().parents[1]
LATENCY = "50ms"
AT_ONCE = 2_000
ANSWER = "The order has left the warehouse and arrives on Friday."
TURNS, TOOLS = 3, 4


@contextmanager
def model_server(*arguments: str) -> Iterator[str]:
    """Start a model server, a process of its own, and yield its address."""
    command = [sys.executable, "-m", "agentflow.testing.model_server", "--latency", LATENCY, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def _run(work: Callable[[], Awaitable[float]]) -> float:
    async def run() -> float:
        return await work()

    with rare_collections(), asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(run())


# -- the SDK alone
def sdk_rate(provider: str, factor: float) -> float:
    """Calls a second of the SDK alone, 2,000 at once, with its aiohttp transport."""
    calls = int(12_000 * factor)

    async def measure() -> float:
        with model_server("--text", ANSWER, "--no-requests") as url:
            async with _client(provider, url) as ask:
                return await _rate(ask, calls)

    return _run(measure)


@asynccontextmanager
async def _client(provider: str, url: str) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    messages: Any = [{"role": "user", "content": "Where is my order?"}]
    if provider == "openai":
        import openai

        http = openai.DefaultAioHttpClient(limits=_limits(), timeout=60)
        async with openai.AsyncOpenAI(
            api_key="sk-local", base_url=f"{url}/v1", max_retries=0, http_client=http
        ) as client:
            yield lambda: client.chat.completions.create(model="m", messages=messages)
    else:
        import anthropic

        http_of_anthropic = anthropic.DefaultAioHttpClient(limits=_limits(), timeout=60)
        async with anthropic.AsyncAnthropic(
            api_key="sk-local", base_url=url, max_retries=0, http_client=http_of_anthropic
        ) as other:
            yield lambda: other.messages.create(model="m", max_tokens=64, messages=messages)


def _limits() -> Any:
    import httpx2  # what both SDKs are built on

    return httpx2.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)


async def _rate(ask: Callable[[], Awaitable[Any]], calls: int) -> float:
    async def caller(numbers: Iterator[int]) -> None:
        for _ in numbers:
            await ask()

    warm = iter(range(AT_ONCE))
    await asyncio.gather(*(caller(warm) for _ in range(AT_ONCE)))  # connections are open, as in a job that runs
    numbers = iter(range(calls))
    began = time.perf_counter()
    await asyncio.gather(*(caller(numbers) for _ in range(AT_ONCE)))
    return calls / (time.perf_counter() - began)


# -- durable calls
async def ask_directly(event: Any, ctx: RunnerContext) -> None:
    """One call within an action."""
    answer = await ctx.chat("assistant", "Where is my order?")
    assert answer.content == ANSWER
    ctx.send_event(OutputEvent(event.input["id"]))


def request(event: Any, ctx: RunnerContext) -> None:
    """One call by the built-in action."""
    ctx.sensory_memory.set("id", event.input["id"])
    ctx.send_event(ChatRequestEvent("assistant", [ChatMessage(content="Where is my order?")]))


def respond(event: Any, ctx: RunnerContext) -> None:
    """Send out what was asked for."""
    assert ChatResponseEvent.from_event(event).response.content == ANSWER
    ctx.send_event(OutputEvent(ctx.sensory_memory.get("id")))


def calling_agent(provider: str, url: str, *, is_by_event: bool) -> Agent:
    """Return an agent with one call of a model per input."""
    agent = Agent("calls")
    base = f"{url}/v1" if provider == "openai" else url
    agent.add_resource(
        "provider",
        ResourceType.CHAT_MODEL_CONNECTION,
        ResourceDescriptor(provider, api_key="sk-local", base_url=base),
    )
    setup = ResourceDescriptor(provider, connection="provider", model="m")
    agent.add_resource("assistant", ResourceType.CHAT_MODEL, setup)
    if not is_by_event:
        return agent.add_action("ask", EventType.InputEvent, ask_directly)
    agent.add_action("request", EventType.InputEvent, request)
    return agent.add_action("respond", EventType.ChatResponseEvent, respond)


def call_rate(provider: str, is_by_event: bool, factor: float) -> float:  # noqa: FBT001 (a row of the table)
    """Durable calls a second, 2,000 runs in flight, RocksDB, exactly-once."""
    return _calls(provider, is_by_event, factor)[0]


def lag_p99_ms(provider: str, factor: float) -> float:
    """Longest delay of a timer of the event loop, 99th percentile, while 2,000 calls are in flight."""
    return _calls(provider, is_by_event=False, factor=factor)[1]


def _calls(provider: str, is_by_event: bool, factor: float) -> tuple[float, float]:  # noqa: FBT001 (as above)
    calls = int(12_000 * factor)
    lags: list[float] = []

    async def measure() -> float:
        with model_server("--text", ANSWER, "--no-requests") as url, tempfile.TemporaryDirectory() as directory:
            agent = calling_agent(provider, url, is_by_event=is_by_event)
            settings = JobSettings(state=StateSettings(dir=directory), run=RunSettings(in_flight_max=AT_ONCE))
            source, sink = PreparedSource(calls + AT_ONCE, AT_ONCE), CountingSink()
            stage = AgentStage(AgentPlan.from_agent(agent), "user")
            spec = JobSpec(settings, (stage,), lambda: source, lambda: {"sink": sink}, state_opener(settings))
            job = Job(spec)
            running = asyncio.ensure_future(job.run())
            watching = asyncio.ensure_future(_watch_lag(lags))
            await _reached(job, running, AT_ONCE)
            began, before = time.perf_counter(), job.status.records_out
            lags.clear()
            await _reached(job, running, before + int(calls * 0.8))
            rate = (job.status.records_out - before) / (time.perf_counter() - began)
            await running
            watching.cancel()
            check_outputs("calls", sink.outputs, calls + AT_ONCE)
            return rate

    rate = _run(measure)
    return rate, quantiles(lags, n=100)[98] * 1e3


async def _reached(job: Job, running: asyncio.Future[Any], outputs: int) -> None:
    while job.status.records_out < outputs and not running.done():  # noqa: ASYNC110 (a job tells nobody of each output)
        await asyncio.sleep(0.01)


async def _watch_lag(lags: list[float]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + 0.005
        await asyncio.sleep(0.005)
        lags.append(loop.time() - due)


# -- turns of tools
async def find_order(number: int) -> str:
    """Find an order."""
    await asyncio.sleep(0.05)
    return f"order {number}: on its way"


at_work: list[tuple[float, float]] = []
"""When a model or a tool was at work."""


class TimedConnection(ScriptedConnection):
    """Scripted models that note when they were at work."""

    async def complete(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatMessage:
        """Return the next reply."""
        began = time.perf_counter()
        answer = await super().complete(request, on_delta)
        at_work.append((began, time.perf_counter()))
        return answer


def turn_overhead_ms(factor: float) -> float:
    """What the engine adds to a turn of four parallel tools: beyond the time of the model and of the tools, as they took it."""
    runs = max(5, int(40 * factor))
    wanted = [
        {"tool": "find_order_timed", "arguments": {"number": number}, "id": f"call-{number}"} for number in range(TOOLS)
    ]

    async def model_turn(asked: Any) -> Any:
        await asyncio.sleep(0.05)
        turn = sum(message.role == "assistant" for message in asked.messages)
        return wanted if turn < TURNS - 1 else ANSWER

    async def find_order_timed(number: int) -> str:
        """Find an order."""
        began = time.perf_counter()
        await asyncio.sleep(0.05)
        at_work.append((began, time.perf_counter()))
        return f"order {number}: on its way"

    async def measure() -> float:
        agent = ReActAgent(chat_model=BaseChatModelSetup(connection="timed", model="m"), tools=[find_order_timed])
        connection = TimedConnection(rules=[{"when": "", "reply": model_turn}])
        agent.add_resource("timed", ResourceType.CHAT_MODEL_CONNECTION, connection)
        with tempfile.TemporaryDirectory() as directory:
            async with Engine(agent, state_dir=directory) as engine:
                times = []
                for number in range(runs):
                    began = time.perf_counter()
                    assert await engine.submit(f"k{number}", "Where are my orders?") == [ANSWER]
                    times.append(time.perf_counter() - began - _at_work_s(at_work))
                    at_work.clear()
        return median(times) / TURNS * 1e3

    return _run(measure)


def _at_work_s(spans: list[tuple[float, float]]) -> float:
    """Return how long at least one of some spans lasted."""
    whole, until = 0.0, 0.0
    for began, ended in sorted(spans):
        whole += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return whole


def react_rate(factor: float) -> float:
    """Runs a second of three turns with four tools each, 1,000 runs in flight, OpenAI's SDK."""
    runs = int(3_000 * factor)

    async def measure() -> float:
        script = f"{ROOT}/benchmarks/agents.py:served_turn"
        with model_server("--script", script, "--no-requests") as url, tempfile.TemporaryDirectory() as directory:
            agent = ReActAgent(
                chat_model=ResourceDescriptor("openai", connection="provider", model="m"), tools=[find_order]
            )
            connection = ResourceDescriptor("openai", api_key="sk-local", base_url=f"{url}/v1")
            agent.add_resource("provider", ResourceType.CHAT_MODEL_CONNECTION, connection)
            async with Engine(agent, state_dir=directory, config={"run.in-flight-max": 1_000}) as engine:
                numbers = itertools.count()

                async def caller() -> None:
                    while (number := next(numbers)) < runs:
                        assert await engine.submit(f"k{number}", "Where are my orders?") == [ANSWER]

                began = time.perf_counter()
                await asyncio.gather(*(caller() for _ in range(1_000)))
                return runs / (time.perf_counter() - began)

    return _run(measure)


def served_turn(asked: Any) -> Reply:
    """Answer a request as the model server's script: two turns of four tools, then the answer."""
    turn = sum(message.role == "assistant" for message in asked.messages)
    if turn >= TURNS - 1:
        return Reply(ANSWER)
    return Reply(tool_calls=[ServedCall("find_order", {"number": number}) for number in range(TOOLS)])


# -- a model that refuses
KEYS = 1_000
_refused: set[str] = set()


def refusing(asked: Any) -> Reply | HttpError:
    """Answer a request as the model server's script: model ``bad`` refuses the first call of each key with a 429."""
    name = asked.messages[-1].text
    if asked.model == "bad" and name not in _refused:
        _refused.add(name)
        return HttpError(429, retry_after_ms=20)
    return Reply(ANSWER)


def beside_refusing_ratio(factor: float) -> float:
    """Rate of 500 keys of one model while 500 keys of another one are refused half of their calls, as a multiple of that without them."""
    return _good_rate(factor, is_bad_there=True)[0] / _good_rate(factor, is_bad_there=False)[0]


def refused_fairness(factor: float) -> float:
    """Jain's index over the times that the keys of the refusing model took: 1 where all took as long."""
    times = _good_rate(factor, is_bad_there=True)[1]
    return sum(times) ** 2 / (len(times) * sum(time_s**2 for time_s in times))


def _good_rate(factor: float, *, is_bad_there: bool) -> tuple[float, list[float]]:
    rounds = max(2, int(4 * factor))
    times: list[float] = []

    async def measure() -> float:
        script = f"{ROOT}/benchmarks/agents.py:refusing"
        limits = [{"per": "model", "concurrency": 10}]  # so that limits decide, and not the processor
        with model_server("--script", script, "--no-requests") as url, tempfile.TemporaryDirectory() as directory:
            agent = Agent("two").add_action("ask", EventType.InputEvent, ask_named)
            connection = ResourceDescriptor("openai", api_key="sk-local", base_url=f"{url}/v1")
            agent.add_resource("provider", ResourceType.CHAT_MODEL_CONNECTION, connection)
            for model in ("good", "bad"):
                setup = ResourceDescriptor("openai", connection="provider", model=model, limits=limits)
                agent.add_resource(model, ResourceType.CHAT_MODEL, setup)
            async with Engine(agent, state_dir=directory, config={"run.in-flight-max": 2 * KEYS}) as engine:

                async def key(number: int, model: str) -> None:
                    began = time.perf_counter()
                    for turn in range(rounds):
                        asked = {"model": model, "text": f"{number}/{turn}"}
                        assert await engine.submit(f"k{number}", asked) == [ANSWER]
                    if model == "bad":
                        times.append(time.perf_counter() - began)

                began = time.perf_counter()
                bad = [asyncio.ensure_future(key(n, "bad")) for n in range(KEYS // 2) if is_bad_there]
                await asyncio.gather(*(key(n, "good") for n in range(KEYS // 2, KEYS)))
                rate = KEYS // 2 * rounds / (time.perf_counter() - began)
                await asyncio.gather(*bad)
                return rate

    return _run(measure), times


async def ask_named(event: Any, ctx: RunnerContext) -> None:
    """One call of the model that the input names."""
    answer = await ctx.chat(event.input["model"], event.input["text"])
    ctx.send_event(OutputEvent(answer.content))

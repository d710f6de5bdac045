"""Budgets: what they forbid does not happen, however many ask at the same time; what is spent is counted once."""

from __future__ import annotations

import asyncio
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agentflow import Agent, Engine, Event, EventType, OutputEvent, RunFailed, RunnerContext
from agentflow.actions.budgets import _FOLD_AT
from agentflow.api.budgets import Budget
from agentflow.api.chat_events import BudgetExhaustedEvent, ChatRequestEvent, ChatResponseEvent
from agentflow.api.chat_messages import ChatMessage, Usage, tool_call
from agentflow.api.failure import Retry
from agentflow.api.resources import ResourceType
from agentflow.errors import BudgetExhausted, ModelRejected
from agentflow.testing import ScriptedChatModel
from agentflow.testing.model_server import HttpError, ModelServer, Reply
from tests.engines import ONCE, agent_of, until
from tests.model_agents import HURRY, asking, over_http, scripted


def saying(text: str = "hi", tokens: int = 10) -> ChatMessage:
    return ChatMessage(content=text, usage=Usage(tokens // 2, tokens - tokens // 2))


def always(budgets: list[Any], **arguments: Any) -> ScriptedChatModel:
    return ScriptedChatModel(rules=[{"when": "", "reply": lambda request: saying()}], budgets=budgets, **arguments)


class FanOut:
    """An agent that asks ten times at once, and says what came of it when everything has come."""

    def __init__(self, count: int = 10) -> None:
        def ask(event: Event, ctx: RunnerContext) -> None:
            for n in range(count):
                ctx.send_event(ChatRequestEvent("m", [f"question {n}"]))

        def note(event: Event, ctx: RunnerContext) -> None:
            kind = "answered" if event.type == EventType.ChatResponseEvent else "exhausted"
            found = ctx.sensory_memory.update("found", lambda found: [*(found or []), kind])
            if len(found) == count:
                ctx.send_event(OutputEvent(sorted(found)))

        self.agent = Agent("A").add_action("ask", [EventType.InputEvent], ask)
        self.agent.add_action("note", [EventType.ChatResponseEvent, EventType.BudgetExhaustedEvent], note)


@pytest.mark.parametrize("per", ["run", "key", "day"])
async def test_ten_requests_at_once_make_as_many_calls_as_the_budget_has(per: str) -> None:
    async with ModelServer(Reply("hi"), latency_ms=20) as server:
        agent = over_http(server.url, FanOut().agent, budgets=[{"per": per, "calls": 3}])
        async with Engine(agent, in_memory=True) as engine:
            assert await engine.submit("k", "go") == [["answered"] * 3 + ["exhausted"] * 7]
            assert len(server.requests) == 3
            again = 3 if per == "run" else 0
            assert await engine.submit("k", "go") == [["answered"] * again + ["exhausted"] * (10 - again)]
            assert await engine.submit("other", "go") == [["answered"] * 3 + ["exhausted"] * 7]
        assert len(server.requests) == 6 + again


async def test_calls_that_end_at_different_times_are_counted_before_the_next_one_begins() -> None:
    asked = []

    async def reply(request: Any) -> ChatMessage:
        asked.append(request)
        await asyncio.sleep(0.001 * (len(asked) % 3))
        return saying()

    async def act(event: Event, ctx: RunnerContext) -> None:
        async def some() -> int:
            found = 0
            for n in range(5):
                try:
                    await ctx.chat("m", [f"{n}"])
                except BudgetExhausted:
                    return found
                found += 1
            return found

        ctx.send_event(OutputEvent(sum(await ctx.gather(*(some() for _ in range(6))))))

    model = ScriptedChatModel(rules=[{"when": "", "reply": reply}], budgets=[Budget(calls=13)])
    async with Engine(scripted(model, agent_of(act, retry=ONCE)), in_memory=True) as engine:
        assert await engine.submit("k", 1) == [13]
    assert len(asked) == 13


@pytest.mark.parametrize(
    ("budget", "calls"),
    [({"calls": 3}, 3), ({"tokens": 25}, 3), ({"money": 0.000_029}, 3), ({"per": "key", "calls": 2}, 2)],
)
async def test_budget_ends_a_loop_of_calls_typed(budget: dict[str, Any], calls: int) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        for n in range(10):
            await ctx.chat("m", [f"{n}"])

    model = always([budget], model="priced")
    config = {"config": {"chat.prices.priced.input": 1, "chat.prices.priced.output": 1}}
    async with Engine(scripted(model, agent_of(act, retry=ONCE)), in_memory=True, config=config) as engine:
        with pytest.raises(RunFailed, match="BudgetExhausted"):
            await engine.submit("k", 1)
    assert len(model.requests) == calls


async def test_event_has_what_the_model_has_said_so_far() -> None:
    async def look() -> str:
        return "seen"

    wanting = ChatMessage(content="let me look", tool_calls=[tool_call("look", {})])
    model = ScriptedChatModel(
        rules=[{"when": "", "reply": lambda request: wanting}], tools=["look"], budgets=[Budget(turns=2)]
    )
    async with Engine(scripted(model, asking(listens=True), look=look), in_memory=True) as engine:
        assert await engine.submit("k", "hello") == [{"budget": "run.turns", "partial": "let me look"}]
    assert len(model.requests) == 2


async def test_without_a_listener_the_run_fails_typed() -> None:
    async with Engine(scripted(always([Budget(calls=0)])), in_memory=True) as engine:
        with pytest.raises(RunFailed, match="the budget of 0 calls per run is spent"):
            await engine.submit("k", "hello")


async def test_failed_and_repeated_calls_count() -> None:
    async with ModelServer(HttpError(500)) as server:
        agent = over_http(server.url, asking(listens=True), budgets=[{"calls": 2}], max_retries=9)
        async with Engine(agent, in_memory=True) as engine:
            (said,) = await engine.submit("k", "hello")
        assert said["budget"] == "run.calls"
        assert len(server.requests) == 2


@pytest.mark.parametrize("retry_after_ms", [None, 5])
async def test_refused_calls_count_where_calls_do(retry_after_ms: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentflow.actions.model_requests._BACKOFF_S", 0.01)
    refused = HttpError(429, retry_after_ms=retry_after_ms)
    async with ModelServer([refused, refused, Reply("hi"), refused, Reply("no")]) as server:
        agent = over_http(server.url, asking(listens=True), budgets=[{"per": "key", "calls": 4}])
        async with Engine(agent, in_memory=True) as engine:
            (said,) = await engine.submit("k", "hello")
            assert (said["text"], said["retries"]) == ("hi", 0)
            (said,) = await engine.submit("k", "hello")
        assert said["budget"] == "key.calls"
        assert len(server.requests) == 4


class Days:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.at = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def now_ms(self) -> int:
        return round(self.at.timestamp() * 1000)


async def test_budget_of_a_key_lasts_over_its_runs_and_that_of_a_day_is_new_every_day() -> None:
    clock = Days()
    model = always([Budget(per="day", calls=2), Budget(per="key", calls=5)])
    async with Engine(scripted(model, asking(listens=True)), in_memory=True, clock=clock) as engine:

        async def spent() -> str:
            (said,) = await engine.submit("k", "hello")
            return said.get("budget", "answered")

        assert [await spent() for _ in range(3)] == ["answered", "answered", "day.calls"]
        clock.at += timedelta(days=1)
        assert [await spent() for _ in range(3)] == ["answered", "answered", "day.calls"]
        clock.at += timedelta(days=1)
        assert [await spent() for _ in range(3)] == ["answered", "key.calls", "key.calls"]
        days = engine.memory("k").get("__spent__.day").get_field_names()
        assert days == ["20260303"]


async def test_memory_of_what_a_key_has_spent_is_bounded_and_exact() -> None:
    model = always([Budget(per="key", calls=100), Budget(per="day", tokens=10**6)])
    async with Engine(scripted(model, asking(listens=True)), in_memory=True) as engine:
        for _ in range(50):
            await engine.submit("k", "hello")
        memory = engine.memory("k")
        entries = [memory.get(f"__spent__.key.{name}") for name in memory.get("__spent__.key").get_field_names()]
        assert len(entries) <= _FOLD_AT + 2
        assert [sum(column) for column in zip(*entries, strict=True)] == [50, 500, 0]


async def test_replay_costs_nothing(tmp_path: Path) -> None:
    waiting = asyncio.Event()

    async def act(event: Event, ctx: RunnerContext) -> None:
        for n in range(3):
            await ctx.chat("m", [f"{n}"])
        waiting.set()
        await ctx.wait_for("go")
        await ctx.chat("m", ["last"])
        ctx.send_event(OutputEvent("done"))

    def make(model: ScriptedChatModel) -> Engine:
        return Engine(scripted(model, agent_of(act, retry=ONCE)), state_dir=str(tmp_path), config=HURRY)

    async with make(always([Budget(per="key", calls=4)])) as engine:
        await engine.send("k", 1, request_id="r")
        await waiting.wait()
    model = always([Budget(per="key", calls=4)])
    async with make(model) as engine:
        await engine.signal("k", "go", None)
        assert await engine.submit("k", 1, request_id="r") == ["done"]
        assert engine.memory("k").get("__spent__.key").get_fields() != {}
        with pytest.raises(RunFailed, match="BudgetExhausted"):
            await engine.submit("k", 2)
    assert len(model.requests) == 1


async def test_call_in_doubt_counts_before_another_branch_calls(tmp_path: Path) -> None:
    started = asyncio.Event()
    calls = []

    async def hang(request: Any) -> ChatMessage:
        calls.append(request.messages[-1].text)
        started.set()
        await asyncio.Event().wait()
        return saying()

    async def act(event: Event, ctx: RunnerContext) -> None:
        async def late() -> str:
            await ctx.wait_for("go")
            return (await ctx.chat("m", ["late"])).content

        early, _ = await ctx.gather(ctx.chat("m", ["early"]), late())
        ctx.send_event(OutputEvent(early.content))

    def make(reply: Any) -> Engine:
        model = ScriptedChatModel(rules=[{"when": "", "reply": reply}], budgets=[Budget(calls=1)])
        return Engine(scripted(model, agent_of(act, retry=ONCE)), state_dir=str(tmp_path), config=HURRY)

    async with make(hang) as engine:
        await engine.send("k", 1, request_id="r")
        await started.wait()
    async with make(lambda request: calls.append(request.messages[-1].text) or saying()) as engine:
        await engine.signal("k", "go")
        with pytest.raises(RunFailed, match="BudgetExhausted"):
            await engine.submit("k", 1, request_id="r")
    assert calls == ["early"]


def test_event_keeps_its_fields() -> None:
    told = BudgetExhaustedEvent.from_event(BudgetExhaustedEvent("r", "run.calls", 3, 3, saying("half")))
    assert (told.request_id, told.budget, told.partial and told.partial.content) == ("r", "run.calls", "half")
    assert ChatResponseEvent("r", saying()).error is None


async def test_calls_of_attempts_that_failed_count_for_their_run() -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        await ctx.chat("m", ["the same each time"])
        await ctx.chat("m", [f"attempt {ctx.attempt}"])
        raise ValueError("again")

    model = always([Budget(calls=4)])
    agent = scripted(model, agent_of(act, retry=Retry(attempts=9, initial="1ms")))
    async with Engine(agent, in_memory=True) as engine:
        with pytest.raises(RunFailed, match="BudgetExhausted"):
            await engine.submit("k", 1)
    asked = [request.messages[-1].text for request in model.requests]
    assert asked == ["the same each time", "attempt 1", "attempt 2", "attempt 3"]


async def test_calls_that_a_later_attempt_asks_for_again_count_once() -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        for n in range(3):
            await ctx.chat("m", [f"{n}"])
        if ctx.attempt < 4:
            raise ValueError("again")
        ctx.send_event(OutputEvent((await ctx.chat("m", ["last"])).text))

    model = always([Budget(calls=4), Budget(per="key", calls=4)])
    agent = scripted(model, agent_of(act, retry=Retry(attempts=4, initial="1ms")))
    async with Engine(agent, in_memory=True) as engine:
        assert await engine.submit("k", 1) == ["hi"]
    assert len(model.requests) == 4


@pytest.mark.parametrize("per", ["run", "key"])
async def test_fallback_model_spends_the_budgets_of_the_model_that_was_asked(per: str) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        for n in range(9):
            await ctx.chat("m", [f"{n}"])

    def refuse(request: Any) -> ChatMessage:
        raise ModelRejected("no such model")

    asked = ScriptedChatModel(
        rules=[{"when": "", "reply": refuse}],
        error_handling_strategy="fallback",
        fallback_models=["other"],
        budgets=[{"per": per, "calls": 5}],
    )
    other = always([])
    agent = scripted(asked, agent_of(act, retry=ONCE)).add_resource("other", ResourceType.CHAT_MODEL, other)
    async with Engine(agent, in_memory=True) as engine:
        with pytest.raises(RunFailed, match="BudgetExhausted"):
            await engine.submit("k", 1)
    assert (len(asked.requests), len(other.requests)) == (3, 2)


async def test_calls_that_the_action_cancels_are_counted() -> None:
    async def reply(request: Any) -> ChatMessage:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody answers")

    async def act(event: Event, ctx: RunnerContext) -> None:
        for n in range(9):
            began.clear()
            asking = asyncio.ensure_future(ctx.chat("m", [f"{n}"]))
            done, _ = await asyncio.wait([asking, asyncio.ensure_future(began.wait())], return_when="FIRST_COMPLETED")
            if asking in done:
                await asking
            asking.cancel()
            await asyncio.wait([asking])

    began = asyncio.Event()
    model = ScriptedChatModel(rules=[{"when": "", "reply": reply}], budgets=[Budget(calls=3)])
    async with Engine(scripted(model, agent_of(act, retry=ONCE)), in_memory=True) as engine:
        with pytest.raises(RunFailed, match="BudgetExhausted"):
            await engine.submit("k", 1)
    assert len(model.requests) == 3


# -- tasks that do not complete
async def test_what_failed_runs_have_spent_counts_for_their_key_and_their_day() -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        await ctx.chat("m", ["hi"])
        raise ValueError("after the call")

    for per in ("key", "day"):
        model = always([Budget(per=per, calls=3)])
        async with Engine(scripted(model, agent_of(act, retry=ONCE)), in_memory=True) as engine:
            for _ in range(3):
                with pytest.raises(RunFailed, match="after the call"):
                    await engine.submit("k", 1)
            with pytest.raises(RunFailed, match="BudgetExhausted"):
                await engine.submit("k", 1)
            with pytest.raises(RunFailed, match="after the call"):
                await engine.submit("other", 1)
        assert len(model.requests) == 4


async def test_each_attempt_counts_the_calls_that_it_has_made_for_the_key() -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        await ctx.chat("m", ["the same each time"])
        await ctx.chat("m", [f"attempt {ctx.attempt}"])
        raise ValueError("again")

    model = always([Budget(per="key", calls=7)])
    agent = scripted(model, agent_of(act, retry=Retry(attempts=2, initial="1ms")))
    async with Engine(agent, in_memory=True) as engine:
        for calls in (3, 6):
            with pytest.raises(RunFailed, match="again"):
                await engine.submit("k", 1)
            assert len(model.requests) == calls
        with pytest.raises(RunFailed, match="BudgetExhausted"):
            await engine.submit("k", 1)
    assert len(model.requests) == 7


@pytest.mark.parametrize("ends", ["cancelled", "timed out", "parked and cancelled"])
async def test_a_call_that_a_run_was_stopped_in_the_middle_of_is_one(ends: str) -> None:
    async def reply(request: Any) -> ChatMessage:
        if ends != "parked and cancelled":
            began.set()
            await asyncio.Event().wait()
        return saying()

    async def act(event: Event, ctx: RunnerContext) -> None:
        await ctx.chat("m", ["hi"])
        began.set()
        await ctx.wait_for("never")

    began = asyncio.Event()
    model = ScriptedChatModel(rules=[{"when": "", "reply": reply}], budgets=[Budget(per="key", calls=1)])
    timeout = "50ms" if ends == "timed out" else None
    agent = Agent("A").add_action("act", [EventType.InputEvent], act, retry=ONCE, timeout=timeout)
    async with Engine(scripted(model, agent), in_memory=True, config={"run.park-after": "1ms"}) as engine:
        run = await engine.send("k", 1)
        await began.wait()
        if ends != "timed out":
            if ends == "parked and cancelled":
                await until(lambda: engine.runs()[0].state == "waiting")
            await engine.cancel("k")
        with pytest.raises(RunFailed):
            await engine.result(run)
        with pytest.raises(RunFailed, match="BudgetExhausted"):
            await engine.submit("k", 1)
    assert len(model.requests) == 1


async def test_what_a_failed_run_has_spent_survives_a_restart(tmp_path: Path) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        await ctx.chat("m", ["hi"])
        raise ValueError("after the call")

    model = always([Budget(per="key", calls=1)])
    for said in ("after the call", "BudgetExhausted"):
        async with Engine(scripted(model, agent_of(act, retry=ONCE)), state_dir=str(tmp_path)) as engine:
            with pytest.raises(RunFailed, match=said):
                await engine.submit("k", 1)
    assert len(model.requests) == 1


async def test_calls_of_a_model_without_budgets_are_free_also_in_a_replay(tmp_path: Path) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        for n in range(2):
            await ctx.chat("free", [f"{n}"])
            await ctx.chat("m", [f"{n}"])
        waiting.set()
        await ctx.wait_for("go")
        await ctx.chat("free", ["last"])
        await ctx.chat("m", ["last"])
        ctx.send_event(OutputEvent("done"))

    waiting = asyncio.Event()
    free, paid = always([]), always([Budget(calls=3), Budget(per="key", calls=3)])
    agent = scripted(paid, agent_of(act, retry=ONCE)).add_resource("free", ResourceType.CHAT_MODEL, free)
    async with Engine(agent, state_dir=str(tmp_path), config=HURRY) as engine:
        await engine.send("k", 1, request_id="r")
        await waiting.wait()
    async with Engine(agent, state_dir=str(tmp_path), config=HURRY) as engine:
        await engine.signal("k", "go", None)
        assert await engine.submit("k", 1, request_id="r") == ["done"]
    assert (len(free.requests), len(paid.requests)) == (3, 3)


def spent_by_key(ctx: RunnerContext) -> list[list[float]]:
    memory = ctx.short_term_memory
    entries = memory.get("__spent__.key").get_fields() if memory.is_exist("__spent__.key") else {}
    return [entries[name] for name in sorted(entries, key=lambda name: name.rpartition("_")[2])]


@pytest.mark.parametrize("is_parked", [False, True])
async def test_what_an_earlier_attempt_has_paid_is_not_counted_again_also_behind_a_long_wait(is_parked: bool) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        await ctx.chat("free", ["same"])
        await ctx.chat("m", ["same"])
        if ctx.attempt == 1:
            raise ValueError("once")
        waiting.set()
        await ctx.wait_for("go")
        ctx.send_event(OutputEvent(spent_by_key(ctx)))

    waiting = asyncio.Event()
    model = always([Budget(per="key", calls=9)])
    agent = scripted(model, agent_of(act, retry=Retry(attempts=2, initial="1ms")))
    agent.add_resource("free", ResourceType.CHAT_MODEL, always([]))
    config = {"run.park-after": "1ms" if is_parked else "1h"}
    async with Engine(agent, in_memory=True, config=config) as engine:
        run = await engine.send("k", 1)
        await waiting.wait()
        if is_parked:
            await until(lambda: engine.runs()[0].state == "waiting")
        await engine.signal("k", "go", None)
        assert await engine.result(run) == [[[1, 10, 0.0], [0, 0, 0.0]]]
    assert len(model.requests) == 1


@pytest.mark.parametrize("is_one_task", [False, True])
async def test_a_model_spends_the_budgets_that_it_has(is_one_task: bool) -> None:
    async def ask_cheap(event: Event, ctx: RunnerContext) -> None:
        for n in range(3):
            await ctx.chat("cheap", [f"{n}"])
        await ask_dear(event, ctx) if is_one_task else ctx.send_event(Event("next", {}))

    async def ask_dear(event: Event, ctx: RunnerContext) -> None:
        await ctx.chat("m", ["x"])
        ctx.send_event(OutputEvent(spent_by_key(ctx)))

    agent = agent_of(ask_cheap, retry=ONCE).add_action("next", ["next"], ask_dear, retry=ONCE)
    agent = scripted(always([Budget(per="key", calls=1)]), agent)
    agent.add_resource("cheap", ResourceType.CHAT_MODEL, always([Budget(calls=9)]))
    async with Engine(agent, in_memory=True) as engine:
        assert await engine.submit("k", 1) == [[[1, 10, 0.0]]]


async def test_what_a_stopped_task_has_spent_survives_a_crash_before_the_next_checkpoint(tmp_path: Path) -> None:
    is_paid, fails = asyncio.Event(), asyncio.Event()

    async def die(event: Event, ctx: RunnerContext) -> None:
        await fails.wait()
        raise ValueError("it dies")

    async def pay(event: Event, ctx: RunnerContext) -> None:
        await ctx.chat("m", ["hi"])
        is_paid.set()
        await asyncio.Event().wait()

    model = always([Budget(per="key", calls=1)])
    agent = Agent("A").add_action("die", [EventType.InputEvent], die, retry=ONCE, parallel=True)
    agent = scripted(model, agent.add_action("pay", [EventType.InputEvent], pay, retry=ONCE, parallel=True))
    config = {"checkpoint.interval": "1h", **HURRY}
    async with Engine(agent, state_dir=str(tmp_path / "state"), config=config) as engine:
        run = await engine.send("k", 1)
        await is_paid.wait()
        fails.set()
        with pytest.raises(RunFailed, match="it dies"):
            await engine.result(run)
        shutil.copytree(tmp_path / "state", tmp_path / "copy", ignore=shutil.ignore_patterns("LOCK"))
    async with Engine(agent, state_dir=str(tmp_path / "copy"), config=config) as engine:
        with pytest.raises(RunFailed):
            await engine.submit("k", 2)
    assert len(model.requests) == 1

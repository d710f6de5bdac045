"""What an engine inside of a service is promised to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentflow import (
    Agent,
    CancelEvent,
    ConfigError,
    Engine,
    EngineClosed,
    EngineOverloaded,
    Event,
    EventType,
    InputEvent,
    JsonlSink,
    OutputEvent,
    RequestMismatch,
    Retry,
    RunFailed,
    RunnerContext,
    TimerEvent,
    UnknownRun,
)
from agentflow.errors import RecordTooLarge
from tests.engines import ONCE, Counting, agent_of, checkpointed, until


# -- submit, stream, send
async def test_submit_returns_the_outputs_of_its_run_in_order(new_engine: Callable[..., Engine]) -> None:
    def act(event: InputEvent[Any], ctx: RunnerContext) -> None:
        for number in range(event.input):
            ctx.send_event(OutputEvent([ctx.key, number]))
        ctx.send_event(OutputEvent(None))

    async with new_engine(agent_of(act)) as engine:
        assert await engine.submit("k", 2) == [["k", 0], ["k", 1], None]
        assert await engine.submit(7, 1) == [[7, 0], None]
        assert await engine.submit("7", 0) == [None]


async def test_events_between_actions_belong_to_the_run(new_engine: Callable[..., Engine]) -> None:
    def first(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent("first"))
        ctx.send_event(Event("next", {"n": event.input}))

    async def second(event: Event, ctx: RunnerContext) -> None:
        await asyncio.sleep(0.001)
        ctx.send_event(OutputEvent(event.attributes["n"]))

    agent = Agent("A").add_action("first", [EventType.InputEvent], first).add_action("second", ["next"], second)
    async with new_engine(agent) as engine:
        assert await engine.submit("k", 5) == ["first", 5]


async def test_inputs_are_what_the_action_declares_and_structs_come_back_as_plain_values(
    new_engine: Callable[..., Engine],
) -> None:
    class Review(msgspec.Struct):
        stars: int

    def act(event: InputEvent[Review], ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(Review(event.input.stars + 1)))

    async with new_engine(agent_of(act, input=Review)) as engine:
        assert await engine.submit("k", Review(3)) == [{"stars": 4}]
        assert await engine.submit("k", {"stars": 4}) == [{"stars": 5}]
        with pytest.raises(RunFailed) as failed:
            await engine.submit("k", {"stars": "many"})
        assert failed.value.error_type == "DecodeError"
        assert await engine.submit("k", {"stars": 1}) == [{"stars": 2}], "the key goes on"


async def test_runs_of_a_key_take_turns_and_keys_do_not_wait_for_each_other(new_engine: Callable[..., Engine]) -> None:
    slow = asyncio.Event()

    async def act(event: InputEvent[Any], ctx: RunnerContext) -> None:
        if ctx.key == "slow":
            await slow.wait()
        number = ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)
        ctx.send_event(OutputEvent(number))

    async with new_engine(agent_of(act)) as engine:
        waiting = [asyncio.ensure_future(engine.submit("slow", n)) for n in range(3)]
        assert await engine.submit("fast", 0) == [1]
        assert not any(one.done() for one in waiting)
        slow.set()
        assert await asyncio.gather(*waiting) == [[1], [2], [3]]


async def test_stream_yields_outputs_as_their_tasks_complete(new_engine: Callable[..., Engine]) -> None:
    gate = asyncio.Event()

    def first(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent("early"))
        ctx.send_event(Event("next"))

    async def second(event: Event, ctx: RunnerContext) -> None:
        await gate.wait()
        ctx.send_event(OutputEvent("late"))

    agent = Agent("A").add_action("first", [EventType.InputEvent], first).add_action("second", ["next"], second)
    async with new_engine(agent) as engine:
        seen = []
        async for output in engine.stream("k", 1, request_id="r"):
            seen.append(output)
            gate.set()
        assert seen == ["early", "late"]
        assert [output async for output in engine.stream("k", 1, request_id="r", skip=1)] == ["late"]


async def test_a_stream_of_a_run_that_fails_yields_what_there_is_and_raises(new_engine: Callable[..., Engine]) -> None:
    def first(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent("early"))
        ctx.send_event(Event("next"))

    def second(event: Event, ctx: RunnerContext) -> None:
        raise KeyError("stars")

    agent = Agent("A").add_action("first", [EventType.InputEvent], first)
    agent.add_action("second", ["next"], second, retry=ONCE)
    async with new_engine(agent) as engine:
        stream = engine.stream("k", 1)
        assert await anext(stream) == "early"
        with pytest.raises(RunFailed, match="KeyError") as failed:
            await anext(stream)
        assert failed.value.outputs == ["early"]


async def test_send_returns_the_run_and_result_waits_for_its_outputs(new_engine: Callable[..., Engine]) -> None:
    gate = asyncio.Event()

    async def act(event: Event, ctx: RunnerContext) -> None:
        await gate.wait()
        ctx.send_event(OutputEvent(ctx.run_id))

    async with new_engine(agent_of(act)) as engine:
        run = await engine.send("k", 1)
        with pytest.raises(TimeoutError):
            await engine.result(run, timeout=0.01)
        gate.set()
        assert await engine.result(run) == [run]
        assert await engine.result(run) == [run], "again"
        with pytest.raises(UnknownRun):
            await engine.result("requests/1/99")


# -- request ids
async def test_a_request_id_makes_one_run_whoever_asks_and_when(new_engine: Callable[..., Engine]) -> None:
    gate = asyncio.Event()

    async def act(event: Event, ctx: RunnerContext) -> None:
        number = ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)
        await gate.wait()
        ctx.send_event(OutputEvent(number))

    async with new_engine(agent_of(act)) as engine:
        together = [asyncio.ensure_future(engine.submit("k", "x", request_id="r")) for _ in range(3)]
        await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*together) == [[1], [1], [1]]
        await checkpointed(engine)
        assert await engine.submit("k", "x", request_id="r") == [1], "from keyed state"
        assert await engine.send("k", "x", request_id="r") == "requests/1/r/1"
        assert await engine.result(request_id="r") == [1]
        assert await engine.submit("k", "x") == [2]


async def test_another_input_or_key_with_the_same_request_id_is_refused(new_engine: Callable[..., Engine]) -> None:
    async with new_engine(Counting()) as engine:
        await engine.submit("k", 1, request_id="r")
        for key, value in (("k", 2), ("l", 1)):
            with pytest.raises(RequestMismatch, match="'r' was submitted before"):
                await engine.submit(key, value, request_id="r")
        await checkpointed(engine)
        with pytest.raises(RequestMismatch):
            await engine.submit("k", 2, request_id="r")


async def test_answers_outlive_the_engine_and_their_time(tmp_path: Path) -> None:
    class Clock:
        now = 1_000_000

        def now_ms(self) -> int:
            return self.now

    clock = Clock()

    def make() -> Engine:
        return Engine(Counting(), state_dir=str(tmp_path), config={"request-id.retention": "1h"}, clock=clock)

    async with make() as engine:
        first = await engine.submit("k", 1, request_id="r")
        run = await engine.send("k", 2)
        sent = await engine.result(run)
    async with make() as engine:
        assert await engine.submit("k", 1, request_id="r") == first
        assert await engine.result(run) == sent
        assert (await engine.submit("k", 3))[0]["n"] == 3, "life after life, memory goes on"
        clock.now += 3_600_001
        with pytest.raises(UnknownRun):
            await engine.result(run)
        assert (await engine.submit("k", 1, request_id="r"))[0]["n"] == 4


async def test_runs_of_another_life_have_other_ids(tmp_path: Path) -> None:
    seen = []
    for _ in range(3):
        async with Engine(Counting(), state_dir=str(tmp_path)) as engine:
            seen.append(await engine.send("k", 1))
    assert seen == ["requests/1/1", "requests/2/1", "requests/3/1"]


# -- failures
async def test_a_failed_run_is_an_error_with_what_happened_and_the_same_for_the_same_request(
    new_engine: Callable[..., Engine],
) -> None:
    attempts = []

    def act(event: Event, ctx: RunnerContext) -> None:
        attempts.append(ctx.attempt)
        raise KeyError("stars")

    async with new_engine(agent_of(act, retry=Retry(attempts=2, initial="1ms"))) as engine:
        for _ in range(2):
            with pytest.raises(RunFailed) as failed:
                await engine.submit("k", 1, request_id="r")
            assert (failed.value.error_type, failed.value.error_message) == ("KeyError", "'stars'")
            assert failed.value.run_id == "requests/1/r/1"
        assert attempts == [1, 2]
        run = await engine.send("k", 2)
        with pytest.raises(RunFailed):
            await engine.result(run)
        assert (engine.stats().failed, engine.stats().dead_letters) == (2, 2)


async def test_dead_letters_go_to_a_sink_too(tmp_path: Path) -> None:
    def act(event: Event, ctx: RunnerContext) -> None:
        raise KeyError("stars")

    dead = JsonlSink(str(tmp_path / "dead"))
    async with Engine(agent_of(act, retry=ONCE), in_memory=True, dead_letters=dead) as engine:
        with pytest.raises(RunFailed):
            await engine.submit("k", {"x": 1})
    (part,) = (tmp_path / "dead").glob("part-*")
    letter = msgspec.json.decode(part.read_bytes())
    assert (letter["error-type"], letter["source-position"], letter["value"]) == ("KeyError", "requests/1/1", {"x": 1})


async def test_a_skipped_task_ends_nothing(new_engine: Callable[..., Engine]) -> None:
    def bad(event: Event, ctx: RunnerContext) -> None:
        raise ValueError

    def good(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent("good"))

    agent = Agent("A").add_action("bad", [EventType.InputEvent], bad, retry=ONCE, on_error="skip")
    agent.add_action("good", [EventType.InputEvent], good)
    async with new_engine(agent) as engine:
        assert await engine.submit("k", 1) == ["good"]


async def test_an_action_that_fails_the_job_closes_the_engine_with_its_error(new_engine: Callable[..., Engine]) -> None:
    def act(event: Event, ctx: RunnerContext) -> None:
        raise ValueError("broken")

    engine = new_engine(agent_of(act, retry=ONCE, on_error="fail"))
    await engine.start()
    with pytest.raises(Exception, match="action 'act' of agent 'A' failed"):
        await engine.submit("k", 1)
    with pytest.raises(Exception, match="action 'act' of agent 'A' failed"):
        await engine.submit("k", 1)
    with pytest.raises(Exception, match="action 'act' of agent 'A' failed"):
        await engine.close()
    assert engine.stats().state == "failed"


async def test_wrong_keys_values_and_ids_are_told_at_once(new_engine: Callable[..., Engine]) -> None:
    async with new_engine(Counting(), config={"record-max": "100B"}) as engine:
        for key in (None, [], float("nan"), object()):
            with pytest.raises(TypeError, match="a key is"):
                await engine.submit(key, 1)
        with pytest.raises(TypeError, match="cannot be encoded"):
            await engine.submit("k", object())
        for request_id in ("", "x" * 501, 7):
            with pytest.raises(TypeError, match="a request id is"):
                await engine.submit("k", 1, request_id=request_id)  # type: ignore[arg-type]
        with pytest.raises(RecordTooLarge):
            await engine.submit("k", "x" * 200)
        with pytest.raises(ConfigError, match="there is no agent 'B'"):
            await engine.submit("k", 1, agent="B")
        assert engine.stats().requests == 0


# -- callers come and go
async def test_a_cancelled_caller_takes_nothing_with_it(new_engine: Callable[..., Engine]) -> None:
    gate = asyncio.Event()

    async def act(event: Event, ctx: RunnerContext) -> None:
        await gate.wait()
        ctx.send_event(OutputEvent("done"))

    async with new_engine(agent_of(act)) as engine:
        callers = [asyncio.ensure_future(engine.submit("k", 1, request_id="r")) for _ in range(3)]
        stream = asyncio.ensure_future(anext(engine.stream("k", 1, request_id="r")))
        sending = asyncio.ensure_future(engine.send("k", 1, request_id="r"))
        await asyncio.sleep(0.01)
        for caller in (callers[0], callers[2], stream, sending):
            caller.cancel()
        with pytest.raises(TimeoutError):
            await engine.submit("k", 1, request_id="r", timeout=timedelta(milliseconds=1))
        gate.set()
        assert await callers[1] == ["done"]
        assert await engine.submit("k", 1, request_id="r") == ["done"]
        assert engine.stats().requests == 1


async def test_callers_wait_for_room_first_come_first_served(new_engine: Callable[..., Engine]) -> None:
    gate = asyncio.Event()
    order: list[int] = []

    async def act(event: Event, ctx: RunnerContext) -> None:
        order.append(event.input)
        await gate.wait()

    async with new_engine(agent_of(act), config={"run.in-flight-max": 4}) as engine:
        callers = [asyncio.ensure_future(engine.submit(n, n)) for n in range(30)]
        await until(lambda: engine.stats().waiting > 0)
        assert engine.stats().runs_in_flight <= 8, "the limit, and what had been queued"
        callers[20].cancel()
        gate.set()
        await asyncio.gather(*callers[:20], *callers[21:])
        assert order == [n for n in range(30) if n != 20]
        assert engine.stats().waiting == 0


async def test_callers_who_do_not_wait_are_refused_at_a_limit(new_engine: Callable[..., Engine]) -> None:
    gate = asyncio.Event()

    async def act(event: Event, ctx: RunnerContext) -> None:
        await gate.wait()
        ctx.send_event(OutputEvent(event.input))

    config = {"run.in-flight-max": 4, "key.pending-max": 3}
    async with new_engine(agent_of(act), config=config, on_overload="raise") as engine:
        first = asyncio.ensure_future(engine.submit("a", 0, request_id="r"))
        await asyncio.sleep(0.01)
        others = [asyncio.ensure_future(engine.submit(n, n)) for n in range(20)]
        await asyncio.sleep(0.02)
        refused = [one for one in others if one.done()]
        assert refused
        for one in refused:
            with pytest.raises(EngineOverloaded):
                await one
        again = asyncio.ensure_future(engine.submit("a", 0, request_id="r"))
        await asyncio.sleep(0.01)
        assert not again.done(), "who joins a request needs no room"
        gate.set()
        assert await first == await again == [0]
        await asyncio.gather(*[one for one in others if one not in refused])
        assert await engine.submit("b", 1) == [1], "room again"


async def test_a_key_with_too_many_inputs_refuses_only_its_own(new_engine: Callable[..., Engine]) -> None:
    gate = asyncio.Event()

    async def act(event: Event, ctx: RunnerContext) -> None:
        if ctx.key == "busy":
            await gate.wait()
        ctx.send_event(OutputEvent(event.input))

    async with new_engine(agent_of(act), config={"key.pending-max": 2}) as engine:
        callers = [asyncio.ensure_future(engine.submit("busy", n, request_id=f"r{n}")) for n in range(4)]
        with pytest.raises(EngineOverloaded, match="behind this key"):
            await callers[3]
        assert await engine.submit("idle", 1) == [1]
        gate.set()
        assert await asyncio.gather(*callers[:3]) == [[0], [1], [2]]
        assert await engine.submit("busy", 3, request_id="r3") == [3], "a refusal is no answer"


# -- waiting runs, signals, cancelling, timers
async def test_a_run_waits_for_a_signal_and_streams_what_it_sent_before(new_engine: Callable[..., Engine]) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent("asked"))
        answer = await ctx.wait_for("approval")
        ctx.send_event(OutputEvent(answer))

    async with new_engine(agent_of(act), config={"run.park-after": "1ms"}) as engine:
        seen = []
        async for output in engine.stream("k", 1):
            seen.append(output)
            if output == "asked":
                await engine.signal("k", "approval", {"by": "ann"})
        assert seen == ["asked", {"by": "ann"}]


async def test_a_waiting_run_goes_on_in_the_next_engine_and_whoever_asks_again_gets_all_its_outputs(
    tmp_path: Path,
) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent("asked"))
        ctx.send_event(OutputEvent(await ctx.wait_for("approval")))

    def make() -> Engine:
        return Engine(agent_of(act), state_dir=str(tmp_path), config={"run.park-after": "1ms"})

    async with make() as engine:
        waiting = asyncio.ensure_future(engine.submit("k", 1, request_id="r"))
        run = await engine.send("k", 1, request_id="r")
    with pytest.raises(EngineClosed):
        await waiting
    async with make() as engine:
        again = asyncio.ensure_future(engine.submit("k", 1, request_id="r"))
        await engine.signal("k", "approval", "yes")
        assert await again == ["asked", "yes"] == await engine.result(run)


async def test_a_cancelled_run_fails_its_caller_and_what_compensates_runs(new_engine: Callable[..., Engine]) -> None:
    started = asyncio.Event()

    async def act(event: Event, ctx: RunnerContext) -> None:
        started.set()
        await asyncio.Event().wait()

    def undo(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(f"undone: {CancelEvent.from_event(event).reason}"))

    agent = agent_of(act).add_action("undo", [EventType.CancelEvent], undo)
    async with new_engine(agent, config={"checkpoint.interval": "10ms"}) as engine:
        caller = asyncio.ensure_future(engine.submit("k", 1, request_id="r"))
        await started.wait()
        await engine.cancel("k", reason="too late")
        with pytest.raises(RunFailed) as failed:
            await caller
        assert (failed.value.error_type, failed.value.error_message) == ("RunCancelled", "too late")
        assert failed.value.outputs == ["undone: too late"]


async def test_outputs_of_timers_go_to_the_sink(tmp_path: Path) -> None:
    def act(event: Event, ctx: RunnerContext) -> None:
        ctx.set_timer("t", after="1ms")
        ctx.send_event(OutputEvent("set"))

    def fire(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(TimerEvent.from_event(event).name))

    agent = agent_of(act).add_action("fire", [EventType.TimerEvent], fire)
    sink = JsonlSink(str(tmp_path / "out"))
    async with Engine(agent, in_memory=True, sink=sink, config={"checkpoint.interval": "5ms"}) as engine:
        assert await engine.submit("k", 1) == ["set"]
        await until(lambda: engine.stats().outputs == 2)
    lines = [line for part in sorted((tmp_path / "out").glob("part-*")) for line in part.read_text().splitlines()]
    assert lines == ['"set"', '"t"']


async def test_outputs_that_answer_nobody_are_told_in_the_hosts_log(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(event: Event, ctx: RunnerContext) -> None:
        ctx.set_timer("t", after="1ms")

    def fire(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent("lost"))

    agent = agent_of(act).add_action("fire", [EventType.TimerEvent], fire)
    async with Engine(agent, in_memory=True) as engine:
        assert await engine.submit("k", 1) == []
        await until(lambda: engine.stats().outputs == 1)
    told = caplog.text + capsys.readouterr().out
    assert "an output answers nobody" in told


# -- memory and stats
async def test_memory_of_a_key_can_be_read_and_not_written(new_engine: Callable[..., Engine]) -> None:
    def act(event: Event, ctx: RunnerContext) -> None:
        ctx.short_term_memory.set("a.b", event.input)

    async with new_engine(agent_of(act)) as engine:
        assert engine.memory("k").get_fields() == {}
        await engine.submit("k", [1, 2])
        memory = engine.memory("k")
        assert (memory.get("a.b"), memory.get_field_names(), memory.is_exist("a")) == ([1, 2], ["a"], True)
        with pytest.raises(TypeError, match="can only be read here"):
            memory.set("a.b", 1)
        with pytest.raises(TypeError, match="can only be read here"):
            memory.delete("a.b")
        await checkpointed(engine)
        assert engine.memory("k").get("a.b") == [1, 2]
    with pytest.raises(EngineClosed):
        engine.memory("k")


async def test_stats_say_what_the_engine_does(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine(Counting())
    assert engine.stats().state == "starting"
    async with engine:
        await asyncio.gather(*(engine.submit(n % 3, n) for n in range(9)))
        stats = engine.stats()
        assert (stats.state, stats.agents) == ("running", ("Counting",))
        assert (stats.requests, stats.answered, stats.open, stats.outputs, stats.runs_in_flight) == (9, 9, 0, 9, 0)
        assert msgspec.json.decode(msgspec.json.encode(stats))["runs-in-flight"] == 0
    assert engine.stats().state == "stopped"

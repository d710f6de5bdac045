"""How a job ends whose input ends: what it waits for, what it leaves, and what it says about that."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentflow import (
    Agent,
    AgentsExecutionEnvironment,
    CollectionSink,
    EventType,
    InputEvent,
    JobSettings,
    JsonlSink,
    JsonlSource,
    OutputEvent,
    Retry,
    RunnerContext,
    StateSettings,
    TimerEvent,
)
from agentflow.runtime.job import Job, SystemClock
from agentflow.runtime.settings import RestartSettings


def agent_of(act: Any, on_timer: Any = None) -> Agent:
    """Return an agent with one action on its input, and perhaps one on its timers."""
    agent = Agent("A").add_action("act", [EventType.InputEvent], act, retry=Retry(attempts=1))
    return agent if on_timer is None else agent.add_action("on_timer", [TimerEvent], on_timer)


def tell(event: TimerEvent, ctx: RunnerContext) -> None:
    ctx.send_event(OutputEvent([ctx.key, event.name]))


class LaterClock:
    """The machine's clock, two hours ahead."""

    def __init__(self) -> None:
        self._clock = SystemClock()

    def now_ms(self) -> int:
        return self._clock.now_ms() + 7_200_000


def test_timers_of_the_clock_fire_before_a_finite_job_ends_and_so_do_those_that_follow_from_them() -> None:
    def act(event: InputEvent[Any], ctx: RunnerContext) -> None:
        ctx.set_timer("first", after="50ms")

    async def fired(event: TimerEvent, ctx: RunnerContext) -> None:
        await asyncio.sleep(0)
        tell(event, ctx)
        if event.name == "first":
            ctx.set_timer("second", after="50ms")

    def pass_on(event: InputEvent[Any], ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(event.input))
        ctx.set_timer(f"behind {event.input[1]}", after="20ms")

    env = AgentsExecutionEnvironment.get_execution_environment()
    stream = env.from_list([{"k": 1}, {"k": 2}]).key_by("k").apply(agent_of(act, fired))
    results = stream.key_by(lambda output: output[0]).apply(agent_of(pass_on, tell)).to_list()
    status = env.execute()
    names = ["behind first", "behind second", "first", "second"]
    assert sorted(results) == [[key, name] for key in (1, 2) for name in names]
    assert (status.state, status.timers_pending) == ("finished", 0)


def test_a_timer_that_is_due_much_later_does_not_hold_up_the_end_of_a_finite_job() -> None:
    def act(event: InputEvent[Any], ctx: RunnerContext) -> None:
        ctx.set_timer("soon", after="20ms")
        ctx.set_timer("late", after="30d")

    def fired(event: TimerEvent, ctx: RunnerContext) -> None:
        tell(event, ctx)
        ctx.set_timer("later", after="2m")

    env = AgentsExecutionEnvironment.get_execution_environment()
    results = env.from_list([{"k": 1}]).key_by("k").apply(agent_of(act, fired)).to_list()
    status = env.execute()
    assert list(results) == [[1, "soon"]]
    assert (status.state, status.timers_pending) == ("finished", 2)


@pytest.mark.parametrize("is_durable", [True, False])
def test_a_finite_job_with_a_periodic_timer_ends_and_says_that_it_is_still_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, is_durable: bool
) -> None:
    def act(event: InputEvent[Any], ctx: RunnerContext) -> None:
        ctx.set_timer("tick", after="300ms")

    def tick(event: TimerEvent, ctx: RunnerContext) -> None:
        tell(event, ctx)
        ctx.set_timer("tick", after="300ms")

    state = StateSettings(dir=str(tmp_path / "state")) if is_durable else StateSettings()
    env = AgentsExecutionEnvironment.get_execution_environment(JobSettings(job="periodic", state=state))
    (tmp_path / "in.jsonl").write_bytes(b'{"k": 1}\n')
    stream = env.from_source(lambda: JsonlSource(str(tmp_path / "in.jsonl"))).key_by("k").apply(agent_of(act, tick))
    stream.to_sink(lambda: JsonlSink(str(tmp_path / "out")))
    status = env.execute()
    assert (status.state, status.timers_pending, status.records_out) == ("finished", 1, 1)
    (line,) = [record for record in caplog.records if "timers are still set" in record.getMessage()]
    assert (line.levelname, line.agentflow) == ("WARNING", {"job": "periodic", "timers": 1})
    assert ("they fire with its next start" if is_durable else "they are lost with its state") in line.getMessage()


async def test_timers_of_a_stopped_job_stay_state_and_fire_with_its_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"k": "a"}\n')
    is_set = asyncio.Event()

    def act(event: InputEvent[Any], ctx: RunnerContext) -> None:
        ctx.set_timer("late", after="1h")
        is_set.set()

    def spec() -> Any:
        settings = JobSettings(job="files", state=StateSettings(dir=str(tmp_path / "state")))
        env = AgentsExecutionEnvironment.get_execution_environment(settings)
        stream = env.from_source(lambda: JsonlSource(str(tmp_path / "in.jsonl"))).key_by("k").apply(agent_of(act, tell))
        stream.to_sink(lambda: JsonlSink(str(tmp_path / "out")))
        return env.job()._spec

    job = Job(spec())
    running = asyncio.ensure_future(job.run())
    await is_set.wait()
    job.request_stop()
    status = await running
    assert (status.state, status.timers_pending) == ("stopped", 1)
    assert (await Job(spec(), clock=LaterClock()).run()).timers_pending == 0
    (part,) = (tmp_path / "out").glob("part-*")
    assert msgspec.json.decode(part.read_bytes()) == ["a", "late"]
    assert "timers are still set" not in caplog.text


class LameSink(CollectionSink):
    """Cannot stage its first epochs."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self._failures = failures

    async def stage(self, checkpoint: int) -> Any:
        if self._failures:
            self._failures -= 1
            msg = "no space left"
            raise OSError(msg)
        return await super().stage(checkpoint)


async def test_totals_leave_out_what_restarts_have_undone_and_the_state_between_is_restarting() -> None:
    sink, dead = LameSink(2), CollectionSink()

    def act(event: InputEvent[Any], ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(1 / event.input["n"]))

    restart = RestartSettings(strategy="fixed-delay", delay_ms=1)
    env = AgentsExecutionEnvironment.get_execution_environment(JobSettings(job="lame", restart=restart))
    stream = env.from_list([{"k": n, "n": n} for n in range(4)]).key_by("k").apply(agent_of(act))
    stream.dead_letters_to(dead).to_sink(sink)
    seen: list[Any] = []
    job = Job(env.job()._spec, on_event=lambda name, fields: seen.append((name, job.status)))
    ended = await job.run()
    between = [status for name, status in seen if name == "restarting"]
    assert [(one.state, one.records_in, one.records_out, one.dead_letters) for one in between] == [
        ("restarting", 0, 0, 0)
    ] * 2
    assert (ended.records_in, ended.records_out, ended.dead_letters, ended.restarts) == (4, 3, 1, 2)
    assert (ended.undone.records_in, ended.undone.records_out, ended.undone.dead_letters) == (8, 6, 2)

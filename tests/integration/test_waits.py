"""Sleeping, waiting for people, and steps that are tried again, as user code meets them: real state, real threads, restarts."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentflow import (
    Agent,
    AgentsExecutionEnvironment,
    CancelEvent,
    EventType,
    OutputEvent,
    Retry,
    RunnerContext,
)
from agentflow.connectors.collections import CollectionSink
from agentflow.connectors.signal_spool import SignalSpool
from agentflow.errors import JobFailed, WrongContext
from agentflow.runtime.job import Job
from agentflow.runtime.settings import CheckpointSettings, JobSettings, RunSettings, ShutdownSettings, StateSettings
from agentflow.runtime.signals import encode_signal


class Outputs(CollectionSink):
    """Says when an output is visible."""

    def __init__(self) -> None:
        super().__init__()
        self.published = asyncio.Event()

    async def publish(self, checkpoint: int, staged: Any) -> None:
        await super().publish(checkpoint, staged)
        self.published.set()

    async def until(self, count: int) -> list[Any]:
        async with asyncio.timeout(20):
            while len(self.values) < count:
                self.published.clear()
                await self.published.wait()
        return self.values


def job_of(
    act: Callable[..., Any] | Agent,
    state: Path | None = None,
    *,
    park_after_ms: int = 10_000,
    dead: Any = None,
    inputs: int = 1,
    values: list[Any] | None = None,
) -> tuple[Job, Outputs]:
    """Return a job of one action, or of an agent, over some inputs, and where its outputs are seen."""
    settings = JobSettings(
        checkpoint=CheckpointSettings(interval_ms=20),
        run=RunSettings(park_after_ms=park_after_ms),
        state=StateSettings(dir=None if state is None else str(state)),
        shutdown=ShutdownSettings(drain_timeout_ms=0),
    )
    environment = AgentsExecutionEnvironment.get_execution_environment(settings)
    outputs = Outputs()
    agent = act
    if not isinstance(agent, Agent):
        agent = Agent("A").add_action("act", [EventType.InputEvent], agent, retry=Retry(attempts=1))
    stream = (
        environment.from_list(values or [{"k": n} for n in range(inputs)]).key_by("k").apply(agent).to_sink(outputs)
    )
    if dead is not None:
        stream.dead_letters_to(dead)
    return environment.job(), outputs


async def stopped(job: Job, running: asyncio.Task[Any]) -> None:
    job.request_stop()
    await running


class Busy(Exception):
    def __init__(self, retry_after: object = None, headers: dict[str, str] | None = None) -> None:
        super().__init__("busy")
        self.retry_after = retry_after
        self.response = type("Response", (), {"headers": headers or {}})()


async def test_a_failed_call_is_made_again_and_its_last_error_is_the_outcome() -> None:
    calls: list[str] = []

    def always(name: str) -> None:
        calls.append(name)
        raise ConnectionError(name)

    def at_last(name: str) -> int:
        calls.append(name)
        if calls.count(name) < 3:
            raise ConnectionError(name)
        return calls.count(name)

    async def act(event: object, ctx: RunnerContext) -> None:
        retry = Retry(attempts=3, initial="1ms")
        got = await ctx.durable_execute_async(at_last, "at last", retry=retry)
        with pytest.raises(ConnectionError, match="always"):
            await ctx.durable_execute_async(always, "always", retry=retry)
        ctx.send_event(OutputEvent(got))

    job, outputs = job_of(act)
    await job.run()
    assert outputs.values == [3]
    assert calls == ["at last"] * 3 + ["always"] * 3


def test_a_failed_call_in_a_def_action_is_made_again() -> None:
    calls: list[int] = []

    def flaky() -> int:
        calls.append(1)
        if len(calls) < 2:
            raise ConnectionError
        return len(calls)

    def act(event: object, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(ctx.durable_execute(flaky, retry=Retry(attempts=2, initial="1ms"))))

    async def run() -> list[Any]:
        job, outputs = job_of(act)
        await job.run()
        return outputs.values

    assert asyncio.run(run()) == [2]


@pytest.mark.parametrize(
    "error",
    [
        Busy(timedelta(hours=1)),
        Busy(3600),
        Busy(headers={"retry-after": "3600"}),
        Busy(headers={"retry-after-ms": "3600000"}),
        Busy(headers={"retry-after": "Thu, 31 Dec 2099 00:00:00 GMT"}),
    ],
    ids=["timedelta", "seconds", "header", "header in ms", "too far away to be meant"],
)
async def test_what_an_error_says_about_when_to_come_again_is_followed(error: Busy) -> None:
    called = asyncio.Event()

    async def busy() -> None:
        called.set()
        raise error

    async def act(event: object, ctx: RunnerContext) -> None:
        await ctx.durable_execute_async(busy, retry=Retry(attempts=2, initial="2h", wait_max="2h", jitter=0))

    job, _ = job_of(act)
    running = asyncio.create_task(job.run())
    await called.wait()
    await job.checkpoint_now()
    subtask = job._subtask
    assert subtask is not None
    due_ms = subtask._stages[0].operator.next_due_ms
    assert due_ms is not None
    hours = (due_ms - subtask._clock.now_ms()) / 3_600_000
    assert hours == pytest.approx(2 if "2099" in str(error.response.headers) else 1, abs=0.1)
    await stopped(job, running)


async def test_a_restart_goes_on_with_the_attempts_of_a_step(tmp_path: Path) -> None:
    calls: list[str] = []
    failed = asyncio.Event()

    def flaky() -> str:
        calls.append("first life" if not failed.is_set() else "second life")
        if len(calls) < 3:
            raise ConnectionError
        return "done"

    def failed_twice(seen: list[str]) -> bool:
        return len(seen) == 2

    async def act(event: object, ctx: RunnerContext) -> None:
        ctx.send_event(
            OutputEvent(await ctx.durable_execute_async(flaky, retry=Retry(attempts=3, initial="500ms", jitter=0)))
        )

    job, outputs = job_of(act, tmp_path)
    running = asyncio.create_task(job.run())
    async with asyncio.timeout(20):
        while not failed_twice(calls):
            await job.checkpoint_now()
            await asyncio.sleep(0.01)
    await stopped(job, running)
    failed.set()
    job, outputs = job_of(act, tmp_path)
    await job.run()
    assert outputs.values == ["done"]
    assert calls == ["first life", "first life", "second life"], "the third attempt, not the first one again"


async def test_a_call_that_takes_too_long_has_failed() -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    async def act(event: object, ctx: RunnerContext) -> None:
        with pytest.raises(TimeoutError, match="longer than its timeout of 10 ms"):
            await ctx.durable_execute_async(hang, timeout="10ms")
        ctx.send_event(OutputEvent("went on"))

    job, outputs = job_of(act)
    await job.run()
    assert outputs.values == ["went on"]


@pytest.mark.parametrize("feature", ["sleep", "wait_for"])
async def test_a_def_action_cannot_wait(feature: str) -> None:
    def act(event: object, ctx: RunnerContext) -> None:
        with pytest.raises(WrongContext, match="make the action async"):
            getattr(ctx, feature)("1s")
        ctx.send_event(OutputEvent("refused"))

    job, outputs = job_of(act)
    await asyncio.to_thread(asyncio.run, job_of(act)[0].run())
    await job.run()
    assert outputs.values == ["refused"]


@pytest.mark.parametrize("park_after_ms", [1, 10_000], ids=["parked", "kept"])
async def test_approval_what_is_above_the_wait_happens_once(tmp_path: Path, park_after_ms: int) -> None:
    drafts: list[str] = []

    def draft(order: int) -> str:
        drafts.append(f"draft of {order}")
        return drafts[-1]

    async def act(event: Any, ctx: RunnerContext) -> None:
        text = await ctx.durable_execute_async(draft, event.input["k"])
        ctx.send_event(OutputEvent({"please approve": text}))
        answer = await ctx.wait_for("approval", timeout="1h", default={"ok": False})
        ctx.send_event(OutputEvent({"sent": text, "ok": answer["ok"], "by": answer["by"]}))

    for life in range(2):
        job, outputs = job_of(act, tmp_path, park_after_ms=park_after_ms)
        running = asyncio.create_task(job.run())
        if life == 0:
            assert await outputs.until(1) == [{"please approve": "draft of 0"}]
            await stopped(job, running)
    await SignalSpool(tmp_path / "signals").append(encode_signal(0, "approval", {"ok": True, "by": "ann"}))
    await running
    assert outputs.values == [{"sent": "draft of 0", "ok": True, "by": "ann"}]
    assert drafts == ["draft of 0"]


async def test_an_approval_that_nobody_gives_is_its_default() -> None:
    async def act(event: object, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(await ctx.wait_for("approval", timeout="20ms", default="no")))

    job, outputs = job_of(act, park_after_ms=1)
    await job.run()
    assert outputs.values == ["no"]


async def test_a_coroutine_is_closed_at_most_once_for_a_wait() -> None:
    starts: collections.Counter[int] = collections.Counter()

    async def act(event: object, ctx: RunnerContext) -> None:
        starts[ctx.key] += 1
        await ctx.sleep("5ms")
        ctx.send_event(OutputEvent(ctx.key))

    job, outputs = job_of(act, park_after_ms=1, inputs=300)
    await job.run()
    assert sorted(outputs.values) == list(range(300))
    assert max(starts.values()) <= 2


async def test_signals_of_a_job_go_to_the_waits_that_they_are_for() -> None:
    async def act(event: object, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent("asked"))
        first, second = await ctx.gather(
            ctx.wait_for("vote", correlation="first"), ctx.wait_for("vote", correlation="second")
        )
        ctx.send_event(OutputEvent([ctx.key, first, second]))

    job, outputs = job_of(act, park_after_ms=1, inputs=2)
    running = asyncio.create_task(job.run())
    await outputs.until(2)
    for key in (1, 0):
        await job.signal(key, "vote", f"{key} second", correlation="second")
        await job.signal(key, "vote", f"{key} first", correlation="first")
    await running
    assert sorted(outputs.values[2:]) == [[0, "0 first", "0 second"], [1, "1 first", "1 second"]]


async def test_a_broken_signal_is_a_dead_letter_and_without_a_sink_for_these_the_jobs_failure(tmp_path: Path) -> None:
    async def act(event: object, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(await ctx.wait_for("go")))

    spool = SignalSpool(tmp_path / "signals")
    await spool.append(b'{"name": "go"}')
    job, _ = job_of(act, tmp_path)
    with pytest.raises(JobFailed, match=r"(?s)this is no signal: it has no key.*signals/0"):
        await job.run()
    await spool.append(encode_signal(0, "go", True))
    letters = Outputs()
    job, outputs = job_of(act, tmp_path, dead=letters)
    await job.run()
    assert outputs.values == [True]
    assert [letter["source-position"] for letter in letters.values] == ["signals/0"]  # type: ignore[index]


def test_the_spool_gives_each_signal_once_also_when_somebody_empties_it(tmp_path: Path) -> None:
    async def values(position: int) -> list[tuple[int, bytes | None]]:
        spool = SignalSpool(tmp_path)
        await spool.open({"signals": position})
        records = [(record.offset, record.value) for record in await spool.fetch(10)]
        await spool.release({"signals": position + len(records)})
        return records

    for text in (b"0", b"1", b"2"):
        SignalSpool(tmp_path).append_now(text)
    assert asyncio.run(values(0)) == [(0, b"0"), (1, b"1"), (2, b"2")]
    assert len(list(tmp_path.glob("*.json"))) == 1, "the last one holds the count"
    for path in tmp_path.glob("*.json"):
        path.unlink()
    asyncio.run(SignalSpool(tmp_path).open({"signals": 3}))
    SignalSpool(tmp_path).append_now(b"3")
    assert asyncio.run(values(3)) == [(3, b"3")]


def test_a_signal_that_cannot_be_sent_is_refused_where_it_is_made() -> None:
    with pytest.raises(ValueError, match="name"):
        encode_signal("k", "")
    with pytest.raises(TypeError):
        encode_signal("k", "go", object())
    assert msgspec.json.decode(encode_signal("k", "go")) == {"name": "go", "key": "k"}


@pytest.mark.parametrize("park_after_ms", [1, 10_000], ids=["parked", "kept"])
async def test_a_cancelled_run_gets_its_cancellation_and_compensates(tmp_path: Path, park_after_ms: int) -> None:
    seen: list[str] = []

    async def act(event: Any, ctx: RunnerContext) -> None:
        await ctx.durable_execute_async(seen.append, "charged")
        ctx.sensory_memory.set("unseen", value=True)
        ctx.send_event(OutputEvent("asked"))
        try:
            await ctx.wait_for("never")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def undo(event: Any, ctx: RunnerContext) -> None:
        await ctx.durable_execute_async(seen.append, f"refunded {event.input['k']} because {event.reason}")
        assert not ctx.sensory_memory.is_exist("unseen"), "a task that did not complete leaves no trace"
        ctx.send_event(OutputEvent("refunded"))

    agent = Agent("A").add_action("act", [EventType.InputEvent], act).add_action("undo", [CancelEvent], undo)
    job, outputs = job_of(agent, tmp_path, park_after_ms=park_after_ms)
    running = asyncio.create_task(job.run())
    await outputs.until(1)
    await job.cancel(0, reason="the customer left")
    await running
    assert outputs.values == ["asked", "refunded"]
    assert seen == ["charged", "cancelled", "refunded 0 because the customer left"]


async def test_the_latest_input_of_a_key_interrupts_those_before_it() -> None:
    started: list[int] = []

    async def act(event: Any, ctx: RunnerContext) -> None:
        started.append(event.input["n"])
        if event.input["n"] < 2:
            await asyncio.Event().wait()
        ctx.send_event(OutputEvent(event.input["n"]))

    agent = Agent("Latest").add_action("act", [EventType.InputEvent], act)
    agent.on_new_input = "interrupt"
    job, outputs = job_of(agent, values=[{"k": 0, "n": n} for n in range(3)])
    await job.run()
    assert outputs.values == [2]
    assert started in ([0, 2], [0, 1, 2])


async def test_changed_code_lives_with_old_runs(tmp_path: Path) -> None:
    def old(event: object, ctx: RunnerContext) -> Any:
        async def act() -> None:
            await ctx.durable_execute_async(step, "first")
            await ctx.wait_for("go")

        return act()

    def step(name: str) -> str:
        return name

    async def new(event: Any, ctx: RunnerContext) -> None:
        way = ["first"]
        if ctx.patch("check before"):
            way = [await ctx.durable_execute_async(step, "check"), "first"]
        await ctx.durable_execute_async(step, "first")
        await ctx.wait_for("go")
        if ctx.patch("check behind"):
            way.append(await ctx.durable_execute_async(step, "check behind"))
        ctx.send_event(OutputEvent([ctx.key, *way]))

    async def first(event: Any, ctx: RunnerContext) -> None:
        await old(event, ctx)

    for act, inputs in ((first, 1), (new, 2), (new, 2)):
        job, outputs = job_of(act, tmp_path, inputs=inputs)
        running = asyncio.create_task(job.run())
        if act is new and (tmp_path / "second").exists():
            for key in range(2):
                await SignalSpool(tmp_path / "signals").append(encode_signal(key, "go"))
            await running
            break
        async with asyncio.timeout(20):
            while job.status.runs_in_flight < inputs or not waits_everywhere(job):
                await job.checkpoint_now()
                await asyncio.sleep(0.01)
        await stopped(job, running)
        if act is new:
            (tmp_path / "second").touch()
    assert sorted(outputs.values) == [[0, "first", "check behind"], [1, "check", "first", "check behind"]]


def waits_everywhere(job: Job) -> bool:
    subtask = job._subtask
    assert subtask is not None
    operator = subtask._stages[0].operator
    return all(operator._waiting.waits.of(task) for run in operator._runs for task in run.tasks)

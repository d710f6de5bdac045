"""Durable steps as user code meets them, in an embedded job."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest

from agentflow import Agent, AgentsExecutionEnvironment, EventType, OutputEvent, Retry, RunnerContext
from agentflow.api.steps import Done, Verdict, reconcile
from agentflow.errors import InDoubt, JobFailed, RecordTooLarge, StepFailed, WrongContext
from agentflow.runtime.settings import JobSettings, StateSettings


class Struct(msgspec.Struct):
    n: int


class Model(pydantic.BaseModel):
    n: int


@dataclasses.dataclass
class Data:
    n: int


class Declined(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def run(act: Callable[..., Any], *, errors: tuple[type[Exception], ...] = (), inputs: int = 1) -> list[Any]:
    """Run one action over some inputs; return what it sent."""
    agent = Agent("A").add_action("act", [EventType.InputEvent], act, retry=Retry(attempts=1))
    agent.errors = errors
    environment = AgentsExecutionEnvironment.get_execution_environment()
    results = environment.from_list([{"k": n} for n in range(inputs)]).key_by("k").apply(agent).to_list()
    environment.execute()
    return list(results)


def raise_it(error: Exception) -> Callable[[], None]:
    def declined() -> None:
        raise error

    return declined


async def test_a_result_comes_back_as_the_declared_type() -> None:
    def struct() -> Struct:
        return Struct(1)

    async def model() -> Model:
        return Model(n=2)

    def data() -> list[Data]:
        return [Data(3)]

    seen: list[Any] = []

    async def act(event: object, ctx: RunnerContext) -> None:
        seen.extend([await ctx.durable_execute_async(step) for step in (struct, model, data)])

    await asyncio.to_thread(run, act)
    assert seen == [Struct(1), Model(n=2), [Data(3)]]


@pytest.mark.parametrize("result", [Struct(1), (1, 2), {3}, object()], ids=lambda result: type(result).__name__)
def test_what_would_come_back_as_something_else_is_refused_at_the_first_call(result: object) -> None:
    async def act(event: object, ctx: RunnerContext) -> None:
        with pytest.raises(TypeError, match="declare the return type"):
            await ctx.durable_execute_async(lambda: result)
        ctx.send_event(OutputEvent("refused"))

    assert run(act) == ["refused"]


def test_a_result_above_record_max_is_refused_at_the_first_call() -> None:
    async def act(event: object, ctx: RunnerContext) -> None:
        with pytest.raises(RecordTooLarge, match="record-max"):
            await ctx.durable_execute_async(lambda: "x" * 5_000_000)
        ctx.send_event(OutputEvent("refused"))

    assert run(act) == ["refused"]


def test_arguments_that_have_no_digest_are_refused() -> None:
    async def act(event: object, ctx: RunnerContext) -> None:
        with pytest.raises(TypeError, match=r"(?s)arguments cannot be recorded.*plain values"):
            await ctx.durable_execute_async(repr, object())
        ctx.send_event(OutputEvent("refused"))

    assert run(act) == ["refused"]


@pytest.mark.parametrize(
    ("error", "errors", "seen"),
    [
        (ValueError("bad"), (), ValueError),
        (Declined(7), (Declined,), Declined),
        (Declined(7), (), StepFailed),
    ],
    ids=["of Python", "declared", "unknown"],
)
def test_an_error_is_an_outcome_too(
    error: Exception, errors: tuple[type[Exception], ...], seen: type[Exception]
) -> None:
    async def act(event: object, ctx: RunnerContext) -> None:
        with pytest.raises(seen) as caught:
            await ctx.durable_execute_async(raise_it(error))
        assert caught.value is not error, "what is raised comes from the record, as it will after a crash"
        if isinstance(caught.value, Declined):
            assert caught.value.code == 7
        if isinstance(caught.value, StepFailed):
            assert "Declined" in caught.value.original
            assert "raise error" in caught.value.traceback
        ctx.send_event(OutputEvent("caught"))

    assert run(act, errors=errors) == ["caught"]


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "in a thread"])
def test_an_error_that_nobody_catches_shows_the_line_of_the_step_and_the_line_that_awaits_it(
    is_async: bool,
) -> None:
    def look_up(row: dict[str, int]) -> int:
        return row["nope"]

    async def act(event: object, ctx: RunnerContext) -> None:
        await ctx.durable_execute_async(look_up, {})

    def act_in_thread(event: object, ctx: RunnerContext) -> None:
        ctx.durable_execute(look_up, {})

    with pytest.raises(JobFailed) as caught:
        run(act if is_async else act_in_thread)
    text = caught.value.user_traceback
    frames = [line.split(", in ")[1] for line in text.splitlines() if line.lstrip().startswith("File ")]
    assert frames == [act.__name__ if is_async else act_in_thread.__name__, "look_up"]
    assert 'return row["nope"]' in text


def test_an_error_of_the_engine_that_nobody_catches_shows_the_users_line_alone() -> None:
    async def act(event: object, ctx: RunnerContext) -> None:
        await ctx.chat("nomodel", "x")

    with pytest.raises(JobFailed, match="has no chat_model 'nomodel'") as caught:
        run(act)
    text = caught.value.user_traceback
    assert text.count("File ") == 1
    assert text.endswith('await ctx.chat("nomodel", "x")\n')


def test_the_synchronous_form_runs_in_a_thread_and_never_blocks_the_loop() -> None:
    threads: list[str] = []

    def step() -> str:
        threads.append(threading.current_thread().name)
        return "done"

    def act(event: object, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(ctx.durable_execute(step)))

    assert run(act) == ["done"]
    assert threads != [threading.main_thread().name]


def test_the_synchronous_form_where_it_would_block_the_loop_names_the_fix() -> None:
    async def act(event: object, ctx: RunnerContext) -> None:
        with pytest.raises(WrongContext, match="durable_execute_async"):
            ctx.durable_execute(print)
        with pytest.raises(WrongContext, match="in the function"):
            _ = ctx.idempotency_key
        ctx.send_event(OutputEvent("refused"))

    assert run(act) == ["refused"]


def test_a_plain_function_does_not_hold_up_the_loop() -> None:
    both = threading.Barrier(2, timeout=20)

    def step() -> int:
        return both.wait() * 0

    async def act(event: object, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(await ctx.durable_execute_async(step)))

    assert run(act, inputs=2) == [0, 0], "each waits for the other"


@pytest.mark.parametrize(
    ("policy", "ends", "calls"),
    [
        ("retry", "second call", 2),
        ("fail", "InDoubt", 1),
        (reconcile(lambda intent: Done(f"found {intent.args[0]} {intent.attempt}")), "found order 2", 1),
        (reconcile(lambda intent: Verdict.NOT_DONE), "second call", 2),
        (reconcile(lambda intent: Verdict.CANNOT_TELL), "InDoubt", 1),
    ],
    ids=["retry", "fail", "done", "not done", "cannot tell"],
)
def test_the_policy_decides_about_a_call_that_was_given_up_in_the_middle(policy: Any, ends: str, calls: int) -> None:
    keys: list[str] = []

    async def act(event: object, ctx: RunnerContext) -> None:
        async def pay(order: str) -> str:
            keys.append(ctx.idempotency_key)
            if len(keys) == 1:
                await asyncio.Event().wait()  # until the action's timeout
            return "second call"

        try:
            ctx.send_event(OutputEvent(await ctx.durable_execute_async(pay, "order", name="pay", on_in_doubt=policy)))
        except InDoubt:
            ctx.send_event(OutputEvent("InDoubt"))

    agent = Agent("A").add_action(
        "act", [EventType.InputEvent], act, timeout="500ms", retry=Retry(attempts=2, initial="1ms")
    )
    environment = AgentsExecutionEnvironment.get_execution_environment()
    results = environment.from_list([{"k": 1}]).key_by("k").apply(agent).to_list()
    environment.execute()
    assert results == [ends]
    assert len(keys) == calls
    assert len(set(keys)) == 1, "the key is that of the first attempt"


def test_gather_waits_for_all_and_raises_the_first_error_in_the_order_of_the_arguments() -> None:
    done: list[str] = []

    async def act(event: object, ctx: RunnerContext) -> None:
        async def slow() -> str:
            await asyncio.sleep(0.01)
            done.append("slow")
            return "slow"

        def quick() -> str:
            return "quick"

        assert await ctx.gather() == []
        assert await ctx.gather(ctx.durable_execute_async(slow), ctx.durable_execute_async(quick)) == ["slow", "quick"]
        with pytest.raises(KeyError):
            await ctx.gather(
                ctx.durable_execute_async(slow),
                ctx.durable_execute_async(raise_it(KeyError("x"))),
                ctx.durable_execute_async(raise_it(ValueError("y"))),
            )
        ctx.send_event(OutputEvent(done))

    assert run(act) == [["slow", "slow"]]


def test_as_completed_gives_results_as_they_end() -> None:
    async def act(event: object, ctx: RunnerContext) -> None:
        first = asyncio.Event()

        async def slow() -> str:
            await first.wait()
            return "slow"

        async def quick() -> str:
            return "quick"

        found = []
        async for result in ctx.as_completed(ctx.durable_execute_async(slow), ctx.durable_execute_async(quick)):
            first.set()
            found.append(result)
        ctx.send_event(OutputEvent(found))

    assert run(act) == [["quick", "slow"]]


def test_a_timeout_around_a_step_is_that_of_asyncio() -> None:
    async def act(event: object, ctx: RunnerContext) -> None:
        async def never() -> None:
            await asyncio.Event().wait()

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await ctx.durable_execute_async(never)
        async with asyncio.TaskGroup() as group:
            results = [group.create_task(ctx.durable_execute_async(abs, -n)) for n in (1, 2)]  # type: ignore[arg-type]
        ctx.send_event(OutputEvent([result.result() for result in results]))

    assert run(act) == [[1, 2]]


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
@pytest.mark.parametrize(
    ("cache", "calls"), [("1h", ["1 a", "1 b", "2 a"]), ("1ms", ["1 a", "1 b", "2 a", "1 a", "2 a"])]
)
def test_a_kept_result_answers_later_runs_of_its_key_for_its_time(
    tmp_path: Path, cache: str, calls: list[str], *, is_async: bool
) -> None:
    called: list[str] = []

    def look_up(key: int, what: str) -> int:
        called.append(f"{key} {what}")
        return len(called)

    async def act_async(event: Any, ctx: RunnerContext) -> None:
        found = await ctx.durable_execute_async(look_up, ctx.key, event.input["what"], cache=cache)
        ctx.send_event(OutputEvent(found))

    def act(event: Any, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(ctx.durable_execute(look_up, ctx.key, event.input["what"], cache=cache)))

    agent = Agent("A").add_action("act", [EventType.InputEvent], act_async if is_async else act)
    inputs = [{"k": 1, "what": "a"}, {"k": 1, "what": "a"}, {"k": 1, "what": "b"}, {"k": 2, "what": "a"}]
    found = []
    for end in (4, 6):  # in two processes
        settings = JobSettings(state=StateSettings(dir=str(tmp_path)))
        environment = AgentsExecutionEnvironment.get_execution_environment(settings)
        rest = [{"k": 1, "what": "a"}, {"k": 2, "what": "a"}]
        results = environment.from_list([*inputs, *rest][:end]).key_by("k").apply(agent).to_list()
        environment.execute()
        found += results
        time.sleep(0.002)  # the clock is the point
    assert sorted(called) == sorted(calls)
    assert len(found) == 6
    assert len(set(found)) == len(calls)


def test_an_error_is_not_kept() -> None:
    called: list[int] = []

    def fail() -> None:
        called.append(1)
        raise ConnectionError

    async def act(event: object, ctx: RunnerContext) -> None:
        with pytest.raises(ConnectionError):
            await ctx.durable_execute_async(fail, cache="1h")

    agent = Agent("A").add_action("act", [EventType.InputEvent], act)
    environment = AgentsExecutionEnvironment.get_execution_environment()
    environment.from_list([{"k": 1}, {"k": 1}]).key_by("k").apply(agent).to_list()
    environment.execute()
    assert len(called) == 2


def test_kept_results_can_be_given_up_and_those_that_are_too_old_are() -> None:
    kept: list[int] = []

    def look_up(n: int) -> int:
        return n

    async def act(event: Any, ctx: RunnerContext) -> None:
        await ctx.durable_execute_async(look_up, event.input["n"], cache=event.input["cache"])
        if event.input["clear"]:
            ctx.short_term_memory.delete("__cached_steps__")
        memory = ctx.short_term_memory.get("__cached_steps__")
        kept.append(0 if memory is None else len(memory.get_field_names()))

    agent = Agent("A").add_action("act", [EventType.InputEvent], act)
    environment = AgentsExecutionEnvironment.get_execution_environment()
    inputs = [("1h", False), ("0ms", False), ("1h", False), ("1h", True), ("1h", False)]
    records = [{"k": 1, "n": n, "cache": cache, "clear": clear} for n, (cache, clear) in enumerate(inputs)]
    environment.from_list(records).key_by("k").apply(agent).to_list()
    environment.execute()
    assert kept == [1, 2, 2, 0, 1]


def test_the_idempotency_key_is_one_per_step() -> None:
    keys: list[str] = []

    async def act(event: object, ctx: RunnerContext) -> None:
        async def step() -> None:
            keys.append(ctx.idempotency_key)

        await ctx.gather(ctx.durable_execute_async(step), ctx.durable_execute_async(step))

    run(act, inputs=2)
    assert len(set(keys)) == 4
    assert all(len(key) == 32 for key in keys)

"""What one caller or one action does wrong is told to it, and disturbs nobody else, in this life and in the next."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
from typing import Any

import pytest

from agentflow import (
    Agent,
    CollectionSink,
    ConfigError,
    Engine,
    EngineClosed,
    Event,
    EventType,
    OutputEvent,
    RequestMismatch,
    Retry,
    RunFailed,
)
from agentflow.errors import RestartsExhausted
from tests.engines import until

HALF = json.loads('"\\ud83d"')
"""Half an emoji, as the answer of a model has it that was cut."""


class NoText(Exception):
    """Has no text."""

    def __str__(self) -> str:
        return self.nothing  # type: ignore[attr-defined, no-any-return]


def raising(text: str) -> None:
    raise ValueError(text)


async def act(event: Any, ctx: Any) -> None:
    match event.input:
        case "memory":
            ctx.short_term_memory.set("answer", HALF)
        case "nested memory":
            ctx.short_term_memory.set("answer", {"texts": [HALF]})
        case "path":
            ctx.short_term_memory.set(f"a.{HALF}", 1)
        case "event":
            ctx.send_event(Event(f"x{HALF}", {}))
        case "attributes":
            ctx.send_event(Event("x", {"text": HALF}))
        case "output":
            ctx.send_event(OutputEvent(HALF))
        case "error":
            raise ValueError(HALF)
        case "no text":
            raise NoText
        case "step":
            await ctx.durable_execute_async(raising, HALF)
        case "step error":
            await ctx.durable_execute_async(raise_half)
        case "wait":
            await ctx.wait_for(f"go{HALF}")
        case "timer":
            ctx.cancel_timer(HALF)
        case "approval":
            ctx.send_event(OutputEvent(await ctx.wait_for("go")))
        case _:
            ctx.send_event(OutputEvent(event.input))


def raise_half() -> None:
    raise ValueError(HALF)


def agent() -> Agent:
    found = Agent("A").add_action("act", [EventType.InputEvent], act, retry=Retry(attempts=1))
    return found.add_action("listen", ["x"], lambda event, ctx: None)


@pytest.mark.parametrize(
    "does",
    [
        "memory", "nested memory", "path", "event", "attributes", "output", "error", "no text", "step", "step error",
        "wait", "timer",
    ],
)  # fmt: skip
async def test_text_that_no_encoding_has_fails_its_own_run(tmp_path, does):
    for directory in (tmp_path / "state", tmp_path / "copy"):
        async with Engine(agent(), state_dir=str(directory)) as engine:
            if directory.name == "state":
                with pytest.raises(RunFailed) as told:
                    await engine.submit("k", does, request_id="r")
                shutil.copytree(directory, tmp_path / "copy")  # as a process leaves it that is killed here
            else:
                with pytest.raises(RunFailed, match=f"{told.value.error_type}"):
                    await engine.submit("k", does, request_id="r")
            assert await engine.submit("other", 1) == [1]
            assert engine.stats().restarts == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("k", "go", 2**70),
        ("k", "go", HALF),
        (None, "go", 1),
        (["k"], "go", 1),
        (2**70, "go", 1),
        (HALF, "go", 1),
        ("k", "go\ud800", 1),
    ],
    ids=str,
)
async def test_a_signal_that_cannot_be_read_is_refused_before_it_is_durable(tmp_path, arguments):
    for _ in range(2):
        async with Engine(agent(), state_dir=str(tmp_path)) as engine:
            with pytest.raises(TypeError):
                await engine.signal(*arguments)
            with pytest.raises(TypeError):
                await engine.cancel("k", reason=5)
            assert await engine.submit("other", 1) == [1]
            assert engine.stats().restarts == engine.stats().dead_letters == 0


async def test_a_signal_that_was_written_by_something_else_is_a_dead_letter(tmp_path):
    spool = tmp_path / "signals"
    spool.mkdir()
    (spool / f"{0:020d}.json").write_bytes(b'{"key": "k", "name": "go", "value": %d}' % 2**70)
    async with Engine(agent(), state_dir=str(tmp_path)) as engine:
        task = asyncio.ensure_future(engine.submit("k", "approval"))
        await until(engine.runs)
        await engine.signal("k", "go", "yes")
        assert await task == ["yes"]
        assert (engine.stats().restarts, engine.stats().dead_letters) == (0, 1)


@pytest.mark.parametrize("wrong", ["", "x" * 501, "a\udcff", "a\nb", "a\x85b", 5, b"r"], ids=repr)
async def test_a_request_id_that_cannot_be_one_is_refused(wrong):
    async with Engine(agent(), in_memory=True) as engine:
        with pytest.raises(TypeError, match="a request id is a text of 1 to 500 characters"):
            await engine.submit("k", 1, request_id=wrong)
        assert await engine.submit("k", 1, request_id="日本 ✓") == [1]


@pytest.mark.parametrize("headers", [{5: "x"}, {"a": None}, {"a\ud800": "x"}, {"a": "\ud800"}, [("a", "b")]], ids=repr)
async def test_headers_that_cannot_be_some_are_refused(headers):
    async with Engine(agent(), in_memory=True) as engine:
        with pytest.raises(TypeError, match="header"):
            await engine.submit("k", 1, headers=headers)
        assert await engine.submit("k", 1, headers={b"content-type": b"x", "a": "ü"}) == [1]


@pytest.mark.parametrize(
    ("key", "value"),
    [(2**70, 1), (HALF, 1), (None, 1), ("k", 2**70), ("k", {"a": HALF}), ("k", object())],
    ids=["int", "half", "none", "big", "half inside", "object"],
)
async def test_keys_and_inputs_that_cannot_be_encoded_are_type_errors(key, value):
    async with Engine(agent(), in_memory=True) as engine:
        with pytest.raises(TypeError):
            await engine.submit(key, value)
        with pytest.raises(TypeError):
            await engine.send(key, value)


async def test_an_id_of_a_restored_request_answers_no_other_one(tmp_path):
    async with Engine(agent(), state_dir=str(tmp_path), config={"shutdown.drain-timeout": "1ms"}) as engine:
        await engine.send("a", "approval", request_id="r")
    engine = Engine(agent(), state_dir=str(tmp_path))
    starting = asyncio.ensure_future(engine.start())
    await asyncio.sleep(0)
    early = asyncio.ensure_future(engine.submit("b", "other", request_id="r"))  # before anything is restored
    await starting
    with pytest.raises(RequestMismatch):
        await engine.submit("b", "other", request_id="r")
    with pytest.raises(RequestMismatch):
        await early
    again = asyncio.ensure_future(engine.submit("a", "approval", request_id="r"))
    await engine.signal("a", "go", "yes")
    assert await again == ["yes"]
    await engine.close()


async def test_an_engine_that_is_not_started_says_so():
    engine = Engine(agent(), in_memory=True)
    for ask in (engine.submit("k", 1), engine.send("k", 1), engine.result("r")):
        with pytest.raises(EngineClosed, match="is not started"):
            await ask


async def test_an_engine_that_is_closed_keeps_nothing_of_those_who_ask():
    class Value(dict[str, int]):
        """Can be found."""

    async with Engine(agent(), in_memory=True) as engine:
        pass
    for _ in range(50):
        with pytest.raises(EngineClosed):
            await engine.submit("k", Value())
    gc.collect()
    assert sum(isinstance(one, Value) for one in gc.get_objects()) <= 1


async def test_callers_that_have_gone_wait_no_more():
    async with Engine(agent(), in_memory=True, config={"run.in-flight-max": 1}) as engine:
        first = asyncio.ensure_future(engine.submit("k", "approval"))
        await until(engine.runs)
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await engine.submit("other", 1, timeout=0.001)
        assert engine.stats().waiting <= 1
        await engine.signal("k", "go", 5)
        assert await first == [5]
        assert await engine.submit("other", 1) == [1]


async def test_an_engine_that_cannot_go_on_gives_up_though_each_start_takes_a_checkpoint(tmp_path):
    class Full(CollectionSink):
        """Cannot be written."""

        def write(self, record):
            raise OSError("no space left on device")

    config = {"restart.attempts": 3, "restart.delay": "1ms", "checkpoint.interval": "1h"}
    engine = Engine(agent(), state_dir=str(tmp_path), config=config, sink=Full)
    await engine.start()
    with pytest.raises(RestartsExhausted, match="no space left"):
        await engine.submit("k", 1)
    with pytest.raises(RestartsExhausted):
        await engine.close()
    assert engine.stats().restarts == 3


async def test_wrong_arguments_are_told():
    with pytest.raises(ConfigError, match="a mapping of keys to values"):
        Engine(agent(), in_memory=True, config=["admin.port"])  # type: ignore[arg-type]
    async with Engine(agent(), in_memory=True) as engine:
        with pytest.raises(TypeError, match="a run id is a text"):
            await engine.result(5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="nan"):
            await engine.submit("k", 1, timeout=float("nan"))


async def test_an_answer_that_a_restart_makes_again_is_counted_once(tmp_path):
    class FailsOnce(CollectionSink):
        """Its second checkpoint fails, in the first life."""

        staged = 0

        async def stage(self, checkpoint):
            FailsOnce.staged += 1
            if FailsOnce.staged == 2:
                raise OSError("the disk is gone")
            return await super().stage(checkpoint)

    config = {"restart.delay": "1ms", "checkpoint.interval": "1h"}
    async with Engine(agent(), state_dir=str(tmp_path), config=config, sink=FailsOnce) as engine:
        for number in range(10):
            assert await engine.submit("k", number) == [number]
        assert engine._job is not None
        engine._job._subtask.checkpoint_schedule.take_extra()
        await until(lambda: engine.stats().restarts == 1 and engine.stats().state == "running")
        assert await engine.submit("k", "more") == ["more"]
        assert (engine.stats().answered, engine.stats().failed, engine.stats().open) == (11, 0, 0)

"""Streams of an engine: tokens before outputs, markers where attempts fail, resumption, slow readers, restarts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentflow import (
    Agent,
    AgentsExecutionEnvironment,
    BaseChatModelConnection,
    BaseChatModelSetup,
    ChatMessage,
    ChatRequestEvent,
    ChunkKind,
    CollectionSink,
    Engine,
    EngineClosed,
    Event,
    EventType,
    InputEvent,
    OutputEvent,
    ResourceType,
    Retry,
    RunFailed,
    RunnerContext,
    StreamChunk,
)
from agentflow.api.chat_models import ChatDelta, ChatRequest, OnDelta
from agentflow.errors import ModelUnavailable, RateLimited
from agentflow.integrations.openai import OpenAICompletionsConnection
from agentflow.runtime.ports import Staged
from agentflow.testing import ScriptedChatModel
from agentflow.testing.model_server import Cut, ModelServer, Reply
from tests.engines import ONCE, agent_of, checkpointed, until

TEXT, RESET, END, GAP = ChunkKind.TEXT, ChunkKind.RESET, ChunkKind.END, ChunkKind.GAP


def short(one: Any) -> Any:
    """A chunk as people read it; an output as it is."""
    if not isinstance(one, StreamChunk):
        return one
    return one.text or one.value or str(one.kind)


async def followed(engine: Engine, value: Any = 1, **options: Any) -> list[Any]:
    return [one async for one in engine.stream("k", value, tokens=True, **options)]


def said(found: list[Any]) -> list[Any]:
    return [short(one) for one in found]


def asking(model: BaseChatModelSetup, **options: Any) -> Agent:
    """An agent that hands the question on to a model and streams the answer."""

    async def act(event: Event, ctx: RunnerContext) -> None:
        answer = await ctx.chat("m", str(event.input), stream=ctx.stream("answer"))
        ctx.send_event(OutputEvent(answer.content))

    return agent_of(act, **options).add_resource("m", ResourceType.CHAT_MODEL, model)


class Stuttering(BaseChatModelConnection):
    """Says the words of its turns; exceptions are raised, events waited for, functions called."""

    can_stream = True
    turns: list[list[Any]] = []

    async def complete(self, request: ChatRequest, on_delta: OnDelta | None = None) -> ChatMessage:
        words = self.turns.pop(0)
        for word in words:
            if isinstance(word, Exception):
                raise word
            if isinstance(word, asyncio.Event):
                await word.wait()
            elif callable(word):
                word()
            elif on_delta is not None:
                on_delta(ChatDelta(word))
                await asyncio.sleep(0)
        return ChatMessage(content="".join(word for word in words if isinstance(word, str)))


class Model(BaseChatModelSetup):
    def __init__(self, *turns: list[Any], **arguments: Any) -> None:
        BaseChatModelSetup.__init__(self, connection="stuttering", retry_wait_interval="1ms", **arguments)
        self._own = Stuttering(turns=list(turns))

    def get_connection(self) -> BaseChatModelConnection:
        return self._own


# -- order and kinds
async def test_tokens_come_before_the_output_and_are_confirmed(new_engine: Callable[..., Engine]) -> None:
    async with new_engine(asking(ScriptedChatModel(["one two three"]))) as engine:
        found = await followed(engine)
        assert said(found) == ["one ", "two ", "three", "end", "one two three"]
        chunks = found[:-1]
        assert [chunk.offset for chunk in chunks] == [1, 2, 3, 4]
        assert {(chunk.stream, chunk.step, chunk.attempt) for chunk in chunks} == {("answer", "0:act.0", 1)}
        assert len({chunk.run for chunk in chunks}) == 1


async def test_a_token_is_there_before_the_answer_is(new_engine: Callable[..., Engine]) -> None:
    gate = asyncio.Event()
    async with new_engine(asking(Model(["one ", gate, "two"]))) as engine:
        found = []
        async for one in engine.stream("k", 1, tokens=True):
            found.append(short(one))
            gate.set()
        assert found == ["one ", "two", "end", "one two"]


async def test_without_tokens_a_stream_is_what_it_was(new_engine: Callable[..., Engine]) -> None:
    async with new_engine(asking(ScriptedChatModel(["one two three"]))) as engine:
        assert [one async for one in engine.stream("k", 1, request_id="r")] == ["one two three"]
        assert await engine.submit("k", 1, request_id="r") == ["one two three"]


async def test_chunks_and_outputs_keep_their_order_for_a_reader_who_comes_late(
    new_engine: Callable[..., Engine],
) -> None:
    gate, last = asyncio.Event(), asyncio.Event()

    def first(event: Event, ctx: RunnerContext) -> None:
        ctx.stream().write("a")
        ctx.send_event(OutputEvent(1))
        ctx.send_event(Event("next"))

    async def second(event: Event, ctx: RunnerContext) -> None:
        await gate.wait()
        ctx.stream().write("b")
        ctx.send_event(OutputEvent(2))
        ctx.send_event(Event("last"))

    async def third(event: Event, ctx: RunnerContext) -> None:
        await last.wait()
        ctx.stream().write("c")

    agent = Agent("A").add_action("first", [EventType.InputEvent], first)
    agent.add_action("second", ["next"], second).add_action("third", ["last"], third)
    async with new_engine(agent) as engine:
        early = engine.stream("k", 1, request_id="r")
        assert await anext(early) == 1
        gate.set()
        assert await anext(early) == 2
        late = engine.stream("k", 1, request_id="r", tokens=True)
        assert [short(await anext(late)) for _ in range(4)] == ["a", 1, "b", 2]
        last.set()
        assert said([one async for one in late]) == ["c"]
        assert [one async for one in early] == []


async def test_an_action_writes_texts_and_values_of_its_own(new_engine: Callable[..., Engine]) -> None:
    def act(event: Event, ctx: RunnerContext) -> None:
        progress = ctx.stream("progress")
        progress.write("half a character: \ud83d")
        places = {"done": [1]}
        progress.write(places)
        places["done"].append(2)
        with pytest.raises(TypeError):
            progress.write(object())
        with pytest.raises(ValueError, match="half a character"):
            ctx.stream("\ud83d")

    async with new_engine(agent_of(act)) as engine:
        found = await followed(engine)
        assert said(found) == ["half a character: ?", {"done": [1]}]
        assert [(one.stream, one.kind, one.step) for one in found] == [
            ("progress", TEXT, "0:act"), ("progress", ChunkKind.VALUE, "0:act"),
        ]  # fmt: skip


async def test_reasoning_and_tool_calls_are_told_apart(new_engine: Callable[..., Engine]) -> None:
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    model = ScriptedChatModel([{"tool": "add", "arguments": {"a": 1, "b": 2}}, "three"], tools=[add])
    async with new_engine(asking(model)) as engine:
        found = await followed(engine)
    assert [(one.kind, one.name, one.step) for one in found[:-1]] == [
        (ChunkKind.TOOL_CALL, "add", "0:act.0"),
        (END, "", "0:act.0"),
        (TEXT, "", "0:act.1"),
        (END, "", "0:act.1"),
    ]


async def test_a_request_by_event_streams_too(new_engine: Callable[..., Engine]) -> None:
    def ask(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(ChatRequestEvent("m", [ChatMessage(content="hi")], stream="answer"))

    def answer(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(event.attributes["response"]["content"]))

    agent = Agent("A").add_action("ask", [EventType.InputEvent], ask)
    agent.add_action("answer", [EventType.ChatResponseEvent], answer)
    agent.add_resource("m", ResourceType.CHAT_MODEL, ScriptedChatModel(["one two"]))
    async with new_engine(agent) as engine:
        assert said(await followed(engine)) == ["one ", "two", "end", "one two"]


async def test_calls_at_the_same_time_are_told_apart_by_their_step(new_engine: Callable[..., Engine]) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        stream = ctx.stream()
        answers = await ctx.gather(ctx.chat("m", "a", stream=stream), ctx.chat("m", "b", stream=stream))
        ctx.send_event(OutputEvent([answer.content for answer in answers]))

    agent = agent_of(act).add_resource("m", ResourceType.CHAT_MODEL, ScriptedChatModel(["a b c", "x y z"]))
    async with new_engine(agent) as engine:
        *chunks, output = await followed(engine)
    texts: dict[str, str] = {}
    for chunk in chunks:
        texts[chunk.step] = texts.get(chunk.step, "") + chunk.text
    assert list(texts.values()) == output == ["a b c", "x y z"]
    assert sum(chunk.kind == END for chunk in chunks) == 2


async def test_a_model_that_cannot_stream_says_its_answer_at_once(new_engine: Callable[..., Engine]) -> None:
    class Plain(Stuttering):
        can_stream = False

    model = Model()
    model._own = Plain(turns=[["one ", "two"]])
    async with new_engine(asking(model)) as engine:
        assert said(await followed(engine)) == ["one two", "end", "one two"]


async def test_what_is_written_behind_the_end_of_an_action_is_dropped(new_engine: Callable[..., Engine]) -> None:
    kept = []

    def act(event: Event, ctx: RunnerContext) -> None:
        kept.append(ctx.stream())
        ctx.send_event(Event("next"))

    def after(event: Event, ctx: RunnerContext) -> None:
        kept[0].write("late")
        ctx.send_event(OutputEvent(1))

    agent = Agent("A").add_action("act", [EventType.InputEvent], act).add_action("after", ["next"], after)
    async with new_engine(agent) as engine:
        assert await followed(engine) == [1]


async def test_a_step_in_a_thread_streams(new_engine: Callable[..., Engine]) -> None:
    def act(event: Event, ctx: RunnerContext) -> None:
        def work() -> int:
            for word in ("one ", "two"):
                ctx.stream().write(word)
            return 2

        ctx.stream().write("start")
        ctx.send_event(OutputEvent(ctx.durable_execute(work)))

    async with new_engine(agent_of(act, blocking=True)) as engine:
        found = await followed(engine)
        assert said(found) == ["start", "one ", "two", "end", 2]
        assert [one.step for one in found[:-1]] == ["0:act", "0:act.0", "0:act.0", "0:act.0"]


# -- attempts
async def test_a_call_that_fails_takes_its_tokens_back(new_engine: Callable[..., Engine]) -> None:
    model = Model(["one ", "tw", ModelUnavailable("cut")], ["one ", "two"])
    async with new_engine(asking(model)) as engine:
        found = await followed(engine)
        assert said(found) == ["one ", "tw", "reset", "one ", "two", "end", "one two"]
        assert [one.attempt for one in found[:-1]] == [1, 1, 1, 2, 2, 2]
        assert found[2].step == found[0].step


async def test_a_call_within_the_same_step_takes_the_tokens_of_the_one_before_back(
    new_engine: Callable[..., Engine],
) -> None:
    model = Model(["on", RateLimited("slow down", retry_after_s=0.0)], ["one"])
    async with new_engine(asking(model)) as engine:
        found = await followed(engine)
    assert said(found) == ["on", "reset", "one", "end", "one"]
    assert [one.attempt for one in found[:-1]] == [1, 2, 2, 2]
    assert len({one.step for one in found[:-1]}) == 1


async def test_a_step_of_the_user_takes_back_what_a_failed_call_has_said(new_engine: Callable[..., Engine]) -> None:
    calls = []

    async def act(event: Event, ctx: RunnerContext) -> None:
        async def work() -> int:
            calls.append(1)
            ctx.stream().write(f"call {len(calls)}")
            if len(calls) == 1:
                raise OSError("away")
            return len(calls)

        retry = Retry(attempts=2, initial="1ms")
        ctx.send_event(OutputEvent(await ctx.durable_execute_async(work, retry=retry)))

    async with new_engine(agent_of(act)) as engine:
        found = await followed(engine)
        assert said(found) == ["call 1", "reset", "call 2", "end", 2]
        assert [one.attempt for one in found[:-1]] == [1, 1, 2, 2]


async def test_an_action_that_fails_takes_back_what_it_has_said_and_keeps_what_its_steps_have(
    new_engine: Callable[..., Engine],
) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        ctx.stream().write(f"attempt {ctx.attempt}")
        await ctx.chat("m", "hi", stream=ctx.stream())
        if ctx.attempt == 1:
            raise OSError("away")

    agent = agent_of(act, retry=Retry(attempts=2, initial="1ms"))
    agent.add_resource("m", ResourceType.CHAT_MODEL, ScriptedChatModel(["hello"]))
    async with new_engine(agent) as engine:
        found = await followed(engine)
        assert said(found) == ["attempt 1", "hello", "end", "reset", "attempt 2"]
        assert [one.step for one in found] == ["0:act", "0:act.0", "0:act.0", "0:act", "0:act"]


async def test_a_step_that_the_action_gives_up_is_void(new_engine: Callable[..., Engine]) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        asking = asyncio.create_task(ctx.chat("m", "hi", stream=ctx.stream()))  # type: ignore[arg-type]
        await hangs.wait()
        asking.cancel()
        await asyncio.wait([asking])
        ctx.send_event(OutputEvent("too late"))

    hangs = asyncio.Event()
    agent = agent_of(act).add_resource("m", ResourceType.CHAT_MODEL, Model(["one ", hangs.set, asyncio.Event()]))
    async with new_engine(agent) as engine:
        assert said(await followed(engine)) == ["one ", "reset", "too late"]


async def test_an_action_that_is_parked_and_starts_again_takes_back_what_it_has_said(tmp_path: Path) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        ctx.stream().write("before")
        ctx.send_event(OutputEvent(await ctx.wait_for("go")))

    config = {"run.park-after": "1ms"}
    async with Engine(agent_of(act), state_dir=str(tmp_path / "state"), config=config) as engine:
        stream = engine.stream("k", 1, tokens=True)
        assert short(await anext(stream)) == "before"
        assert engine._job is not None
        steps = engine._job._subtask._stages[0].steps  # type: ignore[union-attr]
        await until(lambda: steps is not None and not steps._tasks)
        await engine.signal("k", "go", 7)
        assert said([one async for one in stream]) == ["reset", "before", 7]


async def test_a_run_that_fails_ends_the_stream_with_its_error(new_engine: Callable[..., Engine]) -> None:
    async with new_engine(asking(Model(["one ", ModelUnavailable("cut")], max_retries=0), retry=ONCE)) as engine:
        stream = engine.stream("k", 1, tokens=True)
        assert [short(await anext(stream)) for _ in range(2)] == ["one ", "reset"]
        with pytest.raises(RunFailed):
            await anext(stream)


# -- resumption
async def test_a_reader_goes_on_behind_its_offset_while_the_run_goes_on_and_behind_its_end(
    new_engine: Callable[..., Engine],
) -> None:
    gate = asyncio.Event()
    async with new_engine(
        asking(Model(["one ", "two ", gate, "three"])), config={"checkpoint.interval": "1h"}
    ) as engine:
        stream = engine.stream("k", 1, request_id="r", tokens=True)
        first = await anext(stream)
        await stream.aclose()
        gate.set()
        assert said(await followed(engine, request_id="r", after=first.offset)) == [
            "two ", "three", "end", "one two three",
        ]  # fmt: skip
        assert said(await followed(engine, request_id="r", after=3, skip=1)) == ["end"]
        await checkpointed(engine)
        assert said(await followed(engine, request_id="r", after=3)) == ["reset", "one two three"], "they are gone"
        assert said(await followed(engine, request_id="r")) == ["one two three"]


async def test_an_offset_that_never_was_is_told_so(new_engine: Callable[..., Engine]) -> None:
    async with new_engine(asking(ScriptedChatModel(["one two"]))) as engine:
        found = await followed(engine, request_id="r", after=99)
        assert said(found) == ["reset", "one ", "two", "end", "one two"]
        assert (found[0].step, found[0].offset) == ("", 0)


async def test_a_process_that_takes_a_run_up_says_so_and_ends_with_the_same_output(tmp_path: Path) -> None:
    directory, hang = str(tmp_path / "state"), asyncio.Event()
    config = {"shutdown.drain-timeout": "1ms"}
    async with Engine(asking(Model(["one ", "tw", hang])), state_dir=directory, config=config) as engine:
        stream = engine.stream("k", 1, request_id="r", tokens=True)
        before = [await anext(stream) for _ in range(2)]
    before.append(await anext(stream))
    with pytest.raises(EngineClosed):
        await anext(stream)
    assert said(before) == ["one ", "tw", "reset"], "what was on its way is void"
    go = asyncio.Event()
    async with Engine(asking(Model([go, "one ", "two"])), state_dir=directory, config=config) as engine:
        after = before[1].offset
        stream = engine.stream("k", 1, request_id="r", tokens=True, after=after)
        again = [await anext(stream)]
        assert (again[0].kind, again[0].step) == (RESET, "")
        go.set()
        again += [one async for one in stream]
        assert [word for word in said(again) if word != "reset"] == ["one ", "two", "end", "one two"]
        offsets = [one.offset for one in again[:-1]]
        assert offsets == sorted(set(offsets))
        assert offsets[0] > before[-1].offset


async def test_a_recorded_answer_is_not_streamed_again_by_the_next_process(tmp_path: Path) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        answer = await ctx.chat("m", "hi", stream=ctx.stream())
        await ctx.wait_for("go")
        ctx.send_event(OutputEvent(answer.content))

    def agent(*replies: str) -> Agent:
        return agent_of(act).add_resource("m", ResourceType.CHAT_MODEL, ScriptedChatModel(list(replies)))

    directory = str(tmp_path / "state")
    async with Engine(agent("one two"), state_dir=directory) as engine:
        stream = engine.stream("k", 1, request_id="r", tokens=True)
        before = [await anext(stream) for _ in range(3)]
        assert said(before) == ["one ", "two", "end"]
    async with Engine(agent(), state_dir=directory) as engine:
        stream = engine.stream("k", 1, request_id="r", tokens=True, after=before[-1].offset)
        assert short(await anext(stream)) == "reset"
        await engine.signal("k", "go")
        assert said([one async for one in stream]) == ["one two"]


async def test_a_restart_within_the_process_takes_back_what_was_on_its_way_and_offsets_go_on(tmp_path: Path) -> None:
    class FailsOnce(CollectionSink):
        """Its second checkpoint fails, in the first life."""

        staged = 0

        async def stage(self, checkpoint: int) -> Staged:
            FailsOnce.staged += 1
            if FailsOnce.staged == 2:
                raise OSError("the disk is gone")
            return await super().stage(checkpoint)

    def early(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent("early"))
        ctx.send_event(Event("next"))

    async def late(event: Event, ctx: RunnerContext) -> None:
        await ctx.chat("m", "hi", stream=ctx.stream())

    agent = Agent("A").add_action("early", [EventType.InputEvent], early).add_action("late", ["next"], late)
    agent.add_resource("m", ResourceType.CHAT_MODEL, Model(["one ", asyncio.Event()], ["one ", "two"]))
    config = {"restart.delay": "1ms", "checkpoint.interval": "1h"}
    async with Engine(agent, state_dir=str(tmp_path / "state"), config=config, sink=FailsOnce) as engine:
        stream = engine.stream("k", 1, tokens=True)
        found = [await anext(stream) for _ in range(2)]
        assert engine._job is not None
        assert engine._job._subtask is not None
        engine._job._subtask.checkpoint_schedule.take_extra()
        found += [one async for one in stream]
    assert engine.stats().restarts == 1
    assert said(found) == ["early", "one ", "reset", "one ", "two", "end"]
    assert [one.offset for one in found[1:]] == [1, 2, 3, 4, 5]


# -- limits
async def test_a_slow_reader_holds_nobody_up_and_is_told_of_the_gap(new_engine: Callable[..., Engine]) -> None:
    first, written = asyncio.Event(), asyncio.Event()

    async def act(event: Event, ctx: RunnerContext) -> None:
        ctx.stream().write("0")
        await first.wait()
        for number in range(1, 1_000):
            ctx.stream().write(str(number))
        written.set()
        ctx.send_event(OutputEvent("done"))

    async with new_engine(agent_of(act), config={"streams.run-buffer": "10KiB"}) as engine:
        stream = engine.stream("k", 1, tokens=True)
        assert short(await anext(stream)) == "0"
        first.set()
        await written.wait()
        found = [one async for one in stream]
        assert found[0].kind == GAP
        numbers = [int(one.text) for one in found[1:-1]]
        assert numbers == list(range(numbers[0], 1_000))
        assert 10 < len(numbers) < 30
        assert (found[0].offset, found[-1]) == (numbers[0], "done")


async def test_chunks_take_no_memory_behind_the_end_of_their_run(new_engine: Callable[..., Engine]) -> None:
    gate = asyncio.Event()
    async with new_engine(asking(Model(["one ", gate], ["two"], ["three"]))) as engine:
        buffers = engine._table._buffers
        assert buffers is not None
        first = asyncio.ensure_future(followed(engine))
        await until(lambda: buffers.used_bytes > 0)
        gate.set()
        await first
        await followed(engine)
        assert await engine.submit("k", 1) == ["three"]
        assert (buffers.used_bytes, buffers._filled) == (0, {})


async def test_in_a_job_without_readers_a_stream_takes_everything_and_keeps_nothing() -> None:
    def act(event: InputEvent[Any], ctx: RunnerContext) -> None:
        ctx.stream().write("one")
        ctx.stream("other").write(object())
        ctx.stream().begin_attempt(1)
        ctx.send_event(OutputEvent(event.input["n"]))

    environment = AgentsExecutionEnvironment.get_execution_environment()
    results = environment.from_list([{"k": 1, "n": 5}]).key_by("k").apply(agent_of(act)).to_list()
    await environment.job().run()
    assert list(results) == [5]


# -- a provider's own protocol
async def test_tokens_of_a_provider_come_as_they_come_and_a_cut_stream_is_void(
    new_engine: Callable[..., Engine],
) -> None:
    async with ModelServer([Cut(after_chunks=3, reply=Reply("one two three")), Reply("one two three")]) as server:
        agent = asking(BaseChatModelSetup(connection="c", model="gpt", retry_wait_interval="1ms"))
        connection = OpenAICompletionsConnection(api_key="k", api_base_url=f"{server.url}/v1")
        agent.add_resource("c", ResourceType.CHAT_MODEL_CONNECTION, connection)
        async with new_engine(agent) as engine:
            found = said(await followed(engine))
    assert found.count("reset") == 1
    assert "".join(found[found.index("reset") + 1 : -2]) == "one two three"
    assert found[-2:] == ["end", "one two three"]


async def test_what_is_no_stream_is_refused_before_the_model_is_asked() -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        await ctx.chat("m", "hello", stream=ctx)

    model = ScriptedChatModel(["hi"])
    agent = agent_of(act, retry=ONCE).add_resource("m", ResourceType.CHAT_MODEL, model)
    async with Engine(agent, in_memory=True) as engine:
        with pytest.raises(RunFailed, match=r"give ctx\.stream\(name\), or its name"):
            await engine.submit("k", 1)
    assert model.requests == []

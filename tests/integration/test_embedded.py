"""Whole embedded jobs, from a list to a list or through files: what an agent author is promised."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import shutil
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest

from agentflow import (
    Agent,
    AgentsExecutionEnvironment,
    CheckpointSettings,
    CollectionSink,
    ConfigError,
    Engine,
    Event,
    EventType,
    InputEvent,
    JobFailed,
    JobSettings,
    JsonlSink,
    JsonlSource,
    NotConfigured,
    OutputEvent,
    PlanError,
    Retry,
    RunnerContext,
    StateSettings,
    TimerEvent,
    action,
)
from agentflow.api.memory import MemoryObject
from agentflow.connectors.standard_streams import StdoutSink
from agentflow.errors import OutputExists
from agentflow.runtime import action_runner
from agentflow.runtime.settings import ShutdownSettings

ONCE = Retry(attempts=1)


def outputs(agent: Agent, values: list[Any], *, key: str = "k", settings: JobSettings | None = None) -> list[Any]:
    """Run a job over ``values`` and return its outputs."""
    env = AgentsExecutionEnvironment.get_execution_environment(settings)
    results = env.from_list(values).key_by(key).apply(agent).to_list()
    env.execute()
    return results


def agent_of(function: Any, **options: Any) -> Agent:
    """Return an agent with one action on its input."""
    return Agent("A").add_action("act", [EventType.InputEvent], function, **options)


def test_memory_is_kept_per_key_across_runs_and_sensory_memory_is_not() -> None:
    def count(event: InputEvent[Any], ctx: RunnerContext) -> None:
        number = ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)
        seen = ctx.sensory_memory.get("seen")
        ctx.sensory_memory.set("seen", number)
        ctx.send_event(OutputEvent([ctx.key, number, seen]))

    results = outputs(agent_of(count), [{"k": key} for key in ["a", "b", "a", 1, "1"]])
    expected = [["a", 1, None], ["a", 2, None], ["b", 1, None], [1, 1, None], ["1", 1, None]]
    assert sorted(results, key=repr) == sorted(expected, key=repr)


def test_changing_a_list_that_memory_returned_changes_nothing() -> None:
    def act(event: InputEvent[Any], ctx: RunnerContext) -> None:
        memory = ctx.short_term_memory
        if not memory.is_exist("xs"):
            memory.set("xs", [1, {"y": 2}])
        memory.get("xs").append(3)
        memory.get("xs")[1]["y"] = 9
        ctx.send_event(OutputEvent(memory.get("xs")))

    assert outputs(agent_of(act), [{"k": 1}, {"k": 1}]) == [[1, {"y": 2}]] * 2


def test_failed_attempt_leaves_no_trace() -> None:
    def act(event: InputEvent[Any], ctx: RunnerContext) -> None:
        number = ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)
        ctx.send_event(OutputEvent([ctx.attempt, number]))
        if ctx.attempt < 3:
            msg = "not yet"
            raise ValueError(msg)

    assert outputs(agent_of(act, retry=Retry(initial="1ms")), [{"k": 1}]) == [[3, 1]]


async def _hang(event: InputEvent[Any], ctx: RunnerContext) -> None:
    if event.input["k"] == "bad":
        await asyncio.Event().wait()
    ctx.send_event(OutputEvent(event.input["k"]))


async def _cancel(event: InputEvent[Any], ctx: RunnerContext) -> None:
    if event.input["k"] == "bad":
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
    await asyncio.sleep(0)
    ctx.send_event(OutputEvent(event.input["k"]))


def _raise(event: InputEvent[Any], ctx: RunnerContext) -> None:
    if event.input["k"] == "bad":
        raise KeyError(event.input["k"])
    ctx.send_event(OutputEvent(event.input["k"]))


def _raise_cancelled(event: InputEvent[Any], ctx: RunnerContext) -> None:
    if event.input["k"] == "bad":
        raise asyncio.CancelledError
    ctx.send_event(OutputEvent(event.input["k"]))


async def _refuse_to_end(event: InputEvent[Any], ctx: RunnerContext) -> None:
    while event.input["k"] == "bad":
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
    ctx.send_event(OutputEvent(event.input["k"]))


def _block(event: InputEvent[Any], ctx: RunnerContext) -> None:
    if event.input["k"] == "bad":
        threading.Event().wait(5)
    ctx.send_event(OutputEvent(event.input["k"]))


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (_raise, {}),
        (_hang, {"timeout": "20ms"}),
        (_cancel, {}),
        (_raise_cancelled, {}),
        (_refuse_to_end, {"timeout": "20ms"}),
        (_block, {"timeout": "500ms", "blocking": True}),
    ],
)
def test_action_that_raises_hangs_or_is_cancelled_affects_only_its_own_run(
    function: Any, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(action_runner, "_STUBBORN_S", 0.02)
    agent = agent_of(function, retry=ONCE, on_error="dead-letter", **options)
    env = AgentsExecutionEnvironment.get_execution_environment()
    dead = CollectionSink()
    stream = env.from_list([{"k": key} for key in ["a", "bad", "b"]]).key_by("k").apply(agent)
    results = stream.dead_letters_to(dead).to_list()
    status = env.execute()
    assert sorted(results) == ["a", "b"]
    assert status.dead_letters == 1
    letter: Any = dead.values[0]
    assert letter["value"] == {"k": "bad"}
    assert letter["action"] == "act"
    assert letter["source-position"] == "list/1"


def test_context_of_a_timed_out_blocking_action_is_closed() -> None:
    released, refused = threading.Event(), []

    def act(event: InputEvent[Any], ctx: RunnerContext) -> None:
        memory = ctx.short_term_memory
        released.wait(5)
        for late in (lambda: ctx.send_event(OutputEvent(1)), lambda: memory.set("x", 1)):
            try:
                late()
            except Exception as error:  # noqa: BLE001 (recorded)
                refused.append(type(error).__name__)
        done.set()

    done = threading.Event()
    agent = agent_of(act, blocking=True, timeout="200ms", retry=ONCE, on_error="skip")
    assert outputs(agent, [{"k": 1}]) == []
    released.set()
    assert done.wait(5)
    assert refused == ["ContextClosed", "ContextClosed"]


def test_coroutine_sees_one_current_task_and_all_of_asyncio_works() -> None:
    async def act(event: InputEvent[Any], ctx: RunnerContext) -> None:
        before = asyncio.current_task()
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            tasks = [group.create_task(asyncio.sleep(0.001, n)) for n in range(3)]
        gathered = await asyncio.gather(*(asyncio.sleep(0, n) for n in range(3)))
        ctx.send_event(OutputEvent([before is asyncio.current_task(), [t.result() for t in tasks], gathered]))

    assert outputs(agent_of(act), [{"k": 1}]) == [[True, [0, 1, 2], [0, 1, 2]]]


@dataclasses.dataclass
class AsDataclass:
    k: str
    n: int


class AsStruct(msgspec.Struct):
    k: str
    n: int


class AsModel(pydantic.BaseModel):
    k: str
    n: int


@pytest.mark.parametrize("kind", [AsDataclass, AsStruct, AsModel])
def test_typed_input_is_decoded_and_a_value_that_does_not_fit_is_not_retried(kind: type) -> None:
    def act(event: InputEvent[Any], ctx: RunnerContext) -> None:
        assert type(event.input) is kind
        ctx.send_event(OutputEvent(event.input))

    agent = agent_of(act, input=kind, on_error="dead-letter")
    env = AgentsExecutionEnvironment.get_execution_environment()
    dead = CollectionSink()
    stream = env.from_list([{"k": "a", "n": 1}, {"k": "b", "n": "no"}]).key_by("k").apply(agent)
    results = stream.dead_letters_to(dead).to_list()
    env.execute()
    assert results == [{"k": "a", "n": 1}]
    letter: Any = dead.values[0]
    assert letter["attempt"] == "1"


def test_chained_agents_pass_outputs_on_under_a_new_key() -> None:
    def first(event: InputEvent[Any], ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent({"group": event.input["n"] % 2, "n": event.input["n"]}))

    def second(event: InputEvent[Any], ctx: RunnerContext) -> None:
        total = ctx.short_term_memory.update("sum", lambda s: (s or 0) + event.input["n"])
        ctx.send_event(OutputEvent([ctx.key, total, ctx.run_id]))

    env = AgentsExecutionEnvironment.get_execution_environment()
    stream = env.from_list([{"k": n, "n": n} for n in range(4)]).key_by("k").apply(agent_of(first))
    results = stream.key_by("group").apply(agent_of(second)).to_list()
    env.execute()
    assert sorted(results) == [
        [0, 0, "list/0/0:act/0"],
        [0, 2, "list/2/0:act/0"],
        [1, 1, "list/1/0:act/0"],
        [1, 4, "list/3/0:act/0"],
    ]


def test_event_time_timer_fires_at_the_end_of_input() -> None:
    def act(event: InputEvent[Any], ctx: RunnerContext) -> None:
        ctx.set_timer("close", at=datetime(2026, 1, 1, tzinfo=UTC), is_event_time=True, attributes={"v": 1})
        with pytest.raises(ValueError, match="exactly one"):
            ctx.set_timer("x", at=datetime(2026, 1, 1, tzinfo=UTC), after=timedelta(1))

    def close(event: TimerEvent, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent([ctx.key, event.attributes["name"], event.attributes["v"]]))

    agent = agent_of(act).add_action("close", [TimerEvent], close)
    assert outputs(agent, [{"k": "a"}, {"k": "a"}]) == [["a", "close", 1]]


def test_memory_objects_have_fields_and_never_hold_a_value_and_an_object_at_one_path() -> None:
    def act(event: InputEvent[Any], ctx: RunnerContext) -> None:
        memory = ctx.short_term_memory
        ref = memory.set("a.b", 1)
        memory.new_object("a.empty")
        assert memory.get_field_names() == ["a"]
        assert memory.get("a").get_fields() == {"b": 1, "empty": "NestedObject"}
        assert isinstance(memory.get("a"), MemoryObject)
        assert ref.resolve(ctx) == 1
        for path in ("a", "a.b.c", "a..b"):
            with pytest.raises(ValueError, match="memory path"):
                memory.set(path, 2)
        with pytest.raises(TypeError, match=r"memory path 'x\[0\]': tuple cannot be stored.*list"):
            memory.set("x", [(1, 2)])
        memory.delete("a")
        assert not memory.is_exist("a.b")
        ctx.send_event(OutputEvent("ok"))

    assert outputs(agent_of(act, retry=ONCE), [{"k": 1}, {"k": 1}]) == ["ok", "ok"]


def test_what_this_engine_does_not_have_raises_not_configured() -> None:
    def act(event: InputEvent[Any], ctx: RunnerContext) -> None:
        for use in (lambda: ctx.long_term_memory,):
            with pytest.raises(NotConfigured):
                use()
        ctx.send_event(OutputEvent("ok"))

    assert outputs(agent_of(act, retry=ONCE), [{"k": 1}]) == ["ok"]


def test_job_without_dead_letters_stops_at_bad_input_with_the_place_and_the_fix() -> None:
    with pytest.raises(JobFailed) as caught:
        outputs(agent_of(_raise), [{"k": "a"}, {"other": 1}])
    assert "MissingKey: the record has no field 'k'" in str(caught.value)
    assert "source-position list/1" in str(caught.value)
    assert "help: configure dead-letter" in str(caught.value)


def test_job_that_cannot_give_its_guarantee_does_not_start() -> None:
    env = AgentsExecutionEnvironment.get_execution_environment()
    env.from_list([]).key_by("k").apply(agent_of(_raise)).to_sink(StdoutSink())
    with pytest.raises(ConfigError, match="set guarantee: at-least-once"):
        env.execute()


def test_job_that_lacks_parts_says_which() -> None:
    env = AgentsExecutionEnvironment.get_execution_environment()
    with pytest.raises(PlanError, match="no source"):
        env.execute()
    with pytest.raises(PlanError, match="needs a key"):
        env.from_list([]).apply(agent_of(_raise))


def file_job(directory: Path, agent: Agent, **sections: Any) -> AgentsExecutionEnvironment:
    state, checkpoint = StateSettings(dir=str(directory / "state")), CheckpointSettings(interval_ms=20)
    settings = JobSettings(job="files", state=state, checkpoint=checkpoint, **sections)
    env = AgentsExecutionEnvironment.get_execution_environment(settings)
    stream = env.from_source(lambda: JsonlSource(str(directory / "in.jsonl"))).key_by("k").apply(agent)
    stream.to_sink(lambda: JsonlSink(str(directory / "out")))
    return env


def visible(directory: Path) -> list[Any]:
    parts = sorted((directory / "out").glob("part-*"))
    return [msgspec.json.decode(line) for part in parts for line in part.read_bytes().splitlines()]


def counting(event: InputEvent[Any], ctx: RunnerContext) -> None:
    ctx.send_event(OutputEvent([ctx.key, ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)]))


def test_job_goes_on_where_it_ended_when_its_input_has_grown(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"k": "a"}\n{"k": "b"}\n')
    file_job(tmp_path, agent_of(counting)).execute()
    with source.open("ab") as out:
        out.write(b'{"k": "a"}\n')
    status = file_job(tmp_path, agent_of(counting)).execute()
    assert status.records_in == 1
    assert visible(tmp_path) == [["a", 1], ["b", 1], ["a", 2]]


async def test_stopped_job_keeps_its_unfinished_run_and_finishes_it_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"k": "a"}\n{"k": "b"}\n')
    started = asyncio.Event()

    async def wait(event: InputEvent[Any], ctx: RunnerContext) -> None:
        if event.input["k"] == "a":
            started.set()
            await asyncio.Event().wait()
        ctx.send_event(OutputEvent(event.input["k"]))

    job = file_job(tmp_path, agent_of(wait)).job()
    running = asyncio.ensure_future(job.run())
    await started.wait()
    job.request_stop()
    job.request_stop()
    status = await running
    assert status.state == "stopped"
    assert status.runs_in_flight == 0
    assert visible(tmp_path) == ["b"]

    again = await file_job(tmp_path, agent_of(_raise)).job().run()
    assert again.restored_runs == 1
    assert visible(tmp_path) == ["b", "a"]


async def test_stopped_job_waits_for_a_coroutine_that_refuses_to_end_no_longer_than_for_its_drain(
    tmp_path: Path,
) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"k": "a"}\n')
    started, ends = asyncio.Event(), []
    tasks: list[Any] = []

    async def refuse(event: InputEvent[Any], ctx: RunnerContext) -> None:
        tasks.append(asyncio.current_task())
        started.set()
        while not ends:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    job = file_job(tmp_path, agent_of(refuse), shutdown=ShutdownSettings(drain_timeout_ms=100)).job()
    running = asyncio.ensure_future(job.run())
    await started.wait()
    began = time.monotonic()
    job.request_stop()
    await running
    assert time.monotonic() - began < 2, "twice the timeout, and the checkpoint"
    ends.append(True)
    tasks[0].cancel()
    await asyncio.wait(tasks)


def test_events_are_copies_and_carry_their_lineage() -> None:
    def send(event: InputEvent[Any], ctx: RunnerContext) -> None:
        sent = Event("x", {"list": [1]})
        ctx.send_event(sent)
        sent.attributes["list"].append(2)

    def change(event: Event, ctx: RunnerContext) -> None:
        event.attributes["list"].append(3)

    def show(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent([event.attributes, event.id, event.upstream_event_id, event.upstream_action_name]))

    agent = agent_of(send).add_action("change", ["x"], change).add_action("show", ["x"], show)
    assert outputs(agent, [{"k": 1}]) == [[{"list": [1]}, "list/0/0:act/0", "list/0/0", "act"]]


class Base(Agent):
    """Its actions are inherited."""

    @action(EventType.InputEvent)
    def first(event: InputEvent[Any], ctx: RunnerContext) -> None:  # type: ignore[misc]  # noqa: N805 (a plain function)
        ctx.send_event(OutputEvent("base first"))

    @staticmethod
    @action(EventType.InputEvent)
    def second(event: InputEvent[Any], ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent("base second"))


class Derived(Base):
    """Replaces one of them."""

    @action(EventType.InputEvent)
    @staticmethod
    def first(event: InputEvent[Any], ctx: RunnerContext) -> None:  # type: ignore[override]
        ctx.send_event(OutputEvent("derived first"))


def test_actions_are_inherited_and_replaced_by_name() -> None:
    assert outputs(Derived(), [{"k": 1}]) == ["derived first", "base second"]


def test_outputs_of_removed_state_are_never_overwritten_and_the_job_stops_at_once(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"k": "a"}\n')
    file_job(tmp_path, agent_of(counting)).execute()
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(OutputExists, match="exists already"):
        file_job(tmp_path, agent_of(counting)).execute()
    assert visible(tmp_path) == [["a", 1]]


def test_start_without_new_input_makes_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"k": "a"}\n')
    first, *later = [file_job(tmp_path, agent_of(counting)).execute().checkpoint for _ in range(3)]
    assert later == [first, first]


_whose = contextvars.ContextVar("_whose", default="nobody's")


@pytest.mark.parametrize("kind", ["async", "blocking"])
async def test_what_an_action_sets_in_its_context_is_seen_by_no_other_one(kind: str) -> None:
    def note(event: InputEvent[Any], ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(_whose.get()))
        _whose.set(ctx.run_id)
        ctx.send_event(Event("next", {}))

    async def note_and_pay(event: InputEvent[Any], ctx: RunnerContext) -> None:
        note(event, ctx)
        await ctx.durable_execute_async(abs, -1)

    def tell(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(_whose.get()))

    agent = Agent("A").add_action(
        "note",
        [EventType.InputEvent],
        note if kind == "blocking" else note_and_pay,
        **({"blocking": True} if kind == "blocking" else {}),
    )
    async with Engine(agent.add_action("tell", ["next"], tell), in_memory=True) as engine:
        told = await asyncio.gather(*(engine.submit("k", n) for n in range(3)))
    assert told == [["nobody's", "nobody's"]] * 3

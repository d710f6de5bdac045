"""What time does to a job, in process and across its lives: TTL, timers, retries, restarts. Real RocksDB, a clock set by hand."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentflow import Agent, AgentPlan, EventType, OutputEvent, Retry, TimerEvent
from agentflow.connectors.jsonl import JsonlSource
from agentflow.connectors.jsonl_sink import JsonlSink
from agentflow.core.effects import EmitRecord
from agentflow.core.records import Record
from agentflow.environment.openers import state_opener
from agentflow.errors import RestartsExhausted, SinkError, SourceError
from agentflow.runtime.codecs import encode_key
from agentflow.runtime.job import Job
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.job_status import JobStatus
from agentflow.runtime.settings import (
    CheckpointSettings,
    EventTimeSettings,
    JobSettings,
    RestartSettings,
    RunSettings,
    StateSettings,
)

HOUR_MS = 3_600_000


class HandClock:
    """The port `Clock`, set by hand."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.ms = now_ms

    def now_ms(self) -> int:
        return self.ms


class Place:
    """A job's files: input, output, dead letters, state; each `run` is one life."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        self.clock = HandClock()
        state = settings.pop("state", StateSettings())
        settings.setdefault("checkpoint", CheckpointSettings(interval_ms=5))
        settings.setdefault("restart", RestartSettings(strategy="none"))
        self.settings = JobSettings(state=msgspec.structs.replace(state, dir=str(path / "state")), **settings)
        (path / "in.jsonl").touch()

    def add(self, *values: Mapping[str, Any]) -> None:
        with (self.path / "in.jsonl").open("ab") as file:
            file.writelines(msgspec.json.encode(value) + b"\n" for value in values)

    def job(self, *agents: Agent, source: Any = None, sink: Any = None) -> Job:
        stages = tuple(AgentStage(AgentPlan.from_agent(agent), "k") for agent in agents)
        spec = JobSpec(
            self.settings,
            stages,
            source or (lambda: JsonlSource(str(self.path / "in.jsonl"))),
            lambda: {
                "sink": sink() if sink else JsonlSink(str(self.path / "out")),
                "dead-letter": JsonlSink(str(self.path / "dead")),
            },
            state_opener(self.settings),
        )
        return Job(spec, clock=self.clock)

    def run(self, *agents: Agent, **ports: Any) -> None:
        async def run() -> None:
            await self.job(*agents, **ports).run()

        asyncio.run(run())

    def outputs(self, folder: str = "out") -> list[Any]:
        files = sorted((self.path / folder).glob("part-*"))
        return [msgspec.json.decode(line) for file in files for line in file.read_bytes().splitlines()]

    def stored(self, key: object) -> list[str]:
        """Paths of the key's memory in RocksDB."""
        with closing(state_opener(self.settings)()) as state:
            return [path for path, _ in state.scan(0, encode_key(key), "")]


def set_or_get(event, ctx):
    memory = ctx.short_term_memory
    if "set" in event.input:
        memory.set("value", event.input["set"])
    else:
        ctx.send_event(OutputEvent(memory.get("value")))


def agent_of(function, *, trigger=EventType.InputEvent, **options):
    return Agent("A").add_action("act", trigger, function, **options)


# -- TTL
@pytest.mark.parametrize(
    ("update", "expected"),
    [("on-create-and-write", ["first", None, None]), ("on-read-and-write", ["first", "first", None])],
)
def test_ttl_counts_from_the_last_use_and_what_expired_is_never_returned(tmp_path, update, expected):
    place = Place(tmp_path, state=StateSettings(ttl_ms=HOUR_MS, ttl_update=update))
    place.add({"k": 1, "set": "first"})
    place.run(agent_of(set_or_get))
    for wait_ms in (HOUR_MS - 1, HOUR_MS - 1, HOUR_MS):  # a read in time renews the value, where reading counts as use
        place.clock.ms += wait_ms
        place.add({"k": 1})
        place.run(agent_of(set_or_get))
    assert place.outputs() == expected


def test_writing_renews_the_value(tmp_path):
    place = Place(tmp_path, state=StateSettings(ttl_ms=HOUR_MS))
    for number in range(3):
        place.add({"k": 1, "set": number})
        place.run(agent_of(set_or_get))
        place.clock.ms += HOUR_MS - 1
    place.add({"k": 1})
    place.run(agent_of(set_or_get))
    assert place.outputs() == [2]


def test_sweep_deletes_expired_values_from_the_disk(tmp_path):
    place = Place(tmp_path, state=StateSettings(ttl_ms=HOUR_MS))
    place.add({"k": "old", "set": 1})
    place.run(agent_of(set_or_get))
    assert place.stored("old") == ["value"]
    place.clock.ms += HOUR_MS
    for number in range(3):
        place.add({"k": "new", "set": number})
        place.run(agent_of(set_or_get))
    assert (place.stored("old"), place.stored("new")) == ([], ["value"])


def test_values_without_a_ttl_live_for_ever(tmp_path):
    place = Place(tmp_path)
    place.add({"k": 1, "set": "kept"})
    place.run(agent_of(set_or_get))
    place.clock.ms += 1_000_000 * HOUR_MS
    place.add({"k": 1})
    place.run(agent_of(set_or_get))
    assert place.outputs() == ["kept"]


# -- timers
def reminders(**options):
    def order(event, ctx):
        for name, after in event.input.get("timers", {}).items():
            ctx.set_timer(name, after=after, attributes={"note": event.input["note"]}, **options)
        for name in event.input.get("cancel", ()):
            ctx.cancel_timer(name)

    def fired(event, ctx):
        timer = TimerEvent.from_event(event)
        ctx.send_event(OutputEvent([ctx.key, timer.name, timer.get_attr("note"), timer.due_ms]))

    return Agent("A").add_action("order", EventType.InputEvent, order).add_action("fired", EventType.TimerEvent, fired)


def live(place: Place, agent: Agent, until: Callable[[JobStatus], bool]) -> None:
    """Run a job whose input does not end, and stop it: an input that ends waits for its timers."""

    async def run() -> None:
        job = place.job(agent, source=lambda: Following(place))
        running = asyncio.ensure_future(job.run())
        while not until(job.status):
            await asyncio.sleep(0)
            assert not running.done()
        job.request_stop()
        await running

    asyncio.run(run())


def has_read(status: JobStatus) -> bool:
    return status.checkpoint > 0 and status.records_in > 0


def test_processing_time_timer_fires_once_in_a_later_life(tmp_path):
    place = Place(tmp_path)
    start_ms = place.clock.ms
    place.add({"k": 1, "timers": {"soon": "1h", "late": "3h"}, "note": "x"})
    live(place, reminders(), has_read)
    assert place.outputs() == []
    place.clock.ms = start_ms + 2 * HOUR_MS
    live(place, reminders(), lambda status: status.records_out == 1)
    live(place, reminders(), lambda status: status.state == "running")
    assert place.outputs() == [[1, "soon", "x", start_ms + HOUR_MS]]
    place.clock.ms = start_ms + 4 * HOUR_MS
    place.run(reminders())
    assert [output[1] for output in place.outputs()] == ["soon", "late"]


def test_a_timer_that_is_set_again_is_replaced_and_a_cancelled_one_never_fires(tmp_path):
    place = Place(tmp_path)
    start_ms = place.clock.ms
    place.add({"k": 1, "timers": {"a": "1h", "b": "1h"}, "note": "first"})
    live(place, reminders(), has_read)
    place.add({"k": 1, "timers": {"a": "2h"}, "cancel": ["b"], "note": "second"})
    live(place, reminders(), has_read)
    place.clock.ms = start_ms + 5 * HOUR_MS
    place.run(reminders())
    assert place.outputs() == [[1, "a", "second", start_ms + 2 * HOUR_MS]]


def test_event_time_timer_waits_for_its_watermark_in_a_later_life(tmp_path):
    place = Place(tmp_path, event_time=EventTimeSettings(field="ts", max_out_of_orderness_ms=10))
    place.add({"k": 1, "ts": 1_000, "timers": {"t": "50ms"}, "note": ""})
    live(place, reminders(is_event_time=True), has_read)
    assert place.outputs() == []
    place.add({"k": 2, "ts": 1_060})  # watermark 1,049: one too few
    live(place, reminders(is_event_time=True), has_read)
    assert place.outputs() == []
    place.add({"k": 2, "ts": 1_061})
    live(place, reminders(is_event_time=True), has_read)
    assert place.outputs() == [[1, "t", "", 1_050]]


class Following(JsonlSource):
    """Waits at the end of the file, so that no watermark says that time is over."""

    def __init__(self, place: Place) -> None:
        super().__init__(str(place.path / "in.jsonl"))

    async def fetch(self, records_max: int) -> Sequence[Record]:
        records = await super().fetch(records_max)
        if not records:
            await asyncio.Event().wait()
        return records


# -- failures
async def test_attempts_go_on_counting_after_a_restart(tmp_path):
    place = Place(tmp_path)
    attempts: list[int] = []
    attempted = asyncio.Event()

    def fail(event, ctx):
        attempts.append(ctx.attempt)
        attempted.set()
        raise ValueError(ctx.attempt)

    agent = agent_of(fail, retry=Retry(attempts=3, initial="1h", wait_max="1h"))
    place.add({"k": 1})
    for _ in range(3):
        attempted.clear()
        job = place.job(agent)
        running = asyncio.ensure_future(job.run())
        await attempted.wait()
        job.request_stop()
        job.request_stop()  # do not wait for the retry
        await running
        place.clock.ms += 2 * HOUR_MS
    assert attempts == [1, 2, 3]
    (letter,) = place.outputs("dead")
    assert (letter["attempt"], letter["error-message"]) == ("3", "3")


def test_dead_letter_says_where_and_why_and_keeps_the_input(tmp_path):
    def first(event, ctx):
        ctx.send_event(OutputEvent("kept"))

    def second(event, ctx):
        raise KeyError("stars")

    agent = Agent("Reviews").add_action("first", EventType.InputEvent, first)
    agent.add_action("second", EventType.InputEvent, second, retry=Retry(attempts=1))
    place = Place(tmp_path, job="shop", event_time=EventTimeSettings(field="ts"))
    place.add({"k": "p-1", "ts": 77, "x": [1, None]})
    place.run(agent)
    assert place.outputs() == ["kept"]
    (letter,) = place.outputs("dead")
    assert "test_across_restarts.py" in letter.pop("traceback")
    assert letter == {
        "job": "shop",
        "agent": "Reviews",
        "action": "second",
        "task": "0:second",
        "attempt": "1",
        "completed-tasks": "first",
        "key": "p-1",
        "error-type": "KeyError",
        "error-message": "'stars'",
        "source-position": f"{tmp_path}/in.jsonl/0",
        "original-timestamp": "77",
        "value": {"k": "p-1", "ts": 77, "x": [1, None]},
    }


def test_key_that_waits_holds_neither_other_keys_nor_their_checkpoints_nor_the_watermark(tmp_path):
    release = asyncio.Event()

    async def act(event, ctx):
        if event.input.get("wait"):
            await release.wait()
        ctx.send_event(OutputEvent([ctx.key, event.input["n"]]))

    place = Place(tmp_path)
    place.add({"k": "slow", "n": 0, "wait": True}, *({"k": "fast", "n": n} for n in range(100)), {"k": "slow", "n": 1})

    async def run() -> None:
        job = place.job(agent_of(act))
        running = asyncio.ensure_future(job.run())
        while len(place.outputs()) < 100:
            await asyncio.sleep(0)
            assert not running.done()
        assert [n for key, n in place.outputs() if key == "fast"] == list(range(100))
        release.set()
        await running

    asyncio.run(run())
    assert [n for key, n in place.outputs() if key == "slow"] == [0, 1]


# -- restarts
class Flaky:
    """Makes sinks of which the first ``failures`` fail at their first stage."""

    def __init__(self, place: Place, failures: int) -> None:
        self.place = place
        self.failures = failures
        self.made = 0

    def __call__(self) -> JsonlSink:
        self.made += 1
        return FailingSink(self.place) if self.made <= self.failures else JsonlSink(str(self.place.path / "out"))


class FailingSink(JsonlSink):
    def __init__(self, place: Place) -> None:
        super().__init__(str(place.path / "out"))

    async def stage(self, checkpoint: int) -> Any:
        await super().stage(checkpoint)
        raise SinkError("the disk is away")


@pytest.mark.parametrize("strategy", ["fixed-delay", "exponential"])
def test_infrastructure_error_restarts_the_job_and_nothing_comes_twice(tmp_path, strategy):
    place = Place(tmp_path, restart=RestartSettings(strategy=strategy, delay_ms=1, attempts=5))
    place.add(*({"k": n % 3, "set": n} for n in range(50)), *({"k": n} for n in range(3)))
    sinks = Flaky(place, 3)
    place.run(agent_of(set_or_get), sink=sinks)
    assert sinks.made == 4
    assert sorted(place.outputs()) == [47, 48, 49]


def test_restart_strategy_gives_up_and_says_what_it_met_last(tmp_path):
    place = Place(tmp_path, restart=RestartSettings(strategy="fixed-delay", delay_ms=1, attempts=2))
    place.add({"k": 1})
    with pytest.raises(
        RestartsExhausted, match="failed 3 times without completing a checkpoint; the last time: the disk"
    ):
        place.run(agent_of(set_or_get), sink=Flaky(place, 99))
    place.run(agent_of(set_or_get))
    assert place.outputs() == [None]


def test_strategy_none_stops_at_the_first_error_and_the_next_start_goes_on(tmp_path):
    place = Place(tmp_path)
    place.add({"k": 1})
    with pytest.raises(SinkError, match="the disk is away"):
        place.run(agent_of(set_or_get), sink=Flaky(place, 1))
    place.run(agent_of(set_or_get))
    assert place.outputs() == [None]


def test_errors_that_a_restart_cannot_cure_are_not_retried(tmp_path):
    place = Place(tmp_path, restart=RestartSettings(strategy="fixed-delay", delay_ms=60_000, attempts=5))
    with pytest.raises(SourceError, match="does not exist"):
        place.run(agent_of(set_or_get), source=lambda: JsonlSource(str(tmp_path / "nowhere")))


# -- limits
def test_backpressure_holds_the_limit_of_runs_in_flight(tmp_path):
    in_flight = seen = 0

    async def act(event, ctx):
        nonlocal in_flight, seen
        in_flight += 1
        seen = max(seen, in_flight)
        await asyncio.sleep(0.001)
        in_flight -= 1
        ctx.send_event(OutputEvent(ctx.key))

    place = Place(tmp_path, run=RunSettings(in_flight_max=5))
    place.add(*({"k": n} for n in range(2_000)))
    place.run(agent_of(act))
    assert sorted(place.outputs()) == list(range(2_000))
    assert seen <= 5 + 256  # what one turn has read already is admitted


# -- event loop
def test_job_runs_where_uvloop_is_not_installed(tmp_path):
    program = (
        "import sys\n"
        "sys.modules['uvloop'] = None\n"
        "from agentflow import *\n"
        "env = AgentsExecutionEnvironment.get_execution_environment()\n"
        "agent = Agent('A').add_action('a', EventType.InputEvent, lambda event, ctx: ctx.send_event(OutputEvent(ctx.key)))\n"
        "outputs = env.from_list([{'k': 1}]).key_by('k').apply(agent).to_list()\n"
        "env.execute()\n"
        "print(outputs)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[1]\n"


def test_emit_record_is_what_a_sink_gets(tmp_path):
    """Timestamps of the source travel to the outputs, through both agents of a chain."""
    seen: list[int | None] = []

    class Recording(JsonlSink):
        def write(self, record):
            assert isinstance(record, EmitRecord)
            seen.append(record.timestamp_ms)
            super().write(record)

    def pass_on(event, ctx):
        ctx.send_event(OutputEvent({"k": ctx.key, "at": ctx.timestamp}))

    place = Place(tmp_path, event_time=EventTimeSettings(field="ts"))
    place.add({"k": 1, "ts": 5}, {"k": 2, "ts": "1970-01-01T00:00:00.007+00:00"})
    place.run(agent_of(pass_on), agent_of(pass_on), sink=lambda: Recording(str(tmp_path / "out")))
    assert seen == [5, 7]
    assert place.outputs() == [{"k": 1, "at": 5}, {"k": 2, "at": 7}]


# -- turns
@pytest.mark.parametrize(("record_ms", "steady"), [(0, 256), (1, 8), (15, 1)])
def test_a_turn_of_a_slow_synchronous_action_takes_few_records(tmp_path, record_ms, steady):
    place = Place(tmp_path)
    place.add(*[{"k": number} for number in range(3_000)])
    turns = []

    class Watched(JsonlSource):
        async def fetch(self, records_max):
            records = await super().fetch(records_max)
            turns.append(len(records))
            return records

    def act(event, ctx):
        place.clock.ms += record_ms

    place.run(agent_of(act), source=lambda: Watched(str(tmp_path / "in.jsonl")))
    assert sum(turns) == 3_000
    assert turns[0] == 16  # the first turn does not know yet how long a record takes
    assert set(turns[5:-2]) == {steady}  # the last ones are what is left, and the end

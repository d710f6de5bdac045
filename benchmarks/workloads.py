"""Rates: records of prepared input through a job.

They count from the first record read to the last output published; building the input does not count. The outputs are
checked: their number and their sums.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agentflow import Agent, Event, EventType, InputEvent, JobSettings, OutputEvent, RunnerContext, StateSettings
from agentflow.api.codecs import JSON
from agentflow.core.effects import DeadLetter, EmitRecord
from agentflow.core.records import Record
from agentflow.environment.openers import new_event_loop, state_opener
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.collection import rare_collections
from agentflow.runtime.job import Job
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.ports import Guarantee, Staged
from agentflow.runtime.settings import RunSettings

Input = InputEvent[dict[str, Any]]


def record(label: str, n: int, keys: int) -> Record:
    """Return record ``n``: 99 bytes of JSON (100 where the key has six digits)."""
    text = b"the quick brown fox jumps over the lazy dog again"
    value = b'{"id":%d,"user":"u%05d","text":"%s","score":%d}' % (n, n % keys, text, n % 7)
    return Record(label, n, n + 1, value)


class PreparedSource:
    """99-byte JSON records, made before the clock starts."""

    name = "prepared"
    is_replayable = True
    codec = JSON
    partitions = ()
    idle_timeout_ms = None

    def __init__(self, records: int, keys: int) -> None:
        self._records = [record("prepared", n, keys) for n in range(records)]
        self._next = 0
        self.began = 0.0

    async def open(self, positions: Mapping[str, int]) -> None:
        """Go to the position."""
        self._next = positions.get("prepared", 0)

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next slice; the first one starts the clock."""
        self.began = self.began or time.perf_counter()
        start = self._next
        self._next = start + records_max
        return self._records[start : self._next]

    async def close(self) -> None:
        """Nothing to release."""


class CountingSink:
    """Keeps the outputs of published checkpoints in memory."""

    name = "counting"
    guarantee = Guarantee.EXACTLY_ONCE
    record_max_bytes = None

    def __init__(self) -> None:
        self._open: list[bytes] = []
        self._closed: list[bytes] = []
        self.outputs: list[bytes] = []
        self.ended = 0.0

    async def open(self, prepared: tuple[int, Staged] | None) -> None:
        """Nothing to open."""

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Keep one output."""
        self._open.append(record.value or b"null")

    def barrier(self, checkpoint: int) -> None:  # noqa: ARG002 (the port)
        """Close the epoch."""
        self._closed, self._open = self._open, []

    async def stage(self, checkpoint: int) -> Staged:  # noqa: ARG002 (the port)
        """Nothing to stage."""
        return Staged()

    async def publish(self, checkpoint: int, staged: Staged) -> None:  # noqa: ARG002 (the port)
        """Let the epoch's outputs be seen."""
        self.outputs += self._closed
        self._closed = []
        self.ended = time.perf_counter()

    async def close(self) -> None:
        """Nothing to release."""


def trivial(event: Input, ctx: RunnerContext) -> None:
    """One event in, one output out."""
    ctx.send_event(OutputEvent(event.input))


def stateful(event: Input, ctx: RunnerContext) -> None:  # noqa: ARG001 (the signature of an action)
    """One memory read and one write."""
    memory = ctx.short_term_memory
    count = memory.get("count", 0) + 1
    memory.set("count", count)
    ctx.send_event(OutputEvent({"user": ctx.key, "count": count}))


def first_hop(event: Input, ctx: RunnerContext) -> None:
    """Send an intermediate event."""
    value = event.input
    ctx.send_event(Event("hop", {"id": value["id"], "score": value["score"]}))


def second_hop(event: Event, ctx: RunnerContext) -> None:
    """Turn it into an output."""
    ctx.send_event(OutputEvent(event.attributes))


async def waiting(event: Input, ctx: RunnerContext) -> None:
    """Wait as for a model."""
    await asyncio.sleep(0.05)
    ctx.send_event(OutputEvent(event.input["id"]))


def check_outputs(workload: str, outputs: Sequence[bytes], records: int) -> None:
    """Raise AssertionError unless every record made its output, once, and the sums are right."""
    assert len(outputs) == records, f"{len(outputs)} outputs of {records} records"
    values = [msgspec.json.decode(output) for output in outputs]
    if workload == "stateful":
        last = {value["user"]: value["count"] for value in values}
        assert sum(last.values()) == records, "the counts of the keys do not add up"
    else:
        ids = sum(value if isinstance(value, int) else value["id"] for value in values)
        assert ids == records * (records - 1) // 2, "the ids do not add up: an output is wrong or came twice"


def rate(agent: Agent, records: int, keys: int, settings: JobSettings) -> float:
    """Run a job and return its records per second."""
    source, sink = PreparedSource(records, keys), CountingSink()
    stage = AgentStage(AgentPlan.from_agent(agent), "user")
    spec = JobSpec(settings, (stage,), lambda: source, lambda: {"sink": sink}, state_opener(settings))

    async def run() -> None:
        await Job(spec).run()

    with rare_collections(), asyncio.Runner(loop_factory=new_event_loop) as runner:  # as `execute` does
        runner.run(run())
    check_outputs(agent.name, sink.outputs, records)
    return records / (sink.ended - source.began)


def trivial_rate(keys: int, factor: float) -> float:
    """Trivial agent, state in memory."""
    agent = Agent("trivial").add_action("act", [EventType.InputEvent], trivial)
    return rate(agent, int(600_000 * factor), keys, JobSettings())


def stateful_rate(keys: int, factor: float) -> float:
    """Stateful agent, RocksDB, exactly-once, 1 s checkpoints."""
    agent = Agent("stateful").add_action("act", [EventType.InputEvent], stateful)
    with tempfile.TemporaryDirectory() as directory:
        return rate(agent, int(400_000 * factor), keys, JobSettings(state=StateSettings(dir=directory)))


def two_hop_rate(keys: int, factor: float) -> float:
    """Two actions with an intermediate event, state in memory."""
    agent = (
        Agent("two-hop")
        .add_action("first", [EventType.InputEvent], first_hop)
        .add_action("second", ["hop"], second_hop)
    )
    return rate(agent, int(400_000 * factor), keys, JobSettings())


def async_rate(keys: int, factor: float) -> float:
    """50 ms wait per run, at most 10,000 runs in flight; a key has one run at a time, so few keys need few records."""
    agent = Agent("async").add_action("act", [EventType.InputEvent], waiting)
    records = int(min(200_000, 40 * keys) * factor)
    return rate(agent, records, keys, JobSettings(run=RunSettings(in_flight_max=10_000)))

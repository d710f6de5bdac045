"""The workloads: each prints one number, in a process of its own.

Rates count from the first record read to the last output published; building the input does not count. Every output is
checked: their number, and for the stateful workload the final count of each key.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agentflow import Agent, Event, EventType, InputEvent, JobSettings, OutputEvent, RunnerContext, StateSettings
from agentflow.core.effects import DeadLetter, EmitRecord
from agentflow.core.records import Record
from agentflow.environment import new_event_loop, state_opener
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.collection import rare_collections
from agentflow.runtime.job import AgentStage, Job, JobSpec
from agentflow.runtime.ports import Guarantee, Staged
from agentflow.runtime.settings import RunSettings

Input = InputEvent[dict[str, Any]]


class Workload(msgspec.Struct, frozen=True):
    """One measurement; ``measure`` gets a factor for the amount of work."""

    measure: Callable[[float], float]
    unit: str
    target: float | None
    guarantee: str = "-"
    is_more_better: bool = True


class PreparedSource:
    """99-byte JSON records, made before the clock starts."""

    name = "prepared"
    is_replayable = True
    codec = "json"

    def __init__(self, records: int, keys: int) -> None:
        text = "the quick brown fox jumps over the lazy dog again"
        self._records = [
            Record(
                "prepared",
                n,
                n + 1,
                b'{"id":%d,"user":"u%05d","text":"%s","score":%d}' % (n, n % keys, text.encode(), n % 7),
            )
            for n in range(records)
        ]
        self._next = 0
        self.began = 0.0

    async def open(self, positions: Mapping[str, int]) -> None:
        """Start the clock."""
        self._next = positions.get("prepared", 0)
        self.began = time.perf_counter()

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next slice."""
        start = self._next
        self._next = start + records_max
        return self._records[start : self._next]

    async def close(self) -> None:
        """Nothing to release."""


class CountingSink:
    """Keeps the outputs of published checkpoints in memory."""

    name = "counting"
    guarantee = Guarantee.EXACTLY_ONCE

    def __init__(self) -> None:
        self._open: list[bytes] = []
        self._closed: list[bytes] = []
        self.outputs: list[bytes] = []
        self.ended = 0.0

    async def open(self, prepared: tuple[int, Staged] | None) -> None:
        """Nothing to open."""

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Keep one output."""
        self._open.append(record.value)

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


def rate(agent: Agent, records: int, keys: int, settings: JobSettings) -> float:
    """Run a job and return its records per second."""
    source, sink = PreparedSource(records, keys), CountingSink()
    stage = AgentStage(AgentPlan.from_agent(agent), "user")
    spec = JobSpec(settings, (stage,), lambda: source, lambda: {"sink": sink}, state_opener(settings))

    async def run() -> None:
        await Job(spec).run()

    with rare_collections(), asyncio.Runner(loop_factory=new_event_loop) as runner:  # as `execute` does
        runner.run(run())
    assert len(sink.outputs) == records, f"{len(sink.outputs)} outputs of {records} records"
    if agent.name == "stateful":
        last = {value["user"]: value["count"] for value in map(msgspec.json.decode, sink.outputs)}
        assert sum(last.values()) == records, "the counts of the keys do not add up"
    return records / (sink.ended - source.began)


def trivial_rate(factor: float) -> float:
    """Trivial agent, 100 keys, state in memory."""
    agent = Agent("trivial").add_action("act", [EventType.InputEvent], trivial)
    return rate(agent, int(600_000 * factor), 100, JobSettings())


def stateful_rate(keys: int) -> Callable[[float], float]:
    """Stateful agent, RocksDB, exactly-once, 1 s checkpoints."""

    def measure(factor: float) -> float:
        agent = Agent("stateful").add_action("act", [EventType.InputEvent], stateful)
        with tempfile.TemporaryDirectory() as directory:
            return rate(agent, int(400_000 * factor), keys, JobSettings(state=StateSettings(dir=directory)))

    return measure


def two_hop_rate(factor: float) -> float:
    """Two actions with an intermediate event, 100 keys."""
    agent = (
        Agent("two-hop")
        .add_action("first", [EventType.InputEvent], first_hop)
        .add_action("second", ["hop"], second_hop)
    )
    return rate(agent, int(400_000 * factor), 100, JobSettings())


def async_rate(factor: float) -> float:
    """50 ms wait per run, 10,000 keys, 10,000 runs in flight."""
    agent = Agent("async").add_action("act", [EventType.InputEvent], waiting)
    return rate(agent, int(200_000 * factor), 10_000, JobSettings(run=RunSettings(in_flight_max=10_000)))


def _seconds(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=Path(__file__).parents[1])
    return (time.perf_counter() - began) * 1000


def import_ms(factor: float) -> float:  # noqa: ARG001 (one signature)
    """Import agentflow, beyond the start of the interpreter."""
    return _seconds("-c", "import agentflow") - _seconds("-c", "pass")


def start_ms(factor: float) -> float:  # noqa: ARG001 (one signature)
    """A one-record job through the command line: from process start to its end, the first output lies before."""
    with tempfile.TemporaryDirectory() as directory:
        one = Path(directory) / "one.jsonl"
        one.write_bytes(Path("examples/data/product_reviews.jsonl").read_bytes().splitlines(keepends=True)[0])
        sets = [f"source.jsonl.path={one}", f"sink.jsonl.path={directory}/out", f"state.dir={directory}/state"]
        flags = [part for one_set in sets for part in ("--set", one_set)]
        took = _seconds("-m", "agentflow.cli", "run", "configs/quickstart.yaml", *flags)
        assert list(Path(directory, "out").glob("part-*")), "the job made no output"
        return took


EXACTLY_ONCE = "exactly-once"
WORKLOADS = {
    "trivial, 100 keys": Workload(trivial_rate, "records/s", 200_000, "in memory"),
    "stateful, 1 key": Workload(stateful_rate(1), "records/s", None, EXACTLY_ONCE),
    "stateful, 100 keys": Workload(stateful_rate(100), "records/s", 100_000, EXACTLY_ONCE),
    "stateful, 10,000 keys": Workload(stateful_rate(10_000), "records/s", 100_000, EXACTLY_ONCE),
    "two-hop, 100 keys": Workload(two_hop_rate, "records/s", 120_000, "in memory"),
    "async 50 ms, 10,000 keys": Workload(async_rate, "runs/s", 25_000, "in memory"),
    "import agentflow": Workload(import_ms, "ms", 150, is_more_better=False),
    "start to end, one record": Workload(start_ms, "ms", 800, EXACTLY_ONCE, is_more_better=False),
}

if __name__ == "__main__":
    print(WORKLOADS[sys.argv[1]].measure(0.25 if "--quick" in sys.argv else 1.0))

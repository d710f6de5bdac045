"""What the event log costs, and how fast it is read.

Costs are measured in pairs in one process, off and on in turn, in processor time: the machine's minutes differ by more than what is
measured, and other processes take little from processor time. That of the thread that writes is in it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from agentflow import Agent, EventType, JobSettings, StateSettings
from agentflow.core.records import Record
from agentflow.environment.openers import new_event_loop, state_opener
from agentflow.environment.telemetry import Telemetry
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.collection import rare_collections
from agentflow.runtime.job import Job
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.settings import EventLogSettings, EventTraceSettings
from benchmarks.workloads import CountingSink, PreparedSource, check_outputs, first_hop, second_hop, stateful

_PAIRS = 15
_RECORDS = 30_000
_LOG_BYTES = 10**9


class _Source(PreparedSource):
    """Knows when it was read first, in processor time: what is made before that is made once."""

    began_cpu_s = 0.0

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next slice."""
        self.began_cpu_s = self.began_cpu_s or time.process_time()
        return await super().fetch(records_max)


def _agent(name: str) -> Agent:
    if name == "stateful":
        return Agent(name).add_action("act", [EventType.InputEvent], stateful)
    two_hop = Agent(name).add_action("first", [EventType.InputEvent], first_hop)
    return two_hop.add_action("second", ["hop"], second_hop)


def _record_us(agent: str, keys: int, settings: JobSettings) -> float:
    """Run a job and return the processor time of a record."""
    source, sink = _Source(_RECORDS, keys), CountingSink()
    stage = AgentStage(AgentPlan.from_agent(_agent(agent)), "user")

    async def run() -> None:
        telemetry = Telemetry(settings)
        spec = JobSpec(
            settings,
            (stage,),
            lambda: source,
            lambda: {"sink": sink},
            state_opener(settings),
            observers=telemetry.observers(0),
            on_end=telemetry.close,
        )
        await Job(spec).run()

    with rare_collections(), asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(run())
    took = time.process_time() - source.began_cpu_s
    check_outputs(agent, sink.outputs, _RECORDS)
    return 1e6 * took / _RECORDS


def _pairs(agent: str, keys: int, log: Callable[[str], EventLogSettings], factor: float) -> list[tuple[float, float]]:
    """Return (off, on) of a record, µs; every other pair begins with the other half."""
    pairs = []
    for number in range(max(3, int(_PAIRS * factor))):
        took = {}
        for is_on in (False, True) if number % 2 else (True, False):
            with tempfile.TemporaryDirectory() as directory:
                settings = JobSettings(
                    state=StateSettings(dir=f"{directory}/state"),
                    event_log=log(f"{directory}/logs") if is_on else EventLogSettings(),
                )
                took[is_on] = _record_us(agent, keys, settings)
        pairs.append((took[False], took[True]))
    return pairs


def loss_percent(agent: str, keys: int, has_trace: bool, factor: float) -> float:  # noqa: FBT001 (a row of a table)
    """Share of the throughput that the event log takes, at level standard, to files: two lines for a record, or more."""

    def log(directory: str) -> EventLogSettings:
        return EventLogSettings(level="standard", dir=directory, trace=EventTraceSettings(enabled=has_trace))

    return 100 * median(1 - off / on for off, on in _pairs(agent, keys, log, factor))


def show_s(by: str, factor: float) -> float:
    """Find and show a run, or the last run of a key, in a log of 1 GB; the process of the command with it."""
    with tempfile.TemporaryDirectory() as directory:
        runs = _write_log(Path(directory), int(_LOG_BYTES * factor))
        wanted = [f"prepared/{runs * 3 // 4}"] if by == "run" else ["--key", "u00042"]
        command = [sys.executable, "-m", "agentflow", "trace", "show", *wanted, "--log", directory]
        began = time.perf_counter()
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        took = time.perf_counter() - began
    assert "_output_event" in shown
    return took


def _write_log(directory: Path, size: int) -> int:
    """Write files of 64 MiB as the stateful workload does; return how many runs they have."""
    shared = b'{"timestamp":"2026-08-05T10:00:00.000000Z","logLevel":"STANDARD","inputRunId":"prepared/%d","businessKey":"u%05d",'
    admitted = (
        b'"agentName":"stateful","eventId":"prepared/%d/0","eventType":"_input_event","eventAttributes":{"input":'
    )
    value = b'{"id":%d,"user":"u%05d","text":"the quick brown fox jumps over the lazy dog again","score":3}}}\n'
    sent = b'"agentName":"stateful","eventId":"prepared/%d/0:act/0","eventType":"_output_event","upstreamEventId":"prepared/%d/0",'
    output = b'"upstreamActionName":"act","eventAttributes":{"output":{"user":"u%05d","count":1}}}\n'
    line = shared + admitted + value + shared + sent + output
    number = written = 0
    while written < size:
        path = directory / f"events-benchmark-0.20260805T{100_000_000 + written // 2**20:09d}.log"
        with path.open("wb", buffering=2**20) as file:
            in_file = 0
            while in_file < 64 * 2**20:
                key = number % 10_000
                in_file += file.write(line % (number, key, number, number, key, number, key, number, number, key))
                number += 1
        written += in_file
    return number

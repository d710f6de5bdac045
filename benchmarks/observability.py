"""What it costs to be looked at: the event log; and how fast it is read.

Losses are measured in pairs in one process, off and on in turn, because a machine is never as fast as a moment before.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from statistics import median

from agentflow import Agent, EventType, JobSettings, StateSettings
from agentflow.environment.openers import new_event_loop, state_opener
from agentflow.environment.telemetry import Telemetry
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.collection import rare_collections
from agentflow.runtime.job import AgentStage, Job, JobSpec
from agentflow.runtime.settings import EventLogSettings, EventTraceSettings
from benchmarks.workloads import CountingSink, PreparedSource, check_outputs, first_hop, second_hop, stateful

PAIRS = 12
RECORDS = 40_000


def _agent(name: str) -> Agent:
    if name == "stateful":
        return Agent(name).add_action("act", [EventType.InputEvent], stateful)
    two_hop = Agent(name).add_action("first", [EventType.InputEvent], first_hop)
    return two_hop.add_action("second", ["hop"], second_hop)


def _duration_us(agent: str, keys: int, settings: JobSettings, records: int) -> float:
    """Run a job and return how long each record took."""
    source, sink = PreparedSource(records, keys), CountingSink()
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
    check_outputs(agent, sink.outputs, records)
    return 1e6 * (sink.ended - source.began) / records


def _pairs(agent: str, keys: int, log: Callable[[str], EventLogSettings], factor: float) -> list[tuple[float, float]]:
    """Return (off, on) durations of a record, µs."""
    pairs = []
    for _ in range(max(3, int(PAIRS * factor))):
        durations = []
        for is_on in (False, True):
            with tempfile.TemporaryDirectory() as directory:
                settings = JobSettings(
                    state=StateSettings(dir=f"{directory}/state"),
                    event_log=log(f"{directory}/logs") if is_on else EventLogSettings(),
                )
                durations.append(_duration_us(agent, keys, settings, RECORDS))
        pairs.append((durations[0], durations[1]))
    return pairs


def event_log_loss_percent(agent: str, keys: int, trace: bool, factor: float) -> float:  # noqa: FBT001 (a table's row)
    """Share of the throughput that the event log at level standard, to a file, takes: two lines for each record and more."""

    def log(directory: str) -> EventLogSettings:
        return EventLogSettings(level="standard", dir=directory, trace=EventTraceSettings(enabled=trace))

    return 100 * median(1 - off / on for off, on in _pairs(agent, keys, log, factor))


def event_log_record_us(agent: str, keys: int, factor: float) -> float:
    """What the event log adds to a record, µs."""

    def log(directory: str) -> EventLogSettings:
        return EventLogSettings(level="standard", dir=directory)

    return median(on - off for off, on in _pairs(agent, keys, log, factor))

"""What it costs to look at a job: records of the stateful workload per second of processor time, with and without, in pairs of one run.

The machine's minutes differ by more than what is measured. So it is processor time that counts, which other processes take little
from; that of exporters' threads is in it. Each pair stands for itself, every other one begins with the other half, and the median of
their ratios counts.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from agentflow import Agent, EventType, JobSettings, StateSettings
from agentflow.environment.openers import new_event_loop, state_opener
from agentflow.environment.telemetry import Telemetry
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.collection import rare_collections
from agentflow.runtime.job import AgentStage, Job, JobSpec
from agentflow.runtime.settings import MetricsSettings
from benchmarks.workloads import CountingSink, PreparedSource, check_outputs, stateful

_KEYS = 100
_PAIRS = 7
Settings = Callable[[Path], JobSettings]


def rate(settings: JobSettings, records: int) -> float:
    """Run the stateful workload as a command does, with what its settings ask for; return records per second of processor time."""
    source, sink = PreparedSource(records, _KEYS), CountingSink()
    agent = Agent("stateful").add_action("act", [EventType.InputEvent], stateful)
    stage = AgentStage(AgentPlan.from_agent(agent), "user")

    async def run() -> None:
        telemetry = Telemetry(settings)
        job = Job(
            JobSpec(
                settings,
                (stage,),
                lambda: source,
                lambda: {"sink": sink},
                state_opener(settings),
                observers=telemetry.observers(0),
                metrics=telemetry.registry,
                on_end=telemetry.close,
            )
        )
        telemetry.watch(job)
        await job.run()

    began = time.process_time()
    with rare_collections(), asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(run())
    took = time.process_time() - began
    check_outputs("stateful", sink.outputs, records)
    return records / took


def ratio(on: Settings, factor: float) -> float:
    """Return the rate with what is measured as a share of the rate without, the median of pairs."""

    def one(make: Settings) -> float:
        with tempfile.TemporaryDirectory() as directory:
            return rate(make(Path(directory)), int(100_000 * factor))

    ratios = []
    one(on)  # warms up what is made once in a process
    for pair in range(_PAIRS):
        if pair % 2:
            watched, plain = one(on), one(off)
        else:
            plain, watched = one(off), one(on)
        ratios.append(watched / plain)
    return median(ratios)


def off(directory: Path) -> JobSettings:
    """Nothing looks."""
    return JobSettings(state=StateSettings(dir=str(directory / "state")))


def _with_metrics(directory: Path) -> JobSettings:
    """Metrics, written to a file each second."""
    metrics = MetricsSettings(file=str(directory / "metrics.json"), interval_ms=1_000)
    return JobSettings(state=StateSettings(dir=str(directory / "state")), metrics=metrics)


def off_ratio(factor: float) -> float:
    """Nothing against nothing: how much of the other numbers is the machine."""
    return ratio(off, factor)


def metrics_ratio(factor: float) -> float:
    """Metrics on against off."""
    return ratio(_with_metrics, factor)

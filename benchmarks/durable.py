"""Durable steps: five per run, 200-byte results, RocksDB. Peers run the same five steps as processes of their own.

A step's latency is the gap between the entries of two neighbouring steps, so it has the durable record of the first and all that
leads to the second.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import importlib.util
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

from agentflow import Agent, EventType, JobSettings, OutputEvent, RunnerContext, StateSettings
from agentflow.environment.openers import new_event_loop, state_opener
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.collection import rare_collections
from agentflow.runtime.job import Job
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.settings import CheckpointSettings, JournalSettings, RunSettings
from benchmarks.footprint import WaitingSource, rss_bytes
from benchmarks.workloads import CountingSink, PreparedSource

ROOT = Path(__file__).resolve().parents[1]
STEPS = 5
RESULTS = [base64.b64encode(random.Random(n).randbytes(150)).decode() for n in range(1_000)]
"""200 bytes each, which no compression makes small."""
PEERS = {"dbos": "dbos", "dbos-wal": "dbos", "langgraph": "langgraph.checkpoint.sqlite"}


class Absent(ImportError):
    """A peer is not installed."""


async def call(run: str, number: int) -> str:
    """Return what a model would."""
    return RESULTS[(int(run.rpartition("/")[2]) * STEPS + number) % len(RESULTS)]


class Calls:
    """When steps were called."""

    def __init__(self) -> None:
        self.entered: list[list[float]] = []

    @property
    def gap_ms(self) -> float:
        """Median gap between neighbouring calls of one run."""
        return median(after - before for run in self.entered for before, after in itertools.pairwise(run)) * 1e3


def steps_agent(calls: Calls | None = None, recovery: Recovery | None = None) -> Agent:
    """Return the agent: five steps, then its output; with ``recovery`` it tells when it begins and is there, and then waits."""

    async def act(event: object, ctx: RunnerContext) -> None:
        entered: list[float] = []
        if recovery is not None:
            recovery.began()

        async def timed(run: str, number: int) -> str:  # noqa: ARG001 (the arguments are part of the step)
            entered.append(time.perf_counter())
            return RESULTS[number]

        function = call if calls is None else timed
        for number in range(STEPS):
            await ctx.durable_execute_async(function, ctx.run_id, number)
        if recovery is not None:
            recovery.reached()
            await asyncio.Event().wait()
        if calls is not None:
            calls.entered.append(entered)
        ctx.send_event(OutputEvent({"id": event.input["id"]}))  # type: ignore[attr-defined]

    return Agent("steps").add_action("act", [EventType.InputEvent], act)


def _spec(agent: Agent, source: Any, sink: Any, directory: str, **settings: Any) -> JobSpec:
    complete = JobSettings(state=StateSettings(dir=directory), **settings)
    stage = AgentStage(AgentPlan.from_agent(agent), "user")
    return JobSpec(complete, (stage,), lambda: source, lambda: {"sink": sink}, state_opener(complete))


def _run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        return await work()

    with rare_collections(), asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(run())


# -- steps
def sync_ms(factor: float) -> float:
    """Median of a 200-byte append with fdatasync: what the disk itself takes."""
    return _sync_ms(int(1_000 * factor))


def _sync_ms(count: int) -> float:
    times = []
    with tempfile.TemporaryFile(dir=tempfile.gettempdir()) as file:
        for _ in range(count):
            began = time.perf_counter()
            os.write(file.fileno(), b"x" * 200)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return median(times) * 1e3


def _step_ms(runs: int, sync: Any) -> float:
    calls, source, sink = Calls(), PreparedSource(runs, 1), CountingSink()
    with tempfile.TemporaryDirectory() as directory:
        spec = _spec(steps_agent(calls), source, sink, directory, journal=JournalSettings(sync=sync))
        _run(lambda: Job(spec).run())
    assert len(sink.outputs) == runs
    return calls.gap_ms


def step_above_sync_ms(factor: float) -> float:
    """Median of one step at a time, above an fdatasync that is measured before and behind it."""
    runs, syncs = int(600 * factor), int(500 * factor)
    before = _sync_ms(syncs)
    step = _step_ms(runs, "always")
    return step - (before + _sync_ms(syncs)) / 2


def step_ms(factor: float) -> float:
    """Median of one step at a time."""
    return _step_ms(int(600 * factor), "always")


def unsynced_step_us(factor: float) -> float:
    """Median of one step at a time that does not wait for the disk."""
    return _step_ms(int(2_000 * factor), "interval") * 1e3


def rate(in_flight: int, factor: float) -> float:
    """Steps per second with so many runs in flight."""
    runs = int(20_000 * factor)
    source, sink = PreparedSource(runs, runs), CountingSink()
    with tempfile.TemporaryDirectory() as directory:
        spec = _spec(steps_agent(), source, sink, directory, run=RunSettings(in_flight_max=in_flight))
        _run(lambda: Job(spec).run())
    assert len(sink.outputs) == runs
    return STEPS * runs / (sink.ended - source.began)


# -- recovery
class Recovery:
    """Two lives of one state directory: the first records, and is given up; the second is answered.

    Attributes:
        first_s: When the first coroutine began.
        last_s: When the last one had its steps.
    """

    def __init__(self, runs: int) -> None:
        self.runs = runs
        self._count = 0
        self._reached = asyncio.Event()
        self.first_s = self.last_s = 0.0

    def began(self) -> None:
        """Note the first start."""
        self.first_s = self.first_s or time.perf_counter()

    def reached(self) -> None:
        """Count a run whose steps are recorded, or answered."""
        self._count += 1
        if self._count == self.runs:
            self.last_s = time.perf_counter()
            self._reached.set()

    async def live(self, directory: str, *, is_checkpointed: bool) -> float:
        """Run until every run has its steps; return when it began. Then end it as a crash does."""
        source = WaitingSource(self.runs, self.runs, lambda: None)
        limits = RunSettings(in_flight_max=self.runs + 1)
        interval = CheckpointSettings(interval_ms=600_000)
        spec = _spec(steps_agent(recovery=self), source, CountingSink(), directory, run=limits, checkpoint=interval)
        self._count, self.first_s = 0, 0.0
        self._reached.clear()
        began = time.perf_counter()
        job = Job(spec)
        running = asyncio.ensure_future(job.run())
        await asyncio.wait([running, asyncio.ensure_future(self._reached.wait())], return_when=asyncio.FIRST_COMPLETED)
        if is_checkpointed:
            await job.checkpoint_now()
        running.cancel()
        await asyncio.wait([running])
        return began


def _recovery(runs: int, *, is_checkpointed: bool = True) -> tuple[float, float]:
    """Return seconds from the start of a job to its last answered run, and from the start of the first run to that."""

    async def measure() -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as directory:
            recovery = Recovery(runs)
            await recovery.live(directory, is_checkpointed=is_checkpointed)
            began = await recovery.live(directory, is_checkpointed=False)
            return recovery.last_s - began, recovery.last_s - recovery.first_s

    whole, answering = _run(measure)
    return whole, answering


def recovery_ms(factor: float) -> float:
    """Start of a job with 10,000 unfinished runs of five recorded steps: until all are answered."""
    return _recovery(int(10_000 * factor))[0] * 1e3


def replay_rate(factor: float) -> float:
    """Recorded steps answered per second, from the start of the first run to the last answer."""
    runs = int(10_000 * factor)
    return STEPS * runs / _recovery(runs)[1]


def process_recovery_ms(factor: float) -> float:  # noqa: ARG001 (one size)
    """From the start of a process to the answers of 200 unfinished runs of five recorded steps."""
    with tempfile.TemporaryDirectory() as directory:
        _run(lambda: Recovery(200).live(directory, is_checkpointed=True))
        began = time.time()
        code = "import sys; from benchmarks.durable import recover; recover(sys.argv[1])"
        command = [sys.executable, "-c", code, directory]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
        return (float(done.stdout.splitlines()[-1]) - began) * 1e3


def recover(directory: str) -> None:
    """Recover 200 runs, and print when that was done."""
    recovery = Recovery(200)

    async def live() -> float:
        await recovery.live(directory, is_checkpointed=False)
        return time.time() - (time.perf_counter() - recovery.last_s)

    print(_run(live))


# -- memory and disk
def sleeping_run_bytes(factor: float) -> float:
    """Growth of resident memory from before the first record to 100,000 sleeping runs, per run."""
    runs = int(100_000 * factor)

    async def sleep(event: object, ctx: RunnerContext) -> None:  # noqa: ARG001 (the signature of an action)
        await ctx.sleep("1h")

    async def measure() -> float:
        at_end = asyncio.Event()
        source, sink = WaitingSource(runs, runs, at_end.set), CountingSink()
        with tempfile.TemporaryDirectory() as directory:
            agent = Agent("sleep").add_action("act", [EventType.InputEvent], sleep)
            spec = _spec(agent, source, sink, directory, run=RunSettings(park_after_ms=100))
            job = Job(spec)
            running = asyncio.ensure_future(job.run())
            await at_end.wait()
            operator = job._subtask._stages[0].operator  # type: ignore[union-attr]  # noqa: SLF001 (nobody else knows)
            while operator._sleepers.count < runs:  # noqa: ASYNC110, SLF001
                await asyncio.sleep(0.05)
            await job.checkpoint_now()
            gc.collect()
            grown = rss_bytes("self") - source.rss_before
            running.cancel()
            await asyncio.wait([running])
        return grown / runs

    return float(_run(measure))


def disk_times(factor: float) -> float:
    """Largest size of the state directory, in times the results of 10,000 unfinished runs that it holds."""
    runs = int(10_000 * factor)

    async def measure() -> int:
        with tempfile.TemporaryDirectory() as directory:
            await Recovery(runs).live(directory, is_checkpointed=True)
            return sum(path.stat().st_size for path in Path(directory).rglob("*") if path.is_file())  # noqa: ASYNC240

    return float(_run(measure)) / (runs * STEPS * len(RESULTS[0]))


# -- peers
def peer(name: str, mode: str, factor: float) -> float:
    """Return a peer's steps per second with 200 workflows in flight, or its median step one at a time, in ms."""
    if importlib.util.find_spec(PEERS[name].partition(".")[0]) is None:
        raise Absent(f"{PEERS[name]} is not installed: pip install 'agentflow[benchmarks]'")
    workflows = int((600 if mode == "rate" else 200) * factor)
    module = f"benchmarks.peers.{name.partition('-')[0]}_steps"
    with tempfile.TemporaryDirectory() as directory:
        arguments = [directory, mode, str(workflows), "wal" if name.endswith("-wal") else "default"]
        command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
        )
    return float(json.loads(done.stdout.splitlines()[-1]))

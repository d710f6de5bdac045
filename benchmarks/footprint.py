"""Memory, checkpoints and restore: jobs whose source waits at its end until the measurement is done."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentflow import Agent, EventType, InputEvent, JobSettings, OutputEvent, RunnerContext, StateSettings
from agentflow.api.codecs import JSON
from agentflow.core.records import Record
from agentflow.environment.openers import new_event_loop, state_opener
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.collection import rare_collections
from agentflow.runtime.job import Job
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.ports import Guarantee
from agentflow.runtime.settings import CheckpointSettings, RunSettings
from benchmarks.workloads import CountingSink, record

Input = InputEvent[dict[str, Any]]
VALUE = "v" * 100
RELEASED = asyncio.Event()
"""Lets the runs of `held` end; a process measures one job, so there is one."""


class WaitingSource:
    """Makes its records when they are fetched, then calls ``at_end`` and waits until `go_on` is set.

    A record is made late so that the memory of a waiting run includes its record.
    """

    name = "waiting"
    is_replayable = True
    codec = JSON
    partitions = ()
    idle_timeout_ms = None

    def __init__(self, records: int, keys: int, at_end: Callable[[], None]) -> None:
        self._records = records
        self._keys = keys
        self._at_end = at_end
        self._next = 0
        self.go_on = asyncio.Event()
        self.is_read = False
        self.first_fetch = 0.0
        self.rss_before = 0
        gc.collect()  # not behind the start of the job, which is measured too

    async def open(self, positions: Mapping[str, int]) -> None:
        """Go to the position."""
        self._next = positions.get("waiting", 0)

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next slice; behind the last one, all of them are admitted."""
        if not self.first_fetch:
            self.first_fetch = time.perf_counter()
            self.rss_before = rss_bytes("self")
        start = self._next
        self._next = min(start + records_max, self._records)
        if start < self._next:
            return [record("waiting", n, self._keys) for n in range(start, self._next)]
        self.is_read = True
        self._at_end()
        await self.go_on.wait()
        return []

    async def close(self) -> None:
        """Nothing to release."""


class LoopProbe:
    """A callback due every millisecond: the longest time between two of them is the longest stall of the loop."""

    def __init__(self, at_tick: Callable[[], None]) -> None:
        self._at_tick = at_tick
        self._loop = asyncio.get_running_loop()
        self._last = time.perf_counter()
        self._handle = self._loop.call_later(0.001, self._tick)
        self.began = self._last
        self.longest = 0.0

    def mark(self) -> None:
        """Measure from the last callback on, so what the loop has done since then counts."""
        self.began, self.longest = self._last, 0.0

    def stop(self) -> None:
        """Make no further callback."""
        self._handle.cancel()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.longest = max(self.longest, now - self._last)
        self._last = now
        self._handle = self._loop.call_later(0.001, self._tick)
        self._at_tick()


class MarkingSink(CountingSink):
    """Tells of the barrier of each checkpoint."""

    name = "marking"
    guarantee = Guarantee.EXACTLY_ONCE
    record_max_bytes = None

    def __init__(self, at_barrier: Callable[[], None]) -> None:
        super().__init__()
        self._at_barrier = at_barrier

    def barrier(self, checkpoint: int) -> None:
        """Close the epoch and tell of it."""
        super().barrier(checkpoint)
        self._at_barrier()


def rss_bytes(process: int | str) -> int:
    """Return the resident memory of a process (a process id, or ``self``)."""
    status = Path(f"/proc/{process}/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024
    done = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024


def remember(event: Input, ctx: RunnerContext) -> None:  # noqa: ARG001 (the signature of an action)
    """Keep 100 bytes for a new key; put out what is kept for a known one."""
    memory = ctx.short_term_memory
    kept = memory.get("value")
    if kept is None:
        memory.set("value", VALUE)
    else:
        ctx.send_event(OutputEvent(kept))


async def held(event: Input, ctx: RunnerContext) -> None:
    """Wait until the measurement is done."""
    await RELEASED.wait()
    ctx.send_event(OutputEvent(event.input["id"]))


def _agent(action: Callable[..., Any]) -> AgentStage:
    return AgentStage(
        AgentPlan.from_agent(Agent("footprint").add_action("act", [EventType.InputEvent], action)), "user"
    )


def _run(measure: Callable[[], Any]) -> float:
    with rare_collections(), asyncio.Runner(loop_factory=new_event_loop) as runner:  # as `execute` does
        return float(runner.run(measure()))


def waiting_run_bytes(factor: float) -> float:
    """Growth of resident memory from before the first record to 100,000 waiting runs, per run."""
    runs = int(100_000 * factor)

    async def measure() -> float:
        grown = 0

        def at_end() -> None:
            nonlocal grown
            assert job.status.runs_in_flight == runs, f"{job.status.runs_in_flight} of {runs} runs wait"
            gc.collect()
            grown = rss_bytes("self") - source.rss_before
            RELEASED.set()
            source.go_on.set()

        settings = JobSettings(
            run=RunSettings(in_flight_max=runs + 1), checkpoint=CheckpointSettings(interval_ms=600_000)
        )
        source, sink = WaitingSource(runs, runs, at_end), CountingSink()
        job = Job(JobSpec(settings, (_agent(held),), lambda: source, lambda: {"sink": sink}, state_opener(settings)))
        await job.run()
        assert len(sink.outputs) == runs, "a run was lost"
        return grown / runs

    return _run(measure)


def idle_mib(factor: float) -> float:  # noqa: ARG001 (one signature)
    """Resident memory of a process with everything of `agentflow run`, RocksDB included, that has done one record."""
    import agentflow.cli.main
    import agentflow.cli.run  # noqa: F401 (loaded as the command loads it)

    async def measure() -> float:
        used = 0

        def at_end() -> None:
            nonlocal used
            used = rss_bytes("self")
            source.go_on.set()

        with tempfile.TemporaryDirectory() as directory:
            settings = JobSettings(state=StateSettings(dir=directory))
            source, sink = WaitingSource(1, 1, at_end), CountingSink()
            stage = _agent(remember)
            await Job(JobSpec(settings, (stage,), lambda: source, lambda: {"sink": sink}, state_opener(settings))).run()
        return used / 2**20

    return _run(measure)


async def _checkpoint(
    action: Callable[..., Any], records: int, directory: str, *, is_held: bool
) -> tuple[float, float]:
    """Return duration and longest stall, in ms, of a checkpoint behind ``records`` records of as many keys.

    The duration is counted from the last callback before the barrier to the first one that sees the checkpoint
    completed: a millisecond too much at each end.
    """
    interval_ms = 5_000  # time to admit the records: the first checkpoint has to find all of them
    measured: list[float] = []

    def at_barrier() -> None:
        if not measured:
            assert source.is_read, f"the records were not admitted within {interval_ms} ms"
            assert job.status.runs_in_flight == (records if is_held else 0), "the runs are not where they should be"
            probe.mark()

    def at_tick() -> None:
        if job.status.checkpoint and not measured:
            measured.extend(((time.perf_counter() - probe.began) * 1000, probe.longest * 1000))
            RELEASED.set()
            source.go_on.set()

    settings = JobSettings(
        run=RunSettings(in_flight_max=records + 1),
        checkpoint=CheckpointSettings(interval_ms=interval_ms),
        state=StateSettings(dir=directory),
    )
    source, sink = WaitingSource(records, records, lambda: None), MarkingSink(at_barrier)
    job = Job(JobSpec(settings, (_agent(action),), lambda: source, lambda: {"sink": sink}, state_opener(settings)))
    probe = LoopProbe(at_tick)
    try:
        await job.run()
    finally:
        probe.stop()
    assert len(sink.outputs) == (records if is_held else 0), "a run was lost"
    duration, stall = measured
    return duration, stall


def _checkpoint_part(part: int, action: Callable[..., Any], records: int, *, is_held: bool) -> float:
    with tempfile.TemporaryDirectory() as directory:

        async def measure() -> float:
            return (await _checkpoint(action, records, directory, is_held=is_held))[part]

        return _run(measure)


def dirty_duration_ms(factor: float) -> float:  # noqa: ARG001 (one signature; the size is in the name)
    """Checkpoint of 100,000 changed memory values: barrier to completed."""
    return _checkpoint_part(0, remember, 100_000, is_held=False)


def dirty_stall_ms(factor: float) -> float:  # noqa: ARG001 (as above)
    """The longest stall of the loop in it."""
    return _checkpoint_part(1, remember, 100_000, is_held=False)


def in_flight_duration_ms(factor: float) -> float:  # noqa: ARG001 (as above)
    """Checkpoint with 10,000 unfinished runs: barrier to completed."""
    return _checkpoint_part(0, held, 10_000, is_held=True)


def in_flight_stall_ms(factor: float) -> float:  # noqa: ARG001 (as above)
    """The longest stall of the loop in it."""
    return _checkpoint_part(1, held, 10_000, is_held=True)


def restore_ms(factor: float) -> float:
    """Start of a job over the state of 1,000,000 keys to its first fetch, files in the page cache.

    Memory is read when a key needs it, so this is what a restart waits for; one kept value is read and checked.
    """
    keys = int(1_000_000 * factor)

    async def one_job(records: int, directory: str) -> tuple[float, list[bytes]]:
        settings = JobSettings(state=StateSettings(dir=directory))
        source, sink = WaitingSource(records, keys, lambda: source.go_on.set()), CountingSink()  # noqa: PLW0108 (unbound yet)
        spec = JobSpec(settings, (_agent(remember),), lambda: source, lambda: {"sink": sink}, state_opener(settings))
        began = time.perf_counter()
        await Job(spec).run()
        return (source.first_fetch - began) * 1000, sink.outputs

    async def measure() -> float:
        with tempfile.TemporaryDirectory() as directory:
            _, outputs = await one_job(keys, directory)
            assert not outputs, "a new key had a value"
            took, outputs = await one_job(keys + 1, directory)  # one more record, of the first key
            assert outputs == [b'"%s"' % VALUE.encode()], "the value of a key was not restored"
            return took

    return _run(measure)

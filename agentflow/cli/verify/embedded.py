"""A rehearsal of an embedded job: its agent, key and settings over a temporary state directory and temporary outputs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agentflow.api.codecs import Codec
from agentflow.cli.job_file import JobFile, JsonlSink
from agentflow.cli.verify.report import Rehearsal, Stage, decoded
from agentflow.cli.verify.witness import WatchedSink, Witness
from agentflow.core.records import Record
from agentflow.errors import AgentflowError
from agentflow.runtime.settings import JobSettings

if TYPE_CHECKING:
    from agentflow.cli.loading import Program
    from agentflow.plan.plan import AgentPlan
    from agentflow.runtime.job import Job
    from agentflow.runtime.job_spec import JobSpec
    from agentflow.runtime.ports import Sink

LOOK_S = 0.02
_DRAIN_MS = 1_000
_MS = 1_000_000


class GivenRecords:
    """A source of records that are there already.

    Attributes:
        taken_ns: When the first one was taken; 0: none was.

    Args:
        records: In order.
        codec: Of their values.
    """

    name = "given"
    is_replayable = True
    partitions = ()
    idle_timeout_ms = None

    def __init__(self, records: Sequence[Record], codec: Codec) -> None:
        self.codec = codec
        self._records = list(records)
        self._left: list[Record] = []
        self.taken_ns = 0

    async def open(self, positions: Mapping[str, int]) -> None:
        """Start at positions."""
        self._left = [record for record in self._records if record.offset >= positions.get(record.source, 0)]

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next records; empty at the end."""
        self.taken_ns = self.taken_ns or time.perf_counter_ns()
        taken, self._left = self._left[:records_max], self._left[records_max:]
        return taken

    async def close(self) -> None:
        """Release nothing."""


def rehearsal_settings(settings: JobSettings, job: str, directory: Path) -> JobSettings:
    """Return the settings of a job for a rehearsal: another name, another place, and nothing that others look at."""
    defaults = JobSettings()
    return msgspec.structs.replace(
        settings,
        job=job,
        state=msgspec.structs.replace(settings.state, dir=str(directory / "state")),
        shutdown=msgspec.structs.replace(settings.shutdown, drain_timeout_ms=_DRAIN_MS),
        admin=defaults.admin,
    )


async def run_embedded(
    job_file: JobFile,
    program: Program,
    plan: AgentPlan,
    seen: Rehearsal,
    codec: Codec,
    directory: Path,
    timeout_ms: int,
) -> None:
    """Run the records of a rehearsal through the job; what is seen goes into ``seen``.

    Args:
        job_file: The job.
        program: Its code.
        plan: Its agent.
        seen: Has the records; takes the rest.
        codec: Of their values.
        directory: For state and outputs; the caller removes it.
        timeout_ms: Longest time.
    """
    from agentflow.runtime.job import Job

    witness, given = Witness(), GivenRecords(seen.records, codec)
    job = Job(_spec(job_file, program, plan, given, directory, witness))
    began_ns = time.perf_counter_ns()
    try:
        seen.problem = await _run(job, witness, timeout_ms, len(seen.records))
        if seen.problem:
            seen.fix = "look at what it waits for; or --timeout gives it longer"
    except AgentflowError as failure:
        seen.fail(failure, "correct the action, or the record")
    seen.outputs = [decoded(value, "json") for value in witness.outputs]
    seen.take(witness)
    _tell(seen, witness, given, job, began_ns, job_file.settings.checkpoint.interval_ms)


def _spec(
    job_file: JobFile,
    program: Program,
    plan: AgentPlan,
    given: GivenRecords,
    directory: Path,
    witness: Witness,
) -> JobSpec:
    from agentflow.environment.openers import signals_opener, state_opener
    from agentflow.runtime.job_spec import AgentStage, JobSpec

    settings = rehearsal_settings(job_file.settings, f"{job_file.settings.job}-verify", directory)
    # What goes wrong here goes wrong at once, and is told.
    settings = msgspec.structs.replace(settings, restart=msgspec.structs.replace(settings.restart, strategy="none"))
    return JobSpec(
        settings,
        (AgentStage(plan, program.key_by),),
        lambda: given,
        lambda: _sinks(job_file, directory, witness),
        state_opener(settings),
        open_signals=signals_opener(settings),
        observers=lambda plan, index, incarnation: (witness,),  # noqa: ARG005
    )


def _sinks(job_file: JobFile, directory: Path, witness: Witness) -> Mapping[str, Sink]:
    """Return the job's kinds of sinks over other directories; what is no directory becomes one."""
    from agentflow.cli.connections import open_sink

    def published() -> None:
        witness.published_ns = time.perf_counter_ns()

    composition = job_file.composition
    sinks: dict[str, Sink] = {}
    for role, part in (("sink", composition.sink), ("dead-letter", composition.dead_letter)):
        if part is None:
            continue
        path = str(directory / role)
        moved = msgspec.structs.replace(part, path=path) if hasattr(part, "path") else JsonlSink(path=path)
        opened = open_sink(role, moved, job_file.settings, {})
        sinks[role] = WatchedSink(opened, witness.outputs.append, published) if role == "sink" else opened
    return sinks


async def _run(job: Job, witness: Witness, timeout_ms: int, records: int) -> str:
    """Run a job to its end, to its deadline, or until all that is left waits for longer; say what is wrong, if anything.

    Timers are not waited for: they may be days away.
    """
    deadline_ms = time.time_ns() // _MS + timeout_ms
    running = asyncio.ensure_future(job.run())
    try:
        while not running.done():
            await asyncio.wait([running], timeout=LOOK_S)
            status, in_flight = job.status, job.status.runs_in_flight
            is_late = time.time_ns() // _MS > deadline_ms
            has_timers_only = not in_flight and status.timers_pending > 0 and status.records_in == records
            is_left_waiting = has_timers_only or (in_flight and witness.waits_beyond(deadline_ms) >= in_flight)
            if not running.done() and (is_late or is_left_waiting):
                is_waiting = has_timers_only or (in_flight and witness.waits_beyond(0) >= in_flight)
                late = "" if is_waiting else witness.late(in_flight, timeout_ms)
                job.request_stop()
                await running
                return late
        await running
    finally:
        running.cancel()
        await asyncio.wait([running])
    return ""


def _tell(seen: Rehearsal, witness: Witness, given: GivenRecords, job: Job, began_ns: int, interval_ms: int) -> None:
    status = job.status
    if given.taken_ns:
        seen.stages.append(Stage("started", "state and outputs of its own opened", (given.taken_ns - began_ns) / _MS))
    if witness.began_ns:
        seen.stages.append(Stage("run", witness.described, (witness.answered_ns - witness.began_ns) / _MS))
    if status.checkpoint:
        what = f"{status.checkpoint} completed, {status.checkpoint_bytes:,} bytes of state"
        seen.stages.append(Stage("checkpoint", what, float(status.checkpoint_ms)))
    if witness.outputs and witness.published_ns:
        what = f"input to visible output; a running job adds up to checkpoint.interval ({interval_ms / 1000:g} s)"
        seen.stages.append(Stage("end to end", what, (witness.published_ns - given.taken_ns) / _MS))

"""A rehearsal of a Kafka job: a worker of another name, over topics of its own, on the job's brokers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agentflow.cli.job_file import JobFile
from agentflow.cli.verify.embedded import LOOK_S, rehearsal_settings
from agentflow.cli.verify.report import Rehearsal, Stage, decoded
from agentflow.cli.verify.witness import Witness
from agentflow.core.records import Record
from agentflow.errors import AgentflowError
from agentflow.runtime.settings import JobSettings, TopicSettings

if TYPE_CHECKING:
    from agentflow.cli.loading import Program
    from agentflow.connectors.kafka.rehearsal import RehearsalTopics
    from agentflow.environment.kafka_job import KafkaJob
    from agentflow.plan.plan import AgentPlan
    from agentflow.runtime.worker import Worker

_INTERVAL_MS_MAX = 1_000
_MS = 1_000_000


async def run_on_kafka(
    job_file: JobFile, program: Program, plan: AgentPlan, seen: Rehearsal, directory: Path, timeout_ms: int
) -> None:
    """Run the records of a rehearsal through a worker; what is seen goes into ``seen``, also when it is interrupted.

    Args:
        job_file: The job.
        program: Its code.
        plan: Its agent.
        seen: Has the records; takes the rest.
        directory: For the copy of the state; the caller removes it.
        timeout_ms: Longest time of the run; making and removing topics not counted.
    """
    from agentflow.connectors.kafka.rehearsal import RehearsalTopics, rehearsal_name

    name = rehearsal_name(job_file.settings.job)
    settings = _settings(job_file.settings, name, directory)
    topics = RehearsalTopics(settings.kafka, name)
    witness = Witness()
    job = _job(job_file, program, plan, settings, topics, witness)
    course = _Course(job, topics, witness, seen)
    try:
        await course.prepare(job_file.settings.topics.replication_factor)
        seen.problem = await course.run(timeout_ms)
        if seen.problem:
            seen.fix = "look at what it waits for; or --timeout gives it longer"
    except AgentflowError as failure:
        seen.fail(failure, "agentflow doctor says what is wrong with the brokers")
    finally:
        seen.outputs = [decoded(record.value, program.output_codec.name) for record, _ in course.arrived]
        names = {f"{topics.source}/0/{offset}": record.run_id for offset, record in enumerate(seen.records)}
        seen.take(witness, names)
        await _remove(topics, job, seen, has_group=course.has_joined)


def _settings(settings: JobSettings, name: str, directory: Path) -> JobSettings:
    own = rehearsal_settings(settings, name, directory)
    replace = msgspec.structs.replace
    return replace(
        own,
        # A static member would be waited for when the group is to be deleted.
        kafka=replace(settings.kafka, instance_id=None),
        topics=TopicSettings(create=True, partitions=1, replication_factor=settings.topics.replication_factor),
        signals=replace(settings.signals, topic=None if settings.signals.topic is None else f"{name}-signals"),
        checkpoint=replace(settings.checkpoint, interval_ms=min(settings.checkpoint.interval_ms, _INTERVAL_MS_MAX)),
    )


def _job(
    job_file: JobFile,
    program: Program,
    plan: AgentPlan,
    settings: JobSettings,
    topics: RehearsalTopics,
    witness: Witness,
) -> KafkaJob:
    from agentflow.connectors.kafka.group import Reading
    from agentflow.environment.kafka_job import KafkaJob
    from agentflow.runtime.job_spec import AgentStage

    dead_letters = topics.dead_letters if job_file.composition.dead_letter is not None else None
    reading = Reading((topics.source,), program.input_codec)
    stage = AgentStage(plan, program.key_by)
    job = KafkaJob(settings, (stage,), reading, topics.output, dead_letters, program.output_codec)
    job.observers = lambda subtask: lambda plan, index, incarnation: (witness,)  # noqa: ARG005
    return job


async def _remove(topics: RehearsalTopics, job: KafkaJob, seen: Rehearsal, *, has_group: bool) -> None:
    """Remove what was made; a second interruption leaves it, and that is told."""
    began_ns = time.perf_counter_ns()
    every = job.topics.every
    seen.left_behind = [*(f"topic {topic}" for topic in every), f"group {topics.name}"]  # until it is known otherwise
    seen.left_behind = await topics.remove(every, has_group=has_group)
    if seen.left_behind:
        seen.fix = seen.fix or (
            "delete them: kafka-topics.sh --delete --topic …, kafka-consumer-groups.sh --delete --group …; "
            "they belong to nobody"
        )
    what = "all but what is left behind" if seen.left_behind else f"{len(every)} topics and group {topics.name}"
    seen.stages.append(Stage("removed", what, (time.perf_counter_ns() - began_ns) / _MS))


class _Course:
    """The course of one rehearsal.

    Attributes:
        arrived: Outputs that were read back, with the time when they were there.
        has_joined: Whether a worker may be known to the group.
    """

    def __init__(self, job: KafkaJob, topics: RehearsalTopics, witness: Witness, seen: Rehearsal) -> None:
        self._job = job
        self._topics = topics
        self._witness = witness
        self._seen = seen
        self._member: Worker | None = None
        self._written_ns = 0
        self._started = asyncio.Event()
        self._ended: Mapping[str, Any] = {}
        self._trouble = ""
        self.arrived: list[tuple[Record, int]] = []
        self.has_joined = False

    async def prepare(self, replicas: int | None) -> None:
        """Make the topics."""
        began_ns = time.perf_counter_ns()
        await self._topics.create(replicas)
        self._member = await self._job.worker(self._hear)
        self._stage("topics", f"made, named {self._topics.name}-…", began_ns)

    def _stage(self, name: str, what: str, began_ns: int) -> None:
        self._seen.stages.append(Stage(name, what, (time.perf_counter_ns() - began_ns) / _MS))

    def _hear(self, event: str, fields: Mapping[str, Any]) -> None:
        if event == "started":
            self._started.set()
        elif event == "stopped":
            self._ended = fields
        elif event in ("restarting", "joining again"):
            self._trouble = f"; the worker began again because of: {fields['error']}"

    async def run(self, timeout_ms: int) -> str:
        """Run the worker until everything has come out, and say what is wrong, if anything."""
        member = self._member
        assert member is not None, "run before prepare"
        began_ns, self.has_joined = time.perf_counter_ns(), True
        following = asyncio.ensure_future(self._topics.follow_outputs(self.arrived))
        running = asyncio.ensure_future(member.run())
        filling = asyncio.ensure_future(self._fill(began_ns))
        try:
            problem = await self._watch(member, (running, following, filling), timeout_ms)
            member.request_stop()
            await running
        finally:
            for task in (running, following, filling):
                task.cancel()
            await asyncio.wait([running, following, filling])
            await self._job.resources.close()
            self._tell()
        return problem and problem + self._trouble

    async def _fill(self, began_ns: int) -> None:
        """Write the records, when the worker is there to read them."""
        await self._started.wait()
        self._stage("started", "a worker joined its group and has its subtask", began_ns)
        began_ns = time.perf_counter_ns()
        ahead_s = await self._topics.fill(self._seen.records, self._note_writing)
        clock = f"the brokers' clock is {abs(ahead_s) * 1000:.0f} ms {'ahead' if ahead_s > 0 else 'behind'}"
        self._stage("written", f"{len(self._seen.records)} to {self._topics.source}; {clock}", began_ns)

    def _note_writing(self) -> None:
        self._written_ns = time.perf_counter_ns()

    async def _watch(self, member: Worker, tasks: Sequence[asyncio.Future[Any]], timeout_ms: int) -> str:
        expected, deadline_ms = len(self._seen.records), time.time_ns() // _MS + timeout_ms
        while True:
            await asyncio.wait([task for task in tasks if not task.done()], timeout=LOOK_S)
            for task in tasks:
                if task.done():
                    task.result()
            status, witness = member.status, self._witness
            is_through = witness.arrived >= expected and not status.runs_in_flight
            if is_through and len(self.arrived) >= status.records_out:
                return ""
            in_flight = status.runs_in_flight
            is_late = time.time_ns() // _MS > deadline_ms
            if is_late or (in_flight and witness.waits_beyond(deadline_ms) >= in_flight):
                if in_flight and witness.waits_beyond(0) >= in_flight:
                    return ""
                return witness.late(in_flight, timeout_ms) if in_flight else self._missing(status.records_out)

    def _missing(self, sent: int) -> str:
        witness, expected = self._witness, len(self._seen.records)
        if witness.arrived < expected:
            return f"{expected - witness.arrived} of {expected} records did not arrive in time"
        return f"{sent - len(self.arrived)} of {sent} outputs could not be read back in time"

    def _tell(self) -> None:
        witness, stages = self._witness, self._seen.stages
        if witness.began_ns:
            stages.append(Stage("run", witness.described, (witness.answered_ns - witness.began_ns) / _MS))
        if self._ended.get("checkpoint"):
            what = f"{self._ended['checkpoint']} committed, {self._ended['checkpoint_bytes']:,} bytes of state"
            stages.append(Stage("checkpoint", what, float(self._ended["checkpoint_ms"])))
        if self.arrived:
            interval_ms = self._job.settings.checkpoint.interval_ms
            what = f"input to output read back, read_committed; of that up to {interval_ms / 1000:g} s until the checkpoint"
            stages.append(Stage("end to end", what, (self.arrived[-1][1] - self._written_ns) / _MS))

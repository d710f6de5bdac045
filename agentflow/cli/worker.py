"""`agentflow worker`: one member of a Kafka job's group."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agentflow.cli.job_file import KafkaDeadLetters, KafkaSink, KafkaSource
from agentflow.cli.output import EXIT_DONE
from agentflow.cli.run import StopSignals, configured_logs, loop_factory, redact_error, serve, total_fields
from agentflow.errors import ConfigError

if TYPE_CHECKING:
    from agentflow.cli.job_file import JobFile
    from agentflow.environment.kafka_job import KafkaJob
    from agentflow.observability.progress import LiveLine
    from agentflow.runtime.job_status import JobStatus


def worker(chosen: argparse.Namespace) -> int:
    """Run a worker and return the exit status."""
    from agentflow.cli.config_file import load_job_file
    from agentflow.runtime.collection import rare_collections

    settings = list(chosen.settings)
    settings += [f"log.format={chosen.log_format}"] if chosen.log_format else []
    settings += [f"log.level={chosen.log_level}"] if chosen.log_level else []
    job_file = load_job_file(chosen.config, profile=chosen.profile, settings=settings)
    if chosen.processes is not None:
        from agentflow.cli.supervisor import supervise

        check_is_kafka(job_file)
        configured_logs(job_file, is_live_wanted=False)
        return supervise(chosen, job_file)
    job = kafka_job(job_file)
    line = configured_logs(job_file, is_live_wanted=chosen.process is None)
    factory = loop_factory(is_uvloop_wanted=not chosen.no_uvloop)
    with rare_collections(), asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_run(job, job_file, line, chosen.process))


def check_is_kafka(job_file: JobFile) -> tuple[KafkaSource, KafkaSink, KafkaDeadLetters | None]:
    """Return source and sinks of a Kafka job.

    Raises:
        ConfigError: The job does not read Kafka. What it writes then was checked with the file.
    """
    composition = job_file.composition
    source, sink, dead = composition.source, composition.sink, composition.dead_letter
    if not isinstance(source, KafkaSource) or not isinstance(sink, KafkaSink):
        raise ConfigError([f"{job_file.path}: this reads Kafka; a job with another source is run by: agentflow run"])
    return source, sink, dead if isinstance(dead, KafkaDeadLetters) else None


def kafka_job(job_file: JobFile) -> KafkaJob:
    """Load the program of a job file and return its Kafka job; nothing is connected.

    Raises:
        ConfigError: The job does not read Kafka, or its program cannot be loaded.
    """
    from agentflow.cli.loading import load_program
    from agentflow.connectors.kafka.group import Reading
    from agentflow.environment.kafka_job import KafkaJob
    from agentflow.observability.logs import DeadLetterLog
    from agentflow.plan.plan import AgentPlan
    from agentflow.runtime.job_spec import AgentStage
    from agentflow.runtime.redaction import Redaction

    source, sink, dead = check_is_kafka(job_file)
    program = load_program(job_file)
    stage = AgentStage(AgentPlan.from_agent(program.agent, job_file.config), program.key_by)
    redaction = Redaction(job_file.settings.redaction)
    reading = Reading(source.topics, program.input_codec, source.on_offset_reset, source.idle_timeout_ms)
    job = KafkaJob(
        job_file.settings,
        (stage,),
        reading,
        sink.topic,
        dead.topic if dead is not None else None,
        program.output_codec,
        lambda dead_letters: DeadLetterLog(dead_letters, dead.described if dead is not None else "", redaction),
    )
    job.event_listeners = program.event_listeners
    return job


class _WorkerLog:
    """The few log lines of a worker."""

    def __init__(self, job_file: JobFile) -> None:
        from agentflow.runtime.redaction import Redaction

        self._job_file = job_file
        self.redaction = Redaction(job_file.settings.redaction)

    def started(self, subtasks: int) -> None:
        from agentflow.observability.logs import log_event

        composition, settings = self._job_file.composition, self._job_file.settings
        log_event(
            "worker started",
            job=settings.job,
            agent=composition.agent,
            guarantee=settings.guarantee,
            source=composition.source.described,
            sink=composition.sink.described,
            dead_letter=composition.dead_letter.described if composition.dead_letter else None,
            brokers=settings.kafka.brokers,
            subtasks=subtasks,
            state=settings.state.dir,
        )

    def tell(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write what worker and subtasks tell."""
        from agentflow.observability.logs import log_event

        text = self.redaction.text
        if event == "started":
            log_event(
                "subtask started",
                subtask=fields["subtask"],
                checkpoint=fields["restored_checkpoint"],
                unfinished_runs=fields["restored_runs"],
                took=f"{fields['restore_ms']}ms",
            )
        elif event == "restarting":
            error, *_ = str(fields["error"]).split("\n")
            log_event(
                "subtask restarts",
                "warning",
                subtask=fields["subtask"],
                error=text(error),
                delay=f"{fields['delay_ms'] / 1000:g}s",
            )
        elif event in ("offset reset", "purge failed", "joining again", "stopped without a last checkpoint"):
            shown = {name: text(value) if isinstance(value, str) else value for name, value in fields.items()}
            log_event(event, "warning", **shown)
        elif event in ("assigned", "revoked", "lost meanwhile"):
            log_event(f"subtasks {event}" if event != "lost meanwhile" else event, **fields)


def _stop_without_supervisor(signals: StopSignals) -> None:
    """Stop when standard input closes: the supervisor holds its other end."""
    loop, supervisor = asyncio.get_running_loop(), sys.stdin.fileno()

    def gone() -> None:
        loop.remove_reader(supervisor)
        signals.receive(signal.SIGTERM)

    loop.add_reader(supervisor, gone)


async def _run(job: KafkaJob, job_file: JobFile, line: LiveLine | None, process: int | None) -> int:
    from agentflow.environment.telemetry import Telemetry
    from agentflow.errors import AgentflowError
    from agentflow.observability.logs import bind_log_fields, log_event
    from agentflow.observability.progress import follow_live, follow_log

    log = _WorkerLog(job_file)
    if process is not None:
        bind_log_fields(process=process)
    telemetry = Telemetry(job.settings, job.event_listeners)
    job.observers, job.metrics, job.stream_outlet = telemetry.observers, telemetry.registry, telemetry.stream_outlet
    member = await job.worker(log.tell)
    log.started(job.facts.subtasks)
    telemetry.watch(member, job.resources)
    admin = serve(telemetry, lambda: member.not_ready)
    signals = StopSignals(member)
    if process is not None:
        _stop_without_supervisor(signals)

    def status() -> JobStatus:
        return member.status

    following = asyncio.ensure_future(
        follow_log(status, log_event) if line is None else follow_live(job_file.settings.job, status, line)
    )
    try:
        ended = await member.run()
    except AgentflowError as error:
        redact_error(error, log.redaction)
        log_event("worker failed", "error", **total_fields(job_file, member.status))
        raise
    finally:
        signals.close()
        if admin is not None:
            admin.close()
        await job.resources.close()
        await telemetry.close()
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
    log_event("worker stopped", "info", **total_fields(job_file, ended))
    return 128 + signals.received if signals.received is not None else EXIT_DONE

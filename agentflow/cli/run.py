"""`agentflow run`: a job file in, a job run to the end of its input or to a signal."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agentflow.cli.output import EXIT_DONE, is_colored

if TYPE_CHECKING:
    from agentflow.cli.job_file import JobFile
    from agentflow.cli.loading import Program
    from agentflow.environment.telemetry import Telemetry
    from agentflow.errors import AgentflowError
    from agentflow.observability.admin import AdminServer
    from agentflow.observability.progress import LiveLine
    from agentflow.runtime.job import Job
    from agentflow.runtime.job_spec import JobSpec
    from agentflow.runtime.job_status import JobStatus
    from agentflow.runtime.ports import Sink
    from agentflow.runtime.redaction import Redaction
    from agentflow.runtime.worker import Worker

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_READY = ("running", "draining")
_BLOCK_BYTES = 2**20
_TOTALS = ("records_in", "records_out", "dead_letters", "runs_in_flight", "checkpoint", "restarts")


def run(chosen: argparse.Namespace) -> int:
    """Run a job file and return the exit status."""
    from agentflow.cli.config_file import load_job_file
    from agentflow.cli.loading import load_program
    from agentflow.runtime.collection import rare_collections

    settings = list(chosen.settings)
    settings += [f"log.format={chosen.log_format}"] if chosen.log_format else []
    settings += [f"log.level={chosen.log_level}"] if chosen.log_level else []
    job_file = load_job_file(chosen.config, profile=chosen.profile, settings=settings)
    program = load_program(job_file)
    line = configured_logs(job_file)
    spec = job_spec(job_file, program)
    factory = loop_factory(is_uvloop_wanted=not chosen.no_uvloop)
    with rare_collections(), asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_run(spec, JobLog(job_file), line, program.event_listeners))


def job_spec(job_file: JobFile, program: Program) -> JobSpec:
    """Return what the engine runs; nothing is opened.

    Raises:
        PlanError: The agent cannot be compiled.
    """
    from agentflow.cli.connections import open_sink, source_opener
    from agentflow.environment.openers import signals_opener, state_opener
    from agentflow.environment.savepoints import savepoint_writer
    from agentflow.observability.logs import DeadLetterLog
    from agentflow.plan.plan import AgentPlan
    from agentflow.runtime.job_spec import AgentStage, JobSpec
    from agentflow.runtime.redaction import Redaction

    composition, settings = job_file.composition, job_file.settings

    def open_sinks() -> Mapping[str, Sink]:
        sinks = {"sink": open_sink("sink", composition.sink, settings, program.connectors)}
        if composition.dead_letter is not None:
            dead = open_sink("dead-letter", composition.dead_letter, settings, program.connectors)
            sinks["dead-letter"] = DeadLetterLog(dead, composition.dead_letter.described, Redaction(settings.redaction))
        return sinks

    stage = AgentStage(AgentPlan.from_agent(program.agent, job_file.config), program.key_by)
    source = source_opener(composition.source, settings, program.connectors)
    return JobSpec(
        settings,
        (stage,),
        source,
        open_sinks,
        state_opener(settings),
        open_signals=signals_opener(settings),
        write_savepoint=savepoint_writer(settings),
    )


def configured_logs(job_file: JobFile, *, is_live_wanted: bool = True) -> LiveLine | None:
    """Configure log lines; return the live line, which is there on a terminal only."""
    from agentflow.observability.logs import configure_logs
    from agentflow.observability.progress import LiveLine

    log = job_file.composition.log
    is_terminal = sys.stderr.isatty()
    shape = log.format if log.format != "auto" else "console" if is_terminal else "json"
    is_live = is_live_wanted and is_terminal and shape == "console" and os.environ.get("TERM") != "dumb"
    line = LiveLine(sys.stderr) if is_live else None
    configure_logs(format=shape, level=log.level, stream=line or sys.stderr, is_colored=is_colored(sys.stderr))
    return line


def loop_factory(*, is_uvloop_wanted: bool) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the event loop, and says which one it is."""

    def new_loop() -> asyncio.AbstractEventLoop:
        from agentflow.environment.openers import new_event_loop
        from agentflow.observability.logs import log_event

        loop = new_event_loop(is_uvloop_wanted=is_uvloop_wanted)
        log_event("event loop", "debug", kind=type(loop).__module__)
        return loop

    return new_loop


class JobLog:
    """Writes the few log lines of a job: what it started from, restarts, how it ended."""

    def __init__(self, job_file: JobFile) -> None:
        from agentflow.runtime.redaction import Redaction

        self._job_file = job_file
        self._redaction = Redaction(job_file.settings.redaction)
        self._starts = 0

    def tell(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write what a job tells as ``on_event``."""
        from agentflow.observability.logs import log_event

        if event == "started":
            self._tell_start(fields)
        elif event == "restarting":
            error, *_ = str(fields["error"]).split("\n")
            log_event(
                "job restarts",
                "warning",
                error=self._redaction.text(error),
                attempt=fields["attempt"],
                delay=f"{fields['delay_ms'] / 1000:g}s",
            )
        else:
            log_event(f"job {event}", "info", **self._totals(fields))

    def tell_failure(self, status: JobStatus, error: AgentflowError) -> None:
        """Write the totals of a job that failed; the error itself is the command's to print, and is redacted for that."""
        from agentflow.cli.job_file import JsonlSource
        from agentflow.observability.logs import log_event

        if isinstance(self._job_file.composition.source, JsonlSource):
            add_line(error)
        redact_error(error, self._redaction)
        log_event("job failed", "error", **total_fields(self._job_file, status))

    def _tell_start(self, fields: Mapping[str, Any]) -> None:
        from agentflow.observability.logs import log_event

        self._starts += 1
        if self._starts == 1:
            composition, settings = self._job_file.composition, self._job_file.settings
            guarantees = fields["guarantees"]
            dead_letter = composition.dead_letter
            log_event(
                "job started",
                job=settings.job,
                agent=composition.agent,
                guarantee=settings.guarantee,
                source=composition.source.described,
                sink=f"{composition.sink.described} ({guarantees['sink']})",
                dead_letter=f"{dead_letter.described} ({guarantees['dead-letter']})" if dead_letter else None,
                state=settings.state.dir or "in memory",
                state_size=_size_of(settings.state.dir),
            )
        if fields["restored_checkpoint"] or self._starts > 1:
            log_event(
                "restored",
                checkpoint=fields["restored_checkpoint"],
                unfinished_runs=fields["restored_runs"],
                took=f"{fields['restore_ms']}ms",
            )

    def _totals(self, fields: Mapping[str, Any]) -> dict[str, object]:
        shown = {name: fields[name] for name in _TOTALS}
        return {"job": self._job_file.settings.job, **shown}


def add_line(error: AgentflowError) -> None:
    """Say which line of a file of JSON lines the record of a failure is: positions are bytes, and editors have lines."""
    label, _, offset = str(error.where.get("source-position", "")).rpartition("/")
    if not offset.isdecimal():
        return
    line, left = 1, int(offset)
    try:
        with open(label, "rb") as file:  # noqa: PTH123 (a label)
            while left and (block := file.read(min(left, _BLOCK_BYTES))):
                line += block.count(b"\n")
                left -= len(block)
    except OSError:  # a file that is followed or gone, or an object: its label is no path
        return
    if not left:
        error.where["line"] = line


def redact_error(error: AgentflowError, redaction: Redaction) -> None:
    """Take out of an error what must not be seen, before it is printed: it quotes the errors of user code."""
    text = redaction.text
    error.what, error.expected = text(error.what), text(error.expected)
    error.where = {
        name: redaction.key(value) if name == "key" else text(value) if isinstance(value, str) else value
        for name, value in error.where.items()
    }
    if own_part := getattr(error, "user_traceback", ""):
        error.user_traceback = text(own_part)  # type: ignore[attr-defined]  # it is a JobFailed
    cause = error.__cause__
    if cause is None:
        return
    said = text(str(cause))
    if said != str(cause):  # it is not ours to change, so that it is told here
        error.what += f"\n  because of {type(cause).__name__}: {said}"
        error.__cause__ = None


def total_fields(job_file: JobFile, status: JobStatus) -> dict[str, object]:
    """Return the totals of a job for a log line."""
    return {"job": job_file.settings.job, **{name: getattr(status, name) for name in _TOTALS}}


def _size_of(directory: str | None) -> str | None:
    """Return the size of a state directory, for people; None where there is none."""
    if directory is None or not os.path.isdir(directory):  # noqa: PTH112 (a text, and os.walk below)
        return None
    size = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # a file that is compacted away meanwhile
                size += os.path.getsize(os.path.join(folder, name))  # noqa: PTH118, PTH202
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f}{unit}"
        size /= 1024  # type: ignore[assignment]  # from here on a number for people
    return f"{size:.1f}GiB"


def serve(telemetry: Telemetry, not_ready: Callable[[], str | None]) -> AdminServer | None:
    """Serve health and metrics, where the job has a port for them, and say where.

    Raises:
        ConfigError: The port cannot be had.
    """
    from agentflow.observability.logs import log_event

    admin = telemetry.serve(not_ready)
    if admin is not None:
        log_event("admin listens", address=admin.address)
    return admin


class StopSignals:
    """Turns SIGINT and SIGTERM into requests to stop; after the second one signals are the system's again.

    Attributes:
        received: The first signal; None when there was none.
    """

    def __init__(self, job: Job | Worker) -> None:
        self.received: signal.Signals | None = None
        self._job = job
        self._count = 0
        self._loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self.receive, number)

    def receive(self, number: signal.Signals) -> None:
        """Take a signal."""
        from agentflow.observability.logs import log_event

        self.received = self.received or number
        self._count += 1
        if self._count == 1:
            log_event("job stops: draining, then a last checkpoint; again: a checkpoint now", signal=number.name)
        else:
            log_event("job stops: a last checkpoint now", signal=number.name)
            self.close()
        self._job.request_stop()

    def close(self) -> None:
        """Leave signals to the system again."""
        for number in _SIGNALS:
            self._loop.remove_signal_handler(number)


async def _run(
    spec: JobSpec, log: JobLog, line: LiveLine | None, listeners: Sequence[Callable[[dict[str, Any]], object]]
) -> int:
    import msgspec

    from agentflow.environment.telemetry import Telemetry
    from agentflow.errors import AgentflowError
    from agentflow.observability.logs import log_event
    from agentflow.observability.progress import follow_live, follow_log
    from agentflow.runtime.job import Job

    telemetry = Telemetry(spec.settings, listeners)
    job = Job(
        msgspec.structs.replace(
            spec,
            observers=telemetry.observers(0),
            metrics=telemetry.registry,
            on_end=telemetry.close,
            stream_outlet=telemetry.stream_outlet,
        ),
        on_event=log.tell,
    )
    telemetry.watch(job)
    admin = serve(telemetry, lambda: None if job.status.state in _READY else f"the job is {job.status.state}")
    signals = StopSignals(job)

    def status() -> JobStatus:
        return job.status

    following = asyncio.ensure_future(
        follow_log(status, log_event) if line is None else follow_live(spec.settings.job, status, line)
    )
    try:
        ended = await job.run()
    except AgentflowError as error:
        log.tell_failure(job.status, error)
        raise
    finally:
        signals.close()
        if admin is not None:
            admin.close()
        following.cancel()
        await asyncio.wait([following])
    if ended.state == "stopped" and signals.received is not None:
        return 128 + signals.received
    return EXIT_DONE

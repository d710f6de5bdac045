"""Commands that look at the runs of a job and talk to them: `runs list|show|check|cancel|retry`, `journal show`, `signal`.

They work beside a running job and on a stopped one. What a job's state holds is seen as of its last checkpoint, with the journal of
an embedded job up to this moment.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentflow.cli.kafka_commands import load, print_table
from agentflow.cli.output import EXIT_DONE, EXIT_PROBLEMS_FOUND, print_json
from agentflow.errors import ConfigError

if TYPE_CHECKING:
    from agentflow.cli.job_file import JobFile
    from agentflow.runtime.inspection import RunView, StepView
    from agentflow.runtime.redaction import Redaction
    from agentflow.runtime.replay_check import DivergingRun


def job_of(chosen: argparse.Namespace) -> JobFile | Path:
    """Return the job file that the command line names, or the state directory, which an embedded engine has alone."""
    path = Path(chosen.config)
    if not path.is_dir():
        return load(chosen)
    if not any(path.glob("subtask-*")):
        raise ConfigError(
            [f"{path} is no state directory: there is no subtask-0 in it\nhelp: give state.dir, or a job file"]
        )
    return path


def runs_of(job: JobFile | Path, redaction: Redaction | None = None) -> list[RunView]:
    """Return the unfinished runs of a job; ``redaction``: what must not be seen, None: what the job's rules say."""
    from agentflow.core.delta import Table
    from agentflow.runtime.inspection import unfinished_runs
    from agentflow.runtime.redaction import Redaction
    from agentflow.state.rocksdb_rows import StateView

    views: list[RunView] = []
    redaction = redaction or Redaction(None if isinstance(job, Path) else job.settings.redaction)
    for subtask in _subtasks(job):
        view = StateView(subtask)
        try:
            rows = view.rows(Table.RUNS), view.rows(Table.STEPS)
            views += unfinished_runs(*rows, view.journal, view.checkpoint, redaction)
        finally:
            view.close()
    return views


def _subtasks(job: JobFile | Path) -> list[Path]:
    directory = state_dir(job)
    return sorted(directory.glob("subtask-*")) or [directory / "subtask-0"]


def state_dir(job: JobFile | Path) -> Path:
    """Return where the state of a job is."""
    if isinstance(job, Path):
        return job
    directory = job.settings.state.dir
    if directory is None:
        raise ConfigError([f"{job.path}: the job's state is in memory, where nobody else can see it: set state.dir"])
    return Path(directory)


def list_runs(chosen: argparse.Namespace) -> int:
    """Print the unfinished runs of a job, a line each."""
    import msgspec

    runs = runs_of(job_of(chosen))
    if chosen.json:
        print_json([{**msgspec.to_builtins(run), "steps": len(run.steps)} for run in runs])
        return EXIT_DONE
    rows = [
        [run.run, repr(run.key), run.state, run.task or "-", run.attempt, len(run.steps), time_text(run.admitted_ms), time_text(run.due_ms)]
        for run in runs
    ]  # fmt: skip
    print_table(["RUN", "KEY", "STATE", "TASK", "ATTEMPT", "RECORDS", "ADMITTED", "NEXT"], rows)
    return EXIT_DONE


def show_run(chosen: argparse.Namespace) -> int:
    """Print an unfinished run and what is recorded of it; exit status 3 when there is none of that id."""
    import msgspec

    found = [run for run in runs_of(job_of(chosen)) if run.run == chosen.run]
    if not found:
        print(f"there is no unfinished run {chosen.run}")
        return EXIT_PROBLEMS_FOUND
    run = found[0]
    if chosen.json:
        print_json(msgspec.to_builtins(run))
        return EXIT_DONE
    if chosen.command == "runs":
        for name, value in (
            ("run", run.run),
            ("key", repr(run.key)),
            ("state", run.state),
            ("admitted", time_text(run.admitted_ms)),
            ("task", run.task or "-"),
            ("attempt", run.attempt),
            ("next", time_text(run.due_ms)),
        ):
            print(f"{name:<9} {value}")
        print()
    print_table(
        ["STEP", "CALLS", "RECORD", "ATTEMPT", "AT", "ARGUMENTS", "CALLED AT", "WHAT"],
        [_step_cells(step) for step in run.steps],
    )
    return EXIT_DONE


def _step_cells(step: StepView) -> list[object]:
    due = f" until {time_text(step.due_ms)}" if step.due_ms is not None else ""
    return [
        f"{step.task}{step.path}",
        step.function or "-",
        step.kind,
        step.attempt,
        time_text(step.at_ms),
        step.digest[:8] or "-",
        step.where or "-",
        f"{step.preview}{due}".strip() or "-",
    ]


def send_signal(chosen: argparse.Namespace) -> int:
    """Send a signal to a job; it is durable when the command ends, whether the job runs or not."""
    import msgspec

    from agentflow.runtime.signals import encode_signal

    job = job_of(chosen)
    _check_agent(job, chosen.agent)
    try:
        value: Any = msgspec.json.decode(chosen.value) if chosen.value is not None else None
    except msgspec.DecodeError as error:
        raise ConfigError(
            [f"the value of the signal is no JSON ({error}): {chosen.value}\nhelp: texts have quotes: '\"yes\"'"]
        ) from None
    if not chosen.name:
        raise ConfigError(["the name of the signal is empty\nhelp: give the name that ctx.wait_for waits for"])
    key = key_of(chosen.key)
    document = encode_signal(
        key, chosen.name, value, correlation=chosen.correlation, run=chosen.run, agent=chosen.agent
    )
    deliver(job, key, document)
    if chosen.json:
        print_json(msgspec.json.decode(document))
    else:
        print(f"signal '{chosen.name}' sent to key {key!r}")
    return EXIT_DONE


def check_runs(chosen: argparse.Namespace) -> int:
    """Say which unfinished runs would diverge from the agent as it is now; exit status 3 when there are any."""
    import msgspec

    job_file = load(chosen)
    found = asyncio.run(diverging(job_file))
    if chosen.json:
        print_json(msgspec.to_builtins(found))
    elif not found:
        print("no unfinished run would diverge")
    else:
        print_table(["RUN", "TASK", "WHY"], [[one.run, one.task or "-", one.message] for one in found])
    return EXIT_PROBLEMS_FOUND if found else EXIT_DONE


async def diverging(job_file: JobFile) -> list[DivergingRun]:
    """Return the unfinished runs that would diverge, of all subtasks whose state is on this machine."""
    from agentflow.cli.loading import load_program
    from agentflow.core.delta import RESTORED_TABLES
    from agentflow.plan.plan import AgentPlan
    from agentflow.runtime.replay_check import diverging_runs
    from agentflow.runtime.stored_job import incarnation_of
    from agentflow.state.rocksdb_rows import StateView

    program = load_program(job_file)
    plan = AgentPlan.from_agent(program.agent, job_file.config)
    found: list[DivergingRun] = []
    for subtask in _subtasks(job_file):
        view = StateView(subtask)
        try:
            rows = {table: list(view.rows(table)) for table in RESTORED_TABLES}
            journal = [record for _, record in view.journal]
            found += await diverging_runs(
                plan,
                job_file.settings,
                program.input_codec,
                view,
                rows,
                journal,
                view.checkpoint,
                incarnation=incarnation_of(rows),
            )
        finally:
            view.close()
    return found


def control_run(chosen: argparse.Namespace) -> int:
    """Cancel a run, or let it try again at once; the request is durable when the command ends."""
    import msgspec

    from agentflow.runtime.signals import encode_control

    job, key = job_of(chosen), key_of(chosen.key)
    _check_agent(job, chosen.agent)
    run, reason = getattr(chosen, "run", ""), getattr(chosen, "reason", "")
    document = encode_control(key, chosen.verb, run=run, reason=reason, agent=chosen.agent)
    deliver(job, key, document)
    if chosen.json:
        print_json(msgspec.json.decode(document))
    else:
        print(f"{chosen.verb} sent to key {key!r}")
    return EXIT_DONE


def deliver(job: JobFile | Path, key: object, document: bytes) -> None:
    """Send a signal to a job; it is durable when this returns, whether the job runs or not."""
    from agentflow.cli.job_file import KafkaSource

    if not isinstance(job, Path) and isinstance(source := job.composition.source, KafkaSource):
        topic = job.settings.signals.topic
        if topic is None:
            raise ConfigError([f"{job.path}: the job reads no signals: set signals.topic"])
        asyncio.run(_send(job, source.topics, topic, key, document))
        return
    from agentflow.connectors.signal_spool import SignalSpool

    if isinstance(job, Path):
        _check_is_embedded(job)
    SignalSpool(state_dir(job) / "signals").append_now(document)


def _check_agent(job: JobFile | Path, agent: str) -> None:
    """Refuse a signal for an agent that the job file does not have; which ones an engine has, its state directory does not say."""
    if not agent or isinstance(job, Path):
        return
    from agentflow.cli.loading import load_program

    name = load_program(job).agent.name
    if agent != name:
        raise ConfigError([f"--agent {agent}: {job.path} has the agent '{name}'\nhelp: leave --agent away"])


def _check_is_embedded(directory: Path) -> None:
    """Refuse a signal into the state directory of a job on Kafka: it reads a topic, and nothing here."""
    from agentflow.state.rocksdb_rows import StateView

    for subtask in _subtasks(directory):
        view = StateView(subtask)
        is_embedded = view.changelog_position is None
        view.close()
        if not is_embedded:
            what = f"{directory} is the state of a job on Kafka, which reads its signals from a topic"
            raise ConfigError([f"{what}\nhelp: give its job file, which says where the topic is"])


async def _send(job_file: JobFile, inputs: Sequence[str], topic: str, key: object, document: bytes) -> None:
    """Write a signal where the keys of the job are."""
    from agentflow.connectors.kafka.signals import send_signal
    from agentflow.connectors.kafka.sinks import kafka_key
    from agentflow.connectors.kafka.topics import partition_counts
    from agentflow.environment.kafka_job import find_placement
    from agentflow.runtime.codecs import RECORD_KEY, encode_key

    settings, changelog = job_file.settings, f"{job_file.settings.job}-changelog"
    counts = await partition_counts(settings.kafka, [topic, changelog])
    if topic not in counts:
        raise ConfigError([f"the topic '{topic}' (signals.topic) does not exist: a worker of the job creates it"])
    placement = await find_placement(
        settings,
        inputs,
        counts[topic],
        is_rekeyed=job_file.composition.key_by != RECORD_KEY,
        has_changelog=changelog in counts,
        is_stored_enough=True,
    )
    await send_signal(settings.kafka, topic, placement, kafka_key(encode_key(key)), document)


def key_of(text: str) -> object:
    """Return a key as it is written: JSON where that is a number, a text in quotes, or ``{"$bytes": "<base64>"}``; else the text itself.

    Raises:
        ConfigError: What stands for bytes is no base64.
    """
    import msgspec

    from agentflow.state.typed_json import untyped

    try:
        value: object = msgspec.json.decode(text)
    except ValueError:  # no JSON
        return text
    if isinstance(value, dict) and value.keys() == {"$bytes"}:
        try:
            return untyped(value)
        except (TypeError, ValueError) as error:
            raise ConfigError([f"the bytes of the key are no base64 ({error}): {text}"]) from None
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else text


def time_text(ms: int | None) -> str:
    """Return a time as commands print it."""
    return "-" if ms is None else datetime.fromtimestamp(ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")

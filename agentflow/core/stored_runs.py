"""Unfinished runs as rows: how a run is written into an epoch delta and rebuilt from it.

A row holds everything the run needs to go on: its input's bytes, its tasks with attempts and retry times, sensory memory,
and what ended members of a parallel group have produced. A coroutine is not state: a task that was running starts again.
"""

from __future__ import annotations

import msgspec

from agentflow.core.delta import check_format
from agentflow.core.inputs import ActionCompleted, KeptWrites, SentEvent, TimerOrder
from agentflow.core.records import ErrorReport, Headers, Record
from agentflow.core.runs import PARKED, QUEUED, RUNNING, WAITING, ActionTask, KeyState, Request, Run
from agentflow.core.segments import Segment
from agentflow.errors import StateMismatch
from agentflow.plan.plan import AgentPlan

RUN_FORMAT = 1


class Completion(msgspec.Struct, array_like=True, gc=False):
    """What an attempt did that completed: of a member of a parallel group, and in the journal."""

    sent: list[SentEvent] | None
    writes: dict[str, bytes | None] | None
    sensory: dict[str, bytes | None] | None
    timers: list[TimerOrder] | None
    headers: dict[int, Headers] | None = None
    kept: KeptWrites | None = None

    @classmethod
    def of(cls, done: ActionCompleted) -> Completion:
        """Return what ``done`` says, without its task."""
        return cls(done.sent, done.writes, done.sensory, done.timers, done.headers, done.kept)

    def by(self, task: ActionTask) -> ActionCompleted:
        """Return it as the answer of ``task``."""
        return ActionCompleted(task, self.sent, self.writes, self.sensory, self.timers, self.headers, self.kept)


class TaskEntry(msgspec.Struct, array_like=True):
    """One task that has not been applied. `status` is a `TaskStatus`; RUNNING means: it starts again."""

    path: str
    action: str
    event_type: str
    payload: bytes | None
    status: int
    attempt: int
    started_behind: int
    due_ms: int
    outcome: Completion | None
    error: ErrorReport | None
    emitted: int = 0


class RequestEntry(msgspec.Struct, array_like=True):
    """What a run has for somebody who waits for its answer. New fields go to the end, with a default."""

    is_kept: bool
    outputs: list[bytes | None] = []
    failure: ErrorReport | None = None


class RunEntry(msgspec.Struct, array_like=True, gc=False):
    """One unfinished run. New fields go to the end, with a default."""

    format: int
    source: str
    offset: int
    next_offset: int
    value: bytes | None
    record_key: bytes | None
    timestamp_ms: int | None
    headers: Headers
    event_type: str
    number: int
    admitted_ms: int
    segment: int | None
    is_started: bool
    tasks_started: int
    group_size: int
    applied: int
    written: dict[str, tuple[int, bool]] | None
    tasks: list[TaskEntry]
    sensory: dict[str, bytes | None] | None
    completed: list[str] | None
    request: RequestEntry | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(RunEntry).decode


def encode_run(run: Run) -> bytes:
    """Return the row of a run."""
    record = run.record
    return _encode(
        RunEntry(
            RUN_FORMAT,
            record.source,
            record.offset,
            record.next_offset,
            record.value,
            record.key,
            record.timestamp_ms,
            record.headers,
            run.event_type,
            run.number,
            run.admitted_ms,
            None if run.segment is None else run.segment.number,
            run.is_started,
            run.tasks_started,
            0 if run.group is None else len(run.group),
            run.applied,
            run.written,
            [_task_entry(task) for task in run.tasks],
            run.sensory,
            run.completed,
            None if run.request is None else _request_entry(run.request),
        )
    )


def _request_entry(request: Request) -> RequestEntry:
    return RequestEntry(request.is_kept, request.outputs, request.failure)


def _task_entry(task: ActionTask) -> TaskEntry:
    outcome = task.outcome
    return TaskEntry(
        task.path,
        task.action.name,
        task.event_type,
        task.payload,
        task.status,
        task.attempt,
        task.started_behind,
        task.due_ms,
        None if outcome is None else Completion.of(outcome),
        task.error,
        task.emitted,
    )


def decode_entry(value: bytes) -> RunEntry:
    """Read the row of a run.

    Raises:
        StateVersionTooNew: It was written by a newer version.
        StateMismatch: It is not one of ours.
    """
    try:
        entry = _decode(value)
    except msgspec.DecodeError as error:
        raise StateMismatch(
            f"a stored run cannot be read ({error})",
            expected=f"run format {RUN_FORMAT}",
            fix="start the version of agentflow that wrote it, let it drain, then upgrade",
        ) from error
    check_format("a stored run", entry.format, RUN_FORMAT)
    return entry


def decode_run(value: bytes, state: KeyState, plan: AgentPlan, segments: dict[int, Segment]) -> Run:
    """Rebuild a run from its row. It counts in its segment again; its tasks are not started.

    Raises:
        StateVersionTooNew: The row was written by a newer version.
        StateMismatch: An action of an unfinished run is not in the plan any more, or the row is not one of ours.
    """
    entry = decode_entry(value)
    record = Record(
        entry.source,
        entry.offset,
        entry.next_offset,
        entry.value,
        entry.record_key,
        entry.timestamp_ms,
        entry.headers,
    )
    segment = None if entry.segment is None else segments[entry.segment]
    if segment is not None:
        segment.open_runs += 1
    run = Run(state, record, entry.event_type, entry.number, entry.admitted_ms, segment)
    run.is_started, run.tasks_started = entry.is_started, entry.tasks_started
    run.applied, run.written = entry.applied, entry.written
    run.sensory, run.completed = entry.sensory, entry.completed
    run.is_changed, run.is_saved = False, True
    if entry.request is not None:
        asked = entry.request
        run.request = Request(asked.is_kept, outputs=asked.outputs, failure=asked.failure, is_durable=True)
    tasks = [_task(run, task, plan) for task in entry.tasks]
    if entry.group_size:
        run.group, tasks = tasks[: entry.group_size], tasks[entry.group_size :]
    elif tasks and tasks[0].status != QUEUED:
        run.current = tasks.pop(0)
    run.queue = tasks or None
    run.is_parked = run.is_started and waits_only(run)
    return run


def _task(run: Run, entry: TaskEntry, plan: AgentPlan) -> ActionTask:
    action = plan.action_by_name.get(entry.action)
    if action is None:
        raise StateMismatch(
            f"run {run.id} is unfinished and waits for action '{entry.action}', which agent '{plan.name}' no longer has",
            where={"agent": plan.name, "run": run.id, "task": entry.path},
            expected=f"an action named '{entry.action}'",
            fix="start the former agent, let it drain (SIGTERM waits for runs in flight), then deploy the new one",
        )
    task = ActionTask(run, action, entry.event_type, entry.payload)
    task.stored_path, task.status, task.attempt = entry.path, entry.status, entry.attempt
    task.started_behind, task.due_ms, task.error = entry.started_behind, entry.due_ms, entry.error
    task.emitted = entry.emitted
    if entry.outcome is not None:
        task.outcome = entry.outcome.by(task)
    return task


def waits_only(run: Run) -> bool:
    """Whether time or a signal is all that can move the run: some task waits for it and none is running."""
    tasks = run.group if run.group is not None else [run.current] if run.current is not None else []
    is_waiting = any(task.status in (WAITING, PARKED) for task in tasks)
    return is_waiting and not any(task.status == RUNNING for task in tasks)

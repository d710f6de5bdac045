"""Records of the journal: what is durable before a run goes on.

The journal is the log of the open epoch. One format serves the log and the rows of keyed state into which a checkpoint takes
what is still needed. A record is in checkpoint N exactly if its ``epoch`` is at most N: recovery from N reads over it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from agentflow.api.events import EventType
from agentflow.core.delta import StateWrite, Table, check_format
from agentflow.core.inputs import ActionCompleted, ActionFailed, KeptWrites, SentEvent, StepCall
from agentflow.core.recorded import RecordedRun, RecordedStep, RecordedTask
from agentflow.core.records import ErrorReport, Headers
from agentflow.core.runs import ActionTask
from agentflow.core.stored_runs import Completion

JOURNAL_FORMAT = 1
_TIMER = EventType.TimerEvent


class RecordKind(enum.IntEnum):
    """Kinds of records. The numbers are part of the stored format: append, never renumber."""

    INTENT = 1  # the step is about to be called
    RESULT = 2  # it returned
    ERROR = 3  # it raised
    CANCELLED = 4  # user code cancelled it, whatever was recorded before
    COMPLETION = 5  # the action's attempt completed
    FAILURE = 6  # the action's last attempt failed, or one that leaves an account
    WAIT = 7  # it is no call, but waits for time or a signal
    ATTEMPT = 8  # a call failed, and another one follows
    WAITED = 9  # a wait has ended: by a signal, or because time was up
    ADMITTED = 10  # the run of a request begins: its row


INTENT, RESULT, ERROR, CANCELLED, COMPLETION, FAILURE, WAIT, ATTEMPT, WAITED, ADMITTED = map(int, RecordKind)


class JournalRecord(msgspec.Struct, array_like=True, gc=False):
    """One record. New fields go to the end, with a default.

    Attributes:
        format: Version of this struct.
        epoch: The epoch in which it happened.
        kind: A `RecordKind`.
        key: Canonical encoding of the key.
        run: Id of the run.
        number: The run's admission number within the key.
        task: Path of the action task.
        attempt: Attempt of the action.
        step: Path of the step within the task; empty for a completion or failure.
        function: Id of the function that the step calls.
        digest: Of the step's arguments.
        where: File and line of the call.
        is_timer: A timer started the run.
        at_ms: When it was recorded.
        payload: The encoded result, error, completion or failure.
    """

    format: int
    epoch: int
    kind: int
    key: bytes
    run: str
    number: int
    task: str
    attempt: int
    step: str = ""
    function: str = ""
    digest: bytes = b""
    where: str = ""
    is_timer: bool = False
    at_ms: int = 0
    payload: bytes = b""

    @property
    def name(self) -> str:
        """Name of its row of keyed state, under its key: a later record of the same step replaces it."""
        return row_name(self.run, self.task, self.step or str(self.attempt))


def row_name(run: str, task: str, place: str) -> str:
    """Return the name of a record's row; ``place`` is the step's path, or the attempt that ended."""
    return f"{run}\0{task}\0{place}"


encode_record = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(JournalRecord).decode
decode_completion = msgspec.msgpack.Decoder(Completion).decode


class Failure(msgspec.Struct, array_like=True, gc=False):
    """How an attempt failed: as in `ActionFailed`. New fields go to the end, with a default."""

    error: ErrorReport
    left: tuple[Sequence[SentEvent], Mapping[int, Headers] | None] | None = None
    kept: KeptWrites | None = None


decode_failure = msgspec.msgpack.Decoder(Failure).decode


def decode_record(value: bytes) -> JournalRecord:
    """Read a record.

    Raises:
        StateVersionTooNew: It was written by a newer version.
    """
    record = _decode_record(value)
    check_format("the journal", record.format, JOURNAL_FORMAT)
    return record


def encode_step(run: RecordedRun, task: str, step: RecordedStep) -> bytes:
    """Return the record of a step of the task at a path."""
    call = step.call
    return encode_record(
        JournalRecord(
            JOURNAL_FORMAT,
            step.epoch,
            step.kind,
            run.key,
            run.id,
            run.number,
            task,
            step.attempt,
            call.path,
            call.function,
            call.digest,
            call.where,
            run.is_timer,
            step.at_ms,
            step.payload,
        )
    )


def encoded_records(run: RecordedRun) -> tuple[bytes, ...]:
    """Return all records of a run."""
    return tuple(
        row
        for path, task in run.tasks.items()
        for row in (*(encode_step(run, path, step) for step in task.steps.values()), *task.endings.values())
    )


def take_record(runs: dict[str, RecordedRun], record: JournalRecord, row: bytes) -> RecordedTask:
    """Add a record to what is recorded of runs: a later one of the same step replaces an earlier one. Return its task."""
    run = runs.get(record.run)
    if run is None:
        run = runs[record.run] = RecordedRun(record.run, record.key, record.number, record.is_timer, {})
    task, kind, attempt = run.task(record.task), record.kind, record.attempt
    if kind in (COMPLETION, FAILURE):
        task.endings[attempt] = row
    else:
        call = StepCall(record.step, record.function, record.digest, record.where)
        payload, epoch, at_ms = record.payload, record.epoch, record.at_ms
        task.steps[record.step] = RecordedStep(
            call, kind, attempt, payload, epoch, at_ms, is_durable=True, is_asked=False
        )
    return task


def encode_ending_of(
    task: ActionTask, attempt: int, ending: ActionCompleted | ActionFailed, epoch: int, at_ms: int
) -> bytes:
    """Return the record of how a task ended."""
    if isinstance(ending, ActionCompleted):
        kind, payload = COMPLETION, encode_record(Completion.of(ending))
    else:
        kind, payload = FAILURE, encode_record(Failure(ending.error, ending.left or task.left, ending.kept))
    run = task.run
    return encode_record(
        JournalRecord(
            JOURNAL_FORMAT,
            epoch,
            kind,
            run.state.key,
            run.id,
            run.number,
            task.path,
            attempt,
            is_timer=run.event_type == _TIMER,
            at_ms=at_ms,
            payload=payload,
        )
    )


def decode_ending(task: ActionTask, record: JournalRecord) -> ActionCompleted | ActionFailed:
    """Return how a task ended, as its record says."""
    if record.kind == COMPLETION:
        return decode_completion(record.payload).by(task)
    failure = decode_failure(record.payload)
    return ActionFailed(task, failure.error, failure.left, failure.kept)


def rows_of(operator: int, records: Iterable[bytes]) -> list[StateWrite]:
    """Return records as rows of keyed state."""
    decoded = ((decode_record(value), value) for value in records)
    return [(Table.STEPS, operator, record.key, record.name, value) for record, value in decoded]

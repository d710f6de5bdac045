"""Unfinished runs as rows and records say: what a job is doing, for those who look from outside.

Functions of (rows, journal): nothing is started, no user code is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec

from agentflow.core.delta import StoredRow
from agentflow.core.journal_records import (
    ADMITTED,
    ATTEMPT,
    COMPLETION,
    ERROR,
    FAILURE,
    INTENT,
    RESULT,
    WAIT,
    WAITED,
    JournalRecord,
    RecordKind,
    decode_completion,
    decode_failure,
    decode_record,
)
from agentflow.core.runs import TaskStatus
from agentflow.core.stored_runs import RunEntry, TaskEntry, decode_entry
from agentflow.core.waits import WAIT_FOR, decode_outcome, decode_wait
from agentflow.runtime.redaction import Redaction
from agentflow.runtime.step_values import describe_error

_PREVIEW_CHARS = 200
_ID_BYTES = 4  # of the run, and of the wait in it


class StepView(msgspec.Struct, rename="kebab"):
    """The last record of a step, or how a task ended.

    Attributes:
        task: Path of its task.
        path: Path of the step; empty: how the task ended.
        function: What it calls, or waits for.
        kind: What the record says: intent, result, error, cancelled, wait, waited, attempt, completion, failure.
        attempt: Attempt of the action that recorded it.
        at_ms: When, epoch milliseconds.
        where: File and line of the call.
        digest: Of the arguments, as hex digits.
        preview: Result, error or deadline in short; what looks secret is left out.
        due_ms: When a wait ends, or the next call comes; null: not by itself.
        about: What the code says of a wait, for people (`ctx.wait_for(about=…)`).
    """

    task: str
    path: str
    function: str
    kind: str
    attempt: int
    at_ms: int
    where: str
    digest: str
    preview: str
    due_ms: int | None = None
    about: Any = None

    @property
    def place(self) -> str:
        """Where it stands in its run, as a signal may name it."""
        return f"{self.task}{self.path}"


class RunView(msgspec.Struct, rename="kebab"):
    """An unfinished run.

    Attributes:
        run: Its id.
        key: The decoded key.
        agent: Place of the agent in the chain.
        number: Admission number within the key.
        state: pending (behind its key, or just admitted), running, retrying, waiting (parked for time or a signal).
        admitted_ms: When it was admitted, epoch milliseconds; null: behind the last checkpoint.
        task: Path of the task that is at work; empty: none is.
        attempt: Its attempt.
        due_ms: When something happens by itself; null: never, or at once.
        steps: Its steps.
    """

    run: str
    key: Any
    agent: int
    number: int
    state: str
    admitted_ms: int | None
    task: str
    attempt: int
    due_ms: int | None
    steps: list[StepView]


class WaitView(msgspec.Struct, rename="kebab"):
    """A run that waits for a signal.

    Attributes:
        id: Names the wait, in hexadecimal digits; the same wherever it is looked at. The first digits are those of the run.
        key: The decoded key.
        name: Name of the signal.
        correlation: Of the signal.
        run: Id of the run.
        since_ms: When it began, epoch milliseconds.
        due_ms: When it ends by itself; null: never.
        about: What the code says of it, for people (`ctx.wait_for(about=…)`).
        step: Where it stands in the run.
        agent: Place of the agent in the chain.
    """

    id: str
    key: Any
    name: str
    correlation: str
    run: str
    since_ms: int
    due_ms: int | None
    about: Any
    step: str
    agent: int


def run_digits(agent: int, run: str) -> str:
    """Return the digits that the ids of a run's waits begin with."""
    return _digits(f"{agent}/{run}")


def _digits(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=_ID_BYTES).hexdigest()


def unfinished_runs(
    runs: Iterable[StoredRow],
    steps: Iterable[StoredRow],
    journal: Iterable[tuple[int, bytes]],
    checkpoint: int,
    redaction: Redaction | None = None,
) -> list[RunView]:
    """Return the unfinished runs of one subtask, in the order of their admission.

    Args:
        runs: Rows of the table of runs.
        steps: Rows of the table of steps.
        journal: (operator, record) pairs.
        checkpoint: The checkpoint that the rows are of: what the journal has of it is not news.
        redaction: What must not be seen; None: what names of fields tell.
    """
    redaction = redaction or Redaction()
    known = {(row.operator, _run_id(entry := decode_entry(row.value))): (row.key, entry) for row in runs}
    records: dict[tuple[int, str], dict[str, JournalRecord]] = {}
    for row in steps:
        record = decode_record(row.value)
        records.setdefault((row.operator, record.run), {})[record.name] = record
    for operator, value in journal:
        record = decode_record(value)
        if record.epoch <= checkpoint:
            continue
        if record.kind == ADMITTED:
            known[operator, record.run] = (record.key, decode_entry(record.payload))
        else:
            records.setdefault((operator, record.run), {})[record.name] = record
    views = []
    for (operator, run_id), (key, entry) in known.items():
        of_run = records.pop((operator, run_id), {})
        if entry.request is None or not _is_answered(of_run):
            views.append(_run_view(operator, key, run_id, entry, of_run, redaction))
    for (operator, run_id), of_run in records.items():  # read from a source behind the checkpoint
        first = next(iter(of_run.values()))
        views.append(_run_view(operator, first.key, run_id, first, of_run, redaction))
    return sorted(views, key=lambda view: (view.admitted_ms is None, view.admitted_ms or 0, view.agent, view.run))


def _run_id(entry: RunEntry) -> str:
    return f"{entry.source}/{entry.offset}"


def _is_answered(records: dict[str, JournalRecord]) -> bool:
    """Return whether what is recorded of a request's run says that it has ended: attempts did, and nothing follows them.

    The row of a request's result comes with the next checkpoint. A run with a second action on its input, of which nothing is
    recorded yet, is taken as ended too.
    """
    attempts = [record for record in records.values() if record.kind in (COMPLETION, FAILURE)]
    ended = {(record.task, record.attempt) for record in attempts}
    return bool(attempts) and all(
        _has_no_followers(record) if record.kind == COMPLETION else (record.task, record.attempt) in ended
        for record in records.values()
        if record.kind != FAILURE
    )


def _has_no_followers(record: JournalRecord) -> bool:
    return all(event_type is None for event_type, _ in decode_completion(record.payload).sent or ())


def _run_view(
    operator: int,
    key: bytes,
    run_id: str,
    known: RunEntry | JournalRecord,
    records: dict[str, JournalRecord],
    redaction: Redaction,
) -> RunView:
    steps = [_step_view(record, redaction) for record in sorted(records.values(), key=lambda record: record.at_ms)]
    task = _task_at_work(known)
    state, due_ms = "running", None
    if isinstance(known, RunEntry) and not known.is_started and not records:
        state = "pending"
    elif task is not None and task.status == TaskStatus.WAITING:
        state, due_ms = "retrying", task.due_ms
    elif all(step.kind != "intent" for step in steps):
        waits = [step for step in steps if step.kind in ("wait", "attempt")]
        if waits:
            state = "waiting"
            due_ms = min((step.due_ms for step in waits if step.due_ms is not None), default=None)
    return RunView(
        run_id,
        redaction.key(msgspec.msgpack.decode(key)),
        operator,
        known.number,
        state,
        known.admitted_ms if isinstance(known, RunEntry) else None,
        task.path if task is not None else (steps[-1].task if steps else ""),
        task.attempt if task is not None else 1,
        due_ms,
        steps,
    )


def _task_at_work(known: RunEntry | JournalRecord) -> TaskEntry | None:
    tasks = known.tasks if isinstance(known, RunEntry) else []
    at_work = (TaskStatus.RUNNING, TaskStatus.PARKED, TaskStatus.WAITING)
    return next((task for task in tasks if task.status in at_work), None)


def waits_for_signals(runs: Iterable[RunView]) -> list[WaitView]:
    """Return who waits for which signal, longest first."""
    waits = [wait_view(run, step) for run in runs for step in run.steps if step.kind == "wait" and is_for_signal(step)]
    return sorted(waits, key=lambda wait: wait.since_ms)


def is_for_signal(step: StepView) -> bool:
    """Whether a step waits for a signal, or did."""
    return step.function.startswith(f"{WAIT_FOR}:")


def wait_view(run: RunView, step: StepView) -> WaitView:
    """Return a step that waits for a signal as a wait."""
    return WaitView(
        run_digits(run.agent, run.run) + _digits(f"{run.run}/{step.place}"),
        run.key,
        step.function.partition(":")[2],
        step.preview,
        run.run,
        step.at_ms,
        step.due_ms,
        step.about,
        step.place,
        run.agent,
    )


def _step_view(record: JournalRecord, redaction: Redaction) -> StepView:
    preview, due_ms = _preview(record, redaction)
    return StepView(
        record.task,
        record.step,
        record.function,
        RecordKind(record.kind).name.lower(),
        record.attempt,
        record.at_ms,
        record.where,
        record.digest.hex(),
        preview,
        due_ms,
        _about(record, redaction),
    )


def _about(record: JournalRecord, redaction: Redaction) -> Any:  # noqa: ANN401 (a user's value)
    about = decode_wait(record.payload).about if record.kind == WAIT else b""
    return redaction.value(msgspec.msgpack.decode(about, strict=False), "about") if about else None


def _preview(record: JournalRecord, redaction: Redaction) -> tuple[str, int | None]:
    """Return in short what a record holds, and when something follows by itself."""
    kind, payload = record.kind, record.payload
    if kind == RESULT:
        return _short(payload, redaction), None
    if kind == ERROR:
        return redaction.text(describe_error(payload)), None
    if kind == WAIT:
        wait = decode_wait(payload)
        return wait.correlation, wait.due_ms
    if kind == ATTEMPT:
        wait = decode_wait(payload)
        return f"call {wait.calls} failed: {redaction.text(describe_error(wait.error))}", wait.due_ms
    if kind == WAITED:
        outcome = decode_outcome(payload)
        if outcome.value is None:
            return "time was up", None
        return f"{_short(outcome.value, redaction)} by {outcome.position}", None
    if kind == INTENT:
        return "called, and no outcome is known", None
    if kind == COMPLETION:
        return f"{len(decode_completion(payload).sent or ())} events sent", None
    if kind == FAILURE:
        return redaction.text(str(decode_failure(payload).error)), None
    return "", None


def _short(payload: bytes, redaction: Redaction) -> str:
    """Return a value as JSON, cut, without what must not be seen."""
    try:
        text = msgspec.json.encode(redaction.value(msgspec.msgpack.decode(payload, strict=False))).decode()
    except (msgspec.DecodeError, TypeError, ValueError):
        text = repr(payload)
    return text if len(text) <= _PREVIEW_CHARS else f"{text[:_PREVIEW_CHARS]}…"

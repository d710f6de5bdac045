"""Effects of the operator: orders to the shell, in the imperative. A small closed union.

The shell carries them out in order. An effect that the outside world can see (`EmitRecord`, `DeadLetter`) goes to a sink,
which holds it back until its checkpoint completes; that is the one place where "durable before visible" is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from agentflow.core.records import ErrorReport, Headers, Record
from agentflow.core.trace_context import TRACE_HEADERS

if TYPE_CHECKING:
    from agentflow.core.delta import DeltaSlices
    from agentflow.core.inputs import ActionCompleted, ActionFailed
    from agentflow.core.runs import ActionTask

Headed = Callable[["EmitRecord"], Headers]
"""Returns the headers of an output, trace context included; pure."""


class StartAction(msgspec.Struct, gc=False):  # nothing that it refers to refers to it
    """Run the user code of ``task`` once; answer with `ActionCompleted` or `ActionFailed`."""

    task: ActionTask


class CancelAction(msgspec.Struct):
    """Stop the user code of ``task``; no answer is wanted, a late one is ignored."""

    task: ActionTask


class ReplayAction(msgspec.Struct):
    """Answer a task with what the journal has of it, without running user code: apply ``ending``."""

    ending: ActionCompleted | ActionFailed


class PersistStep(msgspec.Struct, gc=False):
    """Append a record to the journal, behind all earlier ones of this operator; answer with `JournalAppended`."""

    record: bytes


class RunStep(msgspec.Struct, gc=False):
    """Call the function of a requested step; answer with `StepEnded`.

    Attributes:
        task: The task.
        path: The step.
        is_in_doubt: An earlier call may have happened: its intent is recorded, and no outcome.
        calls: Calls that have failed before.
    """

    task: ActionTask
    path: str
    is_in_doubt: bool = False
    calls: int = 0


class ResolveStep(msgspec.Struct, gc=False):
    """Give a recorded outcome to the user code that awaits it.

    Attributes:
        task: The task.
        path: The step.
        kind: `RecordKind`: RESULT, ERROR, WAITED, or CANCELLED: it never ends, as the last time.
        payload: The encoded result, error, or end of a wait.
    """

    task: ActionTask
    path: str
    kind: int
    payload: bytes


class RefuseStep(msgspec.Struct, gc=False):
    """Raise `Divergence` in user code: this is not the step that is recorded here."""

    task: ActionTask
    path: str
    message: str


class RequestCheckpoint(msgspec.Struct, gc=False):
    """Take a checkpoint soon, beside the regular ones."""


class EmitRecord(msgspec.Struct, gc=False):  # nothing that it refers to refers to it
    """Give an output to the next operator or the sink.

    Attributes:
        value: Encoded output; None: a record without a value (a tombstone).
        task: The task that sent it; with ``index`` the deterministic id of the output.
        index: Place among the events that the task sent.
        timestamp_ms: Event time of the run's input; None where it has none.
        own_headers: What the action set; None: nothing.
        headed: Makes its headers where runs are traced; None: the trace context of the input goes along as it is.
    """

    value: bytes | None
    task: ActionTask
    index: int
    timestamp_ms: int | None
    own_headers: Headers | None = None
    headed: Headed | None = None

    @property
    def event_id(self) -> str:
        """Deterministic id: the same on every attempt and after every recovery."""
        return f"{self.task.id}/{self.index}"

    @property
    def headers(self) -> Headers:
        """What the action set, and the trace context (W3C) unless the action set one."""
        if self.headed is not None:
            return self.headed(self)
        own, carried = self.own_headers or (), self.task.run.record.headers
        if carried:
            names = {name for name, _ in own}
            own += tuple(header for header in carried if header[0] in TRACE_HEADERS and header[0] not in names)
        return own


class AcknowledgeRequest(msgspec.Struct, gc=False):
    """Tell whoever submitted a request that its input is durable."""

    record: Record


class AnswerRequest(msgspec.Struct, gc=False):
    """Give outputs to whoever waits for a request; what they follow from is durable.

    Attributes:
        record: The request's record.
        first: Place of the first of ``outputs`` among all outputs of the run.
        outputs: Encoded outputs that have not left before; None: one without a value.
        is_final: The run is over.
        error: Why it ended early; None: it did not.
        is_refused: There was no run: a limit of the key, or its active run, did not let it in.
        is_kept: The answer will be a row of keyed state, with the checkpoint of this epoch.
    """

    record: Record
    first: int
    outputs: list[bytes | None]
    is_final: bool = False
    error: ErrorReport | None = None
    is_refused: bool = False
    is_kept: bool = False


class ForwardWatermark(msgspec.Struct, gc=False):
    """Give a watermark to the next operator: every output at or before it has been emitted."""

    watermark_ms: int


class DeadLetter(msgspec.Struct):
    """Give a failed record to the dead-letter sink.

    Attributes:
        record: The run's input record, untouched.
        error: The last error.
        reason: Header names and texts: job, agent, action, task, completed-tasks, attempt, …
        value: The same as one self-contained JSON document, for sinks that have no headers.
        task: The task that failed; None: the record never became a run.
    """

    record: Record
    error: ErrorReport
    reason: dict[str, str]
    value: bytes
    task: ActionTask | None = None


class SkipTask(msgspec.Struct):
    """Say that a task was dropped by its policy `skip` (nothing to do; for observers and counters)."""

    task: ActionTask
    error: ErrorReport


class ScheduleRetry(msgspec.Struct):
    """Say that a task will run again at ``due_ms`` (the operator keeps the time itself; for observers)."""

    task: ActionTask
    error: ErrorReport
    due_ms: int


class TakeSnapshot(msgspec.Struct):
    """Make checkpoint N durable.

    Attributes:
        checkpoint: N.
        slices: The epoch delta; to be consumed before the next barrier, in pieces if wanted.
        is_empty: Nothing changed since the last barrier.
    """

    checkpoint: int
    slices: DeltaSlices
    is_empty: bool


class PauseSource(msgspec.Struct, gc=False):
    """A limit is reached: fetch no more records (what is in the mailbox is still applied)."""

    limit: str


class ResumeSource(msgspec.Struct, gc=False):
    """The limit is left again."""


class Drained(msgspec.Struct, gc=False):
    """Answer to `DrainRequested`: no run is unfinished."""


class FailJob(msgspec.Struct):
    """Stop the job: the failure policy says so. Nothing of the open epoch may be committed. ``task`` is as in `DeadLetter`."""

    error: ErrorReport
    reason: dict[str, str]
    task: ActionTask | None = None


Effect = (
    StartAction
    | CancelAction
    | ReplayAction
    | PersistStep
    | RunStep
    | ResolveStep
    | RefuseStep
    | RequestCheckpoint
    | EmitRecord
    | AcknowledgeRequest
    | AnswerRequest
    | ForwardWatermark
    | DeadLetter
    | SkipTask
    | ScheduleRetry
    | TakeSnapshot
    | PauseSource
    | ResumeSource
    | Drained
    | FailJob
)

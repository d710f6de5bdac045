"""Inputs of the operator: facts, in the past tense. A small closed union; adding one is described in CONTRIBUTING.md.

Time is an argument of `Operator.apply`; every other outside value (positions, errors, bytes) is a field here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from agentflow.core.records import ErrorReport, Headers, Record

if TYPE_CHECKING:
    from agentflow.core.runs import ActionTask

SentEvent = tuple[str | None, bytes | None]
"""An event as an action sent it: (type, encoded attributes); type None marks an output (its encoded value, or no value)."""


class TimerOrder(msgspec.Struct, frozen=True, gc=False):
    """What an action asked of a timer: set it (`due_ms`), or cancel it (`due_ms` None).

    Attributes:
        name: Timer name, unique per key; setting it again replaces it.
        due_ms: Epoch milliseconds; None cancels.
        is_event_time: Due by watermark instead of by clock.
        payload: Encoded attributes of the timer event.
    """

    name: str
    due_ms: int | None
    is_event_time: bool = False
    payload: bytes = b"\x80"


class KeptWrites(msgspec.Struct, array_like=True, gc=False):
    """Writes of an attempt that happen whatever becomes of it: accounts of what has been paid.

    Attributes:
        short_term: Path → encoded value.
        sensory: The same for sensory memory.
    """

    short_term: dict[str, bytes | None]
    sensory: dict[str, bytes | None]


class RecordReceived(msgspec.Struct, gc=False):
    """A record was read and its key extracted. ``key`` is the canonical encoding of the decoded key (1 is not "1")."""

    record: Record
    key: bytes


class RequestReceived(msgspec.Struct, gc=False):
    """Somebody submitted an input; no source gives it again.

    Attributes:
        record: The input; its source and offset name the run.
        key: Canonical encoding of the key.
        is_kept: Its answer is to be a row of keyed state for a while.
        wants_receipt: Somebody waits until the input is durable: answer with `AcknowledgeRequest` then.
    """

    record: Record
    key: bytes
    is_kept: bool = False
    wants_receipt: bool = False


class RecordRejected(msgspec.Struct):
    """A record was read that cannot become a run: undecodable value, missing key, too large."""

    record: Record
    error: ErrorReport


class ActionCompleted(msgspec.Struct):
    """User code of a task returned.

    Attributes:
        task: The task as `StartAction` named it.
        sent: Events and outputs in the order in which they were sent.
        writes: Short-term memory write set, path → encoded value (None deletes); None when nothing was written.
        sensory: The same for sensory memory.
        timers: Timers set and cancelled, in order.
        headers: Place in ``sent`` → headers of that output; None when no output has any.
        kept: What happens of it also where the task fails all the same, such as by a conflict; None: nothing.
    """

    task: ActionTask
    sent: list[SentEvent] | None = None
    writes: dict[str, bytes | None] | None = None
    sensory: dict[str, bytes | None] | None = None
    timers: list[TimerOrder] | None = None
    headers: dict[int, Headers] | None = None
    kept: KeptWrites | None = None


class ActionFailed(msgspec.Struct):
    """User code of a task raised, timed out, or produced something that cannot be stored.

    Attributes:
        task: The task.
        error: Why.
        left: Of a failure that is recorded: the events whose outputs left before waits, and their headers.
        kept: What happens of it all the same; None: nothing.
    """

    task: ActionTask
    error: ErrorReport
    left: tuple[Sequence[SentEvent], Mapping[int, Headers] | None] | None = None
    kept: KeptWrites | None = None


class ActionStopped(msgspec.Struct):
    """User code of a task was stopped before its end, by the operator or to be parked, and leaves something.

    Attributes:
        task: The task.
        kept: What happens of it all the same.
    """

    task: ActionTask
    kept: KeptWrites


class StepCall(msgspec.Struct, frozen=True, gc=False):
    """Which step it is: where it stands in its task, and what it calls.

    Attributes:
        path: Path of the step within its task: scopes and counters.
        function: Id of the function.
        digest: Of the arguments.
        where: File and line of the call, for messages.
    """

    path: str
    function: str
    digest: bytes
    where: str

    def is_same(self, other: StepCall) -> bool:
        """Whether both call the same function with the same arguments."""
        return self.digest == other.digest and self.function == other.function


class WaitOrder(msgspec.Struct, frozen=True, gc=False):
    """What a step waits for instead of calling something.

    Attributes:
        duration_ms: Longest wait; None: no end.
        signal: Name of the signal that ends it; empty: none does.
        correlation: Tells apart waits for the same name.
        about: What people are shown of it, encoded; empty: nothing.
    """

    duration_ms: int | None
    signal: str = ""
    correlation: str = ""
    about: bytes = b""


class StepRequested(msgspec.Struct):
    """User code of a task called a step.

    Attributes:
        task: The task.
        call: The step.
        needs_intent: Its policy for a call in doubt needs a record before the call.
        order: What it waits for, of a step that is a wait; None: it calls.
    """

    task: ActionTask
    call: StepCall
    needs_intent: bool = False
    order: WaitOrder | None = None


class WaitRequested(msgspec.Struct):
    """User code of a task is about to wait: what it has sent so far leaves first.

    Attributes:
        request: The wait, as a step.
        sent: As in `ActionCompleted`: events and outputs so far.
        headers: As in `ActionCompleted`.
    """

    request: StepRequested
    sent: list[SentEvent]
    headers: dict[int, Headers] | None


class StepEnded(msgspec.Struct):
    """A step that was run came to an end.

    Attributes:
        task: The task.
        call: The step.
        kind: `RecordKind`: RESULT, ERROR, CANCELLED by user code, or ATTEMPT: it failed and will be called again.
        payload: The encoded result or error.
        retry: Of an ATTEMPT: when the next call comes.
    """

    task: ActionTask
    call: StepCall
    kind: int
    payload: bytes
    retry: StepRetry | None = None


class StepRetry(msgspec.Struct, frozen=True, gc=False):
    """What follows a failed call of a step.

    Attributes:
        calls: Calls that have failed, this one included.
        wait_ms: Time until the next one.
        needs_intent: The next call needs a record before it.
    """

    calls: int
    wait_ms: int
    needs_intent: bool


class ParkRequested(msgspec.Struct):
    """May the coroutine of a task that only waits be closed? It may if the task is `PARKED` behind this; it then starts again."""

    task: ActionTask


class Signal(msgspec.Struct, frozen=True):
    """A message to runs of a key that wait for it.

    Attributes:
        name: What it says.
        value: Encoded value.
        correlation: Tells apart signals of the same name; empty where the wait has none.
        run: Only for this run; empty: for whichever waits longest.
        step: Only for the wait at this place of the run: path of its task, and its own; empty: wherever.
    """

    name: str
    value: bytes
    correlation: str = ""
    run: str = ""
    step: str = ""

    def is_for(self, run: str, step: str) -> bool:
        """Whether a wait that has its name and correlation is meant."""
        return self.run in ("", run) and self.step in ("", step)


class SignalReceived(msgspec.Struct):
    """A signal came.

    Attributes:
        record: The record that it came in; its position tells whether it was taken before.
        key: Canonical encoding of the key.
        signal: What it says.
    """

    record: Record
    key: bytes
    signal: Signal


class CancelRequested(msgspec.Struct):
    """Somebody wants a run to stop.

    Attributes:
        record: The record that says so.
        key: Canonical encoding of the key.
        run: Id of the run; empty: the one that is active.
        reason: Why; the `CancelEvent` has it.
    """

    record: Record
    key: bytes
    run: str = ""
    reason: str = ""


class RetryRequested(msgspec.Struct):
    """Somebody wants what waits for a retry to be tried now.

    Attributes:
        record: The record that says so.
        key: Canonical encoding of the key.
    """

    record: Record
    key: bytes


class JournalAppended(msgspec.Struct, gc=False):
    """The operator's next ``count`` records, in the order of their `PersistStep`, are durable."""

    count: int


class WatermarkReceived(msgspec.Struct, gc=False):
    """No record with an earlier or equal event time will follow (except late ones)."""

    watermark_ms: int


class TimeAdvanced(msgspec.Struct, gc=False):
    """The clock reached `Operator.next_due_ms`: processing-time timers and retries may be due."""


class BarrierReceived(msgspec.Struct):
    """Checkpoint N begins: everything applied so far belongs to it.

    Attributes:
        checkpoint: N.
        positions: Source label → next offset, behind the last applied record; only the first operator of a chain has them.
    """

    checkpoint: int
    positions: dict[str, int] = {}


class CheckpointCompleted(msgspec.Struct, gc=False):
    """Checkpoint N is durable and applied to keyed state.

    Attributes:
        checkpoint: N.
        is_skipped: Nothing had changed in any operator: there is no checkpoint N, and the next barrier has its number again.
    """

    checkpoint: int
    is_skipped: bool = False


class DrainRequested(msgspec.Struct, gc=False):
    """No record will follow; `Drained` is wanted when the last run has ended.

    Attributes:
        awaits_all: Runs that sleep or wait for a signal are waited for too, and timers of processing time that are due soon; else they
            stay state.
    """

    awaits_all: bool = True


Input = (
    RecordReceived
    | RequestReceived
    | RecordRejected
    | ActionCompleted
    | ActionFailed
    | ActionStopped
    | StepRequested
    | StepEnded
    | WaitRequested
    | ParkRequested
    | SignalReceived
    | CancelRequested
    | RetryRequested
    | JournalAppended
    | WatermarkReceived
    | TimeAdvanced
    | BarrierReceived
    | CheckpointCompleted
    | DrainRequested
)

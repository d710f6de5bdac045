"""Runs and action tasks: the mutable records that the operator moves through their life.

    run     PENDING (behind a busy key) → ACTIVE → ended        parked while all it waits for is time or a signal
    task    QUEUED → RUNNING → COMPLETED | SKIPPED | DEAD       RUNNING ⇄ WAITING (retry), RUNNING ⇄ PARKED, → CANCELLED

A task's id is a path: ``t/j:name`` is the task of action ``name`` for the j-th event of task ``t``; ``t/j`` is that event's
id. Both are built only when somebody looks, from the chain of parents.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agentflow.core.inputs import ActionCompleted, SentEvent
from agentflow.core.recorded import RecordedTask
from agentflow.core.records import ErrorReport, Headers, Record
from agentflow.core.segments import Segment
from agentflow.plan.plan import Action


class TaskStatus(enum.IntEnum):
    """Life of an action task. The numbers are stored: append, never renumber."""

    QUEUED = 0
    RUNNING = 1  # user code was started and has not answered
    WAITING = 2  # for its next attempt
    COMPLETED = 3  # ended, its events and writes are not applied yet (parallel group)
    SKIPPED = 4  # ended by policy `skip`
    DEAD = 5  # ended by policy `dead-letter`; ends the run when its turn comes
    CANCELLED = 6
    PARKED = 7  # for time or a signal; its coroutine is closed


TASK_TRANSITIONS: dict[TaskStatus, frozenset[TaskStatus]] = {
    TaskStatus.QUEUED: frozenset({TaskStatus.RUNNING, TaskStatus.SKIPPED, TaskStatus.DEAD, TaskStatus.CANCELLED}),
    TaskStatus.RUNNING: frozenset(
        {
            TaskStatus.WAITING,
            TaskStatus.PARKED,
            TaskStatus.COMPLETED,
            TaskStatus.SKIPPED,
            TaskStatus.DEAD,
            TaskStatus.CANCELLED,
        }
    ),
    TaskStatus.WAITING: frozenset({TaskStatus.RUNNING, TaskStatus.CANCELLED}),
    TaskStatus.PARKED: frozenset({TaskStatus.RUNNING, TaskStatus.CANCELLED}),
    TaskStatus.COMPLETED: frozenset({TaskStatus.WAITING, TaskStatus.SKIPPED, TaskStatus.DEAD, TaskStatus.CANCELLED}),
    TaskStatus.SKIPPED: frozenset(),
    TaskStatus.DEAD: frozenset(),
    TaskStatus.CANCELLED: frozenset(),
}
"""COMPLETED is left again only by a `MemoryConflict`, found when the parallel group is applied."""

# Comparing with a plain int is several times faster than an enum attribute; the hot path uses these.
QUEUED, RUNNING, WAITING, COMPLETED, SKIPPED, DEAD, CANCELLED, PARKED = (int(status) for status in TaskStatus)


class KeyState:
    """What the operator holds of one key in process memory.

    No Struct, as the others are: it is made once per key and changed four times per run, and that is faster here.

    Attributes:
        key: Canonical encoding of the decoded key.
        memory: Short-term memory by path as far as it is cached; None: known to be absent. Holds every write that is not
            yet applied to keyed state.
        is_loaded: ``memory`` is complete: a path that is not in it does not exist.
        run: The run that is active; None when the key is idle.
        pending: Runs behind it, in admission order; None when there never was one.
        next_number: Admission number of the key's next input; may start again at 0 when the key is idle and all it did is
            in a completed checkpoint.
        ended_in: Epoch in which the key's last run ended.
        size: Bytes that the cache accounts for ``memory``.
        destination: The sink's note of where outputs of this key go; None when it has made none.
    """

    __slots__ = (
        "destination",
        "ended_in",
        "is_loaded",
        "key",
        "memory",
        "next_number",
        "pending",
        "run",
        "size",
    )

    def __init__(self, key: bytes, memory: dict[str, bytes | None]) -> None:
        self.key = key
        self.memory = memory
        self.is_loaded = False
        self.run: Run | None = None
        self.pending: deque[Run] | None = None
        self.next_number = 0
        self.ended_in = 0
        self.size = 0
        self.destination: Any = None


class Request(msgspec.Struct, eq=False, gc=False):
    """What a run has for somebody who waits for its answer.

    Attributes:
        is_kept: The answer is a row of keyed state for a while.
        wants_receipt: Somebody waits until the input is durable.
        outputs: Encoded outputs so far; None: one without a value.
        failure: Why the run ends early; None: it does not.
        told: How many of the outputs have left.
        is_durable: The journal, or a checkpoint, has the input.
    """

    is_kept: bool
    wants_receipt: bool = False
    outputs: list[bytes | None] = []
    failure: ErrorReport | None = None
    told: int = 0
    is_durable: bool = False

    def fail(self, error: ErrorReport) -> None:
        """Note why the run ends; the first reason counts."""
        self.failure = self.failure or error


class Run(msgspec.Struct, eq=False, weakref=True):
    """The processing of one input of a key.

    Attributes:
        state: The key's state.
        record: The input: a source record, an upstream output, or a timer.
        event_type: Type of the input event.
        number: Admission number within the key.
        admitted_ms: The run's clock.
        segment: The segment whose watermark waits for this run; None while the key is parked.
        current: The task that runs alone; None in a parallel group.
        group: Tasks of the parallel group in routing order, until all are applied; None outside one.
        applied: How many members of the group are applied.
        written: Path → (index of the group's member that wrote it, whether it is a leaf and not the mark of an object).
        queue: Tasks that are not started, in routing order. A list, because there is rarely more than one: a deque takes 600
            bytes of each waiting run.
        sensory: Sensory memory by path.
        completed: Completed tasks of a run that has more than one.
        tasks_started: For the limit `run.tasks-max`.
        is_started: False while it waits behind a busy key.
        is_parked: Nothing but time or a signal can move it.
        is_sleeping: It is parked by its own will, and not for a retry; it counts against another limit.
        is_changed: Its stored row, if any, is out of date.
        is_frozen: It belongs to an epoch delta that is being written and must be captured before it changes.
        is_saved: Keyed state has a row for it, or will have one when the delta being written completes.
        request: Of a run whose answer somebody waits for.
    """

    state: KeyState
    record: Record
    event_type: str
    number: int
    admitted_ms: int
    segment: Segment | None
    current: ActionTask | None = None
    group: list[ActionTask] | None = None
    applied: int = 0
    written: dict[str, tuple[int, bool]] | None = None
    queue: list[ActionTask] | None = None
    sensory: dict[str, bytes | None] | None = None
    completed: list[str] | None = None
    tasks_started: int = 0
    is_started: bool = False
    is_parked: bool = False
    is_sleeping: bool = False
    is_changed: bool = True
    is_frozen: bool = False
    is_saved: bool = False
    request: Request | None = None

    @property
    def id(self) -> str:
        """Source position of the input."""
        return self.record.run_id

    @property
    def key(self) -> bytes:
        """Canonical encoding of the key."""
        return self.state.key

    @property
    def timestamp_ms(self) -> int | None:
        """Event time of the input."""
        return self.record.timestamp_ms

    @property
    def tasks(self) -> list[ActionTask]:
        """Every task that has not been applied, in routing order."""
        started = self.group if self.group is not None else [self.current] if self.current is not None else []
        return [*started, *(self.queue or ())]

    @property
    def is_over(self) -> bool:
        """Whether it has begun and has no task left."""
        return self.is_started and self.current is None and self.group is None and not self.queue


class ActionTask(msgspec.Struct, eq=False):
    """One action, triggered by one event of a run.

    Attributes:
        parent: The task whose event this is; None for the input event and after a restore.
        index: Place of the event among those its task sent.
        payload: Encoded attributes; of the input event: the record's value, which may be none.
        attempt: Number of the current (or next) attempt, from 1.
        started_behind: How many members of the parallel group were applied when the attempt started.
        outcome: Of a COMPLETED member of a parallel group.
        error: Why it is DEAD, or, while QUEUED, why it cannot start (its condition failed).
        due_ms: When a WAITING task starts again.
        stored_path: Its path, when it was restored, or has records.
        recorded: Its records in the journal; None while there are none.
        emitted: How many of the events that it sends have been looked at for outputs: those of before a wait have left.
        left: These events, and headers of outputs; None: there are none, or a checkpoint has them.
        began_ns: When the attempt began, by a clock of the shell's; 0: nobody looks. The core does not read it.
    """

    run: Run
    action: Action
    event_type: str
    payload: bytes | None
    parent: ActionTask | None = None
    index: int = 0
    status: int = QUEUED
    attempt: int = 1
    started_behind: int = 0
    outcome: ActionCompleted | None = None
    error: ErrorReport | None = None
    due_ms: int = 0
    stored_path: str | None = None
    recorded: RecordedTask | None = None
    emitted: int = 0
    left: tuple[Sequence[SentEvent], Mapping[int, Headers] | None] | None = None
    began_ns: int = 0

    @property
    def path(self) -> str:
        """Path of the task within its run: ``0:score/1:alert``."""
        if self.stored_path is not None:
            return self.stored_path
        if self.parent is None:
            return f"{self.index}:{self.action.name}"
        parts: list[str] = []
        task: ActionTask | None = self
        while task is not None:
            if task.stored_path is not None:
                parts.append(task.stored_path)
                break
            parts.append(f"{task.index}:{task.action.name}")
            task = task.parent
        return "/".join(reversed(parts))

    @property
    def id(self) -> str:
        """Path of the task, with the run."""
        return f"{self.run.id}/{self.path}"

    @property
    def event_id(self) -> str:
        """Id of the event that triggered the task."""
        return f"{self.run.id}/{self.path.rpartition(':')[0]}"

    @property
    def upstream_event_id(self) -> str | None:
        """Id of the event whose action sent this task's event; None for the input."""
        parent = self.path.rpartition("/")[0]
        return f"{self.run.id}/{parent.rpartition(':')[0]}" if parent else None

    @property
    def upstream_action_name(self) -> str | None:
        """The action that sent this task's event; None for the input."""
        parent = self.path.rpartition("/")[0]
        return parent.rpartition(":")[2] if parent else None

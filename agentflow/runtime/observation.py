"""What an operator is told in a turn and what follows, for those who only look: event log, metrics, traces.

Nobody looks, nothing is collected: the subtask then starts actions by the runner itself. Else `Observation.start` stands in its
place, and what was collected goes to the observers behind each turn, in one call.

Rejected: telling of each fact when it happens (a call for each costs more than what most observers do with it); an effect of the
core for the end of a run (a run without tasks is over, and whoever looks can see that).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import msgspec

from agentflow.core.inputs import (
    ActionCompleted,
    ActionFailed,
    RecordReceived,
    RequestReceived,
    StepCall,
    WaitRequested,
)
from agentflow.core.runs import ActionTask

if TYPE_CHECKING:
    import contextvars

    from agentflow.runtime.ports import Observer

Answer = ActionCompleted | ActionFailed
monotonic_ns = time.perf_counter_ns


class StepSeen(msgspec.Struct):
    """One call of a step that has ended, or a recorded outcome that answered it.

    Attributes:
        task: The task.
        call: The step.
        began_ns: When it was called; 0: it was not, the record answered.
        ended_ns: When the call ended, or was answered.
        calls: How many calls have been made, this one included; 0: the record answered.
        error: What it raised, as ``Type: text``; empty: it returned.
        is_final: Whether the outcome is the step's; else another call follows.
    """

    task: ActionTask
    call: StepCall
    began_ns: int
    ended_ns: int
    calls: int = 1
    error: str = ""
    is_final: bool = True


class Turn(msgspec.Struct):
    """What one operator was told in one turn. Times are those of `monotonic_ns`. Its lists are emptied when the observers return.

    Attributes:
        records: Records that were admitted, in order.
        started: Attempts that began and go on behind this turn.
        answers: (answer, attempt, when the attempt began, when it answered), in order.
        left: Waits that let outputs leave: (the wait, place of the first event that had not been looked at).
        steps: Steps that were called, or answered from the journal.
        notes: All other facts, in order: what follows from failures, cancellations and limits, signals, watermarks, checkpoints.
    """

    records: list[RecordReceived | RequestReceived]
    started: list[ActionTask]
    answers: list[tuple[Answer, int, int, int]]
    left: list[tuple[WaitRequested, int]]
    steps: list[StepSeen]
    notes: list[object]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.records or self.answers or self.notes or self.started or self.left or self.steps)


class Observation:
    """Collects what happens to one operator.

    Attributes:
        turn: What was collected since the observers were told.
        context_of: Returns the context that an attempt runs in, None: that of the turn. For whoever traces what user code calls.

    Args:
        observers: Told behind each turn.
        start: Starts an attempt: that of the action runner.
    """

    def __init__(self, observers: Sequence[Observer], start: Callable[[ActionTask], Answer | None]) -> None:
        self.turn = Turn([], [], [], [], [], [])
        self._observers = list(observers)
        self._start = start
        contexts = [context_of for one in observers if (context_of := getattr(one, "context_of", None)) is not None]
        self.context_of: Callable[[ActionTask], contextvars.Context | None] | None = contexts[0] if contexts else None

    def start(self, task: ActionTask) -> Answer | None:
        """Start an attempt, as the action runner does, and measure it."""
        context = None if self.context_of is None else self.context_of(task)
        task.began_ns = began_ns = monotonic_ns()
        answer = self._start(task) if context is None else context.run(self._start, task)
        if answer is None:
            self.turn.started.append(task)
        else:
            self.turn.answers.append((answer, task.attempt, began_ns, monotonic_ns()))
        return answer

    def see(self, received: object) -> None:
        """Take an input that comes late, before it is applied."""
        kind = type(received)
        if kind is ActionCompleted or kind is ActionFailed:
            task = received.task  # type: ignore[attr-defined]
            self.turn.answers.append((cast("Answer", received), task.attempt, task.began_ns, monotonic_ns()))
        elif kind is WaitRequested:
            wait = cast("WaitRequested", received)
            self.turn.left.append((wait, wait.request.task.emitted))

    def flush(self, now_ms: int) -> None:
        """Tell the observers."""
        turn = self.turn
        if turn.is_empty:
            return
        for observer in self._observers:
            observer.observe(turn, now_ms)
        for collected in (turn.records, turn.started, turn.answers, turn.left, turn.steps, turn.notes):
            collected.clear()

"""What an operator is told in a turn and what follows, for those who only look: event log, metrics, traces.

Nobody looks, nothing is collected: the subtask then starts actions by the runner itself. Else `Observation.start` stands in its
place, and what was collected goes to the observers behind each turn, in one call.

Rejected: telling of each fact when it happens (a call for each costs more than what most observers do with it); an effect of the
core for the end of a run (a run without tasks is over, and whoever looks can see that).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from agentflow.api.codecs import JSON, Codec
from agentflow.api.encoding import encode_msgpack
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


class StepBegan(msgspec.Struct):
    """A step is being called; among the notes of a turn, where an observer wants progress.

    Attributes:
        task: The task.
        call: The step.
        began_ns: When.
        calls: Number of the call, from 1.
    """

    task: ActionTask
    call: StepCall
    began_ns: int
    calls: int


class ExecutionReported(msgspec.Struct):
    """What user code has reported (`agentflow.api.executions`); among the notes of a turn.

    Attributes:
        task: The task that it did.
        attempt: Its attempt.
        status: Of `ExecutionStatus`: started, success or failed.
        entity_type: What is executed: llm, tool, …
        entity_name: Its name.
        metadata: What else is known of it, as msgpack; empty: nothing.
        at_ns: When.
        step: Path of the step inside of which it is; empty: of none.
        error: What it raised, as ``Type: text``.
        category: Why it failed; empty: nobody said.
    """

    task: ActionTask
    attempt: int
    status: str
    entity_type: str
    entity_name: str
    metadata: bytes
    at_ns: int
    step: str = ""
    error: str = ""
    category: str = ""


class Turn(msgspec.Struct):
    """What one operator was told in one turn. Times are those of `monotonic_ns`. Its lists are emptied when the observers return.

    Attributes:
        records: Records that were admitted, in order.
        started: Attempts that began and go on behind this turn.
        answers: (answer, attempt, when the attempt began, when it answered), in order. Times are 0 where no observer wants them: each
            says so by an attribute `wants_times` that is false.
        left: Waits that let outputs leave: (the wait, place of the first event that had not been looked at).
        steps: Steps that were called, or answered from the journal.
        notes: All other facts, in order: what follows from failures, cancellations and limits, signals, watermarks, checkpoints, and
            what user code reports.
        input_codec: How values of records are encoded.
        output_codec: How outputs are.
    """

    records: list[RecordReceived | RequestReceived]
    started: list[ActionTask]
    answers: list[tuple[Answer, int, int, int]]
    left: list[tuple[WaitRequested, int]]
    steps: list[StepSeen]
    notes: list[object]
    input_codec: Codec = JSON
    output_codec: Codec = JSON

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.records or self.answers or self.notes or self.started or self.left or self.steps)


class Observation:
    """Collects what happens to one operator.

    Attributes:
        turn: What was collected since the observers were told.
        context_of: Returns the context that an attempt runs in, None: that of the turn. For whoever traces what user code calls.
        wants_progress: Whether an observer wants to be told soon of steps that begin and of reports (it says so by an attribute of this
            name). Else reports are told with the next turn, whenever it comes.
        step_path: Returns the path of the step that user code is called by; empty: by none.
        wake: Lets a turn come soon; called on the loop.

    Args:
        observers: Told behind each turn.
        start: Starts an attempt: that of the action runner.
        input_codec: How values of records are encoded.
        output_codec: How outputs are.
    """

    def __init__(
        self,
        observers: Sequence[Observer],
        start: Callable[[ActionTask], Answer | None],
        input_codec: Codec = JSON,
        output_codec: Codec = JSON,
    ) -> None:
        self.turn = Turn([], [], [], [], [], [], input_codec, output_codec)
        self._observers = list(observers)
        self._start = start
        contexts = [context_of for one in observers if (context_of := getattr(one, "context_of", None)) is not None]
        self.context_of: Callable[[ActionTask], contextvars.Context | None] | None = contexts[0] if contexts else None
        self.wants_progress = any(getattr(one, "wants_progress", False) for one in observers)
        self.step_path: Callable[[], str] = str
        self.wake: Callable[[], object] = bool
        if not any(getattr(one, "wants_times", True) for one in observers) and self.context_of is None:
            self.start = self._untimed_start()  # type: ignore[method-assign,assignment]  # half the cost, where nobody wants the other half
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

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

    def _untimed_start(self) -> Callable[[ActionTask], Answer | None]:
        start_attempt, started, answered = self._start, self.turn.started.append, self.turn.answers.append

        def start(task: ActionTask) -> Answer | None:
            answer = start_attempt(task)
            if answer is None:
                started(task)
            else:
                answered((answer, task.attempt, 0, 0))
            return answer

        return start

    def see(self, received: object) -> None:
        """Take an input that comes late, before it is applied."""
        kind = type(received)
        if kind is ActionCompleted or kind is ActionFailed:
            task = received.task  # type: ignore[attr-defined]
            self.turn.answers.append((cast("Answer", received), task.attempt, task.began_ns, monotonic_ns()))
        elif kind is WaitRequested:
            wait = cast("WaitRequested", received)
            self.turn.left.append((wait, wait.request.task.emitted))

    def begin_step(self, task: ActionTask, call: StepCall, began_ns: int, calls: int) -> None:
        """Take a call of a step that begins; from any thread."""
        self._note(StepBegan(task, call, began_ns, calls))

    def report(
        self,
        task: ActionTask,
        status: str,
        entity_type: str,
        entity_name: str,
        metadata: Mapping[str, Any] | None = None,
        error: BaseException | None = None,
        category: str | None = None,
    ) -> None:
        """Take a report of user code; from any thread. It raises nothing, whatever it is given."""
        encoded = b""
        if metadata:
            try:
                encoded = encode_msgpack(dict(metadata))
            except (TypeError, ValueError, OverflowError, RecursionError):
                encoded = encode_msgpack({str(name): repr(value) for name, value in metadata.items()})
        text = "" if error is None else f"{type(error).__name__}: {error}".removesuffix(": ")
        named, at_ns, step = (str(entity_type), str(entity_name)), monotonic_ns(), self.step_path()
        self._note(ExecutionReported(task, task.attempt, status, *named, encoded, at_ns, step, text, category or ""))

    def see_step(self, step: StepSeen) -> None:
        """Take a call of a step that has ended; from any thread."""
        if threading.get_ident() == self._thread:
            self.turn.steps.append(step)
        else:
            self._from_thread(self.turn.steps.append, step)

    def _note(self, note: object) -> None:
        if threading.get_ident() != self._thread:
            self._from_thread(self._note, note)
            return
        self.turn.notes.append(note)
        if self.wants_progress:
            self.wake()

    def _from_thread(self, take: Callable[[Any], object], fact: object) -> None:
        """Let the loop take what a thread has to tell; the lists of a turn are the loop's own."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody looks any more
            self._loop.call_soon_threadsafe(take, fact)

    def flush(self, now_ms: int) -> None:
        """Tell the observers."""
        turn = self.turn
        if turn.is_empty:
            return
        for observer in self._observers:
            observer.observe(turn, now_ms)
        for collected in (turn.records, turn.started, turn.answers, turn.left, turn.steps, turn.notes):
            collected.clear()

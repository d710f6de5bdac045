"""What an operator is told in a turn and what follows, for those who only look: event log, metrics, traces.

Nobody looks, nothing is collected: the subtask then starts actions by the runner itself. Else `Observation.start` stands in its
place, and what was collected goes to the observers behind each turn, in one call.

Whoever looks at each attempt pays for it: a clock is read twice, and what the attempt did stays in memory until the turn ends, which
is a twentieth of a small record. So an observer says whether it `needs_answers`. Where none does, attempts that answer at once are
measured where they run, as the observer sees fit (`measured`), and only those that answer later are collected.

A job goes on, whatever those who look at it do: what an observer raises is counted and told in the log (`Observation.failures`).

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
from agentflow.api.encoding import encode_msgpack, text_of
from agentflow.core.inputs import (
    ActionCompleted,
    ActionFailed,
    RecordReceived,
    RequestReceived,
    StepCall,
    WaitRequested,
)
from agentflow.core.runs import ActionTask
from agentflow.runtime.logs import logger_of

if TYPE_CHECKING:
    import contextvars

    from agentflow.runtime.ports import Observer

_TOLD_EVERY_NS = 10_000_000_000
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
        step_call: Number of the call of that step.
        content: What was said, where an observer wants that; for nobody else.
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
    step_call: int = 0
    content: Mapping[str, Any] = {}


class JournalSeen(msgspec.Struct):
    """One append to the journal of the subtask, told to the observers of its first operator.

    Attributes:
        records: How many records were in it.
        began_ns: When it began.
        ended_ns: When they were durable.
    """

    records: int
    began_ns: int
    ended_ns: int


class Turn(msgspec.Struct):
    """What one operator was told in one turn. Times are those of `monotonic_ns`. Its lists are emptied when the observers return.

    Attributes:
        records: Records that were admitted, in order; empty where no observer needs answers.
        started: Attempts that began and go on behind this turn; the same.
        answers: (answer, attempt, when the attempt began, when it answered), in order; where no observer needs them, only of attempts
            that answered behind their turn, or run in a context of an observer. Times are 0 where no observer wants them.
        left: Waits that let outputs leave: (the wait, place of the first event that had not been looked at).
        steps: Steps that were called, or answered from the journal.
        notes: All other facts, in order: what follows from failures, cancellations and limits, signals, watermarks, checkpoints,
            the journal, and what user code reports.
        admitted: How many records were admitted.
        emitted: How many outputs were given to the next operator, or the sink.
        input_codec: How values of records are encoded.
        output_codec: How outputs are.
    """

    records: list[RecordReceived | RequestReceived]
    started: list[ActionTask]
    answers: list[tuple[Answer, int, int, int]]
    left: list[tuple[WaitRequested, int]]
    steps: list[StepSeen]
    notes: list[object]
    admitted: int = 0
    emitted: int = 0
    input_codec: Codec = JSON
    output_codec: Codec = JSON

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        is_quiet = not (self.records or self.answers or self.notes or self.started or self.left or self.steps)
        return is_quiet and not (self.admitted or self.emitted)


Start = Callable[[ActionTask], Answer | None]
"""Starts an attempt; None: it answers later."""


class Observation:
    """Collects what happens to one operator.

    What an observer may have beside `Observer.observe`, as attributes:

    - ``needs_answers``, False: it does not need every record and answer (True where it says nothing);
    - ``wants_times``, False: it does not need to know when attempts began and ended (True where it says nothing);
    - ``wants_progress``, True: it wants to be told soon of steps that begin and of reports. Else these come with the next turn;
    - ``measured``, a function `Start` → `Start`: measures attempts that answer at once, where no observer needs answers. An attempt
      that answers later is in `Turn.answers`, and its `ActionTask.began_ns` is to be set. What it returns is not guarded, for that
      would cost a call for each attempt: beside ``start`` it may do nothing that can raise. The same goes for ``choosing``;
    - ``context_of``: returns the context that an attempt runs in, None: that of the turn. For whoever traces what user code calls;
    - ``choosing``, which stands for `start_in_context`, and takes a call less;
    - ``wants_reports``: called with a task, returns whether it wants what user code reports in it (always where it says nothing);
    - ``wants_content``: called with a task, returns whether it wants to see what models and tools are told and say in it;
    - ``enter_step``: called with task, step and number of the call before the function of a step is called, in the context that it
      is called in; returns what is called behind it, None: nothing.

    Attributes:
        turn: What was collected since the observers were told.
        failures: Calls of observers that raised.
        start: Starts an attempt, as the action runner does.
        context_of: That of the first observer which has one.
        enter_step: The same.
        wants_content: The same.
        wants_reports: Whether any observer wants the reports of a task; None: always.
        needs_answers: Whether an observer needs every record and answer.
        wants_progress: Whether an observer wants to be told soon of steps that begin and of reports.
        current_step: Returns the path of the step that user code is called by, and the number of the call; empty: by none.
        scrub: Returns a text without the secrets of resources.
        wake: Lets a turn come soon; called on the loop.

    Args:
        observers: Told behind each turn.
        start: Starts an attempt: that of the action runner.
        input_codec: How values of records are encoded.
        output_codec: How outputs are.
    """

    def __init__(
        self, observers: Sequence[Observer], start: Start, input_codec: Codec = JSON, output_codec: Codec = JSON
    ) -> None:
        self.turn = Turn([], [], [], [], [], [], input_codec=input_codec, output_codec=output_codec)
        self.failures = 0
        self._told_next_ns = 0
        self._observers = list(observers)
        self._run = start
        self._context_of = self._first("context_of")
        self.context_of: Callable[[ActionTask], contextvars.Context | None] | None
        self.context_of = None if self._context_of is None else self._guarded(self._context_of)
        self.enter_step: Callable[[ActionTask, StepCall, int], Callable[[], object] | None] | None
        enter_step = self._first("enter_step")
        self.enter_step = None if enter_step is None else self._guarded_step(self._guarded(enter_step))
        self.needs_answers = any(getattr(observer, "needs_answers", True) for observer in observers)
        self.wants_progress = any(getattr(observer, "wants_progress", False) for observer in observers)
        self.wants_reports = self._reports_wanted()
        self.wants_content: Callable[[ActionTask], bool] | None
        wants_content = self._first("wants_content")
        self.wants_content = None if wants_content is None else self._guarded(wants_content)
        self.current_step: Callable[[], tuple[str, int]] = lambda: ("", 0)
        self.scrub: Callable[[str], str] = str
        self.wake: Callable[[], object] = bool
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        wants_times = any(getattr(observer, "wants_times", True) for observer in observers)
        measured = self._guarded(self._first("measured") or _nothing)
        if self.needs_answers and (wants_times or self.context_of is not None):
            self.start: Start = self._start_seen
        elif self.needs_answers:
            self.start = self._untimed_start()
        elif self.context_of is None:
            self.start = measured(start) or _noted(start)
        else:
            choice = self.context_of, measured(start) or start, self._see_start
            choosing = self._guarded(self._first("choosing") or _nothing)
            self.start = choosing(*choice) or start_in_context(*choice)

    def _first(self, name: str) -> Any:  # noqa: ANN401 (whatever an observer has)
        return next((found for one in self._observers if (found := getattr(one, name, None)) is not None), None)

    def _reports_wanted(self) -> Callable[[ActionTask], bool] | None:
        asked = [getattr(observer, "wants_reports", None) for observer in self._observers]
        wanted = [self._guarded(one) for one in asked if one is not None]
        return None if len(wanted) < len(asked) else lambda task: any(wants(task) for wants in wanted)

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what calls a function of an observer, and returns None where that raises."""

        def call(*arguments: object) -> Any:  # noqa: ANN401 (whatever the function returns)
            try:
                return function(*arguments)
            except Exception as error:  # noqa: BLE001 (an edge: the job goes on, whatever telemetry does)
                self._see_failure(error)
                return None

        return call

    def _guarded_step(self, enter_step: Callable[..., Any]) -> Callable[..., Any]:
        def enter(task: ActionTask, call: StepCall, calls: int) -> Callable[[], object] | None:
            leave = enter_step(task, call, calls)
            return None if leave is None else self._guarded(leave)

        return enter

    def _see_failure(self, error: Exception) -> None:
        """Count what an observer raised, and say so: at once, then every ten seconds at most. From any thread."""
        self.failures += 1
        now_ns = time.monotonic_ns()
        if now_ns >= self._told_next_ns:
            self._told_next_ns = now_ns + _TOLD_EVERY_NS
            logger_of("agentflow.engine").warning(
                "an observer failed; the job goes on", error=f"{type(error).__name__}: {error}", failures=self.failures
            )

    def _start_seen(self, task: ActionTask) -> Answer | None:
        """Start an attempt, measure it, and collect what came of it."""
        context = None
        if self._context_of is not None:
            try:
                context = self._context_of(task)
            except Exception as error:  # noqa: BLE001 (an edge: the job goes on, whatever telemetry does)
                self._see_failure(error)
        return self._see_start(task, context)

    def _see_start(self, task: ActionTask, context: contextvars.Context | None) -> Answer | None:
        task.began_ns = began_ns = monotonic_ns()
        answer = self._run(task) if context is None else context.run(self._run, task)
        if answer is not None:
            self.turn.answers.append((answer, task.attempt, began_ns, monotonic_ns()))
        elif self.needs_answers:
            self.turn.started.append(task)
        return answer

    def _untimed_start(self) -> Start:
        start_attempt, started, answered = self._run, self.turn.started.append, self.turn.answers.append

        def start(task: ActionTask) -> Answer | None:
            answer = start_attempt(task)
            if answer is None:
                started(task)
            else:
                answered((answer, task.attempt, 0, 0))
            return answer

        return start

    def see_record(self, received: RecordReceived | RequestReceived) -> None:
        """Take a record from the operator before this one, or a request."""
        self.turn.admitted += 1
        if self.needs_answers:
            self.turn.records.append(received)

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
        *,
        content: Mapping[str, Any] | None = None,
    ) -> None:
        """Take a report of user code, if somebody wants it; from any thread. It raises nothing, whatever it is given."""
        if self.wants_reports is not None and not self.wants_reports(task):
            return
        encoded = b""
        if metadata:
            try:
                encoded = encode_msgpack(dict(metadata))
            except (TypeError, ValueError, OverflowError, RecursionError):
                encoded = encode_msgpack({str(name): repr(value) for name, value in metadata.items()})
        text = "" if error is None else f"{type(error).__name__}: {self.scrub(text_of(error))}".removesuffix(": ")
        named, at_ns, (step, call) = (str(entity_type), str(entity_name)), monotonic_ns(), self.current_step()
        said = {} if content is None else _scrubbed(content, self.scrub)
        found = (status, *named, encoded, at_ns, step, text, category or "", call, said)
        self._note(ExecutionReported(task, task.attempt, *found))

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
            try:
                observer.observe(turn, now_ms)
            except Exception as error:  # noqa: BLE001 (an edge: the job goes on, whatever telemetry does)
                self._see_failure(error)
        turn.admitted = turn.emitted = 0
        for collected in (turn.records, turn.started, turn.answers, turn.left, turn.steps, turn.notes):
            collected.clear()


def _scrubbed(value: Any, scrub: Callable[[str], str]) -> Any:  # noqa: ANN401 (plain values)
    """Return plain values whose texts are without secrets."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {name: _scrubbed(inner, scrub) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(inner, scrub) for inner in value]
    return value


def _nothing(*_: object) -> None:
    """Stand for what no observer has."""


def _noted(start: Start) -> Start:
    """Return what starts an attempt, and notes when one began that answers later."""

    def start_noted(task: ActionTask) -> Answer | None:
        answer = start(task)
        if answer is None:
            task.began_ns = monotonic_ns()
        return answer

    return start_noted


def start_in_context(
    context_of: Callable[[ActionTask], contextvars.Context | None],
    start: Start,
    see_start: Callable[[ActionTask, contextvars.Context], Answer | None],
) -> Start:
    """Return what starts an attempt with ``see_start`` if an observer has a context for it, else with ``start``.

    It notes when an attempt began that answers later.
    """

    def start_somewhere(task: ActionTask) -> Answer | None:
        context = context_of(task)
        if context is not None:
            return see_start(task, context)
        task.began_ns = 0
        answer = start(task)
        if answer is None and not task.began_ns:
            task.began_ns = monotonic_ns()
        return answer

    return start_somewhere

"""Durable steps: what is recorded of tasks, what a step is answered with, and which records a checkpoint takes.

A task that calls a step is answered from its records; where there is none, the step is run, and its outcome is recorded before
user code sees it. What user code has seen must not change afterwards, so a record follows, in the journal, the completions of
all earlier tasks of its key that are not in a completed checkpoint: a task without steps need not be deterministic.

    requested ── recorded, same step ─────────────────────────────► ResolveStep
              ── recorded, another step, same attempt ────────────► RefuseStep, and the task fails when it ends
              ── intent recorded, no outcome ─────────────────────► RunStep (in doubt)
              ── wait recorded, no outcome ───────────────────────► it goes on until its deadline, or its signal
              ── nothing ── policy needs it: PersistStep (intent) ─► RunStep ── ended ── PersistStep ─► ResolveStep

An outcome answers its own attempt of the action and later ones, an error only its own: the next attempt is there to try again.
Behind a recovery there is always a next one before an error fails the job: it may be what has stopped it, and would for ever.
A task with steps that completes is a record too, and is answered whole (`ReplayAction`); its steps are forgotten with it.

Records are live until their task completes. The live ones are rows of keyed state at the next checkpoint, so the journal holds
one epoch, and recovery reads over every record whose epoch is in the checkpoint.

Rejected: counting steps by one counter per run (interleaved branches break it); waiting for a completion's record (outputs wait
for the checkpoint anyway; the order in the journal is enough).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from agentflow.api.events import EventType
from agentflow.core.delta import StateWrite, StoredRow, Table
from agentflow.core.effects import (
    Effect,
    RefuseStep,
    ReplayAction,
    RequestCheckpoint,
    ResolveStep,
    RunStep,
    StartAction,
)
from agentflow.core.inputs import (
    ActionCompleted,
    ActionFailed,
    JournalAppended,
    StepCall,
    StepEnded,
    StepRequested,
)
from agentflow.core.journal_queue import JournalQueue
from agentflow.core.journal_records import (
    ADMITTED,
    ATTEMPT,
    CANCELLED,
    ERROR,
    INTENT,
    WAIT,
    WAITED,
    decode_ending,
    decode_record,
    encode_ending_of,
    encode_record,
    encode_step,
    encoded_records,
    row_name,
    rows_of,
    take_record,
)
from agentflow.core.recorded import RecordedRun, RecordedStep, RecordedTask
from agentflow.core.records import ErrorReport
from agentflow.core.runs import RUNNING, WAITING, ActionTask, KeyState, Run
from agentflow.core.signals import SignalBuffer
from agentflow.core.waits import (
    OpenWait,
    Wait,
    WaitOutcome,
    Waits,
    begin_retry,
    begin_wait,
    decode_outcome,
    decode_wait,
    encode_wait,
)

_TIMER = EventType.TimerEvent
_OF_ONE_ATTEMPT = (ERROR, CANCELLED, ATTEMPT)  # the next attempt is there to try again
_decode_calls = msgspec.msgpack.Decoder(int).decode
StepSlot = tuple[bytes, str]  # (key, row name)
_Endings = dict[KeyState, list[tuple[ActionTask, int, ActionCompleted | ActionFailed, int, int]]]  # …, epoch, time


class Steps:
    """The records of one operator's runs; appends to the operator's effects."""

    def __init__(self, effects: list[Effect], signals: SignalBuffer) -> None:
        self.runs: dict[str, RecordedRun] = {}
        self.waits = Waits()
        self.signals = signals
        self.is_tracking = False
        self.epoch = 1
        self._effects = effects
        self.journal = JournalQueue(effects)
        self._changed: dict[StepSlot, bytes | None] = {}
        self._saved: set[StepSlot] = set()
        self._endings: _Endings = {}  # of tasks without records, in the open epoch
        self._frozen_endings: _Endings = {}  # in the epoch that is being written
        self._held: list[StepRequested | StepEnded] = []
        self._held_until = 0

    # -- inputs
    @property
    def handlers(self) -> dict[type, Callable[[Any, int], None]]:
        """What the operator does about inputs of steps, by type."""
        return {StepRequested: self.on_requested, StepEnded: self.on_ended, JournalAppended: self.journal.on_appended}

    def on_requested(self, received: StepRequested, now_ms: int) -> None:
        """Answer a step, or let it run."""
        task, call = received.task, received.call
        if task.status != RUNNING or self._is_held(received):
            return
        recorded = self._recorded(task)
        step = recorded.steps.get(call.path)
        is_same = step is not None and step.call.is_same(call)
        if step is None or (step.attempt < task.attempt and (not is_same or step.kind in _OF_ONE_ATTEMPT)):
            if received.order is not None:
                wait = begin_wait(received.order, now_ms)
                self._record(task, call, WAIT, encode_wait(wait), None, now_ms)
                self._wait(task, call, wait, now_ms)
            else:
                self._call(task, call, 0, now_ms, needs_intent=received.needs_intent)
        elif not is_same:
            recorded.divergence = step.another(call)
            self._effects.append(RefuseStep(task, call.path, recorded.divergence))
        else:
            step.is_asked = True
            payload = step.payload
            if step.kind == INTENT:
                self._effects.append(RunStep(task, call.path, is_in_doubt=True, calls=_decode_calls(payload)))
            elif step.kind in (WAIT, ATTEMPT):
                self._wait(task, call, decode_wait(payload), now_ms)
            elif step.is_durable:
                self._effects.append(ResolveStep(task, call.path, step.kind, payload))
            else:  # an earlier attempt let it be recorded a moment ago
                step.then = ResolveStep(task, call.path, step.kind, payload)

    def on_ended(self, received: StepEnded, now_ms: int) -> None:
        """Record the outcome of a step that was run."""
        task, call, kind = received.task, received.call, received.kind
        if task.status != RUNNING or self._is_held(received):
            return
        if received.retry is not None:
            self.wait_for_call(task, call, begin_retry(received.retry, received.payload, now_ms), now_ms)
            return
        if kind == CANCELLED:
            self.waits.close(task, call.path)
        resolve = None if kind == CANCELLED else ResolveStep(task, call.path, kind, received.payload)
        self._record(task, call, kind, received.payload, resolve, now_ms)

    def _is_held(self, received: StepRequested | StepEnded) -> bool:
        """Hold the first records of a process up: completions before them are not known, so let a checkpoint have them."""
        if not self.is_tracking:
            self.is_tracking, self._held_until = True, self.epoch
            self._effects.append(RequestCheckpoint())
        if self._held_until:
            self._held.append(received)
        return bool(self._held_until)

    # -- waits
    def _call(self, task: ActionTask, call: StepCall, calls: int, now_ms: int, *, needs_intent: bool) -> None:
        """Let a step be called, which has been ``calls`` times without success."""
        run_step = RunStep(task, call.path, calls=calls)
        request = task.run.request
        if needs_intent:
            self._record(task, call, INTENT, encode_record(calls), run_step, now_ms)
        elif request is not None and not request.is_durable:
            self.journal.behind(run_step)
        else:
            self._effects.append(run_step)

    def _wait(self, task: ActionTask, call: StepCall, wait: Wait, now_ms: int) -> None:
        """Let a step wait, unless its signal has come already."""
        early = self.signals.take(OpenWait(task, call, wait)) if wait.signal else None
        if early is None:
            self.waits.open(task, call, wait)
        else:
            self.end_wait(OpenWait(task, call, wait), WaitOutcome(early.value, early.position), now_ms)

    def wait_for_call(self, task: ActionTask, call: StepCall, wait: Wait, now_ms: int) -> None:
        """Record when a step is called again that has failed, and wait for it."""
        self._record(task, call, ATTEMPT, encode_wait(wait), None, now_ms)
        self.waits.open(task, call, wait)

    def end_wait(self, opened: OpenWait, outcome: WaitOutcome, now_ms: int) -> None:
        """Let a wait end: record how, and then tell; of a step that waited for its next call, let it be called."""
        task, call, wait = opened.task, opened.call, opened.wait
        self.waits.close(task, call.path)
        if not wait.calls:
            payload = encode_wait(outcome)
            self._record(task, call, WAITED, payload, ResolveStep(task, call.path, WAITED, payload), now_ms)
        elif task.status == RUNNING:
            self._call(task, call, wait.calls, now_ms, needs_intent=wait.needs_intent)

    def reopen(self, task: ActionTask) -> None:
        """Open the recorded waits of a parked task, which is restored."""
        run = self.runs.get(task.run.id)
        task.recorded = None if run is None else run.tasks.get(task.path)
        for step in () if task.recorded is None else task.recorded.steps.values():
            if step.kind in (WAIT, ATTEMPT):
                self.waits.open(task, step.call, decode_wait(step.payload))

    def can_go_on(self, task: ActionTask) -> bool:
        """Whether a task that waits has something to do: no wait is open, or something was recorded that it has not seen."""
        recorded = task.recorded
        if recorded is None or recorded.is_news or not self.waits.of(task):
            return True
        return any(step.then is not None for step in recorded.steps.values())

    # -- tasks
    def start(self, task: ActionTask) -> StartAction | ReplayAction:
        """Return how an attempt starts: from its recorded completion, or by running it with its recorded steps."""
        run = self.runs.get(task.run.id)
        recorded = None if run is None else run.tasks.get(task.path)
        if recorded is None:
            return StartAction(task)
        task.recorded = recorded
        last = max((step.attempt for step in recorded.steps.values()), default=task.attempt)
        last = max(last, *recorded.endings, task.attempt)
        while task.attempt not in recorded.endings and task.attempt < last:
            task.attempt += 1  # that attempt failed before the records of a later one were written
        ending = recorded.endings.get(task.attempt)
        if ending is not None:
            return ReplayAction(decode_ending(task, decode_record(ending)))
        recorded.divergence, recorded.is_news = None, False
        self.waits.drop(task)
        for step in recorded.steps.values():
            step.is_asked, step.then = False, None
        return StartAction(task)

    def divergence(self, task: ActionTask) -> ErrorReport | None:
        """Return an error when a task that completed did not do what is recorded of it."""
        recorded = task.recorded
        if recorded is None or task.attempt in recorded.endings:
            return None
        message, call = recorded.divergence, recorded.unasked(task.attempt)
        if message is None and call is not None:
            message = f"step {call.path} is recorded ({call.function}, called at {call.where}) and was not called again"
            recorded.divergence = message
        return None if message is None else ErrorReport("Divergence", message, is_retryable=False)

    def is_failed_before(self, task: ActionTask) -> bool:
        """Whether an attempt has an error that was recorded before the recovery, and has done what is recorded of it."""
        recorded = task.recorded
        return recorded is not None and task.attempt <= recorded.failed_before and recorded.divergence is None

    def ended(self, task: ActionTask, ending: ActionCompleted | ActionFailed, now_ms: int) -> None:
        """Record how a task ended, and forget its steps; of a task without records only when its key needs a record."""
        recorded, run = task.recorded, task.run
        if recorded is None:
            if run.request is None:
                self._endings.setdefault(run.state, []).append((task, task.attempt, ending, self.epoch, now_ms))
            else:
                if self._endings or self._frozen_endings:
                    self._append_endings(run.state)
                self.journal.append(encode_ending_of(task, task.attempt, ending, self.epoch, now_ms))
            return
        self.waits.drop(task)
        if task.attempt not in recorded.endings:
            self._append_endings(run.state)
            self.journal.append(encode_ending_of(task, task.attempt, ending, self.epoch, now_ms))
        if run.group is None:  # else it may conflict, and its next attempt is answered by its steps
            task.recorded = None
            self._forget(self.runs[run.id], task.path)

    def failed(self, task: ActionTask, attempt: int, failure: ActionFailed, now_ms: int) -> None:
        """Record how an attempt failed: the last one, and one that leaves an account; a recovery would pass it over for a later one."""
        if task.status != WAITING:
            self.ended(task, failure, now_ms)
        elif failure.kept is not None and (task.recorded is None or attempt not in task.recorded.endings):
            self._append_endings(task.run.state)
            self.journal.append(encode_ending_of(task, attempt, failure, self.epoch, now_ms))

    def end(self, run_id: str) -> None:
        """Forget everything of a run that is over."""
        recorded = self.runs.pop(run_id, None)
        if recorded is not None:
            for path in list(recorded.tasks):
                self._forget(recorded, path)

    # -- checkpoints
    def barrier(self, operator: int, checkpoint: int, now_ms: int) -> list[StateWrite]:
        """Close the epoch; return the rows that changed in it."""
        assert not self._frozen_endings, "a barrier before the former checkpoint has completed"
        self.epoch = checkpoint + 1
        changed, self._changed = self._changed, {}
        for slot, value in changed.items():
            if value is None:
                self._saved.discard(slot)
            else:
                self._saved.add(slot)
        self._frozen_endings, self._endings = self._endings, {}
        self.signals.expire(now_ms)
        rows: list[StateWrite] = [(Table.STEPS, operator, *slot, row) for slot, row in changed.items()]
        return rows + self.signals.take_changes(operator)

    def checkpoint_completed(self, checkpoint: int, now_ms: int, *, is_skipped: bool) -> None:
        """Forget what the checkpoint has; let the first steps go on, which waited for it."""
        if is_skipped:
            self.epoch = checkpoint
        self._frozen_endings = {}
        if self._held_until and (checkpoint >= self._held_until or is_skipped):
            held, self._held, self._held_until = self._held, [], 0
            for received in held:
                self.handlers[type(received)](received, now_ms)

    def rows(self, operator: int) -> list[StateWrite]:
        """Return all live records as rows."""
        records = [row for run in self.runs.values() for row in encoded_records(run)]
        return rows_of(operator, records) + self.signals.rows(operator)

    def fold(self, run: Run) -> tuple[bytes, ...]:
        """Give up what is recorded of a run, all of which is rows of keyed state; return the records."""
        rows = encoded_records(self.runs.pop(run.id))
        for _, _, key, name, _ in rows_of(0, rows):
            self._saved.discard((key, name))
        return rows

    def unfold(self, rows: Iterable[bytes]) -> None:
        """Take back what `fold` has returned."""
        for row in rows:
            record = decode_record(row)
            take_record(self.runs, record, row)
            self._saved.add((record.key, record.name))

    def restore(
        self, rows: Iterable[StoredRow], signals: Iterable[StoredRow], journal: Iterable[bytes], checkpoint: int
    ) -> None:
        """Take the records and early signals of the last checkpoint, and the records behind it."""
        self.epoch = checkpoint + 1
        taken: list[str] = []
        for row in rows:
            take_record(self.runs, decode_record(row.value), row.value)
            self._saved.add((row.key, row.name))
        for value in journal:
            record = decode_record(value)
            if record.epoch > checkpoint and record.kind != ADMITTED:
                take_record(self.runs, record, value).is_news = True
                self._changed[record.key, record.name] = value
                if record.kind == WAITED:
                    taken.append(decode_outcome(record.payload).position)
        for task in (task for run in self.runs.values() for task in run.tasks.values()):
            errors = (step.attempt for step in task.steps.values() if step.kind == ERROR)
            task.failed_before = max(*errors, *task.endings, 0, 0)
        self.signals.restore(signals, taken)
        self.is_tracking |= bool(self.runs)

    # -- records
    def _recorded(self, task: ActionTask) -> RecordedTask:
        if task.recorded is None:
            run, task.stored_path = task.run, task.path  # its records ask for the path often
            recorded = self.runs.get(run.id)
            if recorded is None:
                recorded = RecordedRun(run.id, run.key, run.number, run.event_type == _TIMER, {})
                self.runs[run.id] = recorded
            task.recorded = recorded.task(task.stored_path)
        return task.recorded

    def _record(
        self,
        task: ActionTask,
        call: StepCall,
        kind: int,
        payload: bytes,
        then: RunStep | ResolveStep | None,
        now_ms: int,
    ) -> None:
        """Let a record of a step be appended, behind the completions that it may depend on."""
        self._append_endings(task.run.state)
        step = RecordedStep(call, kind, task.attempt, payload, self.epoch, now_ms, then=then)
        self._recorded(task).steps[call.path] = step
        run, path = self.runs[task.run.id], task.path
        row = encode_step(run, path, step)
        self._changed[run.key, row_name(run.id, path, call.path)] = row
        self.journal.append(row, step)

    def _append_endings(self, state: KeyState) -> None:
        for endings in (self._frozen_endings, self._endings):
            for ended in endings.pop(state, ()):
                self.journal.append(encode_ending_of(*ended))

    def _forget(self, run: RecordedRun, path: str) -> None:
        """Forget a task; its rows go with the next checkpoint."""
        task = run.tasks.pop(path)
        for place in (*task.steps, *map(str, task.endings)):
            slot = (run.key, row_name(run.id, path, place))
            if slot in self._saved:
                self._changed[slot] = None
            else:
                self._changed.pop(slot, None)

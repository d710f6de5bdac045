"""Runs that wait for a retry, for time or for a signal, and what goes on when it comes.

    task    RUNNING, with open waits ── its coroutine is closed to save memory ──► PARKED ── a wait ends ──► RUNNING, from its beginning

A run that waits for such things only is parked: it, and what waits behind it, holds no watermark; it joins the last segment when
it goes on. How long a coroutine is kept is the shell's decision, and changes nothing that can be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from agentflow.core.effects import Effect
from agentflow.core.epoch import EpochChanges
from agentflow.core.failures import FailurePolicy
from agentflow.core.inputs import ParkRequested, SignalReceived, WaitRequested
from agentflow.core.outcomes import Outcomes
from agentflow.core.records import ErrorReport
from agentflow.core.requests import Requests
from agentflow.core.runs import PARKED, RUNNING, WAITING, ActionTask, Run
from agentflow.core.segments import SegmentedQueue
from agentflow.core.signals import SignalBuffer
from agentflow.core.steps import Steps
from agentflow.core.stored_runs import waits_only
from agentflow.core.tasks import TaskScheduler
from agentflow.core.timers import TimerTable
from agentflow.core.waits import OpenWait, WaitOutcome


class Waiting:
    """Moves the runs of one operator that wait.

    Attributes:
        segments: The operator's segmented queue.
        sleeping: Runs that are parked by their own will: `Run.is_sleeping`.
        asleep: Those of them that have not been looked at since they fell asleep, in that order.
        waits: All open waits.
    """

    def __init__(
        self,
        effects: list[Effect],
        policy: FailurePolicy,
        changes: EpochChanges,
        steps: Steps,
        tasks: TaskScheduler,
        outcomes: Outcomes,
        segments: SegmentedQueue,
        timers: TimerTable,
        requests: Requests,
    ) -> None:
        self.segments = segments
        self._timers = timers
        self._requests = requests
        self.sleeping = 0
        self.asleep: dict[Run, None] = {}
        self._effects = effects
        self._policy = policy
        self._changes = changes
        self._steps = steps
        self.waits = steps.waits
        self._signals: SignalBuffer = steps.signals
        self._tasks = tasks
        self._outcomes = outcomes
        self.handlers: dict[type, Callable[[Any, int], Run | None]] = {
            WaitRequested: self._on_wait_requested,
            ParkRequested: self._on_park_requested,
            SignalReceived: self._on_signal,
        }

    def retry_now(self, run: Run, now_ms: int) -> None:
        """Try at once what waits for a retry: tasks, and steps."""
        for task in run.tasks:
            if task.status == WAITING:
                self._go_on(task)
            for opened in self.waits.of(task):
                if opened.wait.calls:
                    self.waits.close(task, opened.call.path)
                    wait = msgspec.structs.replace(opened.wait, due_ms=now_ms)
                    self._steps.wait_for_call(task, opened.call, wait, now_ms)

    def start_all(self, runs: Iterable[Run]) -> None:
        """Start everything that waits, whatever it waits for."""
        for run in runs:
            for task in run.tasks:
                if task.status in (WAITING, PARKED):
                    self._go_on(task)

    # -- time
    @property
    def next_due_ms(self) -> int | None:
        """When the next retry, deadline or timer of processing time is due; None when there is none."""
        timer_ms = self._timers.next_due_ms(is_event_time=False)
        return earliest(earliest(self._tasks.next_retry_ms(), self.waits.next_due_ms()), timer_ms)

    def advance(self, now_ms: int) -> None:
        """Let everything go on whose time has come."""
        for task in self._tasks.pop_due_retries(now_ms):
            self._go_on(task)
        for opened in self.waits.pop_due(now_ms):
            if opened.is_open:  # still: one before it may have ended the task
                self._end(opened, WaitOutcome(), now_ms)

    # -- inputs
    def _on_wait_requested(self, received: WaitRequested, now_ms: int) -> None:
        request = received.request
        if request.task.status != RUNNING:
            return
        if received.sent:
            self._changes.before_change(request.task.run)
            self._outcomes.emit_before_wait(request.task, received.sent, received.headers)
        self._steps.on_requested(request, now_ms)
        if request.task.run.request is not None:
            self._requests.tell(request.task.run)

    def _on_park_requested(self, received: ParkRequested, now_ms: int) -> None:  # noqa: ARG002 (one signature)
        task = received.task
        if task.status != RUNNING or self._steps.can_go_on(task):
            return
        self._changes.before_change(task.run)
        task.status = PARKED
        if waits_only(task.run):
            self.park(task.run)

    def _on_signal(self, received: SignalReceived, now_ms: int) -> None:
        signal, position = received.signal, received.record.run_id
        if self._signals.is_taken(position):
            return
        opened = self.waits.waiting_for(received.key, signal)
        if opened is not None:
            self._end(opened, WaitOutcome(signal.value, position), now_ms)
        elif self._signals.is_full:
            message = "too many signals wait for somebody who waits for them (signals.pending-max)"
            error = ErrorReport("SignalOverflow", message, is_retryable=False)
            self._effects.append(self._policy.last_word(received.record, error))
        else:
            self._signals.put(received, now_ms)

    def _end(self, opened: OpenWait, outcome: WaitOutcome, now_ms: int) -> None:
        """Let a wait end. What ended it is recorded; a step that waits for its next call is called."""
        self._steps.end_wait(opened, outcome, now_ms)
        if opened.task.status == PARKED:
            self._go_on(opened.task)

    # -- parking
    def park(self, run: Run) -> None:
        """Let a run that waits, and what waits behind it, hold no watermark."""
        if run.is_parked:
            return
        run.is_parked = True
        run.is_sleeping = all(self._is_sleeping(task) for task in run.tasks if task.status == PARKED) and any(
            task.status == PARKED for task in run.tasks
        )
        if run.is_sleeping:
            self.sleeping += 1
            self.asleep[run] = None
        self.segments.leave(run)
        for pending in reversed(run.state.pending or ()):
            if pending.segment is None:
                break  # and so are all before it: they came while the key was parked
            self._changes.before_change(pending)
            self.segments.leave(pending)

    def _is_sleeping(self, task: ActionTask) -> bool:
        return not any(opened.wait.calls for opened in self.waits.of(task))

    def unpark(self, run: Run) -> None:
        """Let a parked run hold the watermark again."""
        if run.is_parked:
            run.is_parked = False
            if run.is_sleeping:
                self.sleeping -= 1
                self.asleep.pop(run, None)
            run.is_sleeping = False
            self.segments.join(run)

    def _go_on(self, task: ActionTask) -> None:
        self._changes.before_change(task.run)
        self.unpark(task.run)
        self._tasks.retry(task)

    # -- restore
    def restore(self, run: Run) -> None:
        """Let the parked tasks of a restored run wait on, or go on where the journal knows that they did."""
        for task in run.tasks:
            if task.status == PARKED:
                self._steps.reopen(task)
                if self._steps.can_go_on(task):
                    self._go_on(task)
        if run.is_parked:
            run.is_parked = False
            self.park(run)


def earliest(one_ms: int | None, other_ms: int | None) -> int | None:
    """Return the earlier of two times, either of which may be none."""
    if one_ms is None or other_ms is None:
        return other_ms if one_ms is None else one_ms
    return min(one_ms, other_ms)

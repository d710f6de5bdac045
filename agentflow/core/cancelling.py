"""Runs that are cancelled: by a request, or superseded by the next input of their key.

A run that is cancelled stops at once, and keeps what its completed tasks did. Actions that listen to `CancelEvent` compensate, in the
same run, behind a checkpoint that knows of the cancellation: until then a crash may take it back, and the request comes again;
behind it nothing brings the run back. So nothing can be paid back for a run that then completes all the same.

Rejected: a journal record instead of the checkpoint. A recovery would have to stop the run at the same task again, while it takes
other turns until then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from agentflow.api.events import EventType
from agentflow.core.effects import CancelAction, Effect, RequestCheckpoint
from agentflow.core.epoch import EpochChanges
from agentflow.core.inputs import CancelRequested, RetryRequested
from agentflow.core.records import ErrorReport
from agentflow.core.requests import CANCELLED as CANCELLED_TYPE
from agentflow.core.requests import Requests
from agentflow.core.routing import Router
from agentflow.core.run_table import RunTable
from agentflow.core.runs import CANCELLED, RUNNING, KeyState, Run
from agentflow.core.steps import Steps
from agentflow.core.waiting import Waiting

_CANCEL = EventType.CancelEvent
_EVENT_INDEX = 1  # of the event that no task has sent; the input is 0
_encode = msgspec.msgpack.Encoder().encode


class Cancelling:
    """Stops runs of one operator."""

    def __init__(
        self,
        effects: list[Effect],
        changes: EpochChanges,
        steps: Steps,
        router: Router,
        waiting: Waiting,
        requests: Requests,
        states: Mapping[bytes, KeyState],
        runs: RunTable,
    ) -> None:
        self._effects = effects
        self._changes = changes
        self._steps = steps
        self._router = router
        self._waiting = waiting
        self._requests = requests
        self._states = states
        self._runs = runs
        self.handlers: dict[type, Callable[[Any, int], Run | None]] = {
            CancelRequested: self._on_cancel,
            RetryRequested: self._on_retry,
        }
        self._held: dict[Run, int] = {}  # cancelled runs whose compensation waits for the checkpoint of an epoch

    def _on_retry(self, received: RetryRequested, now_ms: int) -> None:
        state = self._states.get(received.key)
        if state is not None and state.run is not None:
            self._waiting.retry_now(state.run, now_ms)

    def _on_cancel(self, received: CancelRequested, now_ms: int) -> Run | None:
        """Stop the run that is meant; return one that can go on now: to its end."""
        state = self._states.get(received.key)
        if state is None or state.run is None:
            return None
        for pending in [run for run in state.pending or () if run.id == received.run]:
            self._drop(pending, received.reason, now_ms)
            return None
        if received.run and received.run != state.run.id:
            return None
        return self._stop(state.run, received.reason)

    def supersede(self, run: Run, now_ms: int) -> Run | None:
        """Stop whatever comes before ``run`` at its key; return a run that can go on now."""
        state, reason = run.state, f"superseded by {run.id}"
        for pending in [other for other in state.pending or () if other is not run and other.number < run.number]:
            self._drop(pending, reason, now_ms)
        active = state.run
        return None if active is None or active is run else self._stop(active, reason)

    def released(self) -> list[Run]:
        """Return the cancelled runs that a completed checkpoint knows: their compensation starts."""
        runs = [run for run, epoch in self._held.items() if epoch <= self._changes.completed]
        for run in runs:
            del self._held[run]
            self._changes.before_change(run)
        return runs

    def _stop(self, run: Run, reason: str) -> Run | None:
        if not run.is_started or any(task.event_type == _CANCEL for task in run.tasks):
            return None  # it has not begun, as after a recovery; or it is cancelled already
        self._changes.before_change(run)
        _fail_request(run, reason)
        stopped = [task for task in run.tasks if task.status == RUNNING]
        for task in stopped:
            self._effects.append(CancelAction(task))
        for task in run.tasks:
            self._steps.waits.drop(task)
            task.status = CANCELLED
        at_work = stopped[0].path if stopped else ""
        self._waiting.unpark(run)
        run.current = run.group = run.queue = run.written = None
        run.applied = 0
        payload = _encode({"reason": reason, "task": at_work})
        self._router.route(run, None, _EVENT_INDEX, _CANCEL, payload)
        if not run.queue:
            return run
        self._held[run] = self._changes.number
        self._effects.append(RequestCheckpoint())
        return None

    def _drop(self, run: Run, reason: str, now_ms: int) -> None:
        """Forget a run that has not begun."""
        assert run.state.pending is not None
        run.state.pending.remove(run)
        self._changes.before_change(run)
        self._changes.end(run)
        del self._runs[run]
        self._steps.end(run.id)
        self._waiting.segments.leave(run)
        if run.request is not None:
            _fail_request(run, reason)
            self._requests.end(run, now_ms)


def _fail_request(run: Run, reason: str) -> None:
    if run.request is not None:
        run.request.fail(ErrorReport(CANCELLED_TYPE, reason or "cancelled", is_retryable=False))

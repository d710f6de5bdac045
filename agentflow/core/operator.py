"""THE OPERATOR: one agent over all keys of one subtask, as a machine without I/O.

The machine owns: key queues, runs and their tasks, routing, parallel groups, write sets, retries, timers, watermarks,
limits, barriers. The shell owns: reading, user code, decoding, clocks, keyed state, sinks.

    operator.apply(received, now_ms)         # the only way in; appends to `effects`
    for effect in operator.take_effects(): … # the shell carries them out, in order

A run is moved only by its own inputs, and its tasks complete in routing order whatever their timing, so the result of a run
depends on its input, its memory and what its actions did, never on which of them was faster.

Rejected: interleaving the tasks of a run (updates get lost, replays diverge); holding back source positions for unfinished
runs (outputs of later runs are already committed, so unfinished runs are state instead); sequence numbers as run ids (two
sources interleave differently after a restart).

An exception inside `apply` poisons the operator: its state is unknown, so it refuses every later input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from agentflow.api.events import EventType
from agentflow.core.admission import Admission
from agentflow.core.cancelling import Cancelling
from agentflow.core.delta import POSITIONS_NAME, StateWrite, StoredRow, Table
from agentflow.core.effects import Effect, ForwardWatermark, Headed, TakeSnapshot
from agentflow.core.epoch import META_NAME, EpochChanges, decode_meta, encode_meta, operator_meta
from agentflow.core.failures import FailurePolicy
from agentflow.core.inputs import (
    ActionCompleted,
    ActionFailed,
    ActionStopped,
    BarrierReceived,
    CheckpointCompleted,
    DrainRequested,
    Input,
    RecordRejected,
    TimeAdvanced,
    WatermarkReceived,
)
from agentflow.core.key_order import ExpectedRuns
from agentflow.core.keys import KeyTable
from agentflow.core.limits import Backpressure, Drain, OperatorLimits
from agentflow.core.outcomes import Outcomes
from agentflow.core.requests import Requests
from agentflow.core.routing import Router
from agentflow.core.run_table import RunTable, oldest_admitted_ms, restore_runs, run_writes
from agentflow.core.runs import COMPLETED, RUNNING, Run
from agentflow.core.segments import Segment, SegmentedQueue
from agentflow.core.signals import SignalBuffer
from agentflow.core.sleepers import Sleepers
from agentflow.core.steps import Steps
from agentflow.core.stored_runs import waits_only
from agentflow.core.tasks import TaskScheduler
from agentflow.core.timers import TimerTable
from agentflow.core.unfinished import UnfinishedRuns
from agentflow.core.waiting import Waiting, earliest
from agentflow.errors import InternalError
from agentflow.plan.plan import AgentPlan

_INPUT, _TIMER = EventType.InputEvent, EventType.TimerEvent


class Operator:
    """See the module's docstring. ``decode_input`` decodes a record's value; only CEL conditions on inputs need it."""

    def __init__(
        self,
        plan: AgentPlan,
        policy: FailurePolicy,
        limits: OperatorLimits,
        *,
        index: int = 0,
        decode_input: Callable[[bytes], Any] = msgspec.json.decode,
        takes_requests: bool = False,
        headed: Headed | None = None,
    ) -> None:
        self.plan = plan
        self.index = index
        self.effects: list[Effect] = []
        self._policy = policy
        self.keys = KeyTable(limits.cache_bytes)
        self._states = self.keys.states
        self._runs: RunTable = {}
        self._segments = SegmentedQueue()
        self._timers = TimerTable()
        self._router = Router(plan, decode_input)
        self._steps = Steps(self.effects, SignalBuffer(limits.signals_max, limits.signal_ttl_ms))
        self._steps.is_tracking = takes_requests
        self._requests = Requests(index, self.effects, self._steps)
        self._expected = ExpectedRuns(self._steps)
        self._recorded, self._missing = self._steps.runs, self._expected.by_key
        self._tasks = TaskScheduler(self.effects, policy, limits.tasks_max, self._steps)
        self._changes = EpochChanges(index)
        self._outcomes = Outcomes(
            self.effects, self._changes, self._router, self._tasks, self._timers, limits.timers_max, headed
        )
        self._waiting = Waiting(
            self.effects, policy, self._changes, self._steps, self._tasks, self._outcomes, self._segments, self._timers,
            self._requests,
        )  # fmt: skip
        self._sleepers = Sleepers(plan, self._changes, self.keys, self._runs, self._steps, self._waiting)
        self.unfinished = UnfinishedRuns(index, self._runs, self._sleepers, self._steps)
        self._cancelling = Cancelling(
            self.effects,
            self._changes,
            self._steps,
            self._router,
            self._waiting,
            self._requests,
            self._states,
            self._runs,
        )
        self._controls = {**self._waiting.handlers, **self._cancelling.handlers}
        self._pressure = Backpressure(self.effects, limits, policy, is_rejecting=plan.on_new_input == "reject")
        self._admission = Admission(
            self.effects, self._states, self._runs, self._segments, self._expected, self._pressure, limits,
            self._sleepers, self._waiting, self._cancelling, self._requests, plan.on_new_input, self._advance,
            self._forward_watermarks,
        )  # fmt: skip
        self._drain = Drain(self.effects, self._timers)
        self._handlers: dict[type, Callable[[Any, int], None]] = {
            **self._admission.handlers,
            RecordRejected: lambda received, _: self.effects.append(policy.last_word(received.record, received.error)),
            ActionCompleted: self._on_completed,
            ActionFailed: self._on_failed,
            ActionStopped: lambda received, _: self._outcomes.keep(received.task, received.kept),
            **self._steps.handlers,
            **dict.fromkeys(self._controls, self._on_control),
            WatermarkReceived: self._on_watermark,
            TimeAdvanced: self._on_time,
            BarrierReceived: self._on_barrier,
            CheckpointCompleted: self._on_checkpoint_completed,
            DrainRequested: self._drain.begin,
        }

    # -- the way in and out
    def apply(self, received: Input, now_ms: int) -> None:
        """Decide about one input; what is to be done is appended to `effects`.

        Args:
            received: The fact.
            now_ms: Epoch milliseconds; never less than at the last call.

        Raises:
            InternalError: An invariant is broken, now or at an earlier input.
        """
        try:
            self._handlers[type(received)](received, now_ms)
        except BaseException as error:
            is_poisoned = not self._handlers
            self._handlers = {}
            what = "is poisoned by an earlier error and refuses" if is_poisoned else "failed at"
            raise InternalError(
                f"operator '{self.plan.name}' {what} {type(received).__name__}: {error!r}",
                fix="this is a bug of agentflow; the subtask restarts from its last completed checkpoint",
            ) from error
        if (drain := self._drain.requested) is not None:  # behind all that follows from the input: timers, watermarks
            self._drain.tell(drain, self.runs_unfinished, self._sleepers.count)

    def take_effects(self) -> list[Effect]:
        """Return and clear the effects."""
        taken, self.effects[:] = list(self.effects), ()
        return taken

    @property
    def runs_unfinished(self) -> int:
        """Runs admitted and not ended, waiting ones included."""
        return len(self.unfinished)

    @property
    def timers_pending(self) -> int:
        """Timers that are set."""
        return len(self._timers)

    @property
    def next_due_ms(self) -> int | None:
        """When `TimeAdvanced` is wanted; None when nothing waits for time."""
        return earliest(earliest(self._waiting.next_due_ms, self._sleepers.next_due_ms), self.keys.next_due_ms)

    @property
    def epoch(self) -> int:
        """Number of the checkpoint that has what is applied now."""
        return self._steps.epoch

    def oldest_run_ms(self, now_ms: int) -> int:
        """Return the clock of the oldest unfinished run: what it may still read must not be swept away."""
        return self._sleepers.oldest_ms(oldest_admitted_ms(self._runs, now_ms))

    # -- runs
    def _advance(self, run: Run, now_ms: int) -> None:
        """Start what comes next of ``run``; when it is over, end it and go on with the key's next run."""
        current: Run | None = run
        while current is not None:
            if not current.is_started:
                if self._missing and not self._expected.lets_begin(current, self._segments):
                    return
                self._begin(current)
            if not current.queue or not self._tasks.start_next(current, now_ms):
                current = self._end(current, now_ms)
            elif current.group is None or not self._outcomes.settle_group(current, now_ms):
                return

    def _begin(self, run: Run) -> None:
        if run.is_frozen:
            self._changes.before_change(run)
        run.is_started = True
        if run.segment is None:  # it waited behind a parked run
            self._segments.join(run)
        self._router.route(run, None, 0, run.event_type, run.record.value)

    def _end(self, run: Run, now_ms: int) -> Run | None:
        """End a run; return the key's next one."""
        if run.is_saved:
            self._changes.before_change(run)
            self._changes.end(run)
        del self._runs[run]
        if self._recorded:
            self._steps.end(run.id)
        if run.request is not None:
            self._requests.end(run, now_ms)
        segment = run.segment
        if segment is not None:  # as `SegmentedQueue.leave` does
            segment.open_runs -= 1
            if not segment.open_runs and segment.watermark_ms is not None:
                self._segments.is_ready = True
        state = run.state
        state.ended_in = self._changes.number
        pending = state.pending
        if pending:
            state.run = pending.popleft()
            if self._pressure.overflowing:
                self._pressure.overflowing.pop(state, None)
        else:
            state.run = None
        self._pressure.relieve(self._sleepers.in_flight, self._sleepers.count)
        return state.run

    # -- actions
    def _on_completed(self, received: ActionCompleted, now_ms: int) -> None:
        task = received.task
        if task.status != RUNNING:
            return  # cancelled, or of an attempt that timed out
        if received.kept is not None:
            self._outcomes.keep(task, received.kept)
        if self._steps.is_tracking:
            error = self._steps.divergence(task)
            if error is not None:
                self._on_failed(ActionFailed(task, error, kept=received.kept), now_ms)
                return
            self._steps.ended(task, received, now_ms)
        run = task.run
        if run.is_frozen:
            self._changes.before_change(run)
        run.is_changed = True
        task.status = COMPLETED
        if received.timers is None and run.group is None:
            run.current = None
            self._outcomes.apply(task, received)
            self._advance(run, now_ms)
            if run.request is not None:
                self._requests.tell(run)
            if self._segments.is_ready:
                self._forward_watermarks(now_ms)
        else:
            self._outcomes.take(task, received, now_ms)
            self._go_on(run, now_ms)

    def _on_failed(self, received: ActionFailed, now_ms: int) -> None:
        task = received.task
        if task.status != RUNNING:
            return
        self._changes.before_change(task.run)
        self._outcomes.emit_again(received)
        self._outcomes.keep(task, received.kept)
        attempt = task.attempt
        self._tasks.fail(task, received.error, now_ms)
        if self._steps.is_tracking:
            self._steps.failed(task, attempt, received, now_ms)
        self._go_on(task.run, now_ms)

    def _go_on(self, run: Run, now_ms: int) -> None:
        """Move a run on behind an answer of one of its tasks."""
        if (run.group is None or self._outcomes.settle_group(run, now_ms)) and run.current is None:
            self._advance(run, now_ms)
        elif waits_only(run):
            self._waiting.park(run)
        if run.request is not None:
            self._requests.tell(run)
        if self._segments.is_ready:
            self._forward_watermarks(now_ms)

    def _on_control(self, received: Input, now_ms: int) -> None:
        """Wait, wake, or cancel, and go on with the run that this lets go on."""
        self._sleepers.open_for(received)
        run = self._controls[type(received)](received, now_ms)
        if run is not None:
            self._advance(run, now_ms)
        self._sleepers.fold(is_behind_checkpoint=False)
        self._pressure.limit_sleepers(self._sleepers.count)
        self._pressure.relieve(self._sleepers.in_flight, self._sleepers.count)
        if self._segments.is_ready:
            self._forward_watermarks(now_ms)

    # -- time
    def _on_time(self, received: TimeAdvanced, now_ms: int) -> None:  # noqa: ARG002 (one signature)
        self.keys.go_on(self._changes.completed)
        self._sleepers.wake(now_ms)
        self._pressure.relieve(self._sleepers.in_flight, self._sleepers.count)
        self._waiting.advance(now_ms)
        self._fire(self._timers.pop_due(now_ms, is_event_time=False), self._segments.last, now_ms)
        if self._segments.is_ready:
            self._forward_watermarks(now_ms)

    def _on_watermark(self, received: WatermarkReceived, now_ms: int) -> None:
        if self._segments.close(received.watermark_ms):
            self._forward_watermarks(now_ms)

    def _forward_watermarks(self, now_ms: int) -> None:
        """Forward every watermark that nothing holds; fire the event-time timers that it makes due first."""
        self._segments.is_ready = False
        while (watermark_ms := self._segments.ready_ms()) is not None:
            due = self._timers.pop_due(watermark_ms, is_event_time=True)
            if due:
                self._fire(due, self._segments.first, now_ms)
            else:
                self.effects.append(ForwardWatermark(self._segments.forward()))

    def _fire(self, due: Iterable[tuple[bytes, str, Any]], segment: Segment, now_ms: int) -> None:
        for key, name, timer in due:
            state = self._states.get(key) or self._sleepers.open(key)
            self._admission.admit(state, timer.record(name), _TIMER, segment, now_ms)

    # -- checkpoints
    def _on_barrier(self, received: BarrierReceived, now_ms: int) -> None:
        meta = {META_NAME: operator_meta(self.plan, self._segments)}
        if received.positions or POSITIONS_NAME in self._changes.last_meta:
            meta[POSITIONS_NAME] = encode_meta(received.positions)
        steps = self._steps.barrier(self.index, received.checkpoint, now_ms) + self._requests.take_results()
        delta, is_empty = self._changes.freeze(self._runs, self._timers.take_changes(), steps, meta)
        self.effects.append(
            TakeSnapshot(received.checkpoint, delta.slices(self._changes.completed, self.keys), is_empty)
        )

    def _on_checkpoint_completed(self, received: CheckpointCompleted, now_ms: int) -> None:
        self._changes.complete()
        self._steps.checkpoint_completed(received.checkpoint, now_ms, is_skipped=received.is_skipped)
        if not received.is_skipped:
            self._requests.checkpoint_completed(received.checkpoint)
        for run in self._cancelling.released():
            self._advance(run, now_ms)
        self._sleepers.fold(is_behind_checkpoint=True)
        self.keys.go_round(self._changes.completed)

    # -- restore
    def snapshot(self) -> list[StateWrite]:
        """Return all state as rows, sorted; of memory only what is not yet applied to keyed state."""
        index = self.index
        writes: list[StateWrite] = [(Table.META, index, b"", META_NAME, operator_meta(self.plan, self._segments))]
        writes += run_writes(index, self._runs) + self._timers.rows(index) + self._steps.rows(index)
        writes += self._sleepers.rows(index)
        return sorted(writes + self._changes.unapplied_rows(), key=lambda write: write[:4])

    def restore(
        self, rows: dict[Table, list[StoredRow]], now_ms: int, journal: Sequence[bytes] = (), checkpoint: int = 0
    ) -> None:
        """Fill a new operator from the rows of its last checkpoint and its journal; unfinished runs start again, in order.

        Rows of memory are not wanted: they are read when an action asks for them. The journal may begin too early.

        Raises:
            StateMismatch: An unfinished run waits for an action that the plan no longer has.
            StateVersionTooNew: A row was written by a newer version.
        """
        assert not self._runs, "restore fills a new operator"
        stored = {row.name: row.value for row in rows.get(Table.META, ())}
        if META_NAME in stored:
            meta = decode_meta(stored[META_NAME])
            segments = SegmentedQueue(meta.closed, meta.open_number, meta.forwarded_ms)
            self._segments = self._waiting.segments = self._admission.segments = segments
        self._changes.last_meta = {name: stored[name] for name in (META_NAME, POSITIONS_NAME) if name in stored}
        self._timers.restore(rows.get(Table.TIMERS, []))
        rows = self._requests.restore(rows, journal, checkpoint, self._segments.last.number)
        rows = self._sleepers.restore(rows, journal, checkpoint)
        self._runs.update(restore_runs(rows.get(Table.RUNS, []), self._states, self.plan, self._segments))
        self._requests.take_up(self._runs)
        self._steps.restore(rows.get(Table.STEPS, []), rows.get(Table.SIGNALS, []), journal, checkpoint)
        self._expected.expect(self._runs, self._segments)
        for run in list(self._runs):
            if run.state.run is run and not self._tasks.resume(run):
                self._advance(run, now_ms)
            else:
                self._waiting.restore(run)
        self._admission.supersede_restored(now_ms)
        self._forward_watermarks(now_ms)

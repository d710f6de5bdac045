"""How an input becomes a run: its admission number, its place behind the runs of its key, and the limits.

A record of a source is read again after a crash, from the position of the last checkpoint. A **request** is an input that nobody
reads again: its run is recorded when it is admitted, as a checkpoint would write it, and a recovery takes it up from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agentflow.api.events import EventType
from agentflow.core.cancelling import Cancelling
from agentflow.core.effects import AnswerRequest, Effect
from agentflow.core.inputs import RecordReceived, RequestReceived
from agentflow.core.key_order import ExpectedRuns, wait_behind
from agentflow.core.limits import Backpressure, OperatorLimits
from agentflow.core.records import ErrorReport, Record
from agentflow.core.requests import Requests
from agentflow.core.run_table import RunTable
from agentflow.core.runs import KeyState, Request, Run
from agentflow.core.segments import Segment, SegmentedQueue
from agentflow.core.sleepers import Sleepers
from agentflow.core.waiting import Waiting

_INPUT = EventType.InputEvent


class Admission:
    """Admits the inputs of one operator.

    Attributes:
        segments: The operator's segmented queue.
        handlers: What the operator does about inputs, by type.

    Args:
        effects: The operator's effects.
        states: Keys that are held in memory.
        runs: All unfinished runs; filled here.
        segments: The operator's segmented queue.
        expected: Runs that have a number already.
        pressure: Refuses and pauses.
        limits: The limits.
        sleepers: Counts the runs that are in flight, and has the keys of those that sleep.
        waiting: Knows the runs that fell asleep.
        cancelling: Supersedes runs.
        requests: Records the runs of requests.
        on_new_input: What a new input does to the key's active run: ``queue``, ``reject`` or ``interrupt``.
        advance: Starts what comes next of a run.
        forward: Forwards the watermarks that nothing holds any more.
    """

    def __init__(
        self,
        effects: list[Effect],
        states: dict[bytes, KeyState],
        runs: RunTable,
        segments: SegmentedQueue,
        expected: ExpectedRuns,
        pressure: Backpressure,
        limits: OperatorLimits,
        sleepers: Sleepers,
        waiting: Waiting,
        cancelling: Cancelling,
        requests: Requests,
        on_new_input: str,
        advance: Callable[[Run, int], None],
        forward: Callable[[int], None],
    ) -> None:
        self.segments = segments
        self.handlers: dict[type, Callable[[Any, int], None]] = {
            RecordReceived: self._on_record,
            RequestReceived: self._on_request,
        }
        self._effects = effects
        self._states = states
        self._runs = runs
        self._expected = expected
        self._missing: Mapping[bytes, object] = expected.by_key
        self._pressure = pressure
        self._in_flight_max, self._key_pending_max = limits.in_flight_max, limits.key_pending_max
        self._sleepers = sleepers
        self._waiting = waiting
        self._cancelling = cancelling
        self._requests = requests
        self._is_rejecting, self._is_superseding = (on_new_input == name for name in ("reject", "interrupt"))
        self._advance = advance
        self._forward = forward

    def _on_record(self, received: RecordReceived, now_ms: int) -> None:
        key = received.key
        state = self._states.get(key) or self._sleepers.open(key)
        is_checked = (self._pressure.overflowing or self._is_rejecting) and not self._missing
        if is_checked and (refused := self._pressure.refusal(state, received.record)) is not None:
            self._effects.append(refused)
            return
        self.admit(state, received.record, _INPUT, self.segments.last, now_ms)
        if self._missing:
            self._give_up_passed(received.record, now_ms)
        if self.segments.is_ready:
            self._forward(now_ms)

    def _give_up_passed(self, record: Record, now_ms: int) -> None:
        """Say that recorded runs are lost which the source has not given again, and let their keys go on."""
        for lost, key in self._expected.passed(record):
            error = ErrorReport(
                "InputLost",
                f"{lost.source} gives offset {record.offset} and no longer {lost.offset}, whose run is not finished and has "
                "recorded steps; they are given up with it",
                is_retryable=False,
            )
            self._effects.append(self._pressure.policy.last_word(lost, error))
            state = self._states.get(key)
            if state is not None and (run := state.run) is not None and not run.is_started:
                self._advance(run, now_ms)

    def _on_request(self, received: RequestReceived, now_ms: int) -> None:
        key, record = received.key, received.record
        state = self._states.get(key) or self._sleepers.open(key)
        if (refused := self._pressure.refusal(state, record)) is not None:
            self._effects.append(AnswerRequest(record, 0, [], is_final=True, error=refused.error, is_refused=True))
        else:
            self.admit(
                state, record, _INPUT, self.segments.last, now_ms, Request(received.is_kept, received.wants_receipt)
            )

    def supersede_restored(self, now_ms: int) -> None:
        """Let restored requests supersede what comes before them, as they did when they came."""
        if self._is_superseding:
            for run in [run for run in self._runs if run.request is not None]:
                if run in self._runs and (over := self._cancelling.supersede(run, now_ms)) is not None:
                    self._advance(over, now_ms)

    def admit(
        self,
        state: KeyState,
        record: Record,
        event_type: str,
        segment: Segment,
        now_ms: int,
        request: Request | None = None,
    ) -> None:
        """Give an input its admission number, and start it when the key is idle."""
        active, number = state.run, state.next_number
        if self._missing:
            number = self._expected.number(state, record.run_id)
        else:
            state.next_number = number + 1
        if active is None or not active.is_parked:
            run = Run(state, record, event_type, number, now_ms, segment)
            segment.open_runs += 1
        else:
            run = Run(state, record, event_type, number, now_ms, None)
        self._runs[run] = None
        if request is not None:
            self._requests.admit(run, request, now_ms)
        if active is None:
            state.run = run
            self._advance(run, now_ms)
        else:
            if wait_behind(active, run):
                self._advance(run, now_ms)
            if self._missing:
                self._expected.free_watermark(run, self.segments)
            elif len(state.pending or ()) >= self._key_pending_max:
                self._pressure.overflow(state)
            if (
                self._is_superseding
                and event_type == _INPUT
                and (over := self._cancelling.supersede(run, now_ms)) is not None
            ):
                self._advance(over, now_ms)
        if len(self._runs) >= self._in_flight_max and not self._missing:  # what is expected must be read
            self._pressure.pause_at(self._sleepers.in_flight, len(self._waiting.asleep))

"""Limits of an operator, the backpressure that keeps them, and the end of a drain."""

from __future__ import annotations

from typing import Final

import msgspec

from agentflow.core.effects import DeadLetter, Drained, Effect, FailJob, PauseSource, RequestCheckpoint, ResumeSource
from agentflow.core.failures import FailurePolicy
from agentflow.core.inputs import DrainRequested
from agentflow.core.records import ErrorReport, Record
from agentflow.core.runs import KeyState
from agentflow.core.timers import TimerTable


class OperatorLimits(msgspec.Struct, frozen=True):
    """Every queue has a limit.

    Attributes:
        in_flight_max: Unfinished runs at which the source is paused; those that sleep count until a checkpoint has them.
        key_pending_max: Inputs behind one busy key.
        is_overflow_dead: Above it: dead-letter the input, instead of pausing the source.
        tasks_max: Tasks of one run.
        timers_max: Timers of all keys; one more fails the task that sets it.
        cache_bytes: Memory of idle keys.
        sleeping_max: Runs that sleep or wait for a signal, at which the source is paused; they do not count as in flight.
        signals_max: Signals that nobody waits for yet.
        signal_ttl_ms: How long such a one is kept.
    """

    in_flight_max: int = 10_000
    key_pending_max: int = 10_000
    is_overflow_dead: bool = False
    tasks_max: int = 10_000
    timers_max: int = 1_000_000
    cache_bytes: int = 64 * 2**20
    sleeping_max: int = 1_000_000
    signals_max: int = 100_000
    signal_ttl_ms: int = 7 * 86_400_000


class Backpressure:
    """Pauses the source at a limit, and resumes it when every limit is left (that of runs by a quarter); refuses single records.

    Attributes:
        is_paused: Between `PauseSource` and `ResumeSource`.
        overflowing: Keys with too many inputs behind them.
    """

    def __init__(
        self, effects: list[Effect], limits: OperatorLimits, policy: FailurePolicy, *, is_rejecting: bool
    ) -> None:
        self._effects = effects
        self._limits = limits
        self.policy = policy
        self._is_rejecting = is_rejecting
        self.overflowing: dict[KeyState, None] = {}
        self.is_paused = False

    def refusal(self, state: KeyState, record: Record) -> DeadLetter | FailJob | None:
        """Return what becomes of a record that is not admitted, because of the runs that its key has; None: it is."""
        if self._limits.is_overflow_dead and state in self.overflowing:
            message = f"{self._limits.key_pending_max} inputs wait behind this key (key.pending-max)"
            return self.policy.dead_letter(record, ErrorReport("KeyOverflow", message, is_retryable=False))
        if self._is_rejecting and state.run is not None:
            message = f"run {state.run.id} of this key is not over (on_new_input: reject)"
            return self.policy.last_word(record, ErrorReport("RunActive", message, is_retryable=False))
        return None

    def overflow(self, state: KeyState) -> None:
        """Note that a key has as many inputs behind it as it may have."""
        self.overflowing[state] = None
        if not self._limits.is_overflow_dead:
            self.pause("key.pending-max")

    def relieve(self, in_flight: int, sleeping: int) -> None:
        """Resume a source, if it is paused and every limit is left."""
        if not self.is_paused:
            return
        limits = self._limits
        is_key_over = self.overflowing and not limits.is_overflow_dead
        if not is_key_over and in_flight <= limits.in_flight_max * 3 // 4 and sleeping <= limits.sleeping_max * 3 // 4:
            self.is_paused = False
            self._effects.append(ResumeSource())

    def pause_at(self, in_flight: int, asleep: int) -> None:
        """Pause the source if so many runs are too many; those of them that sleep need a checkpoint to be none."""
        if in_flight >= self._limits.in_flight_max and not self.is_paused:
            self.pause("run.in-flight-max")
            if asleep:
                self._effects.append(RequestCheckpoint())

    def limit_sleepers(self, sleeping: int) -> None:
        """Pause the source if so many runs that sleep are too many."""
        if sleeping >= self._limits.sleeping_max:
            self.pause("run.sleeping-max")

    def pause(self, limit: str) -> None:
        """Pause the source, because of ``limit``, if it is not paused."""
        if not self.is_paused:
            self.is_paused = True
            self._effects.append(PauseSource(limit))


TIMERS_AWAITED_MS: Final = 60_000
"""How far behind the end of the input a timer of processing time may be due for a finite job to wait for it."""


class Drain:
    """Says when a drain is done.

    Attributes:
        requested: The request that is not answered yet; None: there is none.
    """

    def __init__(self, effects: list[Effect], timers: TimerTable) -> None:
        self.requested: DrainRequested | None = None
        self._effects = effects
        self._timers = timers

    def begin(self, received: DrainRequested, now_ms: int) -> None:
        """Take a request."""
        self.requested = received
        if received.awaits_all:
            self._timers.await_pending(now_ms + TIMERS_AWAITED_MS)

    def tell(self, requested: DrainRequested, unfinished: int, sleeping: int) -> None:
        """Answer a request, if nothing is left but what need not be awaited."""
        is_done = unfinished == sleeping
        if requested.awaits_all:
            is_done = not unfinished and not self._timers.awaited
        if is_done:
            self.requested = None
            self._effects.append(Drained())

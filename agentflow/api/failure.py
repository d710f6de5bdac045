"""What happens when an action fails: retry first, then `on_error`."""

from __future__ import annotations

import enum
from datetime import timedelta
from typing import Final

import msgspec

from agentflow.api.durations import duration_ms


class OnError(enum.StrEnum):
    """What follows when the attempts of an action are used up, or a retry cannot help."""

    DEAD_LETTER = "dead-letter"
    """The run ends; its input record goes to the dead-letter sink with the reason."""
    SKIP = "skip"
    """The task is dropped; the run goes on."""
    FAIL = "fail"
    """The job stops; the last completed checkpoint is intact."""


class Retry(msgspec.Struct, frozen=True):
    """Retry policy of an action. The waits block nothing: attempt and next time are state.

    The wait before attempt n+1 is ``initial * multiplier ** (n - 1)``, at most ``wait_max``, shortened by up to ``jitter``
    of itself; the jitter derives from the task's id, so a replay waits as long.

    Args:
        attempts: Attempts in total; 1 means no retry.
        initial: First wait (timedelta or ``"500ms"``).
        multiplier: Growth per attempt, at least 1.
        wait_max: Longest wait.
        jitter: Share of the wait that may be taken off, 0 to 1.
    """

    attempts: int = 3
    initial: timedelta | str = "500ms"
    multiplier: float = 2.0
    wait_max: timedelta | str = "30s"
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if self.attempts < 1:
            msg = f"retry: attempts counts all attempts and is at least 1, not {self.attempts}"
            raise ValueError(msg)
        if self.multiplier < 1 or not 0 <= self.jitter <= 1:
            msg = f"retry: multiplier is at least 1 and jitter within 0..1, not {self.multiplier} and {self.jitter}"
            raise ValueError(msg)
        duration_ms(self.initial)
        duration_ms(self.wait_max)

    def wait_ms(self, attempt: int, fraction: float) -> int:
        """Return the wait behind failed ``attempt`` (1-based); ``fraction`` in [0, 1) picks the jitter."""
        wait = duration_ms(self.initial) * self.multiplier ** min(attempt - 1, 64)
        return int(min(wait, duration_ms(self.wait_max)) * (1 - self.jitter * fraction))


DEFAULT_RETRY: Final = Retry()
"""Of actions that say nothing. Calls of models have a retry policy of their own: it does not repeat the action with them."""

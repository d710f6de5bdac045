"""One timer of the loop, set to the next time at which an operator wants to be told what time it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_LATE_S = 0.000_5  # so that the time has come when it rings


class Alarm:
    """Calls ``ring`` when its time has come.

    Args:
        ring: Called on the loop.
    """

    def __init__(self, ring: Callable[[], object]) -> None:
        self._due_ms: int | None = None
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def set(self, due_ms: int | None, now_ms: int) -> None:
        """Let it ring at a time, and not at the former one; None: never."""
        if due_ms == self._due_ms and (due_ms is None or due_ms > now_ms):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due_ms = due_ms
        wait_s = None if due_ms is None else max(0, due_ms - now_ms) / 1000 + _LATE_S
        self._timer = None if wait_s is None else self._loop.call_later(wait_s, self._came)

    def cancel(self) -> None:
        """Never ring."""
        if self._timer is not None:
            self._timer.cancel()

    def _came(self) -> None:
        self._due_ms = self._timer = None
        self._ring()

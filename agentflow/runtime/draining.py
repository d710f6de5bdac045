"""How a subtask comes to its end: its input has ended, or somebody asks it to stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_UNWIND_S, _UNWIND_S_MIN, _UNWIND_S_MAX = 5.0, 0.05, 1.0


class Draining:
    """Waits until all runs have ended, or for as long as runs in flight may take.

    Args:
        stopping: Set when nothing more is to be admitted.
        timeout_ms: How long runs in flight may take behind that.
        begin: Called when the subtask is asked to stop.

    Attributes:
        drained: Set when the input has ended, or nothing more is admitted, and all runs have ended.
    """

    def __init__(self, stopping: asyncio.Event, timeout_ms: int, begin: Callable[[], object]) -> None:
        self.drained = asyncio.Event()
        self._stopping = stopping
        self._hurry = asyncio.Event()
        self._timeout_s = timeout_ms / 1000
        self._begin = begin

    def stop(self) -> None:
        """Ask to stop; again: do not wait for runs in flight."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    @property
    def unwind_s(self) -> float:
        """What cancelled coroutines may take at the end: of a job that was asked to stop as long as its drain at most, but some turns."""
        if not self._stopping.is_set():
            return _UNWIND_S
        return max(min(self._timeout_s, _UNWIND_S_MAX), _UNWIND_S_MIN)

    async def wait(self) -> None:
        """Wait for the end."""
        loop = asyncio.get_running_loop()
        drained, stopping = (loop.create_task(event.wait()) for event in (self.drained, self._stopping))
        try:
            await asyncio.wait([drained, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not drained.done():
                self._begin()
                hurry = loop.create_task(self._hurry.wait())
                try:
                    await asyncio.wait([drained, hurry], timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    hurry.cancel()
        finally:
            drained.cancel()
            stopping.cancel()

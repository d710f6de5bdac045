"""An event loop whose time is a number: it never sleeps, it jumps to the next deadline.

Callbacks run in the order that asyncio gives them, so a program that gets its randomness from a seed runs the same way each
time. Threads and real sockets do not belong here: nothing outside can wake the loop, so a loop in which nothing will ever
happen again says so (`VirtualTimeStopped`) instead of hanging.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Mapping
from typing import Any


class VirtualTimeStopped(RuntimeError):
    """Every task waits, and no deadline is left that could wake one."""


def _nothing() -> None:
    """Stand in until a loop runs."""


class _JumpingSelector(selectors.BaseSelector):
    """A selector without events: waiting moves the time instead."""

    def __init__(self, start_s: float) -> None:
        self.now_s = start_s
        self.jumps_left: int | None = None  # None: as many as there are deadlines
        self.end_s = 0.0  # no jump beyond, where jumps are counted
        self.at_end: Callable[[], None] = _nothing
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:  # noqa: ANN401 (selectors)
        """Remember the loop's own wake-up pipe; it is never ready."""
        key = self._keys[fileobj] = selectors.SelectorKey(fileobj, -1, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:  # noqa: ANN401 (selectors)
        """Forget it."""
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Jump over ``timeout`` seconds; None means that there is nothing to wait for."""
        if timeout == 0:
            return []
        if self.jumps_left is not None:
            if self.jumps_left == 0:
                self.at_end()
            else:
                self.jumps_left -= 1
                self.now_s = self.end_s if timeout is None else min(self.end_s, self.now_s + timeout)
            return []
        if timeout is None:
            msg = "every task waits, and no deadline is left"
            raise VirtualTimeStopped(msg)
        self.now_s += timeout
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Return what is registered."""
        return self._keys


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """See the module's docstring.

    Args:
        start_s: The loop's time at the beginning, in seconds; a later life of a simulated machine goes on with it.
    """

    def __init__(self, start_s: float = 0.0) -> None:
        self._jumping = _JumpingSelector(start_s)
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return virtual seconds."""
        return self._jumping.now_s

    def run_until_idle(self) -> None:
        """Run everything that can run without time going on."""
        self._run(0)

    def run_to_next_deadline(self, seconds_max: float) -> None:
        """Move time to the loop's next deadline, or by ``seconds_max`` when there is none before; run what becomes due."""
        self._run(1, seconds_max)

    def _run(self, jumps: int, seconds_max: float = 0.0) -> None:
        jumping = self._jumping
        jumping.jumps_left, jumping.end_s, jumping.at_end = jumps, self.time() + seconds_max, self.stop
        try:
            self.run_forever()
        finally:
            jumping.jumps_left = None


class VirtualClock:
    """The port `Clock` over the loop's time.

    Args:
        loop: The loop.
        epoch_ms: Epoch milliseconds at the loop's time 0.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, epoch_ms: int = 1_700_000_000_000) -> None:
        self._loop = loop
        self._epoch_ms = epoch_ms

    def now_ms(self) -> int:
        """Return epoch milliseconds; half a microsecond makes up for what float arithmetic takes away."""
        return self._epoch_ms + int(self._loop.time() * 1000 + 0.0005)

"""An event loop whose time is a number: it never sleeps, it jumps to the next deadline.

Callbacks run in the order that asyncio gives them, so a program that gets its randomness from a seed runs the same way each
time. Threads and real sockets do not belong here: nothing outside can wake the loop, so a loop in which nothing will ever
happen again says so (`VirtualTimeStopped`) instead of hanging.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any


class VirtualTimeStopped(RuntimeError):
    """Every task waits, and no deadline is left that could wake one."""


class _JumpingSelector(selectors.BaseSelector):
    """A selector without events: waiting moves the time instead."""

    def __init__(self, start_s: float) -> None:
        self.now_s = start_s
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
        if timeout is None:
            msg = "every task waits, and no deadline is left"
            raise VirtualTimeStopped(msg)
        self.now_s += max(0.0, timeout)
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

"""Blocks of records, read in a thread while the job works on the one before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from agentflow.core.records import Record


class ReadAhead:
    """Reads one block ahead.

    Args:
        read: Returns the records of the next block, none at the end; called in a thread, one call at a time.
    """

    def __init__(self, read: Callable[[], Sequence[Record]]) -> None:
        self._read = read
        self._ready: Sequence[Record] = ()
        self._taken = 0  # of the ready ones
        self._reading: asyncio.Task[Sequence[Record]] | None = None

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next records; an empty sequence at the end, also when asked again."""
        while self._taken == len(self._ready):
            # A cancelled fetch leaves its block to the next one: nothing is read twice and nothing is lost.
            self._reading = self._reading or self._begin()
            records = await asyncio.shield(self._reading)
            self._reading = None
            if not records:
                return []
            self._ready, self._taken = records, 0
            self._reading = self._begin()
        first, self._taken = self._taken, min(len(self._ready), self._taken + records_max)
        return self._ready[first : self._taken]

    async def close(self) -> None:
        """Wait for a read under way, and forget what was read."""
        if self._reading is not None:
            await asyncio.wait([self._reading])
            self._reading.exception()  # nobody asks for it any more
            self._reading = None
        self._ready, self._taken = (), 0

    def _begin(self) -> asyncio.Task[Sequence[Record]]:
        return asyncio.create_task(asyncio.to_thread(self._read))

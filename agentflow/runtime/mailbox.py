"""The bounded inbox of a subtask: what was read and is not applied yet.

Of records at most one batch waits; the next one is fetched when the subtask has taken it. While the source is paused nothing is
fetched; signals always are, because runs in flight may wait for them. Nothing is fetched either while a sink holds as much as it may.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from agentflow.core.records import Record
from agentflow.runtime.ports import BufferingSink, Signals, Sink, Source

_TURN_RECORDS_FIRST, _TURN_RECORDS_MAX = 16, 256
_TURN_MS = 10
"""What a turn should take at most, so that timers, completions and checkpoints stay responsive behind a slow synchronous agent."""


class Mailbox:
    """Reads records and signals until they end, or it is cancelled.

    Attributes:
        batches: Batches of records; an empty one is the end of input.
        signals: Records of signals.
        stopping: Set: nothing more is read of the source.
        turn_records: Records that a turn should take at most.

    Args:
        source: Open.
        schedule: Called when something has come.
        fail: Takes the error of a reader.
        sinks: What they hold is limited.
        on_full: Called when one of them is full; it gets room when a checkpoint completes.
    """

    def __init__(
        self,
        source: Source,
        schedule: Callable[[], object],
        fail: Callable[[BaseException], None],
        sinks: Iterable[Sink] = (),
        on_full: Callable[[], object] = bool,
    ) -> None:
        self.batches: deque[Sequence[Record]] = deque()
        self.signals: deque[Record] = deque()
        self.stopping = asyncio.Event()
        self._source = source
        self._schedule = schedule
        self._fail = fail
        self._has_room = asyncio.Event()
        self._rooms = [sink.room for sink in sinks if isinstance(sink, BufferingSink)]
        self._on_full = on_full
        self._resumed = asyncio.Event()
        self._resumed.set()
        self.turn_records = _TURN_RECORDS_FIRST

    @property
    def is_paused(self) -> bool:
        """Whether the source is paused."""
        return not self._resumed.is_set()

    def pause(self) -> None:
        """Fetch no more records."""
        self._resumed.clear()

    def resume(self) -> None:
        """Fetch records again."""
        self._resumed.set()

    def take_more(self, took_ms: int) -> None:
        """Let the next batch come: a smaller one when the last one took long, a larger one when it did not."""
        if took_ms > _TURN_MS:
            self.turn_records = max(1, self.turn_records // 2)
        elif took_ms < _TURN_MS // 2:
            self.turn_records = min(_TURN_RECORDS_MAX, self.turn_records * 2)
        self._has_room.set()

    async def read(self) -> None:
        """Read the source to its end."""
        try:
            while not self.stopping.is_set():
                await self._resumed.wait()
                for room in self._rooms:
                    if not room.is_set():
                        self._on_full()
                        await room.wait()
                records = await self._source.fetch(self.turn_records)
                if self.stopping.is_set():
                    return  # not admitted: the position stays before them
                self._has_room.clear()
                self.batches.append(records)
                self._schedule()
                if not records:
                    return
                await self._has_room.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 (the subtask's edge: the job decides)
            self._fail(error)

    async def read_signals(self, signals: Signals) -> None:
        """Read signals to the end of the subtask: runs in flight may wait for them while it drains, and while it is paused."""
        try:
            while True:
                self.signals += await signals.fetch(_TURN_RECORDS_MAX)
                self._schedule()
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 (the subtask's edge: the job decides)
            self._fail(error)

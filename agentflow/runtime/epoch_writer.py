"""Makes an epoch of a subtask durable, behind its barrier, while reading and actions go on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import chain

import msgspec

from agentflow.core.delta import INCARNATION_NAME, JOURNAL_NAME, SLICE_ENTRIES_MAX, DeltaSlices, StateWrite, Table
from agentflow.core.effects import TakeSnapshot
from agentflow.runtime.checkpoints import EmbeddedCheckpoints
from agentflow.runtime.counters import Counters
from agentflow.runtime.journal_writer import JournalWriter
from agentflow.runtime.ports import KeyedState, Signals
from agentflow.runtime.savepoints import facts_of
from agentflow.runtime.settings import JobSettings


class EpochWriter:
    """Writes the epochs of one subtask, one after the other.

    Args:
        checkpoints: Already recovered.
        state: Keyed state.
        settings: The job's settings.
        incarnation: Id of the state; written with the first checkpoint of a process.
        counters: Told of each checkpoint.

    Attributes:
        journal: What durable steps are recorded in; None: there is none.
        signals: What signals come from; None: nothing.
    """

    def __init__(
        self,
        checkpoints: EmbeddedCheckpoints,
        state: KeyedState,
        settings: JobSettings,
        incarnation: str,
        counters: Counters,
    ) -> None:
        self.journal: JournalWriter | None = None
        self.signals: Signals | None = None
        self._checkpoints = checkpoints
        self._state = state
        self._settings = settings
        self._incarnation = incarnation
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._is_first = True
        self._bytes = self._results = 0

    def barrier(self, checkpoint: int) -> None:
        """Close the epoch of every sink; in the turn of the operators' barrier, right before `write`."""
        self._checkpoints.barrier(checkpoint)
        self._counters.barrier(checkpoint)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of keyed state, by part."""
        return self._state.sizes

    async def export(self, request: str) -> None:
        """Hand out the state of the last checkpoint, before the next one is taken; see `KeyedState.export`."""
        await self._state.export(request, facts_of(self._state))

    async def write(
        self,
        checkpoint: int,
        snapshots: Sequence[TakeSnapshot],
        positions: Mapping[str, int],
        journal_position: int | None,
    ) -> None:
        """Complete a checkpoint, and let go of what it has.

        Args:
            checkpoint: Its number.
            snapshots: Those of all operators.
            positions: Of sources and signals, at the barrier.
            journal_position: Behind what the journal had at the barrier; None: there is no journal.
        """
        began, self._bytes = self._loop.time(), 0
        async with asyncio.timeout(self._settings.checkpoint.timeout_ms / 1000):
            await self._checkpoints.complete(checkpoint, self._delta(snapshots, journal_position))
            if self.journal is not None and journal_position:
                await self.journal.release(journal_position)
            if self.signals is not None:
                await self.signals.release(positions)
        counters = self._counters
        counters.complete(checkpoint)
        counters.checkpoint_bytes = self._bytes
        counters.checkpoint_ms = round((self._loop.time() - began) * 1000)
        self._is_first = False

    async def sweep(self, now_ms: int, oldest_run_ms: int) -> None:
        """Delete some of what has expired: memory that no unfinished run may still read, and results of requests.

        Args:
            now_ms: The time.
            oldest_run_ms: The clock of the oldest unfinished run.
        """
        ttl_ms = self._settings.state.ttl_ms
        if ttl_ms is not None:
            await self._state.sweep(Table.MEMORY, oldest_run_ms - ttl_ms, oldest_run_ms)
        retention_ms = self._settings.request_id.retention_ms
        written, self._results = self._results, 0
        for _ in range(1 + 2 * written // SLICE_ENTRIES_MAX):  # faster than they come, so that their number is bounded
            await self._state.sweep(Table.RESULTS, now_ms - retention_ms, now_ms)

    def _delta(self, snapshots: Sequence[TakeSnapshot], journal_position: int | None) -> DeltaSlices:
        first: list[StateWrite] = []
        if self._is_first:
            encoded = msgspec.msgpack.encode(self._incarnation)
            first.append((Table.META, 0, b"", INCARNATION_NAME, encoded))
        if journal_position:
            first.append((Table.META, 0, b"", JOURNAL_NAME, msgspec.msgpack.encode(journal_position)))
        for writes in chain([first], *(snapshot.slices for snapshot in snapshots)):
            self._bytes += sum([len(value) for _, _, _, _, value in writes if value is not None])
            if writes and writes[-1][0] is Table.RESULTS:
                self._results += len(writes)
            yield writes

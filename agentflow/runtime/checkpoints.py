"""Checkpoints of an embedded job: one keyed state and any number of sinks become durable together.

The order of semantics.md ("Embedded job"), which was searched exhaustively as a model:

1. every sink stages N and syncs file and directory;
2. ``prepared/N`` (the delta, the staged names) is written to keyed state and synced: **N is decided**;
3. every sink publishes by atomic rename; this can be repeated;
4. the delta is applied in slices, then ``prepared/N`` is removed, synced.

Recovery: ``prepared/N`` present → roll forward from (3), always; absent → all staging is deleted, N-1 stands. Asking a sink
whether N is published instead was tried and loses outputs: a reader may have taken the files away.
"""

from __future__ import annotations

from collections.abc import Mapping

from agentflow.core.delta import DeltaSlices
from agentflow.runtime.ports import KeyedState, Sink, Staged


class EmbeddedCheckpoints:
    """Completes and recovers checkpoints.

    Args:
        state: Keyed state.
        sinks: Sinks by role (``sink``, ``dead-letter``); the role names a sink in ``prepared/N``.
    """

    def __init__(self, state: KeyedState, sinks: Mapping[str, Sink]) -> None:
        self._state = state
        self._sinks = dict(sinks)

    async def recover(self) -> int:
        """Open the sinks, finish a decided checkpoint, and return the number of the last completed one."""
        prepared = self._state.prepared
        for role, sink in self._sinks.items():
            await sink.open(None if prepared is None else (prepared.checkpoint, prepared.staged.get(role, Staged())))
        if prepared is not None:
            await self._publish(prepared.checkpoint, prepared.staged)
            await self._state.complete()
        return self._state.checkpoint

    def barrier(self, checkpoint: int) -> None:
        """Close the epoch of every sink; in the same turn of the loop as the barrier of the operators."""
        for sink in self._sinks.values():
            sink.barrier(checkpoint)

    async def complete(self, checkpoint: int, delta: DeltaSlices) -> None:
        """Make checkpoint N durable and visible. After an error it may be decided or not: only `recover` can tell."""
        staged = {role: await sink.stage(checkpoint) for role, sink in self._sinks.items()}  # 1
        await self._state.prepare(checkpoint, delta, staged)  # 2
        await self._publish(checkpoint, staged)  # 3
        await self._state.complete()  # 4

    async def _publish(self, checkpoint: int, staged: Mapping[str, Staged]) -> None:
        for role, sink in self._sinks.items():
            await sink.publish(checkpoint, staged.get(role, Staged()))

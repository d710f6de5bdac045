"""The keys that the operator holds in process memory, and how idle ones leave it.

A key stays while it is busy, while a write of it is not yet applied to keyed state, and while a run of it ended after the
last completed checkpoint (its admission numbers may be in use until then). Other keys are a cache, bounded in bytes and
emptied by the clock algorithm: a key that was used since the hand last passed gets another round.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from itertools import islice

from agentflow.core.runs import KeyState

_KEY_OVERHEAD_BYTES = 400  # KeyState, its dict and its place in the table, measured
_ENTRY_OVERHEAD_BYTES = 100
_EVICTIONS_PER_CALL_MAX = 4_000  # about 1 ms


class KeyTable:
    """States by canonical key; ``states`` is read directly on the hot path."""

    def __init__(self, cache_bytes_max: int) -> None:
        self.states: dict[bytes, KeyState] = {}
        self._bytes_max = cache_bytes_max
        self._bytes = 0
        self._seen_in: dict[KeyState, int] = {}

    def account(self, state: KeyState) -> None:
        """Bring the size of one key up to date."""
        size = _KEY_OVERHEAD_BYTES
        for value in state.memory.values():
            size += _ENTRY_OVERHEAD_BYTES if value is None else _ENTRY_OVERHEAD_BYTES + len(value)
        self._bytes += size - state.size
        state.size = size

    def evict(self, completed_epoch: int, unapplied: Iterable[Container[KeyState]]) -> None:
        """Drop idle keys while the cache is too large; bounded work.

        Args:
            completed_epoch: The last epoch whose checkpoint is completed.
            unapplied: Keys with writes that keyed state does not have yet.
        """
        held = tuple(unapplied)
        excess = len(self.states) * _KEY_OVERHEAD_BYTES + self._bytes - self._bytes_max
        if excess <= 0:
            return
        for key, state in list(islice(self.states.items(), _EVICTIONS_PER_CALL_MAX)):
            if excess <= 0:
                break
            del self.states[key]
            is_held = (
                state.run is not None
                or state.ended_in > completed_epoch
                or any(state in writes for writes in held)
                or self._seen_in.get(state) != state.ended_in  # used since the hand last passed
            )
            if is_held:
                self._seen_in[state] = state.ended_in
                self.states[key] = state  # to the end: the hand passes it again after all others
            else:
                self._seen_in.pop(state, None)
                self._bytes -= state.size
                excess -= state.size + _KEY_OVERHEAD_BYTES

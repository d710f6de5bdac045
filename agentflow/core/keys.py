"""The keys that the operator holds in process memory, and how idle ones leave it.

A key stays while it is busy, while a write of it is not yet applied to keyed state, and while a run of it ended after the
last completed checkpoint (its admission numbers may be in use until then). Other keys are a cache, bounded in bytes and
emptied by the clock algorithm: a key that was used since the hand last passed gets another round, if anything of its memory is
cached.

While the cache is too large, the hand goes round all keys behind every completed checkpoint, however many have come: so there are
never many more than the bound has room for and the last few epochs have used. It goes a few at a time, as time that is due at once.

    checkpoint completed ──► some keys ── due at once ──► some more … all keys passed, or the cache small enough ──► done
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

from agentflow.core.runs import KeyState

_KEY_BYTES = 600  # a KeyState, its dicts, its place in the table and in the sink, measured
_ENTRY_BYTES = 100  # of one memory value, besides itself
_FEW_PATHS = 16
_PASSED_PER_CALL_MAX = 2_000  # 1 to 4 ms


class KeyTable:
    """States by canonical key; ``states`` is read directly on the hot path."""

    def __init__(self, cache_bytes_max: int) -> None:
        self.states: dict[bytes, KeyState] = {}
        self._bytes_max = cache_bytes_max
        self._bytes = 0  # of all memory values: the sum of `KeyState.size`
        self._seen_in: dict[KeyState, int] = {}
        self._left = 0  # keys that the hand has still to pass behind the last completed checkpoint

    @property
    def next_due_ms(self) -> int | None:
        """When `go_on` is wanted: at once, or not at all."""
        return 0 if self._left > 0 else None

    def grow(self, state: KeyState, values: Iterable[bytes | None]) -> None:
        """Account values that were not in the cache before."""
        size = _size(values)
        state.size += size
        self._bytes += size

    def note_written(self, written: Iterable[tuple[KeyState, Mapping[str, bytes | None]]]) -> None:
        """Account written values; of a key with many others, what they replaced stays accounted until the hand passes."""
        grown = 0
        for state, changed in written:
            size = 0
            held: Mapping[str, bytes | None] = state.memory
            if len(held) > _FEW_PATHS and len(held) > len(changed):
                held, size = changed, state.size
            for value in held.values():  # in place of calls: every changed key comes by here
                size += _ENTRY_BYTES if value is None else _ENTRY_BYTES + len(value)
            grown += size - state.size
            state.size = size
        self._bytes += grown

    def drop(self, state: KeyState) -> None:
        """Forget a key that is idle, or whose run is kept elsewhere; keyed state has all of its memory."""
        del self.states[state.key]
        self._seen_in.pop(state, None)
        self._bytes -= state.size

    def go_round(self, completed_epoch: int) -> None:
        """Begin to pass every key, because a checkpoint is completed; see `evict`."""
        self._left = len(self.states)
        self.evict(completed_epoch)

    def go_on(self, completed_epoch: int) -> None:
        """Pass some of the keys that are left of the round, if any is; see `evict`."""
        if self._left > 0:
            self.evict(completed_epoch)

    def evict(self, completed_epoch: int) -> None:
        """Drop idle keys while the cache is too large; bounded work.

        Args:
            completed_epoch: The last epoch whose checkpoint is completed. A key whose last run ended in it, or before, has no
                write that keyed state does not have.
        """
        if self._excess() <= 0:
            self._left = 0
            return
        states = self.states
        passed = list(islice(states.values(), _PASSED_PER_CALL_MAX))
        self._left -= len(passed)
        for state in passed:
            if state.memory:
                self._recount(state)
        excess, seen_in = self._excess(), self._seen_in
        for state in passed:
            if excess <= 0:
                break
            del states[state.key]
            is_held = state.run is not None or state.ended_in > completed_epoch
            if state.memory or state.is_loaded:
                is_held = is_held or seen_in.get(state) != state.ended_in  # used since the hand last passed
                if is_held:
                    seen_in[state] = state.ended_in
                else:
                    seen_in.pop(state, None)
            if is_held:
                states[state.key] = state  # to the end: the hand passes it again after all others
            else:
                self._bytes -= state.size
                excess -= _KEY_BYTES + state.size
        if excess <= 0:
            self._left = 0

    def _recount(self, state: KeyState) -> None:
        self._bytes -= state.size
        state.size = _size(state.memory.values())
        self._bytes += state.size

    def _excess(self) -> int:
        return len(self.states) * _KEY_BYTES + self._bytes - self._bytes_max


def _size(values: Iterable[bytes | None]) -> int:
    """Return the bytes of memory values."""
    return sum([_ENTRY_BYTES if value is None else _ENTRY_BYTES + len(value) for value in values])

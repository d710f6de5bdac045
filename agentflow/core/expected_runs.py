"""Runs that the journal knows and the source has not given again: they keep their places in the order of their keys.

What a recorded step has seen includes what earlier runs of its key did, so after a recovery a key's runs take the same turns
again, although two sources interleave differently: a recorded run gets its number back, any other the lowest free one, and a run
starts when all recorded lower ones have ended.
"""

from __future__ import annotations

import msgspec

from agentflow.core.runs import KeyState, Run


class _Places(msgspec.Struct, eq=False):
    missing: dict[str, int]  # run id → number
    taken: set[int]  # numbers of recorded runs, admitted or not


class ExpectedRuns:
    """False when nothing is expected, which is nearly always."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, _Places] = {}

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def expect(self, key: bytes, run_id: str, number: int) -> None:
        """Keep a place for a run."""
        places = self._by_key.setdefault(key, _Places({}, set()))
        places.missing[run_id] = number
        places.taken.add(number)

    def number(self, state: KeyState, run_id: str) -> int:
        """Return the number of a run that is admitted now."""
        places = self._by_key.get(state.key)
        if places is None:
            number = state.next_number
            state.next_number += 1
            return number
        number = places.missing.pop(run_id, -1)
        while state.next_number in places.taken:
            state.next_number += 1
        if number < 0:
            number = state.next_number
            state.next_number += 1
        if not places.missing:
            state.next_number = max(state.next_number, *(taken + 1 for taken in places.taken))
            del self._by_key[state.key]
        return number

    def holds_back(self, run: Run) -> bool:
        """Whether a run with a lower number is missing."""
        places = self._by_key.get(run.key)
        return places is not None and any(number < run.number for number in places.missing.values())

"""Rounds over a table that delete what has expired, shared by the stores.

A round looks at every row once. It leaves behind the least stamp that it has seen: until that has expired too, and what was written
since the round began, another round would find nothing.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

NEVER_MS: Final = 2**63
PlaceT = TypeVar("PlaceT")


class SweepRound(Generic[PlaceT]):
    """How far a table is swept.

    Attributes:
        place: Where the round goes on; None: the next call begins one.
    """

    def __init__(self) -> None:
        self.place: PlaceT | None = None
        self._nothing_before_ms = 0  # until a round has ended, anything may be expired
        self._oldest_ms = NEVER_MS
        self._fresh_ms = 0

    def is_idle(self, unused_since_ms: int) -> bool:
        """Whether nothing can have expired."""
        return unused_since_ms < self._nothing_before_ms

    def begin(self, place: PlaceT, fresh_ms: int) -> PlaceT:
        """Return where to look: at ``place`` if a round begins."""
        if self.place is None:
            self.place, self._oldest_ms, self._fresh_ms = place, NEVER_MS, fresh_ms
        return self.place

    def keep(self, stamp_ms: int) -> None:
        """Note a row that has not expired."""
        self._oldest_ms = min(self._oldest_ms, stamp_ms)

    def end(self) -> None:
        """Note that the round has seen every row."""
        self.place, self._nothing_before_ms = None, min(self._oldest_ms, self._fresh_ms)

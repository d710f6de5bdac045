"""The segmented queue: watermarks between groups of runs (Flink Agents' SegmentedQueue).

    segment 1 (2 runs) | watermark 10 | segment 2 (0 runs) | watermark 20 | segment 3: the open one, new runs join it

A watermark may leave when every run of every earlier segment has ended or parked; the operator additionally fires the
event-time timers due by then, whose runs join the first segment, so that the watermark waits for them too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from agentflow.core.runs import Run

END_OF_TIME_MS = 2**63 - 1
"""The watermark behind the last record of an input that ends."""


class Segment(msgspec.Struct, eq=False):
    """Runs between two watermarks.

    Attributes:
        number: Place in the queue; unique among the segments that are in it.
        open_runs: Unfinished runs that hold the watermark.
        watermark_ms: The watermark behind the segment; None for the last, open one.
    """

    number: int
    open_runs: int = 0
    watermark_ms: int | None = None


class SegmentedQueue:
    """Segments in order; the last one is open. Never longer than the number of unfinished runs plus two.

    Attributes:
        last: The open segment.
        is_ready: A closed segment has become empty: perhaps a watermark can leave.
        forwarded_ms: The last watermark that left.
    """

    def __init__(
        self, closed: Iterable[tuple[int, int]] = (), open_number: int = 0, forwarded_ms: int | None = None
    ) -> None:
        self._segments = deque(Segment(number, 0, watermark_ms) for number, watermark_ms in closed)
        self.is_ready = False
        self.last = Segment(open_number)
        self._segments.append(self.last)
        # A watermark at the end of time says that an input has ended; when the job runs again, it may have grown.
        self.forwarded_ms = None if forwarded_ms == END_OF_TIME_MS else forwarded_ms

    @property
    def first(self) -> Segment:
        """The segment whose watermark is next to leave."""
        return self._segments[0]

    @property
    def closed(self) -> list[tuple[int, int]]:
        """(number, watermark) of every closed segment, for the snapshot."""
        return [(s.number, s.watermark_ms) for s in self._segments if s.watermark_ms is not None]

    @property
    def open_number(self) -> int:
        """Number of the open segment, for the snapshot; 0 when no run and no closed segment needs it to differ."""
        return self.last.number if self.last.open_runs or len(self._segments) > 1 else 0

    def by_number(self) -> dict[int, Segment]:
        """Return the segments by number, for restore."""
        return {segment.number: segment for segment in self._segments}

    def close(self, watermark_ms: int) -> bool:
        """Put a watermark behind everything admitted so far; False when it does not advance time."""
        segments = self._segments
        before = segments[-2].watermark_ms if len(segments) > 1 else self.forwarded_ms
        if before is not None and watermark_ms <= before:
            return False
        if self.last.open_runs == 0 and len(segments) > 1:
            segments[-2].watermark_ms = watermark_ms  # nothing lies between the two: the later one says it all
        else:
            self.last.watermark_ms = watermark_ms
            self.last = Segment(self.last.number + 1)
            segments.append(self.last)
        return True

    def join(self, run: Run) -> None:
        """Let a run without a segment join the open one."""
        run.segment = self.last
        self.last.open_runs += 1

    def leave(self, run: Run) -> None:
        """Let a run hold no watermark any more."""
        segment = run.segment
        if segment is not None:
            run.segment = None
            segment.open_runs -= 1
            if not segment.open_runs and segment.watermark_ms is not None:
                self.is_ready = True

    def ready_ms(self) -> int | None:
        """Return the watermark that no run holds any more; None when there is none."""
        first = self._segments[0]
        return first.watermark_ms if first.open_runs == 0 else None

    def forward(self) -> int:
        """Take the ready watermark out of the queue."""
        first = self._segments.popleft()
        assert first.open_runs == 0 and first.watermark_ms is not None  # noqa: PT018 (one invariant)
        self.forwarded_ms = first.watermark_ms
        return first.watermark_ms

"""The order of a key's runs: by admission number, also after a recovery from the journal.

What a recorded step has seen includes what earlier runs of its key did. So after a recovery the runs of a key take the same turns
again, although two sources interleave differently: a recorded run gets its number back, any other the lowest free one above those
that have begun, and a run starts when all recorded lower ones have ended.

A source gives the records of a label in ascending order. So when it gives one behind a recorded run that has not come, that run's
input is lost (deleted by retention or compaction while the job was down), and its key waits for it no longer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from agentflow.core.records import Record
from agentflow.core.runs import KeyState, Run
from agentflow.core.segments import SegmentedQueue
from agentflow.core.steps import Steps


def wait_behind(active: Run, run: Run) -> bool:
    """Put a new run behind the key's active one and those that wait; True: it comes first, and ``active`` waits for it."""
    state = run.state
    if state.pending is None:
        state.pending = deque()
    if run.number < active.number:  # it is recorded, and the other one has not begun
        state.run = run
        state.pending.appendleft(active)
        return True
    state.pending.append(run)
    if len(state.pending) > 1 and run.number < state.pending[-2].number:
        state.pending = deque(sorted(state.pending, key=lambda waiting: waiting.number))
    return False


class _Places(msgspec.Struct, eq=False):
    missing: dict[str, int]  # run id → number
    timers: set[str]  # those of them that a timer starts
    taken: set[int]  # numbers of recorded runs, admitted or not


class ExpectedRuns:
    """Runs that the journal knows and the source has not given again.

    Attributes:
        by_key: Where they stand; empty nearly always.

    Args:
        steps: What the journal knows.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.by_key: dict[bytes, _Places] = {}
        self._by_source: dict[str, dict[int, bytes]] = {}  # label → offset → key, of those that a record starts

    def expect(self, admitted: Iterable[Run], segments: SegmentedQueue) -> None:
        """Keep a place for every recorded run that is not among the ``admitted`` ones."""
        ids = {run.id for run in admitted}
        for run_id, run in self._steps.runs.items():
            if run_id not in ids:
                places = self.by_key.setdefault(run.key, _Places({}, set(), set()))
                places.missing[run_id] = run.number
                places.taken.add(run.number)
                if run.is_timer:
                    places.timers.add(run_id)
                else:
                    source, _, offset = run_id.rpartition("/")
                    self._by_source.setdefault(source, {})[int(offset)] = run.key
        for waiting in admitted:
            if not waiting.is_started:
                self.free_watermark(waiting, segments)

    def number(self, state: KeyState, run_id: str) -> int:
        """Return the number of a run that is admitted now."""
        places = self.by_key.get(state.key)
        if places is None:
            number = state.next_number
            state.next_number += 1
            return number
        number = places.missing.pop(run_id, -1)
        places.timers.discard(run_id)
        while state.next_number in places.taken:
            state.next_number += 1
        if number < 0:
            number = state.next_number
            state.next_number += 1
        if not places.missing:
            state.next_number = max(state.next_number, *(taken + 1 for taken in places.taken))
            del self.by_key[state.key]
        return number

    def passed(self, record: Record) -> list[tuple[Record, bytes]]:
        """Give up the runs whose records the source has passed with this one; return what is known of these, and their keys."""
        expected = self._by_source.get(record.source)
        if expected is None:
            return []
        passed = sorted(offset for offset in expected if offset <= record.offset)
        lost: list[tuple[Record, bytes]] = []
        for offset in passed:
            key = expected.pop(offset)
            gone, places = Record(record.source, offset, record.offset, None), self.by_key.get(key)
            if places is not None and places.missing.pop(gone.run_id, None) is not None:
                self._steps.end(gone.run_id)
                lost.append((gone, key))
                if not places.missing:
                    del self.by_key[key]
        return lost

    def free_watermark(self, run: Run, segments: SegmentedQueue) -> None:
        """Let a run that waits for the run of a timer hold no watermark: the timer may wait for it."""
        places = self.by_key.get(run.key)
        if places is not None and any(places.missing[run_id] < run.number for run_id in places.timers):
            segments.leave(run)

    def lets_begin(self, run: Run, segments: SegmentedQueue) -> bool:
        """Whether no run with a lower number is missing; if so, no later one gets a number below."""
        places = self.by_key.get(run.key)
        if places is None:
            return True
        if any(number < run.number for number in places.missing.values()):
            self.free_watermark(run, segments)
            return False
        run.state.next_number = max(run.state.next_number, run.number + 1)
        return True

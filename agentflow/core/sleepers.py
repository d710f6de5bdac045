"""Sleeping runs, folded: of a run that a checkpoint has, and that nothing but time or a message of its key can move, only the rows stay.

The rows are those of the checkpoint, so a run is folded as it is stored and unfolded as it is restored. Folding needs no hurry, and is
done a few runs at a time: a run at most for each that falls asleep, and some behind each checkpoint.

    sleeping ── its checkpoint is completed, nothing waits behind it ──► folded ── due, signal, cancellation, input of its key ──► sleeping
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import islice

import msgspec

from agentflow.core.delta import StateWrite, StoredRow, Table
from agentflow.core.epoch import EpochChanges
from agentflow.core.inputs import Input
from agentflow.core.journal_records import ATTEMPT, WAIT, decode_record, rows_of
from agentflow.core.keys import KeyTable
from agentflow.core.run_table import RunTable
from agentflow.core.runs import PARKED, KeyState, Run
from agentflow.core.steps import Steps
from agentflow.core.stored_runs import decode_entry, decode_run, encode_run
from agentflow.core.waiting import Waiting
from agentflow.core.waits import decode_wait
from agentflow.plan.plan import AgentPlan

_PER_CHECKPOINT = 500  # some 5 ms
_PER_SLEEPER = 2
_STALE_MAX = 64
Rows = dict[Table, list[StoredRow]]
_Entry = tuple[int, bytes, bytes]  # (time, key, folded run)


class _Folded(msgspec.Struct, array_like=True, frozen=True, gc=False):
    run_id: str
    admitted_ms: int
    row: bytes
    steps: tuple[bytes, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Folded).decode


class Sleepers:
    """Folds and unfolds the sleeping runs of one operator.

    Attributes:
        by_key: The folded runs, each one string of bytes: there may be very many, and an object has a head and neighbours.
    """

    def __init__(
        self, plan: AgentPlan, changes: EpochChanges, keys: KeyTable, runs: RunTable, steps: Steps, waiting: Waiting
    ) -> None:
        self.by_key: dict[bytes, bytes] = {}
        self._plan = plan
        self._changes = changes
        self._keys = keys
        self._runs = runs
        self._steps = steps
        self._waiting = waiting
        self._due: list[_Entry] = []  # by deadline; stale where the run is not folded any more
        self._oldest: list[_Entry] | None = None  # by clock; the same; None: nobody has asked yet
        self._is_late = False

    @property
    def count(self) -> int:
        """Runs that sleep, folded or not."""
        return self._waiting.sleeping + len(self.by_key)

    @property
    def in_flight(self) -> int:
        """Runs that are whole, but for those that sleep and cannot be folded."""
        return len(self._runs) - self._waiting.sleeping + len(self._waiting.asleep)

    # -- restore
    def restore(self, rows: Rows, journal: Sequence[bytes], checkpoint: int) -> Rows:
        """Take the sleeping runs among stored rows as they are; return the other rows.

        A run stays among them if its key has another one, or the journal has news of its key.
        """
        runs: dict[bytes, list[StoredRow]] = {}
        for row in rows.get(Table.RUNS, ()):
            runs.setdefault(row.key, []).append(row)
        steps: dict[bytes, list[StoredRow]] = {}
        for row in rows.get(Table.STEPS, ()):
            steps.setdefault(row.key, []).append(row)
        for record in map(decode_record, journal):
            if record.epoch > checkpoint:
                runs.pop(record.key, None)
        for key, of_key in runs.items():
            if len(of_key) == 1 and key in steps and self._restore(of_key[0], steps[key]):
                del steps[key]
        self._steps.is_tracking |= bool(self.by_key)
        return rows | {
            Table.RUNS: [row for row in rows.get(Table.RUNS, ()) if row.key not in self.by_key],
            Table.STEPS: [row for of_key in steps.values() for row in of_key],
        }

    def _restore(self, row: StoredRow, steps: list[StoredRow]) -> bool:
        run = decode_entry(row.value)
        if run.segment is not None or [task.status for task in run.tasks[: run.group_size or 1]] != [PARKED]:
            return False
        if any(task.action not in self._plan.action_by_name for task in run.tasks):
            return False  # whoever restores it says what is wrong
        records = [decode_record(step.value) for step in steps]
        waits = [decode_wait(record.payload) for record in records if record.kind == WAIT]
        if not waits or any(record.kind == ATTEMPT or record.run != row.name for record in records):
            return False
        folded = _encode(_Folded(row.name, run.admitted_ms, row.value, tuple(step.value for step in steps)))
        due_ms = min((wait.due_ms for wait in waits if wait.due_ms is not None), default=None)
        if due_ms is not None:
            self._push(self._due, (due_ms, row.key, folded))
        self.by_key[row.key] = folded
        return True

    # -- folding
    def fold(self, *, is_behind_checkpoint: bool) -> None:
        """Fold some runs that have slept through a checkpoint, longest first; where there are more, time is due at once."""
        asleep = self._waiting.asleep
        self._is_late = False
        for _ in range(_PER_CHECKPOINT if is_behind_checkpoint else _PER_SLEEPER):
            run = next(iter(asleep), None)
            if run is None or run.is_changed or run.is_frozen or self._changes.has_unapplied(run.state):
                return  # the next checkpoint has it, or the one that is being written
            del asleep[run]
            if self._can_fold(run):
                self._fold(run)
        self._is_late = is_behind_checkpoint

    def _can_fold(self, run: Run) -> bool:
        """Whether the rows are all there is; else it stays as it is, which costs memory only."""
        state, recorded = run.state, self._steps.runs.get(run.id)
        return (
            run.is_saved
            and run.current is not None
            and run.current.status == PARKED
            and not state.pending
            and state.ended_in <= self._changes.completed
            and recorded is not None
            and all(step.is_durable for task in recorded.tasks.values() for step in task.steps.values())
        )

    def _fold(self, run: Run) -> None:
        state, task = run.state, run.current
        assert task is not None
        due_ms = min(
            (one.wait.due_ms for one in self._waiting.waits.of(task) if one.wait.due_ms is not None), default=None
        )
        folded = _encode(_Folded(run.id, run.admitted_ms, encode_run(run), self._steps.fold(run)))
        if due_ms is not None:
            self._push(self._due, (due_ms, state.key, folded))
        if self._oldest is not None:
            self._push(self._oldest, (run.admitted_ms, state.key, folded))
        self._waiting.waits.drop(task)
        self._waiting.sleeping -= 1
        self.by_key[state.key] = folded
        del self._runs[run]
        self._keys.drop(state)
        state.run = run.current = None  # they refer to each other

    # -- unfolding
    def open(self, key: bytes) -> KeyState:
        """Return the state of a key that has none: that of its folded run, or a new one."""
        state = self._keys.states[key] = KeyState(key, {})
        stored = self.by_key.pop(key, None)
        if stored is not None:
            folded = _decode(stored)
            run = state.run = decode_run(folded.row, state, self._plan, {})
            state.next_number = run.number + 1
            self._runs[run] = None
            self._steps.unfold(folded.steps)
            self._waiting.restore(run)
        return state

    def open_for(self, received: Input) -> None:
        """Unfold the run of the key that an input is for."""
        if self.by_key and getattr(received, "key", None) in self.by_key:
            self.open(received.key)  # type: ignore[union-attr]

    def wake(self, now_ms: int) -> None:
        """Unfold the runs whose time has come, and go on folding."""
        if self._is_late:
            self.fold(is_behind_checkpoint=True)
        while (due_ms := self._first(self._due)) is not None and due_ms <= now_ms:
            self.open(heapq.heappop(self._due)[1])

    @property
    def next_due_ms(self) -> int | None:
        """When the first of them is due, or some are to be folded; None when none is."""
        return 0 if self._is_late else self._first(self._due)

    def oldest_ms(self, now_ms: int) -> int:
        """Return the clock of the oldest of them, or now."""
        if self._oldest is None:
            self._oldest = sorted((_decode(folded).admitted_ms, key, folded) for key, folded in self.by_key.items())
        oldest_ms = self._first(self._oldest)
        return now_ms if oldest_ms is None else min(now_ms, oldest_ms)

    def _push(self, heap: list[_Entry], entry: _Entry) -> None:
        heapq.heappush(heap, entry)
        if len(heap) > 2 * len(self.by_key) + _STALE_MAX:
            heap[:] = sorted({one for one in heap if self._is_folded(one)})  # a sorted list is a heap

    def _first(self, heap: list[_Entry]) -> int | None:
        while heap and not self._is_folded(heap[0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def _is_folded(self, entry: _Entry) -> bool:
        return self.by_key.get(entry[1]) is entry[2]

    @property
    def run_ids(self) -> list[str]:
        """Ids of the folded runs."""
        return [_decode(stored).run_id for stored in self.by_key.values()]

    def inputs(self, prefix: str) -> Iterator[tuple[str, bytes, bytes | None]]:
        """Iterate over id, key and input of the folded runs whose id begins with ``prefix``."""
        for key, stored in self.by_key.items():
            folded = _decode(stored)
            if folded.run_id.startswith(prefix):
                yield folded.run_id, key, decode_entry(folded.row).value

    def rows(self, operator: int, runs_max: int | None = None, run_id: str | None = None) -> list[StateWrite]:
        """Return the rows of folded runs: all of them for a whole snapshot, or some, or those of one."""
        writes: list[StateWrite] = []
        opened = ((key, _decode(stored)) for key, stored in self.by_key.items())
        for key, folded in islice((one for one in opened if run_id in (None, one[1].run_id)), runs_max):
            writes.append((Table.RUNS, operator, key, folded.run_id, folded.row))
            writes += rows_of(operator, folded.steps)
        return writes

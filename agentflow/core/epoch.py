"""Epochs: what changed since the last barrier, and how it is handed over.

`EpochChanges` collects during an epoch. At the barrier it becomes an `EpochDelta`, in time proportional to the number of
unfinished runs and with no encoding. The delta is then read slice by slice while the next epoch already runs: memory values
are immutable bytes, and a run that is about to change is captured first (copy on write, `Run.is_frozen`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from agentflow.core.delta import SLICE_ENTRIES_MAX, DeltaSlices, StateWrite, Table, check_format
from agentflow.core.keys import KeyTable
from agentflow.core.runs import KeyState, Run
from agentflow.core.segments import SegmentedQueue
from agentflow.core.stored_runs import encode_run
from agentflow.core.timers import Timer, timer_write
from agentflow.plan.plan import AgentPlan

_RUN_ENTRIES_MAX = 500  # runs encoded in one go: about 3 µs each


class EpochDelta:
    """One epoch's changes of one operator, frozen at its barrier."""

    def __init__(
        self,
        operator: int,
        memory: dict[KeyState, dict[str, bytes | None]],
        ended: list[tuple[bytes, str]],
        runs: Iterable[Run],
        timers: dict[tuple[bytes, str], Timer | None],
        steps: list[StateWrite],
        meta: dict[str, bytes],
    ) -> None:
        self.memory = memory
        self._operator = operator
        self._ended = ended
        self._timers = timers
        self._steps = steps
        self._meta = meta
        self._runs: dict[Run, bytes | None] = {}
        for run in runs:
            if run.is_changed:
                run.is_changed, run.is_frozen, run.is_saved = False, True, True
                self._runs[run] = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing but perhaps the meta rows changed."""
        return not (self.memory or self._ended or self._timers or self._steps or self._runs)

    def capture(self, run: Run) -> None:
        """Encode a frozen run as it was at the barrier, because it is about to change."""
        run.is_frozen = False
        self._runs[run] = encode_run(run)

    def slices(self, completed: int, keys: KeyTable) -> DeltaSlices:
        """Yield the delta.

        Args:
            completed: The last epoch whose checkpoint is completed: keys that were idle since then may leave the cache between slices.
            keys: Accounts what was written.
        """

        def between() -> None:
            keys.evict(completed)

        operator = self._operator
        writes: list[StateWrite] = [(Table.META, operator, b"", name, value) for name, value in self._meta.items()]
        writes += [(Table.RUNS, operator, key, run_id, None) for key, run_id in self._ended]
        writes += [timer_write(operator, slot, timer) for slot, timer in self._timers.items()]
        writes += self._steps
        for start in range(0, len(writes), SLICE_ENTRIES_MAX):
            yield writes[start : start + SLICE_ENTRIES_MAX]
            between()
        yield from self._run_slices(between)
        yield from self._memory_slices(between, keys)

    def _run_slices(self, between: Callable[[], None]) -> DeltaSlices:
        writes: list[StateWrite] = []
        for run in list(self._runs):
            if run.is_frozen:
                self.capture(run)
            writes.append((Table.RUNS, self._operator, run.key, run.id, self._runs.pop(run)))
            if len(writes) == _RUN_ENTRIES_MAX:
                yield writes
                between()
                writes = []
        yield writes

    def _memory_slices(self, between: Callable[[], None], keys: KeyTable) -> DeltaSlices:
        operator, table, note_written = self._operator, Table.MEMORY, keys.note_written
        writes: list[StateWrite] = []
        written: list[tuple[KeyState, dict[str, bytes | None]]] = []
        for pair in self.memory.items():
            written.append(pair)
            state, changed = pair
            key = state.key
            for path, value in changed.items():
                writes.append((table, operator, key, path, value))
            if len(writes) >= SLICE_ENTRIES_MAX:
                note_written(written)
                for start in range(0, len(writes), SLICE_ENTRIES_MAX):
                    yield writes[start : start + SLICE_ENTRIES_MAX]
                    between()
                written, writes = [], []
        note_written(written)
        yield writes


class OperatorMeta(msgspec.Struct, array_like=True):
    """What an operator stores besides rows per key. New fields go to the end, with a default.

    Attributes:
        format: Version of this struct.
        plan_hash: Hash of the plan that wrote it.
        closed: Closed segments: (number, watermark).
        open_number: Number of the open segment.
        forwarded_ms: The last watermark that left.
    """

    format: int
    plan_hash: str
    closed: list[tuple[int, int]]
    open_number: int
    forwarded_ms: int | None


META_FORMAT = 1
META_NAME = "operator"

encode_meta = msgspec.msgpack.Encoder().encode
_decode_meta = msgspec.msgpack.Decoder(OperatorMeta).decode


def operator_meta(plan: AgentPlan, segments: SegmentedQueue) -> bytes:
    """Return an operator's meta row."""
    return encode_meta(
        OperatorMeta(META_FORMAT, plan.plan_hash, segments.closed, segments.open_number, segments.forwarded_ms)
    )


def decode_meta(value: bytes) -> OperatorMeta:
    """Read an operator's meta row.

    Raises:
        StateVersionTooNew: It was written by a newer version.
    """
    meta = _decode_meta(value)
    check_format("the operator's state", meta.format, META_FORMAT)
    return meta


class EpochChanges:
    """What changed since the last barrier, and the delta that is being written.

    Attributes:
        number: The open epoch: what the next barrier closes.
        completed: The last epoch whose checkpoint is completed.
        last_meta: Meta rows of the last barrier: an epoch that changes nothing else makes no checkpoint.
    """

    def __init__(self, operator: int) -> None:
        self.number = 1
        self.completed = 0
        self._operator = operator
        self._memory: dict[KeyState, dict[str, bytes | None]] = {}
        self._ended: list[tuple[bytes, str]] = []
        self._frozen: EpochDelta | None = None
        self.last_meta: dict[str, bytes] = {}

    @property
    def unapplied(self) -> tuple[dict[KeyState, dict[str, bytes | None]], ...]:
        """Writes that keyed state does not have yet, by key; oldest first."""
        return (self._memory,) if self._frozen is None else (self._frozen.memory, self._memory)

    def has_unapplied(self, state: KeyState) -> bool:
        """Whether a key has such writes: it cannot be read from keyed state then."""
        return state in self._memory or (self._frozen is not None and state in self._frozen.memory)

    def unapplied_rows(self) -> list[StateWrite]:
        """Return them as rows, oldest first."""
        return [
            (Table.MEMORY, self._operator, state.key, path, value)
            for unapplied in self.unapplied
            for state, changed in unapplied.items()
            for path, value in changed.items()
        ]

    def before_change(self, run: Run) -> None:
        """Capture a frozen run: the delta being written has it as it was at the barrier. Call before every change."""
        if run.is_frozen:
            assert self._frozen is not None
            self._frozen.capture(run)
        run.is_changed = True

    def write(self, state: KeyState, writes: dict[str, bytes | None]) -> None:
        """Let a write set happen. It is copied: what its task did may still be recorded."""
        state.memory.update(writes)
        earlier = self._memory.get(state)
        if earlier is None:
            self._memory[state] = dict(writes)
        else:
            earlier.update(writes)

    def end(self, run: Run) -> None:
        """Note that a run is over: its row, if it has one, goes."""
        if run.is_saved:
            self._ended.append((run.state.key, run.id))

    def freeze(
        self,
        runs: Iterable[Run],
        timers: dict[tuple[bytes, str], Timer | None],
        steps: list[StateWrite],
        meta: dict[str, bytes],
    ) -> tuple[EpochDelta, bool]:
        """Close the epoch; return its delta, and whether nothing at all changed."""
        assert self._frozen is None, "a barrier before the former checkpoint has completed"
        self._frozen = delta = EpochDelta(self._operator, self._memory, self._ended, runs, timers, steps, meta)
        is_empty = delta.is_empty and meta == self.last_meta
        self._memory, self._ended, self.last_meta = {}, [], meta
        self.number += 1
        return delta, is_empty

    def complete(self) -> None:
        """The frozen delta is applied to keyed state."""
        self._frozen = None
        self.completed = self.number - 1

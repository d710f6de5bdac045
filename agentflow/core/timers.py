"""Timers of one operator: registered by actions, fired as inputs, kept as state.

One timer per (key, name). Due order is (due time, registration); cancelled and replaced timers stay in the heap until
they surface (a heap has no cheap removal), so the heap is rebuilt when more than half of it is stale.

At the end of an input the timers of processing time that are due soon are **awaited**, and such as runs set from then on. A timer that
sets itself again, directly or by others, is awaited once: the id of the task that sets it again begins with that of the run that it
started.
"""

from __future__ import annotations

import heapq

import msgspec

from agentflow.core.delta import StateWrite, StoredRow, Table
from agentflow.core.inputs import TimerOrder
from agentflow.core.records import Record


class Timer(msgspec.Struct, frozen=True, array_like=True, eq=False):
    """A registered timer; the stored form is this struct as a msgpack array.

    Attributes:
        due_ms: Epoch milliseconds.
        number: Registration order in the operator.
        is_event_time: Due by watermark instead of by clock.
        payload: Encoded attributes of the timer event.
        task_id: The task that registered it; part of the run id.
    """

    due_ms: int
    number: int
    is_event_time: bool
    payload: bytes
    task_id: str

    def record(self, name: str) -> Record:
        """Return the input of the run that it starts."""
        timestamp_ms = self.due_ms if self.is_event_time else None
        return Record(f"{self.task_id}@{name}", self.due_ms, self.due_ms, self.payload, None, timestamp_ms)


_encode = msgspec.msgpack.Encoder().encode
decode_timer = msgspec.msgpack.Decoder(Timer).decode

_Slot = tuple[bytes, str]  # (key, timer name)
_Heap = list[tuple[int, int, _Slot]]


class TimerTable:
    """All timers of one operator, and which of them changed since the last barrier.

    Attributes:
        awaited: Timers that are awaited; None: the input has not ended.
    """

    def __init__(self) -> None:
        self._timers: dict[_Slot, Timer] = {}
        self._heaps: dict[bool, _Heap] = {False: [], True: []}
        self._next_number = 0
        self._changed: dict[_Slot, Timer | None] = {}
        self.awaited: set[_Slot] | None = None
        self._awaited_until_ms = 0
        self._fired: dict[_Slot, str] = {}  # awaited ones that fired → how ids of their runs' tasks begin

    def __len__(self) -> int:
        return len(self._timers)

    def order(self, key: bytes, order: TimerOrder, task_id: str) -> None:
        """Set or cancel a timer of ``key``; setting replaces one of the same name."""
        slot = (key, order.name)
        if self.awaited is not None:
            is_again = task_id.startswith(self._fired.get(slot, task_id + "/"))
            is_soon = order.due_ms is not None and order.due_ms <= self._awaited_until_ms
            is_wanted = is_soon and not order.is_event_time and not is_again
            self.awaited.add(slot) if is_wanted else self.awaited.discard(slot)
        if order.due_ms is None:
            if self._timers.pop(slot, None) is not None:
                self._changed[slot] = None
            return
        timer = Timer(order.due_ms, self._next_number, order.is_event_time, order.payload, task_id)
        self._next_number += 1
        self._timers[slot] = self._changed[slot] = timer
        self._push(slot, timer)

    def await_pending(self, until_ms: int) -> None:
        """Await the timers of processing time that are due by then, and from now on those that will be set."""
        self._awaited_until_ms = until_ms
        self.awaited = {
            slot for slot, timer in self._timers.items() if not timer.is_event_time and timer.due_ms <= until_ms
        }

    def _push(self, slot: _Slot, timer: Timer) -> None:
        heap = self._heaps[timer.is_event_time]
        heapq.heappush(heap, (timer.due_ms, timer.number, slot))
        if len(heap) > 64 and len(heap) > 2 * len(self._timers):
            live = [entry for entry in heap if self._is_live(entry)]
            heapq.heapify(live)
            self._heaps[timer.is_event_time] = live

    def _is_live(self, entry: tuple[int, int, _Slot]) -> bool:
        timer = self._timers.get(entry[2])
        return timer is not None and timer.number == entry[1]

    def next_due_ms(self, *, is_event_time: bool) -> int | None:
        """Return when the next timer of that kind is due; None when there is none."""
        heap = self._heaps[is_event_time]
        while heap and not self._is_live(heap[0]):
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def pop_due(self, until_ms: int, *, is_event_time: bool) -> list[tuple[bytes, str, Timer]]:
        """Remove and return every timer of that kind due at or before ``until_ms``, in due order."""
        fired = []
        while (due_ms := self.next_due_ms(is_event_time=is_event_time)) is not None and due_ms <= until_ms:
            _, _, slot = heapq.heappop(self._heaps[is_event_time])
            timer = self._timers.pop(slot)
            fired.append((*slot, timer))
            self._changed[slot] = None
            if self.awaited is not None and not is_event_time:
                self.awaited.discard(slot)
                self._fired[slot] = f"{timer.record(slot[1]).run_id}/"
        return fired

    def take_changes(self) -> dict[_Slot, Timer | None]:
        """Return what changed since the last call: the timers' part of an epoch delta."""
        changes, self._changed = self._changed, {}
        return changes

    def rows(self, operator: int) -> list[StateWrite]:
        """Return every timer as a row, for a whole snapshot."""
        return [timer_write(operator, slot, timer) for slot, timer in self._timers.items()]

    def restore(self, rows: list[StoredRow]) -> None:
        """Fill an empty table from stored rows."""
        for row in rows:
            timer = decode_timer(row.value)
            self._timers[row.key, row.name] = timer
            self._next_number = max(self._next_number, timer.number + 1)
        for slot, timer in self._timers.items():
            self._heaps[timer.is_event_time].append((timer.due_ms, timer.number, slot))
        for heap in self._heaps.values():
            heapq.heapify(heap)


def timer_write(operator: int, slot: _Slot, timer: Timer | None) -> StateWrite:
    """Return the row of a timer; None deletes it."""
    return (Table.TIMERS, operator, slot[0], slot[1], None if timer is None else _encode(timer))

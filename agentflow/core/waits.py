"""What steps wait for: the open waits of all tasks, by deadline and by signal.

A wait is open from its request until it ends, and while its task has an attempt: a task that is to be tried again has none, and
asks for its waits anew, which are recorded with their deadlines.
"""

from __future__ import annotations

import heapq

import msgspec

from agentflow.core.inputs import Signal, StepCall, StepRetry, WaitOrder
from agentflow.core.runs import ActionTask

_STALE_MAX = 64
WAIT_FOR = "ctx.wait_for"
SLEEP = "ctx.sleep"


class Wait(msgspec.Struct, array_like=True, frozen=True):
    """What a step waits for: the payload of a WAIT or ATTEMPT record. New fields go to the end, with a default.

    Attributes:
        due_ms: When it ends by itself, epoch milliseconds; None: never.
        signal: Name of the signal that ends it; empty: none does.
        correlation: Of the signal.
        calls: Calls that have failed, of a step that waits for its next call.
        needs_intent: That call needs a record before it.
        error: What the last call raised, encoded.
        about: What people are shown of it, encoded; empty: nothing.
    """

    due_ms: int | None
    signal: str = ""
    correlation: str = ""
    calls: int = 0
    needs_intent: bool = False
    error: bytes = b""
    about: bytes = b""


class WaitOutcome(msgspec.Struct, array_like=True, frozen=True):
    """How a wait ended: the payload of its WAITED record.

    Attributes:
        value: Of the signal, encoded; None: time was up.
        position: Where the signal came from; empty: there was none.
    """

    value: bytes | None = None
    position: str = ""


encode_wait = msgspec.msgpack.Encoder().encode
decode_wait = msgspec.msgpack.Decoder(Wait).decode
decode_outcome = msgspec.msgpack.Decoder(WaitOutcome).decode


def begin_wait(order: WaitOrder, now_ms: int) -> Wait:
    """Return a wait that begins now."""
    due_ms = None if order.duration_ms is None else now_ms + order.duration_ms
    return Wait(due_ms, order.signal, order.correlation, about=order.about)


def begin_retry(retry: StepRetry, error: bytes, now_ms: int) -> Wait:
    """Return the wait for the next call of a step that has failed now."""
    return Wait(now_ms + retry.wait_ms, calls=retry.calls, needs_intent=retry.needs_intent, error=error)


class OpenWait(msgspec.Struct, eq=False):
    """A wait, and whose it is."""

    task: ActionTask
    call: StepCall
    wait: Wait
    is_open: bool = True

    @property
    def step(self) -> str:
        """Its place in the run, as a signal may name it."""
        return f"{self.task.path}{self.call.path}"


_Slot = tuple[bytes, str, str]  # (key, name, correlation) of a signal


class Waits:
    """The open waits of one operator."""

    def __init__(self) -> None:
        self._by_task: dict[ActionTask, dict[str, OpenWait]] = {}
        self._by_signal: dict[_Slot, list[OpenWait]] = {}
        self._heap: list[tuple[int, int, OpenWait]] = []
        self._order = 0
        self._timed = 0  # open waits with a deadline

    def of(self, task: ActionTask) -> list[OpenWait]:
        """Return the open waits of a task, oldest first."""
        return list(self._by_task.get(task, {}).values())

    def open(self, task: ActionTask, call: StepCall, wait: Wait) -> None:
        """Begin to wait; nothing happens where the step waits already."""
        waits = self._by_task.setdefault(task, {})
        if call.path in waits:
            return
        opened = waits[call.path] = OpenWait(task, call, wait)
        if wait.signal:
            self._by_signal.setdefault(_slot(opened), []).append(opened)
        if wait.due_ms is not None:
            heapq.heappush(self._heap, (wait.due_ms, self._order, opened))
            self._order += 1
            self._timed += 1

    def close(self, task: ActionTask, path: str) -> None:
        """End a wait, if it is open; its place in the heap goes when it surfaces."""
        waits = self._by_task.get(task)
        closed = None if waits is None else waits.pop(path, None)
        if closed is None:
            return
        closed.is_open = False
        if closed.wait.due_ms is not None:
            self._timed -= 1
            if len(self._heap) > 2 * self._timed + _STALE_MAX:
                self._heap = [entry for entry in self._heap if entry[2].is_open]
                heapq.heapify(self._heap)
        if closed.wait.signal:
            slot = _slot(closed)
            others = self._by_signal[slot]
            others.remove(closed)
            if not others:
                del self._by_signal[slot]
        if not waits:
            del self._by_task[task]

    def drop(self, task: ActionTask) -> None:
        """End all waits of a task: its attempt is over."""
        for opened in self.of(task):
            self.close(task, opened.call.path)

    def waiting_for(self, key: bytes, signal: Signal) -> OpenWait | None:
        """Return the wait that a signal ends, the oldest one that is meant."""
        for opened in self._by_signal.get((key, signal.name, signal.correlation), ()):
            if signal.is_for(opened.task.run.id, opened.step):
                return opened
        return None

    def next_due_ms(self) -> int | None:
        """Return when the next wait ends by itself; None when none does."""
        heap = self._heap
        while heap and not heap[0][2].is_open:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def pop_due(self, now_ms: int) -> list[OpenWait]:
        """Return the waits whose time is up, in due order; they are open until they are closed."""
        due = []
        while (due_ms := self.next_due_ms()) is not None and due_ms <= now_ms:
            due.append(heapq.heappop(self._heap)[2])
        return due


def _slot(opened: OpenWait) -> _Slot:
    return (opened.task.run.key, opened.wait.signal, opened.wait.correlation)

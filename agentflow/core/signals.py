"""Signals that came before anybody waited for them: keyed state, with a limit and a time to live.

A signal that ended a wait is named in the wait's record by its position. After a recovery from before it, the source gives it
again, or the buffer has it again: it is dropped then.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from agentflow.core.delta import StateWrite, StoredRow, Table
from agentflow.core.inputs import Signal, SignalReceived
from agentflow.core.waits import OpenWait

_SEPARATOR = "\0"


class BufferedSignal(msgspec.Struct, array_like=True, frozen=True):
    """A row of the buffer. New fields go to the end, with a default."""

    name: str
    correlation: str
    run: str
    value: bytes
    position: str
    received_ms: int
    step: str = ""

    @property
    def signal(self) -> Signal:
        """What was received."""
        return Signal(self.name, self.value, self.correlation, self.run, self.step)

    @property
    def row_name(self) -> str:
        """Name of its row, under its key."""
        return _SEPARATOR.join((self.name, self.correlation, self.position))


_encode = msgspec.msgpack.Encoder().encode
decode_signal = msgspec.msgpack.Decoder(BufferedSignal).decode


class SignalBuffer:
    """The early signals of one operator.

    Args:
        pending_max: How many there may be.
        ttl_ms: How long one is kept.
    """

    def __init__(self, pending_max: int, ttl_ms: int) -> None:
        self._pending_max = pending_max
        self._ttl_ms = ttl_ms
        self._signals: dict[tuple[bytes, str], BufferedSignal] = {}  # by row, in order of arrival
        self._by_slot: dict[tuple[bytes, str, str], list[BufferedSignal]] = {}
        self._changed: dict[tuple[bytes, str], BufferedSignal | None] = {}
        self._saved: set[tuple[bytes, str]] = set()
        self._taken: set[str] = set()  # positions of signals that the journal knows to have ended a wait

    @property
    def is_full(self) -> bool:
        """Whether no more fit."""
        return len(self._signals) >= self._pending_max

    def is_taken(self, position: str) -> bool:
        """Whether a signal ended a wait in an earlier life; asked once, when it comes again."""
        if position in self._taken:
            self._taken.remove(position)
            return True
        return False

    def put(self, received: SignalReceived, now_ms: int) -> None:
        """Keep a signal; there is room."""
        signal = received.signal
        entry = BufferedSignal(
            signal.name, signal.correlation, signal.run, signal.value, received.record.run_id, now_ms, signal.step
        )
        self._add(received.key, entry)
        self._changed[received.key, entry.row_name] = entry

    def take(self, opened: OpenWait) -> BufferedSignal | None:
        """Take the oldest signal for a wait; None when there is none."""
        run, wait = opened.task.run, opened.wait
        for entry in self._by_slot.get((run.key, wait.signal, wait.correlation), ()):
            if entry.signal.is_for(run.id, opened.step):
                self._remove(run.key, entry)
                return entry
        return None

    def expire(self, now_ms: int) -> None:
        """Drop signals whose time to live is over."""
        limit_ms = now_ms - self._ttl_ms
        while self._signals:
            (key, _), entry = next(iter(self._signals.items()))
            if entry.received_ms > limit_ms:
                return
            self._remove(key, entry)

    def take_changes(self, operator: int) -> list[StateWrite]:
        """Return the rows that changed since the last call: the buffer's part of an epoch delta."""
        changed, self._changed = self._changed, {}
        for slot, entry in changed.items():
            self._saved.discard(slot) if entry is None else self._saved.add(slot)
        return [
            (Table.SIGNALS, operator, *slot, None if entry is None else _encode(entry))
            for slot, entry in changed.items()
        ]

    def rows(self, operator: int) -> list[StateWrite]:
        """Return all rows, for a whole snapshot."""
        return [(Table.SIGNALS, operator, *slot, _encode(entry)) for slot, entry in self._signals.items()]

    def restore(self, rows: Iterable[StoredRow], taken: Iterable[str]) -> None:
        """Fill an empty buffer; ``taken``: positions of signals that ended waits behind the last checkpoint."""
        self._taken = set(taken)
        entries = [(row.key, decode_signal(row.value)) for row in rows]
        for key, entry in sorted(entries, key=lambda one: one[1].received_ms):
            self._add(key, entry)
            self._saved.add((key, entry.row_name))
            if self.is_taken(entry.position):
                self._remove(key, entry)

    def _add(self, key: bytes, entry: BufferedSignal) -> None:
        self._signals[key, entry.row_name] = entry
        self._by_slot.setdefault((key, entry.name, entry.correlation), []).append(entry)

    def _remove(self, key: bytes, entry: BufferedSignal) -> None:
        slot = (key, entry.name, entry.correlation)
        del self._signals[key, entry.row_name]
        if (key, entry.row_name) in self._saved:
            self._changed[key, entry.row_name] = None
        else:
            del self._changed[key, entry.row_name]
        others = self._by_slot[slot]
        others.remove(entry)
        if not others:
            del self._by_slot[slot]

"""Between the event loop and where records go: buffers with a limit, and a thread for each target.

Whatever a target does (waits, fails, is full), the job does not feel it: what the buffer has no room for is dropped, and counted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from agentflow.observability.event_log_values import ValueForm
from agentflow.runtime.ports import RecordTarget

FLUSH_BYTES = 256 * 2**10  # what a processor has near: more is written and read from memory
_TOLD_EVERY_S = 10.0
_CLOSED_WITHIN_S = 10.0
_CLOSED_DOWN_WITHIN_S = 2.0  # where the target has refused what it was given last
_FAILURES_MAX = 5  # in a row; from then on what is refused is lost at once
_AGAIN_S = 1.0

Tell = Callable[[str, dict[str, Any]], object]


class Chunk:
    """The records of one turn of one operator.

    Args:
        subtask: Whose records they are.
        pieces: The text of the lines, in pieces.
        deferred: Places in ``pieces`` that hold values as they came, and how they are shown.
        records: How many lines there are.
    """

    __slots__ = ("_deferred", "_lock", "_pieces", "records", "size", "subtask")

    def __init__(self, subtask: int, pieces: list[bytes], deferred: list[tuple[int, ValueForm]], records: int) -> None:
        self.subtask = subtask
        self.records = records
        self._deferred = deferred
        self._pieces = pieces if deferred else [b"".join(pieces)]
        self._lock = threading.Lock()
        self.size = sum(map(len, self._pieces))

    def lines(self) -> bytes:
        """Return the lines; from any thread. A raw carriage return is whitespace in JSON, and would end a line for some readers."""
        with self._lock:
            if self._deferred:
                pieces = self._pieces
                for place, form in self._deferred:
                    pieces[place] = form.render(pieces[place])
                self._deferred = []
                self._pieces = [b"".join(pieces)]
        return self._pieces[0].replace(b"\r", b" ")


class TargetCounts(msgspec.Struct):
    """What became of the records for one target.

    Attributes:
        written: It has taken them.
        dropped: There was no room in the buffer: it was too slow, or did not answer.
        failed: It has refused them, several times.
    """

    written: int = 0
    dropped: int = 0
    failed: int = 0


class BufferedTarget:
    """A target with its buffer and its thread, which is started with the first record.

    Attributes:
        counts: What became of the records.
        name: Name of the target.

    Args:
        target: Where records go; used by the thread only.
        buffer_bytes: Limit of the buffer.
        flush_interval_s: Longest time that a record stays in it.
        tell: Told of records that are lost, once in a while, as (what, fields); from any thread.
    """

    def __init__(self, target: RecordTarget, buffer_bytes: int, flush_interval_s: float, tell: Tell) -> None:
        self.counts = TargetCounts()
        self.name = target.name
        self._target = target
        self._buffer_bytes = buffer_bytes
        self._flush_interval_s = flush_interval_s
        self._tell = tell
        self._chunks: deque[Chunk] = deque()
        self._taken_bytes = 0  # of all that the thread is done with
        self._added_bytes = 0
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._failures = 0
        self._thread: threading.Thread | None = None
        self._told_at = -_TOLD_EVERY_S
        self._told_lost = 0
        self._troubled_at = -_TOLD_EVERY_S
        self._last_error: BaseException | None = None

    def add(self, chunk: Chunk) -> None:
        """Take records; those that there is no room for are dropped. One thread calls this."""
        waiting = self._added_bytes - self._taken_bytes + chunk.size
        if waiting > self._buffer_bytes:
            self.counts.dropped += chunk.records
            self._tell_losses()
            return
        self._added_bytes += chunk.size
        self._chunks.append(chunk)
        if waiting >= FLUSH_BYTES:
            self.flush()
        if self._thread is None:
            name = f"agentflow-event-log-{self._target.name}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def flush(self) -> None:
        """Let the target have what is buffered, soon."""
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Give the target what is left, as long as it takes it in time, and close it."""
        self._closing.set()
        self._wake.set()
        if self._thread is None:
            return
        self._thread.join(_CLOSED_DOWN_WITHIN_S if self._failures else _CLOSED_WITHIN_S)
        if self._thread.is_alive():
            self.counts.dropped += sum(chunk.records for chunk in list(self._chunks))
        self._tell_losses(is_last=True)

    # -- the thread
    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._wake.wait(self._flush_interval_s)
                self._wake.clear()
                self._write_all()
                self._target.tend()
            self._write_all()
        finally:
            self._target.close()

    def _write_all(self) -> None:
        for subtask, chunks in self._by_subtask():
            records = sum(chunk.records for chunk in chunks)
            if self._is_written(subtask, [chunk.lines() for chunk in chunks]):
                self.counts.written += records
            else:
                self.counts.failed += records
                self._tell_losses()
            self._taken_bytes += sum(chunk.size for chunk in chunks)

    def _is_written(self, subtask: int, lines: list[bytes]) -> bool:
        """Write; where the target refuses, try again for a while, unless it has refused for longer. The buffer fills meanwhile."""
        while True:
            try:
                self._target.write(subtask, lines)
            except Exception as error:  # noqa: BLE001 (the edge to the world of telemetry: whatever it is, the job goes on)
                self._failures += 1
                self._last_error = error
                if self._failures == 1:
                    self._tell_trouble(error)
                if self._failures >= _FAILURES_MAX or self._closing.is_set():
                    return False
                self._closing.wait(_AGAIN_S)
            else:
                self._failures = 0
                return True

    def _by_subtask(self) -> Iterator[tuple[int, list[Chunk]]]:
        """Take what is buffered, in portions for the target; in order for each subtask."""
        found: dict[int, list[Chunk]] = {}
        size = 0
        for _ in range(len(self._chunks)):
            chunk = self._chunks.popleft()
            found.setdefault(chunk.subtask, []).append(chunk)
            size += chunk.size
            if size >= FLUSH_BYTES:
                yield from found.items()
                found, size = {}, 0
        yield from found.items()

    def _tell_trouble(self, error: Exception) -> None:
        """Say that the target refuses, before anything is lost."""
        now = time.monotonic()
        if now - self._troubled_at >= _TOLD_EVERY_S:
            self._troubled_at = now
            self._tell("event log cannot be written", {"target": self._target.name, "error": _text(error)})

    def _tell_losses(self, *, is_last: bool = False) -> None:
        """Say how many records are lost: at once, then once in a while, and at the end."""
        now, counts = time.monotonic(), self.counts
        lost = counts.dropped + counts.failed
        if lost == self._told_lost or (now - self._told_at < _TOLD_EVERY_S and not is_last):
            return
        fields: dict[str, Any] = {"target": self._target.name, "lost": lost - self._told_lost, "lost_in_all": lost}
        self._told_at, self._told_lost = now, lost
        error, self._last_error = self._last_error, None
        if error is not None:
            fields["error"] = _text(error)
        self._tell("event log lost records", fields)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]

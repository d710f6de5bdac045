"""Watermarks of one subtask: the least of those of its partitions, without the idle ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agentflow.core.records import Record
from agentflow.runtime.settings import EventTimeSettings


class WatermarkGenerator:
    """Follows the timestamps of records.

    A partition's watermark stays ``max_out_of_orderness_ms`` behind its latest timestamp. A partition that has brought
    nothing yet, or whose records are late, holds the watermark of the subtask, until it is idle for ``idle_timeout_ms``.

    Args:
        settings: Strategy.
        partitions: Labels of partitions that are read at the same time; empty: the source reads one after the other, as one.
        idle_timeout_ms: None: a partition is never idle.
        now_ms: The clock; a partition is not idle before it had time to bring something.

    Source: Flink's `WatermarkStrategy` (forBoundedOutOfOrderness, withIdleness) and `WatermarkOutputMultiplexer`.
    """

    def __init__(
        self, settings: EventTimeSettings, partitions: Sequence[str], idle_timeout_ms: int | None, now_ms: int
    ) -> None:
        strategy = settings.watermarks or ("none" if settings.field is None else "bounded-out-of-orderness")
        self.is_active = strategy != "none"
        self._behind_ms = 1 + (settings.max_out_of_orderness_ms if strategy == "bounded-out-of-orderness" else 0)
        self._idle_timeout_ms = idle_timeout_ms
        self._latest: dict[str, int | None] = dict.fromkeys(partitions or ("",))
        self._seen_ms: dict[str, int] = dict.fromkeys(self._latest, now_ms)
        self._is_one = not partitions
        self._last_ms: int | None = None

    def take(self, records: Iterable[Record], now_ms: int) -> int | None:
        """Return the watermark behind records, if it is a later one."""
        latest, seen_ms = self._latest, self._seen_ms
        for record in records:
            label = "" if self._is_one else record.source
            before, timestamp_ms = latest.get(label), record.timestamp_ms
            if timestamp_ms is not None and (before is None or timestamp_ms > before):
                latest[label] = timestamp_ms
            seen_ms[label] = now_ms
        return self._advanced(now_ms)

    def pass_time(self, now_ms: int, *, is_paused: bool) -> int | None:
        """Return the watermark without partitions that went idle, if it is a later one; who is not asked is not idle."""
        if is_paused:
            self._seen_ms = dict.fromkeys(self._seen_ms, now_ms)
            return None
        return self._advanced(now_ms)

    @property
    def next_idle_ms(self) -> int | None:
        """When a partition that holds the watermark will be idle; None: none will."""
        if self._idle_timeout_ms is None or len(self._latest) < 2:
            return None
        for seen_ms in sorted(self._seen_ms.values()):
            due_ms = seen_ms + self._idle_timeout_ms
            least_ms = self._least(due_ms)
            if least_ms is not None and (self._last_ms is None or least_ms > self._last_ms):
                return due_ms
        return None

    def _advanced(self, now_ms: int) -> int | None:
        least_ms = self._least(now_ms)
        if least_ms is None or (self._last_ms is not None and least_ms <= self._last_ms):
            return None
        self._last_ms = least_ms
        return least_ms

    def _least(self, now_ms: int) -> int | None:
        """Return the watermark over all partitions that are not idle; None while one of them has none.

        When all are idle, that of the latest one: whichever went idle last, the others did not hold it before.
        """
        timeout_ms, latest = self._idle_timeout_ms, self._latest
        if timeout_ms is None:
            active = list(latest.values())
        else:
            active = [latest[label] for label, seen_ms in self._seen_ms.items() if now_ms - seen_ms < timeout_ms]
        known = [latest_ms for latest_ms in active if latest_ms is not None]
        if not active:
            known = [latest_ms for latest_ms in latest.values() if latest_ms is not None]
            return max(known) - self._behind_ms if known else None
        return min(known) - self._behind_ms if len(known) == len(active) else None

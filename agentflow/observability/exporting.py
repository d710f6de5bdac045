"""Exporters of metrics and what they share: a thread of their own, a file, and few words about a place that does not answer."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

from agentflow.api.metrics import Buckets
from agentflow.errors import ConfigError
from agentflow.observability.logs import log_event
from agentflow.observability.series import Series

_SILENCE_S = 300.0
_LAST_PUSH_S = 2.0
_GIVE_UP_S = 0.2
_FILE_BYTES_MAX = 64 * 2**20


class Reachability:
    """Says that a place does not answer: when it begins, every five minutes while it lasts, and when it is over. From any thread.

    Args:
        what: What is sent there.
        place: Where.
    """

    def __init__(self, what: str, place: str, *, now: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._place = place
        self._now = now
        self._failures = 0
        self._told = 0.0

    @property
    def is_down(self) -> bool:
        """Whether the last attempt failed."""
        return self._failures > 0

    def tell(self, *, is_sent: bool, reason: str | None = None) -> None:
        """Take the outcome of an attempt."""
        if is_sent:
            if self._failures:
                log_event(f"{self._what} are exported again", to=self._place, failures=self._failures)
            self._failures = 0
            return
        self._failures += 1
        now = self._now()
        if self._failures == 1 or now - self._told >= _SILENCE_S:
            self._told = now
            event = f"{self._what} cannot be exported; the job goes on"
            log_event(event, "warning", to=self._place, reason=reason, failures=self._failures)


def reason_of(error: Exception) -> str:
    """Return what is said of an error that nobody expected."""
    return f"{type(error).__name__}: {error}"


class Destination(Protocol):
    """Where metrics are pushed to."""

    reachability: Reachability

    def push(self, series: Sequence[Series]) -> None:
        """Export; it may block, and says itself what went wrong."""
        ...


class Pusher:
    """Pushes metrics from a thread of its own, every ``interval_ms`` and at the end.

    Args:
        collect: Returns the metrics; called in the thread.
        destination: Where they go.
        interval_ms: Time between pushes.
    """

    def __init__(self, collect: Callable[[], Sequence[Series]], destination: Destination, interval_ms: int) -> None:
        self._collect = collect
        self._destination = destination
        self._interval_s = interval_ms / 1000
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agentflow-metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            self._push()
        self._push()

    def _push(self) -> None:
        try:
            self._destination.push(self._collect())
        except Exception as error:  # noqa: BLE001 (an edge: whatever it is, the next push may succeed)
            self._destination.reachability.tell(is_sent=False, reason=reason_of(error))

    def close(self) -> None:
        """Push once more and stop; a place that does not answer is not waited for."""
        self._stopped.set()
        self._thread.join(_GIVE_UP_S if self._destination.reachability.is_down else _LAST_PUSH_S)


class MetricsFile:
    """A JSON document that is replaced each time, so that a reader finds a whole one; or a JSONL file that gets a line more.

    A JSONL file that has grown large is renamed to ``….1``, in the place of the one before.

    Args:
        path: The file; JSONL where it ends so.

    Raises:
        ConfigError: It cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._is_log = self._path.suffix == ".jsonl"
        self.reachability = Reachability("metrics", path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.open("a").close()
        except OSError as error:
            raise ConfigError([f"metrics.file: {path} cannot be written: {error.strerror}"]) from error

    def push(self, series: Sequence[Series]) -> None:
        """Write a document."""
        document = msgspec.json.encode(document_of(series, datetime.now(UTC)))
        try:
            self._append(document) if self._is_log else self._replace(document)
        except OSError as error:
            self.reachability.tell(is_sent=False, reason=str(error))
        else:
            self.reachability.tell(is_sent=True)

    def _replace(self, document: bytes) -> None:
        staged = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        staged.write_bytes(document + b"\n")
        staged.replace(self._path)

    def _append(self, document: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(document + b"\n")
            is_full = file.tell() >= _FILE_BYTES_MAX
        if is_full:
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))


def document_of(series: Sequence[Series], now: datetime) -> dict[str, Any]:
    """Return metrics as they stand in JSON."""
    return {
        "time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "metrics": [
            {
                "name": one.name.name,
                "kind": one.name.kind.value,
                "unit": one.name.unit,
                "points": [{"attributes": attributes, **_value_of(value)} for attributes, value in one.points],
            }
            for one in series
        ],
    }


def _value_of(value: float | Buckets) -> dict[str, Any]:
    if isinstance(value, Buckets):
        return {
            "count": sum(value.counts),
            "sum": value.sum,
            "bounds": list(value.bounds),
            "counts": value.counts,
        }
    return {"value": value}

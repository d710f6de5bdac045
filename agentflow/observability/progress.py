"""How a job goes: one live line on a terminal, a log line every ten seconds elsewhere."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TextIO

REDRAW_S = 0.25  # four times a second at most
LOG_S = 10.0
RATE_S = 2.0  # rates of the live line are those of the last two seconds
_ERASE = "\r\x1b[2K"


class JobView(Protocol):
    """What a job says about itself; cheap to read."""

    @property
    def state(self) -> str: ...  # noqa: D102
    @property
    def records_in(self) -> int: ...  # noqa: D102
    @property
    def records_out(self) -> int: ...  # noqa: D102
    @property
    def dead_letters(self) -> int: ...  # noqa: D102
    @property
    def runs_in_flight(self) -> int: ...  # noqa: D102
    @property
    def timers_pending(self) -> int: ...  # noqa: D102
    @property
    def checkpoint(self) -> int: ...  # noqa: D102
    @property
    def checkpoint_completed_ms(self) -> int | None: ...  # noqa: D102
    @property
    def restarts(self) -> int: ...  # noqa: D102


class _Sample(NamedTuple):
    at: float
    records_in: int
    records_out: int


class Rates:
    """Records per second over a sliding window.

    Args:
        window_s: Length of the window in seconds.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._samples: deque[_Sample] = deque()

    def add(self, at: float, view: JobView) -> tuple[float, float]:
        """Take a sample at ``at`` (seconds) and return (in, out) per second; zeros for the first one."""
        samples = self._samples
        samples.append(_Sample(at, view.records_in, view.records_out))
        while len(samples) > 2 and samples[1].at <= at - self._window_s:
            samples.popleft()
        first = samples[0]
        passed = at - first.at
        if passed <= 0:
            return 0.0, 0.0
        # Counts may fall back to those of the last checkpoint after a restart; a rate is never negative.
        return (
            max(0.0, (view.records_in - first.records_in) / passed),
            max(0.0, (view.records_out - first.records_out) / passed),
        )


def progress_text(job: str, view: JobView, rates: tuple[float, float], now_ms: int) -> str:
    """Return the live line."""
    age_s = checkpoint_age_s(view, now_ms)
    parts = [
        job,
        view.state,
        f"in {rates[0]:,.0f}/s",
        f"out {rates[1]:,.0f}/s",
        f"in flight {view.runs_in_flight:,}",
        "no checkpoint yet" if age_s is None else f"checkpoint {view.checkpoint} {age_s:.1f}s ago",
    ]
    if view.timers_pending:
        parts.append(f"timers {view.timers_pending:,}")
    if view.dead_letters:
        parts.append(f"dead letters {view.dead_letters:,}")
    if view.restarts:
        parts.append(f"restarts {view.restarts}")
    return "  ".join(parts)


def progress_fields(view: JobView, rates: tuple[float, float], now_ms: int) -> dict[str, Any]:
    """Return the fields of a progress log line."""
    age_s = checkpoint_age_s(view, now_ms)
    fields: dict[str, Any] = {
        "state": view.state,
        "in_per_s": round(rates[0]),
        "out_per_s": round(rates[1]),
        "in_flight": view.runs_in_flight,
        "records_in": view.records_in,
        "records_out": view.records_out,
        "checkpoint": view.checkpoint,
    }
    if age_s is not None:
        fields["checkpoint_age_s"] = round(age_s, 1)
    if view.timers_pending:
        fields["timers_pending"] = view.timers_pending
    if view.dead_letters:
        fields["dead_letters"] = view.dead_letters
    if view.restarts:
        fields["restarts"] = view.restarts
    return fields


def checkpoint_age_s(view: JobView, now_ms: int) -> float | None:
    """Return how long ago the last checkpoint completed, in seconds; None when there was none."""
    if view.checkpoint_completed_ms is None:
        return None
    return max(0, now_ms - view.checkpoint_completed_ms) / 1000


class LiveLine:
    """A terminal whose last line is redrawn; log lines written through it appear above that line."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._shown = ""

    def show(self, text: str) -> None:
        """Draw the line, cut to the terminal's width."""
        columns = shutil.get_terminal_size().columns
        self._shown = text if len(text) < columns else text[: columns - 2] + "…"
        self._terminal.write(_ERASE + self._shown)
        self._terminal.flush()

    def erase(self) -> None:
        """Take the line away."""
        if self._shown:
            self._shown = ""
            self._terminal.write(_ERASE)
            self._terminal.flush()

    def write(self, text: str, /) -> int:
        """Write whole lines above the live line."""
        shown = self._shown
        self._terminal.write(f"{_ERASE if shown else ''}{text}{shown}")
        return len(text)

    def flush(self) -> None:
        """Flush the terminal."""
        self._terminal.flush()


async def follow_live(job: str, status: Callable[[], JobView], line: LiveLine) -> None:
    """Redraw the line until cancelled; it is erased then."""
    rates = Rates(RATE_S)
    try:
        while True:
            view = status()
            line.show(progress_text(job, view, rates.add(time.monotonic(), view), _now_ms()))
            await asyncio.sleep(REDRAW_S)
    finally:
        line.erase()


async def follow_log(status: Callable[[], JobView], log: Callable[..., Any], *, every_s: float = LOG_S) -> None:
    """Write a log line every ``every_s`` seconds until cancelled; rates are those since the line before."""
    rates = Rates(every_s)
    rates.add(time.monotonic(), status())
    while True:
        await asyncio.sleep(every_s)
        view = status()
        log("progress", **progress_fields(view, rates.add(time.monotonic(), view), _now_ms()))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

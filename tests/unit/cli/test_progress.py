"""The live line and the progress log line."""

from __future__ import annotations

import asyncio
import io

import msgspec
import pytest

from agentflow.observability import progress
from agentflow.observability.progress import LiveLine, Rates, follow_live, follow_log, progress_fields, progress_text


class View(msgspec.Struct):
    state: str = "running"
    records_in: int = 0
    records_out: int = 0
    dead_letters: int = 0
    runs_in_flight: int = 0
    timers_pending: int = 0
    checkpoint: int = 0
    checkpoint_completed_ms: int | None = None
    restarts: int = 0


def test_rate_is_that_of_the_window():
    rates = Rates(2.0)
    assert rates.add(0.0, View()) == (0.0, 0.0)
    assert rates.add(1.0, View(records_in=100, records_out=50)) == (100.0, 50.0)
    assert rates.add(2.0, View(records_in=100, records_out=50)) == (50.0, 25.0)
    assert rates.add(4.0, View(records_in=100, records_out=50)) == (0.0, 0.0)


def test_rate_is_never_negative_when_counts_fall_back():
    rates = Rates(10.0)
    rates.add(0.0, View(records_in=100))
    assert rates.add(1.0, View(records_in=10)) == (0.0, 0.0)


def test_live_line_says_rates_runs_and_the_age_of_the_checkpoint():
    view = View(runs_in_flight=1024, checkpoint=42, checkpoint_completed_ms=10_000)
    assert progress_text("reviews", view, (12345.6, 0.0), 10_800) == (
        "reviews  running  in 12,346/s  out 0/s  in flight 1,024  checkpoint 42 0.8s ago"
    )


def test_live_line_says_what_went_wrong_only_when_something_did():
    view = View(state="restarting", timers_pending=1500, dead_letters=1200, restarts=2)
    assert progress_text("reviews", view, (0, 0), 0) == (
        "reviews  restarting  in 0/s  out 0/s  in flight 0  no checkpoint yet  timers 1,500  dead letters 1,200  restarts 2"
    )


def test_log_line_has_numbers_without_decoration():
    view = View(
        records_in=12000,
        records_out=9,
        runs_in_flight=3,
        timers_pending=5,
        checkpoint=2,
        checkpoint_completed_ms=1000,
        restarts=1,
    )
    assert progress_fields(view, (1200.4, 0.9), 2512) == {
        "state": "running",
        "in_per_s": 1200,
        "out_per_s": 1,
        "in_flight": 3,
        "records_in": 12000,
        "records_out": 9,
        "checkpoint": 2,
        "checkpoint_age_s": 1.5,
        "timers_pending": 5,
        "restarts": 1,
    }


def test_log_lines_are_written_above_the_live_line():
    terminal = io.StringIO()
    line = LiveLine(terminal)
    line.write("before\n")
    line.show("live")
    line.write("a log line\n")
    line.erase()
    line.erase()
    line.write("after\n")
    erase = "\r\x1b[2K"
    assert terminal.getvalue() == f"before\n{erase}live{erase}a log line\nlive{erase}after\n"


def test_live_line_is_cut_to_the_width_of_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "10")
    terminal = io.StringIO()
    LiveLine(terminal).show("0123456789abcdef")
    assert terminal.getvalue() == "\r\x1b[2K01234567…"


def test_live_line_is_redrawn_at_most_four_times_a_second():
    assert progress.REDRAW_S >= 0.25


async def test_live_line_is_erased_when_following_ends():
    terminal = io.StringIO()
    following = asyncio.ensure_future(follow_live("reviews", View, LiveLine(terminal)))
    await asyncio.sleep(0)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    assert "reviews  running" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[2K")


async def test_progress_is_logged_at_every_interval():
    lines: list[dict] = []
    seen = asyncio.Event()

    def log(event, **fields):
        lines.append({"event": event, **fields})
        if len(lines) == 2:
            seen.set()

    following = asyncio.ensure_future(follow_log(lambda: View(records_in=5), log, every_s=0.001))
    await asyncio.wait_for(seen.wait(), 10)
    following.cancel()
    assert {line["event"] for line in lines} == {"progress"}
    assert {line["records_in"] for line in lines} == {5}

"""`agentflow top`: what a running job does, from the metrics that its processes serve."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from agentflow.cli.kafka_commands import load, print_table
from agentflow.cli.output import EXIT_DONE, print_json
from agentflow.errors import ConfigError

if TYPE_CHECKING:
    from agentflow.cli.job_file import JobFile
    from agentflow.observability.job_scraper import JobScraper
    from agentflow.observability.job_view import CallView, JobView, SubtaskView


def top(chosen: argparse.Namespace) -> int:
    """Show a job live on a terminal; elsewhere, and with ``--once`` or ``--json``, what one interval saw.

    Raises:
        ConfigError: The addresses are none, or packages are missing.
        MetricsUnreachable: Nobody answers, where one answer is wanted.
    """
    scraper = _scraper(chosen)
    if not (chosen.json or chosen.once) and sys.stdout.isatty():
        from agentflow.cli.top_screen import TopScreen

        TopScreen(scraper, chosen.interval).run()
        return EXIT_DONE
    scraper.poll()
    time.sleep(chosen.interval)
    view = scraper.poll()
    if chosen.json:
        import msgspec

        print_json(msgspec.to_builtins(view) | {"unreachable": list(scraper.unreachable)})
    else:
        _print(view, scraper)
    return EXIT_DONE


def _scraper(chosen: argparse.Namespace) -> JobScraper:
    try:
        import textual  # noqa: F401 (asked for before anything is shown)

        from agentflow.observability.job_scraper import JobScraper
    except ModuleNotFoundError as error:
        raise ConfigError(
            [f"agentflow top needs packages that are not installed ({error.name}): pip install 'agentflow[top]'"]
        ) from error
    if all("://" in place for place in chosen.places):
        return JobScraper([_address(place) for place in chosen.places])
    if len(chosen.places) > 1:
        raise ConfigError(["agentflow top takes one job file, or addresses: http://host:port …"])
    job_file = load(argparse.Namespace(**vars(chosen), config=chosen.places[0]))
    return JobScraper([_address_of(job_file)], has_more=job_file.composition.source.described.startswith("kafka"))


def _address(place: str) -> str:
    from urllib.parse import urlsplit

    parts = urlsplit(place)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path not in ("", "/", "/metrics"):
        raise ConfigError([f"'{place}' is no address of a process: write http://host:port, as the job's log says"])
    return f"{parts.scheme}://{parts.netloc}"


def _address_of(job_file: JobFile) -> str:
    admin = job_file.settings.admin
    if not admin.port:
        wrong = "is not set, so the job serves no metrics" if admin.port is None else "is 0, which is any free one"
        fix = "set admin.port for the job and here, or give the address that its log says: http://host:port"
        raise ConfigError([f"{job_file.path}: admin.port {wrong}\nhelp: {fix}"])
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(admin.host, admin.host)  # noqa: S104 (it is compared)
    return f"http://{host}:{admin.port}"


# -- text
Column = tuple[str, Callable[[Any], str]]

SUBTASK_COLUMNS: Sequence[Column] = (
    ("SUBTASK", lambda row: str(row.subtask)),
    ("IN FLIGHT", lambda row: f"{row.in_flight:,}"),
    ("PENDING", lambda row: f"{row.pending:,}"),
    ("RETRYING", lambda row: f"{row.parked:,}"),
    ("ASLEEP", lambda row: f"{row.sleeping:,}"),
    ("MAILBOX", lambda row: f"{row.mailbox:,}{' paused' if row.is_paused else ''}"),
    ("CHECKPOINT", lambda row: f"{row.checkpoint:,}"),
    ("AGE", lambda row: seconds(row.checkpoint_age_s)),
    ("TOOK", lambda row: seconds(row.checkpoint_duration_s)),
    ("WROTE", lambda row: size(row.checkpoint_bytes)),
    ("STATE", lambda row: size(row.state_bytes)),
    ("PROCESS", lambda row: row.process.partition("://")[2]),
)
"""Titles of the columns of subtasks, and what stands in them."""


def call_columns(what: str) -> Sequence[Column]:
    """Return the columns of actions, or of steps."""
    return (
        (what, lambda row: row.name),
        ("AGENT", lambda row: row.agent),
        ("PER S", lambda row: rate(row.per_s)),
        ("P50", lambda row: seconds(row.p50_s)),
        ("P99", lambda row: seconds(row.p99_s)),
        ("FAILED", lambda row: f"{row.failures:,}"),
        ("RETRIED", lambda row: f"{row.retries:,}"),
        ("TOTAL", lambda row: f"{row.total:,}"),
    )


def cells(columns: Sequence[Column], row: SubtaskView | CallView) -> list[str]:
    """Return what stands in a row."""
    return [show(row) for _, show in columns]


def summary(view: JobView) -> list[tuple[str, str]]:
    """Return what the job does as a whole: names and values."""
    found = [
        ("in", f"{rate(view.in_per_s)}/s"),
        ("out", f"{rate(view.out_per_s)}/s"),
        ("read", f"{view.records_in:,}"),
        ("in flight", f"{view.in_flight:,}"),
        ("dead letters", f"{view.dead_letters:,}"),
        ("restarts", f"{view.restarts:,}"),
        ("loop lag", seconds(view.loop_lag_s)),
    ]
    if view.lag is not None:
        found.append(("lag", f"{view.lag:,}"))
    if (models := view.models) is not None:
        found += [
            ("model calls", f"{rate(models.calls_per_s)}/s"),
            ("on their way", f"{models.active:,}"),
            ("waiting", f"{models.waiting:,}"),
            ("tokens", f"{rate(models.tokens_per_s)}/s"),
            *([("cost", f"{models.cost:,.4g}")] if models.cost else []),
        ]
    found += [("failed", name) for name in view.resources_failed]
    return found + [("circuit open", name) for name in view.circuits_open]


def rate(per_s: float) -> str:
    """Return a rate in short."""
    return f"{per_s:,.0f}" if per_s >= 10 or not per_s else f"{per_s:.1f}"


def seconds(duration_s: float | None) -> str:
    """Return a duration in short."""
    if duration_s is None:
        return "-"
    if duration_s < 0.001:
        return f"{duration_s * 1_000_000:.0f}µs"
    if duration_s < 1:
        return f"{duration_s * 1_000:.3g}ms"
    return f"{duration_s:.1f}s" if duration_s < 100 else f"{duration_s:,.0f}s"


def size(count: int) -> str:
    """Return a number of bytes in short."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f}{unit}" if unit == "B" else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}GiB"


def _print(view: JobView, scraper: JobScraper) -> None:
    print(f"job {view.job}  " + "  ".join(f"{name} {value}" for name, value in summary(view)))
    for error in scraper.unreachable.values():
        print(error.what)
    for columns, rows in (
        (SUBTASK_COLUMNS, view.subtasks),
        (call_columns("ACTION"), view.actions),
        (call_columns("STEP"), view.steps),
    ):
        if rows:
            print()
            print_table([title for title, _ in columns], [cells(columns, row) for row in rows])

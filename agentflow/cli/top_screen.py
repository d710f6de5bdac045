"""The live view of a job on a terminal."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.console import JustifyMethod
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Footer, Sparkline, Static

from agentflow.cli.top import SUBTASK_COLUMNS, Column, call_columns, cells, summary
from agentflow.errors import MetricsUnreachable
from agentflow.observability.job_scraper import JobScraper
from agentflow.observability.job_view import CallView, JobView, SubtaskView

_HISTORY = 120
_ORDERS: Sequence[tuple[str, Callable[[CallView], float]]] = (
    ("slowest first", lambda view: -(view.p99_s or 0.0)),
    ("busiest first", lambda view: -view.per_s),
    ("most failures first", lambda view: -float(view.failures)),
)


class TopScreen(App[None]):
    """Asks a job's processes again and again, and shows what they say.

    Args:
        scraper: Asks them.
        interval_s: Seconds between two questions.
    """

    CSS = """
    #totals { height: auto; padding: 0 1; }
    #problem { height: auto; padding: 0 1; color: $error; display: none; }
    #history { height: 2; margin: 0 1; }
    DataTable { height: auto; max-height: 1fr; margin: 1 1 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("p", "pause", "Pause"),
        Binding("s", "order", "Order of actions"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, scraper: JobScraper, interval_s: float) -> None:
        super().__init__()
        self._scraper = scraper
        self._interval_s = interval_s
        self._history: deque[float] = deque(maxlen=_HISTORY)
        self._is_paused = False
        self._order = 0
        self._view: JobView | None = None

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield Static(id="totals")
        yield Static(id="problem")
        yield Sparkline([], id="history")
        for name in ("subtasks", "actions", "steps"):
            yield DataTable[Text](id=name, show_cursor=False, zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to ask."""
        for name, columns in (
            ("subtasks", SUBTASK_COLUMNS),
            ("actions", call_columns("ACTION")),
            ("steps", call_columns("STEP")),
        ):
            self.query_one(f"#{name}", DataTable).add_columns(*(title for title, _ in columns))
        self.run_worker(self._follow(), name="follow")

    async def _follow(self) -> None:
        while True:
            if not self._is_paused:
                await self.refresh_view()
            await asyncio.sleep(self._interval_s)

    async def refresh_view(self) -> None:
        """Ask once, and show the answer."""
        try:
            self._view = await asyncio.to_thread(self._scraper.poll)
            self._history.append(self._view.in_per_s)
            problems = [error.what for error in self._scraper.unreachable.values()]
        except MetricsUnreachable as error:
            problems = [error.what, error.fix]
        problem = self.query_one("#problem", Static)
        problem.update(Text("\n".join(problems)))
        problem.display = bool(problems)
        self._show()

    def action_pause(self) -> None:
        """Stop asking, or go on."""
        self._is_paused = not self._is_paused
        self._show()

    def action_order(self) -> None:
        """Order actions and steps by something else."""
        self._order = (self._order + 1) % len(_ORDERS)
        self._show()

    def _show(self) -> None:
        view = self._view
        if view is None:
            return
        order, by = _ORDERS[self._order]
        totals = Text(view.job, "bold")
        if self._is_paused:
            totals.append_text(Text.assemble("  ", ("paused", "reverse")))
        for name, value in summary(view):
            totals.append_text(Text.assemble("  ", (name, "dim"), " ", value))
        totals.append(f"  {order}", "dim")
        self.query_one("#totals", Static).update(totals)
        self.query_one("#history", Sparkline).data = list(self._history)
        actions, steps = sorted(view.actions, key=by), sorted(view.steps, key=by)
        self._fill("subtasks", SUBTASK_COLUMNS, view.subtasks)
        self._fill("actions", call_columns("ACTION"), actions)
        self._fill("steps", call_columns("STEP"), steps)

    def _fill(self, name: str, columns: Sequence[Column], rows: Sequence[SubtaskView] | Sequence[CallView]) -> None:
        table: DataTable[Text] = self.query_one(f"#{name}", DataTable)
        table.display = bool(rows)
        table.clear()
        for row in rows:
            table.add_row(*(Text(cell, justify=_justify(cell)) for cell in cells(columns, row)))


def _justify(cell: str) -> JustifyMethod:
    return "right" if cell[:1].isdigit() or cell == "-" else "left"

"""How far a command is: a bar on standard error, on a terminal only."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_MIB = 2**20


class ProgressBar:
    """Shows (what is done, how many bytes of it, how many there are) while the ``with`` block lasts, and leaves nothing behind.

    A total of 0 means that nobody knows. May be told from any thread.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._total = 0

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[amount]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, doing: str, done: int, total: int) -> None:
        """Show how far it is."""
        progress = self._progress
        if progress is None:
            return
        if self._task is None or self._total != total:
            if self._task is not None:
                progress.remove_task(self._task)
            self._task, self._total = progress.add_task(doing, total=total or None, amount=""), total
        amount = f"{done / _MIB:,.1f} of {total / _MIB:,.1f} MiB" if total else ""
        progress.update(self._task, description=doing, completed=done, amount=amount)

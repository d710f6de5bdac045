"""Problems of a job file, each with its place, rendered as a person reads them.

job.yaml:7: unknown key 'checkpoint.intervall'
  7 | checkpoint: {intervall: 1s}
                   ^^^^^^^^^ did you mean 'interval'?
help: agentflow schema --describe checkpoint
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from agentflow.errors import ConfigError

_SECRET = re.compile(
    r"""((?:password|secret|account-key|session-token)[\w-]*['"]?\s*[:=]\s*)(?!["']?\$\{)("[^"]*"|'[^']*'|[^\s,}]+)""",
    re.IGNORECASE,
)
LINE_MAX = 160  # columns of a quoted line; longer ones are cut around the place


class Place(msgspec.Struct, frozen=True):
    """Where something stands.

    Attributes:
        source: Name of the file as it was given, ``--set``, or ``environment``.
        line: From 1; 0 where there are no lines.
        column: From 0, in characters.
        width: Characters that are meant.
        text: The whole line; empty: nothing to show.
    """

    source: str
    line: int = 0
    column: int = 0
    width: int = 1
    text: str = ""

    @property
    def label(self) -> str:
        """``file:line``, or the source alone."""
        return f"{self.source}:{self.line}" if self.line else self.source


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong.

    Attributes:
        what: What is wrong, without the place.
        place: Where.
        note: What would be right, beside the mark.
        help: A command, or what to write.
        related: An earlier place that it collides with.
        detail: Lines to be shown as they are (the user's part of a traceback).
    """

    what: str
    place: Place
    note: str = ""
    help: str = ""
    related: Place | None = None
    detail: str = ""

    def render(self) -> str:
        """Return the problem as text, without ``error:`` before it and without a line end behind it."""
        place = self.place
        lines = [f"{place.label}: {self.what}"]
        if place.text:
            digits = max(len(str(shown.line)) for shown in (place, self.related or place))
            if self.related is not None and self.related.text:
                lines.append(_quoted(self.related, digits)[0])
            lines += _quoted(place, digits)
            lines[-1] += f" {self.note}" if self.note else ""
        elif self.note:
            lines.append(f"  {self.note}")
        if self.detail:
            lines += [f"  {line}" for line in self.detail.splitlines()]
        if self.help:
            lines.append(f"help: {self.help}")
        return "\n".join(lines)


def _quoted(place: Place, digits: int) -> list[str]:
    """Return the line behind its number, and the marks below it."""
    gutter = f"  {place.line:>{digits}} | " if place.line else "  "
    text, column = _without_secrets(place.text.replace("\t", " ")), place.column
    if len(text) > LINE_MAX:
        start = max(0, min(column - LINE_MAX // 2, len(text) - LINE_MAX))
        text, column = text[start : start + LINE_MAX], column - start
    width = max(1, min(place.width, len(text) - column))
    return [gutter + text, " " * (len(gutter) + column) + "^" * width]


class JobFileError(ConfigError):
    """A job file, an environment variable or a flag is wrong; ``found`` has every problem with its place."""

    def __init__(self, found: Iterable[Problem]) -> None:
        self.found = tuple(found)
        super().__init__([problem.render() for problem in self.found])


class ProblemList:
    """Problems in the order of their places, reported all at once."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(
        self,
        what: str,
        place: Place,
        *,
        note: str = "",
        help: str = "",  # noqa: A002 (the word that is printed)
        related: Place | None = None,
        detail: str = "",
    ) -> None:
        """Add one; the same problem of the same place (an alias used twice) is told once."""
        problem = Problem(what, place, note, help, related, detail)
        if problem not in self.found:
            self.found.append(problem)

    def raise_all(self) -> None:
        """Raise JobFileError when there is a problem: first those with a line, in the order of lines."""
        if self.found:
            raise JobFileError(sorted(self.found, key=lambda problem: (not problem.place.line, problem.place.line)))


def _without_secrets(line: str) -> str:
    """Return a line with stars for the values of passwords, as wide as they were, so that marks stay where they belong."""
    return _SECRET.sub(lambda found: found[1] + "*" * len(found[2]), line)

"""Problems of an agent: collected while it is compiled, reported all at once."""

from __future__ import annotations

from collections.abc import Iterable

from agentflow.errors import PlanError


class ProblemList:
    """Texts of problems, in the order in which they were found: where, what is wrong, what is expected, how to fix it."""

    def __init__(self, agent: str) -> None:
        self._agent = agent
        self.texts: list[str] = []

    def add(self, what: str, *, place: str = "", expected: str = "", fix: str = "") -> None:
        """Add one problem; ``place`` names the part of the agent (``action 'score'``)."""
        where = f"agent '{self._agent}'" + (f", {place}" if place else "")
        lines = [f"{where}: {what}"]
        if expected:
            lines.append(f"  expected: {expected}")
        if fix:
            lines.append(f"  help: {fix}")
        self.texts.append("\n".join(lines))

    def raise_all(self) -> None:
        """Raise PlanError when there is a problem."""
        if self.texts:
            raise PlanError(self.texts)


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that ``name`` most likely means; None when none is near."""
    from difflib import get_close_matches  # only for an agent with a problem

    by_folded = {candidate.casefold(): candidate for candidate in candidates}
    found = get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None

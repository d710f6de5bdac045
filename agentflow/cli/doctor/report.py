"""Findings as people read them: a table by groups, then every problem whole, with its fix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from agentflow.cli.doctor.findings import Finding, Outcome, Result

_COLORS = {
    Result.OK: "32",
    Result.NOTE: "36",
    Result.SKIPPED: "2",
    Result.WARNING: "33",
    Result.ERROR: "31;1",
}
_PLURALS = {Result.NOTE: "notes", Result.WARNING: "warnings", Result.ERROR: "errors"}
_NAME_WIDTH = 20
_RESULT_WIDTH = 7


def text_of(outcomes: Sequence[Outcome], *, is_colored: bool) -> str:
    """Return the report.

    Args:
        outcomes: In the order in which they are shown.
        is_colored: Whether the words of results have colours.
    """
    lines: list[str] = []
    for group in dict.fromkeys(outcome.check.group for outcome in outcomes):
        lines += [*_group([outcome for outcome in outcomes if outcome.check.group == group], group, is_colored), ""]
    problems = [
        (outcome, finding)
        for outcome in outcomes
        for finding in outcome.findings
        if finding.result in (Result.WARNING, Result.ERROR)
    ]
    problems.sort(key=lambda one: one[1].result is Result.ERROR)  # the errors last: they are next to the prompt
    for outcome, finding in problems:
        lines += [*_problem(outcome, finding, is_colored), ""]
    return "\n".join([*lines, _total(outcomes)])


def _group(outcomes: Sequence[Outcome], group: str, is_colored: bool) -> list[str]:  # noqa: FBT001 (the same all the way down)
    reasons = {finding.found for outcome in outcomes for finding in outcome.findings if not outcome.is_blocked}
    if len(reasons) == 1 and all(outcome.result is Result.SKIPPED for outcome in outcomes):
        return [group, _row(Result.SKIPPED, "", reasons.pop(), is_colored)]
    lines = [group]
    for outcome in outcomes:
        name = outcome.check.name
        for finding in outcome.findings:
            lines.append(_row(finding.result, name, finding.found, is_colored))
            name = ""
    return lines


def _row(result: Result, name: str, found: str, is_colored: bool) -> str:  # noqa: FBT001
    first = found.partition("\n")[0]
    return f"  {_word(result, is_colored, _RESULT_WIDTH)}  {f'{name:<{_NAME_WIDTH}}  ' if name or found else ''}{first}".rstrip()


def _word(result: Result, is_colored: bool, width: int = 0) -> str:  # noqa: FBT001
    word = f"{result.value:<{width}}"
    return f"\x1b[{_COLORS[result]}m{word}\x1b[0m" if is_colored else word


def _problem(outcome: Outcome, finding: Finding, is_colored: bool) -> list[str]:  # noqa: FBT001
    first, *rest = finding.found.split("\n")
    lines = [f"{_word(finding.result, is_colored)}: {outcome.check.name}: {first}"]
    lines += [f"  {line}" for line in rest]
    if finding.expected:
        lines.append(f"  expected: {finding.expected}")
    if finding.fix:
        lines.append(f"  fix: {finding.fix}")
    return lines


def _total(outcomes: Sequence[Outcome]) -> str:
    counts = Counter(outcome.result for outcome in outcomes)
    parts = []
    for result in Result:
        if counts[result]:
            word = _PLURALS.get(result, result.value) if counts[result] != 1 else result.value
            parts.append(f"{counts[result]} {word}")
    return f"{len(outcomes)} checks: {', '.join(parts)}"

"""Whether what looks like a reference in a text is one; where it leads is seen where it is resolved."""

from __future__ import annotations

import re
from typing import Final

from agentflow.plan.problems import nearest

_KINDS: Final = ("env", "file")


def form_problem(match: re.Match[str]) -> tuple[str, str] | None:
    """Return what is wrong with a match of `agentflow.api.references.REFERENCE`, and what would be right; None: nothing."""
    if match["escape"]:
        return None
    kind = match["kind"]
    if not match["close"]:
        return f"the reference '{match[0]}' is not closed", "a '}' is missing"
    if kind == "env" and not re.fullmatch(r"[A-Za-z_]\w*", match["rest"].partition(":-")[0]):
        return f"'{match[0]}' names no variable", "write ${env:NAME} or ${env:NAME:-default}"
    if kind in _KINDS:
        return None
    near = nearest(kind, _KINDS)
    known = "known are ${env:NAME} and ${file:path}; a literal is written $${…}"
    return f"'{match[0]}' is no known reference", f"did you mean '{near}'?" if near else known

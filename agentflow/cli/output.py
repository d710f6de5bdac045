"""What commands print: results on standard output, errors on standard error. Colour only on a terminal."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Any, TextIO

from agentflow.errors import AgentflowError, ConfigError, PlanError

if TYPE_CHECKING:
    from agentflow.plan.file_problems import Problem

EXIT_DONE = 0
EXIT_JOB_FAILED = 1
EXIT_WRONG_USE = 2
EXIT_PROBLEMS_FOUND = 3


def is_colored(stream: TextIO) -> bool:
    """Whether colours may be used: on a terminal that has them, unless NO_COLOR is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def print_json(value: object) -> None:
    """Print a value as indented JSON."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_error(text: str) -> None:
    """Print one problem as ``error: …``; the word and the marks are red on a terminal."""
    if not is_colored(sys.stderr):
        print(f"error: {text}", file=sys.stderr)
        return
    first, *rest = text.split("\n")
    lines = [f"\x1b[31;1merror:\x1b[0m {first}"]
    for line in rest:
        if line.lstrip().startswith("^"):
            lines.append(f"\x1b[31m{line}\x1b[0m")
        elif line.startswith("help: "):
            lines.append(f"\x1b[36mhelp:\x1b[0m {line[6:]}")
        else:
            lines.append(line)
    print("\n".join(lines), file=sys.stderr)


def report_error(error: BaseException, *, is_verbose: bool) -> int:
    """Print what went wrong and return the exit status that says so.

    Args:
        error: What was raised.
        is_verbose: Print the whole traceback before it (``--traceback``).
    """
    if is_verbose:
        traceback.print_exception(error)
    if isinstance(error, ConfigError | PlanError):
        for problem in error.problems:
            print_error(problem)
        return EXIT_WRONG_USE
    if isinstance(error, AgentflowError):
        print_error(_with_cause(error))
        own_part = getattr(error, "user_traceback", "")  # of the action that failed the job
        if own_part and not is_verbose:
            print("\n".join(f"  {line}" for line in str(own_part).rstrip().splitlines()), file=sys.stderr)
        return EXIT_JOB_FAILED
    from agentflow.api.encoding import user_traceback

    where = "" if is_verbose else "\n" + "\n".join(f"  {line}" for line in user_traceback(error).splitlines())
    help_line = "\nhelp: this is a bug; report it with the output of the same command with --traceback"
    print_error(f"unexpected {type(error).__name__}: {error}{where}{help_line}")
    return EXIT_JOB_FAILED


def _with_cause(error: AgentflowError) -> str:
    """Return the error's text; one that says no fix also says what caused it."""
    cause = error.__cause__
    if cause is None or error.fix or str(cause) in str(error):
        return str(error)
    first, *rest = str(error).split("\n")
    return "\n".join([first, f"  because of {type(cause).__name__}: {cause}".replace("\n", "\n    "), *rest])


def problem_fields(problem: Problem) -> dict[str, Any]:
    """Return a problem of a job file for ``--json``."""
    fields = {
        "file": problem.place.source,
        "line": problem.place.line or None,
        "column": problem.place.column + 1 if problem.place.line else None,
        "message": problem.what,
        "note": problem.note or None,
        "help": problem.help or None,
        "traceback": problem.detail or None,
    }
    return {name: value for name, value in fields.items() if value is not None}

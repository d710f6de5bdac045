"""The arguments of `inbox …`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

AddCommand = Callable[[Any, str, str], argparse.ArgumentParser]
AddJobFile = Callable[..., None]

_VERBS = ("list", "show", "approve", "deny")
_ANSWERING = """\
The answer is durable when the command ends, whether the job runs or not. The first one counts:
exit status 3 where nobody waits under that id, or the wait is known to be answered. Who answers
is recorded, by the name of the operating system's user; the model is not told.
"""


def with_inbox_verb(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the verb that ``agentflow inbox JOB`` leaves out."""
    if arguments[:1] != ["inbox"] or arguments[1:2] == ["-h"] or arguments[1:2] == ["--help"]:
        return list(arguments)
    is_verb = len(arguments) > 1 and (arguments[1] in _VERBS or _is_like_a_verb(arguments[1:]))
    return list(arguments) if is_verb else ["inbox", "list", *arguments[1:]]


def _is_like_a_verb(arguments: Sequence[str]) -> bool:
    """Whether a verb is misspelled, as no job is named like that and followed by another: argparse tells then which there are."""
    is_followed = len(arguments) > 1 and not arguments[1].startswith("-")
    return is_followed and arguments[0].isalpha() and not Path(arguments[0]).exists()


def add_inbox_commands(
    commands: argparse._SubParsersAction[Any], add_command: AddCommand, add_job_file: AddJobFile
) -> None:
    """Add `inbox …`."""
    inbox = add_command(commands, "inbox", "see who waits for a person, and approve or deny calls of tools")
    verbs = inbox.add_subparsers(dest="verb", metavar="VERB", parser_class=type(inbox), required=True)
    listing = add_command(verbs, "list", "list who waits for which signal, and since when; the verb may be left out")
    showing = add_command(verbs, "show", "show one wait whole: the tool and its arguments")
    approving = add_command(verbs, "approve", "approve a call of a tool")
    denying = add_command(verbs, "deny", "deny a call of a tool; the model is told, with the reason")
    for command in (listing, showing, approving, denying):
        add_job_file(command, "JOB", "the job file, or a state directory")
        command.add_argument("--json", action="store_true", help="print JSON")
    for command in (showing, denying):
        command.add_argument("id", metavar="ID", help="the wait, as 'inbox list' names it; its first digits do")
    for command in (approving, denying):
        command.description = f"{command.description}\n\n{_ANSWERING}"
        command.add_argument("--reason", default="", metavar="TEXT", help="why; it is recorded")
    approving.add_argument(
        "id", metavar="ID", nargs="?", help="the wait, as 'inbox list' names it; its first digits do"
    )
    approving.add_argument(
        "--arguments",
        metavar="JSON",
        help="call it with these arguments, all of them: they take the place of the model's as a whole",
    )
    approving.add_argument("--all", action="store_true", help="approve all calls of --tool that wait")
    approving.add_argument("--tool", metavar="NAME", help="with --all: the tool")
    approving.set_defaults(late="id")

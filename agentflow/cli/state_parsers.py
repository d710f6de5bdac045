"""The arguments of the commands about state: `savepoint …` and `state …`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from agentflow.cli.argument_types import duration, from_one

AddCommand = Callable[[Any, str, str], argparse.ArgumentParser]
AddJobFile = Callable[..., None]


def add_savepoint_commands(
    commands: argparse._SubParsersAction[Any], add_command: AddCommand, add_job_file: AddJobFile
) -> None:
    """Add `savepoint …`."""
    savepoint = add_command(commands, "savepoint", "take savepoints of a job, look at them, restore them")
    verbs = savepoint.add_subparsers(dest="verb", metavar="VERB", parser_class=type(savepoint), required=True)
    creating = add_command(verbs, "create", "take a savepoint of a job, which may go on running")
    listing = add_command(verbs, "list", "list the savepoints of a directory, or of a job with savepoint.dir")
    inspecting = add_command(verbs, "inspect", "show what a savepoint is of: checkpoint, positions, plans, files")
    verifying = add_command(verbs, "verify", "read every file and every row of a savepoint, and say what is damaged")
    restoring = add_command(verbs, "restore", "make a savepoint the state of a job that has none")
    deleting = add_command(verbs, "delete", "delete savepoints; others have everything they need")
    pruning = add_command(verbs, "prune", "delete all savepoints of each job but the newest")
    for command in (inspecting, verifying, restoring):
        command.add_argument("savepoint", metavar="SAVEPOINT", help="the savepoint, as 'savepoint list' names it")
    deleting.add_argument(
        "savepoints", metavar="SAVEPOINT", nargs="+", help="savepoints, as 'savepoint list' names them"
    )
    add_job_file(creating, "JOB", "the job file, or a state directory")
    for command in (listing, pruning):
        add_job_file(command, "TARGET_OR_JOB", "a directory with savepoints, or a job file")
    into = "the job file, or a state directory: a Kafka job has a new name, an embedded one no state"
    add_job_file(restoring, "JOB", into)
    for command in (creating, listing, inspecting, verifying, restoring, deleting, pruning):
        command.add_argument("--json", action="store_true", help="print JSON")
    pruning.add_argument(
        "--keep", type=from_one("such number"), required=True, metavar="N", help="so many of each job are kept"
    )
    creating.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        help="a directory that holds savepoints, or will (default: savepoint.dir)",
    )
    creating.add_argument(
        "--timeout", type=duration, default=60_000, metavar="TIME", help="how long to wait for a running job (60s)"
    )
    restoring.add_argument("--name", metavar="NAME", help="name of the job, where a state directory is given")


_AS_IT_IS = "What it prints is data as it is: fields with secrets too."


def add_state_commands(
    commands: argparse._SubParsersAction[Any], add_command: AddCommand, add_job_file: AddJobFile
) -> None:
    """Add `state …`."""
    state = add_command(commands, "state", "look into the memory of keys: of a job, running or not, or of a savepoint")
    verbs = state.add_subparsers(dest="verb", metavar="VERB", parser_class=type(state), required=True)
    getting = add_command(verbs, "get", "print the memory of a key, or one path of it")
    listing = add_command(verbs, "list", "list the keys that have memory, with how much; expired values are left out")
    exporting = add_command(verbs, "export", "write memory to a file of JSON lines, or a Parquet file")
    comparing = add_command(verbs, "diff", "show what differs between two savepoints, or a savepoint and a job")
    for command in (getting, listing, exporting, comparing):
        add_job_file(command, "STATE", "a job file, a state directory, or a savepoint")
        command.add_argument("--json", action="store_true", help="print JSON")
        command.description = f"{command.description} {_AS_IT_IS}"
    key = "the key; a number is one, a text may have JSON's quotes"
    getting.add_argument("--key", required=True, metavar="KEY", help=key)
    getting.add_argument("path", metavar="PATH", nargs="?", help="a path, with what is below it; none: all")
    getting.set_defaults(late="path")
    listing.add_argument("--prefix", default="", metavar="TEXT", help="keys that begin with it, as text")
    listing.add_argument(
        "--limit", type=from_one("such number"), default=1000, metavar="N", help="at most so many (1000)"
    )
    exporting.add_argument("--to", required=True, metavar="FILE", help="a name that ends with .jsonl or .parquet")
    comparing.add_argument("other", metavar="STATE", help="the other one: what it has more is added")
    for command in (exporting, comparing):
        command.add_argument(
            "--key", action="append", default=[], dest="keys", metavar="KEY", help=f"{key}; repeatable"
        )

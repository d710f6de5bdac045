"""The command `agentflow`. What a command needs is imported when that command runs: start-up counts."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from agentflow.cli.argument_types import duration, from_one
from agentflow.cli.check_parsers import add_check_commands
from agentflow.cli.inbox_parsers import add_inbox_commands, with_inbox_verb
from agentflow.cli.output import EXIT_DONE, EXIT_JOB_FAILED, EXIT_WRONG_USE, print_error, report_error
from agentflow.cli.state_parsers import add_savepoint_commands, add_state_commands

_OUTPUT_LOST = (errno.EBADF, errno.ENOSPC, errno.EIO)
_STATUS = """\
exit status:
  0 done    1 the job failed    2 wrong use or configuration    3 a check found problems
  130, 143 stopped by SIGINT, SIGTERM after a clean drain"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        argv: Arguments without the program's name; None: those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _fill_descriptors()
    try:
        parser = _parser()
        chosen = parser.parse_args(with_inbox_verb(arguments))
        if chosen.command is None:
            parser.print_help(sys.stderr)
            return EXIT_WRONG_USE
        return _execute(chosen)
    except SystemExit as stop:  # argparse: --help, or wrong use that is told already
        if stop.code == EXIT_DONE and (error := _flush_or_forget()) is not None:
            return 141 if isinstance(error, BrokenPipeError) else _output_lost(error)
        return stop.code if isinstance(stop.code, int) else EXIT_WRONG_USE


def _fill_descriptors() -> None:
    """Open what is missing of standard input, output and errors (`<&-`): the next file or socket would take the place.

    Output that is missing stays an error, as what is written there would be lost: the place is filled by a file for reading.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest free descriptor, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (for the life of the process)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (for the life of the process)


def _execute(chosen: argparse.Namespace) -> int:
    try:
        status = _imported(chosen)(chosen)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of the output has gone (`| head`): nothing is left to say, and nobody to say it to.
        _forget_output()
        return 141
    except Exception as error:  # noqa: BLE001 (the edge of the command line)
        _flush_or_forget()
        if isinstance(error, OSError) and error.filename is None and error.errno in _OUTPUT_LOST:
            return _output_lost(error)
        return report_error(error, is_verbose=chosen.traceback)
    return status


def _output_lost(error: OSError) -> int:
    print_error(
        f"output cannot be written: {error.strerror}\nexpected: an open standard output, and a place that has space"
    )
    return EXIT_JOB_FAILED


def _flush_or_forget() -> OSError | None:
    """Write what is left of the output; where that fails it is forgotten, and the error returned."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _forget_output()
        return error
    return None


def _forget_output() -> None:
    """Let the interpreter's last flush of standard output go nowhere; it would complain that nobody reads."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_COMMANDS = {
    "run": "run:run",
    "worker": "worker:worker",
    "validate": "inspection:validate",
    "plan": "inspection:plan",
    "schema": "inspection:schema",
    "doctor": "doctor.command:doctor",
    "verify": "verify.command:verify",
    "simulate": "simulate:run_simulations",
    "top": "top:top",
    "group describe": "kafka_commands:describe_group",
    "dlq list": "kafka_commands:list_dead_letters",
    "dlq show": "kafka_commands:show_dead_letter",
    "dlq redrive": "kafka_commands:redrive_dead_letters",
    "runs list": "run_commands:list_runs",
    "runs show": "run_commands:show_run",
    "runs check": "run_commands:check_runs",
    "runs cancel": "run_commands:control_run",
    "runs retry": "run_commands:control_run",
    "journal show": "run_commands:show_run",
    "inbox list": "inbox_commands:list_waits",
    "inbox show": "inbox_commands:show_wait",
    "inbox approve": "inbox_commands:answer",
    "inbox deny": "inbox_commands:answer",
    "signal": "run_commands:send_signal",
    "savepoint create": "savepoint_commands:create",
    "savepoint list": "savepoint_commands:list_all",
    "savepoint inspect": "savepoint_commands:inspect",
    "savepoint verify": "savepoint_commands:verify",
    "savepoint restore": "savepoint_commands:restore",
    "savepoint delete": "savepoint_commands:delete",
    "savepoint prune": "savepoint_commands:prune",
    "state get": "state_commands:get",
    "state list": "state_commands:list_keys",
    "state export": "state_commands:export",
    "state diff": "state_commands:diff",
    "trace show": "trace:show",
    "trace tree": "trace:tree",
    "version": "version:version",
}
"""Command, with its verb → module below `agentflow.cli`, and the function in it that takes what was parsed."""


def _imported(chosen: argparse.Namespace) -> Callable[[argparse.Namespace], int]:
    verb = getattr(chosen, "verb", None)
    module, _, function = _COMMANDS[f"{chosen.command} {verb}" if verb else chosen.command].partition(":")
    found: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(f"agentflow.cli.{module}"), function)
    return found


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in the words of all other errors, and suggests the nearest command or flag."""

    def error(self, message: str) -> NoReturn:
        print_error(f"{message}\nhelp: {self.prog} --help")
        raise SystemExit(EXIT_WRONG_USE)

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        chosen, unknown = self.parse_known_args(args, namespace)
        late = getattr(
            chosen, "late", None
        )  # an optional argument that stands behind a flag: argparse took it for missing
        if late is not None and len(unknown) == 1 and unknown[0][0] != "-" and getattr(chosen, late) is None:
            setattr(chosen, late, unknown.pop())
        if unknown:
            parser = self._chosen_parser(chosen)
            program = parser.prog
            suggestion = _suggestion(unknown[0], [flag for action in parser._actions for flag in action.option_strings])  # noqa: SLF001
            print_error(f"unknown argument '{unknown[0]}' of '{program}'{suggestion}\nhelp: {program} --help")
            raise SystemExit(EXIT_WRONG_USE)
        return chosen

    def _chosen_parser(self, chosen: argparse.Namespace) -> argparse.ArgumentParser:
        """Return the parser of the command, and of its verb."""
        parser: argparse.ArgumentParser = self
        while found := [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]:  # noqa: SLF001 (argparse has no other way to ask)
            name = getattr(chosen, found[0].dest, None)
            if name is None:
                break
            parser = found[0].choices[name]
        return parser

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            name = "command" if action.dest == "command" else "/".join(action.option_strings) or action.dest
            near = _suggestion(str(value), known)
            raise argparse.ArgumentError(None, f"unknown {name} '{value}'{near or ', one of ' + ', '.join(known)}")


def _suggestion(name: str, known: Sequence[str]) -> str:
    from agentflow.plan.problems import nearest

    near = nearest(name.partition("=")[0], known)
    return f", did you mean '{near}'?" if near else ""


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="agentflow",
        description="Durable, exactly-once, keyed stream processing for AI agents.",
        epilog=_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="store_const", dest="command", const="version", help="as 'agentflow version'"
    )
    parser.set_defaults(command=None, json=False, traceback=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, summary in (
        ("run", "run a job to the end of its input, or until it is stopped"),
        ("worker", "run a share of a Kafka job, until it is stopped"),
        ("validate", "check a job file, its agent and its plan; nothing is run"),
        ("plan", "show what an agent is made of: actions, triggers, resources, event graph"),
    ):
        command = _add_command(commands, name, summary)
        _add_job_file(command)
        if name in ("run", "worker"):
            command.add_argument("--log-format", choices=["auto", "console", "json"], help="how log lines look")
            command.add_argument("--log-level", choices=["debug", "info", "warning", "error"], help="least level shown")
            command.add_argument("--no-uvloop", action="store_true", help="use asyncio's own event loop")
            command.add_argument(
                "--accept",
                dest="settings",
                action="append_const",
                const="run.accept-changes=true",
                help="start although unfinished runs would diverge from the changed agent",
            )
        if name == "worker":
            command.add_argument(
                "--processes",
                type=from_one("number of processes"),
                metavar="N",
                help="run N members, one per core, under a supervisor",
            )
            command.add_argument("--process", type=int, help=argparse.SUPPRESS)  # the number that a supervisor gives
        else:
            forms = command.add_mutually_exclusive_group()
            forms.add_argument("--json", action="store_true", help="print JSON")
            if name == "plan":
                forms.add_argument("--mermaid", action="store_true", help="print the event graph as Mermaid text")
    schema = _add_command(commands, "schema", "print the JSON schema of job and agent files, or describe keys")
    schema.add_argument(
        "--describe", nargs="?", const="", metavar="SECTION", help="describe a section or key; none: all"
    )
    schema.add_argument("--json", action="store_true", help="print a description as JSON")
    add_check_commands(commands, _add_command, _add_job_file)
    _add_simulate(commands)
    _add_top(commands)
    _add_kafka_commands(commands)
    _add_run_commands(commands)
    add_savepoint_commands(commands, _add_command, _add_job_file)
    add_state_commands(commands, _add_command, _add_job_file)
    _add_trace_commands(commands)
    version = _add_command(commands, "version", "print the version")
    version.add_argument("--json", action="store_true", help="print JSON, with the versions of what matters")
    return parser


def _add_job_file(command: argparse.ArgumentParser, metavar: str = "CONFIG", text: str = "the job file") -> None:
    command.add_argument("config", metavar=metavar, help=text)
    command.add_argument("--profile", metavar="NAME", help="lay this profile of the file over it")
    command.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="set one key; repeatable"
    )


def _add_kafka_commands(commands: argparse._SubParsersAction[_Parser]) -> None:
    group = _add_command(commands, "group", "look at the group of a Kafka job")
    verbs = group.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser, required=True)
    describe = _add_command(verbs, "describe", "show subtasks, owners, checkpoints, committed offsets and lag")
    dlq = _add_command(commands, "dlq", "look at the dead letters of a Kafka job, and send them back")
    verbs = dlq.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser, required=True)
    listing = _add_command(verbs, "list", "list dead letters")
    show = _add_command(verbs, "show", "show one dead letter whole")
    redrive = _add_command(verbs, "redrive", "send dead letters back to where they came from")
    for command in (describe, listing, show, redrive):
        _add_job_file(command)
        command.add_argument("--json", action="store_true", help="print JSON")
    show.add_argument("position", metavar="POSITION", help="where the record came from, topic/partition@offset")
    redrive.add_argument("positions", metavar="POSITION", nargs="*", help="records by where they came from")
    redrive.add_argument("--all", action="store_true", help="all that were not sent back yet, each once")


def _add_run_commands(commands: argparse._SubParsersAction[_Parser]) -> None:
    runs = _add_command(commands, "runs", "look at the unfinished runs of a job")
    verbs = runs.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser, required=True)
    listing = _add_command(verbs, "list", "list them: key, state, task, attempt, when it goes on")
    show = _add_command(verbs, "show", "show one of them, and what is recorded of its steps")
    checking = _add_command(verbs, "check", "say which of them would diverge from the agent as it is now")
    cancelling = _add_command(verbs, "cancel", "cancel the run of a key; what listens to CancelEvent compensates")
    retrying = _add_command(verbs, "retry", "try at once what the run of a key would try later")
    journal = _add_command(commands, "journal", "look at the records of durable steps")
    verbs = journal.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser, required=True)
    records = _add_command(verbs, "show", "show the records of an unfinished run")
    add_inbox_commands(commands, _add_command, _add_job_file)
    sending = _add_command(commands, "signal", "send a signal to runs that wait for it, or will")
    _add_job_file(checking)
    for command in (listing, show, records, sending, cancelling, retrying):
        _add_job_file(command, text="the job file, or a state directory")
    for command in (listing, show, checking, records, sending, cancelling, retrying):
        command.add_argument("--json", action="store_true", help="print JSON")
    for command in (show, records):
        command.add_argument("run", metavar="RUN", help="the run, as 'runs list' names it")
    for command in (sending, cancelling, retrying):
        command.add_argument(
            "key",
            metavar="KEY",
            help='the key: a number, a text (in JSON\'s quotes, if it looks like one), {"$bytes": "<base64>"}',
        )
        command.add_argument("--agent", default="", metavar="NAME", help="for this agent of a chain")
    cancelling.add_argument("--reason", default="", metavar="TEXT", help="why; the CancelEvent has it")
    sending.add_argument("name", metavar="NAME", help="the name that ctx.wait_for waits for")
    sending.add_argument("value", metavar="VALUE", nargs="?", help="JSON; what ctx.wait_for returns")
    sending.add_argument("--correlation", default="", metavar="TEXT", help="only for waits with the same one")
    for command in (sending, cancelling):
        command.add_argument("--run", default="", metavar="RUN", help="only for this run")


def _add_trace_commands(commands: argparse._SubParsersAction[_Parser]) -> None:
    trace = _add_command(commands, "trace", "see runs in the event log")
    verbs = trace.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser, required=True)
    show = _add_command(verbs, "show", "show what happened in a run, or in the runs of a key")
    show.add_argument("names", metavar="JOB RUN", nargs="*", help="the job file, and the run; no run with --key")
    show.add_argument("--key", metavar="KEY", help="list the runs of this key, and show the last one")
    show.add_argument("--all", action="store_true", help="show all of them: of a key, or of an id that several have")
    show.add_argument("--log", metavar="FILE", nargs="+", help="read these files or directories, and no job file")
    show.add_argument("--profile", metavar="NAME", help="lay this profile of the job file over it")
    show.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="set one key")
    show.add_argument("--format", choices=["text", "json", "mermaid", "html"], default="text", help="how it looks")
    tree = _add_command(verbs, "tree", "show the lineage of all events in files, and what does not fit")
    tree.add_argument("files", metavar="FILE", nargs="+", help="event logs, or directories of them")
    tree.add_argument("--format", choices=["text", "json"], default="text", help="how it looks")


def _add_simulate(commands: argparse._SubParsersAction[_Parser]) -> None:
    simulate = _add_command(
        commands, "simulate", "run the engine in a seeded world with faults, and check what it promises"
    )
    seeds = simulate.add_mutually_exclusive_group(required=True)
    seeds.add_argument("--seed", type=_seed, metavar="N", help="replay one seed")
    seeds.add_argument("--seeds", type=_seeds, metavar="A..B", help="run all seeds from A to B, both included")
    world = simulate.add_mutually_exclusive_group()
    world.add_argument("--kafka", action="store_true", help="workers over a simulated Kafka cluster")
    world.add_argument("--requests", action="store_true", help="callers of an embedded engine")
    simulate.add_argument("--trace", action="store_true", help="print every point that was passed, and every fault")
    simulate.add_argument("--json", action="store_true", help="print JSON")


def _add_top(commands: argparse._SubParsersAction[_Parser]) -> None:
    top = _add_command(
        commands, "top", "watch what a running job does: throughput, subtasks, slowest actions and steps"
    )
    top.add_argument("places", metavar="CONFIG|URL", nargs="+", help="the job file, or http://host:port of processes")
    top.add_argument("--profile", metavar="NAME", help="lay this profile of the file over it")
    top.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="set one key; repeatable"
    )
    top.add_argument("--interval", type=_interval_s, default=1.0, metavar="TIME", help="between two looks (1s)")
    forms = top.add_mutually_exclusive_group()
    forms.add_argument("--once", action="store_true", help="print what one interval saw, as text")
    forms.add_argument("--json", action="store_true", help="print it as JSON")


def _interval_s(text: str) -> float:
    interval_ms = duration(text)
    if interval_ms < 100:
        msg = f"'{text}' is too short, write 100ms or more"
        raise argparse.ArgumentTypeError(msg)
    return interval_ms / 1000


def _seed(text: str) -> int:
    if not text.isdecimal():
        msg = f"'{text}' is no seed, write a number from 0 on"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _seeds(text: str) -> range:
    first, dots, last = text.partition("..")
    if not (dots and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        msg = f"'{text}' is no range of seeds, write A..B with A <= B: 0..1999"
        raise argparse.ArgumentTypeError(msg)
    return range(int(first), int(last) + 1)


def _add_command(
    commands: argparse._SubParsersAction[_Parser],
    name: str,
    summary: str,  # argparse has no public name for it
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("--traceback", action="store_true", help="show whole tracebacks of errors")
    return command

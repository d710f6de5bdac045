"""`inbox list|show|approve|deny`: who waits for a person, and what the person says.

As the other commands that look at runs and talk to them: beside a running job, and on a stopped one.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentflow.cli.kafka_commands import print_table
from agentflow.cli.output import EXIT_DONE, EXIT_PROBLEMS_FOUND, print_json
from agentflow.cli.run_commands import deliver, job_of, runs_of, state_dir, time_text
from agentflow.errors import ConfigError, UnknownWait

if TYPE_CHECKING:
    from agentflow.cli.job_file import JobFile
    from agentflow.runtime.inbox import Verdict
    from agentflow.runtime.inspection import WaitView

_ABOUT_CHARS = 60


def list_waits(chosen: argparse.Namespace) -> int:
    """Print who waits for which signal, and since when."""
    import msgspec

    from agentflow.runtime.inspection import waits_for_signals

    waits = waits_for_signals(runs_of(job_of(chosen)))
    if chosen.json:
        print_json(msgspec.to_builtins(waits))
        return EXIT_DONE
    rows = [
        [wait.id, repr(wait.key), wait.name, _short(wait.about), wait.correlation or "-", wait.run, time_text(wait.since_ms), time_text(wait.due_ms)]
        for wait in waits
    ]  # fmt: skip
    print_table(["ID", "KEY", "SIGNAL", "ABOUT", "CORRELATION", "RUN", "SINCE", "UNTIL"], rows)
    return EXIT_DONE


def show_wait(chosen: argparse.Namespace) -> int:
    """Print one wait whole; exit status 3 when nobody waits under that id."""
    import msgspec

    from agentflow.runtime.inbox import find_wait

    try:
        wait = find_wait(runs_of(job_of(chosen)), chosen.id)
    except UnknownWait as unknown:
        return _not_found(unknown)
    if chosen.json:
        print_json(msgspec.to_builtins(wait))
        return EXIT_DONE
    for name, value in (
        ("id", wait.id),
        ("key", repr(wait.key)),
        ("signal", wait.name),
        ("correlation", wait.correlation or "-"),
        ("run", wait.run),
        ("since", time_text(wait.since_ms)),
        ("until", time_text(wait.due_ms)),
    ):
        print(f"{name:<12} {value}")
    if wait.about is not None:
        print()
        print_json(wait.about)
    return EXIT_DONE


def answer(chosen: argparse.Namespace) -> int:
    """Approve or deny what waits for it; exit status 3 when nobody does, or not any more."""
    from agentflow.runtime.inbox import UNREDACTED, Verdict, answer_document, find_wait, this_user

    job, is_approved = job_of(chosen), chosen.verb == "approve"
    verdict = Verdict(is_approved, this_user(), chosen.reason, _arguments(chosen) if is_approved else None)
    runs = runs_of(job, UNREDACTED)
    try:
        if is_approved and chosen.all:
            waits = _of_tool(job, runs, chosen.tool)
        else:
            waits = [find_wait(runs, chosen.id)]
            _check_unanswered(job, waits[0])
    except UnknownWait as unknown:
        return _not_found(unknown)
    for wait in waits:
        deliver(job, wait.key, answer_document(wait, verdict))
    _report(chosen, waits, verdict)
    return EXIT_DONE


def _arguments(chosen: argparse.Namespace) -> dict[str, Any] | None:
    """Check what belongs together, and return the arguments that a call is to be made with."""
    import msgspec

    if chosen.all and (chosen.tool is None or chosen.id is not None or chosen.arguments is not None):
        raise ConfigError(["--all goes with --tool NAME, and with neither an ID nor --arguments"])
    if not chosen.all and (chosen.id is None or chosen.tool is not None):
        raise ConfigError(["which call? Give its ID, as 'agentflow inbox list' names it, or --all --tool NAME"])
    if chosen.arguments is None:
        return None
    try:
        return msgspec.json.decode(chosen.arguments, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ConfigError(
            [
                f'--arguments is no JSON object ({error}): {chosen.arguments}\nhelp: all of the call\'s arguments: \'{{"order": "o-7", "amount": 5}}\''
            ]
        ) from None


def _of_tool(job: JobFile | Path, runs: list[Any], tool: str) -> list[WaitView]:
    from agentflow.actions.approvals import APPROVAL
    from agentflow.runtime.inspection import waits_for_signals

    waits = [
        wait
        for wait in waits_for_signals(runs)
        if wait.name == APPROVAL and isinstance(wait.about, dict) and wait.about.get("tool") == tool
    ]
    on_their_way = _on_their_way(job)
    waiting = [wait for wait in waits if (wait.run, wait.step) not in on_their_way]
    if not waiting:
        raise UnknownWait(f"no call of tool '{tool}' waits for an approval")
    return waiting


def _check_unanswered(job: JobFile | Path, wait: WaitView) -> None:
    """Refuse a second answer where the first one is on its way: a stopped job reads it when it starts."""
    from agentflow.runtime.inbox import already_answered

    if (wait.run, wait.step) in _on_their_way(job):
        raise already_answered(wait)


def _on_their_way(job: JobFile | Path) -> set[tuple[str, str]]:
    """Return run and place of the waits for which there are answers; on Kafka nobody knows before the job has read them."""
    from agentflow.cli.job_file import KafkaSource
    from agentflow.connectors.signal_spool import SignalSpool
    from agentflow.runtime.signals import wait_of

    if not isinstance(job, Path) and isinstance(job.composition.source, KafkaSource):
        return set()
    return set(map(wait_of, SignalSpool(state_dir(job) / "signals").documents()))


def _report(chosen: argparse.Namespace, waits: list[WaitView], verdict: Verdict) -> None:
    done = "approved" if verdict.approved else "denied"
    if not chosen.json:
        for wait in waits:
            print(f"{done} {wait.id}")
        return
    answers = [{"id": wait.id, "run": wait.run, "approved": verdict.approved, "by": verdict.by} for wait in waits]
    print_json(answers if chosen.verb == "approve" and chosen.all else answers[0])


def _not_found(unknown: UnknownWait) -> int:
    print(unknown.what)
    return EXIT_PROBLEMS_FOUND


def _short(about: object) -> str:
    """Return what a wait is about on one line: a call of a tool as a call."""
    import msgspec

    if about is None:
        return "-"
    if isinstance(about, dict) and {"tool", "arguments"} <= about.keys():
        text = f"{about['tool']} {msgspec.json.encode(about['arguments']).decode()}"
    else:
        text = msgspec.json.encode(about).decode()
    return text if len(text) <= _ABOUT_CHARS else f"{text[:_ABOUT_CHARS]}…"

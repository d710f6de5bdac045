"""`agentflow trace show` and `trace tree`: what the event log has of runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agentflow.cli.output import EXIT_DONE, EXIT_PROBLEMS_FOUND, is_colored, print_json
from agentflow.errors import ConfigError

if TYPE_CHECKING:
    from agentflow.cli.job_file import JobFile
    from agentflow.observability.event_log_search import LogSearch, Record, RunSummary
    from agentflow.observability.run_trace import RunTrace

_USE = "agentflow trace show JOB RUN,  or JOB --key KEY;  --log FILE… instead of JOB reads files without one"


def show(chosen: argparse.Namespace) -> int:
    """Show a run, or the runs of a key; exit status 3 when the event log has none."""
    from agentflow.observability.event_log_search import LogSearch

    job_file, run_id = _wanted(chosen)
    search = LogSearch(_files(job_file, chosen.log))
    runs: list[RunSummary] | None = None
    if chosen.key is None:
        of_id = search.runs(run_id)
        traces = [_trace(run_id, records) for records in (of_id if chosen.all else of_id[-1:])]
        wanted = f"run {run_id}"
        if len(of_id) > len(traces):
            print(_earlier_text(run_id, len(of_id) - 1), file=sys.stderr)
    else:
        runs, traces = _runs_of_key(search, job_file, chosen)
        wanted = f"key {chosen.key}"
    if search.torn:
        print(f"{search.torn} records could not be read: they are not whole", file=sys.stderr)
    if not traces:
        print(f"the event log has no record of {wanted}", file=sys.stderr)
        return EXIT_PROBLEMS_FOUND
    _print(chosen.format, runs, traces)
    return EXIT_DONE


def _earlier_text(run_id: str, count: int) -> str:
    found = f"are {count} earlier runs" if count > 1 else "is an earlier run"
    return f"there {found} with the id {run_id}, of state that was not kept: --all shows them all"


def tree(chosen: argparse.Namespace) -> int:
    """Show the lineage of all events in files, and what does not fit in it."""
    from agentflow.cli.trace_views import printable
    from agentflow.observability.trace_tree import forest_text, read_forest

    files = [path for name in chosen.files for path in _log_files(name)]
    forest = read_forest(files)
    for warning in forest.warnings:
        print(printable(f"[{warning.code}] {warning.message}"), file=sys.stderr)
    if chosen.format == "json":
        print_json(forest)
    elif forest.roots:
        print("\n".join(printable(line) for line in forest_text(forest).split("\n")))
    return EXIT_DONE


def _wanted(chosen: argparse.Namespace) -> tuple[JobFile | None, str]:
    """Return the job file and the run that the arguments name.

    Raises:
        ConfigError: They name too much or too little.
    """
    from agentflow.cli.config_file import load_job_file

    names = list(chosen.names)
    needed = (0 if chosen.log else 1) + (0 if chosen.key is not None else 1)
    if len(names) != needed:
        problem = (
            "more than is wanted"
            if len(names) > needed
            else "no job file"
            if not names and not chosen.log
            else "no run"
        )
        if len(names) == 1 and not chosen.log and chosen.key is None:
            problem = f"a job file and a run are wanted, and only '{names[0]}' is given"
        raise ConfigError([f"{problem}\nhelp: {_USE}"])
    job_file = None if chosen.log else load_job_file(names[0], profile=chosen.profile, settings=chosen.settings)
    return job_file, names[-1] if chosen.key is None else ""


def _files(job_file: JobFile | None, named: Sequence[str] | None) -> list[Path]:
    """Return the files to search, in order.

    Raises:
        ConfigError: There are none.
    """
    if job_file is None:
        return [path for name in named or () for path in _log_files(name)]
    from agentflow.observability.event_log_files import log_files

    settings = job_file.settings
    try:
        files = log_files(settings.event_log.dir, settings.job)
    except OSError as error:
        raise ConfigError([f"{settings.event_log.dir}: the directory cannot be read: {error.strerror}"]) from error
    if not files:
        nothing = f"{job_file.path}: there is no event log of job '{settings.job}' in {settings.event_log.dir}/"
        fix = "help: set  event-log.level: standard  (and event-log.target: file), and run the job"
        raise ConfigError([f"{nothing}\n{fix}"])
    return files


def _log_files(name: str) -> list[Path]:
    """Return a file, or the event logs of a directory.

    Raises:
        ConfigError: There are none.
    """
    path = Path(name)
    files = sorted(path.glob("events-*.log")) if path.is_dir() else [path]
    if not files or not path.exists():
        what = "has no events-*.log" if path.is_dir() else "does not exist"
        raise ConfigError([f"{name} {what}"])
    return files


def _runs_of_key(
    search: LogSearch, job_file: JobFile | None, chosen: argparse.Namespace
) -> tuple[list[RunSummary], list[RunTrace]]:
    from agentflow.cli.run_commands import key_of
    from agentflow.observability.event_log_search import runs_of

    key = key_of(chosen.key)
    if job_file is not None:
        from agentflow.runtime.redaction import Redaction

        hidden = Redaction(job_file.settings.redaction).key(key)
        if hidden != key and job_file.settings.redaction.replacement == "mask":
            raise ConfigError(
                [f"{job_file.path}: the event log hides this key (redaction): name the run, or take  replacement: hash"]
            )
        key = hidden
    runs = runs_of(search.key(key))
    shown = runs if chosen.all else runs[-1:]
    return runs, [_trace(run.run, records) for run in shown for records in _records_of(run, search)]


def _records_of(run: RunSummary, search: LogSearch) -> list[list[Record]]:
    return [records for records in search.runs(run.run) if str(records[0].get("incarnation", "")) == run.incarnation]


def _trace(run_id: str, records: list[Record]) -> RunTrace:
    from agentflow.observability.run_trace import run_trace

    return run_trace(run_id, records)


def _print(form: str, runs: list[RunSummary] | None, traces: list[RunTrace]) -> None:
    from agentflow.cli.trace_views import mermaid, print_rich_tree, text_tree

    if form == "json":
        one_run = traces if len(traces) > 1 else traces[0]
        print_json(one_run if runs is None else {"runs": runs, "traces": traces})
    elif form == "mermaid":
        print(mermaid(traces))
    elif form == "html":
        from agentflow.cli.trace_html import html_page

        sys.stdout.write(html_page(traces))
    else:
        if runs is not None:
            _print_runs(runs)
        for number, trace in enumerate(traces):
            if number or runs is not None:
                print()
            if is_colored(sys.stdout):
                print_rich_tree(trace)
            else:
                print(text_tree(trace))


def _print_runs(runs: list[RunSummary]) -> None:
    from agentflow.cli.kafka_commands import print_table

    rows = [[run.run, run.agent, run.began, run.ended, run.records, run.problems or "-"] for run in runs]
    print_table(["RUN", "AGENT", "BEGAN", "ENDED", "RECORDS", "PROBLEMS"], rows)

"""Commands that look into short-term memory: `state get|list|export|diff`, of a job that runs or not, and of savepoints.

They print data as it is: a person asked for it.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentflow.cli.kafka_commands import load, print_table
from agentflow.cli.output import EXIT_DONE, EXIT_PROBLEMS_FOUND, is_colored, print_json
from agentflow.cli.progress import ProgressBar
from agentflow.cli.run_commands import key_of

if TYPE_CHECKING:
    from agentflow.state.memory_reader import Difference, MemoryEntry, MemoryReader


def _memory(chosen: argparse.Namespace, place: str) -> AbstractContextManager[MemoryReader]:
    """Open what a command line names: a job file, a state directory, or a savepoint."""
    from agentflow.cli.config_file import names_job_file
    from agentflow.environment.savepoints import savepoint_at
    from agentflow.environment.state_views import memory_in, memory_of_job, memory_of_savepoint

    path = Path(place)
    if names_job_file(place):
        return memory_of_job(load(argparse.Namespace(**{**vars(chosen), "config": place})).settings)
    if path.is_dir() and any(path.glob("subtask-*")) and not (path / "manifest.json").exists():
        return memory_in(path)
    return memory_of_savepoint(savepoint_at(place))


def get(chosen: argparse.Namespace) -> int:
    """Print the memory of a key, or one path of it; exit status 3 when there is none."""
    from agentflow.state.memory_files import entry_as_json, value_as_json
    from agentflow.state.typed_json import json_text

    key = key_of(chosen.key)
    with _memory(chosen, chosen.config) as memory:
        entries = memory.of_key(key, chosen.path or "")
        checkpoint = memory.checkpoint
    if chosen.json:
        print_json({"checkpoint": checkpoint, "entries": [entry_as_json(entry) for entry in entries]})
    elif not entries:
        print(f"key {key!r} has no memory{f' at {chosen.path}' if chosen.path else ''} in checkpoint {checkpoint}")
    elif chosen.path and [entry.path for entry in entries] == [chosen.path]:
        print(json_text(value_as_json(entries[0])))
    else:
        has_agents = len({entry.agent for entry in entries}) > 1
        for entry in entries:
            agent = f"agent {entry.agent}  " if has_agents else ""
            print(f"{agent}{entry.path}: {json_text(value_as_json(entry))}")
    return EXIT_DONE if entries else EXIT_PROBLEMS_FOUND


def list_keys(chosen: argparse.Namespace) -> int:
    """Print the keys that have memory, with the number and the bytes of their values."""
    from agentflow.state.typed_json import typed

    with _memory(chosen, chosen.config) as memory:
        found = list(itertools.islice(memory.keys(chosen.prefix), chosen.limit + 1))
    shown, has_more = found[: chosen.limit], len(found) > chosen.limit
    if chosen.json:
        keys = [{"key": typed(one.key), "agent": one.agent, "paths": one.paths, "size": one.size} for one in shown]
        print_json({"keys": keys, "has-more": has_more})
        return EXIT_DONE
    print_table(["KEY", "AGENT", "PATHS", "BYTES"], [[repr(one.key), one.agent, one.paths, one.size] for one in shown])
    if has_more:
        print(f"… and more: --limit {chosen.limit * 10}")
    return EXIT_DONE


def export(chosen: argparse.Namespace) -> int:
    """Write memory to a file."""
    from agentflow.state.memory_files import export_memory

    with _memory(chosen, chosen.config) as memory, ProgressBar() as progress:
        rows = export_memory(
            memory.entries([key_of(key) for key in chosen.keys]),
            Path(chosen.to),
            lambda rows: progress(f"exporting, row {rows:,}", 0, 0),
        )
        checkpoint = memory.checkpoint
    if chosen.json:
        print_json({"file": chosen.to, "rows": rows, "checkpoint": checkpoint})
    else:
        print(f"{rows} rows of checkpoint {checkpoint} in {chosen.to}")
    return EXIT_DONE


def diff(chosen: argparse.Namespace) -> int:
    """Print what differs between two states; exit status 3 when anything does."""
    from agentflow.state.memory_reader import differences

    with _memory(chosen, chosen.config) as before, _memory(chosen, chosen.other) as after:
        found = differences(before, after, [key_of(key) for key in chosen.keys])
        count = _print_json(found) if chosen.json else _print_diff(chosen, found)
    return EXIT_PROBLEMS_FOUND if count else EXIT_DONE


def _print_json(found: Iterator[Difference]) -> int:
    """Print differences as one JSON array, as they are found: there may be very many."""
    from agentflow.state.memory_files import value_as_json
    from agentflow.state.typed_json import json_text, typed

    def fields(one: Difference) -> dict[str, Any]:
        entry = one.entry
        shown = {"change": one.change, "agent": entry.agent, "key": typed(entry.key), "path": typed(entry.path)}
        sides = {"before": one.before, "after": one.after}
        return shown | {name: value_as_json(side) for name, side in sides.items() if side is not None}

    count = 0
    for count, one in enumerate(found, 1):
        sys.stdout.write("[\n  " if count == 1 else ",\n  ")
        sys.stdout.write(json_text(fields(one)))
    sys.stdout.write("\n]\n" if count else "[]\n")
    return count


def _print_diff(chosen: argparse.Namespace, found: Iterator[Difference]) -> int:
    from agentflow.state.memory_files import value_as_json
    from agentflow.state.typed_json import json_text

    is_red_and_green = is_colored(sys.stdout)

    def line(mark: str, color: int, entry: MemoryEntry | None) -> None:
        if entry is not None:
            text = f"{mark} {entry.path}: {json_text(value_as_json(entry))}"
            print(f"\x1b[{color}m{text}\x1b[0m" if is_red_and_green else text)

    count, current = 0, None
    for count, one in enumerate(found, 1):
        if count == 1:
            print(f"--- {chosen.config}\n+++ {chosen.other}")
        entry = one.entry
        if (entry.agent, entry.encoded_key) != current:
            current = entry.agent, entry.encoded_key
            print(f"@@ key {entry.key!r}{f' of agent {entry.agent}' if entry.agent else ''} @@")
        line("-", 31, one.before)
        line("+", 32, one.after)
    return count

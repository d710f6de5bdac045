"""Commands that look at a Kafka job from outside: `group describe`, `dlq list`, `dlq show`, `dlq redrive`."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from agentflow.cli.output import EXIT_DONE, EXIT_PROBLEMS_FOUND, print_json
from agentflow.errors import ConfigError

if TYPE_CHECKING:
    from agentflow.cli.job_file import JobFile
    from agentflow.connectors.kafka.dead_letters import DeadLetterEntry, DeadLetterTopic


def load(chosen: argparse.Namespace) -> JobFile:
    """Read the job file that the command line names."""
    from agentflow.cli.config_file import load_job_file

    return load_job_file(chosen.config, profile=chosen.profile, settings=chosen.settings)


def describe_group(chosen: argparse.Namespace) -> int:
    """Print the subtasks of a job: owner, checkpoint, committed offsets, lag."""
    import msgspec

    from agentflow.cli.worker import check_is_kafka
    from agentflow.connectors.kafka.describe import describe_group
    from agentflow.runtime.codecs import RECORD_KEY

    job_file = load(chosen)
    source, _, _ = check_is_kafka(job_file)
    settings = job_file.settings
    repartition = () if job_file.composition.key_by == RECORD_KEY else (f"{settings.job}-repartition",)
    group = asyncio.run(describe_group(settings.kafka, settings.job, (*source.topics, *repartition)))
    if chosen.json:
        print_json(msgspec.to_builtins(group))
        return EXIT_DONE
    print(f"group {group.group}  state {group.state}  members {group.members}")
    rows = [
        [
            subtask.subtask,
            partition.partition,
            _shown(subtask.checkpoint),
            _shown(partition.committed),
            partition.end,
            _shown(partition.lag),
            subtask.owner or "-",
        ]
        for subtask in group.subtasks
        for partition in subtask.partitions
    ]
    print_table(["SUBTASK", "PARTITION", "CHECKPOINT", "COMMITTED", "END", "LAG", "OWNER"], rows)
    return EXIT_DONE


def _dead_letters(chosen: argparse.Namespace) -> DeadLetterTopic:
    from agentflow.cli.worker import check_is_kafka
    from agentflow.connectors.kafka.dead_letters import DeadLetterTopic

    job_file = load(chosen)
    _, _, dead = check_is_kafka(job_file)
    if dead is None:
        raise ConfigError([f"{job_file.path}: the job has no dead-letter topic (dead-letter.kafka.topic)"])
    return DeadLetterTopic(job_file.settings.kafka, job_file.settings.job, dead.topic)


def list_dead_letters(chosen: argparse.Namespace) -> int:
    """Print all dead letters of a job, a line each."""
    entries = asyncio.run(_dead_letters(chosen).entries())
    _print_entries(entries, is_json=chosen.json)
    return EXIT_DONE


def show_dead_letter(chosen: argparse.Namespace) -> int:
    """Print one dead letter whole; exit status 3 when there is none of that position."""
    from agentflow.connectors.kafka.dead_letters import normal_position

    wanted = normal_position(chosen.position)
    entries = asyncio.run(_dead_letters(chosen).entries())
    found = [entry for entry in entries if wanted in (entry.record, entry.position)]
    if not found:
        print(f"there is no dead letter of {wanted}")
        return EXIT_PROBLEMS_FOUND
    if chosen.json:
        print_json([_fields(entry) for entry in found])
        return EXIT_DONE
    for entry in found:
        for name, value in _fields(entry).items():
            if isinstance(value, dict):
                print(f"{name}:")
                for inner, text in value.items():
                    print(f"  {inner}: {text}")
            else:
                print(f"{name}: {'-' if value is None else value}")
    return EXIT_DONE


def redrive_dead_letters(chosen: argparse.Namespace) -> int:
    """Send dead letters back to where they came from: those that are named, or all that were not sent back yet."""
    if bool(chosen.positions) == chosen.all:
        raise ConfigError(["name the records to be sent back, or --all for all that were not sent back yet"])
    entries = asyncio.run(_dead_letters(chosen).redrive(chosen.positions))
    if chosen.json:
        print_json({"redriven": [entry.record for entry in entries]})
    else:
        print(f"{len(entries)} records sent back")
        for entry in entries:
            print(f"  {entry.record}")
    return EXIT_DONE


def _print_entries(entries: Sequence[DeadLetterEntry], *, is_json: bool) -> None:
    if is_json:
        print_json([_fields(entry) for entry in entries])
        return
    rows = [
        [
            entry.record,
            _text(entry.key),
            entry.reason.get("action", "-"),
            f"{entry.reason.get('error-type', '?')}: {entry.reason.get('error-message', '')}".split("\n")[0][:60],
            "yes" if entry.is_redriven else "no",
        ]
        for entry in entries
    ]
    print_table(["RECORD", "KEY", "ACTION", "ERROR", "SENT BACK"], rows)


def _fields(entry: DeadLetterEntry) -> dict[str, Any]:
    return {
        "record": entry.record,
        "position": entry.position,
        "key": _text(entry.key),
        "timestamp": datetime.fromtimestamp(entry.timestamp_ms / 1000, tz=UTC).isoformat(timespec="milliseconds"),
        "sent-back": entry.is_redriven,
        "reason": entry.reason,
        "headers": {name: _text(value) for name, value in entry.headers},
        "value": _text(entry.value),
    }


def _text(value: bytes | None) -> str | None:
    """Return bytes as text, what is not UTF-8 as escapes."""
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _shown(value: object) -> object:
    return "-" if value is None else value


def print_table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print columns as wide as they need be."""
    cells = [titles, *([str(_shown(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(titles))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

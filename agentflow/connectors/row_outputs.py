"""Outputs as rows: what sinks of tables have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from agentflow.connectors.inferred_types import as_row
from agentflow.connectors.part_files import LineBlocks
from agentflow.core.effects import DeadLetter

if TYPE_CHECKING:
    from agentflow.core.effects import EmitRecord

DEAD_LETTER_COLUMNS = {
    **dict.fromkeys(
        (
            "job",
            "agent",
            "action",
            "task",
            "attempt",
            "completed-tasks",
            "key",
            "error-type",
            "error-message",
            "source-position",
            "file",
            "original-timestamp",
            "traceback",
        ),
        "string",
    ),
    "value": "json",
    "value-text": "string",
    "value-base64": "string",
}
"""Columns of dead letters and their types: the fields of `DeadLetter.value`, which is a JSON document."""


def is_dead_letter(record: EmitRecord | DeadLetter) -> bool:
    """Return whether a record is one that failed, with its reason."""
    return type(record) is DeadLetter and bool(record.reason)


def row_blocks(lines: LineBlocks) -> Iterator[list[dict[str, Any]]]:
    """Yield outputs as rows, in blocks of bounded size."""
    for block in lines:
        if block:
            yield [as_row(output) for output in msgspec.json.decode(b"[%b]" % b",".join(block))]

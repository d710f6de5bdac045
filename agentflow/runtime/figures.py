"""What a subtask holds at a moment, for metrics. Counted on the loop when somebody asks, so nothing is kept for it elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from agentflow.core.operator import Operator
from agentflow.runtime.mailbox import Mailbox


class SubtaskFigures(msgspec.Struct, frozen=True):
    """Numbers of one subtask.

    Attributes:
        runs_pending: Inputs that wait behind a busy key.
        runs_parked: Runs that wait for a retry, and for nothing else.
        runs_sleeping: Runs that sleep, or wait for a signal.
        mailbox_depth: Records that were read and not admitted yet.
        is_paused: A limit lets nothing more be read.
        state_bytes: Bytes of keyed state, by part.
    """

    runs_pending: int
    runs_parked: int
    runs_sleeping: int
    mailbox_depth: int
    is_paused: bool
    state_bytes: Mapping[str, int]


def figures_of(operators: Iterable[Operator], mailbox: Mailbox, sizes: Mapping[str, int]) -> SubtaskFigures:
    """Return the figures of a subtask. Complexity: linear in its runs that are not folded, 40 ns for each."""
    pending = parked = sleeping = 0
    for operator in operators:
        runs = operator._runs  # noqa: SLF001 (nobody else counts them, and the core does not need to)
        sleeping += operator.runs_unfinished - len(runs)
        for run in runs:
            if not run.is_started:
                pending += 1
            elif run.is_sleeping:
                sleeping += 1
            elif run.is_parked:
                parked += 1
    depth = sum(len(batch) for batch in mailbox.batches)
    return SubtaskFigures(pending, parked, sleeping, depth, mailbox.is_paused, sizes)

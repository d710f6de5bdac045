"""The unfinished runs of an operator, and how they come back at a restore."""

from __future__ import annotations

from collections import deque

from agentflow.core.delta import StateWrite, StoredRow, Table
from agentflow.core.runs import KeyState, Run
from agentflow.core.segments import SegmentedQueue
from agentflow.core.stored_runs import decode_run, encode_run
from agentflow.plan.plan import AgentPlan

RunTable = dict[Run, None]
"""Unfinished runs (a dict, because it keeps order and removes in constant time)."""


def oldest_admitted_ms(runs: RunTable, now_ms: int) -> int:
    """Return the clock of the oldest run, or now."""
    return min((run.admitted_ms for run in runs), default=now_ms)


def run_writes(operator: int, runs: RunTable) -> list[StateWrite]:
    """Return the rows of all runs, as they are now."""
    return [(Table.RUNS, operator, run.key, run.id, encode_run(run)) for run in runs]


def restore_runs(
    rows: list[StoredRow], states: dict[bytes, KeyState], plan: AgentPlan, segments: SegmentedQueue
) -> RunTable:
    """Rebuild the runs and the key queues they stand in: per key by admission number, the lowest one active.

    Raises:
        StateMismatch: A run waits for an action that the plan no longer has.
        StateVersionTooNew: A row was written by a newer version.
    """
    by_number = segments.by_number()
    runs = []
    for row in rows:
        state = states.setdefault(row.key, KeyState(row.key, {}))
        runs.append(decode_run(row.value, state, plan, by_number))
    for run in sorted(runs, key=lambda run: run.number):
        state = run.state
        state.next_number = run.number + 1
        if state.run is None:
            state.run = run
        else:
            if state.pending is None:
                state.pending = deque()
            state.pending.append(run)
    return dict.fromkeys(sorted(runs, key=lambda run: (run.admitted_ms, run.number, run.key)))

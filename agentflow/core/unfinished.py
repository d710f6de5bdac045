"""The unfinished runs of an operator, for those who only look: folded ones are not unfolded for it."""

from __future__ import annotations

from itertools import islice

from agentflow.core.delta import StateWrite, Table
from agentflow.core.journal_records import encoded_records, rows_of
from agentflow.core.results import REQUESTS_PREFIX, fingerprint
from agentflow.core.run_table import RunTable, run_writes
from agentflow.core.runs import Run
from agentflow.core.sleepers import Sleepers
from agentflow.core.steps import Steps


class UnfinishedRuns:
    """Shows the runs of one operator."""

    def __init__(self, operator: int, runs: RunTable, sleepers: Sleepers, steps: Steps) -> None:
        self._operator = operator
        self._runs = runs
        self._sleepers = sleepers
        self._steps = steps

    def __len__(self) -> int:
        return len(self._runs) + len(self._sleepers.by_key)

    @property
    def open_requests(self) -> dict[str, bytes]:
        """Ids of the runs whose answer is still to come → what tells their request from another one with the same id."""
        inputs = [(run.id, run.key, run.record.value) for run in self._runs if run.request is not None]
        inputs += self._sleepers.inputs(REQUESTS_PREFIX)
        return {run_id: fingerprint(key, value) for run_id, key, value in inputs}

    @property
    def run_ids(self) -> list[str]:
        """Ids of all of them."""
        return [run.id for run in self._runs] + self._sleepers.run_ids

    def rows(self, runs_max: int, run_id: str | None = None) -> tuple[list[StateWrite], list[StateWrite]]:
        """Return rows of runs, and of their steps, as they are now.

        Args:
            runs_max: Most runs.
            run_id: Only the run with this id; None: any.
        """
        runs: dict[Run, None] = dict.fromkeys(islice((run for run in self._runs if run_id in (None, run.id)), runs_max))
        recorded = [self._steps.runs[run.id] for run in runs if run.id in self._steps.runs]
        steps = rows_of(self._operator, [record for run in recorded for record in encoded_records(run)])
        folded = self._sleepers.rows(self._operator, runs_max - len(runs), run_id)
        return (
            run_writes(self._operator, runs) + [row for row in folded if row[0] is Table.RUNS],
            steps + [row for row in folded if row[0] is Table.STEPS],
        )

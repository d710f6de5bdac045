"""Requests: inputs that somebody waits for an answer to, and that no source gives again.

    admitted ── its run, as a row ──► journal        the run starts at once
    a task ends ── how it ended ────► journal        for every task of the run, also those without steps
    the run is over ────────────────► AnswerRequest, when the journal has all of that; and a row of results, where it is kept

An answer is visible, so what it says must not change: input and completions are durable before it leaves. They are one group of
the journal where the action does not wait, so a request costs one sync. A recovery takes the recorded runs up, replays how their
tasks ended, and comes to the same answers. A step of a request is called when its input is durable: a call that was paid for
belongs to a run that will be there.

Rejected: a log of inputs beside the journal (a second sync); answering when the checkpoint completes (a request would take as long as
the interval); numbers that go on where the last life stopped (an input that was lost and a new one would share a run id, and with it
idempotency keys), so the number of the life is part of the run's position.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from agentflow.core.delta import StateWrite, StoredRow, Table
from agentflow.core.effects import AcknowledgeRequest, AnswerRequest, Effect, RequestCheckpoint
from agentflow.core.journal_records import ADMITTED, JOURNAL_FORMAT, JournalRecord, decode_record, encode_record
from agentflow.core.results import encode_result, result_name
from agentflow.core.runs import Request, Run
from agentflow.core.steps import Steps
from agentflow.core.stored_runs import decode_entry, encode_run

CANCELLED = "RunCancelled"
"""Type of the error of a request whose run was cancelled."""
_encode = msgspec.msgpack.Encoder().encode
Rows = dict[Table, list[StoredRow]]


class Requests:
    """The requests of one operator.

    Args:
        operator: Place of the operator in its chain.
        effects: The operator's effects.
        steps: The journal's records, and what waits for them.
    """

    def __init__(self, operator: int, effects: list[Effect], steps: Steps) -> None:
        self._operator = operator
        self._effects = effects
        self._steps = steps
        self._cancelled: deque[tuple[int, AnswerRequest]] = deque()  # (epoch in which it ended, answer)
        self._results: list[StateWrite] = []
        self._restored: list[str] = []

    def admit(self, run: Run, request: Request, now_ms: int) -> None:
        """Let a new run be recorded before anything it does is."""
        run.request = request
        record = JournalRecord(
            JOURNAL_FORMAT,
            self._steps.epoch,
            ADMITTED,
            run.state.key,
            run.record.run_id,
            run.number,
            "",
            1,
            at_ms=now_ms,
            payload=encode_run(run),
        )
        self._steps.journal.append(encode_record(record), request)
        if request.wants_receipt:
            self._steps.journal.behind(AcknowledgeRequest(run.record))

    def tell(self, run: Run) -> None:
        """Let the outputs leave that a task has sent, of a run that goes on."""
        request = run.request
        assert request is not None
        told, outputs = request.told, request.outputs
        if told < len(outputs):
            request.told = len(outputs)
            self._steps.journal.behind(AnswerRequest(run.record, told, outputs[told:]))

    def end(self, run: Run, now_ms: int) -> None:
        """Answer a request whose run is over."""
        request = run.request
        assert request is not None
        outputs, told, failure = request.outputs, request.told, request.failure
        is_kept = request.is_kept
        answer = AnswerRequest(run.record, told, outputs[told:], is_final=True, error=failure, is_kept=is_kept)
        request.told = len(outputs)
        if is_kept:
            row = encode_result(run.record, run.state.key, outputs, failure, now_ms)
            self._results.append((Table.RESULTS, self._operator, b"", result_name(run.record.run_id), row))
        if failure is not None and failure.type == CANCELLED:
            self._cancelled.append((self._steps.epoch, answer))
            self._effects.append(RequestCheckpoint())
        else:
            self._steps.journal.behind(answer)

    def checkpoint_completed(self, completed: int) -> None:
        """Answer the cancelled requests whose cancellation a checkpoint has: nothing brings their runs back."""
        while self._cancelled and self._cancelled[0][0] <= completed:
            self._effects.append(self._cancelled.popleft()[1])

    def take_results(self) -> list[StateWrite]:
        """Return the results since the last call: their part of an epoch delta."""
        results, self._results = self._results, []
        return results

    def restore(self, rows: Rows, journal: Sequence[bytes], checkpoint: int, open_segment: int) -> Rows:
        """Return the rows with the runs that were admitted behind the checkpoint."""
        admitted: list[StoredRow] = []
        for value in journal:
            record = decode_record(value)
            if record.kind == ADMITTED and record.epoch > checkpoint:
                entry = msgspec.structs.replace(decode_entry(record.payload), segment=open_segment)
                admitted.append(StoredRow(self._operator, record.key, record.run, _encode(entry)))
        self._restored = [row.name for row in admitted]
        return rows | {Table.RUNS: [*rows.get(Table.RUNS, ()), *admitted]} if admitted else rows

    def take_up(self, runs: Iterable[Run]) -> None:
        """Note that the checkpoint has no rows of the runs that were admitted behind it."""
        restored = frozenset(self._restored)
        for run in runs:
            if run.id in restored:
                run.is_changed, run.is_saved = True, False
        self._restored = []

"""Seeded worlds against the sequential run; every point of short ones; broken protocols, which have to be found.

A seed that fails is replayed by `agentflow simulate --seed N --trace`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agentflow.core.delta import DeltaSlices, StateWrite, Table
from agentflow.core.effects import ForwardWatermark, ResolveStep
from agentflow.core.epoch import EpochDelta
from agentflow.core.inputs import ActionFailed, StepEnded, WatermarkReceived
from agentflow.core.operator import Operator
from agentflow.core.outcomes import Outcomes
from agentflow.core.runs import WAITING, ActionTask
from agentflow.core.steps import Steps
from agentflow.runtime import checkpoints
from agentflow.state.memory import MemoryJournal
from agentflow.testing.faults import Fault
from agentflow.testing.simulation import simulate, simulate_every_point
from tests.traces import trace_under_two_hash_seeds

SEEDS_PER_TEST = 250
SHORT_SCRIPTS = range(3)
MUTANT_SEEDS = range(600)


@pytest.mark.parametrize("first", range(0, 1_000, SEEDS_PER_TEST), ids=lambda first: f"{first}..{first + 249}")
def test_whatever_happens_the_result_is_that_of_the_sequential_run(first: int) -> None:
    reports = [simulate(seed) for seed in range(first, first + SEEDS_PER_TEST)]
    assert [str(report) for report in reports if not report.is_ok] == []
    assert sum(report.lives for report in reports) > 2 * SEEDS_PER_TEST, "hardly a crash"
    assert sum(report.outputs for report in reports) > 5 * SEEDS_PER_TEST, "hardly an output"


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_at_every_point_of_a_short_script_changes_nothing(fault: Fault) -> None:
    points = 0
    for seed in SHORT_SCRIPTS:
        for report in simulate_every_point(seed, fault):
            points += 1
            assert report.is_ok, f"{fault} at point {points}: {report}"
    assert points > 200


def test_a_seed_decides_everything() -> None:
    assert len(trace_under_two_hash_seeds("simulation", "simulate", 30)) > 1_000


# -- the simulator can fail
def publish_before_the_decision(patch: pytest.MonkeyPatch) -> None:
    async def complete(self: Any, checkpoint: int, delta: DeltaSlices) -> None:
        staged = {role: await sink.stage(checkpoint) for role, sink in self._sinks.items()}
        await self._publish(checkpoint, staged)
        await self._state.prepare(checkpoint, delta, staged)
        await self._state.complete()

    patch.setattr(checkpoints.EmbeddedCheckpoints, "complete", complete)


def delete_staging_of_a_decided_checkpoint(patch: pytest.MonkeyPatch) -> None:
    async def recover(self: Any) -> int:
        for sink in self._sinks.values():
            await sink.open(None)
        if self._state.prepared is not None:
            await self._state.complete()
        return int(self._state.checkpoint)

    patch.setattr(checkpoints.EmbeddedCheckpoints, "recover", recover)


def leave_unfinished_runs_out_of_the_delta(patch: pytest.MonkeyPatch) -> None:
    whole = EpochDelta._run_slices

    def without_runs(self: EpochDelta, between: Callable[[], None]) -> Iterator[list[StateWrite]]:
        for writes in whole(self, between):
            yield [write for write in writes if write[0] is not Table.RUNS]

    patch.setattr(EpochDelta, "_run_slices", without_runs)


def forward_watermarks_at_once(patch: pytest.MonkeyPatch) -> None:
    in_time = Operator._on_watermark

    def at_once(self: Operator, received: WatermarkReceived, now_ms: int) -> None:
        self.effects.append(ForwardWatermark(received.watermark_ms))
        in_time(self, received, now_ms)

    patch.setattr(Operator, "_on_watermark", at_once)


def answer_a_step_before_its_record_is_durable(patch: pytest.MonkeyPatch) -> None:
    in_time = Steps.on_ended

    def at_once(self: Steps, received: StepEnded, now_ms: int) -> None:
        in_time(self, received, now_ms)
        self._effects.append(ResolveStep(received.task, received.call.path, received.kind, received.payload))

    patch.setattr(Steps, "on_ended", at_once)


def leave_completions_out_of_the_journal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Steps, "_append_endings", lambda self, state: None)


def cut_records_that_no_checkpoint_has(patch: pytest.MonkeyPatch) -> None:
    at_the_position = MemoryJournal.release

    async def at_the_end(self: MemoryJournal, position: int) -> None:
        await at_the_position(self, self._storage.journal_begins + len(self._storage.journal))

    patch.setattr(MemoryJournal, "release", at_the_end)


def leave_records_out_of_the_delta(patch: pytest.MonkeyPatch) -> None:
    whole = Steps.barrier

    def without(self: Steps, operator: int, checkpoint: int, now_ms: int) -> list[Any]:
        whole(self, operator, checkpoint, now_ms)
        return []

    patch.setattr(Steps, "barrier", without)


def read_records_that_the_checkpoint_has(patch: pytest.MonkeyPatch) -> None:
    behind = Steps.restore

    def all_of_them(self: Steps, rows: Any, signals: Any, journal: Any, checkpoint: int) -> None:
        behind(self, rows, signals, journal, 0)
        self.epoch = checkpoint + 1

    patch.setattr(Steps, "restore", all_of_them)


def drop_accounts_of_attempts_that_fail(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outcomes, "keep", lambda self, task, kept: None)


def pass_over_attempts_that_left_an_account(patch: pytest.MonkeyPatch) -> None:
    def failed(self: Steps, task: ActionTask, attempt: int, failure: ActionFailed, now_ms: int) -> None:
        if task.status != WAITING:
            self.ended(task, failure, now_ms)

    patch.setattr(Steps, "failed", failed)


@pytest.mark.parametrize(
    ("break_protocol", "complaint"),
    [
        (publish_before_the_decision, "outputs of key"),
        (delete_staging_of_a_decided_checkpoint, "outputs of key"),
        (leave_unfinished_runs_out_of_the_delta, "outputs of key"),
        (forward_watermarks_at_once, "watermark too early"),
        (answer_a_step_before_its_record_is_durable, "is called again, and its outcome was seen"),
        (leave_completions_out_of_the_journal, "dead letters"),
        (cut_records_that_no_checkpoint_has, "is called again, and its outcome was seen"),
        (leave_records_out_of_the_delta, "is called again, and its outcome was seen"),
        (read_records_that_the_checkpoint_has, "the job did not end"),
        (drop_accounts_of_attempts_that_fail, "memory of key"),
        (pass_over_attempts_that_left_an_account, "memory of key"),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_a_broken_protocol_is_found(break_protocol: Callable[[pytest.MonkeyPatch], None], complaint: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_protocol(patch)
        found = (report for report in map(simulate, MUTANT_SEEDS) if complaint in str(report))
        assert next(found, None) is not None

"""Seeded worlds of Kafka workers against the sequential run; broken protocols, which have to be found.

A seed that fails is replayed by `agentflow simulate --kafka --seed N --trace`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from agentflow.connectors.kafka.producer import SubtaskProducer
from agentflow.core.delta import DeltaSlices
from agentflow.runtime.ports import Staged
from agentflow.state.changelog_records import checkpoint_record, records_of, rows_of
from agentflow.state.kafka_changelog import ChangelogKeyedState
from agentflow.state.kafka_journal import KafkaJournal
from agentflow.testing.kafka_simulation import simulate_kafka
from tests.traces import trace_under_two_hash_seeds

SEEDS_PER_TEST = 70
MUTANT_SEEDS = range(300)


@pytest.mark.parametrize("first", range(0, 2 * SEEDS_PER_TEST, SEEDS_PER_TEST))
def test_whatever_happens_to_workers_the_result_is_that_of_the_sequential_run(first: int) -> None:
    reports = [simulate_kafka(seed) for seed in range(first, first + SEEDS_PER_TEST)]
    assert [str(report) for report in reports if not report.is_ok] == []
    assert sum(report.lives for report in reports) > 3 * SEEDS_PER_TEST, "hardly a disturbance"
    assert sum(report.points for report in reports) > SEEDS_PER_TEST, "hardly a lost request"
    assert sum(report.outputs for report in reports) > 5 * SEEDS_PER_TEST, "hardly an output"


def test_a_seed_decides_everything() -> None:
    assert len(trace_under_two_hash_seeds("kafka_simulation", "simulate_kafka", 15)) > 40


# -- the simulator can fail
def apply_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    async def prepare(self: Any, checkpoint: int, delta: DeltaSlices, staged: Mapping[str, Staged]) -> None:
        for writes in delta:
            rows = rows_of(writes)
            if rows:
                self._copy.apply_changes(rows)
                self._unapplied.append(rows)
                await self._transaction.append_changelog(records_of(rows))
        await self._transaction.append_changelog([checkpoint_record(checkpoint, self._positions)])
        self._committed = checkpoint, await self._transaction.commit(checkpoint, self._positions)

    patch.setattr(ChangelogKeyedState, "prepare", prepare)


def let_outputs_of_the_next_epoch_into_the_transaction(patch: pytest.MonkeyPatch) -> None:
    barrier = SubtaskProducer.barrier

    def leave_the_epoch_open(self: Any) -> None:
        barrier(self)
        self._is_closed_epoch = False

    patch.setattr(SubtaskProducer, "barrier", leave_the_epoch_open)


def commit_what_was_not_acknowledged(patch: pytest.MonkeyPatch) -> None:
    async def acknowledged(self: Any) -> None:
        self._futures.clear()
        self._failure = None

    patch.setattr(SubtaskProducer, "_acknowledged", acknowledged)


def read_only_what_is_committed_of_the_journal(patch: pytest.MonkeyPatch) -> None:
    read = KafkaJournal.read

    async def read_committed(self: Any, position: int) -> Any:
        new_consumer = self._new_consumer
        self._new_consumer = lambda **options: new_consumer(**(options | {"isolation_level": "read_committed"}))
        return await read(self, position)

    patch.setattr(KafkaJournal, "read", read_committed)


def answer_steps_before_the_journal_has_them(patch: pytest.MonkeyPatch) -> None:
    append = KafkaJournal.append

    async def answer_at_once(self: Any, records: Any) -> int:
        self._late = asyncio.ensure_future(append(self, records))
        self._late.add_done_callback(lambda done: done.cancelled() or done.exception())
        return 0

    patch.setattr(KafkaJournal, "append", answer_at_once)


@pytest.mark.parametrize(
    "break_protocol",
    [
        read_only_what_is_committed_of_the_journal,
        answer_steps_before_the_journal_has_them,
        apply_before_the_commit,
        let_outputs_of_the_next_epoch_into_the_transaction,
        commit_what_was_not_acknowledged,
    ],
)
def test_broken_protocol_is_found(
    monkeypatch: pytest.MonkeyPatch, break_protocol: Callable[[pytest.MonkeyPatch], None]
) -> None:
    break_protocol(monkeypatch)
    assert any(not simulate_kafka(seed).is_ok for seed in MUTANT_SEEDS)

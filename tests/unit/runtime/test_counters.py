"""What a restart takes back of what was counted."""

from __future__ import annotations

from agentflow.runtime.counters import Amounts, Counters


def count(counters: Counters, records: int) -> None:
    counters.records_in += records
    counters.records_out += 2 * records
    counters.dead_letters += 1


def test_a_restart_takes_back_what_is_behind_the_barrier_of_the_last_completed_checkpoint() -> None:
    counters = Counters()
    count(counters, 5)
    counters.barrier(1)
    count(counters, 3)
    counters.complete(1)
    counters.undo()
    assert (counters.amounts, counters.undone) == (Amounts(5, 10, 1), Amounts(3, 6, 1))
    counters.recover(1)
    count(counters, 3)
    counters.undo()
    assert (counters.amounts, counters.undone) == (Amounts(5, 10, 1), Amounts(6, 12, 2)), "attempts add up"


def test_a_checkpoint_that_recovery_completes_is_counted_again() -> None:
    counters = Counters()
    count(counters, 5)
    counters.barrier(1)
    count(counters, 3)
    counters.undo()
    assert counters.amounts == Amounts()
    counters.recover(1)
    assert (counters.amounts, counters.undone) == (Amounts(5, 10, 1), Amounts(3, 6, 1))


def test_a_barrier_whose_checkpoint_failed_counts_nothing() -> None:
    counters = Counters()
    count(counters, 5)
    counters.barrier(1)
    counters.undo()
    counters.recover(0)
    assert (counters.amounts, counters.undone) == (Amounts(), Amounts(5, 10, 1))


def test_requests_are_not_taken_back() -> None:
    counters = Counters()
    counters.barrier(1)
    counters.admit_requests(2)
    count(counters, 1)
    counters.complete(1)
    counters.undo()
    assert (counters.amounts, counters.undone) == (Amounts(2), Amounts(1, 2, 1))

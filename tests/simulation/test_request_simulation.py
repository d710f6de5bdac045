"""Callers of an embedded job that crashes under them, against the sequential run; broken protocols, which have to be found.

A seed that fails is replayed by `agentflow simulate --requests --seed N --trace`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agentflow.core.journal_queue import JournalQueue
from agentflow.core.requests import Requests
from agentflow.core.steps import Steps
from agentflow.runtime.requests import RequestTable
from agentflow.testing.request_simulation import simulate_requests
from tests.traces import trace_under_two_hash_seeds

SEEDS_PER_TEST = 250
MUTANT_SEEDS = range(600)
FOUND = (245, 390, 3358, 3630)
"""Seeds that have found something: results looked up before their state was open, effects carried out again behind a failed turn."""


@pytest.mark.parametrize("first", range(0, 500, SEEDS_PER_TEST), ids=lambda first: f"{first}..{first + 249}")
def test_whatever_happens_callers_are_told_what_the_sequential_run_says(first: int) -> None:
    reports = [simulate_requests(seed) for seed in range(first, first + SEEDS_PER_TEST)]
    assert [str(report) for report in reports if not report.is_ok] == []
    assert sum(report.lives for report in reports) > 2 * SEEDS_PER_TEST, "hardly a crash"
    assert sum(report.outputs for report in reports) > 5 * SEEDS_PER_TEST, "hardly an output"


@pytest.mark.parametrize("seed", FOUND)
def test_seeds_that_have_found_something_find_nothing_any_more(seed: int) -> None:
    assert simulate_requests(seed).violations == ()


def test_a_seed_decides_everything() -> None:
    assert len(trace_under_two_hash_seeds("request_simulation", "simulate_requests", 30)) > 1_000


# -- the simulator can fail
def answer_before_the_journal_has_it(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(JournalQueue, "behind", lambda self, effect: self._effects.append(effect))


def leave_completions_out_of_the_journal(patch: pytest.MonkeyPatch) -> None:
    whole = Steps.ended

    def without(self: Steps, task: Any, ending: Any, now_ms: int) -> None:
        if task.recorded is not None:
            whole(self, task, ending, now_ms)

    patch.setattr(Steps, "ended", without)


def forget_what_was_admitted_behind_the_checkpoint(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Requests, "restore", lambda self, rows, journal, checkpoint, segment: rows)


def take_restored_requests_for_saved_ones(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Requests, "take_up", lambda self, runs: None)


def forget_the_results(patch: pytest.MonkeyPatch) -> None:
    whole = Requests.take_results

    def without(self: Requests) -> list[Any]:
        whole(self)
        return []

    patch.setattr(Requests, "take_results", without)


def queue_again_without_asking_keyed_state(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RequestTable, "_finish", lambda self, request, find_result: False)


@pytest.mark.parametrize(
    ("break_protocol", "complaint"),
    [
        (answer_before_the_journal_has_it, "and was told"),
        (leave_completions_out_of_the_journal, "VIOLATED"),
        (forget_what_was_admitted_behind_the_checkpoint, "and was told"),
        (take_restored_requests_for_saved_ones, "request"),
        (forget_the_results, "and was told"),
        (queue_again_without_asking_keyed_state, "VIOLATED"),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_a_broken_protocol_is_found(break_protocol: Callable[[pytest.MonkeyPatch], None], complaint: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        break_protocol(patch)
        found = (report for report in map(simulate_requests, MUTANT_SEEDS) if complaint in str(report))
        assert next(found, None) is not None

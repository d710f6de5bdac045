"""Laws of requests in the operator: what is recorded of them, when an answer leaves, and that a recovery comes to the same."""

from __future__ import annotations

import pytest

from agentflow import Agent
from agentflow.api.failure import Retry
from agentflow.api.memory_codec import encode_value
from agentflow.core.delta import Table
from agentflow.core.inputs import ActionFailed, TimeAdvanced, TimerOrder
from agentflow.core.limits import OperatorLimits
from agentflow.core.records import ErrorReport, Record
from agentflow.core.results import (
    decode_result,
    fingerprint,
    request_id_of,
    request_source,
    result_name,
    result_name_of_id,
)
from tests.steps_world import INPUT, World, call, nothing, two_actions

R1, R2 = "requests/1/1", "requests/1/2"
BOOM = ErrorReport("Oops", "it broke", is_retryable=False)


def world_of(agent: Agent | None = None, **options: object) -> World:
    return World(agent, tracking=False, takes_requests=True, **options)  # type: ignore[arg-type]


def agent_that(on_new_input: str) -> Agent:
    agent = Agent("A").add_action("a", [INPUT], nothing)
    agent.on_new_input = on_new_input  # type: ignore[assignment]
    return agent


def results(world: World) -> dict[str, list[bytes | None]]:
    return {
        name: decode_result(value).outputs for (table, _, name), value in world.rows.items() if table is Table.RESULTS
    }


def test_an_answer_leaves_when_the_journal_has_the_input_and_how_every_task_ended() -> None:
    world = world_of()
    assert world.submit("k", 1) == [f"persist admitted {R1}/", f"start {R1}/0:a attempt 1"]
    assert world.complete(f"{R1}/0:a", sent=[(None, b"1"), ("x", b"\x80")]) == [
        f"persist completion {R1}/0:a",
        f"emit {R1}/0:a/0 1",
        f"start {R1}/0:a/1:b attempt 1",
    ]
    assert world.complete(f"{R1}/0:a/1:b", sent=[(None, b"2")]) == [
        f"persist completion {R1}/0:a/1:b",
        f"emit {R1}/0:a/1:b/0 2",
    ]
    assert world.append() == [f"answer {R1} 0: 1", f"answer {R1} 1: 2 end"]


def test_outputs_leave_one_after_the_other_as_their_tasks_become_durable() -> None:
    world = world_of()
    world.submit("k", 1)
    world.complete(f"{R1}/0:a", sent=[(None, b"1"), ("x", b"\x80")])
    assert world.append() == [f"answer {R1} 0: 1"]
    world.complete(f"{R1}/0:a/1:b")
    assert world.append() == [f"answer {R1} 1: end"]


def test_a_receipt_comes_when_the_input_is_durable_and_not_before() -> None:
    world = world_of()
    assert world.submit("k", 1, wants_receipt=True) == [f"persist admitted {R1}/", f"start {R1}/0:a attempt 1"]
    assert world.append() == [f"acknowledge {R1}"]
    assert world.submit("k", 2) == [f"persist admitted {R2}/"], "its key is busy"
    assert world.append() == []


def test_a_step_of_a_request_is_called_when_its_input_is_durable() -> None:
    world = world_of()
    world.submit("k", 1)
    assert world.request(f"{R1}/0:a", call(".0")) == []
    assert world.append() == [f"run {R1}/0:a.0"]
    world.end_step(f"{R1}/0:a", call(".0"))
    assert world.append() == [f"resolve {R1}/0:a.0 result r"]
    assert world.request(f"{R1}/0:a", call(".1")) == [f"run {R1}/0:a.1"], "from then on it waits for nothing"


def test_a_recorded_request_starts_again_after_a_crash_and_an_unrecorded_one_was_never_there() -> None:
    world = world_of()
    world.take_checkpoint()
    world.submit("k", 1)
    world.append()
    world.submit("l", 2)
    assert world.crash() == [f"start {R1}/0:a attempt 1"]
    assert list(world.operator.unfinished.open_requests) == [R1]
    assert world.complete(f"{R1}/0:a", sent=[(None, b"1")])[-1] == f"emit {R1}/0:a/0 1"
    assert world.append() == [f"answer {R1} 0: 1 end"]


def test_a_request_that_ended_behind_the_checkpoint_comes_to_the_same_answer_without_user_code() -> None:
    world = world_of()
    world.take_checkpoint()
    world.submit("k", 1, request_id="r-1")
    run = "requests/1/r-1/1"
    write = {"n": encode_value(1, None)}
    world.complete(f"{run}/0:a", sent=[(None, b"1"), ("x", b"\x80")], writes=write)
    world.complete(f"{run}/0:a/1:b", sent=[(None, b"2")])
    world.append()
    assert world.crash() == [
        f"replay {run}/0:a",
        f"emit {run}/0:a/0 1",
        f"replay {run}/0:a/1:b",
        f"answer {run} 0: 1",
        f"emit {run}/0:a/1:b/0 2",
        f"answer {run} 1: 2 end",
    ]
    world.take_checkpoint()
    assert world.rows[Table.MEMORY, b"\xa1k", "n"] == encode_value(1, None)
    assert results(world) == {"id/r-1": [b"1", b"2"]}


def test_a_checkpoint_takes_open_requests_and_a_recovery_reads_over_their_records() -> None:
    world = world_of()
    world.submit("k", 1)
    world.complete(f"{R1}/0:a", sent=[(None, b"1"), ("x", b"\x80")])
    world.append()
    world.take_checkpoint()
    assert world.crash() == [f"start {R1}/0:a/0:b attempt 1".replace("0:b", "1:b")]
    assert world.complete(f"{R1}/0:a/1:b", sent=[(None, b"2")])[-1] == f"emit {R1}/0:a/1:b/0 2"
    assert world.append() == [f"answer {R1} 0: 1 2 end"], "the outputs before the checkpoint are state"
    world.take_checkpoint()
    assert [table for table, _, _ in world.rows if table in (Table.RUNS, Table.STEPS)] == []
    assert world.crash() == []


def test_a_named_request_is_a_row_of_results_and_any_other_is_not() -> None:
    world = world_of()
    for number, request_id in ((1, "r-1"), (2, None)):
        world.submit("k", number, request_id=request_id)
        source = request_source(1, request_id)
        world.complete(f"{source}/{number}/0:a", sent=[(None, b"%d" % number)])
    world.append()
    world.take_checkpoint()
    assert results(world) == {"id/r-1": [b"1"]}
    stored = decode_result(world.rows[Table.RESULTS, b"", "id/r-1"])
    assert (stored.run_id, stored.failure, stored.ended_ms) == ("requests/1/r-1/1", None, 1000)
    assert stored.fingerprint == fingerprint(b"\xa1k", b"{}") != fingerprint(b"\xa1l", b"{}")


def test_a_failed_run_is_an_answer_with_its_error_also_after_a_crash() -> None:
    agent = Agent("A").add_action("a", [INPUT], nothing, retry=Retry(attempts=2, initial="1s"))
    world = world_of(agent)
    world.take_checkpoint()
    world.submit("k", 1, request_id="r")
    run = "requests/1/r/1"
    world.append()
    assert world.fail(f"{run}/0:a") == [f"retry {run}/0:a"], "a retry answers nobody"
    assert world.append() == []
    assert world.until(5_000) == [f"start {run}/0:a attempt 2"]
    assert world.fail(f"{run}/0:a") == [f"dead {run} Oops", f"persist failure {run}/0:a"]
    assert world.append() == [f"answer {run} 0: end Oops"]
    assert world.crash()[-2:] == [f"dead {run} Oops", f"answer {run} 0: end Oops"]
    world.take_checkpoint()
    stored = decode_result(world.rows[Table.RESULTS, b"", "id/r"])
    assert stored.failure is not None
    assert stored.failure.type == "Oops"


def test_an_answer_follows_the_completions_that_its_key_saw_since_the_last_completed_checkpoint() -> None:
    agent = Agent("A").add_action("a", [INPUT], nothing).add_action("tick", ["_timer_event"], nothing)
    world = world_of(agent)
    world.submit("k", 1)
    world.complete(f"{R1}/0:a", timers=[TimerOrder("t", 2_000)])
    world.append()
    world.take_checkpoint()
    (started,) = world.until(2_000)
    timer_task = started.removeprefix("start ").removesuffix(" attempt 1")
    assert world.complete(timer_task, writes={"n": encode_value(1, None)}) == [], "nobody waits for a timer"
    world.submit("k", 2)
    assert world.complete(f"{R2}/0:a", sent=[(None, b"2")])[:2] == [
        f"persist completion {timer_task}",
        f"persist completion {R2}/0:a",
    ]


def test_runs_of_a_key_are_taken_up_in_the_order_of_their_admission() -> None:
    world = world_of()
    world.take_checkpoint()
    for number in (1, 2, 3):
        world.submit("k", number)
    world.complete(f"{R1}/0:a")
    world.append()
    assert world.crash() == [f"replay {R1}/0:a", f"answer {R1} 0: end", f"start {R2}/0:a attempt 1"]
    assert world.complete(f"{R2}/0:a")[-1] == "start requests/1/3/0:a attempt 1"


def test_a_cancelled_request_is_answered_behind_the_checkpoint_that_knows_of_it() -> None:
    world = world_of()
    world.submit("k", 1)
    world.submit("k", 2)
    world.append()
    assert world.cancel("k") == [f"cancel {R1}/0:a", "want checkpoint", f"start {R2}/0:a attempt 1"]
    assert world.append() == []
    assert world.take_checkpoint() == [f"answer {R1} 0: end RunCancelled"]
    assert world.crash() == [f"start {R2}/0:a attempt 1"]


def test_a_cancelled_request_that_had_not_begun_is_answered_in_the_same_way() -> None:
    world = world_of()
    world.submit("k", 1)
    world.submit("k", 2)
    world.append()
    assert world.cancel("k", R2) == ["want checkpoint"]
    assert world.take_checkpoint() == [f"answer {R2} 0: end RunCancelled"]


def test_what_compensates_a_cancellation_belongs_to_the_answer() -> None:
    agent = Agent("A").add_action("a", [INPUT], nothing).add_action("undo", ["_cancel_event"], nothing)
    world = world_of(agent)
    world.submit("k", 1)
    world.append()
    world.cancel("k")
    assert world.take_checkpoint() == [f"start {R1}/1:undo attempt 1"]
    assert world.complete(f"{R1}/1:undo", sent=[(None, b"undone")])[-1] == "want checkpoint"
    assert world.append() == []
    assert world.take_checkpoint() == [f"answer {R1} 0: undone end RunCancelled"]


@pytest.mark.parametrize("is_restored", [False, True])
def test_a_new_request_supersedes_the_one_before_it_also_after_a_crash(*, is_restored: bool) -> None:
    agent = agent_that("interrupt")
    world = world_of(agent)
    world.take_checkpoint()
    world.submit("k", 1)
    world.submit("k", 2)
    world.append()
    if is_restored:
        assert world.crash()[-1] == f"start {R2}/0:a attempt 1"
    assert world.take_checkpoint() == [f"answer {R1} 0: end RunCancelled"]
    world.complete(f"{R2}/0:a")
    assert world.append() == [f"answer {R2} 0: end"]


def test_a_request_that_its_key_does_not_let_in_is_refused_at_once_and_leaves_nothing() -> None:
    agent = agent_that("reject")
    world = world_of(agent)
    world.submit("k", 1)
    assert world.submit("k", 2) == [f"refuse {R2} 0: end RunActive"]
    limits = OperatorLimits(key_pending_max=1, is_overflow_dead=True)
    world = world_of(limits=limits)
    world.submit("k", 1)
    world.submit("k", 2)
    assert world.submit("k", 3) == ["refuse requests/1/3 0: end KeyOverflow"]
    assert list(world.operator.unfinished.open_requests) == [R1, R2]


def test_outputs_before_a_wait_leave_when_the_wait_is_recorded_and_once() -> None:
    world = world_of()
    world.submit("k", 1)
    world.append()
    world.sleep(f"{R1}/0:a", call(".0"), 60_000, [(None, b"1")])
    assert world.append() == [f"answer {R1} 0: 1"]
    assert world.park(f"{R1}/0:a") == []
    world.take_checkpoint()
    assert list(world.operator.unfinished.open_requests) == [R1], "folded runs are open too"
    assert world.crash() == []
    assert list(world.operator.unfinished.open_requests) == [R1]
    world.until(100_000)
    world.append()
    world.now_ms = 100_001
    world.apply(TimeAdvanced())
    world.request(f"{R1}/0:a", call(".0"))
    world.complete(f"{R1}/0:a", sent=[(None, b"1"), (None, b"2")])
    assert world.append()[-1] == f"answer {R1} 0: 1 2 end"


def test_a_request_fails_once_whatever_else_happens_to_it() -> None:
    agent = Agent("A").add_action("a", [INPUT], nothing).add_action("c", [INPUT], nothing)
    world = world_of(agent)
    world.submit("k", 1)
    world.apply(ActionFailed(world.tasks[f"{R1}/0:a"], BOOM))
    assert world.append() == [f"answer {R1} 0: end Oops"]


def test_names_of_results_follow_from_the_ids_of_runs() -> None:
    assert request_source(3, None) == "requests/3"
    assert request_source(3, "a/b") == "requests/3/a/b"
    assert request_id_of("requests/3/a/b/17") == "a/b"
    assert request_id_of("requests/3/17") is None
    assert request_id_of("reviews/3/a/17") is None
    assert result_name("requests/3/17") == "requests/3/17"
    assert result_name("requests/3/a/b/17") == result_name_of_id("a/b")
    assert Record(request_source(3, "a"), 17, 18, b"").run_id == "requests/3/a/17"


def test_a_job_without_requests_records_no_completion_of_tasks_without_steps() -> None:
    world = World(two_actions(), tracking=False)
    assert world.record("k", 0) == ["start t/0/0:a attempt 1"]
    assert world.complete("t/0/0:a", sent=[(None, b"1")]) == ["emit t/0/0:a/0 1"]

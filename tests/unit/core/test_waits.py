"""Laws of waiting in the operator: deadlines, signals, retries of steps, parked tasks, and what a crash leaves of them."""

from __future__ import annotations

import msgspec
import pytest

from agentflow import Agent, Retry
from agentflow.api.memory_codec import encode_value
from agentflow.core.delta import Table
from agentflow.core.inputs import DrainRequested, StepEnded, StepRetry, WatermarkReceived
from agentflow.core.journal_records import ATTEMPT, CANCELLED, WAITED
from agentflow.core.limits import OperatorLimits
from agentflow.core.runs import TaskStatus
from agentflow.errors import StateMismatch
from agentflow.plan.plan import AgentPlan
from tests.steps_world import INPUT, World, call, nothing

TASK = "t/0/0:a"
FIRST = call(".0")
SECOND = call(".1")
OUTPUT = (None, b'"asked"')


def waiting_world(timeout_ms: int | None = None, **given: str) -> World:
    """A world whose one run waits for the signal `go`, durably."""
    world = World()
    world.record("k", 0)
    assert world.wait_for(TASK, FIRST, "go", timeout_ms, **given) == [f"persist wait {TASK}.0"]
    assert world.append() == []
    return world


def test_a_deadline_ends_a_sleep_when_its_record_is_durable() -> None:
    world = World()
    world.record("k", 0)
    assert world.sleep(TASK, FIRST, 500) == [f"persist wait {TASK}.0"]
    assert world.operator.next_due_ms == 1500
    assert world.until(1499) == []
    assert world.until(1500) == [f"persist waited {TASK}.0"]
    assert world.append() == [f"resolve {TASK}.0 waited time is up"]


def test_a_restart_waits_for_what_is_left() -> None:
    world = waiting_world(500)
    world.now_ms = 1300
    world.crash()
    assert world.record("k", 0) == [f"start {TASK} attempt 1"]
    assert world.wait_for(TASK, FIRST, "go", 500) == []
    assert world.operator.next_due_ms == 1500
    assert world.until(1500) == [f"persist waited {TASK}.0"]


def test_how_a_wait_ended_does_not_change() -> None:
    world = waiting_world(500)
    world.until(1500)
    world.append()
    world.crash()
    world.record("k", 0)
    assert world.signal("k", "go", 0) == [], "it is too late, and is kept for the next wait"
    assert world.wait_for(TASK, FIRST, "go", 500) == [f"resolve {TASK}.0 waited time is up"]


def test_a_signal_ends_the_wait_of_its_key_name_and_correlation() -> None:
    world = waiting_world(correlation="c")
    assert world.signal("other", "go", 0, correlation="c") == []
    assert world.signal("k", "stop", 1, correlation="c") == []
    assert world.signal("k", "go", 2, correlation="d") == []
    assert world.signal("k", "go", 3, run="t/7", correlation="c") == []
    assert world.signal("k", "go", 4, "yes", correlation="c") == [f"persist waited {TASK}.0"]
    assert world.append() == [f"resolve {TASK}.0 waited yes by signals/4"]


def test_a_signal_that_names_a_step_ends_its_wait_and_no_other() -> None:
    world = waiting_world()
    assert world.wait_for(TASK, SECOND, "go") == [f"persist wait {TASK}.1"]
    world.append()
    assert world.signal("k", "go", 0, "for the second", step="0:a.1") == [f"persist waited {TASK}.1"]
    assert world.append() == [f"resolve {TASK}.1 waited for the second by signals/0"]
    assert world.signal("k", "go", 1, "again", step="0:a.1") == []
    assert world.signal("k", "go", 2, "for another run", run="t/1", step="0:a.0") == []
    assert world.signal("k", "go", 3, "for the first", run="t/0", step="0:a.0") == [f"persist waited {TASK}.0"]


def test_an_early_signal_that_names_a_step_waits_for_it_also_after_a_crash() -> None:
    world = World()
    world.signal("k", "go", 0, "for the second", step="0:a.1")
    world.take_checkpoint()
    world.crash()
    world.record("k", 0)
    world.wait_for(TASK, FIRST, "go")
    assert world.take_checkpoint() == [f"persist wait {TASK}.0"]
    world.append()
    assert world.wait_for(TASK, SECOND, "go") == [f"persist wait {TASK}.1", f"persist waited {TASK}.1"]


def test_an_early_signal_is_taken_from_the_buffer_also_after_a_crash() -> None:
    world = World()
    world.signal("k", "go", 0, "first")
    world.signal("k", "go", 1, "second")
    world.take_checkpoint()
    world.crash()
    world.record("k", 0)
    assert world.wait_for(TASK, FIRST, "go") == ["want checkpoint"], "as every first step of a process"
    assert world.take_checkpoint() == [f"persist wait {TASK}.0", f"persist waited {TASK}.0"]
    assert world.append() == [f"resolve {TASK}.0 waited first by signals/0"]
    world.wait_for(TASK, SECOND, "go")
    assert world.append() == [f"resolve {TASK}.1 waited second by signals/1"]


@pytest.mark.parametrize("is_buffered_before", [True, False])
def test_a_signal_that_ended_a_wait_is_dropped_when_it_comes_again(*, is_buffered_before: bool) -> None:
    world = World()
    if is_buffered_before:
        world.signal("k", "go", 5)
        world.take_checkpoint()
    world.record("k", 0)
    world.wait_for(TASK, FIRST, "go")
    if not is_buffered_before:
        world.signal("k", "go", 5)
    assert world.append()[-1] == f"resolve {TASK}.0 waited True by signals/5"
    world.crash()
    world.record("k", 0)
    if not is_buffered_before:
        assert world.signal("k", "go", 5) == []
    assert world.wait_for(TASK, FIRST, "go") == [f"resolve {TASK}.0 waited True by signals/5"]
    assert world.wait_for(TASK, SECOND, "go") == [f"persist wait {TASK}.1"], "it is not there twice"


def test_signals_beyond_the_limit_are_dead_letters_and_old_ones_are_dropped() -> None:
    world = World(limits=OperatorLimits(signals_max=1, signal_ttl_ms=1000))
    world.signal("k", "go", 0)
    assert world.signal("k", "go", 1) == ["dead signals/1 SignalOverflow"]
    world.now_ms += 1001
    world.take_checkpoint()
    assert world.signal("k", "go", 2) == []
    world.record("k", 0)
    world.wait_for(TASK, FIRST, "go")
    assert world.append()[-1] == f"resolve {TASK}.0 waited True by signals/2"


def test_outputs_leave_before_a_wait_and_not_again() -> None:
    world = World()
    world.record("k", 0)
    assert world.sleep(TASK, FIRST, 500, [OUTPUT]) == [f'emit {TASK}/0 "asked"', f"persist wait {TASK}.0"]
    world.append()
    world.take_checkpoint()
    world.crash()
    assert world.sleep(TASK, FIRST, 500, [OUTPUT]) == [], "the checkpoint has them"
    world.until(1500)
    world.append()
    assert world.complete(TASK, sent=[OUTPUT, (None, b"2")]) == [f"persist completion {TASK}", f"emit {TASK}/1 2"]


def test_outputs_before_a_wait_that_no_checkpoint_has_leave_again() -> None:
    world = World()
    world.record("k", 0)
    world.sleep(TASK, FIRST, 500, [OUTPUT])
    world.append()
    world.crash()
    world.record("k", 0)
    assert world.sleep(TASK, FIRST, 500, [OUTPUT]) == [f'emit {TASK}/0 "asked"']


def test_outputs_before_a_wait_of_a_task_that_failed_leave_again_with_its_recorded_failure() -> None:
    agent = Agent("A").add_action("a", [INPUT], nothing, retry=Retry(attempts=1), on_error="skip")
    world = World(agent)
    world.record("k", 0)
    world.sleep(TASK, FIRST, 500, [OUTPUT])
    world.until(1500)
    world.append()
    assert world.fail(TASK) == [f"skip {TASK}", f"persist failure {TASK}"]
    world.append()
    world.crash()
    assert world.record("k", 0) == [f"replay {TASK}", f'emit {TASK}/0 "asked"', f"skip {TASK}"]


def test_a_parked_task_starts_from_its_beginning_when_its_wait_ends() -> None:
    world = waiting_world()
    assert world.park(TASK) == []
    assert world.signal("k", "go", 0) == [f"persist waited {TASK}.0", f"start {TASK} attempt 1"]
    assert world.wait_for(TASK, FIRST, "go") == [], "not before it is durable"
    assert world.append() == [f"resolve {TASK}.0 waited True by signals/0"]
    assert world.complete(TASK) == [f"persist completion {TASK}"]


def test_a_parked_task_stays_parked_after_a_crash_and_goes_on_later() -> None:
    world = waiting_world(500)
    world.park(TASK)
    world.take_checkpoint()
    assert world.crash() == [], "no coroutine is started for it"
    assert world.operator.next_due_ms == 1500
    assert world.signal("k", "go", 0) == [f"persist waited {TASK}.0", f"start {TASK} attempt 1"]


def test_a_parked_task_whose_wait_has_ended_behind_the_checkpoint_goes_on_at_once() -> None:
    world = waiting_world()
    world.park(TASK)
    world.take_checkpoint()
    world.signal("k", "go", 0)
    world.append()
    assert world.crash() == [f"start {TASK} attempt 1"]
    assert world.wait_for(TASK, FIRST, "go") == [f"resolve {TASK}.0 waited True by signals/0"]
    assert world.wait_for(TASK, SECOND, "go") == [f"persist wait {TASK}.1"]
    world.append()
    assert world.park(TASK) == [], "it has nothing new to do now"


def test_a_parked_member_of_a_group_goes_on_after_a_crash_in_the_middle_of_another_one() -> None:
    agent = Agent("A")
    for name in ("a", "b"):
        agent.add_action(name, ["_input_event"], lambda event, ctx: None, parallel=True)
    world = World(agent, tracking=False)
    world.record("k", 0)
    world.sleep("t/0/0:b", FIRST, 500)
    world.take_checkpoint()
    world.append()
    world.park("t/0/0:b")
    world.take_checkpoint()
    assert world.crash() == ["start t/0/0:a attempt 1"]
    assert world.until(1500) == ["persist waited t/0/0:b.0", "start t/0/0:b attempt 1"]


def test_a_task_whose_outcome_is_on_its_way_is_not_parked() -> None:
    world = waiting_world()
    world.signal("k", "go", 0)
    assert world.park(TASK) == []
    assert world.tasks[TASK].status == TaskStatus.RUNNING
    assert world.append() == [f"resolve {TASK}.0 waited True by signals/0"]


def test_a_step_that_is_cancelled_before_the_first_checkpoint_is_recorded_behind_it() -> None:
    world = World(tracking=False)
    world.record("k", 0)
    assert world.sleep(TASK, FIRST, 500) == ["want checkpoint"]
    assert world.apply(StepEnded(world.tasks[TASK], FIRST, CANCELLED, b"")) == []
    assert world.take_checkpoint() == [f"persist wait {TASK}.0", f"persist cancelled {TASK}.0"]


def test_a_task_whose_wait_waits_for_the_first_checkpoint_is_not_parked() -> None:
    world = World(tracking=False)
    world.record("k", 0)
    assert world.sleep(TASK, FIRST, 500) == ["want checkpoint"]
    assert world.park(TASK) == []
    assert world.tasks[TASK].status == TaskStatus.RUNNING
    assert world.take_checkpoint() == [f"persist wait {TASK}.0"]


def test_a_parked_run_holds_no_watermark_and_one_that_goes_on_does() -> None:
    world = waiting_world()
    assert world.apply(WatermarkReceived(10)) == []
    assert world.park(TASK) == ["watermark 10"]
    world.signal("k", "go", 0)
    assert world.apply(WatermarkReceived(20)) == []
    world.wait_for(TASK, FIRST, "go")
    world.append()
    assert world.complete(TASK) == [f"persist completion {TASK}", "watermark 20"]


def folded_world() -> World:
    """A world whose one run sleeps until 1500, or until the signal `go`, and is rows only."""
    world = waiting_world(500)
    world.park(TASK)
    world.take_checkpoint()
    assert list(world.operator._sleepers.by_key) == [msgspec.msgpack.encode("k")]
    assert not world.operator._runs
    assert world.operator.runs_unfinished == 1
    return world


def test_a_sleeping_run_that_a_checkpoint_has_is_folded_and_wakes_in_time() -> None:
    world = folded_world()
    assert world.operator.next_due_ms == 1500
    assert world.operator.oldest_run_ms(2000) == 1000, "its clock still counts"
    assert world.until(1499) == []
    assert world.until(1500) == [f"persist waited {TASK}.0", f"start {TASK} attempt 1"]
    world.wait_for(TASK, FIRST, "go", 500)
    assert world.append() == [f"resolve {TASK}.0 waited time is up"]
    assert world.complete(TASK) == [f"persist completion {TASK}"]
    world.take_checkpoint()
    assert [table for table, _, _ in world.rows if table in (Table.STEPS, Table.RUNS)] == []


def test_a_sleeping_run_is_not_folded_before_keyed_state_has_what_it_wrote() -> None:
    world = World()
    world.record("k", 0)
    assert world.complete("t/0/0:a", writes={"n": encode_value(1, None)}, sent=[("x", b"\x80")])
    world.sleep("t/0/0:a/0:b", FIRST, 500)
    world.append()
    world.park("t/0/0:a/0:b")
    world.barrier()
    assert world.snapshot is not None
    slices = list(world.snapshot.slices)  # every run is captured, and the checkpoint is not completed
    world.signal("other", "go", 0)
    assert not world.operator._sleepers.by_key
    world.snapshot.slices = iter(slices)
    world.complete_checkpoint()
    assert list(world.operator._sleepers.by_key) == [msgspec.msgpack.encode("k")]


def test_a_sleeping_run_is_restored_as_its_rows_and_wakes_in_time() -> None:
    world = folded_world()
    assert world.crash() == []
    assert list(world.operator._sleepers.by_key) == [msgspec.msgpack.encode("k")]
    assert not world.operator._runs
    assert world.operator.runs_unfinished == 1
    assert world.operator.next_due_ms == 1500
    assert world.until(1500) == [f"persist waited {TASK}.0", f"start {TASK} attempt 1"]
    world.wait_for(TASK, FIRST, "go", 500)
    assert world.append() == [f"resolve {TASK}.0 waited time is up"]
    assert world.complete(TASK) == [f"persist completion {TASK}"]
    world.record("other", 1)
    assert world.complete("t/1/0:a") == []
    world.take_checkpoint()
    assert [table for table, _, _ in world.rows if table in (Table.STEPS, Table.RUNS)] == []


@pytest.mark.parametrize("is_appended", [True, False])
def test_a_sleeping_run_that_the_journal_has_news_of_is_restored_whole(*, is_appended: bool) -> None:
    world = folded_world()
    assert world.signal("k", "go", 0) == [f"persist waited {TASK}.0", f"start {TASK} attempt 1"]
    if is_appended:
        world.append()
        assert world.crash() == [f"start {TASK} attempt 1"]
    else:  # the signal comes again: no checkpoint has it
        assert world.crash() == []
        assert world.signal("k", "go", 0) == [f"persist waited {TASK}.0", f"start {TASK} attempt 1"]


def test_a_sleeping_run_behind_which_another_waits_is_restored_whole() -> None:
    world = waiting_world(500)
    world.park(TASK)
    world.record("k", 1)
    world.take_checkpoint()
    assert world.crash() == []
    assert [run.id for run in world.operator._runs] == ["t/0", "t/1"]
    assert world.until(1500) == [f"persist waited {TASK}.0", f"start {TASK} attempt 1"]


def test_a_sleeping_run_whose_action_is_gone_is_refused_at_the_start() -> None:
    world = folded_world()
    world.plan = AgentPlan.from_agent(Agent("A").add_action("other", ["_input_event"], nothing))
    with pytest.raises(StateMismatch, match="waits for action 'a'"):
        world.crash()


def test_a_folded_run_wakes_for_its_signal_and_not_for_another() -> None:
    world = folded_world()
    assert world.signal("k", "stop", 0) == []
    assert world.operator.next_due_ms == 1500
    world.take_checkpoint()
    assert len(world.operator._sleepers.by_key) == 1, "folded again"
    assert world.signal("k", "go", 1) == [f"persist waited {TASK}.0", f"start {TASK} attempt 1"]


def test_an_input_waits_behind_a_folded_run() -> None:
    world = folded_world()
    assert world.record("k", 1) == []
    assert world.record("other", 2) == ["start t/2/0:a attempt 1"]
    world.take_checkpoint()
    assert not world.operator._sleepers.by_key, "something waits behind it"
    world.until(1500)
    world.wait_for(TASK, FIRST, "go", 500)
    world.append()
    assert world.complete(TASK)[-1] == "start t/1/0:a attempt 1"


def test_a_crash_and_a_snapshot_do_not_see_that_a_run_is_folded() -> None:
    world = folded_world()
    tables = (Table.STEPS, Table.RUNS)
    before = [write for write in world.operator.snapshot() if write[0] in tables]
    assert len(before) == 2
    world.take_checkpoint()
    assert world.crash() == []
    assert [write for write in world.operator.snapshot() if write[0] in tables] == before
    world.take_checkpoint()
    assert len(world.operator._sleepers.by_key) == 1
    assert world.until(1500) == [f"persist waited {TASK}.0", f"start {TASK} attempt 1"]


def test_a_run_that_sleeps_again_and_again_leaves_nothing_behind() -> None:
    world = World()
    world.record("k", 0)
    world.operator.oldest_run_ms(0)
    for turn in range(300):
        step = call(f".{turn}")
        world.sleep(TASK, step, 10)
        world.append()
        world.park(TASK)
        world.take_checkpoint()
        assert len(world.operator._sleepers.by_key) == 1
        assert world.until(world.now_ms + 10)[-1] == f"start {TASK} attempt 1"
        for asked in range(turn + 1):
            world.sleep(TASK, call(f".{asked}"), 10)
        world.append()
    sleepers = world.operator._sleepers
    assert sleepers._oldest is not None
    assert len(sleepers._due) + len(sleepers._oldest) < 400
    assert len(world.operator._waiting.waits._heap) < 200
    world.complete(TASK)
    world.append()
    world.take_checkpoint()
    assert [table for table, _, _ in world.rows if table in (Table.STEPS, Table.RUNS)] == []
    assert world.operator.runs_unfinished == 0


def test_sleeping_runs_are_in_flight_until_a_checkpoint_has_them() -> None:
    world = World(limits=OperatorLimits(in_flight_max=1, sleeping_max=2))
    for offset in range(2):
        assert "pause run.in-flight-max" in world.record(f"k{offset}", offset)
        task = f"t/{offset}/0:a"
        world.sleep(task, FIRST, 500)
        world.append()
        assert world.park(task) == []
        world.take_checkpoint()
        assert world.until(world.now_ms) == (["resume"] if offset == 0 else []), "two are as many as may sleep"
    assert len(world.until(1500)) == 4


def test_a_job_that_stops_does_not_wait_for_sleepers_and_one_whose_input_has_ended_does() -> None:
    world = waiting_world()
    assert world.apply(DrainRequested(awaits_all=False)) == []
    assert world.park(TASK) == ["drained"]
    world = waiting_world()
    assert world.apply(DrainRequested()) == []
    assert world.park(TASK) == []
    world.signal("k", "go", 0)
    world.wait_for(TASK, FIRST, "go")
    world.append()
    assert world.complete(TASK) == [f"persist completion {TASK}", "drained"]


def test_a_wait_that_user_code_cancelled_is_over() -> None:
    world = waiting_world()
    world.apply(StepEnded(world.tasks[TASK], FIRST, CANCELLED, b""))
    assert world.signal("k", "go", 0) == [], "it is kept: nobody waits"
    world.append()
    world.crash()
    world.record("k", 0)
    assert world.wait_for(TASK, FIRST, "go") == [f"resolve {TASK}.0 cancelled "]


def test_a_failed_call_is_an_attempt_and_the_next_one_comes_in_time_also_after_a_crash() -> None:
    world = World()
    world.record("k", 0)
    assert world.request(TASK, FIRST) == [f"run {TASK}.0"]
    failed = StepEnded(world.tasks[TASK], FIRST, ATTEMPT, b"err", StepRetry(1, 500, needs_intent=False))
    assert world.apply(failed) == [f"persist attempt {TASK}.0"]
    world.append()
    world.crash()
    world.record("k", 0)
    assert world.request(TASK, FIRST) == []
    assert world.until(1499) == []
    assert world.until(1500) == [f"run {TASK}.0 behind 1"]
    world.end_step(TASK, FIRST)
    assert world.append() == [f"resolve {TASK}.0 result r"]


def test_each_call_of_a_step_that_needs_it_has_an_intent() -> None:
    world = World()
    world.record("k", 0)
    world.request(TASK, FIRST, needs_intent=True)
    assert world.append() == [f"run {TASK}.0"]
    world.apply(StepEnded(world.tasks[TASK], FIRST, ATTEMPT, b"err", StepRetry(1, 500, needs_intent=True)))
    assert world.until(1500) == [f"persist intent {TASK}.0"]
    assert world.append() == [f"run {TASK}.0 behind 1"]
    world.crash()
    world.record("k", 0)
    assert world.request(TASK, FIRST, needs_intent=True) == [f"run {TASK}.0 in doubt behind 1"]


def test_a_retry_of_the_action_waits_for_the_rest_of_a_sleep_and_calls_a_failed_step_anew() -> None:
    world = World()
    world.record("k", 0)
    world.sleep(TASK, FIRST, 60_000)
    world.request(TASK, SECOND)
    world.apply(StepEnded(world.tasks[TASK], SECOND, ATTEMPT, b"err", StepRetry(1, 60_000, needs_intent=False)))
    world.append()
    assert world.fail(TASK) == [f"retry {TASK}"]
    assert world.until(3000) == [f"start {TASK} attempt 2"]
    assert world.sleep(TASK, FIRST, 60_000) == []
    assert world.request(TASK, SECOND) == [f"run {TASK}.1"]
    assert world.until(61_000) == [f"persist waited {TASK}.0"]


def test_a_cancelled_member_of_a_group_waits_no_more() -> None:
    agent = Agent("A")
    for name in ("a", "b"):
        agent.add_action(
            name,
            ["_input_event"],
            lambda event, ctx: None,
            parallel=True,
            retry=Retry(attempts=1),
            on_error="dead-letter",
        )
    world = World(agent, tracking=False)
    world.record("k", 0)
    world.sleep("t/0/0:a", FIRST, 10)
    world.take_checkpoint()
    world.wait_for("t/0/0:b", FIRST, "go")
    world.append()
    world.park("t/0/0:b")
    assert world.fail("t/0/0:a") == ["persist failure t/0/0:a", "dead t/0 Oops"]
    assert world.signal("k", "go", 0) == []
    assert world.operator.runs_unfinished == 0


def test_a_snapshot_of_the_restored_operator_is_the_same() -> None:
    world = waiting_world(500)
    world.signal("other", "go", 0)
    world.park(TASK)
    world.take_checkpoint()
    tables = (Table.STEPS, Table.SIGNALS, Table.RUNS)
    before = [write for write in world.operator.snapshot() if write[0] in tables]
    assert len(before) == 3
    world.crash()
    assert [write for write in world.operator.snapshot() if write[0] in tables] == before


def test_result_of_a_wait_says_where_its_signal_came_from() -> None:
    world = waiting_world()
    world.signal("k", "go", 9, {"by": "ann"})
    world.append()
    run = world.operator._recorded["t/0"]
    step = run.tasks["0:a"].steps[".0"]
    assert step.kind == WAITED
    assert step.payload == msgspec.msgpack.encode([msgspec.msgpack.encode({"by": "ann"}), "signals/9"])

"""Laws of cancelling: what stops, what compensates and when, and what a crash leaves of it."""

from __future__ import annotations

import msgspec
import pytest

from agentflow import Agent, Retry
from agentflow.core.inputs import CancelRequested, RetryRequested, StepEnded, StepRetry
from agentflow.core.journal_records import ATTEMPT
from agentflow.core.records import Record
from tests.steps_world import INPUT, World, call, nothing

TASK = "t/0/0:a"
UNDO = "t/0/1:undo"
STEP = call(".0")


def agent(on_new_input: str = "queue", *, compensates: bool = True) -> Agent:
    made = Agent("A")
    made.on_new_input = on_new_input  # type: ignore[assignment]
    made.add_action("a", [INPUT], nothing, retry=Retry(attempts=2, initial="10s", jitter=0))
    return made.add_action("undo", ["_cancel_event"], nothing) if compensates else made


def cancel(world: World, key: str = "k", *, run: str = "", offset: int = 0) -> list[str]:
    record = Record("signals", offset, offset + 1, b"{}")
    return world.apply(CancelRequested(record, msgspec.msgpack.encode(key), run, "enough"))


def test_a_cancelled_run_stops_at_once_and_compensates_behind_a_checkpoint() -> None:
    world = World(agent())
    world.record("k", 0)
    world.step(TASK, STEP, b"paid")
    world.record("k", 1)
    assert cancel(world) == [f"cancel {TASK}", "want checkpoint"]
    assert world.complete(TASK) == [], "too late"
    assert world.take_checkpoint() == [f"start {UNDO} attempt 1"]
    assert msgspec.msgpack.decode(world.tasks[UNDO].payload or b"") == {"reason": "enough", "task": "0:a"}
    assert world.complete(UNDO, sent=[(None, b"undone")])[-2:] == [f"emit {UNDO}/0 undone", "start t/1/0:a attempt 1"]


def test_without_compensation_a_cancelled_run_is_over() -> None:
    world = World(agent(compensates=False))
    world.record("k", 0)
    world.record("k", 1)
    assert cancel(world) == [f"cancel {TASK}", "start t/1/0:a attempt 1"]
    assert cancel(world, "other") == []


def test_before_its_checkpoint_a_crash_takes_the_cancellation_back_and_behind_it_nothing_does() -> None:
    world = World(agent())
    world.record("k", 0)
    world.take_checkpoint()
    cancel(world)
    assert world.crash() == [f"start {TASK} attempt 1"]
    cancel(world)
    world.barrier()
    world.complete_checkpoint()
    assert world.crash() == [f"start {UNDO} attempt 1"]
    world.complete(UNDO)
    assert world.operator.runs_unfinished == 0


def test_a_checkpoint_that_began_before_the_cancellation_does_not_release_it() -> None:
    world = World(agent())
    world.record("k", 0)
    world.barrier()
    cancel(world)
    assert world.complete_checkpoint() == []
    assert world.take_checkpoint() == [f"start {UNDO} attempt 1"]


@pytest.mark.parametrize("state", ["parked", "retrying"])
def test_a_run_that_waits_is_cancelled_too(state: str) -> None:
    world = World(agent())
    world.record("k", 0)
    if state == "parked":
        world.wait_for(TASK, STEP, "go")
        world.append()
        world.park(TASK)
    else:
        world.fail(TASK)
    assert cancel(world) == ["want checkpoint"]
    assert world.signal("k", "go", 0) == []
    assert world.until(100_000) == []
    assert world.take_checkpoint() == [f"start {UNDO} attempt 1"]


def test_cancelling_twice_is_cancelling_once() -> None:
    world = World(agent())
    world.record("k", 0)
    cancel(world)
    assert cancel(world, offset=1) == []
    world.take_checkpoint()
    assert cancel(world, offset=2) == [], "the compensation itself is not cancelled"


def test_only_the_run_that_is_meant_is_cancelled() -> None:
    world = World(agent())
    for offset in range(3):
        world.record("k", offset)
    assert cancel(world, run="t/7") == []
    assert cancel(world, run="t/1") == [], "it has not begun, and has nothing to compensate"
    assert world.complete(TASK)[-1] == "start t/2/0:a attempt 1"


def test_an_input_interrupts_the_run_of_its_key_and_all_that_wait() -> None:
    world = World(agent("interrupt"))
    world.record("k", 0)
    assert world.record("k", 1) == [f"cancel {TASK}", "want checkpoint"]
    assert world.record("k", 2) == []
    assert world.take_checkpoint() == [f"start {UNDO} attempt 1"]
    assert msgspec.msgpack.decode(world.tasks[UNDO].payload or b"")["reason"] == "superseded by t/1"
    assert world.complete(UNDO)[-1] == "start t/2/0:a attempt 1"
    assert world.record("other", 3) == ["start t/3/0:a attempt 1"]
    world.crash()


def test_an_input_is_rejected_while_its_key_has_a_run() -> None:
    world = World(agent("reject"))
    world.record("k", 0)
    assert world.record("k", 1) == ["dead t/1 RunActive"]
    world.complete(TASK)
    assert world.record("k", 2) == ["start t/2/0:a attempt 1"]


def test_what_waits_for_a_retry_is_tried_at_once_when_somebody_wants_it() -> None:
    world = World(agent())
    retry = RetryRequested(Record("signals", 0, 1, b"{}"), msgspec.msgpack.encode("k"))
    assert world.apply(retry) == []
    world.record("k", 0)
    world.fail(TASK)
    assert world.apply(retry) == [f"start {TASK} attempt 2"]
    world.request(TASK, STEP)
    world.apply(StepEnded(world.tasks[TASK], STEP, ATTEMPT, b"err", StepRetry(1, 60_000, needs_intent=False)))
    assert world.apply(retry) == [f"persist attempt {TASK}.0"]
    assert world.until(world.now_ms) == [f"run {TASK}.0 behind 1"]
    assert world.until(11_000) == [], "the time of the first retry has no meaning any more"


def test_what_a_supersede_dropped_leaves_no_row() -> None:
    world = World(agent("interrupt"))
    world.record("k", 0)
    world.record("k", 1)
    world.barrier()
    world.complete_checkpoint()
    assert len([name for table, _, name in world.rows if table.name == "RUNS"]) == 2
    world.record("k", 2)
    world.take_checkpoint()
    assert sorted(name for table, _, name in world.rows if table.name == "RUNS") == ["t/0", "t/2"]

"""Laws of durable steps in the operator: what is recorded, what answers, and in which order."""

from __future__ import annotations

import msgspec

from agentflow import Agent, Retry
from agentflow.api.memory_codec import encode_value
from agentflow.core.delta import Table
from agentflow.core.inputs import ActionFailed, ActionStopped, KeptWrites, TimeAdvanced
from agentflow.core.journal_records import CANCELLED, COMPLETION, ERROR, decode_completion, decode_record
from agentflow.core.records import ErrorReport
from tests.steps_world import INPUT, World, call, nothing


def test_an_outcome_answers_only_when_the_journal_has_it() -> None:
    world = World()
    assert world.record("k", 0) == ["start t/0/0:a attempt 1"]
    assert world.request("t/0/0:a", call(".0")) == ["run t/0/0:a.0"]
    assert world.end_step("t/0/0:a", call(".0")) == ["persist result t/0/0:a.0"]
    assert world.append() == ["resolve t/0/0:a.0 result r"]
    assert world.complete("t/0/0:a", sent=[(None, b"1")]) == ["persist completion t/0/0:a", "emit t/0/0:a/0 1"]


def test_a_recorded_step_is_answered_after_a_crash_and_an_unrecorded_one_runs_again() -> None:
    world = World()
    world.record("k", 0)
    world.step("t/0/0:a", call(".0"), b"paid")
    world.request("t/0/0:a", call(".1"))
    world.end_step("t/0/0:a", call(".1"), b"lost")
    assert world.crash() == []
    assert world.record("k", 0) == ["start t/0/0:a attempt 1"]
    assert world.request("t/0/0:a", call(".0")) == ["resolve t/0/0:a.0 result paid"]
    assert world.request("t/0/0:a", call(".1")) == ["run t/0/0:a.1"]


def test_a_checkpoint_takes_live_records_and_the_journal_before_it_is_read_over() -> None:
    world = World()
    world.record("k", 0)
    world.step("t/0/0:a", call(".0"), b"paid")
    world.take_checkpoint()
    assert [name for table, _, name in world.rows if table is Table.STEPS] == ["t/0\x000:a\x00.0"]
    journal, world.journal = world.journal, []
    assert world.crash() == ["start t/0/0:a attempt 1"]
    assert world.request("t/0/0:a", call(".0")) == ["resolve t/0/0:a.0 result paid"]
    world.complete("t/0/0:a")
    world.take_checkpoint()
    assert [table for table, _, _ in world.rows if table in (Table.STEPS, Table.RUNS)] == []
    world.journal = journal  # it was not cut
    assert world.crash() == []
    assert world.record("k", 1) == ["start t/1/0:a attempt 1"], "records of ended runs hold nobody back"


def test_a_task_with_steps_that_completed_is_answered_whole() -> None:
    world = World()
    world.record("k", 0)
    world.step("t/0/0:a", call(".0"))
    write = {"n": encode_value(1, None)}
    assert (
        world.complete("t/0/0:a", sent=[("x", b"\x80"), (None, b"1")], writes=write)[-1]
        == "start t/0/0:a/0:b attempt 1"
    )
    world.append()
    world.crash()
    assert world.record("k", 0) == ["replay t/0/0:a", "emit t/0/0:a/1 1", "start t/0/0:a/0:b attempt 1"]
    assert world.complete("t/0/0:a/0:b") == []


def test_a_record_follows_the_completions_that_its_key_saw_since_the_last_completed_checkpoint() -> None:
    world = World()
    world.record("k", 0)
    world.complete("t/0/0:a", writes={"n": encode_value(1, None)})
    world.record("other", 1)
    world.complete("t/1/0:a")
    world.barrier()  # not completed yet
    world.record("k", 2)
    world.request("t/2/0:a", call(".0"))
    assert world.end_step("t/2/0:a", call(".0")) == ["persist completion t/0/0:a", "persist result t/2/0:a.0"]
    world.request("t/2/0:a", call(".1"))
    assert world.end_step("t/2/0:a", call(".1")) == ["persist result t/2/0:a.1"], "each once"
    world.append()
    world.crash()
    assert world.record("k", 0) == ["replay t/0/0:a"]
    assert world.record("k", 2) == ["start t/2/0:a attempt 1"]


def test_a_recorded_completion_holds_what_its_task_did_and_nothing_of_those_behind_it() -> None:
    world = World()
    world.append()
    for offset in (0, 1, 2):
        world.record("k", offset)
        world.complete(f"t/{offset}/0:a", writes={f"n{offset}": b"1"})
    world.record("k", 3)
    world.request("t/3/0:a", call(".0"))
    world.end_step("t/3/0:a", call(".0"))
    records = [decode_record(record) for record in world.unappended]
    completions = [decode_completion(record.payload).writes for record in records if record.kind == COMPLETION]
    assert completions == [{"n0": b"1"}, {"n1": b"1"}, {"n2": b"1"}]


def test_completions_of_a_completed_checkpoint_hold_nobody_back() -> None:
    world = World()
    world.record("k", 0)
    world.complete("t/0/0:a")
    world.barrier()
    world.record("k", 1)
    world.request("t/1/0:a", call(".0"))
    assert world.end_step("t/1/0:a", call(".0")) == ["persist completion t/0/0:a", "persist result t/1/0:a.0"]
    world.append()
    world.complete_checkpoint()
    world.crash()
    assert world.record("k", 1) == ["start t/1/0:a attempt 1"]
    assert world.request("t/1/0:a", call(".0")) == ["resolve t/1/0:a.0 result r"]


def test_runs_of_a_key_take_their_recorded_turns_again_when_two_sources_interleave_differently() -> None:
    world = World()
    world.record("k", 0, "t")
    world.step("t/0/0:a", call(".0"))
    world.complete("t/0/0:a")
    world.record("k", 0, "u")
    world.step("u/0/0:a", call(".0"))
    world.crash()
    assert world.record("k", 0, "u") == [], "it saw what t/0 did"
    assert world.record("k", 1, "u") == []
    assert world.record("k", 0, "t") == ["replay t/0/0:a", "start u/0/0:a attempt 1"]
    assert world.request("u/0/0:a", call(".0")) == ["resolve u/0/0:a.0 result r"]
    assert world.complete("u/0/0:a")[-1] == "start u/1/0:a attempt 1"


def test_a_recorded_run_whose_input_is_lost_is_a_dead_letter_and_its_key_goes_on() -> None:
    """Retention or compaction took it while the job was down: its source gives a later record, perhaps of another key."""
    world = World()
    world.record("k", 0)
    world.step("t/0/0:a", call(".0"))
    world.crash()
    assert world.record("k", 0, source="other") == [], "it was behind the recorded run"
    assert world.record("elsewhere", 3) == [
        "start t/3/0:a attempt 1",
        "dead t/0 InputLost",
        "start other/0/0:a attempt 1",
    ]
    world.complete("other/0/0:a")
    world.complete("t/3/0:a")
    world.take_checkpoint()
    assert [table for table, _, _ in world.rows if table is Table.STEPS] == []
    world.journal.clear()
    assert world.crash() == []
    assert world.record("k", 4) == ["start t/4/0:a attempt 1"]


def test_a_later_record_of_the_key_itself_starts_where_the_lost_one_was() -> None:
    world = World()
    world.record("k", 0)
    world.step("t/0/0:a", call(".0"))
    world.crash()
    assert world.record("k", 1) == ["dead t/0 InputLost", "start t/1/0:a attempt 1"]


def test_a_recorded_run_that_another_one_overtakes_from_elsewhere_is_not_lost() -> None:
    world = World()
    world.record("k", 5)
    world.step("t/5/0:a", call(".0"))
    world.crash()
    assert world.record("k", 9, source="other") == []
    assert world.record("elsewhere", 4) == ["start t/4/0:a attempt 1"]
    assert world.record("k", 5) == ["start t/5/0:a attempt 1"]
    assert world.request("t/5/0:a", call(".0")) == ["resolve t/5/0:a.0 result r"]


def test_an_intent_is_durable_before_the_call_and_without_outcome_in_doubt() -> None:
    world = World()
    world.record("k", 0)
    assert world.request("t/0/0:a", call(".0"), needs_intent=True) == ["persist intent t/0/0:a.0"]
    assert world.append() == ["run t/0/0:a.0"]
    world.crash()
    world.record("k", 0)
    assert world.request("t/0/0:a", call(".0"), needs_intent=True) == ["run t/0/0:a.0 in doubt"]


def test_another_step_than_the_recorded_one_is_refused_and_ends_the_run_by_policy() -> None:
    world = World()
    world.record("k", 0)
    world.step("t/0/0:a", call(".0"))
    world.crash()
    world.record("k", 0)
    assert world.request("t/0/0:a", call(".0", "g")) == ["refuse t/0/0:a.0"]
    ended = ["dead t/0 Divergence", "persist failure t/0/0:a"]
    assert world.complete("t/0/0:a") == ended, "also when user code swallows the error"


def test_a_recorded_step_that_is_not_called_again_is_a_divergence() -> None:
    world = World()
    world.record("k", 0)
    world.step("t/0/0:a", call(".0"))
    world.crash()
    world.record("k", 0)
    assert world.complete("t/0/0:a")[0] == "dead t/0 Divergence"


def test_how_a_failed_task_ended_is_recorded_too_for_what_sees_that_it_did_nothing() -> None:
    agent = Agent("A").add_action("a", [INPUT], nothing, on_error="skip")
    world = World(agent)
    world.record("k", 0)
    world.apply(ActionFailed(world.tasks["t/0/0:a"], ErrorReport("KeyError", "'x'", is_retryable=False)))
    world.record("k", 1)
    world.request("t/1/0:a", call(".0"))
    assert world.end_step("t/1/0:a", call(".0")) == ["persist failure t/0/0:a", "persist result t/1/0:a.0"]
    world.append()
    world.crash()
    assert world.record("k", 0) == ["replay t/0/0:a", "skip t/0/0:a"]


def fail(world: World, task: str) -> None:
    """Let an attempt fail, and the next one begin."""
    assert world.apply(ActionFailed(world.tasks[task], ErrorReport("KeyError", "'x'"))) == [f"retry {task}"]
    world.now_ms += 60_000
    assert world.apply(TimeAdvanced()) == [f"start {task} attempt 2"]


def test_a_result_answers_later_attempts_and_an_error_only_its_own() -> None:
    world = World()
    world.record("k", 0)
    world.step("t/0/0:a", call(".0"))
    world.request("t/0/0:a", call(".1"))
    world.end_step("t/0/0:a", call(".1"), b"boom", ERROR)
    assert world.append() == ["resolve t/0/0:a.1 error boom"]
    fail(world, "t/0/0:a")
    assert world.request("t/0/0:a", call(".0")) == ["resolve t/0/0:a.0 result r"]
    assert world.request("t/0/0:a", call(".1")) == ["run t/0/0:a.1"]


FAILING = Agent("A").add_action("a", [INPUT], nothing, on_error="fail", retry=Retry(attempts=1))
BOOM = ErrorReport("KeyError", "'x'")


def test_an_error_that_stopped_the_job_is_tried_again_when_the_job_is_started_again() -> None:
    world = World(FAILING)
    world.record("k", 0)
    for attempt in (1, 2, 3):
        world.request("t/0/0:a", call(".0"))
        world.end_step("t/0/0:a", call(".0"), b"boom", ERROR)
        world.append()
        assert world.apply(ActionFailed(world.tasks["t/0/0:a"], BOOM))[0] == "fail job KeyError"
        world.crash()
        assert world.record("k", 0) == [f"start t/0/0:a attempt {attempt}"]
        assert world.request("t/0/0:a", call(".0")) == ["resolve t/0/0:a.0 error boom"]
        assert world.apply(ActionFailed(world.tasks["t/0/0:a"], BOOM)) == ["retry t/0/0:a"]
        assert world.apply(TimeAdvanced()) == [f"start t/0/0:a attempt {attempt + 1}"]


def test_a_divergence_behind_a_recorded_error_is_not_tried_again() -> None:
    world = World(FAILING)
    world.record("k", 0)
    world.request("t/0/0:a", call(".0"))
    world.end_step("t/0/0:a", call(".0"), b"boom", ERROR)
    world.append()
    world.crash()
    world.record("k", 0)
    assert world.complete("t/0/0:a")[0] == "fail job Divergence"


def test_other_arguments_in_a_later_attempt_are_a_new_step() -> None:
    world = World()
    world.record("k", 0)
    world.step("t/0/0:a", call(".0"))
    fail(world, "t/0/0:a")
    assert world.request("t/0/0:a", call(".0", digest=b"other")) == ["run t/0/0:a.0"]


def test_after_a_crash_a_task_goes_on_with_the_attempt_that_recorded_last() -> None:
    world = World()
    world.record("k", 0)
    world.step("t/0/0:a", call(".0"))
    fail(world, "t/0/0:a")
    world.request("t/0/0:a", call(".0"))
    world.step("t/0/0:a", call(".1"))
    world.crash()
    assert world.record("k", 0) == ["start t/0/0:a attempt 2"]


def test_a_step_that_user_code_cancelled_never_ends_again() -> None:
    world = World()
    world.record("k", 0)
    world.request("t/0/0:a", call(".0"))
    assert world.end_step("t/0/0:a", call(".0"), b"", CANCELLED) == ["persist cancelled t/0/0:a.0"]
    world.append()
    world.crash()
    world.record("k", 0)
    assert world.request("t/0/0:a", call(".0")) == ["resolve t/0/0:a.0 cancelled "]


def test_the_first_step_of_an_operator_waits_until_a_checkpoint_has_what_happened_before() -> None:
    world = World(tracking=False)
    world.record("k", 0)
    world.complete("t/0/0:a", writes={"n": encode_value(1, None)})
    world.barrier()
    world.record("k", 1)
    assert world.request("t/1/0:a", call(".0")) == ["want checkpoint"]
    assert world.complete_checkpoint() == [], "its barrier was before the request"
    assert world.take_checkpoint() == ["run t/1/0:a.0"]


def test_a_snapshot_of_the_restored_operator_is_the_same() -> None:
    world = World()
    world.record("k", 0)
    world.step("t/0/0:a", call(".0"))
    world.request("t/0/0:a", call(".1"), needs_intent=True)
    world.append()
    world.take_checkpoint()
    before = [write for write in world.operator.snapshot() if write[0] is Table.STEPS]
    assert len(before) == 2
    world.crash()
    assert [write for write in world.operator.snapshot() if write[0] is Table.STEPS] == before


# -- what is kept of attempts that do not complete
def kept(value: bytes, path: str = "__spent__.1") -> KeptWrites:
    return KeptWrites({path: value}, {path: value})


def memory_of(world: World, key: str = "k") -> dict[str, bytes | None]:
    return world.operator.keys.states[msgspec.msgpack.encode(key)].memory


def test_what_is_kept_of_an_attempt_happens_whatever_becomes_of_it() -> None:
    world = World()
    world.record("k", 0)
    world.step("t/0/0:a", call(".0"))
    task = world.tasks["t/0/0:a"]
    world.apply(ActionFailed(task, BOOM, kept=kept(b"one")))
    assert memory_of(world)["__spent__.1"] == b"one"
    assert task.run.sensory == {"__spent__.1": b"one"}
    world.until(world.now_ms + 60_000)
    assert world.apply(
        ActionFailed(task, ErrorReport("KeyError", "'x'", is_retryable=False), kept=kept(b"two", "__spent__.2"))
    ) == ["dead t/0 KeyError", "persist failure t/0/0:a"]
    world.take_checkpoint()
    assert {name: value for (_, _, name), value in world.rows.items() if name.startswith("__")} == {
        "__spent__.1": b"one",
        "__spent__.2": b"two",
    }


def test_a_crash_behind_the_end_of_a_task_takes_nothing_back_that_is_kept_of_its_attempts() -> None:
    for did in ("fails", "completes"):
        world = World()
        world.record("k", 0)
        world.step("t/0/0:a", call(".0"))
        world.apply(ActionFailed(world.tasks["t/0/0:a"], BOOM, kept=kept(b"one")))
        world.until(world.now_ms + 60_000)
        world.request("t/0/0:a", call(".0"))
        if did == "fails":
            error = ErrorReport("KeyError", "'x'", is_retryable=False)
            world.apply(ActionFailed(world.tasks["t/0/0:a"], error))
        else:
            world.complete("t/0/0:a", writes={"n": b"1"})
        world.append()
        world.crash()
        lines = world.record("k", 0)
        assert lines[0] == "replay t/0/0:a"
        world.until(world.now_ms + 60_000)
        assert memory_of(world)["__spent__.1"] == b"one"


def test_an_attempt_of_which_something_is_kept_is_not_passed_over_for_the_records_of_the_next_one() -> None:
    world = World()
    world.record("k", 0)
    world.step("t/0/0:a", call(".0"))
    assert world.apply(ActionFailed(world.tasks["t/0/0:a"], BOOM, kept=kept(b"one"))) == [
        "retry t/0/0:a",
        "persist failure t/0/0:a",
    ]
    world.until(world.now_ms + 60_000)
    world.request("t/0/0:a", call(".1"))
    world.end_step("t/0/0:a", call(".1"))
    world.append()
    world.crash()
    assert world.record("k", 0) == ["replay t/0/0:a", "retry t/0/0:a"]
    assert memory_of(world)["__spent__.1"] == b"one"
    assert world.until(world.now_ms + 60_000) == ["start t/0/0:a attempt 2"]
    assert world.request("t/0/0:a", call(".1")) == ["resolve t/0/0:a.1 result r"]


def test_what_is_kept_of_a_task_that_is_stopped_happens() -> None:
    world = World()
    world.record("k", 0)
    world.step("t/0/0:a", call(".0"))
    task = world.tasks["t/0/0:a"]
    assert "cancel t/0/0:a" in world.cancel("k")
    assert world.apply(ActionStopped(task, kept(b"one"))) == []
    world.take_checkpoint()
    assert world.rows[Table.MEMORY, msgspec.msgpack.encode("k"), "__spent__.1"] == b"one"

"""Laws of the operator: inputs in, the whole list of effects out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from agentflow.api.agent import Agent
from agentflow.api.failure import Retry
from agentflow.api.memory_codec import encode_object, encode_value
from agentflow.core.delta import StateWrite, StoredRow, Table
from agentflow.core.effects import (
    CancelAction,
    DeadLetter,
    Drained,
    Effect,
    EmitRecord,
    FailJob,
    ForwardWatermark,
    PauseSource,
    ResumeSource,
    ScheduleRetry,
    SkipTask,
    StartAction,
    TakeSnapshot,
)
from agentflow.core.failures import FailurePolicy
from agentflow.core.inputs import (
    ActionCompleted,
    ActionFailed,
    BarrierReceived,
    CheckpointCompleted,
    DrainRequested,
    RecordReceived,
    RecordRejected,
    TimeAdvanced,
    TimerOrder,
    WatermarkReceived,
)
from agentflow.core.limits import OperatorLimits
from agentflow.core.operator import Operator
from agentflow.core.records import ErrorReport, Record
from agentflow.core.runs import ActionTask
from agentflow.errors import InternalError
from agentflow.plan.plan import AgentPlan

BOOM = ErrorReport("KeyError", "'stars'")
INPUT = "_input_event"


def nothing(event: object, ctx: object) -> None:
    """User code is never run by the core."""


class Bench:
    """An operator under test; `effects` of each step come back as readable lines."""

    def __init__(
        self, agent: Agent, *, limits: OperatorLimits | None = None, has_dead_letters: bool = True, now_ms: int = 1000
    ) -> None:
        self.plan = AgentPlan.from_agent(agent)
        self.policy = FailurePolicy("job", agent.name, has_dead_letters)
        self.limits = limits or OperatorLimits()
        self.operator = Operator(self.plan, self.policy, self.limits)
        self.now_ms = now_ms
        self.tasks: dict[str, ActionTask] = {}
        self.snapshot: TakeSnapshot | None = None

    def _lines(self) -> list[str]:
        return [self._line(effect) for effect in self.operator.take_effects()]

    def _line(self, effect: Effect) -> str:
        match effect:
            case StartAction(task):
                self.tasks[task.id] = task
                return f"start {task.id}"
            case CancelAction(task):
                return f"cancel {task.id}"
            case EmitRecord(value, task, index):
                headers = "".join(f" {name}={text.decode()}" for name, text in effect.headers)
                return f"emit {task.id}/{index} {value.decode()}{headers}"
            case DeadLetter(record, error):
                return f"dead {record.run_id} {error.type}"
            case ScheduleRetry(task, _, due_ms):
                return f"retry {task.id} attempt {task.attempt} in {due_ms - self.now_ms}"
            case SkipTask(task):
                return f"skip {task.id}"
            case ForwardWatermark(watermark_ms):
                return f"watermark {watermark_ms}"
            case TakeSnapshot():
                self.snapshot = effect
                return "snapshot"
            case FailJob(error):
                return f"fail {error.type}"
            case PauseSource(limit):
                return f"pause {limit}"
            case ResumeSource():
                return "resume"
            case Drained():
                return "drained"

    def record(self, key: str, offset: int, timestamp_ms: int | None = None) -> list[str]:
        record = Record("t", offset, offset + 1, b"{}", None, timestamp_ms)
        return self.apply(RecordReceived(record, msgspec.msgpack.encode(key)))

    def apply(self, received: object) -> list[str]:
        self.operator.apply(received, self.now_ms)  # type: ignore[arg-type]
        return self._lines()

    def complete(self, task: str, **did: object) -> list[str]:
        return self.apply(ActionCompleted(self.tasks[task], **did))  # type: ignore[arg-type]

    def fail(self, task: str, error: ErrorReport = BOOM) -> list[str]:
        return self.apply(ActionFailed(self.tasks[task], error))

    def rows(self) -> dict[Table, list[StoredRow]]:
        rows: dict[Table, list[StoredRow]] = {}
        for table, operator, key, name, value in self.operator.snapshot():
            assert value is not None or table is Table.MEMORY
            if value is not None:
                rows.setdefault(table, []).append(StoredRow(operator, key, name, value))
        return rows

    def restored(self) -> tuple[Bench, list[str]]:
        """Return a new operator with this one's state, and the effects of its restore."""
        other = object.__new__(Bench)
        other.__dict__.update(self.__dict__, tasks={}, operator=Operator(self.plan, self.policy, self.limits))
        other.operator.restore(self.rows(), self.now_ms)
        return other, other._lines()

    def delta(self) -> list[StateWrite]:
        assert self.snapshot is not None
        return [write for piece in self.snapshot.slices for write in piece]


def agent(*actions: tuple[str, str, dict[str, Any]]) -> Agent:
    built = Agent("A")
    for name, trigger, options in actions:
        built.add_action(name, [trigger], nothing, **options)
    return built


def one() -> Agent:
    return agent(("a", INPUT, {}))


def test_run_of_an_idle_key_starts_at_once_and_its_output_leaves_when_the_task_completes() -> None:
    bench = Bench(one())
    assert bench.record("k", 0) == ["start t/0/0:a"]
    assert bench.complete("t/0/0:a", sent=[(None, b"1"), (None, b"2")]) == ["emit t/0/0:a/0 1", "emit t/0/0:a/1 2"]
    assert bench.operator.runs_unfinished == 0


def test_a_key_has_one_run_at_a_time_in_admission_order_and_other_keys_go_on() -> None:
    bench = Bench(one())
    assert bench.record("k", 0) == ["start t/0/0:a"]
    assert bench.record("k", 1) == []
    assert bench.record("other", 2) == ["start t/2/0:a"]
    assert bench.complete("t/0/0:a") == ["start t/1/0:a"]


def test_keys_keep_their_type() -> None:
    bench = Bench(one())
    bench.record("1", 0)
    record = Record("t", 1, 2, b"{}")
    assert bench.apply(RecordReceived(record, msgspec.msgpack.encode(1))) == ["start t/1/0:a"]


def test_tasks_run_one_after_the_other_in_routing_order() -> None:
    bench = Bench(agent(("a", INPUT, {}), ("b", INPUT, {}), ("c", "x", {})))
    assert bench.record("k", 0) == ["start t/0/0:a"]
    assert bench.complete("t/0/0:a", sent=[("x", b"\x80"), ("unknown", b"\x80")]) == ["start t/0/0:b"]
    assert bench.complete("t/0/0:b", sent=[("x", b"\x80")]) == ["start t/0/0:a/0:c"]
    assert bench.complete("t/0/0:a/0:c") == ["start t/0/0:b/0:c"]
    assert bench.complete("t/0/0:b/0:c") == []
    assert bench.operator.runs_unfinished == 0


def test_parallel_tasks_start_together_and_apply_in_routing_order() -> None:
    parallel: dict[str, Any] = {"parallel": True}
    bench = Bench(agent(("a", INPUT, parallel), ("b", INPUT, parallel), ("c", INPUT, {})))
    assert bench.record("k", 0) == ["start t/0/0:a", "start t/0/0:b"]
    assert bench.complete("t/0/0:b", sent=[(None, b"b")]) == []
    assert bench.complete("t/0/0:a", sent=[(None, b"a")]) == ["emit t/0/0:a/0 a", "emit t/0/0:b/0 b", "start t/0/0:c"]


def test_second_parallel_writer_of_a_path_fails_with_memory_conflict_and_its_retry_starts_behind_the_first() -> None:
    parallel = {"parallel": True, "retry": Retry(attempts=2, initial="1s", jitter=0)}
    bench = Bench(agent(("a", INPUT, parallel), ("b", INPUT, parallel)))
    bench.record("k", 0)
    value = encode_value(1, None)
    bench.complete("t/0/0:a", writes={"x": value})
    assert bench.complete("t/0/0:b", writes={"x": value}, sent=[(None, b"b")]) == ["retry t/0/0:b attempt 2 in 1000"]
    bench.now_ms += 1000
    assert bench.apply(TimeAdvanced()) == ["start t/0/0:b"]
    assert bench.complete("t/0/0:b", writes={"x": value}, sent=[(None, b"b")]) == ["emit t/0/0:b/0 b"]


@pytest.mark.parametrize(
    ("first", "second", "conflicts"),
    [
        ({"x": b"\0\1"}, {"x": b"\0\1"}, True),
        ({"x": b"\0\1"}, {"y": b"\0\1"}, False),
        ({"x": b"\0\1"}, {"x.y": b"\0\1"}, True),
        ({"x.y": b"\0\1"}, {"x": None}, True),
        ({"x": encode_object(None), "x.a": b"\0\1"}, {"x": encode_object(None), "x.b": b"\0\1"}, False),
        ({"x": b"\0\1"}, {"xy": b"\0\1"}, False),
    ],
)
def test_paths_conflict_when_one_is_or_holds_the_other(
    first: dict[str, bytes | None], second: dict[str, bytes | None], *, conflicts: bool
) -> None:
    parallel = {"parallel": True, "retry": Retry(attempts=1), "on_error": "skip"}
    bench = Bench(agent(("a", INPUT, parallel), ("b", INPUT, parallel)))
    bench.record("k", 0)
    bench.complete("t/0/0:a", writes=first)
    assert bench.complete("t/0/0:b", writes=second) == (["skip t/0/0:b"] if conflicts else [])


def test_failed_action_waits_without_blocking_others_and_ends_in_the_dead_letters() -> None:
    bench = Bench(agent(("a", INPUT, {"retry": Retry(attempts=2, initial="1s", jitter=0)}), ("b", INPUT, {})))
    bench.record("k", 0)
    assert bench.fail("t/0/0:a") == ["retry t/0/0:a attempt 2 in 1000"]
    assert bench.operator.next_due_ms == bench.now_ms + 1000
    assert bench.record("other", 1) == ["start t/1/0:a"]
    bench.now_ms += 1000
    assert bench.apply(TimeAdvanced()) == ["start t/0/0:a"]
    assert bench.fail("t/0/0:a") == ["dead t/0 KeyError"]
    assert bench.operator.runs_unfinished == 1


def test_skip_drops_the_task_and_the_run_goes_on() -> None:
    bench = Bench(agent(("a", INPUT, {"retry": Retry(attempts=1), "on_error": "skip"}), ("b", INPUT, {})))
    bench.record("k", 0)
    assert bench.fail("t/0/0:a") == ["skip t/0/0:a", "start t/0/0:b"]


def test_without_a_dead_letter_sink_the_job_fails() -> None:
    bench = Bench(agent(("a", INPUT, {"retry": Retry(attempts=1)})), has_dead_letters=False)
    bench.record("k", 0)
    assert bench.fail("t/0/0:a") == ["fail KeyError"]
    rejected = RecordRejected(Record("t", 1, 2, b"?"), ErrorReport("DecodeError", "no"))
    assert bench.apply(rejected) == ["fail DecodeError"]


def test_error_that_a_retry_cannot_help_is_not_retried() -> None:
    bench = Bench(one())
    bench.record("k", 0)
    assert bench.fail("t/0/0:a", ErrorReport("DecodeError", "no", is_retryable=False)) == ["dead t/0 DecodeError"]


def test_dead_member_of_a_group_cancels_those_behind_it_and_keeps_those_before_it() -> None:
    parallel = {"parallel": True, "retry": Retry(attempts=1)}
    bench = Bench(agent(("a", INPUT, parallel), ("b", INPUT, parallel), ("c", INPUT, parallel)))
    bench.record("k", 0)
    assert bench.fail("t/0/0:b") == ["cancel t/0/0:c"]
    assert bench.complete("t/0/0:c") == []
    assert bench.complete("t/0/0:a", sent=[(None, b"a")]) == ["emit t/0/0:a/0 a", "dead t/0 KeyError"]
    assert bench.operator.runs_unfinished == 0


def test_watermark_waits_for_the_runs_before_it_and_not_for_those_behind_it() -> None:
    bench = Bench(one())
    bench.record("k", 0, 5)
    assert bench.apply(WatermarkReceived(10)) == []
    bench.record("other", 1, 15)
    assert bench.complete("t/1/0:a") == []
    assert bench.complete("t/0/0:a") == ["watermark 10"]
    assert bench.apply(WatermarkReceived(9)) == []


def test_key_that_waits_for_a_retry_does_not_hold_the_watermark() -> None:
    bench = Bench(one())
    bench.record("k", 0, 5)
    bench.record("k", 1, 6)
    bench.apply(WatermarkReceived(10))
    lines = bench.fail("t/0/0:a")
    assert lines[1:] == ["watermark 10"]
    bench.now_ms += 60_000
    assert bench.apply(TimeAdvanced()) == ["start t/0/0:a"]
    assert bench.apply(WatermarkReceived(20)) == []
    assert bench.complete("t/0/0:a") == ["start t/1/0:a", "watermark 20"]  # what waited behind it is late with it


def test_event_time_timer_fires_before_its_watermark_leaves_and_holds_it() -> None:
    bench = Bench(agent(("a", INPUT, {}), ("late", "_timer_event", {})))
    bench.record("k", 0, 5)
    bench.complete("t/0/0:a", timers=[TimerOrder("n", 8, is_event_time=True)])
    assert bench.apply(WatermarkReceived(10)) == ["start t/0/0:a@n/8/0:late"]
    assert bench.complete("t/0/0:a@n/8/0:late") == ["watermark 10"]


def test_processing_time_timer_fires_when_due_and_a_replaced_or_cancelled_one_does_not() -> None:
    bench = Bench(agent(("a", INPUT, {}), ("late", "_timer_event", {})))
    bench.record("k", 0)
    orders = [TimerOrder("n", 2000), TimerOrder("n", 3000), TimerOrder("gone", 1500), TimerOrder("gone", None)]
    bench.complete("t/0/0:a", timers=orders)
    assert bench.operator.next_due_ms == 3000
    bench.now_ms = 3000
    assert bench.apply(TimeAdvanced()) == ["start t/0/0:a@n/3000/0:late"]


def test_source_is_paused_at_the_limit_and_resumed_below_it() -> None:
    bench = Bench(one(), limits=OperatorLimits(in_flight_max=2))
    bench.record("k", 0)
    assert bench.record("other", 1) == ["start t/1/0:a", "pause run.in-flight-max"]
    assert bench.complete("t/0/0:a") == ["resume"]


def test_inputs_above_key_pending_max_are_dead_lettered_by_policy() -> None:
    bench = Bench(one(), limits=OperatorLimits(key_pending_max=1, is_overflow_dead=True))
    bench.record("k", 0)
    assert bench.record("k", 1) == []
    assert bench.record("k", 2) == ["dead t/2 KeyOverflow"]
    assert bench.complete("t/0/0:a") == ["start t/1/0:a"]
    assert bench.record("k", 3) == []


def test_endless_cycle_of_events_ends_at_tasks_max() -> None:
    bench = Bench(agent(("a", INPUT, {}), ("again", "x", {})), limits=OperatorLimits(tasks_max=2))
    bench.record("k", 0)
    bench.complete("t/0/0:a", sent=[("x", b"\x80")])
    assert bench.complete("t/0/0:a/0:again", sent=[("x", b"\x80")]) == ["dead t/0 RunLimitExceeded"]


def test_drained_comes_when_the_last_run_has_ended() -> None:
    bench = Bench(one())
    bench.record("k", 0)
    assert bench.apply(DrainRequested()) == []
    assert bench.complete("t/0/0:a") == ["drained"]


def timer_bench() -> Bench:
    """Return an operator with an input, and an unconditional action on timers."""
    bench = Bench(agent(("a", INPUT, {}), ("late", "_timer_event", {})))
    bench.record("k", 0)
    return bench


def test_drained_waits_for_timers_of_processing_time_and_for_their_runs_and_for_those_that_they_set() -> None:
    bench = timer_bench()
    bench.record("k2", 1)
    bench.complete("t/0/0:a", timers=[TimerOrder("n", 1500), TimerOrder("cancelled", 9000)])
    assert bench.apply(DrainRequested()) == []
    assert bench.complete("t/1/0:a", timers=[TimerOrder("n", 1600)]) == [], "set by a run that was in flight then"
    bench.now_ms = 1500
    assert bench.apply(TimeAdvanced()) == ["start t/0/0:a@n/1500/0:late"]
    orders = [TimerOrder("m", 2000), TimerOrder("cancelled", None)]
    assert bench.complete("t/0/0:a@n/1500/0:late", timers=orders) == []
    bench.now_ms = 2000
    bench.apply(TimeAdvanced())
    assert bench.complete("t/1/0:a@n/1600/0:late") == []
    assert bench.complete("t/0/0:a@n/1500/0:late@m/2000/0:late") == ["drained"]


def test_drained_does_not_wait_for_timers_where_the_job_is_stopped() -> None:
    bench = timer_bench()
    bench.complete("t/0/0:a", timers=[TimerOrder("n", 1500)])
    assert bench.apply(DrainRequested()) == []
    assert bench.apply(DrainRequested(awaits_all=False)) == ["drained"]
    assert bench.operator.timers_pending == 1


def test_of_timers_that_set_each_other_again_each_is_waited_for_once() -> None:
    bench = timer_bench()
    bench.complete("t/0/0:a", timers=[TimerOrder("n", 1100)])
    bench.now_ms = 1100
    bench.apply(TimeAdvanced())
    bench.complete("t/0/0:a@n/1100/0:late", timers=[TimerOrder("n", 1200)])
    bench.apply(DrainRequested())
    bench.now_ms, second = 1200, "t/0/0:a@n/1100/0:late@n/1200/0:late"
    assert bench.apply(TimeAdvanced()) == [f"start {second}"], "it fired before, but not since the input ended"
    assert bench.complete(second, timers=[TimerOrder("m", 1300)]) == []
    bench.now_ms = 1300
    bench.apply(TimeAdvanced())
    assert bench.complete(f"{second}@m/1300/0:late", timers=[TimerOrder("n", 1400)]) == ["drained"]
    assert bench.operator.timers_pending == 1


def test_a_timer_of_the_same_name_that_another_input_sets_behind_it_is_waited_for_too() -> None:
    bench = timer_bench()
    bench.complete("t/0/0:a", timers=[TimerOrder("n", 1100)])
    bench.record("k", 1)
    bench.apply(DrainRequested())
    bench.now_ms = 1100
    assert bench.apply(TimeAdvanced()) == [], "it waits behind the input"
    assert bench.complete("t/1/0:a", timers=[TimerOrder("n", 1200)]) == ["start t/0/0:a@n/1100/0:late"]
    assert bench.complete("t/0/0:a@n/1100/0:late") == []
    bench.now_ms = 1200
    bench.apply(TimeAdvanced())
    assert bench.complete("t/1/0:a@n/1200/0:late") == ["drained"]


def test_drained_comes_behind_the_runs_of_all_timers_that_fire_together() -> None:
    bench = Bench(agent(("a", INPUT, {}), ("late", "type == '_timer_event' && attributes.n == 2", {})))
    bench.record("k", 0)
    orders = [
        TimerOrder(name, 1100, False, msgspec.msgpack.encode({"n": n})) for n, name in enumerate(("x", "y", "wanted"))
    ]
    bench.complete("t/0/0:a", timers=orders)
    bench.apply(DrainRequested())
    bench.now_ms = 1100
    assert bench.apply(TimeAdvanced()) == ["start t/0/0:a@wanted/1100/0:late"]
    assert bench.complete("t/0/0:a@wanted/1100/0:late") == ["drained"]


def test_drained_comes_behind_the_event_time_timers_of_the_last_run() -> None:
    bench = timer_bench()
    bench.apply(WatermarkReceived(2**63 - 1))
    bench.apply(DrainRequested())
    orders = [TimerOrder("n", 8, is_event_time=True)]
    assert bench.complete("t/0/0:a", timers=orders) == ["start t/0/0:a@n/8/0:late"]
    assert bench.complete("t/0/0:a@n/8/0:late") == [f"watermark {2**63 - 1}", "drained"]


def test_delta_is_the_state_at_the_barrier_whatever_happens_before_it_is_read() -> None:
    bench = Bench(agent(("a", INPUT, {}), ("b", "x", {})))
    bench.record("k", 0)
    bench.complete("t/0/0:a", writes={"n": encode_value(1, None)}, sent=[("x", b"\x80")])
    before = bench.operator.snapshot()
    assert bench.apply(BarrierReceived(1, {"t": 1})) == ["snapshot"]
    bench.complete("t/0/0:a/0:b", writes={"n": encode_value(2, None)})
    bench.record("k2", 1)
    delta = [write for write in bench.delta() if write[3] != "positions"]
    assert sorted(delta, key=lambda write: write[:4]) == before
    bench.apply(CheckpointCompleted(1))
    bench.apply(BarrierReceived(2, {"t": 2}))
    second = bench.delta()
    assert (Table.RUNS, 0, b"\xa1k", "t/0", None) in second
    assert (Table.MEMORY, 0, b"\xa1k", "n", encode_value(2, None)) in second


def test_epoch_without_changes_is_empty() -> None:
    bench = Bench(one())
    bench.apply(BarrierReceived(1, {"t": 0}))
    bench.apply(CheckpointCompleted(1))
    bench.apply(BarrierReceived(2, {"t": 0}))
    assert bench.snapshot is not None
    assert bench.snapshot.is_empty


def scripts() -> dict[str, Callable[[Bench], None]]:
    def running(bench: Bench) -> None:
        bench.record("k", 0, 5)
        bench.record("k", 1, 6)
        bench.apply(WatermarkReceived(10))
        bench.record("other", 2, 11)

    def waiting(bench: Bench) -> None:
        running(bench)
        bench.fail("t/0/0:a")

    def in_group(bench: Bench) -> None:
        running(bench)
        bench.complete(
            "t/0/0:a", sent=[("p", b"\x80")], timers=[TimerOrder("n", 9000), TimerOrder("e", 50, is_event_time=True)]
        )
        bench.complete(
            "t/0/0:a/0:p2",
            sent=[(None, b"1")],
            headers={0: (("name", b"value"),)},
            writes={"x": encode_value(1, None)},
            sensory={"s": encode_value("s", None)},
        )

    return {"running": running, "waiting": waiting, "group": in_group}


def test_what_an_ended_member_of_a_group_sends_survives_a_restore_with_its_headers() -> None:
    parallel: dict[str, Any] = {"parallel": True}
    bench = Bench(agent(("a", INPUT, {}), ("p1", "p", parallel), ("p2", "p", parallel)))
    scripts()["group"](bench)
    other, _ = bench.restored()
    assert other.complete("t/0/0:a/0:p1")[0] == "emit t/0/0:a/0:p2/0 1 name=value"


@pytest.mark.parametrize("script", scripts())
def test_restored_operator_has_the_same_state_and_starts_what_was_running(script: str) -> None:
    parallel: dict[str, Any] = {"parallel": True}
    bench = Bench(agent(("a", INPUT, {}), ("p1", "p", parallel), ("p2", "p", parallel)))
    scripts()[script](bench)
    other, lines = bench.restored()
    expected = [write for write in bench.operator.snapshot() if write[0] is not Table.MEMORY]
    assert other.operator.snapshot() == expected
    started = {
        "running": ["start t/0/0:a", "start t/2/0:a"],
        "waiting": ["start t/2/0:a"],
        "group": ["start t/0/0:a/0:p1", "start t/2/0:a"],
    }
    assert lines == started[script]
    again, _ = other.restored()
    assert again.operator.snapshot() == expected


def test_operator_refuses_everything_after_an_internal_error() -> None:
    bench = Bench(one())
    with pytest.raises(InternalError, match="failed at str"):
        bench.apply("not an input")
    with pytest.raises(InternalError, match="poisoned"):
        bench.record("k", 0)

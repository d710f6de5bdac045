"""The cache of keys: bounded in bytes of values, and never without what keyed state does not have."""

import msgspec
import pytest

from agentflow.api.agent import Agent
from agentflow.core import keys
from agentflow.core.effects import StartAction, TakeSnapshot
from agentflow.core.failures import FailurePolicy
from agentflow.core.inputs import ActionCompleted, BarrierReceived, CheckpointCompleted, RecordReceived, TimeAdvanced
from agentflow.core.keys import KeyTable
from agentflow.core.limits import OperatorLimits
from agentflow.core.operator import Operator
from agentflow.core.records import Record
from agentflow.core.runs import KeyState
from agentflow.plan.plan import AgentPlan

VALUE = b"v" * 10_000
EPOCH_KEYS = 15_000
CALL_KEYS = keys._PASSED_PER_CALL_MAX  # so many keys a call passes; an epoch here has several times as many


def filled(table: KeyTable, keys: range, ended_in: int) -> None:
    """Let runs of some keys read one value each, and end."""
    for n in keys:
        state = table.states.setdefault(b"%d" % n, KeyState(b"%d" % n, {}))
        if not state.memory:
            state.memory["path"] = VALUE
            table.grow(state, [VALUE])
        state.ended_in = ended_in


def pass_twice(table: KeyTable, completed: int) -> None:
    """Let the hand pass every key twice: once to see that it is not used, once to evict it."""
    table.evict(completed)
    table.evict(completed)


def test_values_count_not_only_keys():
    table = KeyTable(1_000_000)
    filled(table, range(1_000), ended_in=1)
    pass_twice(table, completed=1)
    assert 80 <= len(table.states) <= 100  # of 10 kB and what a key costs


def test_a_cache_that_is_large_enough_keeps_everything():
    table = KeyTable(12_000_000)
    filled(table, range(1_000), ended_in=1)
    pass_twice(table, completed=1)
    assert len(table.states) == 1_000


@pytest.mark.parametrize("others", [0, 1, 100])
def test_a_value_that_is_written_again_and_again_counts_once(others):
    table = KeyTable(4_000_000)
    filled(table, range(100), ended_in=1)
    for state in table.states.values():
        state.memory |= {f"other{n}": b"" for n in range(others)}
    for _ in range(50):
        table.note_written([(state, {"path": VALUE}) for state in table.states.values()])
        pass_twice(table, completed=1)
    assert len(table.states) == 100


@pytest.mark.parametrize("cache_bytes", [0, 1_000_000])
def test_a_key_whose_last_run_is_in_no_completed_checkpoint_stays(cache_bytes):
    table = KeyTable(cache_bytes)
    filled(table, range(1_000), ended_in=1)
    filled(table, range(300), ended_in=2)
    pass_twice(table, completed=1)
    assert set(table.states) == {b"%d" % n for n in range(300)}


def test_keys_that_are_used_meanwhile_stay_and_the_others_go():
    table = KeyTable(3_000_000)
    filled(table, range(400), ended_in=1)
    table.evict(1)
    filled(table, range(200), ended_in=2)
    table.evict(2)
    assert set(range(200)) <= {int(key) for key in table.states}
    assert 200 <= len(table.states) < 300


class Epochs:
    """One operator whose inputs all have new keys, and whose checkpoints complete before the next barrier."""

    def __init__(self, cache_bytes: int, writes: dict[str, bytes | None], reads: bytes | None = None) -> None:
        plan = AgentPlan.from_agent(Agent("A").add_action("a", ["_input_event"], lambda event, ctx: None))
        self.operator = Operator(plan, FailurePolicy("job", "A", True), OperatorLimits(cache_bytes=cache_bytes))
        self.held = self.operator.keys.states
        self.number = self.records = self.seen_max = self.calls = 0
        self._writes = writes
        self._reads = reads

    def admit(self, count: int) -> None:
        """Let runs of new keys begin and end."""
        for _ in range(count):
            record = Record("t", self.records, self.records + 1, b"{}")
            self.apply(RecordReceived(record, msgspec.msgpack.encode(self.records)))
            self.records += 1

    def apply(self, received: object) -> None:
        self.operator.apply(received, 1_000)  # type: ignore[arg-type]
        for effect in self.operator.take_effects():
            if isinstance(effect, StartAction):
                state = effect.task.run.state
                if self._reads is not None and not state.is_loaded:
                    state.is_loaded, state.memory["read"] = True, self._reads
                    self.operator.keys.grow(state, [self._reads])
                self.operator.apply(ActionCompleted(effect.task, writes=self._writes), 1_000)
            elif isinstance(effect, TakeSnapshot):
                self.snapshot = effect
        self.seen_max = max(self.seen_max, len(self.held))

    def checkpoint(self, while_written: int = 0) -> None:
        """Take one and complete it, then let time go on as long as it is due at once."""
        self.number += 1
        self.apply(BarrierReceived(self.number))
        self.admit(while_written)
        for _ in self.snapshot.slices:
            self.seen_max = max(self.seen_max, len(self.held))
        before = len(self.held)
        self.apply(CheckpointCompleted(self.number))
        assert before - len(self.held) <= CALL_KEYS
        while self.operator.next_due_ms is not None:
            before = len(self.held)
            self.apply(TimeAdvanced())
            self.calls += 1
            assert before - len(self.held) <= CALL_KEYS, "a call has to be short"


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_of_new_keys_without_memory_only_the_cache_and_the_open_epoch_stay_however_many_come(cache_bytes):
    epochs = Epochs(cache_bytes, writes={})
    for _ in range(5):
        epochs.admit(EPOCH_KEYS)
        epochs.checkpoint(while_written=500)
        assert len(epochs.held) <= 500 + cache_bytes // 600
    assert epochs.seen_max <= EPOCH_KEYS + 1_000 + cache_bytes // 600


@pytest.mark.parametrize(("writes", "reads"), [({"path": b"1"}, None), ({}, b"1")])
def test_of_new_keys_with_memory_one_epoch_more_stays(writes, reads):
    epochs = Epochs(2**20, writes, reads)
    for _ in range(6):
        epochs.admit(EPOCH_KEYS)
        epochs.checkpoint(while_written=500)
        assert len(epochs.held) <= EPOCH_KEYS + 1_000 + 2**20 // 600
    assert epochs.seen_max <= 2 * EPOCH_KEYS + 2_000 + 2**20 // 600


def test_keys_that_are_all_busy_are_passed_once_behind_a_checkpoint_and_no_time_is_due_then():
    table = KeyTable(0)
    filled(table, range(5 * CALL_KEYS), ended_in=2)
    table.go_round(1)
    calls = 1
    while table.next_due_ms is not None:
        table.go_on(1)
        calls += 1
    assert calls == 5
    assert len(table.states) == 5 * CALL_KEYS


def test_no_time_is_due_when_the_cache_is_small_enough():
    table = KeyTable(3 * CALL_KEYS * 600)
    for n in range(4 * CALL_KEYS):
        table.states[b"%d" % n] = KeyState(b"%d" % n, {})
    table.go_round(0)
    assert table.next_due_ms is None
    assert len(table.states) == 3 * CALL_KEYS
    table.go_on(0)
    assert len(table.states) == 3 * CALL_KEYS


def test_a_key_of_which_nothing_is_cached_goes_before_one_that_was_read():
    table = KeyTable(100 * 600)
    for n in range(200):
        state = table.states[b"%d" % n] = KeyState(b"%d" % n, {})
        state.is_loaded = n < 100
        state.ended_in = 1
    table.go_round(1)
    assert set(table.states) == {b"%d" % n for n in range(100)}


def test_a_key_that_left_the_table_comes_back_as_a_new_one():
    epochs = Epochs(0, writes={})
    epochs.admit(CALL_KEYS)
    epochs.checkpoint()
    assert not epochs.held
    epochs.records = 0
    epochs.admit(1)
    assert [state.next_number for state in epochs.held.values()] == [1]

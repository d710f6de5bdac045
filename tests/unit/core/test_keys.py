"""The cache of keys: bounded in bytes of values, and never without what keyed state does not have."""

import pytest

from agentflow.core.keys import KeyTable
from agentflow.core.runs import KeyState

VALUE = b"v" * 10_000


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

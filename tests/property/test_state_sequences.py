"""Random histories of checkpoints and crashes on both keyed states, against a plain dict."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentflow.core.delta import StateWrite, Table
from agentflow.runtime.ports import Prepared, Staged
from agentflow.state.layout import end_of_prefix, key_prefix, seal, split_storage_key, storage_key, unseal
from agentflow.state.memory import MemoryKeyedState, MemoryStorage
from agentflow.state.rocksdb import RocksDBKeyedState
from agentflow.testing.conformance.keyed_state import laid_over, read_all, run_for

keys = st.sampled_from([b"", b"\x00", b"\xff", b"a", b"a\x00", b"a\x00b"]) | st.binary(max_size=4)
names = st.sampled_from(["", "a", "a.b", "\x00"]) | st.text(max_size=3)
values = (
    st.none()
    | st.binary(max_size=6)
    | st.integers(524_287, 1_600_000).map(lambda length: b"%d" % length * (length // 6))
)
writes = st.tuples(st.sampled_from(Table), st.integers(0, 2), keys, names, values)
slices = st.lists(st.lists(writes, max_size=6), max_size=4)


class Step(NamedTuple):
    """One checkpoint; a number of turns is where a crash comes, None is none."""

    slices: list[list[StateWrite]]
    prepare_turns: int | None
    complete_turns: int | None
    kept: int  # unsynced writes that a power loss keeps (memory only)


turns = st.none() | st.integers(0, 9)
histories = st.lists(st.builds(Step, slices, turns, turns, st.integers(0, 9)), min_size=1, max_size=5)
STAGED = {"sink": Staged(("part",), (b"output",))}
FOR_EVER = 10**9


class OnDisk:
    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self):
        return RocksDBKeyedState.open(self.path, job="property", free_min_bytes=0)

    def crash(self, state, kept):
        state.close()


class InMemory:
    def __init__(self, path: Path) -> None:
        self.storage = MemoryStorage()

    def open(self):
        return MemoryKeyedState(self.storage)

    def crash(self, state, kept):
        state.close()
        self.storage.lose_unsynced(kept=kept)


async def finish_or_crash(work, turns):
    if turns is None:
        await work
        return True
    return await run_for(work, turns)


async def replay(place, history):
    rows = {}
    state = place.open()
    for step in history:
        number = state.checkpoint + 1
        after = laid_over(rows, step.slices)
        is_prepared = await finish_or_crash(state.prepare(number, iter(step.slices), STAGED), step.prepare_turns)
        if not is_prepared:
            place.crash(state, step.kept)
            state = place.open()
        assert read_all(state) == rows
        assert state.checkpoint == number - 1
        if state.prepared is None:
            assert not is_prepared
            continue
        assert state.prepared == Prepared(number, STAGED)
        if not await finish_or_crash(state.complete(), step.complete_turns):
            place.crash(state, step.kept)
            state = place.open()
            assert state.checkpoint == number or state.prepared == Prepared(number, STAGED)
            await state.complete()
        rows = after
        assert (state.checkpoint, state.prepared) == (number, None)
        assert read_all(state) == rows
    place.crash(state, 0)
    with contextlib.closing(place.open()) as state:
        assert read_all(state) == rows
        for table, operator, key, name in rows:
            if table is Table.MEMORY:
                assert (name, state.get(operator, key, name)) in state.scan(operator, key, name)


@pytest.mark.parametrize("place", [OnDisk, InMemory])
@settings(max_examples=30, deadline=None)
@given(history=histories)
def test_every_history_ends_in_the_rows_of_the_decided_checkpoints(place, history):
    with tempfile.TemporaryDirectory() as path:
        asyncio.run(replay(place(Path(path) / "state"), history))


@given(operator=st.integers(0, 65_535), key=st.binary(), name=st.text())
def test_a_storage_key_gives_back_what_it_was_made_of(operator, key, name):
    assert split_storage_key(storage_key(operator, key, name)) == (operator, key, name)


@given(rows=st.lists(st.tuples(st.integers(0, 65_535), keys | st.binary(), names | st.text()), max_size=20))
def test_storage_keys_sort_as_operator_key_and_name(rows):
    by_parts = sorted(rows, key=lambda row: (row[0], row[1], row[2].encode()))
    assert sorted(rows, key=lambda row: storage_key(*row)) == by_parts


@given(key=keys | st.binary(), other=keys | st.binary(), name=st.text())
def test_the_range_of_a_key_holds_its_rows_and_no_others(key, other, name):
    start = key_prefix(7, key)
    end = end_of_prefix(start)
    assert end is not None
    assert (start <= storage_key(7, other, name) < end) == (key == other)


@given(prefix=st.binary(), other=st.binary())
def test_the_end_of_a_prefix_is_behind_exactly_its_keys(prefix, other):
    end = end_of_prefix(prefix)
    assert (prefix <= other and (end is None or other < end)) == other.startswith(prefix)


@given(body=st.binary(min_size=1), position=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_breaks_the_seal(body, position, bit):
    row = bytearray(seal(body))
    assert unseal(bytes(row)) == body
    row[position % len(row)] ^= 1 << bit
    with pytest.raises(ValueError):
        unseal(bytes(row))

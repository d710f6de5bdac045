"""Both keyed states obey the laws of the port."""

from __future__ import annotations

import contextlib

import pytest

from agentflow.state.memory import MemoryKeyedState, MemoryStorage
from agentflow.state.rocksdb import RocksDBKeyedState
from agentflow.testing.conformance.keyed_state import (
    NEW,
    OLD,
    STAGED,
    KeyedStateConformance,
    checkpoint,
    laid_over,
    read_all,
    run_for,
)


class TestRocksDBKeyedState(KeyedStateConformance):
    @pytest.fixture(params=["state", "zustand ü 日本 \U0001f600"])
    def open_state(self, request, tmp_path):
        return lambda: RocksDBKeyedState.open(tmp_path / "deep" / request.param, job="contract", free_min_bytes=0)


class TestMemoryKeyedState(KeyedStateConformance):
    @pytest.fixture
    def open_state(self):
        storage = MemoryStorage()
        return lambda: MemoryKeyedState(storage)


class TestMemoryKeyedStateWithPowerLoss(KeyedStateConformance):
    """Crashes take everything that is not synced."""

    @pytest.fixture
    def open_state(self):
        self.storage = MemoryStorage()
        return lambda: MemoryKeyedState(self.storage)

    def crash(self, state):
        state.close()
        self.storage.lose_unsynced()


class TestPowerLoss:
    """A power loss may keep any beginning of what was not synced."""

    @pytest.mark.parametrize("kept", range(12))
    @pytest.mark.parametrize("turns", range(1, 8))
    async def test_any_beginning_of_the_unsynced_writes_is_a_valid_crash(self, kept, turns):
        storage = MemoryStorage()
        with contextlib.closing(MemoryKeyedState(storage)) as state:
            await checkpoint(state, 1, *OLD)
            await state.prepare(2, iter(NEW), STAGED)
            await run_for(state.complete(), turns)
        storage.lose_unsynced(kept=kept)
        with contextlib.closing(MemoryKeyedState(storage)) as state:
            await state.complete()
            assert state.checkpoint == 2
            assert read_all(state) == laid_over(laid_over({}, OLD), NEW)

    async def test_an_unsynced_decision_is_lost_with_the_power(self):
        storage = MemoryStorage()
        with contextlib.closing(MemoryKeyedState(storage)) as state:
            await checkpoint(state, 1, *OLD)
            await run_for(state.prepare(2, iter(NEW), STAGED), len(NEW) + 1)
            assert storage.unsynced == 1
            assert state.prepared is not None
        storage.lose_unsynced()
        with contextlib.closing(MemoryKeyedState(storage)) as state:
            assert (state.checkpoint, state.prepared) == (1, None)
            assert read_all(state) == laid_over({}, OLD)

"""Both keyed states obey the laws of the port."""

from __future__ import annotations

import contextlib
import shutil

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
from agentflow.testing.faults import FaultyState, FaultyStorage, Fuse


class TestRocksDBKeyedState(KeyedStateConformance):
    @pytest.fixture(params=["state", "zustand ü 日本 \U0001f600"])
    def open_state(self, request, tmp_path):
        return lambda: RocksDBKeyedState.open(tmp_path / "deep" / request.param, job="contract", free_min_bytes=0)


class TestMemoryKeyedState(KeyedStateConformance):
    @pytest.fixture
    def open_state(self):
        storage = MemoryStorage()
        return lambda: MemoryKeyedState(storage)


class TestFaultyState(KeyedStateConformance):
    @pytest.fixture
    def open_state(self):
        fuse = Fuse()
        storage = FaultyStorage(fuse)
        return lambda: FaultyState(storage, fuse)


class TestMemoryKeyedStateWithPowerLoss(KeyedStateConformance):
    """Crashes take everything that is not synced."""

    @pytest.fixture
    def open_state(self):
        self.storage = MemoryStorage()
        return lambda: MemoryKeyedState(self.storage)

    def crash(self, state):
        state.close()
        self.storage.lose_unsynced()


class TestRecoveredDecision:
    """Recovery acts upon a decision that it finds, so no power loss behind it may take the decision back."""

    @pytest.mark.parametrize("turns", range(1, 6))
    async def test_what_an_opened_state_in_memory_shows_survives_a_power_loss(self, turns):
        storage = MemoryStorage()
        with contextlib.closing(MemoryKeyedState(storage)) as state:
            await run_for(state.prepare(1, iter(OLD), STAGED), turns)
        with contextlib.closing(MemoryKeyedState(storage)) as state:
            shown = state.prepared
        storage.lose_unsynced()
        with contextlib.closing(MemoryKeyedState(storage)) as state:
            assert state.prepared == shown

    async def test_what_an_opened_rocksdb_shows_is_in_its_synced_table_files(self, tmp_path):
        """The log may hold writes that are not synced; what it held is in table files once the state is open."""
        with contextlib.closing(RocksDBKeyedState.open(tmp_path / "s", job="j", free_min_bytes=0)) as state:
            await run_for(state.prepare(1, iter(OLD), STAGED), 6)  # the decision is written, and perhaps not synced
        with contextlib.closing(RocksDBKeyedState.open(tmp_path / "s", job="j", free_min_bytes=0)) as state:
            assert state.prepared is not None
            shutil.copytree(tmp_path / "s", tmp_path / "without log", ignore=shutil.ignore_patterns("*.log", "*.lock"))
        with contextlib.closing(RocksDBKeyedState.open(tmp_path / "without log", job="j", free_min_bytes=0)) as state:
            assert state.prepared is not None
            await state.complete()
            assert read_all(state) == laid_over({}, OLD)


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

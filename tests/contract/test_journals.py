"""Both journals obey the laws of the port."""

from __future__ import annotations

import pytest

from agentflow.state.memory import MemoryKeyedState, MemoryStorage
from agentflow.state.rocksdb import RocksDBKeyedState
from agentflow.testing.conformance.journal import JournalConformance


class TestRocksDBJournal(JournalConformance):
    @pytest.fixture
    def open_state(self, tmp_path):
        return lambda: RocksDBKeyedState.open(tmp_path / "state", job="contract", free_min_bytes=0)


class TestMemoryJournal(JournalConformance):
    @pytest.fixture
    def open_state(self):
        storage = MemoryStorage()
        return lambda: MemoryKeyedState(storage)

    def crash(self, state):
        state.close()
        state._storage.lose_unsynced()

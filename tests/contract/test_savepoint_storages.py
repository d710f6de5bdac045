"""Every storage of savepoints obeys the laws of the port."""

from __future__ import annotations

import pytest

from agentflow.state.savepoint_storage import DirectoryStorage
from agentflow.testing.conformance.savepoint_storage import SavepointStorageConformance


class TestDirectoryStorage(SavepointStorageConformance):
    @pytest.fixture(params=["backups", "deep/zustand ü 日本"])
    def storage(self, request, tmp_path):
        return DirectoryStorage(tmp_path / request.param)

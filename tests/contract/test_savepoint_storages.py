"""Every storage of savepoints obeys the laws of the port."""

from __future__ import annotations

import pytest

from agentflow.environment.savepoint_objects import ObjectStorage
from agentflow.state.savepoint_storage import DirectoryStorage
from agentflow.testing.conformance.savepoint_storage import SavepointStorageConformance


class TestDirectoryStorage(SavepointStorageConformance):
    @pytest.fixture(params=["backups", "deep/zustand ü 日本"])
    def storage(self, request, tmp_path):
        return DirectoryStorage(tmp_path / request.param)


class TestObjectStorage(SavepointStorageConformance):
    @pytest.fixture(params=["", "/backups/zustand ü 日本"])
    def storage(self, request, s3):
        return ObjectStorage(f"{s3.new_bucket()}{request.param}", s3.settings)

"""Every store of files obeys the same laws."""

from __future__ import annotations

import uuid

import pytest

from agentflow.connectors.directory_store import DirectoryStore
from agentflow.connectors.object_store import ObjectStore
from agentflow.testing.conformance.file_store import FileStoreConformance


class TestDirectoryStore(FileStoreConformance):
    @pytest.fixture
    def new_store(self, tmp_path):
        return lambda: DirectoryStore(str(tmp_path / "deep" / "files"))


class TestMemoryStore(FileStoreConformance):
    @pytest.fixture
    def new_store(self):
        url = f"memory://{uuid.uuid4().hex}/prefix"
        return lambda: ObjectStore(url)


class TestS3Store(FileStoreConformance):
    @pytest.fixture(params=["", "/deep/prefix"], ids=["bucket", "prefix"])
    def new_store(self, s3, request):
        url = s3.new_bucket() + request.param
        return lambda: s3.store(url)

"""Every sink obeys the laws of the port."""

from __future__ import annotations

import asyncio
import io
import random

import msgspec
import pytest

from agentflow import idempotent
from agentflow.connectors.collections import CollectionSink
from agentflow.connectors.function_sink import FunctionSink
from agentflow.connectors.standard_streams import StdoutSink
from agentflow.connectors.tables import TableSink
from agentflow.observability.logs import DeadLetterLog
from agentflow.testing.conformance.sink import SinkConformance
from agentflow.testing.faults import FaultySink, Fuse, SinkDirectory
from tests.unit.connectors.part_kinds import KINDS


class TestCollectionSink(SinkConformance):
    @pytest.fixture
    def place(self):
        return CollectionSink()

    @pytest.fixture
    def new_sink(self, place):
        return lambda: place

    @pytest.fixture
    def read_visible(self, place):
        return lambda: [msgspec.json.encode(value) for value in place.values]


@pytest.mark.parametrize("schema", [None, {"value": "json"}], ids=["any", "declared"])
class TestTableSink(SinkConformance):
    @pytest.fixture
    def place(self, schema):
        return TableSink(schema)

    @pytest.fixture
    def new_sink(self, place):
        return lambda: place

    @pytest.fixture
    def read_visible(self, place, schema):
        def read():
            values = place.result.table["value"].to_pylist() if len(place.result) else []
            return [value.encode() if schema else msgspec.json.encode(value) for value in values]

        return read


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
class TestPartFileSinks(SinkConformance):
    @pytest.fixture
    def new_sink(self, kind, tmp_path):
        return lambda: kind.new_sink(str(tmp_path / "deep" / "out"))

    @pytest.fixture
    def read_visible(self, kind, tmp_path):
        def read():
            files = sorted((tmp_path / "deep" / "out").glob("[!._]*"))
            return [msgspec.json.encode(row) for file in files for row in kind.rows(file.read_bytes())]

        return read


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
class TestPartFileSinksInAnObjectStore(SinkConformance):
    @pytest.fixture
    def url(self, s3):
        return f"{s3.new_bucket()}/deep/out"

    @pytest.fixture
    def new_sink(self, kind, s3, url):
        return lambda: kind.new_sink(url, store=s3.settings)

    @pytest.fixture
    def read_visible(self, kind, s3, url):
        def read():
            store = s3.store(url)
            readers = [store.open(file.name) for file in store.find()]
            return [msgspec.json.encode(row) for reader in readers for row in kind.rows(reader.read(0, reader.size))]

        return read


class TestStdoutSink(SinkConformance):
    @pytest.fixture
    def stream(self):
        return io.BytesIO()

    @pytest.fixture
    def new_sink(self, stream):
        return lambda: StdoutSink(stream)

    @pytest.fixture
    def read_visible(self, stream):
        return lambda: stream.getvalue().splitlines()


class TestSinkFunction(SinkConformance):
    """A function that promises nothing: what it was given is visible as often as it was given."""

    @pytest.fixture
    def given(self):
        return []

    @pytest.fixture
    def new_sink(self, given):
        return lambda: FunctionSink(given.extend, buffer_max="1MiB")

    @pytest.fixture
    def read_visible(self, given):
        return lambda: [output.json for output in given]


class TestIdempotentSinkFunction(SinkConformance):
    """An asynchronous function that writes by the ids of outputs."""

    @pytest.fixture
    def table(self):
        return {}

    @pytest.fixture
    def new_sink(self, table):
        @idempotent
        async def upsert(outputs):
            for output in outputs:
                await asyncio.sleep(0)
                table[output.id] = output.json

        return lambda: FunctionSink(upsert, buffer_max="1MiB")

    @pytest.fixture
    def read_visible(self, table):
        return lambda: list(table.values())


class TestDeadLetterLog(TestSinkFunction):
    """What is put around a dead-letter sink changes none of its laws."""

    @pytest.fixture
    def new_sink(self, given):
        return lambda: DeadLetterLog(FunctionSink(given.extend, buffer_max="1MiB"), "dead", lines_max=0)


class TestFaultySink(SinkConformance):
    @pytest.fixture
    def directory(self):
        return SinkDirectory()

    @pytest.fixture
    def new_sink(self, directory):
        return lambda: FaultySink("sink", directory, Fuse(), random.Random(1))

    @pytest.fixture
    def read_visible(self, directory):
        return lambda: directory.outputs

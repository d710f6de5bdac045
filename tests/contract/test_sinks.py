"""Every sink obeys the laws of the port."""

from __future__ import annotations

import io
import random

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agentflow.connectors.arrow_sinks import ArrowSink, ParquetSink
from agentflow.connectors.collections import CollectionSink
from agentflow.connectors.jsonl_sink import JsonlSink
from agentflow.connectors.standard_streams import StdoutSink
from agentflow.testing.conformance.sink import SinkConformance
from agentflow.testing.faults import FaultySink, Fuse, SinkDirectory


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


class TestJsonlSink(SinkConformance):
    @pytest.fixture
    def new_sink(self, tmp_path):
        return lambda: JsonlSink(str(tmp_path / "deep" / "out"))

    @pytest.fixture
    def read_visible(self, tmp_path):
        def read():
            files = sorted((tmp_path / "deep" / "out").glob("[!._]*"))
            return [line for file in files for line in file.read_bytes().splitlines()]

        return read


def table_values(directory, pattern, read_table):
    """The outputs that a reader of table files sees: rows with one column are outputs that were no objects."""
    files = sorted(directory.glob(f"[!._]*{pattern}"))
    return [msgspec.json.encode(value) for file in files for value in read_table(file)["value"].to_pylist()]


class TestParquetSink(SinkConformance):
    @pytest.fixture
    def new_sink(self, tmp_path):
        return lambda: ParquetSink(str(tmp_path / "deep" / "out"))

    @pytest.fixture
    def read_visible(self, tmp_path):
        return lambda: table_values(tmp_path / "deep" / "out", ".parquet", pq.read_table)


class TestArrowSink(SinkConformance):
    @pytest.fixture
    def new_sink(self, tmp_path):
        return lambda: ArrowSink(str(tmp_path / "deep" / "out"), compression="lz4")

    @pytest.fixture
    def read_visible(self, tmp_path):
        return lambda: table_values(
            tmp_path / "deep" / "out", ".arrow", lambda file: pa.ipc.open_file(file).read_all()
        )


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

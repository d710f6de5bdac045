"""Every source obeys the laws of the port."""

from __future__ import annotations

import asyncio
import io
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agentflow.connectors.arrow_source import ArrowSource, ParquetSource
from agentflow.connectors.collections import CollectionSource
from agentflow.connectors.csv_source import CsvSource
from agentflow.connectors.function_source import FunctionSource
from agentflow.connectors.jsonl import JsonlSource
from agentflow.connectors.signal_spool import SignalList, SignalSpool
from agentflow.connectors.standard_streams import StdinSource
from agentflow.connectors.tables import TableSource
from agentflow.core.records import Record
from agentflow.testing.conformance.source import SourceConformance
from agentflow.testing.faults import FaultySignals, FaultySource, Fuse, SignalBox

LINES = b'\xef\xbb\xbf{"a":1}\r\n\n[2]\n  \n"3"\n4'


class TestCollectionSource(SourceConformance):
    @pytest.fixture
    def new_source(self):
        return lambda: CollectionSource([{"a": 1}, "b", None])


class TestJsonlSource(SourceConformance):
    @pytest.fixture
    def new_source(self, tmp_path):
        (tmp_path / "a.jsonl").write_bytes(LINES)
        (tmp_path / "b.jsonl").write_bytes(LINES)
        return lambda: JsonlSource(f"{tmp_path}/*.jsonl")


class TestCsvSource(SourceConformance):
    @pytest.fixture
    def new_source(self, tmp_path):
        for name in "ab":
            (tmp_path / f"{name}.csv").write_bytes(b'\xef\xbb\xbfa,b\r\n1,"x\ny"\r\n\n2\n3,"z"')
        return lambda: CsvSource(f"{tmp_path}/*.csv")


class TestParquetSource(SourceConformance):
    @pytest.fixture
    def new_source(self, tmp_path):
        for name in "ab":
            pq.write_table(pa.table({"a": range(7)}), tmp_path / f"{name}.parquet", row_group_size=3)
        return lambda: ParquetSource(f"{tmp_path}/*.parquet")


class TestArrowSource(SourceConformance):
    @pytest.fixture(params=[pa.ipc.new_file, pa.ipc.new_stream], ids=["file", "stream"])
    def new_source(self, tmp_path, request):
        for name in "ab":
            table = pa.table({"a": range(7)})
            with request.param(tmp_path / f"{name}.arrow", table.schema) as writer:
                writer.write_table(table, max_chunksize=3)
        return lambda: ArrowSource([tmp_path / "a.arrow", tmp_path / "b.arrow"])


TEXTS = {"jsonl": (JsonlSource, LINES), "csv": (CsvSource, b'a,b\r\n1,"x\ny"\r\n\n2\n3,"z"')}


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "arrow"])
class TestSourcesInAnObjectStore(SourceConformance):
    @pytest.fixture
    def new_source(self, kind, s3, tmp_path):
        url = s3.new_bucket()
        new_source, content = TEXTS.get(kind, (ArrowSource if kind == "arrow" else ParquetSource, None))
        if content is None:
            table = pa.table({"a": range(7)})
            if kind == "parquet":
                pq.write_table(table, tmp_path / "in", row_group_size=3)
            else:
                with pa.ipc.new_file(tmp_path / "in", table.schema) as writer:
                    writer.write_table(table, max_chunksize=3)
            content = (tmp_path / "in").read_bytes()
        for name in "ab":
            s3.store(url).put(f"in/{name}", [content])
        return lambda: new_source(f"{url}/in/*", store=s3.settings)


class TestTableSource(SourceConformance):
    @pytest.fixture
    def new_source(self):
        return lambda: TableSource(pa.table({"a": range(7)}).to_reader(max_chunksize=3))


class TestFollowedFiles(SourceConformance):
    records_count = 7

    @pytest.fixture
    def new_source(self, tmp_path):
        (tmp_path / "a.jsonl").write_bytes(LINES)
        (tmp_path / "b.jsonl").write_bytes(LINES + b"\n\n")
        return lambda: JsonlSource(tmp_path, follow=True, poll_interval="5ms")


class TestWatchedFiles(TestFollowedFiles):
    @pytest.fixture
    def new_source(self, tmp_path):
        (tmp_path / "a.jsonl").write_bytes(LINES)
        (tmp_path / "b.jsonl").write_bytes(LINES + b"\n\n")
        return lambda: JsonlSource(f"{tmp_path}/*.jsonl", follow=True)


class TestStdinSource(SourceConformance):
    @pytest.fixture
    def new_source(self):
        return lambda: StdinSource(io.BytesIO(LINES))


class TestSourceFunction(SourceConformance):
    @pytest.fixture
    def new_source(self):
        async def values(position):
            for number in range(position or 0, 7):
                yield {"n": number}, number + 1

        return lambda: FunctionSource(values)


class TestSourceFunctionOfPages(SourceConformance):
    """Only the last value of a page has a position; the function never ends."""

    records_count = 8

    @pytest.fixture
    def new_source(self):
        async def values(position):
            for number in range(3 * (position or {"page": 0})["page"], 8):
                yield (number, {"page": number // 3 + 1}) if number % 3 == 2 else number
            await asyncio.Event().wait()

        return lambda: FunctionSource(values, name="pages")


class TestSourceFunctionWithoutPosition(SourceConformance):
    @pytest.fixture
    def new_source(self):
        async def values():
            for number in range(5):
                yield number

        return lambda: FunctionSource(values)


class TestAsyncIterable(SourceConformance):
    @pytest.fixture
    def new_source(self):
        async def values():
            for number in range(5):
                yield number

        return lambda: FunctionSource(values())


class TestFaultySource(SourceConformance):
    @pytest.fixture
    def new_source(self):
        records = [Record(f"in/{n % 2}", n // 2 * 3, n // 2 * 3 + 3, b"%d" % n) for n in range(7)]
        return lambda: FaultySource(records, Fuse(), random.Random(1))


class TestSignalSpool(SourceConformance):
    records_count = 4

    @pytest.fixture
    def new_source(self, tmp_path):
        spool = SignalSpool(tmp_path / "signals")
        for number in range(4):
            spool.append_now(b"%d" % number)
        return lambda: SignalSpool(tmp_path / "signals")


class TestSignalList(SourceConformance):
    records_count = 4

    @pytest.fixture
    async def new_source(self):
        signals = SignalList()
        for number in range(4):
            await signals.append(b"%d" % number)
        return lambda: signals


class TestFaultySignals(SourceConformance):
    records_count = 4

    @pytest.fixture
    def new_source(self):
        box = SignalBox()
        for number in range(4):
            box.append(b"%d" % number)
        return lambda: FaultySignals(box, Fuse(), random.Random(1))

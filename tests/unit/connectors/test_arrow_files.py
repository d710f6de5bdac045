"""Parquet and Arrow files: what agents see of their types, where reading goes on, and what can be wrong with them."""

from __future__ import annotations

import datetime as dt
import decimal
import sys
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentflow.connectors.arrow_sinks import ArrowSink, ParquetSink
from agentflow.connectors.arrow_source import ArrowSource, ParquetSource
from agentflow.connectors.tables import TableSink, TableSource
from agentflow.core.records import Record
from agentflow.errors import NotConfigured, SourceError
from agentflow.testing.conformance.source import read_all

NOON = dt.datetime(2026, 1, 31, 12, 0, 0, 250_000)  # noqa: DTZ001 - also for columns without a time zone
MIB = 2**20


def write_arrow(path, table, *, rows):
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


KINDS = {
    "parquet": (ParquetSource, lambda path, table, rows: pq.write_table(table, path, row_group_size=rows)),
    "arrow": (ArrowSource, lambda path, table, rows: write_arrow(path, table, rows=rows)),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


async def fetch_all(source):
    while await source.fetch(100_000):
        pass


def decoded(records):
    return [msgspec.msgpack.decode(record.value) for record in records]


PLAIN = {
    "at": (pa.array([NOON], pa.timestamp("us", "Europe/Berlin")), "2026-01-31T12:00:00.250000Z"),
    "local": (pa.array([NOON], pa.timestamp("us")), "2026-01-31T12:00:00.250000"),
    "day": (pa.array([NOON.date()]), "2026-01-31"),
    "time": (pa.array([NOON.time()], pa.time64("us")), "12:00:00.250000"),
    "price": (pa.array([decimal.Decimal("12.50")], pa.decimal128(10, 2)), "12.50"),
    "tiny": (pa.array([decimal.Decimal("0.00000001")], pa.decimal128(10, 8)), "0.00000001"),
    "blob": (pa.array([b"\xff\x00"]), b"\xff\x00"),
    "list": (pa.array([[1, None]]), [1, None]),
    "struct": (pa.array([{"a": 1, "at": NOON}], pa.struct([("a", pa.int8()), ("at", pa.timestamp("ms"))])),
               {"a": 1, "at": "2026-01-31T12:00:00.250"}),
    "map": (pa.array([[(7, NOON.date())]], pa.map_(pa.int64(), pa.date32())), {"7": "2026-01-31"}),
    "choice": (pa.array(["x"]).dictionary_encode(), "x"),
    "large": (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
    "ratio": (pa.array([1.5], pa.float32()), 1.5),
    "flag": (pa.array([True]), True),
    "nothing": (pa.array([None], pa.int64()), None),
}  # fmt: skip


async def test_every_type_becomes_what_agents_can_use(kind, tmp_path):
    new_source, write = kind
    write(tmp_path / "in", pa.table({name: column for name, (column, _) in PLAIN.items()}), 1)
    assert decoded(await read_all(new_source(tmp_path / "in"))) == [{name: seen for name, (_, seen) in PLAIN.items()}]


async def test_a_time_without_a_text_is_a_bad_record_of_its_file(tmp_path):
    path = tmp_path / "in"
    pq.write_table(pa.table({"at": pa.array([0, 86_400_000_000, None], pa.time64("us"))}), path)
    good, bad, empty = await read_all(ParquetSource(path))
    assert bad.fault == f"{path}, row 1: column 'at' is 86400000000, which is no time64[us]"
    assert decoded([good, empty]) == [{"at": "00:00:00.000000"}, {"at": None}]


async def test_typed_inputs_get_times_and_decimals_back(kind, tmp_path):
    class Order(msgspec.Struct):
        at: dt.datetime
        day: dt.date
        price: decimal.Decimal
        took: dt.timedelta

    new_source, write = kind
    took = pa.array([dt.timedelta(days=1, milliseconds=-1500)], pa.duration("ms"))
    columns = {name: PLAIN[name][0] for name in ("at", "day", "price")} | {"took": took}
    write(tmp_path / "in", pa.table(columns), 1)
    (record,) = await read_all(new_source(tmp_path / "in"))
    assert msgspec.msgpack.decode(record.value, type=Order) == Order(
        NOON.replace(tzinfo=dt.UTC), NOON.date(), decimal.Decimal("12.50"), dt.timedelta(days=1, milliseconds=-1500)
    )


async def test_only_chosen_columns_are_read(kind, tmp_path):
    new_source, write = kind
    write(tmp_path / "in", pa.table({"a": [1], "b": [2], "c": [3]}), 1)
    assert decoded(await read_all(new_source(tmp_path / "in", columns=["c", "a"]))) == [{"a": 1, "c": 3}]
    with pytest.raises(SourceError, match="no column 'bb'") as missing:
        await read_all(new_source(tmp_path / "in", columns=["bb"]))
    assert "'b'" in missing.value.fix


async def test_a_name_that_is_there_twice_is_refused(kind, tmp_path):
    new_source, write = kind
    write(tmp_path / "in", pa.table([[1], [2], [3]], names=["a", "b", "b"]), 1)
    with pytest.raises(SourceError, match="2 columns 'b'"):
        await read_all(new_source(tmp_path / "in"))
    if new_source is ArrowSource:
        assert decoded(await read_all(new_source(tmp_path / "in", columns=["a"]))) == [{"a": 1}]


def with_broken_beginning(path):
    """Overwrite what lies behind the first 4 KiB of a file, and far before its end."""
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff" * 1000)


async def test_going_on_in_a_file_reads_nothing_of_what_lies_before(kind, tmp_path):
    new_source, write = kind
    path = tmp_path / "in"
    write(path, pa.table({"a": range(200_000), "b": [f"text {n % 77777}" for n in range(200_000)]}), 50_000)
    records = await read_all(new_source(path, columns=["b"]))
    with_broken_beginning(path)
    rest = await read_all(new_source(path, columns=["b"]), {records[0].source: 150_000})
    assert rest == records[150_000:]


@pytest.mark.parametrize("position", [1, 5])
async def test_file_that_was_replaced_since_it_was_read_is_refused(kind, tmp_path, position):
    new_source, write = kind
    path = tmp_path / "in"
    write(path, pa.table({"a": range(5)}), 5)
    label = (await read_all(new_source(path)))[0].source
    write(path, pa.table({"a": range(1, 6)}), 5)
    with pytest.raises(SourceError, match="has changed") as changed:
        await new_source(path).open({label: position})
    assert changed.value.fix


async def test_file_that_is_replaced_while_it_is_read_fails_the_source(kind, tmp_path):
    new_source, write = kind
    path = tmp_path / "in"
    table = pa.table({"a": range(300_000)})
    write(path, table, 50_000)
    source = new_source(path)
    await source.open({})
    assert await source.fetch(1)
    path.unlink()
    write(path, table, 50_000)
    with pytest.raises(SourceError, match="changed or replaced"):
        await fetch_all(source)
    await source.close()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"ARROW1\0\0", b"x" * 100])
async def test_content_that_is_no_such_file_is_told(kind, tmp_path, content):
    new_source, _ = kind
    (tmp_path / "in").write_bytes(content)
    with pytest.raises(SourceError, match="can be read") as wrong:
        await read_all(new_source(tmp_path / "in"))
    assert str(tmp_path / "in") in str(wrong.value)


async def test_damaged_rows_fail_the_source_where_they_are(kind, tmp_path):
    new_source, write = kind
    path = tmp_path / "in"
    write(path, pa.table({"b": [f"text {n % 7777}" for n in range(100_000)]}), 100_000)
    content = bytearray(path.read_bytes())
    content[8000:9000] = b"\xff" * 1000
    path.write_bytes(content)
    with pytest.raises(SourceError) as damaged:
        await read_all(new_source(path))
    assert damaged.value.where["file"] == str(path)


async def test_memory_is_bounded_by_the_block_not_by_the_row_group(tmp_path):
    path = tmp_path / "in"
    size = 400_000
    pq.write_table(
        pa.table({"a": pa.array(range(size)), "b": [f"{n:0100d}" for n in range(size)]}), path, row_group_size=size
    )
    pool, before = pa.default_memory_pool(), pa.total_allocated_bytes()
    source, peak, count = ParquetSource(path), 0, 0
    await source.open({})
    while records := await source.fetch(8192):
        count += len(records)
        peak = max(peak, pool.bytes_allocated() - before)
    await source.close()
    assert count == size
    assert peak < 16 * MIB


async def test_pattern_finds_part_files_and_no_staging(kind, tmp_path):
    new_source, write = kind
    for name in ("part-1.x", ".part-2.x", "_part-3.x"):
        write(tmp_path / name, pa.table({"a": [1]}), 1)
    assert len(await read_all(new_source(f"{tmp_path}/*.x"))) == 1
    with pytest.raises(SourceError, match="no file matches"):
        await new_source(f"{tmp_path}/*.y").open({})


async def test_file_that_a_pattern_found_before_must_still_be_there(kind, tmp_path):
    new_source, write = kind
    for name in ("a.x", "b.x"):
        write(tmp_path / name, pa.table({"a": [1, 2]}), 2)
    label = (await read_all(new_source(f"{tmp_path}/*.x")))[0].source
    (tmp_path / "a.x").unlink()
    with pytest.raises(SourceError, match="does not exist"):
        await new_source(f"{tmp_path}/*.x").open({label: 1})


SCALARS = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.string(): st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    pa.binary(): st.binary(max_size=20),
    pa.bool_(): st.booleans(),
}


@st.composite
def tables(draw: Any) -> pa.Table:
    """Tables of a few columns, some of them nested, with nulls."""
    columns = {}
    rows = draw(st.integers(1, 40))
    for number in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(list(SCALARS)))
        value = st.none() | SCALARS[kind]
        if draw(st.booleans()):
            kind, value = pa.list_(kind), st.none() | st.lists(value, max_size=3)
        columns[f"c {number}"] = pa.array(draw(st.lists(value, min_size=rows, max_size=rows)), kind)
    return pa.table(columns)


@settings(max_examples=60)
@given(tables(), st.integers(1, 15), st.data())
async def test_rows_are_the_same_from_every_position(tmp_path_factory, table, group, data):
    for suffix, (new_source, write) in KINDS.items():
        path = tmp_path_factory.mktemp("rows") / suffix
        write(path, table, group)
        records: list[Record] = await read_all(new_source(path))
        assert decoded(records) == table.to_pylist()
        position = data.draw(st.integers(0, table.num_rows))
        assert await read_all(new_source(path), {records[0].source: position}) == records[position:]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ParquetSource("in"),
        lambda: ArrowSource("in"),
        lambda: ParquetSink("out"),
        lambda: ArrowSink("out"),
        lambda: TableSource(None),
        TableSink,
    ],
)
def test_missing_package_is_told_with_the_extra_that_has_it(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(NotConfigured) as missing:
        make()
    assert missing.value.fix == "pip install 'agentflow[arrow]'"

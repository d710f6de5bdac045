"""Tables in code: what pandas, polars, DuckDB and pyarrow give goes in, and they take what comes out."""

from __future__ import annotations

import datetime as dt
import decimal

import duckdb
import msgspec
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from agentflow import Agent, AgentsExecutionEnvironment, EventType, OutputEvent
from agentflow.connectors.collections import CollectionSink
from agentflow.connectors.tables import TableSink, TableSource
from agentflow.errors import ConfigError, SchemaMismatch, SourceError
from agentflow.runtime.ports import Staged
from agentflow.runtime.settings import CheckpointSettings, JobSettings, RestartSettings
from agentflow.testing.conformance.sink import staged_epoch
from agentflow.testing.conformance.source import read_all

COLUMNS = {"user": ["ann", "bob", "ann"], "stars": [5, 3, 1], "note": ["x", None, "z"]}


def total(event, ctx):
    stars = ctx.short_term_memory.update("stars", lambda n: (n or 0) + event.input["stars"])
    ctx.send_event(OutputEvent({"user": ctx.key, "stars": stars, "note": event.input["note"]}))


def echo(event, ctx):
    ctx.send_event(OutputEvent(event.input))


def agent(function=total):
    return Agent("Total").add_action("total", [EventType.InputEvent], function)


def ran(table, *, key="user", function=total, schema=None, settings=None):
    env = AgentsExecutionEnvironment(settings or JobSettings(checkpoint=CheckpointSettings(interval_ms=1)))
    result = env.from_table(table).key_by(key).apply(agent(function)).to_table(schema)
    env.execute()
    return result


EXPECTED = [
    {"user": "ann", "stars": 5, "note": "x"},
    {"user": "bob", "stars": 3, "note": None},
    {"user": "ann", "stars": 6, "note": "z"},
]
TABLES = {
    "pyarrow table": lambda: pa.table(COLUMNS),
    "pyarrow batch": lambda: pa.record_batch(COLUMNS),
    "pyarrow reader": lambda: pa.table(COLUMNS).to_reader(max_chunksize=2),
    "pandas": lambda: pd.DataFrame(COLUMNS),
    "polars": lambda: pl.DataFrame(COLUMNS),
    "duckdb": lambda: duckdb.from_arrow(pa.table(COLUMNS)).filter("stars > 0"),
}


@pytest.mark.parametrize("name", TABLES)
def test_rows_of_a_table_are_inputs(name):
    assert ran(TABLES[name]()).table.to_pylist() == EXPECTED


def test_result_is_taken_by_everything_that_takes_arrow_streams():
    result = ran(pa.table(COLUMNS))
    assert pl.DataFrame(result).to_dicts() == EXPECTED
    assert pd.DataFrame.from_arrow(result)["stars"].tolist() == [5, 3, 6]
    assert pa.table(result) == result.table
    assert duckdb.sql("SELECT max(stars) FROM result WHERE \"user\" = 'ann'").fetchall() == [(6,)]
    assert ran(result, function=echo).table == result.table
    assert len(result) == 3


def test_schema_gives_columns_their_types_back():
    noon = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
    columns = {
        "at": pa.array([noon], pa.timestamp("us", "UTC")),
        "price": pa.array([decimal.Decimal("12.50")], pa.decimal128(10, 2)),
        "blob": pa.array([b"\xff"]),
        "days": pa.array([[noon.date()]]),
        "user": pa.array(["ann"]),
    }
    table = pa.table(columns)
    schema = {"at": "timestamp", "price": "decimal(10,2)", "blob": "binary", "days": "list<date>", "user": "string"}
    result = ran(table, function=echo, schema=schema)
    assert result.table.to_pylist() == table.to_pylist()
    assert ran(table, function=echo, schema=table.schema).table == table
    plain = {
        "at": "2026-01-31T12:00:00.000000Z",
        "price": "12.50",
        "blob": "/w==",
        "days": ["2026-01-31"],
        "user": "ann",
    }
    assert ran(table, function=echo).table.to_pylist() == [plain]


def test_result_without_a_schema_has_types_that_fit_all_outputs():
    def halve(event, ctx):
        stars = event.input["stars"]
        ctx.send_event(
            OutputEvent({"half": stars / 2 if stars % 2 else stars // 2} | ({"odd": True} if stars % 2 else {}))
        )

    result = ran(pa.table({"user": ["a", "a"], "stars": [4, 5]}), function=halve)
    assert result.table.schema.types == [pa.float64(), pa.bool_()]
    assert result.table.to_pylist() == [{"half": 2.0, "odd": None}, {"half": 2.5, "odd": True}]


def test_outputs_that_no_type_fits_are_told_with_their_rows():
    def mixed(event, ctx):
        ctx.send_event(OutputEvent({"value": event.input["stars"] if event.input["note"] else "none"}))

    with pytest.raises(SchemaMismatch, match="field 'value' is text in row 2 and a number in row 1"):
        _ = ran(pa.table(COLUMNS), function=mixed).table
    assert ran(pa.table(COLUMNS), function=mixed, schema={"value": "json"}).table["value"].to_pylist() == [
        "5",
        '"none"',
        "1",
    ]


def test_output_that_does_not_fit_the_schema_fails_the_job():
    with pytest.raises(SchemaMismatch, match="field 'stars' of row 1 is 5, which is no string"):
        ran(pa.table(COLUMNS), schema={"user": "string", "stars": "string", "note": "string"})


def test_no_outputs_are_a_table_without_rows():
    schema = {"a": "int64"}
    assert ran(pa.table(COLUMNS), function=lambda event, ctx: None, schema=schema).table == pa.table(
        {"a": pa.array([], pa.int64())}
    )
    assert ran(pa.table(COLUMNS), function=lambda event, ctx: None).table.num_rows == 0
    assert ran(pa.table({"user": pa.array([], pa.string())})).table.num_rows == 0


def test_reader_is_read_batch_by_batch_where_nothing_has_to_be_read_twice():
    read = []

    def batches():
        for number in range(100):
            read.append(number)
            yield pa.record_batch({"user": ["ann"] * 1000, "stars": [1] * 1000, "note": ["x"] * 1000})

    schema = pa.schema([("user", pa.string()), ("stars", pa.int64()), ("note", pa.string())])
    source = TableSource(pa.RecordBatchReader.from_batches(schema, batches()), is_streamed=True)
    assert read == []
    env = AgentsExecutionEnvironment()
    env.from_source(source).key_by("user").apply(agent()).to_list()
    with pytest.raises(ConfigError, match="cannot be read twice"):
        env.execute()
    result = ran(
        pa.RecordBatchReader.from_batches(schema, batches()),
        settings=JobSettings(guarantee="none", checkpoint=CheckpointSettings(interval_ms=1)),
    )
    assert result.table["stars"].to_pylist()[-1] == 100_000
    assert read == list(range(100))


@pytest.mark.parametrize("wrong", [[{"a": 1}], {"a": [1]}, 5, None])
def test_what_is_no_table_is_refused_with_the_fix(wrong):
    with pytest.raises(TypeError, match="from_list"):
        AgentsExecutionEnvironment().from_table(wrong)


def test_a_row_that_cannot_be_said_is_a_dead_letter_and_the_others_go_on():
    table = duckdb.sql(
        "select * from (values ('ann', time '24:00:00'), ('bob', time '12:00:00')) as orders(\"user\", \"at\")"
    )
    env = AgentsExecutionEnvironment()
    dead = CollectionSink()
    result = env.from_table(table).key_by("user").apply(agent(echo)).dead_letters_to(dead).to_table()
    env.execute()
    assert result.table.to_pylist() == [{"user": "bob", "at": "12:00:00.000000"}]
    (letter,) = dead.values  # noqa: PD011 (no data frame)
    assert "table, row 0: column 'at' is 86400000000, which is no time64[us]" in str(letter)


DAY_US = 86_400_000_000
TIME, DATE, STAMP = pa.time64("us"), pa.date32(), pa.timestamp("us")
SAID = "<value out of range: 1>"  # what a text says is data
UNSAID = {
    "time": (pa.array([0, DAY_US, None], TIME), DAY_US, TIME),
    "date": (pa.array([0, 2**31 - 1, None], pa.int32()).cast(DATE), 2**31 - 1, DATE),
    "timestamp": (pa.array([0, 2**62, None], STAMP), 2**62, STAMP),
    "choice": (pa.array([0, DAY_US, None], TIME).dictionary_encode(), DAY_US, TIME),
    "list": (pa.array([[0], [1, None, DAY_US], None], pa.list_(TIME)), DAY_US, TIME),
    "struct": (pa.StructArray.from_arrays([pa.array([SAID] * 3), pa.array([0, DAY_US, None], TIME)], ["a", "b"]), DAY_US, TIME),
    "map": (pa.MapArray.from_arrays([0, 1, 2, 2], pa.array(["a", "b"]), pa.array([0, DAY_US], TIME)), DAY_US, TIME),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSAID)
async def test_a_date_or_time_without_a_text_is_a_bad_record_and_no_data(name):
    column, number, kind = UNSAID[name]
    good, bad, empty = await read_all(TableSource(pa.table({"text": [SAID] * 3, "at": column})))
    assert bad.fault == f"table, row 1: column 'at' is {number}, which is no {kind}"
    assert msgspec.json.decode(bad.value)["text"] == SAID
    assert (good.fault, empty.fault) == (None, None)
    assert msgspec.msgpack.decode(good.value)["text"] == SAID


def test_two_columns_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two columns of one name"):
        TableSource(pa.table([[1], [2]], names=["a", "a"]))


async def test_position_behind_the_end_is_refused():
    with pytest.raises(SourceError, match="shorter than its position"):
        await read_all(TableSource(pa.table(COLUMNS)), {"table": 4})


async def test_restart_in_the_middle_repeats_no_row_and_loses_none():
    failures = [RuntimeError("once"), RuntimeError("twice")]

    class Flaky(TableSink):
        async def publish(self, checkpoint, staged):
            await super().publish(checkpoint, staged)
            if failures and len(self.result) > 1000:
                raise failures.pop()

    settings = JobSettings(
        checkpoint=CheckpointSettings(interval_ms=1), restart=RestartSettings(strategy="fixed-delay", delay_ms=0)
    )
    env = AgentsExecutionEnvironment(settings)
    sink = Flaky()
    table = pa.table({"user": ["ann"] * 50_000, "stars": [1] * 50_000, "note": ["x"] * 50_000})
    env.from_table(table).key_by("user").apply(agent()).to_sink(sink)
    await env.job().run()
    assert failures == []
    assert sink.result.table["stars"].to_pylist() == list(range(1, 50_001))


async def test_prepared_outputs_of_an_earlier_life_are_converted_when_they_are_published():
    sink = TableSink({"a": "int64"})
    staged = Staged(outputs=(b'{"a":1}',))
    await sink.open((3, staged))
    await sink.publish(3, staged)
    await sink.publish(3, staged)
    await sink.publish(4, await staged_epoch(sink, 4, b'{"a":2}'))
    assert sink.result.table.to_pylist() == [{"a": 1}, {"a": 2}]

"""Sinks of tables: columns that are found out, declared, or those of an earlier life; outputs that do not fit them."""

from __future__ import annotations

import base64
import csv
import datetime as dt
import decimal
import math
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentflow.connectors.arrow_sinks import ArrowSink, ParquetSink
from agentflow.connectors.column_types import column_type
from agentflow.connectors.csv_sink import CsvSink
from agentflow.core.effects import DeadLetter
from agentflow.core.failures import FailurePolicy
from agentflow.core.records import ErrorReport, Record
from agentflow.errors import Recovery, SchemaMismatch, SinkForbidden
from agentflow.testing.conformance.sink import output, staged_epoch

READERS = {
    ParquetSink: pq.read_table,
    ArrowSink: lambda path: pa.ipc.open_file(path).read_all(),
}


@pytest.fixture(params=READERS, ids=lambda kind: kind.name)
def new_sink(request):
    return request.param


async def written(sink, *epochs):
    """Write epochs of outputs, one checkpoint each, in one life that goes on behind those before it."""
    await sink.open(None)
    try:
        for checkpoint, outputs in enumerate(epochs, written.checkpoint):
            await sink.publish(checkpoint, await staged_epoch(sink, checkpoint, *map(msgspec.json.encode, outputs)))
            written.checkpoint = checkpoint + 1
    finally:
        await sink.close()


@pytest.fixture(autouse=True)
def _first_checkpoint():
    written.checkpoint = 1


def tables(directory, new_sink):
    return [READERS[new_sink](str(path)) for path in sorted(directory.glob("[!._]*"))]


async def test_columns_are_those_of_the_first_checkpoint_in_the_order_in_which_they_come(new_sink, tmp_path):
    first = [{"b": 1, "a": "x"}, {"a": None, "c": [{"d": 1}, {"e": True}], "b": 2.5}, {"n": None}]
    await written(new_sink(str(tmp_path)), first, [{"a": "y"}])
    one, two = tables(tmp_path, new_sink)
    element = pa.struct([("d", pa.int64()), ("e", pa.bool_())])
    assert one.schema.names == ["b", "a", "c", "n"]
    assert one.schema.types == [pa.float64(), pa.string(), pa.list_(pa.field("element", element)), pa.string()]
    assert one.to_pylist() == [
        {"b": 1.0, "a": "x", "c": None, "n": None},
        {"b": 2.5, "a": None, "c": [{"d": 1, "e": None}, {"d": None, "e": True}], "n": None},
        {"b": None, "a": None, "c": None, "n": None},
    ]
    assert two.schema == one.schema
    assert two.to_pylist() == [{"b": None, "a": "y", "c": None, "n": None}]


async def test_all_outputs_of_the_first_checkpoint_are_looked_at_however_many_there_are(new_sink, tmp_path):
    outputs = [{"n": number, "text": "x" * 100} for number in range(20_000)] + [{"n": 0.5, "late": True}]
    await written(new_sink(str(tmp_path)), outputs)
    (table,) = tables(tmp_path, new_sink)
    assert table.schema.types == [pa.float64(), pa.string(), pa.bool_()]
    assert table.num_rows == 20_001
    assert table["n"].to_pylist() == [*map(float, range(20_000)), 0.5]


MISFITS = {
    "text for a number": ([{"a": 1}], {"a": "x"}, "a", "no int64"),
    "fraction for a whole number": ([{"a": 1}], {"a": 1.5}, "a", "no int64"),
    "new field": ([{"a": 1}], {"b": 1}, "b", "no column"),
    "new field within": ([{"a": {"x": 1}}], {"a": {"y": 1}}, "a", "struct<x: int64>"),
    "object for a list": ([{"a": [1]}], {"a": {"x": 1}}, "a", "no list"),
    "no object": ([{"a": 1}], 5, "value", "no column"),
}


@pytest.mark.parametrize("name", MISFITS)
async def test_output_that_does_not_fit_stops_the_job_and_is_told_with_field_and_row(new_sink, tmp_path, name):
    first, later, field, said = MISFITS[name]
    sink = new_sink(str(tmp_path))
    await sink.open(None)
    await sink.publish(1, await staged_epoch(sink, 1, *map(msgspec.json.encode, first)))
    with pytest.raises(SchemaMismatch, match=said) as misfit:
        await staged_epoch(sink, 2, *map(msgspec.json.encode, [*first, later]))
    await sink.close()
    error = misfit.value
    assert error.where == {"directory": str(tmp_path), "checkpoint": 2, "field": field, "row": 2}
    assert error.recovery is Recovery.FAIL_JOB
    assert "schema" in error.fix
    assert [path.name for path in tmp_path.glob("*part*")] == [f"part-00000-0000000001.{new_sink.name}"]


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ([{"a": 1}, {"a": "x"}], "field 'a' is text in row 2 and a number in row 1"),
        ([{"a": [1]}, {"a": [None, {"b": 1}]}], r"field 'a\[\]' is an object in row 2 and a number in row 1"),
        ([{"a": {"b": True}}, {"a": {"b": 1}}], "field 'a.b' is a number in row 2 and a truth value in row 1"),
        ([{"a": 2**63}], "field 'a' has a whole number of more than 64 bits in row 1"),
    ],
)
async def test_outputs_that_no_type_fits_are_told(new_sink, tmp_path, outputs, said):
    with pytest.raises(SchemaMismatch, match=said) as misfit:
        await written(new_sink(str(tmp_path)), outputs)
    assert "json" in misfit.value.fix


DECLARED = {
    "string": ("x", "x"),
    "boolean": (True, True),
    "int8": (-128, -128),
    "uint64": (2**64 - 1, 2**64 - 1),
    "float": (1.5, 1.5),
    "double": (1, 1.0),
    "decimal(10,2)": ("12.5", decimal.Decimal("12.50")),
    "decimal(50,2)": (7, decimal.Decimal("7.00")),
    "date": ("2026-01-31", dt.date(2026, 1, 31)),
    "time": ("12:30:00", dt.time(12, 30)),
    "timestamp": ("2026-01-31T12:00:00+01:00", dt.datetime(2026, 1, 31, 11, tzinfo=dt.UTC)),
    "timestamp-ntz": ("2026-01-31T12:00:00", dt.datetime(2026, 1, 31, 12)),  # noqa: DTZ001
    "binary": (base64.b64encode(b"\xff").decode(), b"\xff"),
    "json": ({"a": [1, "x"]}, '{"a":[1,"x"]}'),
    "list<date>": (["2026-01-31", None], [dt.date(2026, 1, 31), None]),
    "map<decimal(3,1)>": ({"k": 1.5}, [("k", decimal.Decimal("1.5"))]),
    "struct<a: int64, b: json>": ({"b": 5}, {"a": None, "b": "5"}),
}


async def test_declared_types_are_made_of_what_json_has_for_them(new_sink, tmp_path):
    schema = {f"c {number}": kind for number, kind in enumerate(DECLARED)}
    row = {f"c {number}": value for number, (value, _) in enumerate(DECLARED.values())}
    await written(new_sink(str(tmp_path), schema=schema), [row, {}])
    (table,) = tables(tmp_path, new_sink)
    assert table.to_pylist() == [
        {f"c {number}": value for number, (_, value) in enumerate(DECLARED.values())},
        dict.fromkeys(schema),
    ]


async def test_epoch_milliseconds_are_an_instant(new_sink, tmp_path):
    await written(new_sink(str(tmp_path), schema={"at": "timestamp"}), [{"at": 1_769_857_200_123}])
    (table,) = tables(tmp_path, new_sink)
    assert table["at"].to_pylist() == [dt.datetime(2026, 1, 31, 11, 0, 0, 123_000, tzinfo=dt.UTC)]


async def test_schema_of_arrow_is_taken_as_it_is(new_sink, tmp_path):
    schema = pa.schema([("a", pa.large_string()), ("b", pa.dictionary(pa.int8(), pa.string()))])
    await written(new_sink(str(tmp_path), schema=schema), [{"a": "x", "b": "y"}])
    (table,) = tables(tmp_path, new_sink)
    assert table.to_pylist() == [{"a": "x", "b": "y"}]


async def test_next_life_has_the_columns_of_the_newest_file(new_sink, tmp_path):
    await written(new_sink(str(tmp_path)), [{"a": 1, "j": {}}])
    await written(new_sink(str(tmp_path)), [{"a": None, "j": [5]}])
    one, two = tables(tmp_path, new_sink)
    assert two.schema == one.schema
    assert two["j"].to_pylist() == ["[5]"]
    with pytest.raises(SchemaMismatch):
        await written(new_sink(str(tmp_path)), [{"a": "x"}])
    await written(new_sink(str(tmp_path), schema={"a": "string"}), [{"a": "x"}])


async def test_next_life_finds_columns_out_where_no_file_is_left(new_sink, tmp_path):
    await written(new_sink(str(tmp_path)), [{"a": 1}])
    for path in tmp_path.glob("part-*"):
        path.unlink()
    await written(new_sink(str(tmp_path)), [{"a": "x"}])
    assert tables(tmp_path, new_sink)[0].to_pylist() == [{"a": "x"}]


async def test_file_of_something_else_is_refused_at_open(new_sink, tmp_path):
    (tmp_path / f"part-00000-0000000001.{new_sink.name}").write_bytes(b"x" * 100)
    with pytest.raises(SinkForbidden, match="columns are not known"):
        await new_sink(str(tmp_path)).open(None)


def dead_letter(value, codec="json"):
    """A real one, as the operator makes it."""
    record = Record("in.jsonl", 7, 9, value, None, 5)
    error = ErrorReport("KeyError", "'stars'", traceback="Traceback …")
    letter = FailurePolicy("reviews", "ReviewAgent", has_dead_letters=True, input_codec=codec).dead_letter(
        record, error
    )
    assert isinstance(letter, DeadLetter)
    return letter


LETTERS = [b'{"a": 1}', b"[5]", b"{", b"\xff"]


async def test_dead_letters_have_columns_of_their_own(new_sink, tmp_path):
    sink = new_sink(str(tmp_path))
    await sink.open(None)
    for value in LETTERS:
        sink.write(dead_letter(value))
    sink.barrier(1)
    await sink.publish(1, await sink.stage(1))
    await sink.close()
    (table,) = tables(tmp_path, new_sink)
    assert [row["value"] for row in table.to_pylist()] == ['{"a":1}', "[5]", None, None]
    assert [row["value-text"] for row in table.to_pylist()] == [None, None, "{", None]
    assert table["value-base64"].to_pylist()[3] == base64.b64encode(b"\xff").decode()
    assert set(table["error-type"].to_pylist()) == {"KeyError"}
    assert set(table["source-position"].to_pylist()) == {"in.jsonl/7"}


async def test_parquet_is_compressed_as_asked(tmp_path):
    await written(ParquetSink(str(tmp_path), compression="snappy"), [{"a": 1}])
    (path,) = tmp_path.glob("part-*")
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "SNAPPY"


def test_type_that_is_none_is_refused_when_the_sink_is_made(new_sink, tmp_path):
    with pytest.raises(ValueError, match="column 'a': 'strng' is no type; did you mean 'string'"):
        new_sink(str(tmp_path), schema={"a": "strng"})


# -- CSV
def csv_rows(directory):
    found = []
    for path in sorted(directory.glob("part-*")):
        with path.open(newline="", encoding="utf-8") as file:
            found.append(list(csv.reader(file)))
    return found


async def test_csv_has_a_header_and_plain_texts(tmp_path):
    first = [{"a": 1, "b": 'x,"y"\nz'}, {"b": True, "c": [1, {"d": None}]}, {"a": 1.5, "c": None}]
    await written(CsvSink(str(tmp_path)), first, [{"c": "é"}])
    assert csv_rows(tmp_path) == [
        [["a", "b", "c"], ["1", 'x,"y"\nz', ""], ["", "true", '[1,{"d":null}]'], ["1.5", "", ""]],
        [["a", "b", "c"], ["", "", "é"]],
    ]


async def test_csv_without_a_header_has_the_columns_that_are_named(tmp_path):
    sink = CsvSink(str(tmp_path), header=False, columns=["b", "a"], delimiter="\t", null_value="NULL")
    await written(sink, [{"a": "x\ty"}])
    assert (tmp_path / "part-00000-0000000001.csv").read_text() == 'NULL\t"x\ty"\n'


async def test_csv_of_the_next_life_has_the_columns_of_the_newest_file(tmp_path):
    await written(CsvSink(str(tmp_path)), [{"a": 1, "b": 2}])
    await written(CsvSink(str(tmp_path)), [{"b": 3}])
    assert csv_rows(tmp_path)[1] == [["a", "b"], ["", "3"]]
    with pytest.raises(SchemaMismatch, match="row 2 has a field 'c'") as misfit:
        await written(CsvSink(str(tmp_path)), [{"b": 3}, {"c": 4}])
    assert misfit.value.where["field"] == "c"


async def test_csv_takes_dead_letters(tmp_path):
    sink = CsvSink(str(tmp_path))
    await sink.open(None)
    for value in LETTERS:
        sink.write(dead_letter(value))
    sink.barrier(1)
    await sink.publish(1, await sink.stage(1))
    await sink.close()
    ((header, *rows),) = csv_rows(tmp_path)
    assert [row[header.index("value")] for row in rows] == ['{"a":1}', "[5]", "", ""]


# -- any outputs
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "int64": st.integers(-(2**53), 2**53),
    "double": st.floats(allow_nan=False, allow_infinity=False),
    "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    "boolean": st.booleans(),
}


@st.composite
def rows_of_some_columns(draw: Any) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Columns of declared types, some nested, and rows that fit them."""
    schema, fields = {}, {}
    for number in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(list(KINDS)))
        value = st.none() | KINDS[kind]
        shape = draw(st.integers(0, 3))
        if shape == 1:
            kind, value = f"list<{kind}>", st.none() | st.lists(value, max_size=3)
        elif shape == 2:
            kind, value = f"map<{kind}>", st.none() | st.dictionaries(st.text("ab", max_size=2), value, max_size=3)
        elif shape == 3:
            kind = f"struct<a: {kind}, b: list<{kind}>>"
            value = st.none() | st.fixed_dictionaries({"a": value, "b": st.lists(value, max_size=2)})
        schema[f"c{number}"], fields[f"c{number}"] = kind, value
    return schema, draw(st.lists(st.fixed_dictionaries(fields), min_size=1, max_size=20))


@settings(max_examples=60)
@given(rows_of_some_columns())
async def test_rows_come_back_as_they_were_given(tmp_path_factory, columns):
    schema, rows = columns
    for new_sink, read in READERS.items():
        directory = tmp_path_factory.mktemp("rows")
        written.checkpoint = 1
        await written(new_sink(str(directory), schema=schema), rows)
        (path,) = directory.glob("part-*")
        found = [
            {
                name: dict(value) if schema[name].startswith("map") and value is not None else value
                for name, value in row.items()
            }
            for row in read(str(path)).to_pylist()
        ]
        assert found == rows


TYPES = st.recursive(
    st.sampled_from(["string", "int64", "json", "decimal(10,2)", "timestamp-ntz"]),
    lambda inner: st.one_of(
        inner.map(lambda kind: f"list<{kind}>"),
        inner.map(lambda kind: f"map<{kind}>"),
        st.dictionaries(st.sampled_from(["a", "b-c", '"d e"', "é"]), inner, min_size=1, max_size=3).map(
            lambda fields: f"struct<{', '.join(f'{name}: {kind}' for name, kind in fields.items())}>"
        ),
    ),
    max_leaves=6,
)


@given(TYPES)
def test_type_is_read_as_it_is_written(text):
    assert str(column_type(text)) == text


def test_not_a_number_is_null_in_json_and_so_it_is_in_a_table():
    assert msgspec.json.encode(math.nan) == b"null"
    assert output(b"null").value == b"null"

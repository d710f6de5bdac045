"""CSV files as a source: rows and their places, types of columns, bad rows."""

from __future__ import annotations

import csv
import io

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow.connectors.column_types import column_type
from agentflow.connectors.csv_columns import TextColumn
from agentflow.connectors.csv_rows import CsvSplitter, Dialect, RowLayout
from agentflow.connectors.csv_source import CsvSource
from agentflow.connectors.row_values import RowEncoder
from agentflow.errors import SourceError
from agentflow.testing.conformance.source import read_all

MIB = 2**20


async def read(path, text, **options):
    """Write a file and return its records."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return await read_all(CsvSource(path, **options))


def values(records):
    return [msgspec.msgpack.decode(record.value) for record in records if record.fault is None]


def faults(records):
    return [record.fault.partition(", ")[2] for record in records if record.fault is not None]


async def test_rows_are_objects_with_the_names_of_the_header(tmp_path):
    records = await read(tmp_path / "in", 'id,name\n1,ann\n2,"b, ""o""\nb"\n\n3,\n')
    assert values(records) == [{"id": 1, "name": "ann"}, {"id": 2, "name": 'b, "o"\nb'}, {"id": 3, "name": None}]
    assert [(record.offset, record.next_offset) for record in records] == [(8, 14), (14, 29), (30, 33)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False])
async def test_line_ends_and_byte_order_mark_are_no_part_of_values(tmp_path, end, mark, last):
    text = end.join(["a,b", "1,x", "2,y"]) + (end if last else "")
    records = await read(tmp_path / "in", mark + text.encode())
    assert values(records) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    assert records[-1].next_offset == len(mark + text.encode())


async def test_without_a_header_the_columns_are_named(tmp_path):
    assert values(await read(tmp_path / "in", "1;x\n2;y\n", header=False, columns=["n", "t"], delimiter=";")) == [
        {"n": 1, "t": "x"},
        {"n": 2, "t": "y"},
    ]


async def test_with_a_header_the_columns_are_chosen(tmp_path):
    assert values(await read(tmp_path / "in", "a,b,c\n1,2,3\n", columns=["c", "a"])) == [{"c": 3, "a": 1}]
    with pytest.raises(SourceError, match="no column 'd'"):
        await read(tmp_path / "in", "a,b,c\n1,2,3\n", columns=["d"])
    with pytest.raises(SourceError, match="no column 'd'"):
        await read(tmp_path / "in", "a,b,c\n1,2,3\n", types={"d": "string"})


async def test_dialect_is_a_choice(tmp_path):
    text = "a\tb\n'x\ty'\t\"\n".encode("latin-1") + "\xe9\tz\n".encode("latin-1")
    records = await read(tmp_path / "in", text, delimiter="\t", quote="'", encoding="latin-1")
    assert values(records) == [{"a": "x\ty", "b": '"'}, {"a": "é", "b": "z"}]
    assert values(await read(tmp_path / "in", 'a,b\n"x,y"\n', quote=None)) == [{"a": '"x', "b": 'y"'}]


INFERRED = [
    (["1", "-2", "0"], [1, -2, 0]),
    (["1", "2.5", "-1e3"], [1.0, 2.5, -1000.0]),
    (["true", "FALSE", ""], [True, False, None]),
    (["007", "12", ""], ["007", "12", None]),
    (["+5", "6"], ["+5", "6"]),
    (["1_000", "2"], ["1_000", "2"]),
    (["12345678901234567890", "1"], ["12345678901234567890", "1"]),
    (["2026-01-31", ""], ["2026-01-31", None]),
    (["1", "x"], ["1", "x"]),
    (["", ""], [None, None]),
    (["NaN", "1.5"], ["NaN", "1.5"]),
    (["٣", "1"], ["٣", "1"]),
]


@pytest.mark.parametrize(("texts", "expected"), INFERRED, ids=[",".join(texts) for texts, _ in INFERRED])
async def test_types_are_found_out_where_every_field_of_the_first_rows_has_them(tmp_path, texts, expected):
    records = await read(tmp_path / "in", "a,b\n" + "".join(f"{text},x\n" for text in texts))
    assert [value["a"] for value in values(records)] == expected
    as_text = await read(tmp_path / "in", "a,b\n" + "".join(f"{text},x\n" for text in texts), infer_types=False)
    assert [value["a"] for value in values(as_text)] == [text or None for text in texts]


async def test_later_row_that_does_not_fit_what_was_found_out_is_a_bad_record_and_never_changed(tmp_path):
    records = await read(tmp_path / "in", "a,b\n" + "1,1.5\n" * 1000 + "007,1.5\n2,01.5\n3,4\n")
    assert values(records)[1000:] == [{"a": 3, "b": 4.0}]
    assert faults(records) == [
        "line 1002: column 'a': '007' is no int64 (found in the first rows; declare another one in `types`)",
        "line 1003: column 'b': '01.5' is no double (found in the first rows; declare another one in `types`)",
    ]


DECLARED = [
    ("string", "007", "007"),
    ("int64", "007", 7),
    ("uint8", "255", 255),
    ("uint8", "256", ValueError),
    ("int64", "1_000", ValueError),
    ("int64", "1.0", ValueError),
    ("double", "NaN", float("nan")),
    ("double", "1e5", 100_000.0),
    ("double", "1_0", ValueError),
    ("boolean", "True", True),
    ("boolean", "0", False),
    ("boolean", "yes", ValueError),
    ("decimal(6,2)", "12.5", "12.50"),
    ("decimal(6,2)", "12.505", ValueError),
    ("decimal(4,2)", "123.4", ValueError),
    ("decimal(4,2)", "NaN", ValueError),
    ("date", "2026-01-31", "2026-01-31"),
    ("date", "2026-02-31", ValueError),
    ("time", "12:30", "12:30:00.000000"),
    ("timestamp", "2026-01-31T12:00:00+01:00", "2026-01-31T11:00:00.000000Z"),
    ("timestamp", "2026-01-31 12:00:00Z", "2026-01-31T12:00:00.000000Z"),
    ("timestamp", "2026-01-31T12:00:00", ValueError),
    ("timestamp-ntz", "2026-01-31 12:00", "2026-01-31T12:00:00.000000"),
    ("timestamp-ntz", "2026-01-31T12:00:00Z", ValueError),
    ("binary", "/w==", b"\xff"),
    ("binary", "?", ValueError),
    ("json", '{"a": [1]}', {"a": [1]}),
    ("json", "{", ValueError),
    ("int64", "", None),
]


@pytest.mark.parametrize(("kind", "text", "expected"), DECLARED)
def test_declared_type_takes_what_is_written_like_it_and_nothing_else(kind, text, expected):
    column = TextColumn("a", column_type(kind), frozenset([""]), is_declared=True)
    if expected is ValueError:
        with pytest.raises(ValueError, match=r"column 'a': .* is no .* \(declared\)"):
            column.value(text)
        with pytest.raises((ValueError, ArithmeticError, msgspec.DecodeError)):
            column.values([text])
        return
    assert repr(column.value(text)) == repr(expected)
    assert repr(list(column.values([text, "", text]))) == repr([expected, None, expected])


async def test_texts_that_mean_null_are_a_choice(tmp_path):
    records = await read(tmp_path / "in", "a,b\nNA,\n1,x\n", null_values=["NA"])
    assert values(records) == [{"a": None, "b": ""}, {"a": 1, "b": "x"}]


BAD = {
    "too few fields": (b"1\n", "line 3: 1 fields where there are 2 columns (a, b)"),
    "too many fields": (b"1,2,3\n", "line 3: 3 fields where there are 2 columns (a, b)"),
    "no text": (b"1,\xff\n", "line 3: it is no text in utf-8"),
    "text behind quotes": (b'1,"x"y\n', "line 3: ',' expected after '\"'"),
    "carriage return": (b"1,x\ry\n", "line 3: new-line character seen in unquoted field"),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_row_is_a_record_with_its_bytes_its_line_and_a_reason(tmp_path, name):
    raw, reason = BAD[name]
    records = await read(tmp_path / "in", b'a,b\n1,"o\nk"\n'.replace(b"\nk", b"k") + raw + b"3,x\n")
    assert values(records) == [{"a": 1, "b": "ok"}, {"a": 3, "b": "x"}]
    (bad,) = [record for record in records if record.fault is not None]
    assert bad.value == raw.rstrip(b"\n")
    assert bad.fault.startswith(f"{tmp_path / 'in'}, {reason}")
    assert bad.next_offset - bad.offset == len(raw)


async def test_quote_that_is_not_closed_costs_one_line(tmp_path):
    records = await read(tmp_path / "in", 'a,b\n1,"x\n2,y\n3,z\n')
    assert values(records) == [{"a": 2, "b": "y"}, {"a": 3, "b": "z"}]
    assert faults(records) == ["line 2: a quote is not closed"]


async def test_quote_that_is_not_closed_is_not_looked_for_in_the_whole_file(tmp_path):
    text = 'a,b\n1,"x\n' + "2,y\n" * 500_000
    records = await read(tmp_path / "in", text, record_max_bytes=MIB)
    assert len(values(records)) == 500_000
    assert faults(records) == ["line 2: a quote is not closed"]


async def test_lines_of_faults_are_right_behind_a_restart(tmp_path):
    text = "a,b\n" + "1,x\n" * 10 + "2\n"
    records = await read(tmp_path / "in", text)
    rest = await read_all(CsvSource(tmp_path / "in"), {records[0].source: records[8].next_offset})
    assert faults(rest) == faults(records) == ["line 12: 1 fields where there are 2 columns (a, b)"]


async def test_long_row_is_shortened_and_reading_goes_on(tmp_path):
    text = b"a,b\n1,x\n2," + b"y" * 5_000_000 + b"\n3,z\n"
    records = await read(tmp_path / "in", text, record_max_bytes=100)
    assert [len(record.value) for record in records] == [len(records[0].value), 101, len(records[2].value)]
    assert values([records[0], records[2]]) == [{"a": 1, "b": "x"}, {"a": 3, "b": "z"}]
    assert records[1].next_offset == len(text) - 4


async def test_file_may_grow_between_two_runs(tmp_path):
    path = tmp_path / "in"
    records = await read(path, "a,b\n1,x\n2,y")
    with path.open("a") as file:
        file.write("\n3,z\n")
    rest = await read_all(CsvSource(path), {records[0].source: records[-1].next_offset})
    assert values(rest) == [{"a": 3, "b": "z"}]


async def test_name_that_ends_like_a_fingerprint_is_a_name(tmp_path):
    records = await read(tmp_path / "in#0123abcd", "a\n1\n2\n")
    path = str(tmp_path / "in#0123abcd")
    assert await read_all(CsvSource(path), {path: records[0].next_offset}) == records[1:]


@pytest.mark.parametrize("position", [2, 99])
async def test_file_that_is_shorter_or_has_no_row_at_its_position_is_refused(tmp_path, position):
    path = tmp_path / "in"
    path.write_text("a,b\n1,x\n")
    with pytest.raises(SourceError):
        await CsvSource(path).open({str(path): position})


async def test_file_with_nothing_in_it_has_no_rows(tmp_path):
    assert await read(tmp_path / "in", "") == []
    assert await read(tmp_path / "in", "a,b\n") == []
    assert await read(tmp_path / "in", "", header=False, columns=["a"]) == []


@pytest.mark.parametrize("text", ['"a\n1,2\n', b"\xff,b\n1,2\n", "a,a\n1,2\n"])
async def test_header_that_cannot_be_read_is_told(tmp_path, text):
    with pytest.raises(SourceError) as caught:
        await read(tmp_path / "in", text)
    assert str(tmp_path / "in") in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    "options",
    [
        {"header": False},
        {"delimiter": ";;"},
        {"delimiter": "\n"},
        {"delimiter": '"'},
        {"quote": "é"},
        {"encoding": "utf-16"},
        {"encoding": "klingon"},
        {"types": {"a": "list<string>"}},
        {"types": {"a": "strng"}},
    ],
)
def test_options_that_are_not_possible_are_refused(options):
    with pytest.raises(ValueError, match=r"\w") as caught:
        CsvSource("in", **options)
    assert str(caught.value)


TEXTS = st.text(st.sampled_from(list('ab",;\n\r é7')), max_size=8)


@st.composite
def files(draw):
    """Rows of two texts, and bytes of CSV that say them."""
    rows = draw(st.lists(st.tuples(TEXTS, TEXTS), max_size=12))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=draw(st.sampled_from(["\n", "\r\n"])), quoting=csv.QUOTE_ALL)
    writer.writerows(rows)
    return rows, text.getvalue().encode()


def split(content, block, position=0):
    """Return the records of rows of two texts that come in blocks of some size."""
    names = ("a", "b")
    columns = [
        (n, TextColumn(name, column_type("string"), frozenset(), is_declared=True)) for n, name in enumerate(names)
    ]
    layout = RowLayout(names, columns, RowEncoder(names))
    splitter = CsvSplitter("in", "in", position, Dialect(",", '"', "utf-8"), layout, 1000, lambda: 0)
    records = []
    for at in range(position, len(content), block):
        records += splitter.feed(content[at : at + block])
    return records + splitter.finish()


@given(files(), st.integers(1, 40))
def test_every_row_is_found_with_its_bytes_whatever_the_blocks_are(file, block):
    rows, content = file
    records = split(content, block)
    assert [tuple(value.values()) for value in values(records)] == rows
    assert records == split(content, max(1, len(content)))
    behind = 0
    for number, record in enumerate(records):
        assert record.offset == behind
        behind = record.next_offset
        assert split(content, block, behind) == records[number + 1 :]
    assert behind == len(content)


@given(
    st.text(st.sampled_from(list('ab",\n\r7')), max_size=60).map(str.encode) | st.binary(max_size=60),
    st.integers(1, 70),
)
def test_no_content_stops_reading_and_no_byte_is_read_twice(content, block):
    records = split(content, block)
    behind = 0
    for record in records:
        assert behind <= record.offset < record.next_offset <= len(content)
        assert content[behind : record.offset].strip(b"\r\n\xef\xbb\xbf") == b"", "only blank lines are skipped"
        behind = record.next_offset

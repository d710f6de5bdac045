"""Every kind of part files: how a sink of it is made, and what a reader of one of its files sees."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from agentflow.connectors.arrow_sinks import ArrowSink, ParquetSink
from agentflow.connectors.csv_sink import CsvSink
from agentflow.connectors.jsonl_sink import JsonlSink
from agentflow.connectors.part_files import PartFileSink


class Kind(NamedTuple):
    """One kind of part files."""

    suffix: str
    new_sink: Callable[[str], PartFileSink]
    rows: Callable[[bytes], list[object]]  # raises for a file that is not whole


def lines(content):
    assert content.endswith(b"\n")
    return [msgspec.json.decode(line) for line in content.splitlines()]


def csv_rows(content):
    """Rows of CSV, with numbers where there are some; whole means that the last row has all columns and its newline."""
    assert content.endswith(b"\n")
    header, *rows = csv.reader(io.StringIO(content.decode(), newline=""))
    assert {len(row) for row in rows} == {len(header)}
    return outputs(
        [
            {name: int(text) if text.lstrip("-").isdecimal() else text for name, text in zip(header, row, strict=True)}
            for row in rows
        ]
    )


def outputs(rows):
    """What was given to the sink for rows: an output that is no object has one column."""
    return [row["value"] if list(row) == ["value"] else row for row in rows]


KINDS = {
    "jsonl": Kind(".jsonl", JsonlSink, lines),
    "csv": Kind(".csv", CsvSink, csv_rows),
    "parquet": Kind(
        ".parquet", ParquetSink, lambda content: outputs(pq.read_table(pa.BufferReader(content)).to_pylist())
    ),
    "arrow": Kind(".arrow", ArrowSink, lambda content: outputs(pa.ipc.open_file(content).read_all().to_pylist())),
}

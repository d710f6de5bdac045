"""Sources and sinks of tables in a job file: what is written for them, and how what is wrong is told."""

from __future__ import annotations

import pytest

from agentflow.cli.config_file import load_job_file
from agentflow.cli.job_file import CsvSink, CsvSource, ParquetSink
from tests.unit.cli.job_files import GOOD, problems, told


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


SOURCE, SINK = "{jsonl: {path: in.jsonl}}", "{jsonl: {path: out/}}"
CASES = {
    "type that is none": (
        GOOD.replace(SINK, "{parquet: {path: out/, schema: {stars: integr}}}"),
        """
        job.yaml:5: sink.parquet.schema has no type for 'stars': 'integr' is no type; did you mean 'int'?
          5 | sink: {parquet: {path: out/, schema: {stars: integr}}}
                                                           ^^^^^^ such as string, int64, double; types with , or : are written in quotes, such as "decimal(10,2)"
        help: agentflow schema --describe sink
        """,
    ),
    "schema that is no mapping": (
        GOOD.replace(SINK, "{parquet: {path: out/, schema: [stars]}}"),
        """
        job.yaml:5: sink.parquet.schema is a list
          5 | sink: {parquet: {path: out/, schema: [stars]}}
                                                   ^^^^^^^ names and types are wanted, such as {stars: int64, text: string}
        help: agentflow schema --describe sink
        """,
    ),
    "no columns": (
        GOOD.replace(SINK, "{arrow: {path: out/, schema: {}}}"),
        """
        job.yaml:5: sink.arrow.schema has no columns
          5 | sink: {arrow: {path: out/, schema: {}}}
                                                 ^^ names and types are wanted, such as {stars: int64, text: string}
        help: agentflow schema --describe sink
        """,
    ),
    "nested type in CSV": (
        GOOD.replace(SOURCE, "{csv: {path: in.csv, types: {tags: list<string>}}}"),
        """
        job.yaml:4: source.csv.types: column 'tags': a field of CSV is no list; json takes any value, written as JSON
          4 | source: {csv: {path: in.csv, types: {tags: list<string>}}}
                                                  ^^^^^^^^^^^^^^^^^^^^
        """,
    ),
    "delimiter of two characters": (
        GOOD.replace(SOURCE, '{csv: {path: in.csv, delimiter: "||"}}'),
        """
        job.yaml:4: source.csv: the delimiter is '||'; one character of ASCII is wanted
          4 | source: {csv: {path: in.csv, delimiter: "||"}}
                                                      ^^^^
        """,
    ),
    "encoding without lines": (
        GOOD.replace(SOURCE, "{csv: {path: in.csv, encoding: utf-16}}"),
        """
        job.yaml:4: source.csv: ASCII is no part of the encoding 'utf-16', so lines cannot be told apart: convert the files to UTF-8
          4 | source: {csv: {path: in.csv, encoding: utf-16}}
                                                     ^^^^^^
        """,
    ),
    "no header and no columns": (
        GOOD.replace(SINK, "{csv: {path: out/, header: false}}"),
        """
        job.yaml:5: sink.csv.columns is missing: files without a header do not say what their columns are called
          5 | sink: {csv: {path: out/, header: false}}
                                               ^^^^^ such as  sink.csv.columns: [product_id, stars]
        """,
    ),
    "unknown compression": (
        GOOD.replace(SINK, "{parquet: {path: out/, compression: zstandard}}"),
        """
        job.yaml:5: sink.parquet.compression is unknown: 'zstandard'
          5 | sink: {parquet: {path: out/, compression: zstandard}}
                                                        ^^^^^^^^^ did you mean 'zstd'? one of zstd, snappy, gzip, lz4, brotli, none
        help: agentflow schema --describe sink
        """,
    ),
    "two sinks of other kinds in one directory": (
        GOOD + "dead-letter: {csv: {path: ./out}}\n",
        """
        job.yaml:7: dead-letter.csv.path and sink.jsonl.path are the same directory
          7 | dead-letter: {csv: {path: ./out}}
                                        ^^^^^ choose another one
        """,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_problem_is_told_with_place_mark_and_fix(name):
    text, expected = CASES[name]
    assert problems(text) == [told(expected)]


def load(text):
    with open("job.yaml", "w") as file:  # noqa: PTH123
        file.write(text)
    return load_job_file("job.yaml", variables={}).composition


def test_blank_characters_and_nothing_are_texts_where_they_mean_something():
    composition = load(
        GOOD.replace(
            SOURCE, '{csv: {path: in.csv, delimiter: "\\t", quote: null, null-values: ["", " ", NA]}}'
        ).replace(SINK, '{csv: {path: out/, delimiter: " ", null-value: "NULL"}}')
    )
    assert composition.source == CsvSource(path=("in.csv",), delimiter="\t", quote=None, null_values=("", " ", "NA"))
    assert composition.sink == CsvSink(path="out/", delimiter=" ", null_value="NULL")


def test_columns_are_written_as_a_mapping_and_laid_over_by_a_variable():
    text = GOOD.replace(
        SINK, '\n  parquet:\n    path: out/\n    schema:\n      price: decimal(10,2)\n      a.b: "list<string>"\n'
    )
    assert load(text).sink == ParquetSink(path="out/", schema={"price": "decimal(10,2)", "a.b": "list<string>"})
    variables = {"AGENTFLOW_SINK_PARQUET_SCHEMA": "{stars: int64}"}
    laid_over = load_job_file("job.yaml", variables=variables).composition
    assert laid_over.sink == ParquetSink(path="out/", schema={"stars": "int64"})


def test_url_that_names_no_bucket_is_told_with_its_line():
    text = GOOD.replace(SOURCE, "{jsonl: {path: [in.jsonl, s4://bucket/x]}}")
    assert problems(text) == [
        told(
            """
            job.yaml:4: source.jsonl.path: 's4://bucket/x' names no bucket; such as s3://bucket/prefix (known are s3://, gs://, az://, memory://)
              4 | source: {jsonl: {path: [in.jsonl, s4://bucket/x]}}
                                         ^^^^^^^^^^^^^^^^^^^^^^^^^
            """
        )
    ]


@pytest.mark.parametrize("key", ["secret-access-key", "session-token", "account-key"])
def test_secrets_of_object_stores_are_not_shown_beside_a_problem(key):
    (problem,) = problems(GOOD + f"object-store: {{{key}: hunter2, regoin: x}}\n")
    assert "regoin" in problem
    assert "hunter2" not in problem

"""Jobs from tables to tables: as processes, from job files, and killed in the middle."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[2]

AGENTS = """\
from agentflow import Agent, EventType, InputEvent, OutputEvent, RunnerContext, action


class Score(Agent):
    @action(EventType.InputEvent)
    def score(event: InputEvent, ctx: RunnerContext) -> None:
        total = ctx.short_term_memory.update("total", lambda n: (n or 0) + event.input["stars"])
        ctx.send_event(OutputEvent({"product": ctx.key, "total": total, "at": event.input.get("at")}))
"""

JOB = """\
job: scores
agent: agents:Score
key-by: product
source: {source}
sink: {sink}
dead-letter: {dead}
state.dir: state/
checkpoint.interval: 20ms
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "agents.py").write_text(AGENTS, encoding="utf-8")
    return tmp_path


def write_job(project, source, sink, dead="{csv: {path: dead/}}"):
    (project / "job.yaml").write_text(JOB.format(source=source, sink=sink, dead=dead), encoding="utf-8")


def start(project):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENTFLOW_")}
    command = [sys.executable, "-m", "agentflow", "run", "job.yaml"]
    return subprocess.Popen(
        command, cwd=project, env=kept | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )


def run(project):
    with start(project) as process:
        _, log = process.communicate(timeout=60)
    return process.returncode, log


def parquet_rows(directory):
    return [row for path in sorted(directory.glob("part-*")) for row in pq.read_table(path).to_pylist()]


def dead_letters(directory):
    rows = []
    for path in sorted(directory.glob("part-*")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += csv.DictReader(file)
    return rows


def test_csv_becomes_parquet_and_bad_rows_are_dead_letters_with_file_and_line(project):
    (project / "in.csv").write_text(
        'product,stars,at\na,5,2026-01-31\nb,4,"2026\n-02-01"\na,many,x\nb,2\na,1,\n', encoding="utf-8"
    )
    write_job(project, "{csv: {path: in.csv, types: {stars: int64}}}", "{parquet: {path: out/}}")
    status, log = run(project)
    assert status == 0, log
    assert parquet_rows(project / "out") == [
        {"product": "a", "total": 5, "at": "2026-01-31"},
        {"product": "b", "total": 4, "at": "2026\n-02-01"},
        {"product": "a", "total": 6, "at": None},
    ]
    letters = dead_letters(project / "dead")
    assert [
        (row["error-type"], row["error-message"], row["value-text"], row["source-position"]) for row in letters
    ] == [
        ("DecodeError", "in.csv, line 5: column 'stars': 'many' is no int64 (declared)", "a,many,x", "in.csv/50"),
        ("DecodeError", "in.csv, line 6: 2 fields where there are 3 columns (product, stars, at)", "b,2", "in.csv/59"),
    ]


def test_bad_row_without_dead_letters_stops_the_job_and_says_where(project):
    (project / "in.csv").write_text("product,stars\na,5\nb\n", encoding="utf-8")
    write_job(project, "{csv: {path: in.csv}}", "{csv: {path: out/}}", "null")
    status, log = run(project)
    assert status == 1
    assert "in.csv, line 3: 1 fields where there are 2 columns (product, stars)" in log


def test_output_that_does_not_fit_stops_the_job_and_leaves_what_is_published(project):
    (project / "in.csv").write_text("product,stars\na,5\n", encoding="utf-8")
    write_job(project, "{csv: {path: in.csv}}", "{parquet: {path: out/, schema: {product: string}}}", "null")
    status, log = run(project)
    assert status == 1
    assert "row 1 has a field 'at', for which there is no column" in log
    assert not list((project / "out").glob("part-*"))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv"])
@pytest.mark.chaos
def test_killed_job_goes_on_behind_its_last_checkpoint_and_repeats_no_row(project, kind):
    count = 60_000
    table = pa.table({"product": [f"p{n % 7}" for n in range(count)], "stars": [1] * count})
    path = project / f"in.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=7_000)
    elif kind == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=7_000)
    else:
        path.write_text("product,stars\n" + "".join(f"p{n % 7},1\n" for n in range(count)), encoding="utf-8")
    write_job(project, f"{{{kind}: {{path: in.{kind}}}}}", "{parquet: {path: out/}}")
    for kills in range(3):
        with start(project) as process:
            while len(list((project / "out").glob("part-*"))) < 2 * (kills + 1) and process.poll() is None:
                pass
            process.send_signal(signal.SIGKILL)
            process.communicate()
    status, log = run(project)
    assert status == 0, log
    totals: dict[str, list[int]] = {}
    for row in parquet_rows(project / "out"):
        totals.setdefault(row["product"], []).append(row["total"])
    assert totals == {f"p{k}": list(range(1, len(range(k, count, 7)) + 1)) for k in range(7)}

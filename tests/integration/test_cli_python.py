"""Functions and classes of one's own as source and sink of a job file."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "agentflow", "run", "job.yaml"]
SHOP = """\
import asyncio
import sqlite3

from agentflow import Agent, EventType, InputEvent, OutputEvent, RunnerContext, action, idempotent
from agentflow.api.codecs import JSON
from agentflow.core.records import Record


class Count(Agent):
    @action(EventType.InputEvent)
    def count(event: InputEvent, ctx: RunnerContext) -> None:
        count = ctx.short_term_memory.update("count", lambda n: (n or 0) + 1)
        ctx.send_event(OutputEvent({"k": ctx.key, "n": event.input["n"], "count": count}))


async def orders(position, *, keys, last=50, wait_ms=0):
    for n in range(position or 0, last):
        if wait_ms:
            await asyncio.sleep(wait_ms / 1000)
        yield {"k": n % keys, "n": n}, n + 1


async def stream(keys=1):
    yield {"k": 0, "n": 0}


@idempotent
def store(outputs, *, file="table.db"):
    with sqlite3.connect(file) as table:
        table.execute("create table if not exists outputs (id text primary key, value text)")
        table.executemany("insert or replace into outputs values (?, ?)", [(o.id, o.json.decode()) for o in outputs])


def print_all(outputs):
    for output in outputs:
        print(output.id, output.value["n"])


class Ones:
    name = "ones"
    is_replayable = True
    codec = JSON
    partitions = ()
    idle_timeout_ms = None

    def __init__(self, last):
        self.last = last

    async def open(self, positions):
        self.next = positions.get("ones", 0)

    async def fetch(self, records_max):
        n, self.next = self.next, min(self.next + 1, self.last)
        return [Record("ones", n, n + 1, b'{"k": 1, "n": 1}')] if n < self.last else []

    async def close(self):
        pass


class Half:
    async def open(self, positions): ...


class Broken(Ones):
    def __init__(self, last):
        raise ValueError("no such queue")


NOTHING = 5
"""
JOB = """\
job: orders
agent: shop:Count
key-by: k
source: {python: {function: shop:orders, options: {keys: 3}}}
sink: {python: {function: shop:store}}
state.dir: state/
checkpoint.interval: 20ms
restart.strategy: none
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENTFLOW_")}
    kept["AGENTFLOW_LOG_FORMAT"] = "console"
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | variables


def run(project: Path, *settings: str, **variables: str) -> subprocess.CompletedProcess[str]:
    flags = [part for setting in settings for part in ("--set", setting)]
    return subprocess.run(
        [*COMMAND, *flags],
        cwd=project,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def set_source(project: Path, source: str) -> None:
    job = project / "job.yaml"
    job.write_text(re.sub(r"source: .*", f"source: {source}", job.read_text()))


def stored(project: Path) -> list[dict]:
    if not (project / "table.db").exists():
        return []
    with contextlib.closing(sqlite3.connect(project / "table.db")) as table:
        return [json.loads(value) for (value,) in table.execute("select value from outputs")]


def test_functions_run_as_source_and_sink_with_their_options(project):
    answer = run(project, "source.python.options.last=10", AGENTFLOW_SOURCE_PYTHON_OPTIONS_KEYS="2")
    assert answer.returncode == 0, answer.stderr
    assert 'source="python shop:orders"  sink="python shop:store (idempotent)"' in answer.stderr
    assert sorted(row["n"] for row in stored(project)) == list(range(10))
    assert {row["k"] for row in stored(project)} == {0, 1}
    answer = run(project, "source.python.options.last=12")
    assert "records_in=2  records_out=2" in answer.stderr


def test_nested_options_and_kebab_case_names_reach_the_function(project):
    text = JOB.replace("options: {keys: 3}", "options: {keys: 3, wait-ms: 1, last: 4}")
    (project / "job.yaml").write_text(text)
    assert run(project).returncode == 0
    assert len(stored(project)) == 4


def test_class_with_the_methods_of_a_source_is_one(project):
    set_source(project, "{python: {function: 'shop:Ones', options: {last: 3}}}")
    answer = run(project)
    assert answer.returncode == 0, answer.stderr
    assert [row["count"] for row in stored(project)] == [1, 2, 3]


def test_function_that_promises_nothing_runs_where_nothing_is_asked_for(project):
    set_source(project, "{python: {function: 'shop:stream'}}")
    answer = run(
        project,
        "sink={python: {function: 'shop:print_all'}}",
        "guarantee=none",
        "state.dir=null",
    )
    assert (answer.returncode, answer.stdout) == (0, "python/0/0:count/0 0\n"), answer.stderr


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["source.python.function=shop:order"], "module 'shop' has no 'order'"),
        (["source.python.function=shop"], "source 'shop' is not module:name"),
        (["source.python.function=shop:NOTHING"], "not a int"),
        (["source.python.function=shop:stream"], "source 'shop:stream' cannot be read twice"),
        (["source.python.function=shop:Ones"], "cannot be made with these options"),
        (["source.python.options.stride=2"], "cannot be called with position, keys, stride"),
        (["source={python: {function: 'shop:Half'}}"], "is no Source: it has no fetch and no close"),
        (["sink.python.function=shop:print_all"], "sink 'shop:print_all' is at-least-once"),
        (["sink={python: {function: 'shop:Half'}}"], "is no Sink: it has no write and no barrier"),
        (["sink.python.options.table=t"], "takes no list of outputs"),
        (["source.python.options=5"], "is a section, not a value"),
    ],
)
def test_what_is_wrong_with_a_function_is_told_before_anything_starts(project, settings, told):
    answer = run(project, *settings)
    assert answer.returncode == 2
    assert told in answer.stderr
    assert not (project / "state").exists()


def test_class_that_cannot_be_made_ends_the_job_with_its_reason(project):
    set_source(project, "{python: {function: 'shop:Broken', options: {last: 3}}}")
    answer = run(project)
    assert answer.returncode == 1
    assert "error: the class raised ValueError: no such queue\n  class shop:Broken\n" in answer.stderr


def test_error_of_a_function_names_it_its_place_and_the_position(project):
    (project / "shop.py").write_text(SHOP.replace('yield {"k": n % keys', 'yield 1 / (5 - n) and {"k": n % keys'))
    answer = run(project)
    assert answer.returncode == 1
    assert "error: the source function raised ZeroDivisionError: division by zero\n" in answer.stderr
    assert "function shop:orders  values 5  behind position 5" in answer.stderr


def test_validate_finds_what_a_function_cannot_promise(project):
    command = [sys.executable, "-m", "agentflow", "validate", "job.yaml"]
    flags = ["--set", "sink.python.function=shop:print_all"]
    answer = subprocess.run(
        [*command, *flags], cwd=project, env=environment(), capture_output=True, text=True, check=False
    )
    assert answer.returncode != 0
    assert "is at-least-once" in answer.stdout + answer.stderr


@pytest.mark.chaos
def test_job_of_functions_that_is_killed_stores_every_order_once(project):
    luck = random.Random(20261126)
    settings = ["source.python.options.last=3000", "source.python.options.wait-ms=1"]
    flags = [part for setting in settings for part in ("--set", setting)]
    for _ in range(8):
        with subprocess.Popen([*COMMAND, *flags], cwd=project, env=environment(), stderr=subprocess.DEVNULL) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(luck.uniform(0.5, 1.5))
            process.send_signal(signal.SIGKILL)
    answer = run(project, *settings)
    assert answer.returncode == 0, answer.stderr
    assert re.search("restored  checkpoint=", answer.stderr)
    rows = sorted(stored(project), key=lambda row: row["n"])
    assert [row["n"] for row in rows] == list(range(3000))
    for key in range(3):
        assert [row["count"] for row in rows if row["k"] == key] == list(range(1, 1001))

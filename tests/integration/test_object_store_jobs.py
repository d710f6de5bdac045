"""Jobs from and to an object store: killed, and with a server that throttles, fails and goes away."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.s3_server import S3Server

ROOT = Path(__file__).resolve().parents[2]
COUNT = 20_000
KEYS = 7

AGENTS = """\
from agentflow import Agent, EventType, InputEvent, OutputEvent, RunnerContext, action


class Count(Agent):
    @action(EventType.InputEvent)
    def count(event: InputEvent, ctx: RunnerContext) -> None:
        total = ctx.short_term_memory.update("total", lambda n: (n or 0) + 1)
        ctx.send_event(OutputEvent({"key": ctx.key, "total": total}))
"""

JOB = """\
job: counts
agent: agents:Count
key-by: k
source: {{jsonl: {{path: "{url}/in/*.jsonl"}}}}
sink: {{{sink}: {{path: {url}/out}}}}
dead-letter: {{jsonl: {{path: {url}/dead}}}}
state.dir: state/
checkpoint.interval: 50ms
restart: {{delay: 100ms, delay-max: 200ms, attempts: 100}}
object-store:
  endpoint: {endpoint}
  region: us-east-1
  access-key-id: "${{env:S3_ID}}"
  secret-access-key: "${{env:S3_SECRET}}"
  retry-timeout: 300ms
"""


@pytest.fixture
def server():
    """A server of this test alone: it goes away."""
    own = S3Server()
    yield own
    own.stop()


@pytest.fixture
def project(server, tmp_path):
    (tmp_path / "agents.py").write_text(AGENTS, encoding="utf-8")
    return tmp_path


def write_job(project, server, url, sink):
    text = JOB.format(url=url, endpoint=server.endpoint, sink=sink)
    (project / "job.yaml").write_text(text, encoding="utf-8")
    store = server.store(url)
    for number in range(4):
        lines = [b'{"k":"%d","n":%d}\n' % (n % KEYS, n) for n in range(number, COUNT, 4)]
        store.put(f"in/{number}.jsonl", lines)
    return store


def start(project):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTFLOW_", "AWS_"))}
    variables = kept | {"PYTHONPATH": str(ROOT), "S3_ID": "test", "S3_SECRET": "test"}
    command = [sys.executable, "-m", "agentflow", "run", "job.yaml"]
    return subprocess.Popen(command, cwd=project, env=variables, stderr=subprocess.PIPE, text=True)


def rows(store, sink):
    found = []
    for file in store.find("out/"):
        reader = store.open(file.name)
        body = reader.read(0, reader.size)
        if sink == "parquet":
            found += pq.read_table(pa.BufferReader(body)).to_pylist()
        else:
            found += map(msgspec.json.decode, body.splitlines())
    return found


def parts(store):
    return len(store.find("out/"))


def assert_counted_once(store, sink):
    totals: dict[str, list[int]] = {}
    for row in rows(store, sink):
        totals.setdefault(row["key"], []).append(row["total"])
    assert totals == {str(k): list(range(1, len(range(k, COUNT, KEYS)) + 1)) for k in range(KEYS)}


@pytest.mark.chaos
@pytest.mark.parametrize("sink", ["jsonl", "parquet"])
def test_killed_job_goes_on_and_repeats_and_loses_nothing(server, project, sink):
    store = write_job(project, server, server.new_bucket(), sink)
    for kills in range(3):
        with start(project) as process:
            while parts(store) <= 2 * kills and process.poll() is None:
                pass
            process.send_signal(signal.SIGKILL)
            process.communicate()
    with start(project) as process:
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert_counted_once(store, sink)


@pytest.mark.chaos
def test_server_that_goes_away_and_comes_back_costs_restarts_and_nothing_else(server, project):
    store = write_job(project, server, server.new_bucket(), "jsonl")
    answers = itertools.cycle([None, None, 503, None, 500])
    server.trouble = lambda method, path: next(answers)
    restarts = []
    with start(project) as process:
        for _ in range(2):
            before = len(server.requests)
            while len(server.requests) < before + 20 and process.poll() is None:
                pass
            server.stop()
            for line in process.stderr:
                if "job restarts" in line:
                    restarts.append(line)
                    break
            server.start()
        server.trouble = None
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert len(restarts) == 2
    assert_counted_once(store, "jsonl")

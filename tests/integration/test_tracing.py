"""Traces and metrics of a real process that is killed in the middle of its runs, and of the one that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.otlp_receiver import Collector, collector

ROOT = Path(__file__).resolve().parents[2]
RUNS = 5

AGENT = """\
import asyncio
import os
from agentflow import Agent, Event, EventType, InputEvent, OutputEvent, Retry, RunnerContext, action


def reserve(n: int) -> int:
    return n


async def charge(n: int) -> int:
    while not os.path.exists("gate"):
        await asyncio.sleep(0.01)
    return n


class Shop(Agent):
    @action(EventType.InputEvent)
    def receive(event: InputEvent, ctx: RunnerContext) -> None:
        ctx.send_event(Event("order", {"n": event.input["n"]}))

    @action("order", retry=Retry(attempts=3, initial="1ms"))
    async def order(event: Event, ctx: RunnerContext) -> None:
        n = event.attributes["n"]
        await ctx.durable_execute_async(reserve, n, name="reserve")
        await ctx.durable_execute_async(charge, n, name="charge")
        if n == 1 and ctx.attempt == 1:
            raise ValueError("again")
        ctx.send_event(OutputEvent(n))
"""

JOB = """\
job: shop
agent: agents:Shop
key-by: n
source: {jsonl: {path: in.jsonl}}
sink: {jsonl: {path: out/}}
state.dir: state/
checkpoint.interval: 50ms
tracing: {enabled: true, sample-ratio: 1}
metrics: {otlp: true, interval: 50ms}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "agents.py").write_text(AGENT)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(RUNS)))
    return tmp_path


def start(project: Path, seen: Collector) -> subprocess.Popen[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTFLOW_", "OTEL_"))}
    with (project / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "agentflow", "run", "job.yaml", "--set", f"otlp.endpoint={seen.endpoint}"],
            cwd=project,
            env={**kept, "PYTHONPATH": str(ROOT), "AGENTFLOW_LOG_FORMAT": "console"},
            stderr=log,
        )


def test_a_killed_run_and_its_recovery_are_one_trace_without_orphans(project: Path) -> None:
    with collector() as seen:
        process = start(project, seen)
        try:
            seen.wait(lambda: len(seen.by_name("step reserve")) == RUNS)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        before = list(seen.spans)
        assert {span.name for span in before} == {"action receive", "step reserve"}, "what was in flight is no span yet"
        (project / "gate").write_text("")
        assert start(project, seen).wait(60) == 0, (project / "log").read_text()
        assert (
            seen.value("agentflow.steps.replayed", step="reserve") >= RUNS
        )  # and of the second attempt of one of them
        assert seen.value("agentflow.steps.called", step="charge") == RUNS

    spans = seen.spans
    by_id = {span.id: span for span in spans}
    assert len(by_id) == len(spans), "an id came twice"
    assert Counter(span.name for span in spans) == {
        "run Shop": RUNS,
        "action receive": RUNS,
        "action order": RUNS + 1,
        "step reserve": RUNS,  # of the first process: the second one was answered
        "step charge": RUNS,
    }
    assert len({span.trace for span in spans}) == RUNS
    for span in spans:
        if span.name != "run Shop":
            parent = by_id[span.parent]
            assert (parent.trace, parent.name) == (
                span.trace, "action order" if span.name.startswith("step") else "run Shop",
            )  # fmt: skip
    for run in seen.by_name("run Shop"):
        assert run.parent == ""
        of_run = [span for span in spans if span.trace == run.trace]
        (reserve,) = (span for span in of_run if span.name == "step reserve")
        assert reserve in before
        assert run.began_ns <= min(span.began_ns for span in of_run)
        first = next(s for s in of_run if s.name == "action order" and s.attributes["agentflow.attempt"] == 1)
        assert reserve.parent == first.id
        assert [(link.span, link.attributes["agentflow.link"]) for link in first.links] == [
            (reserve.id, "last step before it began again")
        ]
        assert "agentflow.resumed" in [name for name, _, _ in first.events]
        for second in (s for s in of_run if s.name == "action order" and s.attributes["agentflow.attempt"] == 2):
            assert second.links[0].span == first.id
            assert first.is_error
    assert sum(len(path.read_text().splitlines()) for path in (project / "out").glob("part-*")) == RUNS


def test_a_collector_that_is_away_costs_a_line(project: Path) -> None:
    (project / "gate").write_text("")
    with collector() as gone:
        pass
    process = start(project, gone)
    assert process.wait(60) == 0
    log = (project / "log").read_text()
    assert log.count("cannot be exported") == 2  # one of spans, one of metrics
    assert "Traceback" not in log

"""Log lines of an embedded job go to the host's own logging; a command's lines say what they are about."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

HOST = """
import io
import json
import logging
import sys
{prelude}
before = (logging.getLogger().handlers[:], logging.getLogger().level, logging.getLogger("agentflow").handlers[:])

from agentflow import Agent, AgentsExecutionEnvironment, EventType, JobSettings, OutputEvent
from agentflow.runtime.settings import MetricsSettings, OtlpSettings


def act(event, ctx):
    ctx.logger.debug("not shown", costly=object())
    ctx.logger.info("scored %s", "well", stars=4)
    try:
        raise KeyError("x")
    except KeyError:
        ctx.logger.exception("broken")
    ctx.send_event(OutputEvent(1))


def run():
    settings = JobSettings(
        job="reviews", otlp=OtlpSettings(endpoint="http://127.0.0.1:9"), metrics=MetricsSettings(otlp=True)
    )
    env = AgentsExecutionEnvironment.get_execution_environment(settings)
    agent = Agent("A").add_action("act", [EventType.InputEvent], act)
    env.from_list([{{"k": "p-1"}}]).key_by("k").apply(agent).to_list()
    env.execute()


run()
after = (logging.getLogger().handlers[:], logging.getLogger().level, logging.getLogger("agentflow").handlers[:])
assert before == after, "something was installed"
{check}
"""


def host(prelude: str, check: str = "") -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", HOST.format(prelude=prelude, check=check)],
        env={**kept, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_lines_go_to_the_hosts_handlers_with_their_fields() -> None:
    prelude = """
records = []
class Keeping(logging.Handler):
    def emit(self, record):
        records.append(record)
logging.getLogger().addHandler(Keeping())
logging.getLogger().setLevel(logging.INFO)
"""
    check = """
print(json.dumps([
    [r.name, r.levelname, r.getMessage(), r.agentflow, r.exc_info is not None, r.funcName]
    for r in records if r.name.startswith("agentflow")
]))
"""
    done = host(prelude, check)
    assert done.returncode == 0, done.stderr
    lines = json.loads(done.stdout)
    fields = {
        "job": "reviews", "agent": "A", "subtask": 0, "key": "p-1", "run": "list/0", "action": "act", "attempt": 1,
    }  # fmt: skip
    shown = "".join(f"  {name}={value}" for name, value in fields.items())
    assert lines[0] == [
        "agentflow.agent", "INFO", f"scored well{shown}  stars=4", {**fields, "stars": 4}, False, "act",
    ]  # fmt: skip
    assert lines[1][:5] == ["agentflow.agent", "ERROR", f"broken{shown}", fields, True]
    engine = [line for line in lines if line[0] == "agentflow.engine"]
    assert [line[1] for line in engine] == ["WARNING"]
    assert engine[0][3]["to"] == "http://127.0.0.1:9/v1/metrics"


def test_a_host_that_configured_nothing_sees_warnings_only_as_logging_does() -> None:
    done = host("")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert [line.split("  ")[0] for line in done.stderr.splitlines() if "  job=" in line] == ["broken"]


def test_structlog_of_the_host_is_not_asked_and_not_changed() -> None:
    prelude = """
import structlog
structlog.configure(processors=[lambda *_: (_ for _ in ()).throw(AssertionError("asked"))])
configured = structlog.get_config()
"""
    done = host(prelude, "assert structlog.get_config() == configured")
    assert done.returncode == 0, done.stderr


AGENT = """\
from agentflow import Agent, EventType, InputEvent, OutputEvent, RunnerContext, action


class Shop(Agent):
    @action(EventType.InputEvent)
    def order(event: InputEvent, ctx: RunnerContext) -> None:
        ctx.logger.info("ordered", n=event.input["n"])
        ctx.send_event(OutputEvent(1))
"""

JOB = """\
job: shop
agent: agents:Shop
key-by: n
source: {jsonl: {path: in.jsonl}}
sink: {jsonl: {path: out/}}
state.dir: state/
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "agents.py").write_text(AGENT)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "in.jsonl").write_text('{"n": 7}\n')
    return tmp_path


def lines(project: Path, *arguments: str) -> list[dict[str, Any]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTFLOW_", "OTEL_"))}
    done = subprocess.run(
        [sys.executable, "-m", "agentflow", "run", "job.yaml", *arguments],
        cwd=project,
        env={**kept, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_command_writes_json_where_no_terminal_is(project: Path) -> None:
    written = lines(project)
    assert [line["event"] for line in written] == ["job started", "ordered", "job finished"]
    line = written[1]
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert {name: line[name] for name in line if name not in ("timestamp", "level", "event")} == {
        "job": "shop", "agent": "Shop", "subtask": 0, "key": 7, "run": "in.jsonl/0", "action": "order", "attempt": 1, "n": 7,
    }  # fmt: skip


def test_a_line_of_a_traced_run_names_its_trace(project: Path) -> None:
    traced = [
        "--set",
        "tracing.enabled=true",
        "--set",
        "tracing.sample-ratio=1",
        "--set",
        "otlp.endpoint=http://127.0.0.1:9",
    ]
    (line,) = (line for line in lines(project, *traced) if line["event"] == "ordered")
    assert len(line["trace_id"]) == 32
    (project / "in.jsonl").write_text('{"n": 7}\n{"n": 8}\n')
    (line,) = (
        line
        for line in lines(project, *traced[:3], "tracing.sample-ratio=0", *traced[4:])
        if line["event"] == "ordered"
    )
    assert "trace_id" not in line

"""Metrics of jobs as they are run: served, pushed, written; and what it says when they cannot be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agentflow import Agent, AgentsExecutionEnvironment, ConfigError, Event, EventType, JobSettings, OutputEvent, Retry
from agentflow.environment.telemetry import Telemetry
from agentflow.observability.names import MetricKind, MetricName
from agentflow.runtime.settings import AdminSettings, EventLogSettings, MetricsSettings, OtlpSettings, TracingSettings
from tests.otlp_receiver import collector

ROOT = Path(__file__).resolve().parents[2]

AGENT = """\
from agentflow import Agent, EventType, InputEvent, OutputEvent, RunnerContext, action


class Count(Agent):
    @action(EventType.InputEvent)
    def count(event: InputEvent, ctx: RunnerContext) -> None:
        ctx.action_metric_group.get_sub_group("parity", str(event.input["n"] % 2)).get_counter("seen").inc()
        ctx.agent_metric_group.get_histogram("n").update(event.input["n"])
        ctx.send_event(OutputEvent(event.input["n"]))

    @action(EventType.InputEvent)
    async def wait(event: InputEvent, ctx: RunnerContext) -> None:
        if event.input["n"] == 49:
            await ctx.wait_for("the end of the test")
"""

JOB = """\
job: counting
agent: agents:Count
key-by: n
source: {jsonl: {path: in.jsonl}}
sink: {jsonl: {path: out/}}
state.dir: state/
checkpoint.interval: 100ms
admin: {host: 127.0.0.1, port: 0}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "agents.py").write_text(AGENT)
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(50)))
    return tmp_path


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTFLOW_", "OTEL_"))}
    return kept | {"PYTHONPATH": str(ROOT), "AGENTFLOW_LOG_FORMAT": "console"}


@contextlib.contextmanager
def running(project: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the job; its last record waits, so it does not end."""
    with (project / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "agentflow", "run", "job.yaml", *arguments],
            cwd=project,
            env=environment(),
            stderr=log,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def until(project: Path, process: subprocess.Popen[bytes], ask: Any) -> Any:
    """Ask until there is an answer."""
    deadline = time.monotonic() + 30
    while not (answer := ask()):
        assert process.poll() is None, (project / "log").read_text()
        assert time.monotonic() < deadline, (project / "log").read_text()
        time.sleep(0.02)
    return answer


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_run_serves_health_and_metrics(project):
    with running(project) as process:
        log = project / "log"
        address = until(project, process, lambda: re.search(r"address=(\S+)", log.read_text()))[1]
        assert get(address, "/livez") == (200, "ok\n")
        until(project, process, lambda: get(address, "/readyz")[0] == 200)

        def families() -> dict[str, Any]:
            text = get(address, "/metrics")[1]
            return {family.name: family for family in text_string_to_metric_families(text)}

        def is_settled() -> dict[str, Any] | None:
            found = families()
            records = [sample.value for sample in found["agentflow_records_out"].samples]
            attempts = found.get("agentflow_action_duration_seconds")
            counts = {
                sample.labels["action"]: sample.value
                for sample in (attempts.samples if attempts else [])
                if sample.name.endswith("_count")
            }
            return found if records == [50] and counts == {"count": 50, "wait": 49} else None

        found = until(project, process, is_settled)
    assert {sample.labels["action"]: sample.value for sample in found["agentflow_action_attempts"].samples} == {
        "count": 50,
        "wait": 49,
    }
    assert [sample.value for sample in found["agentflow_events"].samples] == [100]
    seen = {sample.labels["parity"]: sample.value for sample in found["agentflow_user_seen"].samples}
    assert seen == {"0": 25, "1": 25}
    assert [sample.value for sample in found["agentflow_user_n"].samples if sample.name.endswith("_sum")] == [1225]
    assert [sample.value for sample in found["agentflow_runs_in_flight"].samples] == [1]
    assert {"agentflow_keyed_state_size_bytes", "agentflow_loop_lag_seconds"} <= found.keys()


def test_port_that_is_taken_is_refused(project):
    with running(project) as process:
        address = until(project, process, lambda: re.search(r"address=(\S+)", (project / "log").read_text()))[1]
        port = address.rpartition(":")[2]
        second = subprocess.run(
            [sys.executable, "-m", "agentflow", "run", "job.yaml", "--set", f"admin.port={port}"],
            cwd=project,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert second.returncode == 2
    assert f"error: admin.port: 127.0.0.1:{port} cannot be listened on" in second.stderr


def test_run_without_a_port_serves_and_loads_nothing(project):
    code = "import sys; from agentflow.cli.main import main; main(sys.argv[1:]); print(sorted(sys.modules), file=sys.stderr)"
    arguments = ["run", "job.yaml", "--set", "admin.port=null", "--set", "agent=agents:Count", "--log-level", "error"]
    (project / "in.jsonl").write_text('{"n": 1}\n')
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "opentelemetry" not in done.stderr
    assert "prometheus_client" not in done.stderr
    assert "agentflow.observability.metrics" not in done.stderr


def settings(**sections: Any) -> JobSettings:
    return JobSettings(**sections)


def act(event: Any, ctx: Any) -> None:
    ctx.send_event(OutputEvent(ctx.key))


def run_job(made: JobSettings, values: int = 20, act: Any = act) -> list[Any]:
    env = AgentsExecutionEnvironment.get_execution_environment(made)
    agent = Agent("A").add_action("act", [EventType.InputEvent], act)
    outputs = env.from_list([{"k": n} for n in range(values)]).key_by("k").apply(agent).to_list()
    env.execute()
    return outputs


def test_job_in_code_writes_its_last_numbers(tmp_path):
    path = tmp_path / "metrics.json"
    run_job(settings(metrics=MetricsSettings(file=str(path), interval_ms=3_600_000)))
    by_name = {metric["name"]: metric["points"] for metric in json.loads(path.read_text())["metrics"]}
    assert by_name["agentflow.records.out"][0]["value"] == 20
    assert by_name["agentflow.action.duration"][0]["count"] == 20
    assert by_name["agentflow.action.duration"][0]["attributes"] == {
        "job": "agentflow", "agent": "A", "action": "act",
    }  # fmt: skip


@pytest.mark.parametrize("others", [(), ("log",), ("trace",), ("log", "trace")], ids="+".join)
def test_numbers_are_the_same_whoever_else_looks(tmp_path, others):
    def relay(event, ctx):
        ctx.send_event(Event("half", {"n": event.input["k"] // 2}))

    async def half(event, ctx):
        await asyncio.sleep(0)
        ctx.send_event(OutputEvent(event.attributes["n"]))

    def quick(event, ctx):
        if event.attributes["n"] == 3:
            raise ValueError("three")

    agent = Agent("A").add_action("relay", [EventType.InputEvent], relay).add_action("half", ["half"], half)
    agent.add_action("quick", ["half"], quick, on_error="skip", retry=Retry(attempts=1))
    with collector() as seen:
        log = EventLogSettings(level="standard" if "log" in others else "off", dir=str(tmp_path / "logs"))
        made = settings(
            otlp=OtlpSettings(endpoint=seen.endpoint),
            metrics=MetricsSettings(otlp=True),
            tracing=TracingSettings(enabled="trace" in others, sample_ratio=0.5),
            event_log=log,
        )
        env = AgentsExecutionEnvironment.get_execution_environment(made)
        env.from_list([{"k": n} for n in range(200)]).key_by("k").apply(agent).to_list()
        env.execute()
        attempts = {name: seen.value("agentflow.action.attempts", action=name) for name in ("relay", "half", "quick")}
        durations = {point["action"]: one.count for point, one in seen.metrics["agentflow.action.duration"]}
        assert attempts == durations == {"relay": 200, "half": 200, "quick": 200}
        assert seen.value("agentflow.action.failures", action="quick") == 2
        assert seen.value("agentflow.action.skips", action="quick") == 2
        assert seen.value("agentflow.events") == 600
        assert bool(seen.spans) == ("trace" in others)


def test_job_pushes_to_a_collector_at_its_interval_and_at_its_end():
    with collector() as seen:

        async def wait(event, ctx):
            await asyncio.to_thread(seen.wait, lambda: seen.pushes >= 2)
            act(event, ctx)

        run_job(
            settings(
                job="shop",
                otlp=OtlpSettings(endpoint=seen.endpoint),
                metrics=MetricsSettings(otlp=True, interval_ms=10),
            ),
            20,
            wait,
        )
        assert seen.pushes >= 3
        assert seen.value("agentflow.records.out", job="shop") == 20
        ((_, duration),) = seen.metrics["agentflow.action.duration"]
        assert duration.count == 20
        assert seen.resource["service.name"] == "shop"


def test_collector_that_is_away_costs_a_job_a_moment_at_its_end():
    began = time.monotonic()
    made = settings(
        otlp=OtlpSettings(endpoint="http://127.0.0.1:9"), metrics=MetricsSettings(otlp=True, interval_ms=10)
    )
    assert len(run_job(made)) == 20
    assert time.monotonic() - began < 5


def test_attributes_beyond_the_limit_are_counted_together_and_told_once(tmp_path, caplog):
    path = tmp_path / "metrics.json"

    def per_user(event, ctx):
        ctx.action_metric_group.get_sub_group("user", str(ctx.key)).get_counter("calls").inc()

    made = settings(metrics=MetricsSettings(file=str(path), interval_ms=10, cardinality_max=5))
    run_job(made, 20, per_user)
    by_name = {metric["name"]: metric["points"] for metric in json.loads(path.read_text())["metrics"]}
    calls = {point["attributes"].get("user", "others"): point["value"] for point in by_name["agentflow.user.calls"]}
    assert calls == {"0": 1, "1": 1, "2": 1, "3": 1, "4": 1, "others": 15}
    (others,) = (point for point in by_name["agentflow.user.calls"] if "user" not in point["attributes"])
    assert others["attributes"] == {"job": "agentflow", "otel.metric.overflow": "true"}
    assert by_name["agentflow.metrics.overflows"][0]["value"] == 1
    told = [record.agentflow for record in caplog.records if "too many sets of attributes" in record.getMessage()]
    assert told == [{"metric": "agentflow.user.calls", "limit": 5}]


def test_something_else_can_be_shown_beside_the_job():
    async def show() -> str:
        telemetry = Telemetry(settings(admin=AdminSettings(host="127.0.0.1", port=0)))
        requests = MetricName("agentflow.requests", MetricKind.COUNTER, "{request}", "Requests that were answered.")
        telemetry.observe(requests, lambda: [(3, {"outcome": "ok"})])
        admin = telemetry.serve(lambda: None)
        assert admin is not None
        try:
            return (await asyncio.to_thread(get, admin.address, "/metrics"))[1]
        finally:
            admin.close()
            await telemetry.close()

    assert 'agentflow_requests_total{job="agentflow",outcome="ok"} 3.0' in asyncio.run(show())


@pytest.mark.parametrize(
    ("buckets", "problem"),
    [
        (("fast",), "'fast' is not a duration"),
        (("1ms", "1ms"), "'1ms' is not above the bound before it"),
        (("1s", "10ms"), "'10ms' is not above the bound before it"),
    ],
)
def test_buckets_that_are_none_are_refused(buckets, problem):
    with pytest.raises(ConfigError, match=f"metrics.histogram-buckets: {problem}"):
        Telemetry(settings(metrics=MetricsSettings(file="m.json", histogram_buckets=buckets)))


@pytest.mark.parametrize(
    ("made", "needs"),
    [
        (settings(metrics=MetricsSettings(otlp=True)), "metrics.otlp needs packages"),
        (settings(admin=AdminSettings(port=0)), "admin.port: /metrics needs packages"),
    ],
)
def test_missing_packages_are_named(made, needs, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("agentflow.observability.otel")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)

    async def make() -> None:
        telemetry = Telemetry(made)
        try:
            telemetry.serve(lambda: None)
        finally:
            await telemetry.close()

    with pytest.raises(ConfigError, match=needs) as refused:
        asyncio.run(make())
    assert "pip install 'agentflow[telemetry]'" in str(refused.value)


def test_a_collector_that_is_no_url_is_a_wrong_setting():
    for made in (
        settings(otlp=OtlpSettings(endpoint="nowhere"), metrics=MetricsSettings(otlp=True)),
        settings(otlp=OtlpSettings(endpoint="nowhere"), tracing=TracingSettings(enabled=True)),
    ):
        with pytest.raises(
            ConfigError, match=r"otlp\.endpoint, or OpenTelemetry's variables: a collector is named by a URL"
        ):
            Telemetry(made)

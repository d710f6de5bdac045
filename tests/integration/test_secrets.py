"""A secret that a rule names is nowhere in what telemetry writes: a run has it in everything, and every byte is searched."""

from __future__ import annotations

import base64
import io
import json
import sys

import msgspec
import pytest

from agentflow import Agent, CancelEvent, Event, EventType, OutputEvent, Retry
from agentflow.api.executions import ExecutionReporters
from agentflow.cli.config_file import load_job_file
from agentflow.cli.main import main
from agentflow.cli.run import JobLog, redact_error
from agentflow.cli.worker import _WorkerLog
from agentflow.core.delta import Table
from agentflow.errors import SinkError
from agentflow.runtime.inspection import unfinished_runs, waits_for_signals
from agentflow.runtime.redaction import Redaction
from agentflow.runtime.settings import MetricsSettings, OtlpSettings, RedactionSettings, TracingSettings
from agentflow.state.memory import MemoryKeyedState
from tests.event_log_world import World
from tests.otlp_receiver import collector

SECRET = "4111-1111-1111-1111"
BY_NAME = RedactionSettings(fields=("k", "card"), key=True)
BY_PATH = RedactionSettings(
    paths=("$.k", "$.card", "$.deep[*].card", "$.list[*].card", "$.list[*].deep[*].card", "$.arguments.card"), key=True
)
BY_PATTERN = RedactionSettings(
    patterns=(r"\d{4}-\d{4}-\d{4}-\d{4}",), secret_names=False, replacement="hash", hash_key="k" * 16
)


class Declined(Exception):
    """Says too much."""


def agent(*, tells: bool = True) -> Agent:
    """An agent that puts its secret everywhere; into texts where it tells."""

    async def act(event, ctx):
        card = event.input["card"]

        def charge(number):
            ExecutionReporters.started(
                ctx, "tool", "charge", {"card": number, "arguments": json.dumps({"card": number})}
            )
            ExecutionReporters.failed(
                ctx, "tool", "charge", {"card": number}, Declined(f"card={number if tells else 0} declined")
            )
            return {"card": number, "deep": [{"card": number}]}

        def fail(number):
            raise Declined(f"card: {number if tells else 0}")

        ctx.short_term_memory.set("last.card", card)
        ctx.sensory_memory.set("card", card)
        paid = await ctx.durable_execute_async(charge, card)
        ctx.send_event(Event("paid", {**paid, "list": [paid], "card": card}))
        ctx.send_event(OutputEvent({"card": card, "deep": [{"card": card}]}))
        ctx.set_timer("remind", after="1h", attributes={"card": card})
        if event.input["fails"]:
            await ctx.durable_execute_async(fail, card, retry=Retry(attempts=2, initial="1ms"))
        await ctx.wait_for("approval", timeout="1h", correlation="c")

    def paid(event, ctx):
        raise Declined(f"token={event.attributes['card'] if tells else 0}")

    found = Agent("A")
    found.errors = (Declined,)
    found.add_action("act", [EventType.InputEvent], act, retry=Retry(attempts=2, initial="1ms"))
    found.add_action("paid", ["paid"], paid, on_error="skip", retry=Retry(attempts=2, initial="1ms"))
    return found.add_action("undo", [CancelEvent], lambda event, ctx: None)


def inputs():
    return [
        {"k": SECRET, "card": SECRET, "fails": fails, "deep": [{"card": SECRET}], "text": "x" * 3_000}
        for fails in (True, False)
    ]


def has_secret(text: bytes) -> bool:
    forms = [
        SECRET.encode(),
        SECRET.replace("-", "").encode(),
        base64.b64encode(SECRET.encode()),
        SECRET.encode("utf-16-le"),
    ]
    return any(form in text for form in forms)


def pushed(received):
    return {
        "otlp": OtlpSettings(received.endpoint),
        "metrics": MetricsSettings(otlp=True),
        "tracing": TracingSettings(enabled=True, sample_ratio=1.0),
    }


@pytest.mark.parametrize("level", ["standard", "verbose"])
@pytest.mark.parametrize("rules", [BY_NAME, BY_PATH, BY_PATTERN], ids=["name", "path", "pattern"])
def test_a_secret_is_in_no_file_no_export_and_no_message(tmp_path, monkeypatch, capfd, level, rules):
    stdout = io.BytesIO()

    class Console:
        buffer = stdout

        def write(self, text):
            stdout.write(text.encode())

        def flush(self):
            pass

    async def stop(job):
        while job.status.checkpoint == 0 or job.status.dead_letters == 0:
            await job.checkpoint_now()
        job.request_stop()
        job.request_stop()

    monkeypatch.setattr(sys, "stdout", Console())
    with collector() as received:
        options = {
            "level": level,
            "target": ("file", "stdout", "otel"),
            "settings": pushed(received),
        }
        tells = rules is not BY_PATH  # a path names no place in a text
        world = World(tmp_path, agent(tells=tells), trace=True, redaction=rules, **options)
        records = world.run(inputs(), act=stop)
    monkeypatch.undo()
    assert received.spans
    assert received.metrics
    assert received.records
    assert len({record["eventType"] for record in records}) > 6
    for name, text in {
        **{path.name: path.read_bytes() for path in world.files()},
        "stdout": stdout.getvalue(),
        "otel": b"".join(received.bodies),
        "messages": "".join(capfd.readouterr()).encode(),
    }.items():
        assert text or name == "messages", f"{name} is empty: nothing was tested"
        where = text.find(SECRET.encode())
        assert not has_secret(text), f"{name}: {text[max(0, where - 200) : where + 100]!r}"


def test_previews_of_runs_have_no_secret(tmp_path):
    async def stop(job):
        while job.status.records_out == 0:
            await job.checkpoint_now()
        await job.checkpoint_now()
        job.request_stop()
        job.request_stop()

    world = World(tmp_path, agent(), level="off")
    world.run(inputs()[1:], act=stop)
    state = MemoryKeyedState(world.storage)
    for rules, is_hidden in ((BY_PATTERN, True), (RedactionSettings(secret_names=False), False)):
        rows = list(state.rows(Table.RUNS)), list(state.rows(Table.STEPS))
        views = unfinished_runs(*rows, (), 0, Redaction(rules))
        shown = msgspec.json.encode([views, waits_for_signals(views)])
        assert views
        assert views[0].steps
        steps_shown = msgspec.json.encode([view.steps for view in views])
        assert has_secret(steps_shown) is not is_hidden
        assert has_secret(shown) is not is_hidden
    hidden = unfinished_runs(list(state.rows(Table.RUNS)), list(state.rows(Table.STEPS)), (), 0, Redaction(BY_NAME))
    assert not has_secret(msgspec.json.encode([hidden, waits_for_signals(hidden)]))


FAILING = """\
from agentflow import Agent, EventType, action

class Failing(Agent):
    @action(EventType.InputEvent, on_error="fail", retry=None)
    def go(event, ctx):
        refused = PermissionError("refused: password=" + event.input["card"])
        raise RuntimeError("login failed: password=" + event.input["card"]) from refused
"""
FAILING_JOB = """\
job: test
agent: failing:Failing
key-by: card
source: {jsonl: {path: in.jsonl}}
sink: {jsonl: {path: out/}}
state.dir: state/
redaction.key: true
"""


@pytest.mark.parametrize("flags", [[], ["--traceback"]])
def test_what_a_job_that_fails_prints_has_no_secret(tmp_path, monkeypatch, capfd, flags):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing.py").write_text(FAILING)
    (tmp_path / "job.yaml").write_text(FAILING_JOB)
    (tmp_path / "in.jsonl").write_text(json.dumps({"card": SECRET}) + "\n")
    monkeypatch.delitem(sys.modules, "failing", raising=False)
    assert main(["run", "job.yaml", *flags]) == 1
    printed = "".join(capfd.readouterr())
    assert not has_secret(printed.encode())
    assert "login failed: password=***" in printed
    assert "key ***" in printed


def test_lines_about_restarts_have_no_secret(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(FAILING_JOB)
    job_file = load_job_file("job.yaml")
    error = f"the sink refuses: password={SECRET}\n  key {SECRET}"
    facts = {"error": error, "attempt": 1, "delay_ms": 10, "subtask": 0}
    with caplog.at_level("INFO", logger="agentflow"):
        JobLog(job_file).tell("restarting", facts)
        _WorkerLog(job_file).tell("restarting", facts)
        _WorkerLog(job_file).tell("purge failed", {"error": f"password={SECRET}"})
    assert caplog.text.count("password=***") == 3
    assert not has_secret(caplog.text.encode())


def test_an_error_that_is_to_be_printed_loses_what_its_cause_says_too():
    error = SinkError("no (token=t1)", where={"key": "t2", "url": "x?token=t3", "n": 1}, expected="token=t4")
    error.__cause__ = OSError("token=t5")
    redact_error(error, Redaction(RedactionSettings(key=True)))
    assert str(error) == (
        "no (token=***)\n  because of OSError: token=***\n  key ***  url x?token=***  n 1\nexpected: token=***"
    )
    assert error.__cause__ is None
    harmless = SinkError("no")
    harmless.__cause__ = cause = OSError("away")
    redact_error(harmless, Redaction())
    assert (str(harmless), harmless.__cause__) == ("no", cause)


def test_a_hashed_key_is_found_by_the_key_that_it_is_the_hash_of(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rules = RedactionSettings(key=True, replacement="hash", hash_key="k" * 16)
    plain = Agent("A").add_action("act", [EventType.InputEvent], lambda event, ctx: None)
    records = World(tmp_path, plain, redaction=rules).run([{"k": "anna"}, {"k": "bert"}])
    assert len({record["businessKey"] for record in records}) == 2
    (tmp_path / "job.yaml").write_text(
        "job: test\nagent: shop:Agent\nsource: {jsonl: {path: in.jsonl}}\nkey-by: k\nsink: {jsonl: {path: out/}}\nstate.dir: state/\n"
        "event-log.level: standard\nredaction: {key: true, replacement: hash, hash-key: kkkkkkkkkkkkkkkk}\n"
    )
    assert main(["trace", "show", "job.yaml", "--key", "anna", "--format", "json"]) == 0
    assert [run["run"] for run in json.loads(capsys.readouterr().out)["runs"]] == ["list/0"]

"""The event log of a job file: `agentflow run` writes it, calls listeners, and says what is wrong with its keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentflow.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
SHOP = """\
import json

from agentflow import Agent, EventType, InputEvent, OutputEvent, RunnerContext, action


class Shop(Agent):
    @action(EventType.InputEvent)
    def act(event: InputEvent, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent({"key": ctx.key, "pin": event.input["pin"]}))


def audit(record):
    with open("audit.jsonl", "a") as file:
        file.write(json.dumps(record) + "\\n")


async def later(record):
    pass


limit = 5
"""
JOB = """\
job: shop
agent: shop:Shop
source: {jsonl: {path: in.jsonl}}
key-by: k
sink: {jsonl: {path: out/}}
state.dir: state/
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"k": f"k{n % 2}", "pin": 1234 + n}) + "\n" for n in range(6))
    )
    return tmp_path


def run(place, text, *arguments):
    (place / "job.yaml").write_text(JOB + text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "agentflow", "run", "job.yaml", *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=60, check=False)


def records(place, name="logs"):
    return [json.loads(line) for path in sorted((place / name).glob("*.log")) for line in path.read_text().splitlines()]


def test_a_job_file_turns_it_on_and_trace_shows_its_runs(place, capsys):
    done = run(place, "event-log: {level: standard, trace.enabled: true}\nredaction.fields: [pin]\n")
    assert done.returncode == 0, done.stderr
    found = records(place)
    assert [one["eventType"] for one in found].count("_input_event") == 6
    assert found[0]["eventAttributes"] == {"input": {"k": "k0", "pin": "***"}}
    assert main(["trace", "show", "job.yaml", "--key", "k1", "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["runs"]) == 3
    assert shown["traces"][0]["status"] == "success"


def test_a_flag_turns_it_on_for_one_type_only(place):
    done = run(place, "", "--set", "event-log.type._output_event.level=verbose", "--set", "event-log.dir=elsewhere")
    assert done.returncode == 0, done.stderr
    assert {(one["eventType"], one["logLevel"]) for one in records(place, "elsewhere")} == {
        ("_output_event", "VERBOSE")
    }
    assert not (place / "logs").exists()


def test_lines_on_standard_output_are_all_that_is_there(place):
    done = run(place, "event-log: {level: standard, target: stdout}\n")
    assert [json.loads(line)["eventType"] for line in done.stdout.splitlines()] == ["_input_event", "_output_event"] * 6


def test_listeners_of_a_job_file_are_called(place):
    done = run(place, "event-listeners: [shop:audit]\n")
    assert done.returncode == 0, done.stderr
    heard = [json.loads(line) for line in (place / "audit.jsonl").read_text().splitlines()]
    assert [one["eventType"] for one in heard] == ["_input_event", "_output_event"] * 6
    assert not (place / "logs").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("event-listeners: [shop:audi]\n", "event-listeners 'shop:audi': module 'shop' has no 'audi'"),
        ("event-listeners: shop.audit\n", "event-listeners 'shop.audit' is not module:function"),
        ("event-listeners: [shop:limit]\n", "event-listeners 'shop:limit' is of type int, not a function"),
        ("event-listeners: [shop:later]\n", "is a coroutine function; listeners are called in a thread"),
        ("redaction.patterns: ['(']\n", "job.yaml:7: redaction.patterns: '(' is no regular expression"),
        ("redaction: {replacement: hash}\n", "job.yaml:7: redaction.hash-key: replacement: hash needs one"),
        ("redaction.paths: [customer.email]\n", "'customer.email' is no path; such as $.customer.email"),
        ("event-log: {level: standard, dir: out}\n", "event-log.dir and sink.jsonl.path are the same directory"),
        (
            "event-log: {level: standard, target: stdout}\nsink: {stdout: {}}\nguarantee: at-least-once\n",
            "event-log.target and sink are both standard output",
        ),
    ],
)
def test_what_is_wrong_is_told_before_the_job_starts(place, text, said):
    job = JOB.replace("sink: {jsonl: {path: out/}}\n", "") if "sink:" in text else JOB
    (place / "job.yaml").write_text(job + text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "agentflow", "validate", "job.yaml"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_the_key_of_hashes_may_be_a_reference_and_is_not_told(place, monkeypatch):
    monkeypatch.setenv("REDACTION_KEY", "0123456789abcdef")
    done = run(
        place,
        'event-log.level: standard\nredaction: {fields: [pin], replacement: hash, hash-key: "${env:REDACTION_KEY}"}\n',
    )
    assert done.returncode == 0, done.stderr
    assert "0123456789abcdef" not in done.stderr
    pins = {one["eventAttributes"]["input"]["pin"] for one in records(place) if one["eventType"] == "_input_event"}
    assert len(pins) == 6
    assert all(pin.startswith("hash:") for pin in pins)

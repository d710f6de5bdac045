"""`agentflow verify` of embedded jobs: a record goes through, and nothing that is real is touched but what actions do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.doctor_world import ROOT, Project

MORE_AGENTS = """\
import asyncio
from pathlib import Path
from typing import Annotated, Any

import msgspec

from agentflow import Agent, Event, EventType, InputEvent, OutputEvent, Retry, RunnerContext, action


class Touching(Agent):
    @action(EventType.InputEvent)
    def touch(event: InputEvent, ctx: RunnerContext) -> None:
        print("touching")
        Path("touched").write_text(str(ctx.key))
        ctx.send_event(OutputEvent(event.input))


class Silent(Agent):
    @action(EventType.InputEvent)
    def listen(event: InputEvent, ctx: RunnerContext) -> None:
        pass


class Deaf(Agent):
    @action("has(input.never)")
    def listen(event: Event, ctx: RunnerContext) -> None:
        pass


class Flaky(Agent):
    tries = 0

    @action(EventType.InputEvent, retry=Retry(attempts=3, initial="1ms"))
    def attempt(event: InputEvent, ctx: RunnerContext) -> None:
        Flaky.tries += 1
        if Flaky.tries < 3:
            raise RuntimeError("not yet")
        ctx.send_event(OutputEvent(Flaky.tries))


class Skipping(Agent):
    @action(EventType.InputEvent, retry=Retry(attempts=1), on_error="skip")
    def act(event: InputEvent, ctx: RunnerContext) -> None:
        raise KeyError("gone")


class Failing(Agent):
    @action(EventType.InputEvent, retry=Retry(attempts=1), on_error="fail")
    def act(event: InputEvent, ctx: RunnerContext) -> None:
        raise KeyError("gone")


class Slow(Agent):
    @action(EventType.InputEvent)
    async def wait(event: InputEvent, ctx: RunnerContext) -> None:
        Path("began").write_text("")
        await asyncio.Event().wait()


def ask(question):
    return f"{question}?"


class Approving(Agent):
    @action(EventType.InputEvent)
    async def ask(event: InputEvent, ctx: RunnerContext) -> None:
        asked = await ctx.durable_execute_async(ask, "may I")
        ctx.send_event(OutputEvent(asked))
        await ctx.wait_for("approval")


class Napping(Agent):
    @action(EventType.InputEvent)
    async def nap(event: InputEvent, ctx: RunnerContext) -> None:
        await ctx.sleep("50ms")
        ctx.send_event(OutputEvent("rested"))


class Sleeping(Agent):
    @action(EventType.InputEvent)
    async def sleep(event: InputEvent, ctx: RunnerContext) -> None:
        await ctx.sleep("3d")


class Reminding(Agent):
    @action(EventType.InputEvent)
    def remind(event: InputEvent, ctx: RunnerContext) -> None:
        ctx.set_timer("later", after="3d")
        ctx.send_event(OutputEvent("set"))


class Order(msgspec.Struct):
    number: Annotated[int, msgspec.Meta(ge=1000)]
    lines: Annotated[list[str], msgspec.Meta(min_length=1)]
    customer: str | None = None


class Taking(Agent):
    @action(EventType.InputEvent, input=Order)
    def take(event: InputEvent[Order], ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent({"key": ctx.key, "number": event.input.number, "lines": len(event.input.lines)}))


class Coded(msgspec.Struct):
    code: Annotated[str, msgspec.Meta(pattern="^[0-9]{7}$")]


class Impossible(Agent):
    @action(EventType.InputEvent, input=Coded)
    def take(event: InputEvent[Coded], ctx: RunnerContext) -> None:
        pass
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path)
    (tmp_path / "more.py").write_text(MORE_AGENTS)
    return made


def verify(project, *arguments, status=0, **variables):
    """Run the command and return what it says as JSON."""
    done = project.agentflow("verify", "job.yaml", "--json", *arguments, **variables)
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout)


def agent(name):
    return ("--set", f"agent=more:{name}")


def test_the_first_record_goes_through_and_every_stage_is_told(project):
    seen = verify(project)
    assert (seen["result"], seen["origin"], seen["outputs"]) == ("ok", "jsonl in.jsonl", [{"product": "p", "count": 1}])
    assert seen["records"] == [{"record": "in.jsonl/0", "key": "p"}]
    assert [stage["name"] for stage in seen["stages"]] == ["read", "key", "started", "run", "checkpoint", "end to end"]
    assert all(stage["milliseconds"] >= 0 for stage in seen["stages"])
    assert [(one["action"], one["attempt"], one["error"]) for one in seen["actions"]] == [
        ("count", 1, None),
        ("tell", 1, None),
    ]


def test_state_outputs_and_positions_of_the_job_stay_as_they_are(project):
    project.run()
    before = {path: path.read_bytes() for path in project.path.rglob("*") if path.is_file()}
    seen = verify(project, "--records", "2")
    assert [output["count"] for output in seen["outputs"]] == [1, 1]  # not 2: the memory is not that of the job
    after = {path: path.read_bytes() for path in project.path.rglob("*") if path.is_file()}
    assert before == {path: content for path, content in after.items() if "__pycache__" not in path.parts}


def test_nothing_is_left_in_the_temporary_directory(project, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    verify(project, TMPDIR=str(scratch))
    verify(project, *agent("Failing"), status=3, TMPDIR=str(scratch))
    assert list(scratch.iterdir()) == []


def test_text_says_the_same(project):
    done = project.agentflow("verify", "job.yaml", "--records", "2")
    assert done.returncode == 0
    assert done.stderr == (
        "note: the actions of agent 'Count' run for real: what they call is called, what they send is sent\n"
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "job 'reviews', agent agents:Count, embedded, in a temporary directory"
    names = [line[:11].rstrip() for line in lines[2:-2]]
    assert names == ["read", "key", "started", *["action"] * 4, "run", "checkpoint", "end to end", "output", "output"]
    assert lines[-1] == "ok: 2 records, 2 outputs"


def test_actions_run_for_real_and_that_is_said_before(project):
    done = project.agentflow("verify", "job.yaml", *agent("Touching"))
    assert done.returncode == 0
    assert (project.path / "touched").read_text() == "p"
    assert done.stderr.startswith("note: the actions of agent 'Touching' run for real")
    assert done.stderr.endswith("touching\n")
    assert "touching" not in done.stdout


def test_a_value_may_be_given(project):
    seen = verify(project, "--value", '{"product": "x", "stars": 1}')
    assert (seen["origin"], seen["outputs"]) == ("--value", [{"product": "x", "count": 1}])


def test_an_agent_that_sends_nothing_is_no_failure(project):
    seen = verify(project, *agent("Silent"))
    assert (seen["result"], seen["outputs"], seen["problem"]) == ("no output", [], None)
    text = project.agentflow("verify", "job.yaml", *agent("Silent")).stdout
    assert text.endswith("no output: 1 record, and the agent sent nothing (it ran listen); nothing failed\n")
    assert "(no action takes it)" in project.agentflow("verify", "job.yaml", *agent("Deaf")).stdout


def test_attempts_that_failed_before_one_that_did_not_are_told_and_are_no_failure(project):
    seen = verify(project, *agent("Flaky"))
    assert [(one["attempt"], one["error"]) for one in seen["actions"]] == [
        (1, "RuntimeError: not yet"),
        (2, "RuntimeError: not yet"),
        (3, None),
    ]
    assert (seen["result"], seen["outputs"]) == ("ok", [3])


def test_a_dead_letter_is_a_failure_with_its_reason_and_the_line_of_the_action(project):
    seen = verify(project, "--value", '{"product": "x", "stars": -1}', status=3)
    (letter,) = seen["dead_letters"]
    assert (letter["action"], letter["attempts"], letter["error"]) == ("count", 2, "ValueError: stars below zero")
    assert seen["problem"] == "action 'count' failed 2 times: ValueError: stars below zero"
    done = project.agentflow("verify", "job.yaml", "--value", '{"product": "x", "stars": -1}')
    assert 'raise ValueError("stars below zero")' in done.stdout
    assert done.stdout.splitlines()[-1].startswith("help: correct the action, or the record")


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ('{"stars": 1}', "MissingKey: the record has no field 'product'"),
        ('{"product": "x", "stars": "many"}', "DecodeError: "),
    ],
)
def test_a_record_that_the_job_cannot_take_is_a_failure(project, value, error):
    seen = verify(project, "--value", value, status=3)
    assert error in seen["dead_letters"][0]["error"]


def test_a_failed_job_and_a_skipped_task_are_failures(project):
    failed = verify(project, *agent("Failing"), status=3)
    assert failed["problem"].startswith("action 'act' of agent 'Failing' failed (KeyError: 'gone')")
    assert "raise KeyError" in failed["problem"]
    skipped = verify(project, *agent("Skipping"), status=3)
    assert skipped["problem"] == "action 'act' was skipped by its policy: KeyError: 'gone'"


def test_an_action_that_does_not_end_is_a_failure_in_time(project):
    began = time.monotonic()
    seen = verify(project, *agent("Slow"), "--timeout", "500ms", status=3)
    assert time.monotonic() - began < 20
    assert (seen["problem"], "--timeout" in seen["fix"]) == ("action 'wait' did not end within 0.5 s", True)


def test_a_run_that_waits_for_somebody_is_no_failure_and_its_steps_are_told(project):
    began = time.monotonic()
    seen = verify(project, *agent("Approving"))
    assert time.monotonic() - began < 30  # it does not wait for --timeout
    assert (seen["result"], seen["outputs"]) == ("waiting", ["may I?"])
    assert [(wait["action"], wait["what"]) for wait in seen["waits"]] == [("ask", "signal 'approval'")]
    assert verify(project, *agent("Sleeping"))["waits"][0]["what"] == "259200 s to pass"
    assert verify(project, *agent("Napping"))["outputs"] == ["rested"]


def test_timers_of_the_rehearsed_run_are_not_waited_for(project):
    began = time.monotonic()
    seen = verify(project, *agent("Reminding"))
    assert time.monotonic() - began < 30  # it does not wait for --timeout
    assert (seen["outputs"], seen["problem"]) == (["set"], None)


def test_steps_are_told_below_their_action(project):
    (project.path / "steps.py").write_text(MORE_AGENTS.replace('        await ctx.wait_for("approval")\n', ""))
    seen = verify(project, "--set", "agent=steps:Approving")
    (step,) = seen["actions"][0]["steps"]
    assert (step["function"], step["call"], step["error"]) == ("steps.ask", 1, None)


# -- values that are made up
def test_where_the_source_has_nothing_a_value_is_made_up_from_the_type_of_the_agent(project):
    (project.path / "in.jsonl").write_text("")
    seen = verify(project, *agent("Taking"), "--set", "key-by=customer")
    assert (seen["origin"], seen["outputs"]) == ("a made-up value", [{"key": "verify", "number": 1000, "lines": 1}])
    untyped = verify(project, *agent("Touching"), "--set", "key-by=order.id")
    assert untyped["outputs"] == [{"order": {"id": "verify"}}]


def test_standard_input_is_not_read(project):
    pipe = ["--set", "source=stdin", "--set", "guarantee=none", "--set", "state.dir=null"]
    assert verify(project, *agent("Taking"), *pipe, "--set", "key-by=number")["origin"] == "a made-up value"


def test_a_type_of_which_nothing_can_be_made_up_is_told_with_the_flag_that_helps(project):
    (project.path / "in.jsonl").write_text("")
    done = project.agentflow("verify", "job.yaml", *agent("Impossible"), "--set", "key-by=code")
    assert done.returncode == 2
    assert "error: no value of more:Coded can be made up: 'code' has to match ^[0-9]{7}$" in done.stderr
    assert "help: give a value: --value" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--value", "{"), "error: --value is no JSON"),
        (
            ("--key", "k"),
            "error: --key: the key of this job comes from the value (key-by: product)\nhelp: put it into --value",
        ),
        (("--set", "agent=more:None"), "error: job.yaml"),
        (("--set", "stat=x"), "unknown key 'stat'"),
    ],
)
def test_what_cannot_be_run_at_all_gives_status_2(project, arguments, message):
    done = project.agentflow("verify", "job.yaml", *arguments)
    assert (
        done.returncode,
        done.stdout,
        message in done.stderr or message.replace("job.yaml", "--set") in done.stderr,
    ) == (
        2,
        "",
        True,
    ), done.stderr


def test_records_that_are_not_there_are_told(project):
    (project.path / "in.jsonl").write_text("")
    done = project.agentflow("verify", "job.yaml", "--records", "3")
    assert (done.returncode, "--records: jsonl in.jsonl has no record" in done.stderr) == (2, True)
    (project.path / "in.jsonl").unlink()
    seen = verify(project, status=3)
    assert "the input file does not exist" in seen["problem"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_rehearsal_leaves_nothing_behind(project, tmp_path, number):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(scratch)}
    command = [sys.executable, "-m", "agentflow", "verify", "job.yaml", *agent("Slow")]
    with subprocess.Popen(
        command, cwd=project.path, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 30
        while not (project.path / "began").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        assert f"interrupted by {number.name}" in process.stderr.read()
    assert list(scratch.iterdir()) == []
    assert Path(tempfile.gettempdir()).is_dir()

"""`agentflow doctor` as a process: exit status, text, JSON, colours, wrong use; and that it changes nothing."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time

import pytest

from tests.doctor_world import ROOT, Project


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


def files(path):
    return {
        file.relative_to(path): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_a_job_that_is_ready_gives_status_0_and_nothing_is_changed(project):
    project.run()
    before = files(project.path)
    done = project.agentflow("doctor", "job.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "python"
    assert "  ok       job file              job 'reviews', jsonl in.jsonl to jsonl out/" in lines
    assert "  ok       contents              job 'reviews': subtask-0 at checkpoint 1" in lines
    assert "  skipped                        the job does not read Kafka" in lines
    assert re.fullmatch(r"\d+ checks: \d+ ok(, \d+ notes?)?, \d+ skipped(, \d+ warnings?)?", lines[-1])
    assert before == files(project.path)


def test_warnings_give_status_0_and_3_where_they_are_to_count(project):
    (project.path / "state").mkdir(mode=0o777)
    (project.path / "state").chmod(0o777)
    relaxed, strict = project.agentflow("doctor", "job.yaml"), project.agentflow("doctor", "job.yaml", "--strict")
    assert (relaxed.returncode, strict.returncode) == (0, 3)
    assert "\nwarning: directory: state can be written by every user of this machine" in strict.stdout
    assert "\n  fix: chmod o-w state\n" in strict.stdout


def test_errors_give_status_3_and_stand_last_with_their_fix(project):
    (project.path / "in.jsonl").unlink()
    done = project.agentflow("doctor", "job.yaml")
    assert done.returncode == 3
    last = done.stdout.rstrip().split("\n\n")[-2].splitlines()
    assert last[0] == "error: input: the input file does not exist"
    assert last[-1] == "  fix: Correct `path`, or put the file there."


def test_a_job_file_that_cannot_be_read_gives_status_2_and_what_needs_none_is_checked(project):
    (project.path / "job.yaml").write_text("jobb: reviews\nagent: agents:Count\nsink: {jsonl: {pth: out/}}\n")
    done = project.agentflow("doctor", "job.yaml", "--json")
    rows = json.loads(done.stdout)
    problems = [row["found"] for row in rows if row["check"] == "job file"]
    assert done.returncode == 2
    assert problems[0].startswith("job.yaml:1: unknown key 'jobb'")
    assert problems == [
        problem.strip().removeprefix("error: ")
        for problem in re.split(r"(?m)^(?=error: )", project.agentflow("validate", "job.yaml").stderr)
        if problem
    ]
    assert next(row for row in rows if row["check"] == "python")["result"] == "ok"
    missing = project.agentflow("doctor", "none.yaml")
    assert missing.returncode == 2
    assert "error: job file: none.yaml: there is no such file" in missing.stdout


def test_json_is_a_list_of_findings_with_the_same_fields(project):
    rows = json.loads(project.agentflow("doctor", "job.yaml", "--json").stdout)
    assert {tuple(row) for row in rows} == {("group", "check", "result", "found", "expected", "fix", "seconds")}
    assert {row["result"] for row in rows} <= {"ok", "note", "skipped", "warning", "error"}
    assert [row["check"] for row in rows][:4] == ["python", "libraries", "extras", "event loop"]


def test_profiles_and_flags_are_laid_over_the_file(project):
    (project.path / "job.yaml").write_text(
        (project.path / "job.yaml").read_text() + "profile: {prod: {state.dir: elsewhere/}}\n"
    )
    rows = json.loads(
        project.agentflow("doctor", "job.yaml", "--json", "--profile", "prod", "--set", "job=orders").stdout
    )
    found = {row["check"]: row["found"] for row in rows}
    assert found["directory"].startswith("elsewhere will be created")
    assert found["job file"].startswith("job 'orders'")


def with_changed_table(project, change, *arguments):
    """Run the command in a process that changes the table of checks before."""
    code = (
        "import asyncio, msgspec, sys, threading; from agentflow.cli.doctor import table;"
        "from agentflow.cli.main import main; change = msgspec.structs.replace;"
        f"table.CHECKS = tuple({change} for c in table.CHECKS); sys.exit(main(sys.argv[1:]))"
    )
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", "job.yaml", "--json", *arguments],
        cwd=project.path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert time.monotonic() - began < 30
    assert done.returncode == 3, done.stdout + done.stderr
    return {row["check"]: row for row in json.loads(done.stdout)}


def test_an_import_that_waits_for_ever_does_not_hold_the_command(project):
    (project.path / "hung.py").write_text("import threading\nthreading.Event().wait()\n")
    found = with_changed_table(
        project, "change(c, timeout_s=0.5) if c.name == 'agent' else c", "--set", "agent=hung:Agent"
    )
    assert found["agent"]["found"] == "it did not end within 0.5 s"
    assert "let it connect and load when an action needs it" in found["agent"]["fix"]
    assert found["directory"]["result"] == "ok"


def test_a_disk_that_does_not_answer_does_not_hold_the_command_though_a_thread_of_a_pool_waits_for_it(project):
    hang = "lambda subject: asyncio.run(asyncio.to_thread(threading.Event().wait))"
    found = with_changed_table(project, f"change(c, timeout_s=0.5, look={hang}) if c.name == 'input' else c")
    assert found["input"]["found"] == "it did not end within 0.5 s"
    assert found["sink"]["result"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["doctor"], "error: the following arguments are required: CONFIG\nhelp: agentflow doctor --help\n"),
        (
            ["doctor", "job.yaml", "--strikt"],
            "error: unknown argument '--strikt' of 'agentflow doctor', did you mean '--strict'?\nhelp: agentflow doctor --help\n",
        ),
        (
            ["verify", "job.yaml", "--records", "0"],
            "error: argument --records: '0' is no number of records, write one from 1 on\nhelp: agentflow verify --help\n",
        ),
        (
            ["verify", "job.yaml", "--records", "2", "--value", "{}"],
            "error: argument --value: not allowed with argument --records\nhelp: agentflow verify --help\n",
        ),
        (
            ["verify", "job.yaml", "--timeout", "soon"],
            "error: argument --timeout: 'soon' is not a duration; write a number with a unit (ms, s, m, h, d), such as '5s'\nhelp: agentflow verify --help\n",
        ),
    ],
)
def test_wrong_use_is_told_in_two_lines_with_status_2(project, arguments, message):
    done = project.agentflow(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("doctor", ["changes none of", "--strict", "3 a check found problems"]),
        ("verify", ["THE ACTIONS OF THE AGENT RUN FOR REAL", "--yes answers", "3: something failed"]),
    ],
)
def test_help_says_what_happens(project, command, words):
    done = project.agentflow(command, "--help")
    assert done.returncode == 0
    for word in words:
        assert word in done.stdout


def on_a_terminal(project, *arguments, typed="", **variables):
    """Run a command on a terminal of its own; return its status and what it showed."""
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environment |= {"PYTHONPATH": str(ROOT), "TERM": "xterm", **variables}
    primary, secondary = pty.openpty()
    command = [sys.executable, "-m", "agentflow", *arguments]
    with subprocess.Popen(
        command, cwd=project.path, env=environment, stdin=secondary, stdout=secondary, stderr=secondary
    ) as process:
        os.close(secondary)
        os.write(primary, typed.encode())
        shown = b""
        while True:
            try:
                part = os.read(primary, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        os.close(primary)
        return process.wait(60), shown.decode().replace("\r\n", "\n")


def test_colour_is_for_terminals_that_want_it(project):
    status, shown = on_a_terminal(project, "doctor", "job.yaml")
    assert (status, "\x1b[32mok     \x1b[0m  python" in shown) == (0, True)
    status, shown = on_a_terminal(project, "doctor", "job.yaml", NO_COLOR="1")
    assert (status, "\x1b[" in shown) == (0, False)


def test_verify_asks_on_a_terminal_before_actions_run(project):
    status, shown = on_a_terminal(project, "verify", "job.yaml", typed="n\n")
    assert (status, "go on? [y/N]" in shown, "nothing was run" in shown) == (130, True, True)
    status, shown = on_a_terminal(project, "verify", "job.yaml", typed="y\n")
    assert (status, "1 record, 1 output" in shown) == (0, True)
    status, shown = on_a_terminal(project, "verify", "job.yaml", "--yes")
    assert (status, "go on?" in shown, "run for real" in shown) == (0, False, True)

"""Commands whose standard streams are closed, full or broken: they say so, at once, and take no other file for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

JOB = """\
chat_model_connections: [{name: c, class: scripted, rules: [{when: "", reply: "ok"}]}]
agents: [{name: a, type: react, chat_model: {connection: c, model: any}, prompt: {text: "Q: {input}"}}]
restart: {attempts: 10}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


def shell(place: Path, command: str, *, is_buffered: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment |= {"PYTHONPATH": str(ROOT)} | ({} if is_buffered else {"PYTHONUNBUFFERED": "1"})
    line = f"{sys.executable} -m agentflow {command}"
    return subprocess.run(
        ["sh", "-c", line],
        input='"x"\n',
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("is_buffered", [True, False])
@pytest.mark.parametrize("redirection", [">&-", ">/dev/full", "<&- >&-"])
def test_job_whose_output_goes_nowhere_fails_without_a_restart(
    place: Path, redirection: str, is_buffered: bool
) -> None:
    text = "standard input is closed" if "<&-" in redirection else "standard output cannot be written"
    done = shell(place, f"run job.yaml {redirection}", is_buffered=is_buffered)
    assert done.returncode == 1
    assert f"error: {text}" in done.stderr
    assert "job restarts" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_job_without_a_standard_input_says_that_it_is_closed(place: Path) -> None:
    done = shell(place, "run job.yaml <&-")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: standard input is closed" in done.stderr


def test_job_without_standard_errors_writes_its_outputs_and_nothing_else(place: Path) -> None:
    done = shell(place, "run job.yaml 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, '"ok"\n', "")


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
@pytest.mark.parametrize("command", ["version", "schema", "--help"])
def test_command_whose_output_is_lost_fails_and_says_why(place: Path, command: str, redirection: str) -> None:
    done = shell(place, f"{command} {redirection}")
    assert done.returncode == 1
    reason = "Bad file descriptor" if redirection == ">&-" else "No space left on device"
    assert done.stderr.startswith(f"error: output cannot be written: {reason}\n")
    assert "bug" not in done.stderr
    assert "Exception ignored" not in done.stderr

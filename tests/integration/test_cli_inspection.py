"""The commands that run nothing, as processes: what they print, where, and their exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentflow import __version__
from agentflow.cli.keys import key_table

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "run", "worker", "validate", "plan", "schema", "doctor", "verify", "simulate", "top", "group", "dlq", "runs", "journal", "inbox",
    "signal", "savepoint", "state", "trace", "version",
)  # fmt: skip

JOB = """\
job: reviews
agent: agents:ReviewAgent
key-by: product_id
source: {jsonl: {path: in.jsonl}}
sink: {jsonl: {path: out/}}
state.dir: state/
"""

AGENTS = """\
from agentflow import Agent, Event, EventType, InputEvent, OutputEvent, RunnerContext, action


class ReviewAgent(Agent):
    @action(EventType.InputEvent)
    def score(event: InputEvent, ctx: RunnerContext) -> None:
        ctx.send_event(Event("scored", {"stars": event.input["stars"]}))

    @action("scored")
    def report(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(event.attributes))


class Wrong(Agent):
    @action()
    def nothing(event, ctx):
        pass


class Twice(Agent):
    @action(EventType.InputEvent, timeout="soon", on_error="skipp")
    async def act(event, ctx):
        pass
"""


@pytest.fixture
def project(tmp_path):
    """A directory with an agent module and a job file."""
    (tmp_path / "agents.py").write_text(AGENTS, encoding="utf-8")
    (tmp_path / "job.yaml").write_text(JOB, encoding="utf-8")
    return tmp_path


def agentflow(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("AGENTFLOW_")}
    env |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    return subprocess.run(
        [sys.executable, "-m", "agentflow", *arguments],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_version_is_printed(tmp_path):
    for form in (["version"], ["--version"]):
        answer = agentflow(*form, cwd=tmp_path)
        assert (answer.returncode, answer.stdout, answer.stderr) == (0, f"agentflow {__version__}\n", "")


def test_version_as_json_names_what_a_report_needs(tmp_path):
    versions = json.loads(agentflow("version", "--json", cwd=tmp_path).stdout)
    assert versions["agentflow"] == __version__
    assert versions["python"].count(".") == 2
    assert {"rocksdict", "msgspec"} <= set(versions["packages"])


def test_version_is_fast(tmp_path):
    def seconds() -> float:
        began = time.perf_counter()
        agentflow("version", cwd=tmp_path)
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 0.8


def test_version_loads_neither_yaml_nor_logs_nor_stores(tmp_path):
    code = "import sys; from agentflow.cli.main import main; main(['version']); print(sorted(sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    loaded = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    for name in ("yaml", "structlog", "rocksdict", "uvloop", "cel", "asyncio"):
        assert f"'{name}'" not in loaded


@pytest.mark.parametrize("command", [[], ["run"], ["validate"], ["plan"], ["schema"], ["version"]])
def test_help_is_printed_and_says_the_exit_statuses(tmp_path, command):
    answer = agentflow(*command, "--help", cwd=tmp_path)
    assert answer.returncode == 0
    assert "130, 143 stopped by SIGINT, SIGTERM after a clean drain" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rn"], "error: unknown command 'rn', did you mean 'run'?\nhelp: agentflow --help\n"),
        (
            ["zzz"],
            f"error: unknown command 'zzz', one of {', '.join(COMMANDS)}\nhelp: agentflow --help\n",
        ),
        (["run"], "error: the following arguments are required: CONFIG\nhelp: agentflow run --help\n"),
        (
            ["plan", "job.yaml", "--jsn"],
            "error: unknown argument '--jsn' of 'agentflow plan', did you mean '--json'?\nhelp: agentflow plan --help\n",
        ),
        (
            ["run", "job.yaml", "--log-format", "jsn"],
            "error: unknown --log-format 'jsn', did you mean 'json'?\nhelp: agentflow run --help\n",
        ),
        (
            ["plan", "job.yaml", "--json", "--mermaid"],
            "error: argument --mermaid: not allowed with argument --json\nhelp: agentflow plan --help\n",
        ),
        (
            ["schema", "--describe", "checkpoints"],
            "error: there is no key or section 'checkpoints', did you mean 'checkpoint'?\nhelp: agentflow schema --describe\n",
        ),
    ],
)
def test_wrong_use_is_told_in_two_lines_with_status_2(tmp_path, arguments, message):
    answer = agentflow(*arguments, cwd=tmp_path)
    assert (answer.returncode, answer.stdout, answer.stderr) == (2, "", message)


def test_no_command_prints_the_help_with_status_2(tmp_path):
    answer = agentflow(cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("usage: agentflow")


def test_good_job_file_is_valid(project):
    answer = agentflow("validate", "job.yaml", cwd=project)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.splitlines()[:3] == [
        "job.yaml is valid",
        "  job         reviews",
        "  agent       agents:ReviewAgent",
    ]


def test_good_job_file_is_valid_as_json(project):
    answer = agentflow("validate", "job.yaml", "--json", cwd=project)
    told = json.loads(answer.stdout)
    assert (answer.returncode, told["valid"], told["problems"]) == (0, True, [])
    assert (told["actions"], told["source"], told["sink"]) == (["score", "report"], "jsonl in.jsonl", "jsonl out/")


def test_validate_touches_nothing(project):
    before = sorted(path.name for path in project.iterdir())
    agentflow("validate", "job.yaml", cwd=project)
    assert sorted(path.name for path in project.iterdir()) == before


@pytest.mark.parametrize("command", ["run", "validate", "plan"])
def test_every_command_tells_the_problems_of_a_job_file_with_status_2(project, command):
    (project / "job.yaml").write_text(JOB + "checkpoint: {intervall: 1s}\nguarantee: maybe\n", encoding="utf-8")
    answer = agentflow(command, "job.yaml", cwd=project)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == (
        "error: job.yaml:7: unknown key 'checkpoint.intervall'\n"
        "  7 | checkpoint: {intervall: 1s}\n"
        "                   ^^^^^^^^^ did you mean 'interval'?\n"
        "help: agentflow schema --describe checkpoint\n"
        "error: job.yaml:8: guarantee is unknown: 'maybe'\n"
        "  8 | guarantee: maybe\n"
        "                 ^^^^^ one of exactly-once, at-least-once, none\n"
        "help: agentflow schema --describe guarantee\n"
    )


def test_problems_as_json_have_file_line_and_column(project):
    (project / "job.yaml").write_text(JOB + "checkpoint: {intervall: 1s}\n", encoding="utf-8")
    answer = agentflow("validate", "job.yaml", "--json", cwd=project)
    assert (answer.returncode, answer.stderr) == (2, "")
    assert json.loads(answer.stdout) == {
        "valid": False,
        "problems": [
            {
                "file": "job.yaml",
                "line": 7,
                "column": 14,
                "message": "unknown key 'checkpoint.intervall'",
                "note": "did you mean 'interval'?",
                "help": "agentflow schema --describe checkpoint",
            }
        ],
    }


def test_missing_job_file_is_told_with_status_2(project):
    answer = agentflow("validate", "jobs.yaml", cwd=project)
    assert (answer.returncode, answer.stderr) == (
        2,
        "error: jobs.yaml: there is no such file\nhelp: did you mean 'job.yaml'?\n",
    )


def test_layers_reach_the_command(project):
    (project / "job.yaml").write_text(JOB + "profile: {prod: {job: of-prod}}\n", encoding="utf-8")

    def job(*arguments: str, **variables: str) -> str:
        return json.loads(agentflow("validate", "job.yaml", "--json", *arguments, cwd=project, **variables).stdout)[
            "job"
        ]

    assert job() == "reviews"
    assert job("--profile", "prod") == "of-prod"
    assert job("--profile", "prod", AGENTFLOW_JOB="of-variable") == "of-variable"
    assert job("--profile", "prod", "--set", "job=of-flag", AGENTFLOW_JOB="of-variable") == "of-flag"


def test_module_that_does_not_import_is_told_with_the_users_part_of_the_traceback(project):
    (project / "agents.py").write_text("import json\n\nraise RuntimeError('no network')\n", encoding="utf-8")
    answer = agentflow("validate", "job.yaml", cwd=project)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr == (
        "error: job.yaml:2: agent 'agents:ReviewAgent': module 'agents' cannot be imported: RuntimeError: no network\n"
        "  2 | agent: agents:ReviewAgent\n"
        "             ^^^^^^^^^^^^^^^^^^\n"
        "  Traceback (most recent call last):\n"
        f'    File "{project}/agents.py", line 3, in <module>\n'
        "      raise RuntimeError('no network')\n"
        "  RuntimeError: no network\n"
    )


def test_whole_traceback_is_shown_when_it_is_asked_for(project):
    (project / "agents.py").write_text("raise RuntimeError('no network')\n", encoding="utf-8")
    answer = agentflow("validate", "job.yaml", "--traceback", cwd=project)
    assert answer.returncode == 2
    assert answer.stderr.startswith("Traceback (most recent call last):")
    assert "error: job.yaml:2: agent 'agents:ReviewAgent'" in answer.stderr


@pytest.mark.parametrize("command", ["run", "validate", "plan"])
def test_problems_of_an_agent_are_told_with_status_2(project, command):
    answer = agentflow(command, "job.yaml", "--set", "agent=agents:Twice", cwd=project)
    assert answer.returncode == 2
    assert [line for line in answer.stderr.splitlines() if line.startswith("error: ")] == [
        (
            "error: agent 'Twice', action 'act': timeout: 'soon' is not a duration; "
            "write a number with a unit (ms, s, m, h, d), such as '5s'"
        ),
        "error: agent 'Twice', action 'act': on_error='skipp' is unknown",
    ]


def test_problems_of_an_agent_as_json(project):
    answer = agentflow("validate", "job.yaml", "--json", "--set", "agent=agents:Wrong", cwd=project)
    (problem,) = json.loads(answer.stdout)["problems"]
    assert answer.returncode == 2
    assert problem["message"].startswith("agent 'Wrong', action 'nothing': it has no trigger")


def test_plan_is_printed_as_text_json_and_mermaid(project):
    text = agentflow("plan", "job.yaml", cwd=project)
    assert text.stdout.startswith("agent ReviewAgent  2 actions")
    plan = json.loads(agentflow("plan", "job.yaml", "--json", cwd=project).stdout)
    assert [action["name"] for action in plan["actions"]] == ["score", "report"]
    graph = agentflow("plan", "job.yaml", "--mermaid", cwd=project)
    assert graph.stdout.startswith("flowchart LR\n")
    assert '-->|"scored"|' in graph.stdout
    assert (text.returncode, graph.returncode, graph.stderr) == (0, 0, "")


def test_schema_is_json_with_every_section(tmp_path):
    schema = json.loads(agentflow("schema", cwd=tmp_path).stdout)
    assert set(key_table().sections[()].children) <= set(schema["properties"])


def test_section_is_described_as_text_and_json(tmp_path):
    text = agentflow("schema", "--describe", "state", cwd=tmp_path)
    keys = json.loads(agentflow("schema", "--describe", "state", "--json", cwd=tmp_path).stdout)
    assert (text.returncode, text.stdout.count("AGENTFLOW_STATE_")) == (0, len(keys))
    assert keys[0]["key"] == "state.dir"


def test_output_is_plain_without_a_terminal(project):
    answer = agentflow("validate", "missing.yaml", cwd=project, FORCE_COLOR="1")
    assert "\x1b[" not in answer.stderr


def on_a_terminal(*arguments: str, cwd: Path, **variables: str) -> str:
    """Run with standard error on a terminal and return what is written there."""
    leader, follower = os.openpty()
    env = {
        name: value for name, value in os.environ.items() if name != "NO_COLOR" and not name.startswith("AGENTFLOW_")
    }
    env |= {"PYTHONPATH": str(ROOT), "TERM": "xterm", **variables}
    with subprocess.Popen(
        [sys.executable, "-m", "agentflow", *arguments], cwd=cwd, env=env, stderr=follower
    ) as process:
        os.close(follower)
        written = bytearray()
        while True:
            try:
                part = os.read(leader, 4096)
            except OSError:  # Linux says so when the other side is closed
                break
            if not part:
                break
            written += part
        process.wait()
    os.close(leader)
    return written.decode()


def test_colour_is_used_on_a_terminal_and_no_color_is_honoured(project):
    assert "\x1b[31;1merror:\x1b[0m" in on_a_terminal("validate", "missing.yaml", cwd=project)
    assert "\x1b[" not in on_a_terminal("validate", "missing.yaml", cwd=project, NO_COLOR="1")
    assert "\x1b[" not in on_a_terminal("validate", "missing.yaml", cwd=project, TERM="dumb")


def test_reader_that_goes_away_ends_the_command_quietly(tmp_path):
    command = f"{sys.executable} -m agentflow schema | true; echo ${{PIPESTATUS[0]}}"
    answer = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert (answer.stdout, answer.stderr) in {("141\n", ""), ("0\n", "")}  # 0: all of it fitted into the pipe

"""YAML agents at work: as a command without a line of Python, and in code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentflow import AgentsExecutionEnvironment, Prompt, ResourceType
from agentflow.errors import PlanError
from agentflow.plan.file_problems import JobFileError

ROOT = Path(__file__).resolve().parents[2]

REACT = """\
chat_model_connections:
  - name: models
    class: scripted
    script: ${env:SCRIPT}
chat_model_setups:
  - {name: small, connection: models, model: any}
prompts:
  - {name: ask, text: "A customer writes: {text}"}
agents:
  - name: support
    type: react
    chat_model: small
    prompt: ask
    tools: [{function: "textwrap:dedent"}]
    max_turns: 4
"""
SCRIPT = """\
rules:
  - when: "A customer writes: late"
    reply: {tool: dedent, arguments: {text: "  on its way"}}
  - {when: "on its way", reply: "Your parcel is on its way."}
  - {when: "", reply: "How can I help?"}
"""


@pytest.fixture(autouse=True)
def _in_a_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCRIPT", "script.yaml")
    Path("agent.yaml").write_text(REACT)
    Path("script.yaml").write_text(SCRIPT)


def agentflow(*arguments, given=""):
    return subprocess.run(
        [sys.executable, "-m", "agentflow", *arguments],
        input=given,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_agent_without_code_answers_standard_input_and_calls_its_tools():
    records = [{"key": "ann", "text": "late"}, {"key": "bob", "text": "hello"}, {"text": "late"}]
    done = agentflow("run", "agent.yaml", given="".join(json.dumps(record) + "\n" for record in records))
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(answers) == ["How can I help?", "Your parcel is on its way.", "Your parcel is on its way."]


def test_agent_file_with_keys_of_a_job_reads_and_writes_files():
    Path("in.jsonl").write_text('{"id": 1, "text": "late"}\n')
    job = "source: {jsonl: {path: in.jsonl}}\nsink: {jsonl: {path: out/}}\nkey-by: id\nstate.dir: state/\n"
    Path("agent.yaml").write_text(REACT + job)
    done = agentflow("run", "agent.yaml")
    assert done.returncode == 0, done.stderr
    (part,) = Path("out").glob("part-*")
    assert json.loads(part.read_text()) == "Your parcel is on its way."


def test_job_runs_an_agent_of_another_file():
    Path("job.yaml").write_text(
        "agent: agent.yaml#support\nkey-by: text\nsource: stdin\nsink: stdout\nguarantee: none\n"
    )
    done = agentflow("run", "job.yaml", given='{"text": "late"}\n')
    assert (done.returncode, json.loads(done.stdout)) == (0, "Your parcel is on its way."), done.stderr


def test_agent_file_is_validated_and_its_plan_is_shown_without_what_it_refers_to(monkeypatch):
    monkeypatch.delenv("SCRIPT")
    validated = agentflow("validate", "agent.yaml", "--json")
    assert validated.returncode == 0, validated.stdout + validated.stderr
    assert json.loads(validated.stdout)["agent"] == "support"
    plan = agentflow("plan", "agent.yaml")
    assert plan.returncode == 0, plan.stderr
    assert "chat_model small" in plan.stdout
    assert "${env:SCRIPT}" in agentflow("plan", "agent.yaml", "--json").stdout


def test_problems_are_fields_of_json_with_their_lines():
    Path("agent.yaml").write_text(REACT.replace("max_turns", "max_turn"))
    done = agentflow("validate", "agent.yaml", "--json")
    assert done.returncode == 2
    (problem,) = json.loads(done.stdout)["problems"]
    assert (problem["file"], problem["line"]) == ("agent.yaml", 15)
    assert problem["message"] == "unknown key 'max_turn' of agent 'support'"


def run_in_code(env, agent, *values):
    outputs = env.from_list(values).key_by("key").apply(agent).to_list()
    env.execute()
    return outputs


def test_environment_loads_agents_and_what_they_share():
    env = AgentsExecutionEnvironment.get_execution_environment().load_yaml("agent.yaml")
    assert [name for name, _, _ in env.resources] == ["models", "small", "ask"]
    assert run_in_code(env, "support", {"key": 1, "text": "late"}) == ["Your parcel is on its way."]


def test_environment_passes_over_the_keys_of_a_job_and_takes_several_files(tmp_path):
    shared, _, agents = REACT.partition("agents:")
    Path("shared.yaml").write_text(shared)
    Path("agents.yaml").write_text(f"agents:{agents}source: {{jsonl: {{path: in.jsonl}}}}\nprofile: {{a: {{}}}}\n")
    env = AgentsExecutionEnvironment.get_execution_environment().load_yaml([tmp_path / "agents.yaml", "shared.yaml"])
    assert run_in_code(env, "support", {"key": 1, "text": "hello"}) == ["How can I help?"]


def test_document_may_use_what_the_environment_has():
    Path("agent.yaml").write_text(REACT.replace('  - {name: ask, text: "A customer writes: {text}"}\n', ""))
    env = AgentsExecutionEnvironment.get_execution_environment()
    env.add_resource("ask", ResourceType.PROMPT, Prompt.from_text("A customer writes: {text}"))
    assert run_in_code(env.load_yaml("agent.yaml"), "support", {"key": 1, "text": "late"})


def test_name_of_no_yaml_agent_is_told():
    env = AgentsExecutionEnvironment.get_execution_environment().load_yaml("agent.yaml")
    with pytest.raises(PlanError, match="no YAML agent is called 'suport': did you mean 'support'"):
        env.from_list([]).key_by("key").apply("suport")


def test_what_is_loaded_twice_is_told():
    env = AgentsExecutionEnvironment.get_execution_environment().load_yaml("agent.yaml")
    with pytest.raises(PlanError) as caught:
        env.load_yaml("agent.yaml")
    assert [problem.rpartition(": ")[2] for problem in caught.value.problems] == [
        "there is the agent 'support' already",
        "there is the chat_model_connection 'models' already",
        "there is the chat_model 'small' already",
        "there is the prompt 'ask' already",
    ]


def test_problems_of_a_document_are_told_with_lines_in_code():
    Path("agent.yaml").write_text(REACT + "agnts: []\n")
    with pytest.raises(JobFileError, match="agent\\.yaml:16: unknown key 'agnts'"):
        AgentsExecutionEnvironment.get_execution_environment().load_yaml("agent.yaml")

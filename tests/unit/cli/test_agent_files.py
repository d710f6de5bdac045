"""Files that hold agents: what stands in for the keys of a job, which agent is meant, what is shared."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from agentflow import Prompt, ResourceType
from agentflow.cli.agent_file import job_keys, key_of
from agentflow.cli.config_file import load_job_file
from agentflow.cli.job_file import CsvSource, JsonlSink, JsonlSource, StdinSource, StdoutSink
from agentflow.cli.keys import key_table
from agentflow.cli.loading import load_program
from agentflow.environment.yaml_agents import JOB_KEYS
from agentflow.plan.file_problems import JobFileError
from tests.unit.cli.job_files import GOOD, told

ACTION = "actions: [{function: 'tests.unit.plan.yaml_shop:review', trigger_conditions: input}]"
ONE = f"agents: [{{name: reviews, {ACTION}}}]\n"
TWO = f"agents:\n  - {{name: reviews, {ACTION}}}\n  - {{name: alerts, {ACTION}}}\n"


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(textwrap.dedent(text), encoding="utf-8")


def load(text, *settings, path="agent.yaml", **options):
    write(path, text)
    return load_job_file(path, settings=settings, variables={}, **options)


def problems(text, *settings, path="agent.yaml"):
    with pytest.raises(JobFileError) as caught:
        load_program(load(text, *settings, path=path))
    return list(caught.value.problems)


def test_agents_alone_are_a_job_of_standard_input_and_output():
    job = load(ONE)
    assert (job.composition.agent, job.composition.source, job.composition.sink) == (
        "reviews",
        StdinSource(),
        StdoutSink(),
    )
    assert (job.composition.key_by, job.settings.guarantee) == ("agentflow.cli.agent_file:key_of", "none")
    program = load_program(job)
    assert (program.agent.name, program.key_by) == ("reviews", key_of)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"key": "a"}, "a"),
        ({"key": 0}, 0),
        ({"key": None}, ""),
        ({"id": 1}, ""),
        ("key", ""),
        (["key"], ""),
        (None, ""),
    ],
)
def test_key_is_the_field_key_or_one_for_all(value, key):
    assert key_of(value) == key


def test_keys_of_a_job_stand_beside_the_agents():
    job = load(
        ONE
        + """\
source: {jsonl: {path: in.jsonl}}
sink.jsonl.path: out/
key-by: id
state.dir: state/
job: shop
"""
    )
    assert isinstance(job.composition.source, JsonlSource)
    assert isinstance(job.composition.sink, JsonlSink)
    assert (job.composition.key_by, job.settings.guarantee, job.settings.job) == ("id", "exactly-once", "shop")


def test_files_to_standard_output_are_read_at_least_once():
    job = load(ONE + "source: {csv: {path: in.csv}}\n")
    assert isinstance(job.composition.source, CsvSource)
    assert job.settings.guarantee == "at-least-once"


def test_layers_come_before_what_stands_in():
    text = (
        ONE + "profile: {files: {source: {jsonl: {path: a.jsonl}}, sink: {jsonl: {path: out/}}, state.dir: state/}}\n"
    )
    assert isinstance(load(text, profile="files").composition.source, JsonlSource)
    assert load(text, "key-by=id").composition.key_by == "id"


@pytest.mark.parametrize("settings", [["agent=alerts"], []])
def test_agent_of_several_is_named_by_a_flag_or_a_key(settings):
    job = load(TWO + ("" if settings else "agent: alerts\n"), *settings)
    assert load_program(job).agent.name == "alerts"


PROBLEMS = {
    "which agent": (
        TWO,
        """
        agent.yaml: which agent? the file has reviews, alerts
          such as  agent: reviews   (or --set agent=reviews)
        """,
    ),
    "no such agent": (
        TWO + "agent: alrets\n",
        """
        agent.yaml:4: there is no agent 'alrets'
          4 | agent: alrets
                     ^^^^^^ did you mean 'alerts'?
        help: agentflow schema --describe agent
        """,
    ),
    "no agent": (
        "agents: []\n",
        """
        agent.yaml: 'agents' has no agent
        help: agentflow schema
        """,
    ),
    "key of neither": (
        ONE + "chat_model_setup: []\n",
        """
        agent.yaml:2: unknown key 'chat_model_setup'
          2 | chat_model_setup: []
              ^^^^^^^^^^^^^^^^ did you mean 'chat_model_setups'?
        help: agentflow schema --describe
        """,
    ),
    "both at once": (
        "agents: [{name: 5}]\nsource: {jsonl: {pth: a}}\n",
        """
        agent.yaml:1: agent '5': 'name' is a whole number
          1 | agents: [{name: 5}]
                              ^ a text is wanted; write "5"

        agent.yaml:2: unknown key 'source.jsonl.pth'
          2 | source: {jsonl: {pth: a}}
                               ^^^ did you mean 'path'?
        help: agentflow schema --describe source
        """,
    ),
    "function that is not there": (
        ONE.replace(":review'", ":reviw'"),
        """
        agent.yaml:1: action 'reviw': function 'tests.unit.plan.yaml_shop:reviw': module 'tests.unit.plan.yaml_shop' has no 'reviw'
          1 | agents: [{name: reviews, actions: [{function: 'tests.unit.plan.yaml_shop:reviw', trigger_conditions: input}]}]
                                                            ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ did you mean 'review'?
        """,
    ),
    "file that cannot be read twice, exactly once": (
        ONE + "guarantee: exactly-once\nstate.dir: state/\n",
        """
        agent.yaml: standard input cannot be read twice, so the job cannot be exactly-once
          a jsonl source can
        help: set  guarantee: none, and remove state.dir;  or  source: {jsonl: {path: in.jsonl}}
        """,
    ),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_problem_of_an_agent_file_is_told_with_place_mark_and_fix(case):
    text, expected = PROBLEMS[case]
    assert "\n\n".join(problems(text)) == told(expected)


def job(agent):
    return GOOD.replace("shop.agents:ReviewAgent", agent)


@pytest.mark.parametrize("agent", ["conf/agents.yaml#alerts", "agents.yaml#alerts"])
def test_job_names_an_agent_of_another_file_there_or_beside_itself(agent):
    write("conf/agents.yaml", TWO + "prompts: [{name: hello, text: Hi}]\nsource: {stdin: {}}\nprofile: {a: {}}\n")
    program = load_program(load(job(agent), path="conf/job.yaml"))
    assert program.agent.name == "alerts"
    ((name, kind, instance),) = program.agent.resources
    assert (name, kind, instance.text) == ("hello", ResourceType.PROMPT, "Hi")


def test_only_agent_of_a_file_needs_no_name():
    write("agents.yaml", ONE)
    assert load_program(load(job("agents.yaml"), path="job.yaml")).agent.name == "reviews"


def test_agent_of_python_has_what_its_job_file_shares_where_it_has_none_itself():
    write(
        "pets.py",
        """\
        from agentflow import Agent, OutputEvent, Prompt, action, prompt


        class PetAgent(Agent):
            @prompt
            def own():
                return Prompt.from_text("of the agent")

            @action("_input_event")
            def act(event, ctx):
                ctx.send_event(OutputEvent(1))
        """,
    )
    text = "prompts: [{name: own, text: of the file}, {name: other, text: of the file}]\n"
    program = load_program(load(job("pets:PetAgent") + text, path="job.yaml"))
    prompts: list[tuple[str, ResourceType, Prompt]] = program.agent.resources
    assert [(name, prompt.text) for name, _, prompt in prompts] == [("own", "of the agent"), ("other", "of the file")]


JOB_PROBLEMS = {
    "no such file": (
        "nowhere.yaml#a",
        """
        job.yaml:2: agent: there is no file 'nowhere.yaml'
          2 | agent: nowhere.yaml#a
                     ^^^^^^^^^^^^^^ looked in the current directory, and beside the job file
        """,
    ),
    "no such agent": (
        "agents.yaml#alrets",
        """
        job.yaml:2: there is no agent 'alrets'
          2 | agent: agents.yaml#alrets
                     ^^^^^^^^^^^^^^^^^^ did you mean 'alerts'?
        """,
    ),
    "several agents": (
        "agents.yaml",
        """
        job.yaml:2: there are 2 agents
          2 | agent: agents.yaml
                     ^^^^^^^^^^^ name one: reviews, alerts
        """,
    ),
    "problem in the other file": (
        "bad.yaml",
        """
        bad.yaml:1: unknown key 'agnts' of the document
          1 | agnts: []
              ^^^^^ did you mean 'agents'?
        help: agentflow schema
        """,
    ),
}


@pytest.mark.parametrize("case", JOB_PROBLEMS)
def test_problem_of_another_file_is_told(case):
    write("agents.yaml", TWO)
    write("bad.yaml", "agnts: []\n")
    agent, expected = JOB_PROBLEMS[case]
    assert "\n\n".join(problems(job(agent), path="job.yaml")) == told(expected)


def test_code_passes_over_the_keys_of_a_job():
    assert set(job_keys(key_table())) == JOB_KEYS

"""What a job file names in Python: found, or told with the part of the traceback that is the user's."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from agentflow.api.agent import Agent
from agentflow.cli.config_file import load_job_file
from agentflow.cli.loading import load_program
from agentflow.plan.file_problems import JobFileError

JOB = """\
agent: {agent}
key-by: {key_by}
source: {{jsonl: {{path: in.jsonl}}}}
sink: {{jsonl: {{path: out/}}}}
state.dir: state/
"""


@pytest.fixture(autouse=True)
def _in_a_project(tmp_path, monkeypatch):
    """An empty project directory; what a test imports from it is forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)) or name == "shop":
            del sys.modules[name]


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(textwrap.dedent(text), encoding="utf-8")


def load(agent: str, key_by: str = "product_id", job: str = "job.yaml"):
    write(job, JOB.format(agent=agent, key_by=key_by))
    return load_program(load_job_file(job, variables={}))


def problem(agent: str, key_by: str = "product_id") -> str:
    with pytest.raises(JobFileError) as caught:
        load(agent, key_by)
    (text,) = caught.value.problems
    return text


AGENTS = """
from agentflow.api.agent import Agent

class ReviewAgent(Agent):
    pass

class Demanding(Agent):
    def __init__(self, limit):
        super().__init__()

class Broken(Agent):
    def __init__(self):
        raise ValueError("no model is configured")

class Nested:
    class Inner(Agent):
        pass

ready = Agent("ready")
LIMIT = 5

def of(value):
    return value["product_id"]
"""


def test_class_is_made_and_an_instance_taken_as_it_is():
    write("agents.py", AGENTS)
    assert load("agents:ReviewAgent").agent.name == "ReviewAgent"
    assert load("agents:ready").agent.name == "ready"
    assert isinstance(load("agents:Nested.Inner").agent, Agent)


def test_modules_beside_the_job_file_are_found():
    write("jobs/beside.py", AGENTS)
    assert load("beside:ReviewAgent", job="jobs/job.yaml").agent.name == "ReviewAgent"


def test_key_is_a_field_or_a_function():
    write("agents.py", AGENTS)
    assert load("agents:ReviewAgent", "product.id").key_by == "product.id"
    assert load("agents:ReviewAgent", "agents:of").key_by({"product_id": 7}) == 7


def test_missing_module_is_told_with_the_nearest():
    write("agents.py", AGENTS)
    assert problem("agent:ReviewAgent") == textwrap.dedent("""\
        job.yaml:1: agent 'agent:ReviewAgent': there is no module 'agent'
          1 | agent: agent:ReviewAgent
                     ^^^^^^^^^^^^^^^^^ did you mean 'agents'?
        help: name it as module:name, and start agentflow where the module can be imported""")


def test_missing_module_of_a_package_is_told_with_the_nearest():
    write("shop/__init__.py", "")
    write("shop/agents.py", AGENTS)
    assert "there is no module 'shop.agent'\n" in problem("shop.agent:ReviewAgent")
    assert "did you mean 'shop.agents'?" in problem("shop.agent:ReviewAgent")


def test_missing_package_of_a_module_is_the_one_that_is_told():
    assert "there is no module 'nowhere'\n" in problem("nowhere.agents:ReviewAgent")


def test_module_that_imports_a_missing_one_is_told_with_that_line():
    write("agents.py", "import json\nimport not_installed\n")
    text = problem("agents:ReviewAgent")
    assert text.startswith(
        "job.yaml:1: agent 'agents:ReviewAgent': module 'agents' imports 'not_installed', which is not there"
    )
    assert 'agents.py", line 2, in <module>\n      import not_installed' in text
    assert "importlib" not in text
    assert "loading.py" not in text


def test_syntax_error_is_told_with_file_and_line():
    write("agents.py", "x = 1\ndef broken(:\n    pass\n")
    text = problem("agents:ReviewAgent")
    assert "module 'agents' is not valid Python: agents.py:2: invalid syntax" in text
    assert "def broken(:" in text


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise RuntimeError('no network')", "cannot be imported: RuntimeError: no network"),
        ("import sys\nsys.exit(3)", "cannot be imported: SystemExit: 3"),
        ("raise KeyError", "cannot be imported: KeyError"),
    ],
)
def test_module_that_raises_is_told_with_the_users_part_of_the_traceback(code, told):
    write("agents.py", code)
    text = problem("agents:ReviewAgent")
    assert f"agent 'agents:ReviewAgent': module 'agents' {told}" in text
    assert 'agents.py", line' in text
    assert "importlib" not in text


def test_missing_name_is_told_with_the_nearest():
    write("agents.py", AGENTS)
    text = problem("agents:ReviewAgnt")
    assert "module 'agents' has no 'ReviewAgnt'" in text
    assert "did you mean 'ReviewAgent'?" in text


def test_missing_name_is_told_with_the_agents_there_are():
    write("agents.py", AGENTS)
    assert "it has: ReviewAgent, Demanding, Broken, ready" in problem("agents:zzz")


@pytest.mark.parametrize(
    ("name", "kind"), [("LIMIT", "of type int"), ("of", "of type function"), ("Nested", "the class Nested")]
)
def test_what_is_not_an_agent_is_told(name, kind):
    write("agents.py", AGENTS)
    text = problem(f"agents:{name}")
    assert f"agent 'agents:{name}' is {kind}, not an Agent" in text
    assert "the module has: ReviewAgent, Demanding, Broken, ready" in text


def test_class_that_wants_arguments_is_told():
    write("agents.py", AGENTS)
    text = problem("agents:Demanding")
    assert "Demanding() raised TypeError" in text
    assert "missing 1 required positional argument: 'limit'" in text
    assert "an agent class is made without arguments; name an instance instead" in text


def test_constructor_that_raises_is_told_with_its_line():
    write("agents.py", AGENTS)
    text = problem("agents:Broken")
    assert "Broken() raised ValueError: no model is configured" in text
    assert 'raise ValueError("no model is configured")' in text


def test_agent_and_key_are_told_at_once():
    write("agents.py", AGENTS)
    with pytest.raises(JobFileError) as caught:
        load("agents:LIMIT", "agents:nothing")
    assert [text.split("\n")[0] for text in caught.value.problems] == [
        "job.yaml:1: agent 'agents:LIMIT' is of type int, not an Agent",
        "job.yaml:2: key-by 'agents:nothing': module 'agents' has no 'nothing'",
    ]


@pytest.mark.parametrize(
    ("key_by", "told"),
    [
        ("agents:LIMIT", "key-by 'agents:LIMIT' is of type int, not a function"),
        ("'a b:c'", "key-by 'a b:c' is neither a field nor module:function"),
    ],
)
def test_what_is_not_a_key_function_is_told(key_by, told):
    write("agents.py", AGENTS)
    assert told in problem("agents:ReviewAgent", key_by)

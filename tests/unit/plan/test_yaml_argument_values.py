"""Values of arguments in YAML: what a resource would refuse, validation refuses, with the line of the argument."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentflow.plan.file_problems import JobFileError
from agentflow.plan.yaml_agents import load_documents

DOCUMENT = """
chat_model_connections:
  - {name: c, class: scripted%s}
chat_model_setups:
  - {name: m, connection: c, model: x%s}
mcp_servers:
  - {name: s%s}
agents:
  - {name: a, type: react, chat_model: m}
"""
SERVER = ", endpoint: 'https://shop.example/mcp'"

SETUPS = {
    "limits: [{per: modl, concurrency: 1}]": "limits: Invalid enum value 'modl'",
    "limits: [{concurrncy: 2}]": "limits: Object contains unknown field `concurrncy`",
    "limits: [{concurrency: -2}]": "limits: RateLimit: concurrency is -2",
    "budgets: {calls: 5}": "budgets: {'calls': 5} is no list",
    'budgets: [{calls: "5"}]': "budgets: Expected `int | null`, got `str`",
    "budgets: [{per: run}]": "budgets: Budget: it limits nothing",
    "error_handling_strategy: ignor": "error_handling_strategy: 'ignor' is none of fail, retry, ignore, fallback",
    "structured_output_strategy: natve": "structured_output_strategy: 'natve' is none of auto, native, prompt",
    "max_turns: 0": "max_turns is at least 1, not 0",
    "fallback_models: [m]": "chat model 'm' falls back to itself",
}
CONNECTIONS = {
    "rules: [{when: '^21($', reply: x}]": "rules: number 1: 'when' is no regular expression",
    "rules: [{wen: x, reply: x}]": "is no rule; it has 'when'",
    "rules: [{when: x}]": "is no rule; it has 'when'",
    "rules: [{when: x, reply: 5}]": "rules: number 1: 5 is no reply: it is a int",
    "rules: [{when: x, reply: {tol: look}}]": "there is no field 'tol'",
    "rules: [{when: x, reply: {tool: look, arguments: [1]}}]": "arguments of tool 'look' are no object",
    "replies: [x, 5]": "replies: number 2: 5 is no reply",
    "latency: soon": "'soon' is not a duration",
}
SERVERS = {
    "": "it is reached in one of two ways",
    "endpoint: 'https://x.example', command: x": "it is reached in one of two ways",
    "endpoint: 'ftp://x.example'": "its endpoint is no URL",
    "endpoint: 'https://x.example', auth: {type: bear}": "auth of the MCP server",
    "endpoint: 'https://x.example', auth: {type: bearer}": "auth of the MCP server",
    "endpoint: 'https://x.example', timeout: 0s": "timeout: '0s'",
    "command: x, policies: {order: {requires_aproval: true}}": "unknown field `requires_aproval`",
}
CASES = [
    *((("", f", {text}", SERVER), 5, problem) for text, problem in SETUPS.items()),
    *(((f", {text}", "", SERVER), 3, problem) for text, problem in CONNECTIONS.items()),
    *((("", "", f", {text}" if text else ""), 7, problem) for text, problem in SERVERS.items()),
]


def load(folder: Path, arguments: tuple[str, str, str]) -> None:
    path = folder / "agents.yaml"
    path.write_text(DOCUMENT % arguments)
    load_documents(str(path))


@pytest.mark.parametrize(("arguments", "line", "problem"), CASES)
def test_a_value_that_cannot_be_is_told_before_anything_runs(
    tmp_path: Path, arguments: tuple[str, str, str], line: int, problem: str
) -> None:
    with pytest.raises(JobFileError) as caught:
        load(tmp_path, arguments)
    assert f"agents.yaml:{line}: " in str(caught.value)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        (", latency: '${env:NOT_SET_LATENCY}', replies: [x]", ", budgets: [{per: day, calls: 5}]", SERVER),
        (
            "",
            ", limits: [{requests_per_minute: 5}]",
            ", endpoint: '${env:NOT_SET_URL}', auth: {type: bearer, token: t}",
        ),
        ("", "", SERVER + ", auth: {type: bearer, token: '${env:NOT_SET_TOKEN}'}"),
    ],
)
def test_values_that_are_known_where_they_are_used_are_left_to_that_time(
    tmp_path: Path, arguments: tuple[str, str, str]
) -> None:
    load(tmp_path, arguments)

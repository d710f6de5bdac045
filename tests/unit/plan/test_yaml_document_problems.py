"""What a person reads when the text of a YAML document of agents is wrong, before anything that it names is imported."""

from __future__ import annotations

import textwrap

import pytest

from tests.unit.plan.yaml_documents import problems


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


CASES = {
    "unknown key of the document": (
        """
        agnets: []
        """,
        """
        agents.yaml:1: unknown key 'agnets' of the document
          1 | agnets: []
              ^^^^^^ did you mean 'agents'?
        help: agentflow schema
        """,
    ),
    "unknown key of an agent": (
        """
        agents:
          - name: a
            action: []
            actions: []
        """,
        """
        agents.yaml:3: unknown key 'action' of agent 'a'
          3 |     action: []
                  ^^^^^^ did you mean 'actions'?
        help: agentflow schema
        """,
    ),
    "unknown key of an action, in the style of job files": (
        """
        actions: [{function: 'x:y', trigger-conditions: input}]
        """,
        """
        agents.yaml:1: unknown key 'trigger-conditions' of action 'y'
          1 | actions: [{function: 'x:y', trigger-conditions: input}]
                                          ^^^^^^^^^^^^^^^^^^ did you mean 'trigger_conditions'?
        help: agentflow schema
        """,
    ),
    "no name": (
        """
        agents:
          - actions: [review]
        """,
        """
        agents.yaml:2: this agent has no 'name'
          2 |   - actions: [review]
                  ^^^^^^^^^^^^^^^^^ such as  name: support
        """,
    ),
    "key twice": (
        """
        prompts:
          - name: a
            text: x
            text: y
        """,
        """
        agents.yaml:4: prompt 'a': 'text' is set twice, first in line 3
          3 |     text: x
          4 |     text: y
                  ^^^^ remove one of them
        """,
    ),
    "two keys of one meaning": (
        """
        chat_model_connections: [{name: a, class: scripted, clazz: scripted}]
        """,
        """
        agents.yaml:1: connection 'a' has both 'class' and 'clazz'
          1 | chat_model_connections: [{name: a, class: scripted, clazz: scripted}]
                                                                  ^^^^^ they mean the same
        """,
    ),
    "two entries of one name": (
        """
        prompts:
          - {name: a, text: x}
          - {name: a, text: y}
        """,
        """
        agents.yaml:3: prompt 'a' is there twice, first in line 2
          2 |   - {name: a, text: x}
          3 |   - {name: a, text: y}
                         ^ names are unique
        """,
    ),
    "shared action named twice": (
        """
        actions: [{function: 'tests.unit.plan.yaml_shop:review', trigger_conditions: input}]
        agents:
          - name: a
            actions:
              - review
              - review
        """,
        """
        agents.yaml:6: 'review' is there twice, first in line 5
          5 |       - review
          6 |       - review
                      ^^^^^^ names are unique
        """,
    ),
    "no list": (
        """
        prompts: {name: a}
        """,
        """
        agents.yaml:1: 'prompts' is a list of prompt entries
          1 | prompts: {name: a}
                       ^^^^^^^^^ each begins with '- '
        """,
    ),
    "no mapping": (
        """
        prompts: [hello]
        """,
        """
        agents.yaml:1: an entry of 'prompts' is a mapping of keys
          1 | prompts: [hello]
                        ^^^^^
        """,
    ),
    "wrong kind": (
        """
        agents: [{name: a, description: 5}]
        """,
        """
        agents.yaml:1: agent 'a': 'description' is a whole number
          1 | agents: [{name: a, description: 5}]
                                              ^ a text is wanted; write "5"
        """,
    ),
    "duration without unit": (
        """
        tools: [{function: 'x:y', timeout: 30}]
        """,
        """
        agents.yaml:1: tool 'y': 'timeout' is a whole number
          1 | tools: [{function: 'x:y', timeout: 30}]
                                                 ^^ did you mean '30s'?
        """,
    ),
    "no duration": (
        """
        tools: [{function: 'x:y', timeout: soon}]
        """,
        """
        agents.yaml:1: tool 'y': 'timeout' is no duration
          1 | tools: [{function: 'x:y', timeout: soon}]
                                                 ^^^^ a number with a unit (ms, s, m, h, d), such as 30s
        """,
    ),
    "unknown choice": (
        """
        tools: [{function: 'x:y', injected_args: {tenant: {source: short-term-memry, key: t}}}]
        """,
        """
        agents.yaml:1: tool 'y': injected_args.tenant: 'source' is unknown: 'short-term-memry'
          1 | tools: [{function: 'x:y', injected_args: {tenant: {source: short-term-memry, key: t}}}]
                                                                         ^^^^^^^^^^^^^^^^ did you mean 'short_term_memory'? one of config, sensory_memory, short_term_memory
        """,
    ),
    "key inside an entry": (
        """
        actions: [{function: 'x:y', trigger_conditions: input, retry: {attempts: 2, wait: 3s}}]
        """,
        """
        agents.yaml:1: unknown key 'wait' of action 'y': retry
          1 | actions: [{function: 'x:y', trigger_conditions: input, retry: {attempts: 2, wait: 3s}}]
                                                                                          ^^^^ did you mean 'wait_max'?
        help: agentflow schema
        """,
    ),
    "value inside a list": (
        """
        prompts: [{name: a, messages: [{content: x}, {role: sytem, content: x}]}]
        """,
        """
        agents.yaml:1: prompt 'a': messages[1]: 'role' is unknown: 'sytem'
          1 | prompts: [{name: a, messages: [{content: x}, {role: sytem, content: x}]}]
                                                                  ^^^^^ did you mean 'system'? one of system, user, assistant
        """,
    ),
    "number out of range": (
        """
        tools: [{function: 'x:y', retry: {attempts: 0}}]
        """,
        """
        agents.yaml:1: tool 'y': retry: 'attempts' is out of range
          1 | tools: [{function: 'x:y', retry: {attempts: 0}}]
                                                          ^ at least 1
        """,
    ),
    "function that is no module:name": (
        """
        tools: [{function: shop.find}]
        """,
        """
        agents.yaml:1: tool 'find': 'function' is not module:name
          1 | tools: [{function: shop.find}]
                                 ^^^^^^^^^ such as shop.tools:find_orders
        """,
    ),
    "java": (
        """
        actions: [{function: 'x:y', trigger_conditions: input, type: java}]
        """,
        """
        agents.yaml:1: action 'y': agentflow runs Python, not Java
          1 | actions: [{function: 'x:y', trigger_conditions: input, type: java}]
                                                                           ^^^^ write the function in Python, and  type: python
        """,
    ),
    "reference that nothing resolves": (
        """
        actions: [{function: 'x:y', trigger_conditions: input, config: {a: ['${env:TOKEN}']}}]
        """,
        """
        agents.yaml:1: action 'y': 'config' has a reference, which nothing resolves
          1 | actions: [{function: 'x:y', trigger_conditions: input, config: {a: ['${env:TOKEN}']}}]
                                                                                  ^^^^^^^^^^^^^^ references are for arguments of resources, and for the job's own  config:
        """,
    ),
    "reference of an unknown kind": (
        """
        chat_model_connections: [{name: a, class: openai, default_headers: {x: "${evn:TOKEN}"}}]
        """,
        """
        agents.yaml:1: connection 'a': '${evn:TOKEN}' is no known reference
          1 | chat_model_connections: [{name: a, class: openai, default_headers: {x: "${evn:TOKEN}"}}]
                                                                                     ^^^^^^^^^^^^^^ did you mean 'env'?
        """,
    ),
    "reference that is not closed": (
        """
        chat_model_connections: [{name: a, class: openai, api_key: "${env:TOKEN"}]
        """,
        """
        agents.yaml:1: connection 'a': the reference '${env:TOKEN' is not closed
          1 | chat_model_connections: [{name: a, class: openai, api_key: "${env:TOKEN"}]
                                                                         ^^^^^^^^^^^^^ a '}' is missing
        """,
    ),
    "class that is missing": (
        """
        chat_model_connections: [{name: a}]
        """,
        """
        agents.yaml:1: connection 'a' has no 'class'
          1 | chat_model_connections: [{name: a}]
                                       ^^^^^^^^^ such as  class: openai
        """,
    ),
    "blank name": (
        """
        prompts: [{name: ' ', text: a}]
        """,
        """
        agents.yaml:1: prompt ' ': 'name' is blank
          1 | prompts: [{name: ' ', text: a}]
                               ^^^
        """,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_problem_of_a_text_is_told_with_place_mark_and_fix(case):
    text, expected = CASES[case]
    assert "\n\n".join(problems(text)) == textwrap.dedent(expected).strip("\n")

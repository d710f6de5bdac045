"""What a person reads when what a YAML document of agents names is wrong, or the document as a whole: all at once."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from agentflow.plan.file_problems import JobFileError
from agentflow.plan.yaml_agents import load_documents
from tests.unit.plan.yaml_documents import problems


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


BUILT = {
    "module that is not there": (
        """
        tools: [{function: 'nowhere_shop:find'}]
        """,
        """
        agents.yaml:1: tool 'find': function 'nowhere_shop:find': there is no module 'nowhere_shop'
          1 | tools: [{function: 'nowhere_shop:find'}]
                                 ^^^^^^^^^^^^^^^^^^^ looked in the current directory, beside the job file, and in sys.path
        help: name it as module:name, and start agentflow where the module can be imported
        """,
    ),
    "function that is not there": (
        """
        tools:
          - function: tests.unit.plan.yaml_shop:find_order
        """,
        """
        agents.yaml:2: tool 'find_order': function 'tests.unit.plan.yaml_shop:find_order': module 'tests.unit.plan.yaml_shop' has no 'find_order'
          2 |   - function: tests.unit.plan.yaml_shop:find_order
                            ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ did you mean 'find_orders'?
        """,
    ),
    "no function": (
        """
        tools:
          - function: tests.unit.plan.yaml_shop:not_a_function
        """,
        """
        agents.yaml:2: tool 'not_a_function': function 'tests.unit.plan.yaml_shop:not_a_function' is of type int, not a function
          2 |   - function: tests.unit.plan.yaml_shop:not_a_function
                            ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ a function is wanted
        """,
    ),
    "secret as in a shell": (
        """
        chat_model_connections: [{name: c, class: openai, api_key: '${OPENAI_API_KEY}'}]
        """,
        """
        agents.yaml:1: connection 'c': 'api_key' is ${OPENAI_API_KEY}, which nothing replaces
          1 | chat_model_connections: [{name: c, class: openai, api_key: '${OPENAI_API_KEY}'}]
                                                                ^^^^^^^ write ${env:OPENAI_API_KEY}
        """,
    ),
    "values that do not fit": (
        """
        chat_model_connections: [{name: c, class: openai, api_key: '${env:KEY}'}]
        chat_model_setups:
          - {name: m, connection: c, model: x, max_retries: many, temperature: 0.5}
          - {name: n, connection: c, model: x, max_retries: '${env:RETRIES}', budgets: [{per: run, cals: 3}]}
        """,
        """
        agents.yaml:3: chat model 'm': 'max_retries' does not fit
          3 |   - {name: m, connection: c, model: x, max_retries: many, temperature: 0.5}
                                                     ^^^^^^^^^^^ Expected `int | null`, got `str`
        """,
    ),
    "argument that is no parameter": (
        """
        tools:
          - function: tests.unit.plan.yaml_shop:find_orders
            injected_args: {tenat: {key: t}}
        """,
        """
        agents.yaml:2: tool 'find_orders': tool 'find_orders' has no parameter 'tenat' to inject
          2 |   - function: tests.unit.plan.yaml_shop:find_orders
                            ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
        """,
    ),
    "function that is no action": (
        """
        actions:
          - function: tests.unit.plan.yaml_shop:has_happened
            trigger_conditions: input
        """,
        """
        agents.yaml:2: action 'has_happened': its parameters are (intent); it is called with exactly two: the event and the context
          2 |   - function: tests.unit.plan.yaml_shop:has_happened
                            ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ expected: a function (event, ctx) -> None, def or async def
        help: take (event, ctx)
        """,
    ),
    "wrong trigger": (
        """
        actions:
          - function: tests.unit.plan.yaml_shop:review
            trigger_conditions: [input, output]
        """,
        """
        agents.yaml:3: action 'review': trigger '_output_event' (EventType.OutputEvent) never fires: an output leaves the operator and is not routed
          3 |     trigger_conditions: [input, output]
                                              ^^^^^^
        help: send an event of your own beside the OutputEvent, and listen to that
        """,
    ),
    "timeout of a plain function": (
        """
        actions: [{function: 'tests.unit.plan.yaml_shop:review', trigger_conditions: input, timeout: 3s}]
        """,
        """
        agents.yaml:1: action 'review': timeout='3s' on a 'def' that runs on the loop, where nothing can stop it
          1 | actions: [{function: 'tests.unit.plan.yaml_shop:review', trigger_conditions: input, timeout: 3s}]
                                   ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ expected: a timeout on an 'async def', or with blocking=True
        help: add blocking=True, make it 'async def', or remove the timeout
        """,
    ),
    "name that no action can have": (
        """
        actions:
          - {name: a b, function: 'tests.unit.plan.yaml_shop:review', trigger_conditions: input}
        """,
        """
        agents.yaml:2: action 'a b': 'a b' cannot be an action's name
          2 |   - {name: a b, function: 'tests.unit.plan.yaml_shop:review', trigger_conditions: input}
                         ^^^ expected: a letter or '_', then letters, digits, '_', '.' or '-'
        """,
    ),
    "option below config": (
        """
        actions:
          - function: tests.unit.plan.yaml_shop:review
            trigger_conditions: input
            config: {timeout: 3s}
        """,
        """
        agents.yaml:4: action 'review': 'timeout' is an option of the action, not one of its own
          4 |     config: {timeout: 3s}
                          ^^^^^^^^^^^^^ write 'timeout' beside 'config', or give it another name
        """,
    ),
    "no triggers": (
        """
        actions:
          - function: tests.unit.plan.yaml_shop:review
            trigger_conditions: []
        """,
        """
        agents.yaml:3: action 'review': 'trigger_conditions' is empty
          3 |     trigger_conditions: []
                                      ^^
        """,
    ),
    "agent without actions": (
        """
        agents: [{name: a}]
        """,
        """
        agents.yaml:1: agent 'a' has no actions
          1 | agents: [{name: a}]
                       ^^^^^^^^^ add  actions:,  or make it  type: react
        """,
    ),
    "key of a react agent": (
        """
        agents: [{name: a, max_turns: 3, actions: [{function: 'tests.unit.plan.yaml_shop:review', trigger_conditions: input}]}]
        """,
        """
        agents.yaml:1: agent 'a' has 'max_turns', which is for agents of type react
          1 | agents: [{name: a, max_turns: 3, actions: [{function: 'tests.unit.plan.yaml_shop:review', trigger_conditions: input}]}]
                                 ^^^^^^^^^ add  type: react,  or remove it
        """,
    ),
    "react agent without a model": (
        """
        agents: [{name: a, type: react}]
        """,
        """
        agents.yaml:1: agent 'a' has no 'chat_model'
          1 | agents: [{name: a, type: react}]
                              ^ the name of a setup, or a setup
        """,
    ),
    "unknown model": (
        """
        chat_model_setups: [{name: small, class: scripted, connection: '${env:C}'}]
        agents:
          - {name: a, type: react, chat_model: smal}
        """,
        """
        agents.yaml:3: agent 'a': there is no chat model 'smal'
          3 |   - {name: a, type: react, chat_model: smal}
                                                     ^^^^ did you mean 'small'?
        """,
    ),
    "unknown prompt": (
        """
        chat_model_setups: [{name: small, class: scripted, connection: '${env:C}'}]
        agents:
          - {name: a, type: react, chat_model: small, prompt: You are nice.}
        """,
        """
        agents.yaml:3: agent 'a': there is no prompt 'You are nice.'
          3 |   - {name: a, type: react, chat_model: small, prompt: You are nice.}
                                                                    ^^^^^^^^^^^^^ add it to prompts, or write  prompt: {text: …}
        """,
    ),
    "unknown tool": (
        """
        tools: [{function: 'tests.unit.plan.yaml_shop:find_orders'}]
        chat_model_setups: [{name: small, class: scripted, connection: '${env:C}'}]
        agents:
          - {name: a, type: react, chat_model: small, tools: [find_order]}
        """,
        """
        agents.yaml:4: agent 'a': there is no tool 'find_order'
          4 |   - {name: a, type: react, chat_model: small, tools: [find_order]}
                                                                    ^^^^^^^^^^ did you mean 'find_orders'?
        """,
    ),
    "unknown shared action": (
        """
        agents:
          - name: a
            actions:
              - review
        """,
        """
        agents.yaml:4: agent 'a': there is no action 'review'
          4 |       - review
                      ^^^^^^ add it to actions
        """,
    ),
    "unknown connection, tool and fallback of a setup": (
        """
        chat_model_setups:
          - {name: small, connection: nowhere, tools: [find], fallback_models: [large]}
        """,
        """
        agents.yaml:2: chat model 'small': there is no connection 'nowhere'
          2 |   - {name: small, connection: nowhere, tools: [find], fallback_models: [large]}
                                            ^^^^^^^ add it to chat_model_connections

        agents.yaml:2: chat model 'small': there is no tool 'find'
          2 |   - {name: small, connection: nowhere, tools: [find], fallback_models: [large]}
                                                             ^^^^ add it to tools

        agents.yaml:2: chat model 'small': there is no chat model 'large'
          2 |   - {name: small, connection: nowhere, tools: [find], fallback_models: [large]}
                                                                                      ^^^^^ there are: small
        """,
    ),
    "unknown short name of a class": (
        """
        chat_model_connections:
          - {name: a, class: scriptd}
        """,
        """
        agents.yaml:2: connection 'a': there is no class 'scriptd'
          2 |   - {name: a, class: scriptd}
                                   ^^^^^^^ did you mean 'scripted'?
        """,
    ),
    "class that is not there": (
        """
        chat_model_connections: [{name: a, class: tests.unit.plan.yaml_shop.Conection}]
        """,
        """
        agents.yaml:1: connection 'a': class 'tests.unit.plan.yaml_shop.Conection': module 'tests.unit.plan.yaml_shop' has no 'Conection'
          1 | chat_model_connections: [{name: a, class: tests.unit.plan.yaml_shop.Conection}]
                                                        ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ did you mean 'Connection'?
        """,
    ),
    "class of another kind": (
        """
        chat_model_connections: [{name: a, class: tests.unit.plan.yaml_shop.Store}]
        """,
        """
        agents.yaml:1: connection 'a': class 'tests.unit.plan.yaml_shop.Store' is no chat_model_connection resource
          1 | chat_model_connections: [{name: a, class: tests.unit.plan.yaml_shop.Store}]
                                                        ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ a class whose resource_type() is chat_model_connection
        """,
    ),
    "unknown argument": (
        """
        chat_model_connections: [{name: a, class: scripted, scipt: x.yaml}]
        """,
        """
        agents.yaml:1: connection 'a': ScriptedConnection has no 'scipt'
          1 | chat_model_connections: [{name: a, class: scripted, scipt: x.yaml}]
                                                                  ^^^^^ did you mean 'script'?
        """,
    ),
    "prompt with text and path": (
        """
        prompts: [{name: a, text: x, path: y}]
        """,
        """
        agents.yaml:1: prompt 'a' has text and path
          1 | prompts: [{name: a, text: x, path: y}]
                                                 ^ one of text, messages and path
        """,
    ),
    "prompt without a text": (
        """
        prompts: [{name: a}]
        """,
        """
        agents.yaml:1: prompt 'a' has no text
          1 | prompts: [{name: a}]
                        ^^^^^^^^^ one of text, messages and path
        """,
    ),
    "prompt of a file that is not there": (
        """
        prompts: [{name: a, path: nowhere.txt}]
        """,
        """
        agents.yaml:1: prompt 'a': the file of a prompt cannot be read: No such file or directory
          1 | prompts: [{name: a, path: nowhere.txt}]
                                        ^^^^^^^^^^^ looked for nowhere.txt
        """,
    ),
}


@pytest.mark.parametrize("case", BUILT)
def test_problem_of_a_document_is_told_with_place_mark_and_fix(case):
    text, expected = BUILT[case]
    assert "\n\n".join(problems(text)) == textwrap.dedent(expected).strip("\n")


def test_condition_that_is_not_cel_is_told_with_its_line():
    (problem,) = problems("""
        actions:
          - function: tests.unit.plan.yaml_shop:review
            trigger_conditions:
              - input
              - attributes.x >
        """)
    assert problem.startswith(
        "agents.yaml:5: action 'review': condition 'attributes.x >' cannot be used: it is not CEL"
    )


def test_all_problems_are_told_at_once_in_the_order_of_lines():
    found = problems("""
        agnts: []
        prompts: [{name: p, text: 5}]
        tools: [{function: nothing}]
        chat_model_setups:
          - {name: m}
          - {name: m, connection: c}
        """)
    assert [problem.split(": ", 1)[0] for problem in found] == [f"agents.yaml:{line}" for line in (1, 2, 3, 5)]


def test_all_that_is_named_wrongly_is_told_at_once():
    found = problems("""
        tools: [{function: "tests.unit.plan.yaml_shop:find"}]
        prompts: [{name: p}]
        agents: [{name: a, actions: [x, y]}]
        """)
    assert [problem.split(": ", 1)[0] for problem in found] == [f"agents.yaml:{line}" for line in (1, 2, 3, 3)]


def test_one_name_in_two_documents_is_told_with_both_places():
    Path("one.yaml").write_text("prompts: [{name: p, text: x}]\n")
    Path("two.yaml").write_text("\nprompts: [{name: p, text: x}]\n")
    with pytest.raises(JobFileError) as caught:
        load_documents("one.yaml", "two.yaml")
    assert [problem.splitlines()[0] for problem in caught.value.problems] == [
        "two.yaml:2: prompt 'p' is there twice, first in one.yaml:1"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n", "agents.yaml:1: a document of agents is a mapping of keys"),
        ("", "agents.yaml: a document of agents is a mapping of keys"),
        ("agents: [\n", "agents.yaml:1: this is not YAML: did not find expected node content"),
    ],
)
def test_file_that_is_no_document_is_told(text, expected):
    assert problems(text)[0].splitlines()[0] == expected


def test_file_that_is_not_there_is_told():
    with pytest.raises(JobFileError, match=r"nowhere\.yaml: the file cannot be read: no such file or directory"):
        load_documents("nowhere.yaml")


def test_error_of_a_module_is_told_with_the_users_part_of_its_traceback(monkeypatch):
    Path("broken_shop.py").write_text("raise RuntimeError('no stock')\n")
    monkeypatch.syspath_prepend(".")
    (problem,) = problems("tools: [{function: 'broken_shop:find'}]")
    assert "module 'broken_shop' cannot be imported: RuntimeError: no stock" in problem
    assert 'broken_shop.py", line 1' in problem

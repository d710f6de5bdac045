"""What YAML documents of agents mean."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from agentflow import Agent, Prompt, ResourceDescriptor, ResourceType, Retry
from agentflow.actions.agents.react_agent import ReActAgent
from agentflow.api.steps import Reconcile
from agentflow.api.tools import InjectedArg, ToolParameterSource
from agentflow.plan.plan import AgentPlan
from agentflow.plan.yaml_agents import load_documents
from tests.unit.plan import yaml_shop

SHOP = "tests.unit.plan.yaml_shop"
BARE = "agents: [{name: a, actions: [{function: 'tests.unit.plan.yaml_shop:review', trigger_conditions: input}]}]\n"


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(text, **options):
    Path("agents.yaml").write_text(textwrap.dedent(text))
    return load_documents("agents.yaml", **options)


def resources_of(declared):
    return {(kind, name): instance for name, kind, instance in declared}


def only(declared):
    ((_, _, instance),) = declared
    return instance


def test_agent_has_its_actions_with_all_their_options():
    document = load(f"""
        agents:
          - name: reviews
            description: Looks at reviews.
            actions:
              - name: review
                function: {SHOP}:review
                trigger_conditions: [input, chat_response, "attributes.stars < 3", scored]
                config: {{limit: 3, names: [a, b]}}
              - function: {SHOP}:answer
                trigger_conditions: tool_response
                type: python
                parallel: true
                timeout: 3s
                on_error: skip
                retry: {{attempts: 2, initial: 1s}}
        """)
    agent = document.agents["reviews"]
    assert (type(agent), agent.name, agent.__doc__) == (Agent, "reviews", "Looks at reviews.")
    review, answer, *_ = AgentPlan.from_agent(agent).actions
    assert (review.name, review.function) == ("review", yaml_shop.review)
    assert review.trigger_types == ("_input_event", "_chat_response_event", "scored")
    assert (review.conditions, review.config) == (("attributes.stars < 3",), {"limit": 3, "names": ["a", "b"]})
    assert (answer.name, answer.trigger_types, answer.is_parallel) == ("answer", ("_tool_response_event",), True)
    assert (answer.timeout_ms, answer.on_error, answer.retry) == (3000, "skip", Retry(2, "1s"))


@pytest.mark.parametrize(
    ("alias", "event_type"),
    [
        ("input", "_input_event"),
        ("timer", "_timer_event"),
        ("cancel", "_cancel_event"),
        ("chat_request", "_chat_request_event"),
        ("tool_request", "_tool_request_event"),
        ("budget_exhausted", "_budget_exhausted_event"),
    ],
)
def test_short_name_of_an_event_is_its_type(alias, event_type):
    document = load(BARE.replace("trigger_conditions: input", f"trigger_conditions: [input, {alias}]"))
    (action,) = AgentPlan.from_agent(document.agents["a"]).actions
    assert action.trigger_types == tuple(dict.fromkeys(["_input_event", event_type]))


def test_shared_action_belongs_to_the_agents_that_name_it():
    document = load(f"""
        actions:
          - {{name: review, function: "{SHOP}:review", trigger_conditions: input, config: {{a: 1}}}}
          - {{name: rest, function: "{SHOP}:answer", trigger_conditions: input}}
        agents:
          - {{name: one, actions: [review]}}
          - {{name: both, actions: [rest, review]}}
        """)
    assert [name for name, _, _ in document.agents["one"].actions] == ["review"]
    assert [name for name, _, _ in document.agents["both"].actions] == ["rest", "review"]


def test_function_is_a_tool_with_its_policy():
    document = load(f"""
        tools:
          - name: find
            function: {SHOP}:find_orders
            injected_args: {{tenant: {{source: short_term_memory, key: tenant}}}}
            timeout: 10s
            retry: {{attempts: 5}}
            idempotent: false
            reconciler: {SHOP}:has_happened
            requires_approval: true
            approval_timeout: 1h
            result_max: 1000
        """)
    find = only(document.resources)
    assert (find.metadata.name, find.metadata.description) == ("find", "Find orders.")
    assert list(find.metadata.args_schema["properties"]) == ["customer", "limit"]
    assert find.injected_args == {"tenant": InjectedArg(ToolParameterSource.SHORT_TERM_MEMORY, "tenant")}
    policy = find.policy
    assert (policy.timeout, policy.retry, policy.idempotent) == ("10s", Retry(5), False)
    assert (policy.requires_approval, policy.approval_timeout, policy.result_max) == (True, "1h", 1000)
    assert policy.reconciler == Reconcile(yaml_shop.has_happened)


def test_document_has_the_last_word_over_a_decorated_tool():
    document = load(f"tools: [{{function: '{SHOP}:refund', timeout: 9s, requires_approval: true}}]")
    refund = only(document.resources)
    assert refund.injected_args == {"tenant": InjectedArg(ToolParameterSource.SENSORY_MEMORY, "tenant")}
    policy = refund.policy
    assert (policy.timeout, policy.idempotent, policy.requires_approval) == ("9s", False, True)


def test_prompt_is_a_text_messages_or_a_file_beside_the_document(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "ask.txt").write_text("Ask {name}\n")
    (tmp_path / "conf" / "agents.yaml").write_text(
        textwrap.dedent("""
        prompts:
          - {name: text, text: "Echo ${env:HOME} to {name}"}
          - name: messages
            messages: [{role: system, content: "Be brief."}, {content: "Hello {name}"}]
          - {name: file, path: ask.txt}
        """)
    )
    prompts = resources_of(load_documents("conf/agents.yaml").resources)

    def said(name):
        prompt: Prompt = prompts[ResourceType.PROMPT, name]
        return prompt.format_string(name="Ann")

    assert said("text") == "Echo ${env:HOME} to Ann"
    assert said("messages") == "system: Be brief.\nuser: Hello Ann"
    assert said("file") == "Ask Ann"


@pytest.mark.parametrize("key", ["class", "clazz", "type"])
def test_class_of_a_resource_has_three_keys_and_its_arguments_stay_as_they_are(key):
    document = load(f"""
        chat_model_connections:
          - {{name: models, {key}: scripted, script: "${{env:SCRIPT}}/${{file:/run/secret}}", replies: [a, {{tool: b}}]}}
        """)
    expected = ResourceDescriptor("scripted", script="${env:SCRIPT}/${file:/run/secret}", replies=["a", {"tool": "b"}])
    assert document.resources == [("models", ResourceType.CHAT_MODEL_CONNECTION, expected)]


def test_class_may_be_dotted():
    document = load(f"""
        vector_stores: [{{name: docs, class: {SHOP}.Store, path: "${{env:DOCS}}"}}]
        """)
    assert only(document.resources) == ResourceDescriptor(f"{SHOP}.Store", path="${env:DOCS}")


@pytest.mark.parametrize(
    ("connection", "setup"),
    [("scripted", "scripted"), (f"{SHOP}.Connection", "agentflow.api.chat_models.BaseChatModelSetup")],
)
def test_class_of_a_setup_follows_its_connection(connection, setup):
    document = load(f"""
        chat_model_connections: [{{name: models, class: {connection}}}]
        chat_model_setups: [{{name: small, connection: models, model: m, timeout: 3s, tools: []}}]
        """)
    found = resources_of(document.resources)[ResourceType.CHAT_MODEL, "small"]
    assert found == ResourceDescriptor(setup, connection="models", model="m", timeout="3s", tools=[])


MODELS = f"""
        chat_model_connections: [{{name: models, class: scripted}}]
        chat_model_setups: [{{name: small, connection: models, model: m}}]
        tools: [{{function: "{SHOP}:find_orders"}}]
        prompts: [{{name: ask, text: "Answer: {{input}}"}}]
"""


def test_react_agent_needs_no_code():
    document = load(
        MODELS
        + f"""
        agents:
          - name: support
            type: react
            chat_model: small
            prompt: ask
            tools: [find_orders, {{function: "{SHOP}:refund"}}]
            output_schema: {{type: object, properties: {{answer: {{type: string}}}}}}
            max_turns: 4
        """
    )
    agent = document.agents["support"]
    assert isinstance(agent, ReActAgent)
    assert (agent.name, agent.chat_model, agent.prompt) == ("support", "small", "ask")
    assert (agent.tools, agent.max_turns) == (["find_orders", "refund"], 4)
    assert agent.output_schema == {"type": "object", "properties": {"answer": {"type": "string"}}}
    assert [name for name, _, _ in agent.resources] == ["refund"]
    assert AgentPlan.from_agent(agent, None, document.resources)


def test_react_agent_has_its_model_and_prompt_where_it_stands():
    document = load(
        MODELS
        + """
        agents:
          - name: support
            type: react
            chat_model: {connection: models, model: large, max_turns: 9}
            prompt: {text: "Now: {input}"}
        """
    )
    agent = document.agents["support"]
    expected = ResourceDescriptor("scripted", connection="models", model="large", max_turns=9)
    assert agent.resources == [("support.chat_model", ResourceType.CHAT_MODEL, expected)]
    assert agent.prompt.text == "Now: {input}"


def test_own_resource_takes_the_place_of_a_shared_one():
    document = load(
        BARE.replace("name: a,", "name: a, prompts: [{name: hello, text: own}],")
        + "prompts: [{name: hello, text: shared}]\n"
    )
    plan = AgentPlan.from_agent(document.agents["a"], None, document.resources)
    assert [resource.instance.text for resource in plan.resources] == ["own"]


def test_documents_see_what_the_others_share():
    Path("shared.yaml").write_text(textwrap.dedent(MODELS))
    Path("agents.yaml").write_text("agents: [{name: support, type: react, chat_model: small, tools: [find_orders]}]\n")
    document = load_documents("agents.yaml", "shared.yaml")
    assert list(document.agents) == ["support"]
    assert [name for name, _, _ in document.resources] == ["models", "small", "find_orders", "ask"]


def test_document_may_name_what_is_known_without_it():
    known = [(ResourceType.CHAT_MODEL, "small"), (ResourceType.TOOL, "find")]
    document = load("agents: [{name: support, type: react, chat_model: small, tools: [find]}]\n", known=known)
    assert document.agents["support"].tools == ["find"]


def test_reference_may_name_a_connection_or_a_model():
    document = load("""
        chat_model_setups:
          - {name: small, class: scripted, connection: "${env:CONNECTION}", model: "${env:MODEL}", prompt: "${env:PROMPT}"}
        """)
    assert only(document.resources).arguments["connection"] == "${env:CONNECTION}"


def test_keys_that_are_for_others_are_passed_over():
    document = load(BARE + "source: {stdin: {}}\nconfig.a.b: 3\n", other_keys=["source", "config"])
    assert list(document.agents) == ["a"]


def test_empty_lists_say_nothing():
    document = load(BARE + "tools:\nprompts: []\n")
    assert document.resources == []

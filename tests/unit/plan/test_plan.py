"""The plan itself: what it holds, how it is stored, shown and compared."""

from __future__ import annotations

import functools

import msgspec
import pydantic
import pytest

from agentflow.api.agent import Agent
from agentflow.api.decorators import action
from agentflow.api.events import Event, EventType, InputEvent, OutputEvent
from agentflow.api.failure import OnError, Retry
from agentflow.api.resources import ResourceDescriptor, ResourceType
from agentflow.errors import PlanError
from agentflow.plan.plan import ActionKind, AgentPlan
from agentflow.plan.planned_resources import StoredInstance
from agentflow.plan.source_scan import sent_types

SCORED = "scored"


class Review(msgspec.Struct):
    stars: int


class Settings(pydantic.BaseModel):
    model: str


class Dropped(Event):
    EVENT_TYPE = "dropped"


class ReviewAgent(Agent):
    @action(EventType.InputEvent, input=Review)
    def score(event, ctx):  # noqa: N805 (an action takes no self)
        if event.input.stars:
            ctx.send_event(Event(SCORED, {"average": 1.0}))
        ctx.send_event(Dropped("dropped"))
        ctx.send_event(Event(type="ignored"))

    @action(
        "type == 'scored' && attributes.average < 2.5",
        retry=Retry(attempts=5, initial="1s"),
        on_error="skip",
        timeout="30s",
    )
    async def alert(event, ctx):  # noqa: N805 (as above)
        ctx.set_timer("again", after="1h")
        ctx.send_event(OutputEvent({"product": ctx.key}))

    @action(Dropped, EventType.TimerEvent, "elsewhere", "urgent == true", blocking=True, parallel=True)
    @staticmethod
    def note(event, ctx):
        ctx.send_event(Event(event.type + "x"))


def _review_agent():
    agent = ReviewAgent()
    agent.add_resource("store", ResourceType.VECTOR_STORE, ResourceDescriptor("shop.Store", {"limit": 3}))
    agent.add_resource("settings", ResourceType.PROMPT, Settings(model="small"))
    agent.add_resource("review", ResourceType.SKILLS, Review(5))
    return agent.add_action("added", ["scored"], top_level, limit=3)


def top_level(event, ctx):
    """Send nothing."""


def _plan(config=None):
    return AgentPlan.from_agent(_review_agent(), config)


def test_plan_holds_the_actions_in_declaration_order():
    plan = _plan()
    assert [(a.name, a.index, a.kind, a.is_parallel) for a in plan.actions] == [
        ("score", 0, ActionKind.SYNC, False),
        ("alert", 1, ActionKind.ASYNC, False),
        ("note", 2, ActionKind.BLOCKING, True),
        ("added", 3, ActionKind.SYNC, False),
    ]
    assert plan.name == "ReviewAgent"
    assert plan.has_conditions
    assert plan.action_by_name == {a.name: a for a in plan.actions}
    score, alert, note, added = plan.actions
    assert plan.actions_by_event == {
        "_input_event": (score,),
        "dropped": (note,),
        "_timer_event": (note,),
        "elsewhere": (note,),
        "scored": (added,),
    }
    assert (score.input_type, added.config, alert.on_error, alert.timeout_ms) == (
        Review,
        {"limit": 3},
        OnError.SKIP,
        30_000,
    )


def test_actions_are_equal_only_to_themselves():
    first, second = _plan().actions[0], _plan().actions[0]
    assert first != second
    assert len({first, second}) == 2


def test_configuration_is_flat():
    assert _plan({"shop": {"limit": 3}}).config.to_dict() == {"shop.limit": 3}


# -- the stored form
def test_stored_plan_read_and_written_again_is_the_same():
    plan = _plan({"shop": {"limit": 3}})
    stored = plan.to_json()
    again = AgentPlan.from_json(stored)
    assert again.to_json() == stored
    assert again.plan_hash == plan.plan_hash
    assert again.match("scored", lambda: {"average": 2})[0].name == "added"
    assert isinstance(again.resources[1].instance, StoredInstance)
    assert again.resources[0].instance == ResourceDescriptor("shop.Store", {"limit": 3})


def test_equal_plans_give_equal_bytes():
    assert _plan({"b": 1, "a": 2}).to_json() == _plan({"a": 2, "b": 1}).to_json()


def test_stored_plan_without_its_agent_cannot_run():
    again = AgentPlan.from_json(_plan().to_json())
    with pytest.raises(PlanError, match=r"ReviewAgent\.score' is known by name only"):
        again.actions[0].function(None, None)


def test_stored_plan_gets_functions_types_and_resources_from_its_agent():
    plan = _plan()
    agent = _review_agent()
    again = AgentPlan.from_json(plan.to_json(), agent)
    assert [a.function for a in again.actions] == [a.function for a in plan.actions]
    assert again.actions[0].input_type is Review
    assert again.resources[1].instance is agent.resources[1][2]
    assert again.to_json() == plan.to_json()


def test_stored_plan_of_an_agent_with_models_of_its_environment_is_read_with_them():
    agent = Agent("A").add_action("score", [InputEvent], top_level)
    agent.add_resource("m", ResourceType.CHAT_MODEL, ResourceDescriptor("openai", connection="c", model="gpt"))
    shared = [("c", ResourceType.CHAT_MODEL_CONNECTION, ResourceDescriptor("openai", api_key="${env:KEY}"))]
    plan = AgentPlan.from_agent(agent, resources=shared)
    again = AgentPlan.from_json(plan.to_json(), agent, resources=shared)
    assert [action.name for action in again.actions] == ["score", "chat_model_action", "tool_call_action"]
    assert again.resources[0].instance is shared[0][2]
    assert (again.to_json(), again.plan_hash) == (plan.to_json(), plan.plan_hash)


def test_stored_plan_adds_no_resource_to_its_agent():
    agent = Agent("A").add_action("score", [InputEvent], top_level)
    agent.add_resource("tools", ResourceType.MCP_SERVER, ResourceDescriptor("mcp", command="serve"))
    stored = AgentPlan.from_agent(agent).to_json().replace(b'"name":"tools"', b'"name":"added"')
    assert b'"name":"added"' in stored
    with pytest.raises(PlanError, match="the stored plan has this mcp_server, the agent has not"):
        AgentPlan.from_json(stored, agent)


def test_stored_plan_of_another_agent_is_refused_with_all_differences():
    other = Agent("other").add_action("score", [InputEvent], top_level)
    with pytest.raises(PlanError) as caught:
        AgentPlan.from_json(_plan().to_json(), other)
    assert len(caught.value.problems) == 7
    assert "ReviewAgent.score (input" in caught.value.problems[0]
    assert "the agent has no such action" in caught.value.problems[1]


def test_stored_code_is_never_imported():
    stored = _plan().to_json().replace(__name__.encode(), b"no_such_module")
    again = AgentPlan.from_json(stored)
    assert again.actions[3].function.reference == "no_such_module:top_level"


def test_plan_of_a_newer_version_is_refused():
    with pytest.raises(PlanError, match=r"version 2; this agentflow reads up to 1(.|\n)*upgrade"):
        AgentPlan.from_json(b'{"version": 2, "shape": "unknown"}')


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"version": 0}',
        b'{"version": "1"}',
        b'{"version": 1, "agent": "a"}',
        b'{"version":1,"agent":"a","actions":[],"config":{},"resources":[{"name":"r","type":"tool","resource":{}}]}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_stored_plan_is_refused(data):
    with pytest.raises(PlanError, match="no stored plan"):
        AgentPlan.from_json(data)


def test_stored_plan_with_a_repeated_action_or_a_broken_condition_is_refused():
    stored = Agent("a").add_action("one", ["x == 1"], top_level).add_action("two", [InputEvent], top_level)
    text = AgentPlan.from_agent(stored).to_json()
    with pytest.raises(PlanError, match="two actions with this name"):
        AgentPlan.from_json(text.replace(b'"two"', b'"one"'))
    with pytest.raises(PlanError, match="condition 'x =1 1' cannot be used"):
        AgentPlan.from_json(text.replace(b"x == 1", b"x =1 1"))


@pytest.mark.parametrize("function", [lambda event, ctx: None, functools.partial(top_level), None])
def test_function_without_a_name_runs_but_is_not_stored(function):
    function = function or _nested()
    plan = AgentPlan.from_agent(Agent("a").add_action("act", [InputEvent], function))
    assert plan.actions[0].function is function
    with pytest.raises(PlanError, match="action 'act': its function"):
        plan.to_json()


def _nested():
    def inner(event, ctx):
        pass

    return inner


# -- the hash
def _hash(triggers=(InputEvent,), function=top_level, name="act", **options):
    return AgentPlan.from_agent(Agent("a").add_action(name, triggers, function, **options)).plan_hash


@pytest.mark.parametrize(
    "changed",
    [
        {"triggers": [InputEvent, EventType.TimerEvent]},
        {"triggers": [InputEvent, "u"]},
        {"triggers": ["t == 1"]},
        {"name": "other"},
        {"parallel": True},
        {"on_error": "skip"},
        {"retry": Retry(attempts=2)},
        {"retry": Retry(wait_max="31s")},
        {"blocking": True, "timeout": "1s"},
    ],
)
def test_hash_changes_with_names_triggers_and_policies(changed):
    assert _hash(**changed) != _hash()


@pytest.mark.parametrize(
    "changed",
    [{"function": lambda event, ctx: None}, {"retry": Retry(initial="0.5s")}, {"limit": 3}, {"blocking": True}],
)
def test_hash_does_not_change_with_what_routes_nothing(changed):
    assert _hash(**changed) == _hash()


def test_hash_is_the_same_in_every_process():
    assert _hash() == "5a35cf0363f3d1536fbf417ae87957947fe04c2a34a313c5e1653255f111959a"


# -- for people
def test_text_lists_actions_triggers_policies_and_resources():
    module = __name__
    plan = _plan({"shop": {"limit": 3}})
    assert (
        plan.to_text()
        == f"""\
agent ReviewAgent  4 actions  plan {plan.plan_hash[:12]}

action score  (sync)
  on        input event
  input     {module}:Review
  function  {module}:ReviewAgent.score
  retry     3 attempts, waits 500ms to 30s, x2, jitter 0.2; then dead-letter if configured, else fail

action alert  (async)
  when      type == 'scored' && attributes.average < 2.5
  function  {module}:ReviewAgent.alert
  retry     5 attempts, waits 1s to 30s, x2, jitter 0.2; then skip
  timeout   30s

action note  (blocking, parallel)
  on        dropped
  on        timer event
  on        elsewhere
  when      urgent == true
  function  {module}:ReviewAgent.note
  retry     3 attempts, waits 500ms to 30s, x2, jitter 0.2; then dead-letter if configured, else fail

action added  (sync)
  on        scored
  function  {module}:top_level
  retry     3 attempts, waits 500ms to 30s, x2, jitter 0.2; then dead-letter if configured, else fail
  config    limit=3

resources
  vector_store store  shop.Store
  prompt settings  {module}:Settings
  skills review  {module}:Review

config
  shop.limit = 3
"""
    )


def test_mermaid_shows_every_way_of_an_event():
    assert (
        _plan().to_mermaid()
        == """\
flowchart LR
  input(["input"])
  timer(["timer"])
  from2(["elsewhere"])
  any(["any event"])
  no_listener_0(["no action names it"])
  output(["output"])
  a0["score"]
  a1["alert"]
  a2["note"]
  a3["added"]
  input -->|"input event"| a0
  a0 -->|"type == 'scored' && attributes.average #lt; 2.5"| a1
  a0 -->|"dropped"| a2
  timer -->|"timer event"| a2
  from2 -->|"elsewhere"| a2
  any -.->|"urgent == true"| a2
  a0 -->|"scored"| a3
  a0 -->|"ignored"| no_listener_0
  a1 -.->|"set_timer"| timer
  a1 -->|"output event"| output
"""
    )


def test_stored_plan_can_be_shown_without_its_code():
    again = AgentPlan.from_json(_plan().to_json())
    assert again.to_text() == _plan().to_text()
    assert 'any -.->|"urgent == true"| a2' in again.to_mermaid()


def test_long_labels_are_cut_and_special_characters_escaped():
    condition = 'a == "x|y#" && ' + " && ".join(f"b{n} == 1" for n in range(20))
    text = AgentPlan.from_agent(Agent("a").add_action("act", [condition], top_level)).to_mermaid()
    assert '|"a == #quot;x#124;y#35;#quot; && b0 == 1 && b1 == 1' in text
    assert "…" in text


def test_sent_types_are_read_from_the_source_in_its_order():
    assert sent_types(ReviewAgent.score) == ["scored", "dropped", "ignored"]
    assert sent_types(ReviewAgent.alert) == ["_timer_event", "_output_event"]


def test_sent_types_know_constants_of_the_module_the_closure_and_dotted_names():
    local = "from_closure"

    def act(event, ctx):
        ctx.send_event(Event(local))
        ctx.send_event(Event(EventType.InputEvent))
        ctx.send_event(msgspec.Struct())
        ctx.send_event(unknown(1))  # noqa: F821

    assert sent_types(functools.partial(act)) == ["from_closure", "_input_event"]


def test_sent_types_are_unknown_without_a_source():
    namespace: dict[str, object] = {}
    exec("def act(event, ctx): pass", namespace)
    assert sent_types(namespace["act"]) is None
    assert sent_types(len) is None


# -- built-in actions
@pytest.mark.parametrize("kind", [ResourceType.CHAT_MODEL, ResourceType.TOOL, ResourceType.MCP_SERVER])
def test_agent_with_models_or_tools_gets_the_built_in_actions_behind_its_own(kind):
    agent = Agent("a").add_action("act", [InputEvent], top_level)
    agent.add_resource("r", kind, ResourceDescriptor("shop.Thing"))
    plan = AgentPlan.from_agent(agent)
    assert [action.name for action in plan.actions] == ["act", "chat_model_action", "tool_call_action"]


def test_agent_that_awaits_answers_and_has_no_model_gets_the_built_in_actions_that_say_so():
    agent = Agent("a").add_action("act", [InputEvent, EventType.ChatResponseEvent], top_level)
    assert [action.name for action in AgentPlan.from_agent(agent).actions] == [
        "act",
        "chat_model_action",
        "tool_call_action",
    ]
    own = Agent("a").add_action("serve", [EventType.ChatRequestEvent], top_level)
    own.add_action("act", [InputEvent, EventType.ChatResponseEvent], top_level)
    assert [action.name for action in AgentPlan.from_agent(own).actions] == ["serve", "act"]


def test_action_of_the_agent_takes_the_place_of_a_built_in_one():
    agent = Agent("a").add_action("chat_model_action", [InputEvent, EventType.ChatRequestEvent], top_level)
    agent.add_resource("r", ResourceType.CHAT_MODEL, ResourceDescriptor("shop.Thing"))
    plan = AgentPlan.from_agent(agent)
    assert [action.name for action in plan.actions] == ["chat_model_action", "tool_call_action"]
    assert plan.action_by_name["chat_model_action"].function is top_level


def test_descriptor_may_name_a_registered_class():
    agent = Agent("a").add_action("act", [InputEvent], top_level)
    agent.add_resource("r", ResourceType.CHAT_MODEL_CONNECTION, ResourceDescriptor("openai-compatible"))
    (planned,) = AgentPlan.from_agent(agent).resources
    assert planned.clazz == "openai-compatible"


def test_secret_in_a_descriptor_is_not_in_the_stored_plan_and_a_reference_is():
    arguments = {
        "api_key": "sk-secret-literal",
        "headers": [{"Authorization": "Bearer sk-secret-literal"}, {"x": "Bearer ${env:KEY}"}],
        "token": "${env:TOKEN}",
    }
    agent = Agent("a").add_action("act", [InputEvent], top_level)
    agent.add_resource("r", ResourceType.CHAT_MODEL_CONNECTION, ResourceDescriptor("openai", arguments))
    stored = AgentPlan.from_agent(agent).to_json()
    text = stored if isinstance(stored, str) else stored.decode()
    assert "sk-secret-literal" not in text
    assert "${env:KEY}" in text
    assert "${env:TOKEN}" in text


def test_secret_in_the_configuration_is_not_shown_and_is_there_for_the_agent():
    config = {"OpenAIConnection.api_key": "sk-secret-literal", "OpenAIConnection.base_url": "http://here"}
    plan = AgentPlan.from_agent(Agent("a").add_action("act", [InputEvent], top_level), config)
    assert "sk-secret-literal" not in plan.to_json().decode() + plan.to_text()
    assert "http://here" in plan.to_text()
    assert plan.config.to_dict() == config

"""Names by which resources mean one another lead to one, or the plan is refused."""

from __future__ import annotations

import pytest

from agentflow import Agent, EventType, Prompt, ResourceDescriptor, ResourceType
from agentflow.errors import PlanError
from agentflow.plan.plan import AgentPlan


def look_up(customer: str) -> str:
    return customer


def agent_with(**arguments: object) -> Agent:
    agent = Agent("shop").add_action("act", EventType.InputEvent, lambda event, ctx: None)
    agent.add_resource("provider", ResourceType.CHAT_MODEL_CONNECTION, ResourceDescriptor("scripted"))
    agent.add_resource("greeting", ResourceType.PROMPT, Prompt.from_text("Hello"))
    agent.add_resource("look_up", ResourceType.TOOL, look_up)
    setup = ResourceDescriptor("scripted", {"connection": "provider", "model": "m", **arguments})
    return agent.add_resource("assistant", ResourceType.CHAT_MODEL, setup)


def test_names_that_lead_somewhere_are_taken():
    plan = AgentPlan.from_agent(agent_with(prompt="greeting", tools=["look_up"], fallback_models=["assistant"]))
    assert [resource.name for resource in plan.resources] == ["provider", "greeting", "look_up", "assistant"]


@pytest.mark.parametrize(
    ("argument", "value", "near"),
    [
        ("connection", "provder", "provider"),
        ("prompt", "greetings", "greeting"),
        ("tools", ["lookup"], "look_up"),
        ("fallback_models", ["asistant"], "assistant"),
    ],
)
def test_a_name_that_leads_nowhere_is_a_problem_with_the_nearest_one(argument, value, near):
    with pytest.raises(PlanError) as caught:
        AgentPlan.from_agent(agent_with(**{argument: value}))
    (problem,) = caught.value.problems
    assert f"its {argument} names" in problem
    assert f"did you mean '{near}'?" in problem


def test_what_an_environment_has_counts():
    agent = Agent("shop").add_action("act", EventType.InputEvent, lambda event, ctx: None)
    agent.add_resource(
        "assistant", ResourceType.CHAT_MODEL, ResourceDescriptor("scripted", connection="shared", model="m")
    )
    shared = [("shared", ResourceType.CHAT_MODEL_CONNECTION, ResourceDescriptor("scripted"))]
    assert len(AgentPlan.from_agent(agent, resources=shared).resources) == 2


def test_tools_and_prompts_of_servers_are_not_known_before_they_are_asked():
    agent = agent_with(tools=["of_the_server"], prompt="of_the_server")
    agent.add_resource("server", ResourceType.MCP_SERVER, ResourceDescriptor("mcp", command="server"))
    AgentPlan.from_agent(agent)

"""Mistakes of an agent's author: told where they are made, before anybody is called, and with what would be right."""

from __future__ import annotations

from typing import Any

import pytest

from agentflow import Agent, Engine, Event, OutputEvent, PlanError, ResourceDescriptor, RunFailed, RunnerContext
from agentflow.actions.agents.react_agent import ReActAgent
from agentflow.api.chat_events import ChatRequestEvent
from agentflow.api.chat_messages import ChatMessage
from agentflow.api.prompts import Prompt
from agentflow.api.resources import ResourceType
from agentflow.api.tools import Tool, tool
from agentflow.plan.plan import AgentPlan
from agentflow.testing import ScriptedChatModel
from tests.engines import ONCE, agent_of
from tests.model_agents import scripted


def pay(amount: int) -> str:
    """Pay."""
    return f"paid {amount}"


def other_pay(amount: int) -> str:
    """Pay otherwise."""
    return f"paid {amount} otherwise"


def asking(messages: Any = "hello", **options: Any) -> Agent:
    async def act(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent((await ctx.chat("m", messages, **options)).text))

    return agent_of(act, retry=ONCE)


async def outcome(agent: Agent, **options: Any) -> Any:
    async with Engine(agent, in_memory=True, **options) as engine:
        try:
            return await engine.submit("k", "hello")
        except RunFailed as failed:
            return failed


@pytest.mark.parametrize(
    ("messages", "options", "kind", "told"),
    [
        ([], {}, "ValueError", "there is nothing to ask it"),
        ("", {}, "ValueError", "there is nothing to ask it"),
        ([ChatMessage("system")], {}, "ValueError", "there is nothing to ask it"),
        (None, {}, "TypeError", "messages are a text, a message, or a list of them, not None"),
        (5, {}, "TypeError", "messages are a text, a message, or a list of them, not 5"),
        ([5], {}, "DecodeError", "this is no message"),
        ({"role": "user", "text": "x"}, {}, "DecodeError", "it has no field 'text'"),
        ({"role": "bob", "content": "x"}, {}, "DecodeError", "'bob' is no role of a message: one of 'system', 'user'"),
        ("x", {"max_turns": 0}, "ValueError", "max_turns is at least 1, not 0"),
        ("x", {"max_turns": "x"}, "TypeError", "max_turns is a whole number"),
        ("x", {"tools": "nope"}, "TypeError", "tools is a list, also of one: tools=['nope']"),
        ("x", {"tools": pay}, "TypeError", "tools is a list"),
        ("x", {"history": ["x"]}, "TypeError", "history is the name of a conversation"),
        ("x", {"prompt_args": "x"}, "TypeError", "prompt_args is a mapping"),
        ("x", {"output": {"type": "nonsense"}}, "ValueError", "no JSON schema: 'nonsense' is not valid"),
        ("x", {"output": {"type": "string", "pattern": "("}}, "ValueError", "no JSON schema: '(' is not a 'regex'"),
    ],
)
async def test_what_cannot_be_asked_is_refused_before_a_model_is_called(
    messages: Any, options: dict[str, Any], kind: str, told: str
) -> None:
    model = ScriptedChatModel(["never said"])
    failed = await outcome(scripted(model, asking(messages, **options)))
    assert (failed.error_type, model.requests) == (kind, [])
    assert told in failed.error_message


async def test_a_prompt_or_a_history_is_enough_to_ask() -> None:
    prompted = ScriptedChatModel(["hello"], prompt=Prompt.from_text("Say hello."))
    assert await outcome(scripted(prompted, asking([]))) == ["hello"]

    async def act(event: Event, ctx: RunnerContext) -> None:
        history = ctx.chat_history()
        history.append("what is it?")
        ctx.send_event(OutputEvent((await ctx.chat("m", [], history=history)).text))

    assert await outcome(scripted(ScriptedChatModel(["it is"]), agent_of(act))) == ["it is"]


async def test_a_def_action_cannot_chat() -> None:
    def act(event: Event, ctx: RunnerContext) -> None:
        ctx.chat("m", "hello")

    failed = await outcome(scripted(ScriptedChatModel(["never said"]), agent_of(act)))
    assert failed.error_type == "WrongContext"
    assert "make the action async: await ctx.chat(" in failed.error_message


@pytest.mark.parametrize(
    "more",
    [
        [pay, Tool.from_callable(other_pay, name="pay")],
        [pay, Tool.from_callable(pay, requires_approval=True)],
        [Tool.from_callable(other_pay, name="pay"), "pay"],
    ],
)
async def test_two_tools_with_one_name_are_refused_and_both_are_named(more: list[Any]) -> None:
    model = ScriptedChatModel(["never said"])
    failed = await outcome(scripted(model, asking(tools=more), pay=pay))
    assert (failed.error_type, model.requests) == ("ConfigError", [])
    assert "two tools called 'pay'" in failed.error_message
    assert f"{__name__}.pay" in failed.error_message


async def test_one_tool_may_be_given_twice() -> None:
    @tool(requires_approval=True)
    def look(text: str) -> str:
        return text

    model = ScriptedChatModel(["done"], tools=["pay"])
    agent = scripted(model, asking(tools=["pay", pay, look, Tool.of(look), look]), pay=pay)
    assert await outcome(agent) == ["done"]
    assert [one.name for one in model.requests[0].tools] == ["pay", "look"]


async def test_a_model_of_a_provider_has_a_name() -> None:
    agent = asking().add_resource("c", ResourceType.CHAT_MODEL_CONNECTION, ResourceDescriptor("openai", api_key="k"))
    agent.add_resource("m", ResourceType.CHAT_MODEL, ResourceDescriptor("openai_compatible", connection="c"))
    failed = await outcome(agent)
    assert failed.error_type == "ConfigError"
    assert "chat model 'm' has no model" in failed.error_message


@pytest.mark.parametrize("strategy", [None, "retry", "ignore"])
async def test_fallback_models_that_nothing_falls_back_to_are_refused(strategy: str | None) -> None:
    model = ScriptedChatModel(["never said"], fallback_models=["m"], error_handling_strategy=strategy)
    failed = await outcome(scripted(model, asking()))
    assert (failed.error_type, model.requests) == ("ConfigError", [])
    assert "error_handling_strategy='fallback', or leave fallback_models out" in failed.error_message


async def test_fallback_models_may_be_those_of_a_strategy_for_all_models() -> None:
    model = ScriptedChatModel(["done"], fallback_models=["m"])
    config = {"config": {"error-handling-strategy": "fallback"}}
    assert await outcome(scripted(model, asking()), config=config) == ["done"]


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("chat.timout", "chat.timeout"),
        ("chat.breaker.failure", "chat.breaker.failures"),
        ("tool.result-mx", "tool.result-max"),
        ("chat.prices.gpt-4.1.inputt", "chat.prices.gpt-4.1.input"),
    ],
)
def test_a_misspelt_key_of_models_is_a_problem_with_the_nearest_one(key: str, near: str) -> None:
    with pytest.raises(PlanError, match=f"config key '{key}' is unknown") as caught:
        AgentPlan.from_agent(scripted(ScriptedChatModel([]), asking()), {key: 1})
    assert f"did you mean '{near}'?" in str(caught.value)


def test_keys_of_ones_own_and_known_ones_are_taken() -> None:
    config = {
        "chat": {"timeout": "1s", "prices": {"gpt-4.1": {"input": 1, "cache-write": 2}}, "breaker": {"failures": 3}},
        "tool": {"error-text": "generic"},
        "shop": {"chat": {"timout": 1}},
        "chatty": True,
    }
    AgentPlan.from_agent(scripted(ScriptedChatModel([]), asking()), config)


@pytest.mark.parametrize("max_turns", [0, -1])
def test_no_turn_at_all_is_refused_wherever_turns_are_counted(max_turns: int) -> None:
    with pytest.raises(ValueError, match="max_turns is at least 1"):
        ReActAgent(chat_model="m", max_turns=max_turns)
    with pytest.raises(ValueError, match="max_turns is at least 1"):
        ChatRequestEvent("m", "hello", max_turns=max_turns)


async def test_no_turn_at_all_is_refused_of_a_chat_model_too() -> None:
    with pytest.raises(ValueError, match="max_turns is at least 1"):
        ScriptedChatModel(["never said"], max_turns=0)
    agent = scripted(ScriptedChatModel(["never said"]), asking())
    failed = await outcome(agent, config={"config": {"chat.max-turns": 0}})
    assert failed.error_type == "ConfigError"
    assert "chat.max-turns: 0 is less than 1" in failed.error_message


def test_tools_of_a_request_are_a_list() -> None:
    with pytest.raises(TypeError, match="tools is a list"):
        ReActAgent(chat_model="m", tools="pay")
    with pytest.raises(TypeError, match="tools is a list"):
        ChatRequestEvent("m", "hello", tools="pay")


def test_two_agents_as_tools_without_names_are_told_to_take_some() -> None:
    tools = [ReActAgent(chat_model=ScriptedChatModel([])).as_tool(name, "Answers.") for name in ("one", "two")]
    boss = ReActAgent(chat_model=ScriptedChatModel([]), tools=tools, name="boss")
    with pytest.raises(PlanError, match=r"ReActAgent\(name='…'\)"):
        AgentPlan.from_agent(boss)


async def test_a_stream_is_skipped_forwards() -> None:
    async with Engine(asking(), in_memory=True) as engine:
        for options in ({"skip": -1}, {"tokens": True, "after": -1}):
            with pytest.raises(ValueError, match="skip and after count from 0"):
                await anext(engine.stream("k", "hello", **options))

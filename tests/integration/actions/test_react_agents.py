"""`ReActAgent`: its prompt, its answer, its tools, agents as tools, and what its conversation leaves behind."""

from __future__ import annotations

from typing import Any

import msgspec
import pydantic
import pytest

from agentflow import Engine, RunFailed
from agentflow.actions.agents.react_agent import ReActAgent
from agentflow.api.chat_messages import tool_call
from agentflow.api.prompts import Prompt
from agentflow.api.resources import ResourceType
from agentflow.errors import ModelRejected
from agentflow.testing import ScriptedChatModel


class Answer(msgspec.Struct):
    total: int


async def run(agent: ReActAgent, value: object, **options: Any) -> Any:
    async with Engine(agent, in_memory=True, **options) as engine:
        (said,) = await engine.submit("k", value)
        return said


async def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: One.
        b: The other.
    """
    return a + b


async def test_input_is_asked_tools_are_called_and_the_answer_has_its_schema() -> None:
    model = ScriptedChatModel([tool_call("add", {"a": 2, "b": 3}), '{"total": 5}'])
    prompt = Prompt.from_text("What is {a} plus {b}?")
    agent = ReActAgent(chat_model=model, prompt=prompt, output_schema=Answer, tools=[add])
    assert await run(agent, {"a": 2, "b": 3}) == {"total": 5}
    model.assert_complete()
    assert "What is 2 plus 3?" in [message.text for message in model.requests[0].messages]
    (offered,) = model.requests[0].tools
    assert (offered.name, offered.description) == ("add", "Add two numbers.")
    assert model.requests[1].messages[-1].text == "5"


@pytest.mark.parametrize(("value", "asked"), [("hello", "hello"), (5, "5"), (True, "True")])
async def test_without_a_prompt_a_plain_input_is_what_is_asked(value: object, asked: str) -> None:
    model = ScriptedChatModel(["hi"])
    assert await run(ReActAgent(chat_model=model), value) == "hi"
    assert [message.text for message in model.requests[0].messages] == [asked]


async def test_without_a_prompt_an_object_is_refused_and_says_what_to_do() -> None:
    with pytest.raises(RunFailed, match="the agent has no prompt"):
        await run(ReActAgent(chat_model=ScriptedChatModel(["hi"])), {"a": 1})


async def test_placeholder_without_a_value_fails_the_run_typed() -> None:
    agent = ReActAgent(chat_model=ScriptedChatModel(["hi"]), prompt=Prompt.from_text("{question}"))
    with pytest.raises(RunFailed, match="MissingPromptVariable"):
        await run(agent, {"other": 1})


async def test_fields_of_an_input_may_have_any_name() -> None:
    model = ScriptedChatModel(["hi"], prompt=Prompt.from_text("for {self}"))
    agent = ReActAgent(chat_model=model, prompt=Prompt.from_text("{role} says {text}"))
    assert await run(agent, {"role": "admin", "text": "go", "self": "me", "values": 1}) == "hi"
    assert [message.text for message in model.requests[0].messages] == ["for me", "admin says go"]


async def test_model_and_prompt_may_be_the_environments() -> None:
    model = ScriptedChatModel(["hi"])
    resources = [("m", ResourceType.CHAT_MODEL, model), ("p", ResourceType.PROMPT, Prompt.from_text("say {input}"))]
    assert await run(ReActAgent(chat_model="m", prompt="p"), "hi", resources=resources) == "hi"
    assert model.requests[0].messages[0].text == "say hi"


async def test_cap_of_turns_fails_the_run_typed() -> None:
    model = ScriptedChatModel(rules=[{"when": "", "reply": tool_call("add", {"a": 1, "b": 1})}])
    with pytest.raises(RunFailed, match="turns per run is spent"):
        await run(ReActAgent(chat_model=model, tools=[add], max_turns=3), "go")
    assert len(model.requests) == 3


async def test_agent_as_a_tool_answers_with_its_own_model_prompt_and_tools() -> None:
    inner = ScriptedChatModel([tool_call("add", {"a": 1, "b": 1}), "two"])
    adder = ReActAgent(name="adder", chat_model=inner, prompt=Prompt.from_text("sum: {input}"), tools=[add])
    outer = ScriptedChatModel([tool_call("sums", {"input": "1 and 1"}), "it is two"])
    agent = ReActAgent(name="outer", chat_model=outer, tools=[adder.as_tool("sums", "Adds.")])
    assert await run(agent, "how much?") == "it is two"
    assert inner.requests[0].messages[0].text == "sum: 1 and 1"
    assert outer.requests[1].messages[-1].text == "two"


@pytest.mark.parametrize("arguments", [{}, {"input": {"question": "?"}}, {"input": None}])
async def test_arguments_that_an_agent_as_a_tool_does_not_take_are_told_to_the_outer_model(arguments) -> None:
    inner = ReActAgent(name="inner", chat_model=ScriptedChatModel([]))
    outer = ScriptedChatModel([tool_call("ask", arguments), "sorry"])
    agent = ReActAgent(name="outer", chat_model=outer, tools=[inner.as_tool("ask", "Answers.")])
    assert await run(agent, "how much?") == "sorry"
    assert "'input' has to be a text" in outer.requests[1].messages[-1].text


async def test_agent_as_a_tool_that_fails_is_told_to_the_outer_model() -> None:
    inner = ScriptedChatModel([ModelRejected("no such model")])
    failing = ReActAgent(name="inner", chat_model=inner)
    outer = ScriptedChatModel([tool_call("ask", {"input": "?"}), "sorry"])
    agent = ReActAgent(name="outer", chat_model=outer, tools=[failing.as_tool("ask", "Answers.")])
    assert await run(agent, "how much?") == "sorry"
    assert "no such model" in outer.requests[1].messages[-1].text


async def test_budget_of_an_agent_as_a_tool_is_told_to_the_outer_model_without_what_its_author_may_do() -> None:
    inner = ScriptedChatModel(["never said"], budgets=[{"calls": 0}])
    poor = ReActAgent(name="inner", chat_model=inner)
    outer = ScriptedChatModel([tool_call("ask", {"input": "?"}), "sorry"])
    agent = ReActAgent(name="outer", chat_model=outer, tools=[poor.as_tool("ask", "Answers.")])
    assert await run(agent, "how much?") == "sorry"
    told = outer.requests[1].messages[-1].text
    assert "BudgetExhausted: the budget of 0 calls per run is spent" in told
    assert "help" not in told


class Even(pydantic.BaseModel):
    total: int

    @pydantic.field_validator("total")
    @classmethod
    def _is_even(cls, total: int) -> int:
        if total % 2:
            raise ValueError("it is odd")
        return total


async def test_output_has_the_fields_of_its_type_and_no_others() -> None:
    model = ScriptedChatModel(['{"total": 4, "more": "of it"}'])
    assert await run(ReActAgent(chat_model=model, output_schema=Even), "2 + 2") == {"total": 4}


async def test_answer_that_the_type_refuses_and_its_schema_does_not_goes_back_to_the_model() -> None:
    model = ScriptedChatModel([tool_call("add", {"a": 2, "b": 3}), '{"total": 5}', '{"total": 6}'])
    agent = ReActAgent(chat_model=model, output_schema=Even, tools=[add])
    assert await run(agent, "2 + 3, but even") == {"total": 6}
    model.assert_complete()
    told = model.requests[2].messages[-1].text
    assert told.startswith("Your answer does not fit the JSON schema: total: Value error, it is odd")


async def test_answer_that_the_type_refuses_in_the_end_is_no_output() -> None:
    model = ScriptedChatModel(['{"total": 5}'] * 4)
    with pytest.raises(RunFailed, match="it is odd"):
        await run(ReActAgent(chat_model=model, output_schema=Even), "2 + 3")
    model.assert_complete()


async def test_agent_as_a_tool_says_only_what_its_type_lets_pass() -> None:
    inner = ScriptedChatModel(['{"total": 5}', '{"total": 6, "more": "of it"}'])
    even = ReActAgent(chat_model=inner, output_schema=Even, name="Even").as_tool("even", "Finds an even number.")
    outer = ScriptedChatModel([tool_call("even", {"input": "near 5"}), "six"])
    assert await run(ReActAgent(chat_model=outer, tools=[even]), "near 5") == "six"
    inner.assert_complete()
    assert outer.requests[1].messages[-1].text == '{"total":6}'

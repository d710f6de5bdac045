"""Connections and models of a user's own, as in Flink Agents: a plain `chat`, and a `model` among the model's arguments."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from agentflow import ChatMessage, Engine, Prompt, ResourceType, RunFailed
from agentflow.api.chat_models import BaseChatModelConnection, BaseChatModelSetup
from tests.model_agents import asking


class Plain(BaseChatModelConnection):
    """Blocks until as many calls are made at a time as it waits for."""

    def __post_init__(self) -> None:
        self.together = threading.Barrier(2, timeout=10)

    def chat(self, messages: Any, tools: Any = None, output_schema: Any = None, **kwargs: Any) -> ChatMessage:
        self.together.wait()
        named = [tool.name for tool in tools or ()]
        return ChatMessage("assistant", f"{messages[-1].text} {named} {sorted(kwargs.items())}")


class Own(BaseChatModelSetup):
    extra: str = "e"

    @property
    def model_kwargs(self) -> dict[str, Any]:
        return {"model": self.model, "extra": self.extra}


def look(text: str) -> str:
    return text


def resources(**arguments: Any) -> list[tuple[str, ResourceType, Any]]:
    return [
        ("plain", ResourceType.CHAT_MODEL_CONNECTION, Plain()),
        ("look", ResourceType.TOOL, look),
        ("m", ResourceType.CHAT_MODEL, Own(connection="plain", model="x-1", tools=["look"], **arguments)),
    ]


async def test_plain_chat_runs_in_threads_and_is_told_model_and_names_of_tools() -> None:
    async with Engine(asking(), in_memory=True, resources=resources()) as engine:
        said = await asyncio.gather(engine.submit("ann", "a"), engine.submit("bob", "b"))
    assert [one["text"] for (one,) in said] == [f"{key} ['look'] [('extra', 'e'), ('model', 'x-1')]" for key in "ab"]


async def test_plain_chat_of_flink_agents_signature_has_a_schema_among_its_other_arguments() -> None:
    class Flink(BaseChatModelConnection):
        def chat(self, messages: Any, tools: Any = None, **kwargs: Any) -> ChatMessage:
            return ChatMessage("assistant", f'{{"names": {json.dumps(sorted(kwargs))}}}')

    schema = {"type": "object", "properties": {"names": {"type": "array"}}}
    model = BaseChatModelSetup(connection="own", model="m")
    found = [("own", ResourceType.CHAT_MODEL_CONNECTION, Flink()), ("m", ResourceType.CHAT_MODEL, model)]
    async with Engine(asking(), in_memory=True, resources=found) as engine:
        (said,) = await engine.submit("k", "a")
        assert said["text"] == '{"names": ["model"]}'
        (said,) = await engine.submit("k", {"messages": ["a"], "output_schema": schema})
    assert said["output"] == {"names": ["model"]}  # it is asked for by the prompt


async def test_chat_of_a_model_outside_of_the_engine_takes_its_arguments_too() -> None:
    connection = Plain()
    connection.together = threading.Barrier(1)
    model = Own(connection="plain", model="x-1")
    object.__setattr__(model, "get_connection", lambda: connection)
    assert (await model.chat([ChatMessage(content="a")], extra="f")).text == "a [] [('extra', 'f'), ('model', 'x-1')]"


async def test_prompt_without_a_value_fails_the_run_as_what_it_is() -> None:
    model = resources(prompt=Prompt.from_text("About {subject}:"))
    async with Engine(asking(), in_memory=True, resources=model) as engine:
        with pytest.raises(RunFailed, match=r"MissingPromptVariable: .*\{subject\}.*") as caught:
            await engine.submit("ann", "a")
    assert "prompt_args" in str(caught.value)
    assert "StepFailed" not in str(caught.value)

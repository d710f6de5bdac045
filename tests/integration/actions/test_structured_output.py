"""Answers by a schema: by the provider or by the prompt, read as a type, and corrected as often as it is allowed."""

from __future__ import annotations

import dataclasses
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest

from agentflow import Agent, Engine, Event, EventType, OutputEvent, RunFailed, RunnerContext
from agentflow.api.chat_events import ChatRequestEvent, ChatResponseEvent
from agentflow.api.output_schemas import schema_of
from agentflow.api.resources import ResourceDescriptor, ResourceType
from agentflow.errors import ConfigError
from agentflow.integrations.openai_compatible import OpenAICompatibleConnection
from agentflow.testing import ScriptedChatModel
from agentflow.testing.model_server import ModelServer, Reply
from tests.engines import ONCE
from tests.model_agents import KEY, asking, scripted, setup


class Review(msgspec.Struct):
    stars: int
    why: str = ""


@dataclasses.dataclass
class ReviewClass:
    stars: int
    why: str = ""


class ReviewDict(TypedDict):
    stars: int


class ReviewModel(pydantic.BaseModel):
    stars: int
    why: str = ""


SCHEMA = {"type": "object", "properties": {"stars": {"type": "integer"}}, "required": ["stars"]}
TYPES = [Review, ReviewClass, ReviewDict, ReviewModel, SCHEMA]


async def run(agent: Agent, value: object = "hello") -> Any:
    async with Engine(agent, in_memory=True) as engine:
        (said,) = await engine.submit("k", value)
        return said


def direct(model: Any, output: Any, seen: list[Any]) -> Agent:
    async def act(event: Event, ctx: RunnerContext) -> None:
        answer = await ctx.chat("m", ["how many stars?"], output=output)
        seen.append(answer.output)
        ctx.send_event(OutputEvent(answer.content))

    return (
        Agent("A")
        .add_action("act", [EventType.InputEvent], act, retry=ONCE)
        .add_resource("m", ResourceType.CHAT_MODEL, model)
    )


def stars_of(value: Any) -> int:
    stars: int = value["stars"] if isinstance(value, dict) else value.stars
    return stars


@pytest.mark.parametrize("output", TYPES, ids=lambda kind: getattr(kind, "__name__", "schema"))
async def test_direct_call_returns_the_type_that_was_asked_for(output: Any) -> None:
    model, seen = ScriptedChatModel(['{"stars": 5}']), []
    await run(direct(model, output, seen))
    assert stars_of(seen[0]) == 5
    assert isinstance(seen[0], output if isinstance(output, type) and output is not ReviewDict else dict)


@pytest.mark.parametrize("output", TYPES, ids=lambda kind: getattr(kind, "__name__", "schema"))
async def test_response_has_plain_values_and_makes_the_type_of_them(output: Any) -> None:
    seen: list[Any] = []

    def ask(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(ChatRequestEvent("m", ["how many stars?"], output_schema=output))

    def note(event: Event, ctx: RunnerContext) -> None:
        answered = ChatResponseEvent.from_event(event)
        seen.extend([answered.output(), answered.output(output)])
        ctx.send_event(OutputEvent("noted"))

    agent = (
        Agent("A")
        .add_action("ask", [EventType.InputEvent], ask)
        .add_action("note", [EventType.ChatResponseEvent], note)
    )
    await run(scripted(ScriptedChatModel(['{"stars": 5}']), agent))
    plain, typed = seen
    assert plain == {"stars": 5}
    assert stars_of(typed) == 5


@pytest.mark.parametrize("output", TYPES, ids=lambda kind: getattr(kind, "__name__", "schema"))
async def test_answer_that_does_not_fit_goes_back_with_the_reason(output: Any) -> None:
    model, seen = ScriptedChatModel(['{"stars": "many"}', "five", '{"stars": 5}']), []
    await run(direct(model, output, seen))
    assert stars_of(seen[0]) == 5
    model.assert_complete()
    first, second, third = model.requests
    assert any("JSON schema" in message.text and message.role == "system" for message in first.messages)
    assert second.messages[-2].text == '{"stars": "many"}'
    assert "stars" in second.messages[-1].text
    assert "no JSON" in third.messages[-1].text
    assert len(third.messages) == len(first.messages) + 4


async def test_corrections_end_at_max_retries_and_the_run_fails_typed() -> None:
    model = ScriptedChatModel(rules=[{"when": "", "reply": "never"}], max_retries=2)
    with pytest.raises(RunFailed, match="OutputInvalid"):
        await run(direct(model, Review, []))
    assert len(model.requests) == 3


async def test_corrections_count_as_retries_of_the_response() -> None:
    said = await run(scripted(ScriptedChatModel(["no", '{"stars": 1}'])), {"messages": ["?"], "output_schema": SCHEMA})
    assert (said["output"], said["retries"]) == ({"stars": 1}, 1)


async def test_ignore_answers_with_what_the_model_has_said() -> None:
    model = ScriptedChatModel(rules=[{"when": "", "reply": "never"}], max_retries=1, error_handling_strategy="ignore")
    said = await run(scripted(model), {"messages": ["?"], "output_schema": SCHEMA})
    assert (said["text"], said["output"]) == ("never", None)
    assert "does not fit" in said["error"]


@pytest.mark.parametrize(
    "text",
    [
        '{"stars": 5}',
        ' \n{"stars": 5}\n',
        '```json\n{"stars": 5}\n```',
        '```\n{"stars": 5}\n```',
        '```JSON\n{"stars": 5}\n```\nThat is all.',
        '```json {"stars": 5} ```',
        '```json\n{"stars": 5}',
    ],
)
async def test_fence_around_an_answer_is_no_part_of_it(text: str) -> None:
    seen: list[Any] = []
    await run(direct(ScriptedChatModel([text], max_retries=0), Review, seen))
    assert seen == [Review(5)]


def native(url: str, strategy: str, *, can: bool) -> Agent:
    descriptor = ResourceDescriptor(
        OpenAICompatibleConnection, base_url=f"{url}/v1", api_key=KEY, structured_output=can
    )
    agent = asking().add_resource("http", ResourceType.CHAT_MODEL_CONNECTION, descriptor)
    return agent.add_resource("m", ResourceType.CHAT_MODEL, setup(structured_output_strategy=strategy))


@pytest.mark.parametrize(
    ("strategy", "can", "is_native"),
    [("auto", True, True), ("native", True, True), ("auto", False, False), ("prompt", True, False)],
)
async def test_schema_goes_to_the_provider_or_into_the_prompt(strategy: str, can: bool, is_native: bool) -> None:
    async with ModelServer(Reply('{"stars": 5}')) as server:
        said = await run(native(server.url, strategy, can=can), {"messages": ["?"], "output_schema": SCHEMA})
        assert said["output"] == {"stars": 5}
        (request,) = server.requests
        assert ("response_format" in request.body) == is_native
        assert any("JSON schema" in message.text for message in request.messages) != is_native


async def test_native_on_a_model_without_it_says_so_and_asks_nobody() -> None:
    async with ModelServer(Reply('{"stars": 5}')) as server:
        with pytest.raises((RunFailed, ConfigError), match="native"):
            await run(native(server.url, "native", can=False), {"messages": ["?"], "output_schema": SCHEMA})
        assert server.requests == []


class Counted(msgspec.Struct):
    n: int


class Measured(pydantic.BaseModel):
    n: float


@pytest.mark.parametrize(
    ("output", "bad"),
    [
        (Counted, '{"n": 1000000000000000000000000000000}'),
        (Counted, '{"n": "1000000000000000000000000000000"}'),
        (Measured, '{"n": "nan"}'),
        (Measured, '{"n": NaN}'),
        ({"type": "object"}, '{"n": [1000000000000000000000000000000]}'),
        ({"type": "object"}, '{"n": ' + "[" * 400 + "]" * 400 + "}"),
        ({"type": "object"}, '{"n": ' + "[" * 5_000 + "]" * 5_000 + "}"),
        ({"type": "object"}, '{"n": "\\ud83d"}'),
    ],
)
async def test_answer_that_no_event_can_carry_goes_back_to_the_model(output: Any, bad: str) -> None:
    model, seen = ScriptedChatModel([bad, '{"n": 1}'], max_retries=1), []
    await run(direct(model, output, seen))
    assert len(seen) == 1
    assert "does not fit" in model.requests[1].messages[-1].text
    model = ScriptedChatModel([bad, '{"n": 1}'], max_retries=1)
    said = await run(scripted(model), {"messages": ["?"], "output_schema": schema_of(output)})
    assert said["output"]["n"] == 1


async def test_large_whole_number_is_a_number() -> None:
    seen: list[Any] = []
    await run(direct(ScriptedChatModel(['{"n": 1000000000000000000000000000000}'], max_retries=0), Measured, seen))
    assert seen == [Measured(n=1e30)]


class Odd(msgspec.Struct):
    pair: tuple[int, str]
    names: dict[int, str]
    some: frozenset[int]


async def test_answer_of_any_type_is_kept_in_a_history_as_json_has_it() -> None:
    kept: list[Any] = []
    text = '{"pair": [1, "a"], "names": {"1": "b"}, "some": [3]}'

    async def act(event: Event, ctx: RunnerContext) -> None:
        answer = await ctx.chat("m", "?", output=Odd, history="h")
        assert answer.output == Odd((1, "a"), {1: "b"}, frozenset({3}))
        kept.extend(message.output for message in ctx.chat_history("h").messages())
        ctx.send_event(OutputEvent("done"))

    agent = Agent("A").add_action("act", [EventType.InputEvent], act, retry=ONCE)
    await run(agent.add_resource("m", ResourceType.CHAT_MODEL, ScriptedChatModel([text])))
    assert kept == [None, msgspec.json.decode(text)]


MAP = {"type": "object", "additionalProperties": {"type": "integer"}}
LIST = {"type": "array", "items": {"type": "integer"}}
PROVIDERS: dict[str, dict[str, Any]] = {"openai": {"path": "/v1"}, "openai_responses": {"path": "/v1"}, "anthropic": {}}


def of_provider(kind: str, url: str, strategy: str) -> Agent:
    connection = ResourceDescriptor(kind, api_key="k-123456789", base_url=url + PROVIDERS[kind].get("path", ""))
    model = ResourceDescriptor(kind, connection="c", structured_output_strategy=strategy, max_retries=0)
    return (asking("m").add_resource("c", ResourceType.CHAT_MODEL_CONNECTION, connection)).add_resource(
        "m", ResourceType.CHAT_MODEL, model
    )


REFUSED = [("openai", LIST, "[1]"), ("openai_responses", LIST, "[1]"), ("anthropic", MAP, '{"a": 1}')]


@pytest.mark.parametrize(("kind", "schema", "text"), REFUSED)
async def test_schema_that_the_provider_refuses_goes_into_the_prompt(kind: str, schema: Any, text: str) -> None:
    async with ModelServer([Reply(text)]) as server:
        said = await run(of_provider(kind, server.url, "auto"), {"messages": ["?"], "output_schema": schema})
        assert said["output"] == msgspec.json.decode(text)
        (request,) = server.requests
    assert request.output_schema is None
    assert any("JSON schema" in message.text for message in request.messages)


@pytest.mark.parametrize(("kind", "schema", "text"), REFUSED)
async def test_native_for_a_schema_that_the_provider_refuses_says_so_and_asks_nobody(
    kind: str, schema: Any, text: str
) -> None:
    async with ModelServer([Reply(text)]) as server:
        with pytest.raises((RunFailed, ConfigError), match="its provider"):
            await run(of_provider(kind, server.url, "native"), {"messages": ["?"], "output_schema": schema})
        assert server.count() == 0

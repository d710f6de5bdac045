"""The laws of adapters of chat models (`BaseChatModelConnection.complete`), against the local server.

Subclass the suite; the fixture ``new_connection`` makes a connection to the server whose URL it is given, unopened, with `credential`:

    class TestOpenAI(ChatModelConformance):
        @pytest.fixture
        def new_connection(self):
            return lambda url: OpenAICompletionsConnection(api_key=self.credential, api_base_url=f"{url}/v1")

What a provider lacks is said by attributes, see `ChatModelWorld`.
"""

# ruff: noqa: D102 - the name of a law states it

from __future__ import annotations

import asyncio
import base64
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from agentflow.api.chat_messages import (
    ChatMessage,
    FilePart,
    ImagePart,
    MessageRole,
    Part,
    ReasoningPart,
    TextPart,
    Usage,
    tool_message,
)
from agentflow.api.chat_models import DeltaKind
from agentflow.errors import ContentRefused
from agentflow.testing.conformance.chat_model_faults import ChatModelFaults
from agentflow.testing.conformance.chat_model_world import (
    TIME,
    WEATHER,
    Arrivals,
    NewConnection,
    ask,
    both_ways,
    called,
    conversation,
    idle,
    plain_usage,
    served,
)
from agentflow.testing.model_server import ModelRequest, Reply, ToolCall
from agentflow.testing.model_server import Usage as CountedUsage

_COUNTED = CountedUsage(input=120, output=50, cached=40, cache_written=30, reasoning=20)
_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "warm": {"type": "boolean"}},
    "required": ["city", "warm"],
    "additionalProperties": False,
}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "list": {"type": "array", "items": {"type": "integer"}},
    "literal": {"enum": ["red", "blue"]},
    "union": {"anyOf": [_SCHEMA, {"type": "null"}]},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "inner map": {"type": "object", "properties": {"of": {"type": "object"}}, "required": ["of"]},
    "optional field": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": []},
    "anything": {"type": "object", "properties": {"n": {}}, "required": ["n"]},
    "tree": {
        "type": "object",
        "properties": {"inner": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}},
        "required": ["inner"],
        "$defs": {
            "Tree": {
                "type": "object",
                "properties": {"inner": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}},
                "required": ["inner"],
            }
        },
    },
}
_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
_PDF = b"%PDF-1.4\n%%EOF\n"


class ChatModelConformance(ChatModelFaults):
    """What every adapter of a chat model obeys."""

    @both_ways
    async def test_text_answer_comes_whole(self, new_connection: NewConnection, *, is_streamed: bool) -> None:
        async with served(new_connection, Reply("Grüezi 👋\nall")) as (_, connection):
            message, deltas = await ask(connection, self.request(), is_streamed=is_streamed)
        assert (message.role, message.content, message.tool_calls) == (MessageRole.ASSISTANT, "Grüezi 👋\nall", [])
        assert message.finish_reason == "stop"
        if is_streamed:
            assert "".join(delta.text for delta in deltas) == message.content
            assert len(deltas) > 1

    @both_ways
    async def test_answer_that_ends_early_says_so(self, new_connection: NewConnection, *, is_streamed: bool) -> None:
        async with served(new_connection, Reply("half of", finish_reason="length")) as (_, connection):
            message, _ = await ask(connection, self.request(), is_streamed=is_streamed)
        assert (message.content, message.finish_reason) == ("half of", "length")

    @both_ways
    async def test_usage_is_reported_as_the_provider_counts_it(
        self, new_connection: NewConnection, *, is_streamed: bool
    ) -> None:
        async with served(new_connection, Reply("ok", usage=_COUNTED)) as (_, connection):
            message, _ = await ask(connection, self.request(), is_streamed=is_streamed)
        counted = {"cached_tokens": 40, "cache_write_tokens": 30, "reasoning_tokens": 20}
        assert plain_usage(message) == Usage(120, 50, **{name: counted[name] for name in self.usage_fields})
        told = {name: message.extra_args[name] for name in ("model_name", "promptTokens", "completionTokens")}
        assert told == {"model_name": self.model, "promptTokens": 120, "completionTokens": 50}

    async def test_conversation_arrives_whole(self, new_connection: NewConnection) -> None:
        request = self.request(*conversation(), tools=[WEATHER, TIME])
        before = msgspec.json.encode(request)
        arrived = await self.told(new_connection, Reply("ok"), request)
        assert msgspec.json.encode(request) == before, "what was asked is not changed"
        assert arrived.model == self.model
        *said, weather, time = arrived.messages
        assert [(one.role, one.text) for one in said] == [
            ("system", "Be kind."),
            ("user", "Hello"),
            ("assistant", "Grüezi 👋"),
            ("user", "How is it there?"),
            ("assistant", "I look."),
        ]
        calls = said[-1].tool_calls
        assert [(call.name, call.arguments) for call in calls] == [
            ("get_weather", {"city": "Zürich", "days": 2}),
            ("get_time", {"zone": "CET"}),
        ]
        assert [one.role for one in (weather, time)] == ["tool", "tool"]
        assert "sunny" in weather.text
        assert "noon" in time.text
        assert [weather.tool_call_id, time.tool_call_id] == [call.id or call.name for call in calls]

    async def test_schemas_of_tools_arrive(self, new_connection: NewConnection) -> None:
        arrived = await self.told(new_connection, Reply("ok"), self.request(tools=[WEATHER, TIME]))
        assert [(tool.name, tool.description) for tool in arrived.tools] == [
            (tool.name, tool.description) for tool in (WEATHER, TIME)
        ]
        properties = arrived.tools[0].schema["properties"]
        assert set(properties) == {"city", "days"}
        assert properties["city"]["description"] == "Where."
        assert list(arrived.tools[0].schema["required"]) == ["city"]

    async def test_without_tools_none_are_offered(self, new_connection: NewConnection) -> None:
        assert (await self.told(new_connection, Reply("ok"), self.request())).tools == []

    @both_ways
    async def test_parallel_calls_of_tools_come_with_their_ids_and_results_go_back_to_them(
        self, new_connection: NewConnection, *, is_streamed: bool
    ) -> None:
        wished = [ToolCall("get_weather", {"city": "Zürich", "days": 3}, "call_x"), ToolCall("get_time", {}, "call_y")]
        async with served(new_connection, [Reply("I look.", wished), Reply("sunny")]) as (server, connection):
            asked = self.request("how is it?", tools=[WEATHER, TIME])
            answer, deltas = await ask(connection, asked, is_streamed=is_streamed)
            assert answer.finish_reason == "tool_calls"
            assert answer.content == "I look."
            assert [call["function"] for call in answer.tool_calls] == [
                {"name": call.name, "arguments": call.arguments} for call in wished
            ]
            if is_streamed:
                pieces = [delta for delta in deltas if delta.kind == DeltaKind.TOOL_CALL]
                text = "".join(delta.text for delta in pieces if delta.index == 0)
                assert msgspec.json.decode(text) == wished[0].arguments
                assert [delta.name for delta in pieces if delta.name] == ["get_weather", "get_time"]
            for number, call in enumerate(answer.tool_calls):
                call["id"] = f"run-{number}"
            results = [tool_message(call, f"result {number}") for number, call in enumerate(answer.tool_calls)]
            asked.messages += [answer, *results]
            final, _ = await ask(connection, asked, is_streamed=is_streamed)
        assert final.content == "sunny"
        *_, said, first, second = server.requests[1].messages
        assert [call.name for call in said.tool_calls] == ["get_weather", "get_time"]
        assert [one.tool_call_id for one in (first, second)] == [call.id or call.name for call in said.tool_calls]
        assert "result 0" in first.text
        assert "result 1" in second.text

    async def test_calls_that_the_provider_gave_no_id_have_that_of_the_run(self, new_connection: NewConnection) -> None:
        call = called("get_time", {}, 7)
        said = [ChatMessage(MessageRole.ASSISTANT, tool_calls=[call]), tool_message(call, "noon")]
        arrived = await self.told(new_connection, Reply("ok"), self.request("time?", *said, tools=[TIME]))
        answer, result = arrived.messages[-2:]
        assert result.tool_call_id == answer.tool_calls[0].id or answer.tool_calls[0].name

    @both_ways
    @pytest.mark.parametrize("arguments", ['{"city": "Zü', "[1]", "no JSON"])
    async def test_malformed_arguments_of_a_tool_survive_as_text(
        self, new_connection: NewConnection, arguments: str, *, is_streamed: bool
    ) -> None:
        if ("streamed" if is_streamed else "whole") not in self.malformed_arguments:
            pytest.skip("the provider reads the arguments itself")
        wished = Reply(tool_calls=[ToolCall("get_weather", arguments, "call_x")])
        async with served(new_connection, [wished, Reply("ok")]) as (server, connection):
            asked = self.request("how is it?", tools=[WEATHER])
            answer, _ = await ask(connection, asked, is_streamed=is_streamed)
            assert [call["function"] for call in answer.tool_calls] == [{"name": "get_weather", "arguments": arguments}]
            answer.tool_calls[0]["id"] = "run-1"
            asked.messages += [answer, tool_message(answer.tool_calls[0], "no JSON object")]
            await ask(connection, asked, is_streamed=is_streamed)
        *_, said, result = server.requests[1].messages
        assert [call.name for call in said.tool_calls] == ["get_weather"]
        assert "no JSON object" in result.text

    @both_ways
    async def test_arguments_of_a_tool_that_no_record_can_hold_are_a_text(
        self, new_connection: NewConnection, *, is_streamed: bool
    ) -> None:
        wished = {"city": "Zürich", "days": 10**30}
        async with served(new_connection, Reply(tool_calls=[ToolCall("get_weather", wished)])) as (_, connection):
            asked = self.request("how is it?", tools=[WEATHER])
            answer, _ = await ask(connection, asked, is_streamed=is_streamed)
        (call,) = answer.tool_calls
        text = call["function"]["arguments"]
        assert isinstance(text, str)
        assert msgspec.json.decode(text) == wished

    @both_ways
    async def test_reasoning_is_shown_and_goes_back(self, new_connection: NewConnection, *, is_streamed: bool) -> None:
        if not self.shows_reasoning:
            pytest.skip("the provider shows no reasoning")
        thought = Reply("I look.", [ToolCall("get_time", {}, "call_x")], reasoning="It wants to know the time.")
        async with served(new_connection, [thought, Reply("noon")]) as (server, connection):
            asked = self.request("time?", tools=[TIME])
            answer, deltas = await ask(connection, asked, is_streamed=is_streamed)
            assert "".join(part.text for part in answer.reasoning) == thought.reasoning
            assert answer.content == "I look."
            if is_streamed:
                shown = [delta.text for delta in deltas if delta.kind == DeltaKind.REASONING]
                assert "".join(shown) == thought.reasoning
            stored = msgspec.json.decode(msgspec.json.encode(answer), type=ChatMessage)
            stored.tool_calls[0]["id"] = "run-1"
            asked.messages += [stored, tool_message(stored.tool_calls[0], "noon")]
            await ask(connection, asked, is_streamed=is_streamed)
        said = next(one for one in server.requests[1].messages if one.role == "assistant")
        assert said.reasoning == (thought.reasoning if self.returns_reasoning else "")

    async def test_reasoning_of_another_provider_does_not_go_out_as_if_it_were_own(
        self, new_connection: NewConnection
    ) -> None:
        foreign = ReasoningPart("thought elsewhere", {"signed_by": "another provider"})
        said = ChatMessage(MessageRole.ASSISTANT, "hi", reasoning=[foreign])
        arrived = await self.told(new_connection, Reply("ok"), self.request("hello", said, "and now?"))
        assert [one.text for one in arrived.messages if one.role == "assistant"] == ["hi"]
        assert b"another provider" not in arrived.raw

    async def test_image_arrives_among_texts(self, new_connection: NewConnection) -> None:
        if not self.takes_images:
            pytest.skip("the provider takes no images")
        shown = ChatMessage(parts=[TextPart("what is this?"), ImagePart(data=_PIXEL), TextPart("say it")])
        arrived = await self.told(new_connection, Reply("ok"), self.request(shown))
        (message,) = arrived.messages
        assert "what is this?" in message.text
        assert "say it" in message.text
        (image,) = (part for part in message.parts if part.kind == "image")
        assert base64.b64decode(image.base64) == _PIXEL
        assert image.media_type in {"image/png", ""}

    async def test_text_beside_an_image_arrives_before_it(self, new_connection: NewConnection) -> None:
        if not self.takes_images:
            pytest.skip("the provider takes no images")
        shown = ChatMessage(content="what is this?", parts=[ImagePart(data=_PIXEL)])
        (message,) = (await self.told(new_connection, Reply("ok"), self.request(shown))).messages
        assert [part.kind for part in message.parts] == ["text", "image"]
        assert message.text == "what is this?"

    async def test_image_elsewhere_arrives_as_its_url(self, new_connection: NewConnection) -> None:
        if not self.takes_image_urls:
            pytest.skip("the provider looks nowhere else")
        shown = ChatMessage(parts=[TextPart("what is this?"), ImagePart(url="https://pictures.test/1.png")])
        (message,) = (await self.told(new_connection, Reply("ok"), self.request(shown))).messages
        assert [part.url for part in message.parts if part.kind == "image"] == ["https://pictures.test/1.png"]

    async def test_file_arrives(self, new_connection: NewConnection) -> None:
        if not self.takes_files:
            pytest.skip("the provider takes no documents")
        shown = ChatMessage(parts=[TextPart("sum up"), FilePart(data=_PDF, name="report.pdf")])
        (message,) = (await self.told(new_connection, Reply("ok"), self.request(shown))).messages
        (file,) = (part for part in message.parts if part.kind == "file")
        assert base64.b64decode(file.base64) == _PDF

    async def test_cache_hint_harms_nothing(self, new_connection: NewConnection) -> None:
        parts: list[Part] = [TextPart("long", cache=True), TextPart(" text")]
        said = [ChatMessage(MessageRole.SYSTEM, "Be kind.", cache=True), ChatMessage(parts=parts, cache=True)]
        arrived = await self.told(new_connection, Reply("ok"), self.request(*said))
        assert [(one.role, one.text) for one in arrived.messages] == [("system", "Be kind."), ("user", "long text")]

    async def test_output_schema_arrives_where_the_provider_enforces_it(self, new_connection: NewConnection) -> None:
        async with served(new_connection, Reply('{"city": "Bern", "warm": true}')) as (server, connection):
            if not connection.supports_native_structured_output(self.model):
                pytest.skip("the provider enforces no schema")
            assert not connection.native_schema_problem(self.model, _SCHEMA)
            asked = self.request(output_schema=_SCHEMA, output_name="Weather")
            message, _ = await ask(connection, asked, is_streamed=False)
        assert message.content == '{"city": "Bern", "warm": true}'
        schema = server.requests[0].output_schema
        assert schema is not None
        assert set(schema["properties"]) == {"city", "warm"}

    @pytest.mark.parametrize("kind", _SCHEMAS)
    async def test_output_schema_that_the_adapter_finds_no_fault_with_is_not_refused(
        self, new_connection: NewConnection, kind: str
    ) -> None:
        schema = _SCHEMAS[kind]
        async with served(new_connection, Reply("1")) as (_, connection):
            if not connection.supports_native_structured_output(self.model):
                pytest.skip("the provider enforces no schema")
            if not connection.native_schema_problem(self.model, schema):  # else the prompt has it
                await ask(connection, self.request(output_schema=schema), is_streamed=False)

    async def test_options_arrive(self, new_connection: NewConnection) -> None:
        arrived = await self.told(new_connection, Reply("ok"), self.request(options=self.options))
        assert {name: arrived.options[name] for name in ("temperature", "max_tokens")} == {
            "temperature": 0.5,
            "max_tokens": 77,
        }

    @both_ways
    async def test_idempotency_key_arrives_and_is_the_same_on_a_repeat(
        self, new_connection: NewConnection, *, is_streamed: bool
    ) -> None:
        if not self.sends_idempotency_key:
            pytest.skip("the SDK sends none")
        async with served(new_connection, Reply("ok")) as (server, connection):
            for _ in range(2):
                await ask(connection, self.request(idempotency_key="run-1:step-2"), is_streamed=is_streamed)
        assert [request.idempotency_key for request in server.requests] == ["run-1:step-2"] * 2

    @both_ways
    async def test_refusal_is_an_error_of_its_own(self, new_connection: NewConnection, *, is_streamed: bool) -> None:
        if not self.refuses:
            pytest.skip("the provider does not say of an answer that it is a refusal")
        async with served(new_connection, Reply("I will not say that.", finish_reason="refusal")) as (_, connection):
            with pytest.raises(ContentRefused):
                await ask(connection, self.request(), is_streamed=is_streamed)

    @both_ways
    async def test_answer_that_a_filter_stops_is_a_refusal(
        self, new_connection: NewConnection, *, is_streamed: bool
    ) -> None:
        if not self.filters:
            pytest.skip("the provider does not say that a filter has stopped it")
        async with served(new_connection, Reply("Once upon", finish_reason="content_filter")) as (_, connection):
            with pytest.raises(ContentRefused):
                await ask(connection, self.request(), is_streamed=is_streamed)

    async def test_calls_share_a_client_and_its_connection_is_kept(self, new_connection: NewConnection) -> None:
        async with served(new_connection, None) as (server, connection):
            for word in "one", "two", "three":
                assert (await connection.complete(self.request(word))).content == word
            assert server.connections == 1

    async def test_no_call_waits_for_another(self, new_connection: NewConnection) -> None:
        count = 300  # more than the pools of clients have by default
        async with served(new_connection, Arrivals(Reply("ok"), count).together) as (server, connection):
            asked = [connection.complete(self.request(str(number))) for number in range(count)]
            answers = await asyncio.gather(*asked)
            assert server.in_flight_max == count
        assert [answer.content for answer in answers] == ["ok"] * count

    async def test_closing_ends_its_connections(self, new_connection: NewConnection) -> None:
        async with served(new_connection, Reply("ok")) as (server, connection):
            await connection.complete(self.request())
            assert server.connections == 1
            await connection.close()
            await idle(server, connections=0)

    async def test_connection_that_was_never_used_is_closed_without_harm(self, new_connection: NewConnection) -> None:
        await new_connection("http://127.0.0.1:1").close()

    async def test_address_is_that_of_the_provider(self, new_connection: NewConnection) -> None:
        async with served(new_connection, Reply("ok")) as (server, connection):
            url = urlsplit(server.url)
            assert connection.address == (url.hostname, url.port)
            assert connection.provider

    async def test_what_the_server_decides_by_is_what_was_asked(self, new_connection: NewConnection) -> None:
        def decide(request: ModelRequest) -> Reply:
            return Reply(f"{len(request.messages)}: {request.text}")

        async with served(new_connection, decide) as (_, connection):
            answers = await asyncio.gather(*(connection.complete(self.request(word)) for word in ("a", "b")))
        assert [answer.content for answer in answers] == ["1: a", "1: b"]

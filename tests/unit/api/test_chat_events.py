"""Events of conversations, as their receiver sees them: encoded when they are sent, decoded as plain values."""

from __future__ import annotations

import msgspec
import pydantic
import pytest

from agentflow import Event, EventType
from agentflow.api.chat_events import (
    BudgetExhaustedEvent,
    ChatRequestEvent,
    ChatResponseEvent,
    ToolRequestEvent,
    ToolResponseEvent,
)
from agentflow.api.chat_messages import ChatMessage, ImagePart, MessageRole, Usage, tool_call
from agentflow.api.encoding import encode_msgpack


class Review(msgspec.Struct):
    stars: int


class Verdict(pydantic.BaseModel):
    is_good: bool


def received(event):
    """The event as another action gets it."""
    decoded = Event(event.type, msgspec.msgpack.decode(encode_msgpack(event.attributes)))
    typed = type(event).from_event(decoded)
    assert type(typed) is type(event)
    return typed


ANSWER = ChatMessage(
    MessageRole.ASSISTANT,
    "good",
    [tool_call("f", {"a": 1}, "c")],
    {"structured_output": {"stars": 3}},
    [ImagePart(data=b"\x00\xff")],
    usage=Usage(1, 2),
)


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (ChatRequestEvent, "_chat_request_event"),
        (ChatResponseEvent, "_chat_response_event"),
        (ToolRequestEvent, "_tool_request_event"),
        (ToolResponseEvent, "_tool_response_event"),
        (BudgetExhaustedEvent, "_budget_exhausted_event"),
    ],
)
def test_types_have_the_names_that_actions_listen_to(cls, name):
    assert cls.EVENT_TYPE == getattr(EventType, cls.__name__) == name


def test_a_request_arrives_as_it_was_sent():
    request = received(ChatRequestEvent("m", [ANSWER, "and now?"], {"name": "Ann"}, Review, tenant="t", stream="s"))
    assert (request.type, request.model, request.prompt_args) == (EventType.ChatRequestEvent, "m", {"name": "Ann"})
    assert request.messages == [ANSWER, ChatMessage(content="and now?")]
    assert request.output_schema["properties"] == {"stars": {"type": "integer"}}
    assert (request.get_attr("tenant"), request.get_attr("stream")) == ("t", "s")


def test_a_bare_request_carries_what_flink_agents_carries():
    request = ChatRequestEvent("m", ["hi"])
    assert set(request.attributes) == {"model", "messages", "prompt_args", "output_schema"}
    assert (received(request).prompt_args, received(request).output_schema) == ({}, None)


@pytest.mark.parametrize("schema", [Verdict, Verdict.model_json_schema()])
def test_an_output_type_travels_as_its_json_schema(schema):
    assert received(ChatRequestEvent("m", [], output_schema=schema)).output_schema == Verdict.model_json_schema()


def test_what_is_no_output_type_is_refused_where_it_is_asked_for():
    with pytest.raises(TypeError, match="is no type of an output"):
        ChatRequestEvent("m", [], output_schema=object)


def test_messages_of_a_request_are_messages_where_it_is_made():
    request = ChatRequestEvent("m", ["hi", {"role": "system", "content": "x"}])
    assert request.messages == [ChatMessage(content="hi"), ChatMessage("system", "x")]


def test_a_response_arrives_as_it_was_sent():
    response = received(ChatResponseEvent("r", ANSWER, 2, 1.5))
    assert (response.request_id, response.response, response.retry_count) == ("r", ANSWER, 2)
    assert (response.error, response.get_attr("total_retry_wait_sec")) == (None, 1.5)
    assert "error" not in response.attributes


def test_an_output_is_of_the_type_that_is_asked_for():
    response = received(ChatResponseEvent("r", ANSWER))
    assert response.output() == {"stars": 3}
    assert response.output(Review) == Review(3)
    verdict = ChatMessage("assistant", extra_args={"structured_output": {"is_good": True}})
    assert received(ChatResponseEvent("r", verdict)).output(Verdict) == Verdict(is_good=True)
    assert received(ChatResponseEvent("r", ChatMessage())).output(Review) is None


def test_a_response_says_why_there_is_no_answer():
    assert received(ChatResponseEvent("r", ChatMessage(), error="refused")).error == "refused"


def test_calls_of_tools_arrive_as_they_were_sent():
    calls = [{**tool_call("f", {"a": [1]}, "c1"), "id": "run/1"}, {**tool_call("g", "{bad", "c2"), "id": "run/2"}]
    request = received(ToolRequestEvent("m", calls, "r"))
    assert (request.model, request.tool_calls, request.get_attr("request_id")) == ("m", calls, "r")
    assert "request_id" not in ToolRequestEvent("m", calls).attributes


def test_results_of_tools_arrive_by_the_id_of_the_call():
    response = received(
        ToolResponseEvent("r", {"run/1": "found", "run/2": "no"}, {"run/1": "c1"}, {"run/2": False}, {"run/2": "?"})
    )
    assert (response.request_id, response.responses) == ("r", {"run/1": "found", "run/2": "no"})
    assert response.get_attr("external_ids") == {"run/1": "c1"}
    assert (response.get_attr("success"), response.get_attr("error")) == ({"run/2": False}, {"run/2": "?"})
    assert received(ToolResponseEvent("r", {"run/1": "found"})).get_attr("success") == {"run/1": True}


@pytest.mark.parametrize("partial", [None, ANSWER])
def test_a_spent_budget_arrives_with_what_there_is(partial):
    event = received(BudgetExhaustedEvent("r", "run.calls", 3, 3, partial))
    assert (event.request_id, event.budget, event.partial) == ("r", "run.calls", partial)
    assert (event.get_attr("limit"), event.get_attr("spent")) == (3, 3)

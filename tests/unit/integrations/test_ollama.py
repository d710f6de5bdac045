"""Requests as Ollama has them, and thinking between tags."""

from __future__ import annotations

import pytest

from agentflow.api.chat_messages import (
    ChatMessage,
    FilePart,
    ImagePart,
    ReasoningPart,
    TextPart,
    tool_call,
    tool_message,
)
from agentflow.api.chat_models import ChatRequest, DeltaKind
from agentflow.api.tools import ToolMetadata
from agentflow.errors import ModelRejected
from agentflow.integrations.ollama import OllamaConnection, OllamaSetup, ThinkTags, request_body
from agentflow.integrations.provider_errors import Failures


def body(*messages: ChatMessage, **fields: object) -> dict:
    request = ChatRequest(model="qwen", messages=list(messages), **fields)
    return request_body(request, Failures("ollama", request))


def read(*pieces: str) -> tuple[str, str]:
    tags, told = ThinkTags(), {DeltaKind.REASONING: "", DeltaKind.TEXT: ""}
    found = [one for piece in pieces for one in tags.split(piece)]
    for text, kind in [*found, *([rest] if (rest := tags.rest()) else [])]:
        told[kind] += text
    return told[DeltaKind.REASONING], told[DeltaKind.TEXT]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>hm < hm</think>\n\nyes", "hm < hm", "yes"),
        ("\n<think>\nhm</think>yes </think>", "hm", "yes </think>"),
        ("yes <think>no</think>", "", "yes <think>no</think>"),
        ("<thin air", "", "<thin air"),
        ("<think>never ends</thi", "never ends</thi", ""),
        ("<thi", "", "<thi"),
    ],
)
def test_thinking_is_told_from_the_answer_however_it_is_cut(text, thought, answer, size):
    assert read(*(text[start : start + size] for start in range(0, len(text), size))) == (thought, answer)


def test_nested_schema_of_a_tool_is_sent_as_it_is():
    schema = {"type": "object", "properties": {"to": {"type": "object", "properties": {"city": {"type": "string"}}}}}
    (tool,) = body(ChatMessage(content="hi"), tools=[ToolMetadata("send", "Send.", schema)])["tools"]
    assert tool["function"]["parameters"] == schema


def test_options_of_the_model_and_fields_of_the_request_go_where_they_belong():
    setup = OllamaSetup(keep_alive="5m", think=False, additional_kwargs={"max_tokens": 9, "seed": 1, "truncate": False})
    request = body(ChatMessage(content="hi"), options=setup.model_kwargs)
    assert request["options"] == {"temperature": 0.75, "num_ctx": 2_048, "num_predict": 9, "seed": 1}
    assert (request["keep_alive"], request["think"], request["truncate"]) == ("5m", False, False)
    assert "extract_reasoning" not in request


def test_result_of_a_tool_says_which_tool_it_is_of():
    call = tool_call("get_time", {}, "") | {"id": "run-1"}
    said = body(ChatMessage("assistant", tool_calls=[call]), tool_message(call, "noon"))["messages"]
    assert said[1] == {"role": "tool", "content": "noon", "tool_name": "get_time", "tool_call_id": "run-1"}


def test_own_thoughts_go_back_and_those_of_other_providers_do_not():
    reasoning = [ReasoningPart("mine"), ReasoningPart("theirs", {"signature": "s"})]
    (said,) = body(ChatMessage("assistant", "yes", reasoning=reasoning))["messages"]
    assert said["thinking"] == "mine"


def test_schema_beside_tools_is_said_in_words_so_that_the_model_can_call_them():
    asked = {"tools": [ToolMetadata("f")], "output_schema": {"type": "string"}}
    request = body(ChatMessage(content="hi"), **asked)
    assert "format" not in request
    assert '{"type":"string"}' in request["messages"][-1]["content"]
    assert body(ChatMessage(content="hi"), output_schema={"type": "string"})["format"] == {"type": "string"}


@pytest.mark.parametrize("part", [ImagePart(url="https://a/b.png"), FilePart(data=b"%PDF"), FilePart(file_id="f")])
def test_what_ollama_cannot_take_is_a_rejection_not_a_gap(part):
    with pytest.raises(ModelRejected):
        body(ChatMessage(parts=[TextPart("what is this?"), part]))


@pytest.mark.parametrize(
    ("base_url", "of_environment", "address"),
    [
        ("", "", ("localhost", 11_434)),
        ("", "far", ("far", 11_434)),
        ("", "0.0.0.0:1234", ("0.0.0.0", 1_234)),
        ("https://far", "", ("far", 443)),
    ],
)
def test_address_is_found_as_the_sdk_finds_it(monkeypatch, base_url, of_environment, address):
    monkeypatch.setenv("OLLAMA_HOST", of_environment)
    assert OllamaConnection(base_url=base_url).address == address

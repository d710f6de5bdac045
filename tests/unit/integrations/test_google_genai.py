"""Requests as Gemini has them."""

from __future__ import annotations

import base64

import pytest

from agentflow.api.chat_messages import ChatMessage, ImagePart, ReasoningPart, TextPart, tool_call, tool_message
from agentflow.api.chat_models import ChatRequest
from agentflow.api.tools import ToolMetadata
from agentflow.integrations.google_genai import GeminiConnection, GeminiSetup, request_config, request_contents

SIGNED = base64.b64encode(b"signed").decode()


def contents(*messages: ChatMessage) -> list[dict]:
    return request_contents(ChatRequest(model="gemini", messages=list(messages)))


def test_signatures_go_back_with_the_parts_that_they_came_with():
    calls = [tool_call("f", {"a": 1}, "id-1"), tool_call("g", {}, "")]
    reasoning = [
        ReasoningPart("a summary"),
        ReasoningPart("", {"thought_signature": SIGNED, "call": 0}),
        ReasoningPart("", {"thought_signature": base64.b64encode(b"text").decode()}),
        ReasoningPart("elsewhere", {"signature": "s"}),
    ]
    (turn,) = contents(ChatMessage("assistant", "I look.", calls, reasoning=reasoning))
    assert turn == {
        "role": "model",
        "parts": [
            {"text": "I look.", "thought_signature": b"text"},
            {"function_call": {"name": "f", "args": {"a": 1}, "id": "id-1"}, "thought_signature": b"signed"},
            {"function_call": {"name": "g", "args": {}}},
        ],
    }


def test_results_name_their_tool_and_carry_an_id_only_where_gemini_gave_one():
    calls = [tool_call("f", {}, "id-1") | {"id": "run-1"}, tool_call("g", {}, "") | {"id": "run-2"}]
    _, results = contents(ChatMessage("assistant", tool_calls=calls), *(tool_message(call, "ok") for call in calls))
    assert results == {
        "role": "user",
        "parts": [
            {"function_response": {"name": "f", "response": {"output": "ok"}, "id": "id-1"}},
            {"function_response": {"name": "g", "response": {"output": "ok"}}},
        ],
    }


def test_bytes_go_along_and_files_elsewhere_are_named():
    shown = [TextPart("?"), ImagePart(data=b"abc"), ImagePart("image/jpeg", url="https://a/b.jpg")]
    assert contents(ChatMessage(parts=shown))[0]["parts"] == [
        {"text": "?"},
        {"inline_data": {"data": b"abc", "mime_type": "image/png"}},
        {"file_data": {"file_uri": "https://a/b.jpg", "mime_type": "image/jpeg"}},
    ]


def test_loops_of_the_sdk_are_off_and_options_are_handed_on():
    setup = GeminiSetup(temperature=0.5, thinking_level="low", additional_kwargs={"seed": 1})
    said = [ChatMessage("system", "Be kind."), ChatMessage(content="hi")]
    request = ChatRequest(
        model="gemini",
        messages=said,
        tools=[ToolMetadata("f")],
        output_schema={"type": "string"},
        options=setup.model_kwargs,
    )
    config = request_config(request)
    assert config["automatic_function_calling"] == {"disable": True}
    assert config["automatic_continuation"] is False
    assert (config["temperature"], config["seed"], config["thinking_config"]) == (0.5, 1, {"thinking_level": "low"})
    assert config["system_instruction"] == {"role": "user", "parts": [{"text": "Be kind."}]}
    assert config["tools"][0]["function_declarations"][0]["name"] == "f"
    assert (config["response_mime_type"], config["response_json_schema"]) == ("application/json", {"type": "string"})


@pytest.mark.parametrize(
    ("model", "can"),
    [("gemini-2.5-pro", False), ("gemini-3-flash", True), ("gemini-3.8-flash", True), ("gemini-flash-latest", True)],
)
def test_models_that_take_no_schema_beside_tools_are_told_it_in_words(model, can):
    assert GeminiConnection().supports_native_structured_output(model) is can

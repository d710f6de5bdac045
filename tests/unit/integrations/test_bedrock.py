"""Requests as Converse has them."""

from __future__ import annotations

import base64

import msgspec
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
from agentflow.api.chat_models import ChatRequest
from agentflow.api.tools import ToolMetadata
from agentflow.errors import ModelRejected
from agentflow.integrations.aiobotocore_bedrock import BedrockConnection, BedrockSetup, converse_arguments, events_of
from agentflow.integrations.provider_errors import Failures

POINT = {"cachePoint": {"type": "default"}}


def asked(*messages: ChatMessage, **fields: object) -> dict:
    request = ChatRequest(model="claude", messages=list(messages), **fields)
    return converse_arguments(request, Failures("aws.bedrock", request))


def test_cache_points_stand_behind_what_was_hinted_at():
    parts = [TextPart("long", cache=True), TextPart("short")]
    request = asked(ChatMessage("system", "rules", cache=True), ChatMessage(parts=parts, cache=True))
    assert request["system"] == [{"text": "rules"}, POINT]
    assert request["messages"][0]["content"] == [{"text": "long"}, POINT, {"text": "short"}, POINT]


def test_oldest_cache_points_of_the_conversation_give_way_to_the_most_that_are_allowed():
    said = [ChatMessage(content=str(number), cache=True) for number in range(6)]
    content = asked(ChatMessage("system", "rules", cache=True), *said)["messages"][0]["content"]
    assert content == [*({"text": str(n)} for n in range(4)), POINT, {"text": "4"}, POINT, {"text": "5"}, POINT]


def test_results_of_parallel_calls_are_one_turn_of_the_user():
    calls = [tool_call("f", {}, "a:1") | {"id": "run-1"}, tool_call("g", "{oops", "") | {"id": "run-2"}]
    results = [tool_message(call, text) for call, text in zip(calls, ("x", ""), strict=True)]
    assistant, user = asked(ChatMessage("assistant", tool_calls=calls), *results)["messages"]
    assert [block["toolUse"]["toolUseId"] for block in assistant["content"]] == ["a_1", "run-2"]
    assert [block["toolResult"]["toolUseId"] for block in user["content"]] == ["a_1", "run-2"]
    assert all(block["toolResult"]["content"] for block in user["content"]), "Bedrock takes no empty result"


def test_thoughts_go_back_and_those_of_other_providers_do_not():
    hidden = base64.b64encode(b"hidden").decode()
    reasoning = [
        ReasoningPart("hm", {"signature": "s"}),
        ReasoningPart("", {"redacted_content": hidden}),
        ReasoningPart("elsewhere", {"thought_signature": "s"}),
    ]
    (turn,) = asked(ChatMessage("assistant", "yes", reasoning=reasoning))["messages"]
    assert turn["content"] == [
        {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}},
        {"reasoningContent": {"redactedContent": b"hidden"}},
        {"text": "yes"},
    ]


def test_options_go_where_converse_has_them():
    setup = BedrockSetup(
        model="m",
        max_tokens=9,
        temperature=0.5,
        additional_kwargs={
            "top_p": 0.9,
            "guardrailConfig": {"guardrailIdentifier": "g"},
            "thinking": {"type": "adaptive"},
        },
    )
    request = asked(ChatMessage(content="hi"), options=setup.model_kwargs)
    assert request["inferenceConfig"] == {"maxTokens": 9, "temperature": 0.5, "topP": 0.9}
    assert request["guardrailConfig"] == {"guardrailIdentifier": "g"}
    assert request["additionalModelRequestFields"] == {"thinking": {"type": "adaptive"}}


def test_tool_without_description_has_its_name_for_one():
    request = asked(ChatMessage(content="hi"), tools=[ToolMetadata("f")], options={"toolChoice": {"any": {}}})
    assert request["toolConfig"]["tools"][0]["toolSpec"]["description"] == "f"
    assert request["toolConfig"]["toolChoice"] == {"any": {}}


def test_schema_of_the_answer_is_sent_as_text():
    request = asked(ChatMessage(content="hi"), output_schema={"type": "object"}, output_name="Weather")
    schema = request["outputConfig"]["textFormat"]["structure"]["jsonSchema"]
    assert schema["name"] == "Weather"
    assert msgspec.json.decode(schema["schema"]) == {"type": "object", "additionalProperties": False}


def test_documents_are_named_as_bedrock_allows():
    shown = [FilePart(data=b"%PDF", name="q3_report.pdf"), ImagePart("image/jpeg", url="s3://bucket/a.jpg")]
    document, image = asked(ChatMessage(parts=shown))["messages"][0]["content"]
    assert document["document"] == {"format": "pdf", "name": "q3-report-pdf", "source": {"bytes": b"%PDF"}}
    assert image["image"] == {"format": "jpeg", "source": {"s3Location": {"uri": "s3://bucket/a.jpg"}}}


@pytest.mark.parametrize("part", [ImagePart(url="https://a/b.png"), FilePart("video/mp4", b"x"), FilePart(file_id="f")])
def test_what_bedrock_cannot_take_is_a_rejection_not_a_gap(part):
    with pytest.raises(ModelRejected):
        asked(ChatMessage(parts=[part]))


def test_answer_without_a_message_is_found():
    with pytest.raises(KeyError):
        events_of({"message": "not what was expected"})


@pytest.mark.parametrize(
    ("model", "can"),
    [
        ("eu.anthropic.claude-sonnet-4-5-20250929-v1:0", True),
        ("anthropic.claude-sonnet-4-20250514-v1:0", False),
        ("anthropic.claude-opus-4-1-20250805-v1:0", False),
        ("global.anthropic.claude-sonnet-5-5", True),
        ("amazon.nova-pro-v1:0", False),
    ],
)
def test_claude_answers_by_a_schema_since_4_5(model, can):
    assert BedrockConnection().supports_native_structured_output(model) is can

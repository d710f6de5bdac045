"""Requests as the Messages API has them."""

from __future__ import annotations

import pytest

from agentflow.api.chat_messages import ChatMessage, FilePart, ImagePart, ReasoningPart, TextPart, tool_call
from agentflow.api.chat_models import ChatRequest
from agentflow.api.tools import ToolMetadata
from agentflow.integrations.anthropic import AnthropicConnection, AnthropicSetup, request_body

CACHE = {"type": "ephemeral"}


def body(*messages: ChatMessage, **fields: object) -> dict:
    return request_body(ChatRequest(model="claude", messages=list(messages), **fields))


def marks(request: dict) -> list[str]:
    blocks = [*request.get("system", ()), *(block for turn in request["messages"] for block in turn["content"])]
    return [block["text"] for block in blocks if "cache_control" in block]


def test_instructions_stand_beside_the_conversation_wherever_they_were_said():
    request = body(ChatMessage("system", "a"), ChatMessage("user", "hi"), ChatMessage("system", "b"))
    assert [block["text"] for block in request["system"]] == ["a", "b"]
    assert request["messages"] == [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]


def test_results_of_parallel_calls_are_one_turn_of_the_user():
    calls = [tool_call("f", {}, "toolu_1"), tool_call("g", "{oops", "toolu_2")]
    results = [ChatMessage("tool", text, extra_args={"external_id": f"toolu_{n}"}) for n, text in ((1, "x"), (2, ""))]
    assistant, user = body(ChatMessage("assistant", tool_calls=calls), *results)["messages"]
    assert [block["input"] for block in assistant["content"]] == [{}, {"arguments": "{oops"}]
    assert user["role"] == "user"
    assert user["content"] == [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "x"}]},
        {"type": "tool_result", "tool_use_id": "toolu_2"},
    ]


def test_thoughts_go_back_before_the_words_they_led_to():
    reasoning = [ReasoningPart("hm", {"signature": "s"}), ReasoningPart("", {"redacted": "r"}), ReasoningPart("other")]
    (turn,) = body(ChatMessage("assistant", "yes", reasoning=reasoning, cache=True))["messages"]
    assert turn["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "r"},
        {"type": "text", "text": "yes", "cache_control": CACHE},
    ]


def test_cache_marks_stand_where_they_were_hinted_at():
    parts = [TextPart("long", cache=True), TextPart("short")]
    assert marks(body(ChatMessage("system", "rules", cache=True), ChatMessage(parts=parts))) == ["rules", "long"]


def test_oldest_marks_of_the_conversation_give_way_to_the_most_that_are_allowed():
    said = [ChatMessage(content=str(number), cache=True) for number in range(6)]
    assert marks(body(ChatMessage("system", "rules", cache=True), *said)) == ["rules", "3", "4", "5"]


def test_message_that_says_nothing_is_not_sent():
    assert len(body(ChatMessage("user", "hi"), ChatMessage("assistant"))["messages"]) == 1


@pytest.mark.parametrize(
    ("part", "block"),
    [
        (ImagePart(url="https://a/b.png"), {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}}),
        (FilePart(file_id="f1"), {"type": "document", "source": {"type": "file", "file_id": "f1"}}),
        (
            FilePart("text/plain", b"abc", name="a.txt"),
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": "abc"},
                "title": "a.txt",
            },
        ),
        (
            FilePart("image/png", b"abc"),
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "YWJj"}},
        ),
    ],
)
def test_part_becomes_the_block_for_it(part, block):
    assert body(ChatMessage(parts=[part]))["messages"][0]["content"] == [block]


def test_answer_is_begun_for_the_model_only_where_it_can_be():
    options = AnthropicSetup(json_prefill=True).model_kwargs
    begun = body(ChatMessage(content="hi"), options=options)
    assert begun["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "text": "{"}]}
    assert "json_prefill" not in begun
    for hindrance in {"tools": [ToolMetadata("f")]}, {"output_schema": {"type": "object"}}:
        assert body(ChatMessage(content="hi"), options=options, **hindrance)["messages"][-1]["role"] == "user"


def test_schema_of_the_answer_stands_beside_other_settings_of_the_output():
    request = body(
        ChatMessage(content="hi"), output_schema={"type": "string"}, options={"output_config": {"effort": "low"}}
    )
    output_format = {"type": "json_schema", "schema": {"type": "string"}}
    assert request["output_config"] == {"effort": "low", "format": output_format}


def test_setup_hands_on_what_is_given():
    assert AnthropicSetup().model_kwargs == {"max_tokens": 1_024}
    setup = AnthropicSetup(max_tokens=5_000, temperature=0.1, thinking_budget=2_000, additional_kwargs={"top_k": 3})
    assert setup.model_kwargs == {
        "max_tokens": 5_000,
        "temperature": 0.1,
        "thinking": {"type": "enabled", "budget_tokens": 2_000},
        "top_k": 3,
    }


@pytest.mark.parametrize(
    ("model", "can"),
    [
        ("claude-3-5-sonnet-20241022", False),
        ("claude-sonnet-4-20250514", False),
        ("claude-opus-4-0", False),
        ("claude-opus-4-1-20250805", True),
        ("claude-haiku-4-5", True),
        ("claude-sonnet-5-5", True),
    ],
)
def test_models_since_claude_4_1_answer_by_a_schema(model, can):
    assert AnthropicConnection().supports_native_structured_output(model) is can

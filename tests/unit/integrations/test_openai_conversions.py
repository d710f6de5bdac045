"""What OpenAI's protocols make of requests, schemas, errors and answers."""

from __future__ import annotations

import msgspec
import pytest

from agentflow.api.chat_messages import ChatMessage, FilePart, ImagePart, ReasoningPart, TextPart, tool_call
from agentflow.api.chat_models import ChatRequest
from agentflow.api.tools import ToolMetadata
from agentflow.errors import ContentRefused, ContextTooLong, ModelRejected, ModelUnavailable, RateLimited
from agentflow.integrations.azure_openai import AzureOpenAIConnection, AzureOpenAISetup
from agentflow.integrations.litellm import LiteLLMConnection, LiteLLMSetup
from agentflow.integrations.openai import (
    OpenAICompletionsConnection,
    OpenAICompletionsSetup,
    OpenAIResponsesConnection,
    OpenAIResponsesSetup,
)
from agentflow.integrations.openai_compatible import OpenAICompatibleSetup, TongyiSetup, VLLMConnection, VLLMSetup
from agentflow.integrations.openai_completions import Answer, Completion, completion_arguments
from agentflow.integrations.openai_connection import classified, strict_schema
from agentflow.integrations.openai_responses import Response, read_response
from agentflow.integrations.provider_errors import Failures

ASKED = ChatRequest(model="m", messages=[ChatMessage(content="hi")])
FAILURES = Failures("openai", ASKED)


def closed(**properties):
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def open_object(required=None, **properties):
    return {"type": "object", "properties": properties, "required": required or [*properties]}


def responses_body(*, is_streamed=False, model="m", **fields):
    request = ChatRequest(model=model, **fields)
    body = OpenAIResponsesConnection().body(request, dict(request.options), FAILURES, is_streamed=is_streamed)
    msgspec.json.encode(body)
    return body


def completion_body(*messages, returns_reasoning=False, **fields):
    request = ChatRequest(model="m", messages=list(messages), **fields)
    return completion_arguments(request, dict(request.options), FAILURES, returns_reasoning=returns_reasoning)


TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        (closed(a=TEXT), closed(a=TEXT)),
        (open_object(a=TEXT), closed(a=TEXT)),
        (open_object(a=open_object(b=TEXT)), closed(a=closed(b=TEXT))),
        (
            open_object(a={"type": "array", "items": open_object(b=TEXT)}),
            closed(a={"type": "array", "items": closed(b=TEXT)}),
        ),
        (open_object(a={"anyOf": [TEXT, {"type": "null"}]}), closed(a={"anyOf": [TEXT, {"type": "null"}]})),
        (
            open_object(a={"$ref": "#/$defs/B"}) | {"$defs": {"B": open_object(b=TEXT)}},
            closed(a={"$ref": "#/$defs/B"}) | {"$defs": {"B": closed(b=TEXT)}},
        ),
        (open_object(["a"], a=TEXT, b=TEXT), None),
        (open_object(a=TEXT) | {"additionalProperties": TEXT}, None),
        (open_object(a={"type": "object"}), None),
        (open_object(a={"type": "array"}), None),
        (open_object(a={"allOf": [TEXT]}), None),
        (open_object(a={"$ref": "#/$defs/B", "description": "x"}), None),
        ({"anyOf": [TEXT]}, None),
        ({"type": "object", "properties": {}}, None),
    ],
)
def test_schema_is_strict_only_where_every_property_is_wanted_and_no_other_can_come(schema, strict):
    assert strict_schema(schema) == strict


@pytest.mark.parametrize(
    ("said", "status", "kind"),
    [
        ({"code": "insufficient_quota", "message": "pay"}, 429, ModelRejected),
        ({"code": "rate_limit_exceeded", "message": "slow"}, 429, RateLimited),
        ({"code": "context_length_exceeded", "message": "x"}, 400, ContextTooLong),
        ({"code": None, "message": "Range of input length should be [1, 129024]"}, 400, ContextTooLong),
        ({"code": "content_filter", "message": "x"}, 400, ContentRefused),
        ({"code": "data_inspection_failed", "message": "x"}, 400, ContentRefused),
        ({"type": "invalid_request_error", "message": "x"}, 400, ModelRejected),
        ({"type": "invalid_request_error", "message": "x"}, 409, ModelUnavailable),
        ({"type": "invalid_request_error", "message": "x"}, None, ModelRejected),
        ({"type": "server_error", "message": "x"}, None, ModelUnavailable),
        ({"code": 429, "message": "x"}, None, RateLimited),
        ({"code": 502, "message": "x"}, None, ModelUnavailable),
        ({"code": "rate_limit_exceeded", "message": "x"}, None, RateLimited),
        ({}, None, ModelUnavailable),
    ],
)
def test_error_is_of_the_kind_that_the_provider_says(said, status, kind):
    assert type(classified(FAILURES, said, status)) is kind


def test_only_what_a_model_thought_since_the_last_question_goes_back():
    def thought(text):
        return [ReasoningPart(text, {"field": "reasoning_content"})]

    said = [
        ChatMessage(content="one"),
        ChatMessage("assistant", "1", reasoning=thought("old")),
        ChatMessage(content="two"),
        ChatMessage("assistant", "", [tool_call("f", {}, "c")], reasoning=thought("new")),
        ChatMessage("tool", "2", extra_args={"external_id": "c"}),
    ]
    sent = completion_body(*said, returns_reasoning=True)["messages"]
    assert [message.get("reasoning_content") for message in sent] == [None, None, None, "new", None]
    assert not [one for one in completion_body(*said)["messages"] if "reasoning_content" in one]


def test_what_a_tool_shows_is_shown_by_the_user_behind_all_results():
    calls = [tool_call("f", {}, "c"), tool_call("f", {}, "d")]
    shown = ChatMessage("tool", parts=[TextPart("see"), ImagePart(url="u")], extra_args={"external_id": "c"})
    other = ChatMessage("tool", "done", extra_args={"external_id": "d"})
    sent = completion_body(ChatMessage("assistant", tool_calls=calls), shown, other)["messages"]
    assert sent[1:] == [
        {"role": "tool", "tool_call_id": "c", "content": "see"},
        {"role": "tool", "tool_call_id": "d", "content": "done"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},
    ]


def test_id_of_a_call_that_is_too_long_is_cut_alike_in_call_and_result():
    call = tool_call("f", {}, "chatcmpl-tool-" + "0123456789abcdef" * 4)
    result = ChatMessage("tool", "x", extra_args={"external_id": call["original_id"]})
    sent = completion_body(ChatMessage("assistant", tool_calls=[call]), result)["messages"]
    assert sent[0]["tool_calls"][0]["id"] == sent[1]["tool_call_id"]
    assert len(sent[1]["tool_call_id"]) == 40


def test_file_goes_as_its_id_its_bytes_or_a_sound_and_not_by_its_url():
    files = [FilePart(file_id="file-1"), FilePart(data=b"x", name="a.pdf"), FilePart("audio/wav", data=b"x")]
    (sent,) = completion_body(ChatMessage(parts=[*files]))["messages"]
    assert sent["content"] == [
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,eA=="}},
        {"type": "input_audio", "input_audio": {"data": "eA==", "format": "wav"}},
    ]
    with pytest.raises(ModelRejected, match="URL"):
        completion_body(ChatMessage(parts=[FilePart(url="https://files.test/a.pdf")]))


def test_tools_are_strict_where_that_is_asked_for_and_their_schemas_allow_it():
    tools = [ToolMetadata("a", "", open_object(x=TEXT)), ToolMetadata("b", "", open_object(["x"], x=TEXT, y=TEXT))]
    sent = completion_body(tools=tools, options={"strict": True})["tools"]
    assert [tool["function"]["strict"] for tool in sent] == [True, False]
    assert [tool["function"]["parameters"] for tool in sent] == [closed(x=TEXT), tools[1].args_schema]
    assert [tool["function"]["strict"] for tool in completion_body(tools=tools)["tools"]] == [False, False]


def chunk(**delta):
    finish = delta.pop("finish", None)
    return msgspec.convert({"choices": [{"delta": delta, "finish_reason": finish}]}, Completion)


def call_piece(arguments="", **fields):
    name = fields.pop("name", None)
    return {"function": {"name": name, "arguments": arguments}, **fields}


@pytest.mark.parametrize(
    "pieces",
    [
        [call_piece('{"x"', index=0, id="a", name="f"), call_piece(":1}", index=0, id=""), call_piece("{}", index=1, id="b", name="g")],
        [call_piece('{"x":1}', id="a", name="f"), call_piece("{}", id="b", name="g")],
        [call_piece('{"x"', id="a", name="f"), call_piece(":1}"), call_piece("{}", id="b", name="g")],
        [call_piece('{"x":1}', index=0, id="a", name="f"), call_piece("{}", index=0, id="b", name="g")],
        [call_piece({"x": 1}, index=0, id="a", name="f"), call_piece(None, index=1, id="b", name="g")],
    ],
    ids=["indexed", "whole", "without-index", "all-indexed-0", "decoded"],
)  # fmt: skip
def test_pieces_of_calls_are_put_together_however_a_server_numbers_them(pieces):
    answer = Answer(ASKED, FAILURES, None)
    for piece in pieces:
        answer.add(chunk(tool_calls=[piece]))
    answer.add(chunk(finish="stop"))
    message = answer.message()
    assert message.tool_calls == [tool_call("f", {"x": 1}, "a"), tool_call("g", {}, "b")]
    assert message.finish_reason == "tool_calls"


def test_answer_may_come_in_parts_and_its_reasoning_by_another_name():
    answer = Answer(ASKED, FAILURES, None)
    answer.add(chunk(reasoning="hm", content=[{"type": "text", "text": "a"}, {"type": "thinking", "thinking": []}]))
    answer.add(chunk(content="b", finish="stop"))
    message = answer.message()
    assert (message.content, message.reasoning) == ("ab", [ReasoningPart("hm", {"field": "reasoning"})])
    assert message.usage is None


def test_reasoning_that_nobody_wants_is_left_out():
    answer = Answer(msgspec.structs.replace(ASKED, options={"extract_reasoning": False}), FAILURES, None)
    answer.add(chunk(reasoning_content="hm", content="a", finish="stop"))
    assert answer.message().reasoning == []


def test_probabilities_of_tokens_are_kept():
    answer = Answer(ASKED, FAILURES, None)
    for token in "ab":
        answer.add(
            msgspec.convert(
                {"choices": [{"delta": {"content": token}, "logprobs": {"content": [{"token": token}]}}]}, Completion
            )
        )
    answer.add(chunk(finish="stop"))
    assert answer.message().extra_args["logprobs"] == [{"token": "a"}, {"token": "b"}]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"error": {"code": 502, "message": "upstream"}}, ModelUnavailable),
        ({"error": "busy"}, ModelUnavailable),
        ({"choices": []}, ModelUnavailable),
        ({"choices": [{"message": {"content": "x"}, "finish_reason": "abort"}]}, ModelUnavailable),
        ({"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}, ContentRefused),
    ],
)
def test_body_that_is_no_answer_is_an_error(given, kind):
    answer = Answer(ASKED, FAILURES, None)
    with pytest.raises(kind):
        (answer.add(msgspec.convert(given, Completion)), answer.message())


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"status": "failed", "error": {"code": "server_error", "message": "x"}}, ModelUnavailable),
        ({"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "x"}}, RateLimited),
        ({"status": "cancelled"}, ModelUnavailable),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, ContentRefused),
    ],
)
def test_response_that_is_no_answer_is_an_error(given, kind):
    with pytest.raises(kind):
        read_response(msgspec.convert({"output": [], **given}, Response), ASKED, FAILURES)


def test_what_a_response_thought_goes_back_as_it_came_and_encrypted():
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "xyz"}
    given = {"status": "completed", "output": [item | {"status": None}]}
    message = read_response(msgspec.convert(given, Response), ASKED, FAILURES)
    assert message.reasoning == [ReasoningPart("", item)]
    body = responses_body(model="gpt-5-mini", messages=[message])
    assert body["input"] == [item]
    assert (body["store"], body["include"]) == (False, ["reasoning.encrypted_content"])
    assert "include" not in responses_body(model="gpt-4o", messages=[])


def test_options_of_completions_are_translated_for_responses():
    options = {
        "max_tokens": 7,
        "reasoning_effort": "low",
        "reasoning_summary": "auto",
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "extra_body": {"service_tier": "flex"},
    }
    body = responses_body(messages=[], options=options, output_schema=open_object(a=TEXT), output_name="My Answer")
    assert body["max_output_tokens"] == 7
    assert body["reasoning"] == {"effort": "low", "summary": "auto"}
    assert body["tool_choice"] == {"type": "function", "name": "f"}
    assert body["service_tier"] == "flex"
    form = {"type": "json_schema", "name": "My_Answer", "schema": closed(a=TEXT), "strict": True}
    assert body["text"] == {"format": form}
    assert not {"max_tokens", "reasoning_effort", "extra_body"} & body.keys()


@pytest.mark.parametrize(
    ("setup", "expected"),
    [
        (OpenAICompletionsSetup(), {"temperature": 0.1}),
        (OpenAICompletionsSetup(model="gpt-5-mini", max_tokens=5), {"max_completion_tokens": 5}),
        (OpenAICompletionsSetup(model="gpt-5-mini", temperature=1.0), {"temperature": 1.0}),
        (
            OpenAICompletionsSetup(max_tokens=5, logprobs=True, top_logprobs=2, strict=True, reasoning_effort="low"),
            {
                "temperature": 0.1,
                "max_tokens": 5,
                "logprobs": True,
                "top_logprobs": 2,
                "strict": True,
                "reasoning_effort": "low",
            },
        ),
        (OpenAICompletionsSetup(additional_kwargs={"seed": 3}), {"temperature": 0.1, "seed": 3}),
        (OpenAIResponsesSetup(model="o3", reasoning_summary="auto"), {"reasoning_summary": "auto"}),
        (AzureOpenAISetup(model="mine", model_of_azure_deployment="o3"), {}),
        (AzureOpenAISetup(model="mine"), {"temperature": 0.1}),
        (OpenAICompatibleSetup(model="x"), {"temperature": 0.1, "extract_reasoning": True}),
        (VLLMSetup(model="x", temperature=0.0), {"temperature": 0.0, "extract_reasoning": True}),
        (TongyiSetup(extract_reasoning=False), {"temperature": 0.7, "extract_reasoning": False}),
        (LiteLLMSetup(model="openai/o3", max_tokens=2), {"max_tokens": 2}),
    ],
)
def test_setup_hands_on_what_its_model_takes(setup, expected):
    assert setup.model_kwargs == expected


def test_setups_have_the_models_of_flink_agents():
    models = [kind().model for kind in (OpenAICompletionsSetup, OpenAIResponsesSetup, TongyiSetup, AzureOpenAISetup)]
    assert models == ["gpt-4o-mini", "gpt-4o-mini", "qwen-plus", ""]


@pytest.mark.parametrize(
    ("connection", "model", "is_native"),
    [
        (OpenAICompletionsConnection(), "gpt-4o-mini", True),
        (OpenAICompletionsConnection(), "gpt-4.1", True),
        (OpenAICompletionsConnection(), "gpt-5-mini", True),
        (OpenAICompletionsConnection(), "gpt-4-turbo", False),
        (OpenAICompletionsConnection(), "gpt-4", False),
        (OpenAICompletionsConnection(), "gpt-3.5-turbo", False),
        (AzureOpenAIConnection(api_version="2024-10-21"), "mine", True),
        (AzureOpenAIConnection(api_version="2024-02-01"), "mine", False),
        (VLLMConnection(), "any", True),
    ],
)
def test_schema_is_left_to_the_provider_where_it_enforces_one(connection, model, is_native):
    assert connection.supports_native_structured_output(model) is is_native


@pytest.mark.parametrize(
    ("connection", "address"),
    [
        (OpenAICompletionsConnection(), ("api.openai.com", 443)),
        (OpenAICompletionsConnection(api_base_url="http://there:1/v1"), ("there", 1)),
        (AzureOpenAIConnection(azure_endpoint="https://mine.openai.azure.com"), ("mine.openai.azure.com", 443)),
        (VLLMConnection(), ("localhost", 8000)),
        (LiteLLMConnection(), ("", None)),
    ],
)
def test_address_is_where_calls_go(connection, address):
    assert connection.address == address

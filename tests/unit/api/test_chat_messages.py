"""Messages: what they say, and that they come back from events and memory as they were."""

from __future__ import annotations

import msgspec
import pytest

from agentflow.api.chat_events import ChatRequestEvent
from agentflow.api.chat_messages import (
    ChatMessage,
    FilePart,
    ImagePart,
    MessageRole,
    ReasoningPart,
    TextPart,
    Usage,
    read_message,
    read_messages,
    recordable_arguments,
    tool_call,
    tool_message,
)
from agentflow.api.encoding import encode_json, encode_msgpack

FULL = ChatMessage(
    MessageRole.ASSISTANT,
    "look",
    [tool_call("find", {"a": [1, None, {"b": 1.5}]}, "c1"), {**tool_call("find", "{bad", "c2"), "id": "run/1"}],
    {"structured_output": {"x": [1]}, "model_name": "m"},
    [
        TextPart("a", cache=True),
        ImagePart("image/jpeg", b"\x00\xff"),
        ImagePart(url="https://x"),
        FilePart(file_id="f", name="n"),
    ],
    [ReasoningPart("hm", {"signature": "s", "encrypted": b"\x01"})],
    Usage(10, 5, 3, 2, 1),
    "tool_calls",
    cache=True,
)


@pytest.mark.parametrize(
    "message", [FULL, ChatMessage(), ChatMessage(content="x"), ChatMessage("system", "ä\U0001f600")]
)
def test_a_message_comes_back_from_an_event_as_it_was(message):
    assert read_message(msgspec.msgpack.decode(encode_msgpack(message))) == message
    assert read_messages(msgspec.msgpack.decode(encode_msgpack([message, "hi"]))) == [
        message,
        ChatMessage(content="hi"),
    ]


def test_a_message_comes_back_from_json_but_for_bytes_that_nobody_declares():
    plain = msgspec.structs.replace(FULL, reasoning=[])
    assert read_message(msgspec.json.decode(encode_json(plain))) == plain


def test_an_empty_message_is_encoded_as_nothing():
    assert msgspec.msgpack.decode(encode_msgpack(ChatMessage())) == {}
    assert msgspec.msgpack.decode(encode_msgpack(ChatMessage(content="x"))) == {"content": "x"}
    assert msgspec.msgpack.decode(encode_msgpack(ChatMessage(MessageRole.TOOL))) == {"role": "tool"}


def test_read_messages_are_copies_but_for_messages_that_were_never_encoded():
    message = ChatMessage(content="x")
    assert read_message(message) is message
    assert read_messages(["a", {"role": "system", "content": "b"}, message]) == [
        ChatMessage(content="a"),
        ChatMessage("system", "b"),
        message,
    ]


@pytest.mark.parametrize(
    "value", [5, ["x"], {"content": 5}, {"parts": [{"type": "sound"}]}, {"text": "x"}, {"parts": [{"type": "image"}]}]
)
def test_what_is_no_message_is_a_value_error_that_says_what_one_is(value):
    with pytest.raises(ValueError, match=r"this is no message: .*; a message is a text, a ChatMessage, or \{'role'"):
        read_message(value)


def test_a_role_is_one_of_four():
    assert [ChatMessage(role).role for role in MessageRole] == ["system", "user", "assistant", "tool"]
    with pytest.raises(ValueError, match="'bob' is no role of a message"):
        ChatMessage("bob")


@pytest.mark.parametrize("kind", [ImagePart, FilePart])
def test_an_attachment_is_something_or_somewhere(kind):
    assert (kind(data=b"x").data, kind(url="https://a").url) == (b"x", "https://a")
    with pytest.raises(ValueError, match=f"{kind.__name__} has neither data nor a url"):
        kind()


@pytest.mark.parametrize("one", ["hello", ChatMessage(content="hello"), {"role": "user", "content": "hello"}])
def test_one_message_is_a_conversation_too(one):
    assert [message.text for message in read_messages(one)] == ["hello"]
    assert [message.text for message in ChatRequestEvent("m", one).messages] == ["hello"]


def test_the_text_of_a_message_is_its_content_or_that_of_its_parts():
    assert ChatMessage(content="a").text == "a"
    assert ChatMessage(parts=[TextPart("a"), ImagePart(data=b"x"), TextPart("b")]).text == "ab"
    assert ChatMessage().text == ""


def test_a_message_is_empty_when_it_says_nothing():
    assert ChatMessage().is_empty
    assert ChatMessage("assistant", reasoning=[ReasoningPart("hm")]).is_empty
    assert not ChatMessage(content="a").is_empty
    assert not ChatMessage(parts=[ImagePart(data=b"x")]).is_empty
    assert not ChatMessage(tool_calls=[tool_call("f", {})]).is_empty


def test_the_output_of_a_message_is_that_of_the_schema():
    assert FULL.output == {"x": [1]}
    assert ChatMessage().output is None


def test_usage_adds_up():
    assert Usage(1, 2, 3, 4, 5) + Usage(10, 20, 30, 40, 50) == Usage(11, 22, 33, 44, 55)
    assert sum([Usage(1), Usage(2)], Usage()) == Usage(3)


@pytest.mark.parametrize(
    ("call", "external_id"),
    [
        (tool_call("f", {}, "provider"), "provider"),
        ({**tool_call("f", {}, "provider"), "id": "run/1"}, "provider"),
        ({**tool_call("f", {}), "id": "run/1"}, "run/1"),
        (tool_call("f", {}), ""),
    ],
)
def test_an_answer_names_the_call_as_its_provider_does(call, external_id):
    message = tool_message(call, "found")
    assert (message.role, message.content, message.extra_args) == ("tool", "found", {"external_id": external_id})


def test_messages_share_no_defaults():
    one = ChatMessage()
    one.tool_calls.append(tool_call("f", {}))
    one.extra_args["a"] = 1
    assert ChatMessage() == ChatMessage("user", "", [], {})


PIXEL = ImagePart(data=b"\x01")


def test_content_beside_parts_without_a_text_is_said_before_them_and_stored_as_it_was():
    message = ChatMessage(content="What is this?", parts=[PIXEL])
    assert message.said == [TextPart("What is this?"), PIXEL]
    assert read_message(msgspec.msgpack.decode(encode_msgpack(message))) == message
    assert message.parts == [PIXEL]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (ChatMessage(), []),
        (ChatMessage(content="a"), [TextPart("a")]),
        (ChatMessage(parts=[PIXEL]), [PIXEL]),
        (ChatMessage(content="a", parts=[TextPart("b"), PIXEL]), [TextPart("b"), PIXEL]),
    ],
)
def test_what_is_said_is_the_parts_or_the_content(message, said):
    assert message.said == said


@pytest.mark.parametrize("value", [10**30, -(2**63) - 1, 2**64, float("nan"), float("inf"), "\ud83d"])
def test_arguments_that_no_record_can_hold_are_a_text(value):
    for arguments in ({"a": value}, {"a": [{"b": value}]}):
        text = recordable_arguments(arguments)
        assert isinstance(text, str)
        assert '"a"' in text
        encode_msgpack(text)


def test_arguments_are_a_text_where_they_are_nested_deeply_and_never_an_error():
    nested: object = 1
    for _ in range(20_000):
        nested = [nested]
    assert isinstance(recordable_arguments({"a": nested}), str)


def test_arguments_at_the_limits_of_records_are_an_object():
    arguments = {"a": [2**64 - 1, -(2**63), True, None, 1.5, {"ä": "\U0001f600"}]}
    assert recordable_arguments(arguments) is arguments

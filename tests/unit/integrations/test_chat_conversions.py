"""What adapters of chat models have in common."""

from __future__ import annotations

import msgspec
import pytest

from agentflow.api.chat_messages import ChatMessage, TextPart, tool_call
from agentflow.integrations.chat_conversions import (
    add_turn,
    decoded,
    enforced_schema,
    given_arguments,
    parsed_arguments,
    parts_of,
    plain_id,
    sent_arguments,
)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [("", {}), (" ", {}), ('{"a": 1}', {"a": 1}), ('{"a": 1', '{"a": 1'), ("[1]", "[1]"), ("null", "null")],
)
def test_arguments_that_are_no_object_stay_the_models_own_text(text, arguments):
    assert parsed_arguments(text) == arguments


@pytest.mark.parametrize(("value", "arguments"), [({"a": 1}, {"a": 1}), ("no", "no"), ([1], "[1]"), (None, "null")])
def test_decoded_arguments_are_an_object_or_a_text(value, arguments):
    assert given_arguments(value) == arguments


def test_text_in_the_place_of_arguments_goes_back_as_an_object():
    assert sent_arguments(tool_call("f", "{oops")) == {"arguments": "{oops"}
    assert sent_arguments(tool_call("f", {"a": 1})) == {"a": 1}


def test_id_of_another_provider_is_made_plain_and_keeps_its_end():
    assert plain_id("toolu_1-a") == "toolu_1-a"
    assert plain_id("run/7:2") == "run_7_2"
    assert plain_id("x" * 100 + "-17") == "x" * 61 + "-17"


def test_turns_of_the_same_speaker_are_one():
    turns = []
    for role, said in [("user", ["a"]), ("user", ["b"]), ("assistant", []), ("user", ["c"]), ("assistant", ["d"])]:
        add_turn(turns, role, "content", said)
    assert turns == [{"role": "user", "content": ["a", "b", "c"]}, {"role": "assistant", "content": ["d"]}]


def test_texts_that_say_nothing_are_left_out():
    assert parts_of(ChatMessage()) == []
    assert parts_of(ChatMessage(parts=[TextPart(""), TextPart("a")])) == [TextPart("a")]


def test_enforced_schema_closes_objects_at_every_depth():
    item = {"type": "object", "properties": {"n": {"type": "integer"}}}
    schema = {"type": "object", "properties": {"all": {"type": "array", "items": item}}, "$defs": {"Item": item}}
    enforced = enforced_schema(schema)
    closed = item | {"additionalProperties": False}
    assert enforced["additionalProperties"] is False
    assert enforced["properties"]["all"]["items"] == closed
    assert enforced["$defs"] == {"Item": closed}
    assert "additionalProperties" not in item, "what was given is not changed"


def test_enforced_schema_says_in_words_what_cannot_be_enforced():
    assert enforced_schema({"type": "integer", "minimum": 1, "description": "A number."}) == {
        "type": "integer",
        "description": "A number.\n{minimum: 1}",
    }
    assert enforced_schema({"type": "array", "items": {"type": "string"}, "minItems": 3})["description"]
    assert enforced_schema({"type": "string", "format": "date"}) == {"type": "string", "format": "date"}
    assert enforced_schema({"type": "string", "format": "color"})["description"] == "{format: color}"


def test_enforced_schema_keeps_alternatives():
    either = [{"type": "string"}, {"type": "null"}]
    assert enforced_schema({"oneOf": either}) == {"anyOf": either}
    assert enforced_schema({"anyOf": either, "default": None}) == {"anyOf": either, "description": "{default: None}"}


@pytest.mark.parametrize(
    "text",
    [
        '{"n": 1000000000000000000000000000000}',
        '{"n": [{"m": -9223372036854775809}]}',
        '{"n": NaN}',
        '{"n": 1e400}',
        '{"s": "\\ud83d"}',
        '{"n": ' + "[" * 500 + "]" * 500 + "}",
        '{"n": ' + "[" * 5_000 + "]" * 5_000 + "}",
    ],
)
def test_arguments_that_no_record_can_hold_stay_the_models_own_text(text):
    assert parsed_arguments(text) == text


def test_decoded_arguments_that_no_record_can_hold_are_their_text():
    assert given_arguments({"n": 10**30}) == '{"n":1000000000000000000000000000000}'
    assert given_arguments({"s": "\ud83d"}) == '{"s":"\\ud83d"}'
    assert given_arguments({"n": float("nan")}) == '{"n":NaN}'


def test_half_a_character_in_an_answer_is_no_reason_to_call_again():
    decoder = msgspec.json.Decoder(dict[str, str])
    assert decoded(b'{"a": "x\\ud83d"}', decoder) == {"a": "x\ud83d"}
    for body in (b'{"a": 1}', b'{"a": "', b"[" * 5_000 + b"]" * 5_000):
        with pytest.raises(msgspec.DecodeError):
            decoded(body, decoder)

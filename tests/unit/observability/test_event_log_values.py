"""How values are shown: what is cut, and what is proved to be fit without being looked at."""

from __future__ import annotations

import base64

import msgspec
import pytest

from agentflow.api.codecs import CODECS, JSON, MSGPACK
from agentflow.observability.event_log_values import Truncation, ValueForm, shown_key
from agentflow.runtime.redaction import Redaction
from agentflow.runtime.settings import RedactionSettings, TruncationSettings

DEFAULTS = TruncationSettings()


def cut(value, *limits):
    return Truncation(TruncationSettings(*limits) if limits else DEFAULTS).value(value, 1)


def form(codec=JSON, name="input", truncation=DEFAULTS, **rules):
    one = ValueForm(codec, Redaction(RedactionSettings(**rules)), Truncation(truncation) if truncation else None, name)
    one._eager = 0  # what is shown at once is proved
    return one


def test_long_texts_keep_their_beginning_and_say_what_is_left_out():
    assert cut({"t": "x" * 2_001}) == {"t": {"truncatedString": "x" * 2_000 + "...", "omittedChars": 1}}
    assert cut({"t": "x" * 2_000}) == {"t": "x" * 2_000}
    assert cut({"t": ["é" * 5]}, 4, 20, 5) == {"t": [{"truncatedString": "éééé...", "omittedChars": 1}]}


def test_long_lists_keep_their_first_elements_and_what_is_kept_is_cut_too():
    assert cut({"l": list(range(21))}) == {"l": {"truncatedList": list(range(20)), "omittedElements": 1}}
    nested = {"l": [[1, 2, 3], ["abc"]], "m": [{"n": [1, 2, 3]}]}
    assert cut(nested, 2, 2, 9) == {
        "l": [{"truncatedList": [1, 2], "omittedElements": 1}, [{"truncatedString": "ab...", "omittedChars": 1}]],
        "m": [{"n": {"truncatedList": [1, 2], "omittedElements": 1}}],
    }


def test_objects_at_the_greatest_depth_keep_their_plain_fields():
    value = {"a": {"b": {"plain": 1, "text": "long", "o": {}, "l": []}}}
    assert cut(value, 2, 20, 3) == {
        "a": {
            "b": {
                "truncatedObject": {"plain": 1, "text": {"truncatedString": "lo...", "omittedChars": 2}},
                "omittedFields": 2,
            }
        }
    }
    assert cut({"a": {"b": {"plain": 1}}}, 9, 20, 3) == {"a": {"b": {"plain": 1}}}


def test_objects_in_lists_are_as_deep_as_their_list():
    assert cut({"l": [{"o": {"p": {}}}]}, 0, 0, 3) == {"l": [{"o": {"truncatedObject": {}, "omittedFields": 1}}]}
    assert cut({"l": [[{"o": {}}]]}, 0, 0, 3) == {"l": [[{"truncatedObject": {}, "omittedFields": 1}]]}


def test_attributes_themselves_are_cut_at_depth_1():
    shown = form(truncation=TruncationSettings(0, 0, 1)).render(b'{"a": 1}')
    assert msgspec.json.decode(shown) == {"truncatedObject": {}, "omittedFields": 1}
    assert msgspec.json.decode(form(truncation=TruncationSettings(0, 0, 1)).render(b"5")) == {"input": 5}


@pytest.mark.parametrize("limits", [(0, 20, 5), (2000, 0, 5), (2000, 20, 0)])
def test_a_limit_of_0_limits_nothing(limits):
    value = {"t": "x" * 3_000, "l": list(range(50)), "a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}
    shown = cut(value, *limits)
    for name, limit in zip(value, limits, strict=True):
        assert (shown[name] == value[name]) is (limit == 0)
    assert cut(value, 0, 0, 0) is value


# -- proofs
def test_a_value_like_one_that_was_seen_is_shown_as_it_is():
    one = form()
    assert one.shown(b'{"a":1,"b":{"c":[1,2]}}') is None
    assert one.render(b'{"a":1,"b":{"c":[1,2]}}') == b'{"a":1,"b":{"c":[1,2]}}'
    for value in (b'{"b":{"c":[]},"a":2.5}', b'{ "a" : null }', b"{}", b'{"a":true}', b'{"b":{"c":[null]}}'):
        assert one.shown(value) == value


@pytest.mark.parametrize(
    "value",
    [
        b'{"pass\\u0077ord":"x"}', b'{"a":{"password":"x"}}', b'{"l":[{"api_key":1}]}', b'{"max_tokens":"x"}', b'{"none":"secret?"}',
        b'{"a":"%s"}' % (b"x" * 2_001), b'{"l":[%s]}' % b",".join([b"1"] * 21), b'["a"]',
    ],
)  # fmt: skip
def test_no_other_value_is_proved(value):
    one = form()
    one.render(b'{"a":"x","l":[1],"max_tokens":5,"none":null}')
    assert one.shown(b'{"a":"y"}') is not None
    assert one.shown(value) is None


def test_what_is_not_proved_is_shown_all_the_same():
    one = form()
    assert one.render(b'{"pass\\u0077ord":"x"}') == b'{"password":"***"}'
    assert msgspec.json.decode(one.render(b"\xff\xfe")) == "//4="
    assert msgspec.json.decode(one.render(b"{broken")) == "{broken"
    assert one.render(None) == b"null"
    deep = b"[" * 3_000 + b"]" * 3_000
    assert msgspec.json.decode(form(truncation=None).render(deep)) is not None


@pytest.mark.parametrize(
    "payload",
    [
        b'{"k":"c","api_key":"sk-1"',
        b'\xef\xbb\xbf{"k":"c","api_key":"sk-1"}',
        b'"k":"c","api_key":"sk-1"',
        b'{"k":"c","api_key":"sk-1\xff"}',
        b"{'k':\"c\",'api_key':'sk-1'}",
        b'{"k":"c","x":NaN,"api_key":"sk-1"}',
    ],
)
def test_what_cannot_be_decoded_is_shown_without_what_looks_like_a_secret(payload):
    for codec in (JSON, MSGPACK):
        shown = form(codec).render(payload)
        assert b"sk-1" not in shown
        assert base64.b64encode(b"sk-1")[:4] not in shown
        assert b'"c' in shown or b'c\\"' in shown
    assert msgspec.json.decode(form(paths=("$.n.m",)).render(payload)) == "***"
    assert form(fields=("input",)).render(payload) == b'"***"'


def test_events_in_msgpack_are_shown_as_json_by_the_proof():
    one = form(MSGPACK, "")
    payload = msgspec.msgpack.encode({"a": 1, "b": None})
    assert one.shown(payload) is None
    one.render(payload)
    assert one.shown(payload) == b'{"a":1,"b":null}'
    assert one.shown(msgspec.msgpack.encode({"a": b"bytes"})) is None
    assert one.shown(msgspec.msgpack.encode({"a": '{"token": 1}'})) is None


@pytest.mark.parametrize("rules", [{"patterns": ("x+",)}, {"paths": ("$.items[0].card",)}])
def test_rules_that_no_shape_can_tell_let_nothing_be_proved(rules):
    one = form(**rules)
    one.render(b'{"a":1}')
    assert one.shown(b'{"a":1}') is None


@pytest.mark.parametrize("path", ["$.doc[*]", "$.*.doc[*]", "$.input.doc[*]", "$.docs[*][*]", "$.doc.card"])
@pytest.mark.parametrize("codec", [JSON, MSGPACK])
def test_a_text_that_a_path_leads_into_is_never_proved(path, codec):
    one = form(codec, paths=(path,))
    field = (lambda text: {"docs": [text]}) if "docs" in path else (lambda text: {"doc": text})
    one.render(codec.encode({**field("hello"), "n": 1}))
    assert one.shown(codec.encode({"n": 1})) == b'{"n":1}'
    secret = codec.encode(field("[4111,2222]"))
    assert one.shown(secret) is None
    assert (b"4111" in one.render(secret)) == (path == "$.doc.card")


def test_other_texts_are_proved_all_the_same():
    one = form(paths=("$.doc[*]",))
    one.render(b'{"doc":"hello","other":"hello","l":["hello"]}')
    value = b'{"other":"[4111]","l":["[4111]"],"doc":5}'
    assert one.shown(value) == value


def test_a_form_stops_learning_from_names_that_are_data():
    one = form()
    for number in range(500):
        one.render(b'{"n%d":1}' % number)
    assert one.shown(b'{"n0":1}') == b'{"n0":1}'
    assert one.shown(b'{"n499":1}') is None


def test_names_that_no_struct_can_have_are_shown():
    one = form()
    for _ in range(2):
        assert one.render(b'{"a\\"b":1,"":2}') == b'{"a\\"b":1,"":2}'
    assert one.shown(b'{"a\\"b":1}') is None


def test_texts_and_bytes_are_shown_as_json():
    assert form(CODECS["string"]).render(b'say "hi"') == b'"say \\"hi\\""'
    assert form(CODECS["bytes"]).render(b"\xff") == b'"/w=="'
    assert msgspec.json.decode(form(CODECS["bytes"]).render(b"\xff" * 3_000))["omittedChars"] == 2_000


def test_the_first_values_are_shown_at_once_so_that_the_next_ones_are_proved():
    one = ValueForm(JSON, Redaction(), None, "input")
    assert one.shown(b'{"a":1,"token":"x"}') == b'{"a":1,"token":"***"}'
    assert one.shown(b'{"a":1}') == b'{"a":1}'
    one._eager = 0
    assert one.shown(b'{"a":2}') == b'{"a":2}'
    assert one.shown(b'{"a":2,"token":"x"}') is None


def test_keys_are_shown_whatever_they_are():
    def shown(value, **rules):
        return shown_key(Redaction(RedactionSettings(**rules)), msgspec.msgpack.encode(value))

    assert shown("a") == b'"a"'
    assert shown([1, {"token": "x"}]) == b'[1,{"token":"***"}]'
    assert shown("a", key=True) == shown("[" * 20_000) == b'"***"'
    assert shown({(1, 2): 3}) == b'{"(1, 2)":3}'
    assert shown_key(Redaction(), b"\xc1") == b'"<nested too deep>"'


def test_omissions_are_counted():
    truncation = Truncation(TruncationSettings(3))
    one = ValueForm(JSON, Redaction(), truncation, "input")
    for value in (b'"abc"', b'"abcd"', b'{"a":"abcd"}'):
        one.render(value)
    assert truncation.omissions == 2

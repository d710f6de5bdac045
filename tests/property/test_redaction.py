"""Redaction never leaves a secret that a rule names, whatever it lies in, in whatever form; and the event log's fast way neither."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agentflow.api.codecs import JSON, MSGPACK
from agentflow.observability.event_log_values import Truncation, ValueForm
from agentflow.runtime.redaction import Redaction
from agentflow.runtime.settings import RedactionSettings, TruncationSettings

SECRET = "SEKRET-7319"  # no name has it, and nothing that hypothesis draws
NAMES = st.sampled_from(
    ["a", "b", "items", "card", "customer", "email", "name", "n", "Password", "api-key", "max_tokens", "iban"]
)
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 2**40), st.floats(allow_nan=False), st.text(max_size=8), st.just("x")
)
TEXT_BEFORE_AND_AFTER = st.sampled_from(["", " ", "\n", '"', "\\", "ü", "{", "["])


def hidden_in(value: object, form: str) -> object:
    """Return a value in another form, as tools have their arguments."""
    if form == "json":
        return msgspec.json.encode(value).decode()
    return [value] if form == "list" else value


@st.composite
def values_with_secrets(draw, rule):
    """Draw a value whose secret is where ``rule`` names it, below anything."""
    if rule == "pattern":
        secret = draw(TEXT_BEFORE_AND_AFTER) + SECRET + draw(TEXT_BEFORE_AND_AFTER)
        core = draw(st.sampled_from([secret, {secret: 1}, [secret], {"n": secret}, {"a": {secret: secret}}]))
    elif rule == "name":
        inner = draw(st.sampled_from([SECRET, [SECRET], {"x": SECRET}, {"x": [{"y": SECRET}]}]))
        core = {draw(st.sampled_from(["Password", "api-key", "iban", "auth_token", "X-API-Key"])): inner}
    else:
        return {"customer": {"email": draw(st.sampled_from([SECRET, [SECRET], {"x": SECRET}]))}, "n": draw(PLAIN)}
    for _ in range(draw(st.integers(0, 6))):
        core = hidden_in(core, draw(st.sampled_from(["as it is", "list", "json"])))
        around = draw(st.dictionaries(NAMES, PLAIN, max_size=3))
        core = (
            {**around, draw(st.sampled_from(["a", "b", "items", "n"])): core}
            if draw(st.booleans())
            else [draw(PLAIN), core]
        )
    return core


RULES = RedactionSettings(fields=("iban",), paths=("$.customer.email", "$.v.customer.email"))
PATTERNS = RedactionSettings(fields=("iban",), patterns=("SEKRET-[0-9]+",))


@given(st.one_of(values_with_secrets("name"), values_with_secrets("path")))
def test_no_secret_that_a_name_or_path_tells_is_left(value):
    assert SECRET not in msgspec.json.encode(Redaction(RULES).value(value)).decode()


@given(values_with_secrets("pattern"))
def test_no_secret_that_a_pattern_tells_is_left(value):
    assert SECRET not in msgspec.json.encode(Redaction(PATTERNS).value(value)).decode()


HARMLESS = st.recursive(
    PLAIN,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=12,
)


@given(
    st.lists(st.one_of(HARMLESS, values_with_secrets("name"), values_with_secrets("path")), min_size=1, max_size=8),
    st.sampled_from([JSON, MSGPACK]),
    st.sampled_from(
        [
            TruncationSettings(),
            TruncationSettings(5, 2, 2),
            TruncationSettings(0, 0, 0),
            TruncationSettings(3, 1, 1),
            None,
        ]
    ),
    st.sampled_from(["input", ""]),
)
def test_the_fast_way_shows_what_the_slow_way_shows(values, codec, truncation, name):
    """A form that has learned from some values shows the next ones as one does that looks at each."""
    redaction = Redaction(RULES)
    cut = None if truncation is None else Truncation(truncation)
    learned, careful = ValueForm(codec, redaction, cut, name), ValueForm(codec, redaction, cut, name)
    for value in values + values:
        payload = codec.encode(value if name else {"v": value})
        wanted = careful.render(payload)
        careful = ValueForm(codec, redaction, cut, name)  # it learns nothing
        shown = learned.shown(payload)
        shown = learned.render(payload) if shown is None else shown
        assert SECRET.encode() not in shown
        assert msgspec.json.decode(shown) == msgspec.json.decode(wanted)
        assert b"\n" not in shown


@given(HARMLESS, st.integers(1, 30), st.integers(1, 5), st.integers(2, 6))
def test_truncation_says_what_it_leaves_out_and_keeps_the_rest(value, chars, elements, depth):
    def check(was, shown):
        if isinstance(was, str) and len(was) > chars:
            assert shown == {"truncatedString": was[:chars] + "...", "omittedChars": len(was) - chars}
        elif isinstance(was, list):
            if len(was) > elements:
                assert shown["omittedElements"] == len(was) - elements
                was, shown = was[:elements], shown["truncatedList"]
            assert len(was) == len(shown)
            for one, other in zip(was, shown, strict=True):
                check(one, other)
        elif isinstance(was, dict):
            if "truncatedObject" in shown:
                kept = {name: inner for name, inner in was.items() if not isinstance(inner, dict | list)}
                assert shown["omittedFields"] == len(was) - len(kept) > 0
                was, shown = kept, shown["truncatedObject"]
            assert list(was) == list(shown)
            for name, inner in was.items():
                check(inner, shown[name])
        else:
            assert shown == was

    attributes = {"input": value}
    check(attributes, Truncation(TruncationSettings(chars, elements, depth)).value(attributes, 1))
    assert Truncation(TruncationSettings(0, 0, 0)).value(value, 1) is value

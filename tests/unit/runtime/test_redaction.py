"""What rules of redaction name is never seen, and everything else is."""

from __future__ import annotations

import time

import msgspec
import pytest

from agentflow.errors import ConfigError
from agentflow.runtime.redaction import MASK, Redaction
from agentflow.runtime.settings import RedactionSettings

CARDS = r"\b\d{4}-\d{4}-\d{4}-\d{4}\b"


def redacted(value, within="", **rules):
    return Redaction(RedactionSettings(**rules)).value(value, within)


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "PASSWD",
        "client_secret",
        "access-token",
        "apiKey",
        "API_KEY",
        "x-api-key",
        "Authorization",
        "credentials",
        "private-key",
    ],
)
def test_fields_are_secret_by_their_name(name):
    assert redacted({name: "x", "other": [{name: {"deep": 1}}]}) == {name: MASK, "other": [{name: MASK}]}


@pytest.mark.parametrize("name", ["author", "keyboard", "monkey", "pass", "toke", "api", "key"])
def test_fields_that_only_look_a_little_like_it_are_not(name):
    value = {name: "x"}
    assert redacted(value) is value


def test_numbers_of_tokens_are_no_secrets_and_texts_of_such_fields_are():
    assert redacted({"max_tokens": 5, "totalTokens": 1.5, "token": 5}) == {
        "max_tokens": 5,
        "totalTokens": 1.5,
        "token": MASK,
    }
    assert redacted({"refresh_tokens": ["a"]}) == {"refresh_tokens": MASK}
    assert redacted({"max_tokens": 5}, fields=("max_tokens",)) == {"max_tokens": MASK}


def test_what_no_rule_names_is_the_same_object():
    value = {"a": [{"b": "text"}, 1, None, True], "c": '{"json": "inside"}', "password": None}
    assert redacted(value, paths=("$.x[*].y",), patterns=(CARDS,), fields=("iban",)) is value


def test_own_names_are_patterns_without_case_or_dashes():
    value = {"IBAN": 1, "home_phone": 2, "phone-nr": 3, "ib": 4}
    assert redacted(value, fields=("i-b-a-n", "*Phone*")) == {
        "IBAN": MASK,
        "home_phone": MASK,
        "phone-nr": MASK,
        "ib": 4,
    }
    assert redacted({"password": 1, "iban": 2}, fields=("iban",), secret_names=False) == {"password": 1, "iban": MASK}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("$.customer.email", {"customer": {"email": MASK, "mails": ["a", "b"]}, "items": [{"card": 1}, {"card": 2}]}),
        ("$.customer", {"customer": MASK, "items": [{"card": 1}, {"card": 2}]}),
        (
            "$.items[*].card",
            {"customer": {"email": "a", "mails": ["a", "b"]}, "items": [{"card": MASK}, {"card": MASK}]},
        ),
        ("$.items[1]", {"customer": {"email": "a", "mails": ["a", "b"]}, "items": [{"card": 1}, MASK]}),
        ("$.*.mails[0]", {"customer": {"email": "a", "mails": [MASK, "b"]}, "items": [{"card": 1}, {"card": 2}]}),
        (
            "$['customer']['email']",
            {"customer": {"email": MASK, "mails": ["a", "b"]}, "items": [{"card": 1}, {"card": 2}]},
        ),
    ],
)
def test_paths_name_places(path, expected):
    value = {"customer": {"email": "a", "mails": ["a", "b"]}, "items": [{"card": 1}, {"card": 2}]}
    assert redacted(value, paths=(path,)) == expected
    assert value["customer"]["email"] == "a"
    assert redacted({"input": value}, paths=(path.replace("$", "$.input"),)) == {"input": expected}
    assert (
        redacted(value, "input", paths=(path,))
        == redacted(value, "input", paths=(path.replace("$", "$.input"),))
        == expected
    )


def test_patterns_reach_texts_numbers_bytes_and_names():
    rules = {"patterns": (r"\b\d{16}\b",)}
    card = "4111111111111111"
    value = {
        "text": f"card {card}.",
        "number": int(card),
        "bytes": card.encode(),
        card: 1,
        "list": [card, 5],
        5: "five",
    }
    assert redacted(value, **rules) == {
        "text": f"card {MASK}.", "number": MASK, "bytes": MASK, MASK: 1, "list": [MASK, 5], 5: "five",
    }  # fmt: skip


def test_names_that_become_one_are_told_apart():
    assert redacted({"a1": 1, "a2": 2, MASK: 3}, patterns=(r"a\d",)) == {MASK: 1, f"{MASK} (2)": 2, f"{MASK} (3)": 3}


def test_json_inside_of_texts_is_looked_into():
    arguments = msgspec.json.encode({"query": "x", "api_key": "sk-1", "inner": '{"password": "y"}'}).decode()
    (text,) = redacted([arguments])
    found = msgspec.json.decode(text)
    assert (found["api_key"], msgspec.json.decode(found["inner"])) == (MASK, {"password": MASK})
    assert redacted({"a": arguments}, paths=("$.a.query",), secret_names=False)["a"].count(MASK) == 1
    assert redacted(["{no json", "[1"]) == ["{no json", "[1"]


@pytest.mark.parametrize(
    "text",
    [
        '{"n": 1, "api_key": "sk-1"',
        '{"n": 1, "api_key": "sk-1',
        '[{"api_key": "sk-1"},',
        '{"n": 1}\n{"api_key": "sk-1"}',
        '{"n": 1} {"inner": "{\\"api_key\\": \\"sk-1\\"}"}',
    ],
)
def test_what_begins_as_json_and_is_none_shows_no_value_of_a_secret_name(text):
    shown = redacted({"body": text})["body"]
    assert "sk-1" not in shown
    assert MASK in shown
    assert ('"n": 1' in shown) == ('"n": 1' in text)
    assert redacted({"body": text}, paths=("$.body.x",)) == {"body": MASK}, "nobody can tell where a path leads"


def test_what_python_writes_as_json_stays_what_it_is():
    text = '{"api_key": "sk", "x": NaN, "y": [-Infinity, "\\ud800"]}'
    assert redacted([text]) == [text.replace("sk", MASK)]
    assert redacted({"a": text}, paths=("$.a.y[0]",))["a"] == text.replace('"sk"', '"***"').replace(
        "-Infinity", '"***"'
    )
    harmless = text.replace("api_key", "name")
    assert redacted([harmless]) == [harmless]


def test_keys_nested_too_deep_to_look_at_are_not_shown():
    assert Redaction().key("[" * 20_000) == MASK
    assert Redaction(RedactionSettings(key=True)).key("[" * 20_000) == MASK


def test_hashes_are_the_same_for_the_same_value_and_key_and_no_others():
    rules = {"replacement": "hash", "hash_key": "0123456789abcdef"}
    one, two, other = redacted([{"token": "a"}, {"token": "a"}, {"token": "b"}], **rules)
    assert one == two != other
    assert one["token"].startswith("hash:")
    again = redacted({"token": "a"}, replacement="hash", hash_key="fedcba9876543210")
    assert again != one


def test_texts_for_people_lose_matches_and_named_values():
    redaction = Redaction(RedactionSettings(patterns=(CARDS,)))
    text = "401 for https://x.test/?api_key=sk-12&q=1 with Authorization: Bearer abc.def, card 4111-1111-1111-1111, max_tokens: 5"
    shown = redaction.text(text)
    assert (
        shown
        == f"401 for https://x.test/?api_key={MASK}&q=1 with Authorization: Bearer {MASK}, card {MASK}, max_tokens: 5"
    )
    assert redaction.text("{'password': 'hunter2', 'n': 1}") == f"{{'password': '{MASK}', 'n': 1}}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: token ghp_abc, then more", "Authorization: token ***, then more"),
        ("Authorization: ApiKey ghp_abc", "Authorization: ApiKey ***"),
        ("Proxy-Authorization: Basic dTpw==\nHost: x", "Proxy-Authorization: Basic ***\nHost: x"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=A/2, Signature=deadbeef\nHost: x", "Authorization: ***\nHost: x"),
        ('Authorization: Token token="abc", nonce="d"', "Authorization: ***"),
        ("curl -H 'Authorization: Own abc def' -d x", "curl -H 'Authorization: ***' -d x"),
        ("Authorization: Bearer\nHost: x", "Authorization: ***\nHost: x"),
        ("{'Authorization': b'Bearer sk', 'n': 1}", "{'Authorization': b'***', 'n': 1}"),
        ("{'Authorization': 'Own sk \\'s', 'n': 1}", "{'Authorization': '***', 'n': 1}"),
        ("passwords=['a', 'b'] n=1", "passwords=*** n=1"),
        ("credentials: {'u': 'a]', 'p': ('b', [1])}, n=1", "credentials: ***, n=1"),
        ("token=Token('sk', kind=[1]) n=1", "token=*** n=1"),
        ('password="a\\"b-secret" n=1', 'password="***" n=1'),
        ('password="a\\\\" n=1', 'password="***" n=1'),
        ('\'password="a\\\\"b-secret" n=1\'', "'password=\"***\" n=1'"),
        ('{\\"api_key\\": \\"s\\\\\\"k\\", \\"n\\": 1}', '{\\"api_key\\": \\"***\\", \\"n\\": 1}'),
        ('"{\\"api_key\\": \\"sk" n=1', '"{\\"api_key\\": \\"***" n=1'),
        ("('api_key', 'sk')", "('api_key', '***')"),
        ("[(b'x-token', b'sk'), (b'n', b'1')]", "[(b'x-token', b'***'), (b'n', b'1')]"),
        ("no 'token', 'n' or 'm'", "no 'token', 'n' or 'm'"),
        ("password='never closed", "password='***"),
        ("api_key=>sk, token == 'sk'", "api_key=>***, token == '***'"),
        ("https://x/?api_key=sk&token=zz#n", "https://x/?api_key=***&token=***"),
        ("tokens: 12, used_tokens=3.5, refresh_tokens=a", "tokens: 12, used_tokens=3.5, refresh_tokens=***"),
        ("password: basic", "password: ***"),
        ("the password: ", "the password: "),
    ],
)
def test_texts_for_people_lose_whole_values_whatever_they_are_written_as(text, expected):
    assert Redaction().text(text) == expected


@pytest.mark.parametrize(
    "part",
    ["a", "a ", "a=", " ", "\\", '\\"', "'", '"', "(", "token", "token=", "token ", "token: '\\", "token=\\", "token=(", "token=['",
     "('token',", "'token',", "authorization: ", "authorization: token ", "authorization: token a=", "a'authorization: "],
)  # fmt: skip
def test_a_text_takes_time_by_its_length_whatever_it_holds(part):
    text = part * (200_000 // len(part))
    began = time.process_time()
    for before in ("", "token=", "token: '", "authorization: ", '{"'):
        Redaction().text(before + text)
    assert time.process_time() - began < 10, "it would take minutes if it took the square"


def test_the_business_key_is_redacted_only_where_it_is_asked_for():
    assert Redaction().key("k") == "k"
    assert Redaction(RedactionSettings(key=True)).key("k") == MASK


def test_values_nested_too_deep_to_look_at_are_not_shown():
    value: object = {"password": "x"}
    for _ in range(5_000):
        value = [value]
    assert redacted(value) == MASK


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"patterns": ("(",)}, "redaction.patterns: '(' is no regular expression"),
        ({"patterns": ("x*",)}, "redaction.patterns: 'x*' matches an empty text"),
        ({"paths": ("customer",)}, "redaction.paths: 'customer' is no path; such as $.customer.email"),
        ({"paths": ("$",)}, "redaction.paths: '$' is no path"),
        ({"paths": ("$.a[x]",)}, "redaction.paths: '$.a[x]' is no path"),
        ({"fields": ("-_",)}, "redaction.fields: '-_' names no field"),
        ({"replacement": "hash"}, "redaction.hash-key: replacement: hash needs one"),
        ({"replacement": "hash", "hash_key": "short"}, "of 16 characters or more"),
    ],
)
def test_rules_that_cannot_be_read_are_refused(rules, said):
    with pytest.raises(ConfigError) as refused:
        Redaction(RedactionSettings(**rules))
    assert said in str(refused.value)


def test_the_key_of_hashes_is_not_in_the_text_of_settings():
    assert "0123456789abcdef" not in repr(RedactionSettings(replacement="hash", hash_key="0123456789abcdef"))

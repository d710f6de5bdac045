"""Secrets in texts that come in pieces."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow.runtime.secrets import Secrets, StreamScrubber

SECRETS = ("sk-secret-1", 'quo"ted-secret')


def remembering(*values: str) -> Secrets:
    secrets = Secrets({})
    secrets.remember({f"key_{place}": value for place, value in enumerate(values)})
    secrets.remember({"api_key": values[0], "token": values[-1]})
    return secrets


@given(
    st.lists(st.sampled_from([*SECRETS, "sk-", "sk-secret", "quo", "s", "plain ", '"', ""]), max_size=8),
    st.lists(st.integers(0, 80), max_size=12),
)
def test_pieces_show_what_the_whole_text_shows_however_it_is_cut(parts: list[str], cuts: list[int]) -> None:
    secrets, text = remembering(*SECRETS), "".join(parts)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    scrubber = StreamScrubber(secrets)
    shown = [scrubber.take(text[begin:end]) for begin, end in itertools.pairwise(places)]
    assert "".join(shown) + scrubber.rest() == secrets.scrub(text)


@pytest.mark.parametrize("piece", ["plain", "a sk- b", "s", ""])
def test_only_what_may_begin_a_secret_is_held_back(piece: str) -> None:
    scrubber = StreamScrubber(remembering(*SECRETS))
    held = "s" if piece.endswith("s") else ""
    assert scrubber.take(piece) == piece.removesuffix(held)
    assert scrubber.rest() == held


def test_nothing_is_held_back_where_there_are_no_secrets() -> None:
    scrubber = StreamScrubber(Secrets({}))
    assert (scrubber.take("sk-secret"), scrubber.rest()) == ("sk-secret", "")


@pytest.mark.parametrize(
    ("held", "value"), [("sk-1\n", "sk-1"), ("sk-1\r\n", "sk-1"), ("sk-1\n\n", "sk-1\n"), ("\nsk-1", "\nsk-1")]
)
@pytest.mark.parametrize("kind", ["env", "file"])
def test_a_reference_leads_to_what_is_held_without_the_line_end_behind_it(
    tmp_path, kind: str, held: str, value: str
) -> None:
    (tmp_path / "key").write_text(held, encoding="utf-8", newline="")
    reference = "${env:KEY}" if kind == "env" else f"${{file:{tmp_path / 'key'}}}"
    expected = value.replace("\r", "") if kind == "file" else value
    assert Secrets({"KEY": held}).resolve(reference, "api_key") == expected


@pytest.mark.parametrize(
    "secret", ["sk-secret\n", " sk-secret", "sk-\nsecret", "sk-\tse\"cr'et", "sk-sécret", "sk-\x01secret", "sk\\secret"]
)
def test_a_secret_is_left_out_however_a_text_writes_it(secret: str) -> None:
    secrets = Secrets({"KEY": secret})
    secrets.resolve("${env:KEY}", "api_key")
    written = [
        secret,
        secret.strip(),
        repr(secret),
        repr(secret.encode()),
        json.dumps(secret),
        json.dumps(secret, ensure_ascii=False),
    ]
    for text in written:
        assert "***" in secrets.scrub(text), text
        assert "sk" not in secrets.scrub(text), text

"""What providers say, in agentflow's words."""

from __future__ import annotations

import email.utils
import time

import pytest

from agentflow.api.chat_models import ChatRequest
from agentflow.errors import ContentRefused, ContextTooLong, ModelRejected, ModelUnavailable, RateLimited
from agentflow.integrations.provider_errors import Failures, kind_of, retry_after_s


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (429, "slow down", RateLimited),
        (408, "", ModelUnavailable),
        (409, "", ModelUnavailable),
        (424, "the model failed", ModelUnavailable),
        (500, "", ModelUnavailable),
        (529, "overloaded", ModelUnavailable),
        (400, "prompt is too long: 210000 tokens > 200000 maximum", ContextTooLong),
        (400, "Input is too long for requested model.", ContextTooLong),
        (400, "The input token count (12) exceeds the maximum number of tokens allowed (10).", ContextTooLong),
        (400, "the input length exceeds the context length", ContextTooLong),
        (400, "Output blocked by content filtering policy", ContentRefused),
        (400, "temperature: Extra inputs are not permitted", ModelRejected),
        (400, "max_tokens: 300000 > 64000, which is the maximum allowed number of output tokens", ModelRejected),
        (401, "the key may not see this context window", ModelRejected),
        (404, "no such model", ModelRejected),
    ],
)
def test_status_and_words_say_what_kind_of_error_it_is(status, said, kind):
    assert kind_of(status, said) is kind


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "2", "retry-after-ms": "1250"}, 1.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "7 bananas"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
def test_wait_is_read_as_seconds_milliseconds_or_date(headers, wait_s):
    assert retry_after_s(headers) == wait_s


def test_wait_until_a_date_is_counted_from_now():
    date = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 50 < retry_after_s({"retry-after": date}) <= 60


def test_no_error_shows_a_credential_or_is_endless():
    failures = Failures("acme", ChatRequest(model="m", messages=[], idempotency_key="k"), ("sk-1", None, ""))
    error = failures.of_status(500, "upstream sk-1 is down: " + "x" * 10_000)
    assert error.what.startswith("upstream *** is down")
    assert len(error.what) == 2_000
    assert (error.provider, error.model, error.status, error.idempotency_key) == ("acme", "m", 500, "k")


def test_error_without_words_says_so():
    assert Failures("acme", ChatRequest(model="m", messages=[])).of_status(500, " ").what

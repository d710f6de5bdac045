"""Limits, budgets and prices, as a configuration has them."""

from __future__ import annotations

import msgspec
import pytest

from agentflow.api.budgets import Budget, Price, RateLimit


@pytest.mark.parametrize(
    ("fields", "made"),
    [
        (
            {"per": "tenant", "requests-per-minute": 60, "tokens-per-minute": 1e5, "concurrency": 4},
            RateLimit("tenant", 4, 60, 1e5),
        ),
        ({"requests-per-minute": 0.5}, RateLimit(requests_per_minute=0.5)),
        ({"calls": 0}, Budget(calls=0)),
        ({"per": "day", "calls": 1, "tokens": 2, "money": 0.5, "turns": 0}, Budget("day", 1, 2, 0.5, 0)),
        ({"input": 3, "output": 15}, Price(3, 15)),
        ({"input": 3, "output": 15, "cached": 0.3, "cache-write": 3.75}, Price(3, 15, 0.3, 3.75)),
    ],
)
def test_fields_have_the_names_of_a_configuration(fields, made):
    assert msgspec.convert(fields, type(made)) == made
    assert msgspec.convert(msgspec.to_builtins(made), type(made)) == made


@pytest.mark.parametrize(
    ("fields", "kind", "why"),
    [
        ({"per": "key"}, RateLimit, r"Invalid enum value 'key' - at `\$.per`"),
        ({"rpm": 5}, RateLimit, "unknown field `rpm`"),
        ({"per": "tenant"}, RateLimit, "RateLimit: it limits nothing; give one of concurrency, "),
        ({"per": "day"}, Budget, "Budget: it limits nothing; give one of calls, tokens, money, turns"),
        ({"requests_per_minute": 5}, RateLimit, "unknown field `requests_per_minute`"),
        ({"concurrency": 0}, RateLimit, "concurrency is 0; no call could ever be made"),
        ({"tokens-per-minute": -1}, RateLimit, "tokens_per_minute is -1.0; no call could ever be made"),
        ({"per": "tenant"}, Budget, "Invalid enum value 'tenant'"),
        ({"calls": 1.5}, Budget, r"Expected `int \| null`, got `float`"),
        ({"calls": -1}, Budget, "calls is -1; it is at least 0"),
        ({"dollars": 1}, Budget, "unknown field `dollars`"),
        ({"input": 1}, Price, "missing required field `output`"),
        ({"input": 1, "output": -2}, Price, "output is -2.0; it is at least 0"),
    ],
)
def test_what_is_wrong_is_told(fields, kind, why):
    with pytest.raises(msgspec.ValidationError, match=why):
        msgspec.convert(fields, kind)


def test_what_is_wrong_is_told_where_it_is_written_in_python_too():
    with pytest.raises(ValueError, match="requests_per_minute is 0"):
        RateLimit(requests_per_minute=0)
    with pytest.raises(ValueError, match=r"money is -0\.5"):
        Budget(money=-0.5)

"""What calls of models may cost: limits of rates, which make them wait, and budgets, which end them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec

_LimitT = TypeVar("_LimitT", bound=msgspec.Struct)


class RateLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Limits of calls; a call that would break one waits, fairly over keys. Tokens are reserved before a call, and settled after it.

    Attributes:
        per: What the limit is for: all calls of the ``connection``, of the ``model``, or of each ``tenant`` of it.
        concurrency: Most calls at the same time; None: any number.
        requests_per_minute: Most calls within a minute.
        tokens_per_minute: Most tokens within a minute, prompts and answers.
    """

    per: Literal["connection", "model", "tenant"] = "model"
    concurrency: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def __post_init__(self) -> None:
        _refuse_none(self, "concurrency", "requests_per_minute", "tokens_per_minute")
        for name in ("concurrency", "requests_per_minute", "tokens_per_minute"):
            limit = getattr(self, name)
            if limit is not None and limit <= 0:
                raise ValueError(f"RateLimit: {name} is {limit}; no call could ever be made")


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """What may be spent; checked before each call, so what it forbids does not happen. A call that replay answers costs nothing.

    Attributes:
        per: Whose budget it is: of one ``run``, of a ``key`` for ever, or of a ``key`` for a ``day`` (UTC, by the run's clock). What keys
            have spent is short-term memory: where the job has a TTL of state, it is forgotten with that.
        calls: Most calls of models.
        tokens: Most tokens.
        money: Most money, in the currency of the price table (`chat.prices`).
        turns: Most turns of one tool loop.
    """

    per: Literal["run", "key", "day"] = "run"
    calls: int | None = None
    tokens: int | None = None
    money: float | None = None
    turns: int | None = None

    def __post_init__(self) -> None:
        _refuse_none(self, "calls", "tokens", "money", "turns")
        _refuse_negative(self, "calls", "tokens", "money", "turns")


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Price of a model, per million tokens.

    Attributes:
        input: Of the prompt.
        output: Of the answer, reasoning included.
        cached: Of what is read from the provider's cache; None: as ``input``.
        cache_write: Of what is written to it; None: as ``input``.
    """

    input: float
    output: float
    cached: float | None = None
    cache_write: float | None = None

    def __post_init__(self) -> None:
        _refuse_negative(self, "input", "output", "cached", "cache_write")


def _refuse_negative(limits: msgspec.Struct, *names: str) -> None:
    for name in names:
        value = getattr(limits, name)
        if value is not None and value < 0:
            raise ValueError(f"{type(limits).__name__}: {name} is {value}; it is at least 0")


def _refuse_none(limits: msgspec.Struct, *names: str) -> None:
    if all(getattr(limits, name) is None for name in names):
        raise ValueError(f"{type(limits).__name__}: it limits nothing; give one of {', '.join(names)}")


def limits_of(given: Sequence[RateLimit | Mapping[str, Any]]) -> tuple[RateLimit, ...]:
    """Return limits that may be written as JSON, with ``-`` or ``_`` in their names.

    Raises:
        ValueError: One of them is none.
    """
    return _read(given, RateLimit)


def budgets_of(given: Sequence[Budget | Mapping[str, Any]]) -> tuple[Budget, ...]:
    """Return budgets that may be written as JSON, with ``-`` or ``_`` in their names.

    Raises:
        ValueError: One of them is none.
    """
    return _read(given, Budget)


def _read(given: object, kind: type[_LimitT]) -> tuple[_LimitT, ...]:
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"{given!r} is no list")  # noqa: TRY004 (of a file, mostly)
    return tuple(one if isinstance(one, kind) else msgspec.convert(_kebab(one), kind) for one in given)


def _kebab(one: object) -> object:
    return {str(name).replace("_", "-"): value for name, value in one.items()} if isinstance(one, Mapping) else one

"""What calls of models may cost: limits of rates, which make them wait, and budgets, which end them."""

from __future__ import annotations

from typing import Literal

import msgspec


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


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """What may be spent; checked before each call, so what it forbids does not happen. A call that replay answers costs nothing.

    Attributes:
        per: Whose budget it is: of one ``run``, of a ``key`` for ever, or of a ``key`` for a ``day`` (UTC, by the run's clock).
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

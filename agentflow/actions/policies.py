"""How a chat model is called: its setup's own arguments, else the configuration's, else defaults.

Configuration keys (the job file's section ``config``): ``error-handling-strategy``, ``max-retries``, ``retry-wait-interval``,
``chat.timeout``, ``chat.first-token-timeout``, ``chat.idle-timeout``, ``chat.max-turns``, ``chat.rate-limit-wait-max``,
``chat.breaker.failures``, ``chat.breaker.open-for``, ``chat.limits``, ``chat.budgets``, ``chat.prices.MODEL.input|output|cached|cache-write``,
``tool.timeout``, ``tool.result-max``, ``tool.error-text``. Others that begin so are a problem of the agent (`unknown_keys`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from agentflow.api.budgets import Budget, Price, RateLimit, budgets_of, limits_of
from agentflow.api.chat_messages import Usage
from agentflow.api.chat_models import BaseChatModelSetup, ErrorHandlingStrategy
from agentflow.api.durations import duration_ms
from agentflow.api.options import Configuration
from agentflow.errors import ConfigError

_PRICES: Final = "chat.prices."
_KNOWN: Final = frozenset(
    {
        *(
            "chat.timeout",
            "chat.first-token-timeout",
            "chat.idle-timeout",
            "chat.max-turns",
            "chat.rate-limit-wait-max",
        ),
        *("chat.breaker.failures", "chat.breaker.open-for", "chat.limits", "chat.budgets"),
        *("tool.timeout", "tool.result-max", "tool.error-text"),
    }
)
_POLICY: Final = "_chat_policy"
_TOOL_POLICY: Final = "_tool_defaults"


class ChatPolicy(msgspec.Struct, frozen=True):
    """How one chat model is called.

    Attributes:
        strategy: What follows a failed call; None: what may pass is retried, else it fails.
        retries_max: Calls after the first one.
        retry_wait_s: Wait before the first of them.
        timeout_s: Longest call.
        first_token_timeout_s: Longest time to the first piece; None: no limit of its own.
        idle_timeout_s: Longest time between two pieces; None: no limit of its own.
        rate_limit_wait_s: Longest time that a call is made again because of a provider's limits.
        turns_max: Most calls for one request.
        breaker_failures: Failures in a row that open the circuit.
        breaker_open_s: How long it is open.
        limits: Of the model.
        budgets: Of requests.
        price: Of the model; None: not known.
    """

    strategy: ErrorHandlingStrategy | None
    retries_max: int
    retry_wait_s: float
    timeout_s: float
    first_token_timeout_s: float | None
    idle_timeout_s: float | None
    rate_limit_wait_s: float
    turns_max: int
    breaker_failures: int
    breaker_open_s: float
    limits: tuple[RateLimit, ...]
    budgets: tuple[Budget, ...]
    price: Price | None

    @property
    def attempts_max(self) -> int:
        """Calls in total."""
        return 1 if self.strategy is ErrorHandlingStrategy.FAIL else 1 + self.retries_max

    def cost(self, usage: Usage) -> float:
        """Return what a call costs; 0 where the model has no price."""
        price = self.price
        if price is None:
            return 0.0
        cached = price.input if price.cached is None else price.cached
        written = price.input if price.cache_write is None else price.cache_write
        plain = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens
        in_all = plain * price.input + usage.cached_tokens * cached + usage.cache_write_tokens * written
        return (in_all + usage.output_tokens * price.output) / 1_000_000


class ToolDefaults(msgspec.Struct, frozen=True):
    """How tools are called that do not say it themselves.

    Attributes:
        timeout_ms: Longest call.
        result_max: Most characters of a result that the model is given.
        error_text: What the model is told of an error: its ``message``, or a ``generic`` sentence.
    """

    timeout_ms: int
    result_max: int
    error_text: Literal["message", "generic"]


def chat_policy(setup: BaseChatModelSetup, config: Configuration) -> ChatPolicy:
    """Return how a chat model is called; read once per setup and configuration.

    Raises:
        ConfigError: A value is wrong.
    """
    kept: tuple[Configuration, ChatPolicy] | None = setup.__dict__.get(_POLICY)
    if kept is None or kept[0] is not config:
        kept = setup.__dict__[_POLICY] = (config, _read(setup, config))
    return kept[1]


def check_prices(setups: Sequence[BaseChatModelSetup], config: Configuration) -> None:
    """Check that what a chat model may spend limits it, and those that are asked in its place.

    Raises:
        ConfigError: One of them has no price, so a budget of money would limit nothing.
    """
    has_money = False
    for setup in setups:
        policy = chat_policy(setup, config)
        has_money = has_money or any(budget.money is not None for budget in policy.budgets)
        if has_money and policy.price is None:
            what = f"chat model '{setup.name}': there is a budget of money, and model '{setup.model}' has no price"
            fix = f"set {_PRICES}{setup.model}.input and .output, for a million tokens"
            raise ConfigError([f"{what}: it would limit nothing\nhelp: {fix}"])


def tool_defaults(config: Configuration) -> ToolDefaults:
    """Return how tools are called that do not say it themselves.

    Raises:
        ConfigError: A value is wrong.
    """
    values = config.to_dict()
    text = values.get("tool.error-text", "message")
    if text not in ("message", "generic"):
        raise ConfigError([f"config key 'tool.error-text': {text!r} is neither 'message' nor 'generic'"])
    return ToolDefaults(
        round(seconds_of(values.get("tool.timeout", 300), "tool.timeout") * 1000),
        int(values.get("tool.result-max", 64_000)),
        text,
    )


def unknown_keys(config: Configuration) -> list[tuple[str, list[str]]]:
    """Return the keys below ``chat.`` and ``tool.`` that nobody reads, each with those that it may be meant for."""
    found = []
    for key in config.to_dict():
        model, _, counted = key.removeprefix(_PRICES).rpartition(".")
        if key.startswith(_PRICES) and model:
            prices = [name.replace("_", "-") for name in Price.__struct_fields__]
            if counted not in prices:
                found.append((key, [f"{_PRICES}{model}.{name}" for name in prices]))
        elif key.startswith(("chat.", "tool.")) and key not in _KNOWN:
            found.append((key, sorted(_KNOWN)))
    return found


def seconds_of(value: Any, key: str) -> float:  # noqa: ANN401 (unchecked)
    """Return seconds: of a number, or of a text with a unit.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
        return float(value)
    try:
        return duration_ms(value) / 1000
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError([f"{key}: {value!r} is no duration ({error}): write '500ms', '10s', or seconds"]) from None


def _read(setup: BaseChatModelSetup, config: Configuration) -> ChatPolicy:
    values = config.to_dict()
    place = f"chat model '{setup.name}'"

    def seconds(own: Any, key: str, default: float | None) -> float | None:  # noqa: ANN401 (unchecked)
        value = values.get(key, default) if own is None else own
        return None if value is None else seconds_of(value, f"{place}: {key}")

    def number(own: int | None, key: str, default: int, least: int = 0) -> int:
        value = values.get(key, default) if own is None else own
        try:
            found = int(value)
        except (TypeError, ValueError):
            raise ConfigError([f"{place}: {key}: {value!r} is no whole number"]) from None
        if found < least:
            raise ConfigError([f"{place}: {key}: {value!r} is less than {least}"])
        return found

    strategy = setup.error_handling_strategy or values.get("error-handling-strategy")
    known = [str(one) for one in ErrorHandlingStrategy]
    if strategy is not None and str(strategy).lower() not in known:
        raise ConfigError([f"{place}: error-handling-strategy: {strategy!r} is none of {', '.join(known)}"])
    if setup.fallback_models and str(strategy).lower() != ErrorHandlingStrategy.FALLBACK:
        what = f"it has fallback_models, and its error_handling_strategy is {strategy and str(strategy)!r}: they would never be asked"
        raise ConfigError([f"{place}: {what}\nhelp: error_handling_strategy='fallback', or leave fallback_models out"])
    return ChatPolicy(
        strategy=None if strategy is None else ErrorHandlingStrategy(str(strategy).lower()),
        retries_max=number(setup.max_retries, "max-retries", 3),
        retry_wait_s=seconds(setup.retry_wait_interval, "retry-wait-interval", 1) or 0.0,
        timeout_s=seconds(setup.timeout, "chat.timeout", 600) or 600.0,
        first_token_timeout_s=seconds(setup.first_token_timeout, "chat.first-token-timeout", None),
        idle_timeout_s=seconds(setup.idle_timeout, "chat.idle-timeout", None),
        rate_limit_wait_s=seconds(None, "chat.rate-limit-wait-max", 600) or 0.0,
        turns_max=number(setup.max_turns, "chat.max-turns", 32, least=1),
        breaker_failures=number(None, "chat.breaker.failures", 10),
        breaker_open_s=seconds(None, "chat.breaker.open-for", 10) or 0.0,
        limits=_read_all(limits_of, setup.limits or values.get("chat.limits") or (), f"{place}: limits"),
        budgets=_read_all(budgets_of, setup.budgets or values.get("chat.budgets") or (), f"{place}: budgets"),
        price=_price(setup.model, values),
    )


def _read_all(read: Callable[[Any], tuple[Any, ...]], given: Any, place: str) -> tuple[Any, ...]:  # noqa: ANN401 (unchecked)
    try:
        return read(given)
    except ValueError as error:
        raise ConfigError([f"{place}: {error}"]) from None


def _price(model: str, values: Mapping[str, Any]) -> Price | None:
    prefix = f"{_PRICES}{model}."
    given = {key[len(prefix) :]: value for key, value in values.items() if key.startswith(prefix)}
    if not given:
        return None
    try:
        return msgspec.convert(given, Price, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError([f"config key '{_PRICES}{model}': {error}"]) from None

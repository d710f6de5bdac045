"""Metrics at one moment, as exporters get them."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import msgspec

from agentflow.api.metrics import Buckets
from agentflow.observability.names import MetricName

Value = float | Buckets
Points = list[tuple[Mapping[str, str], Value]]


class Series(msgspec.Struct, frozen=True):
    """One metric with all its sets of attributes.

    Attributes:
        name: Which one.
        points: Attributes and value of each set.
    """

    name: MetricName
    points: Points


def point(attributes: Mapping[str, str], value: Value) -> tuple[Mapping[str, str], Value]:
    r"""Return a set of attributes and its value as every exporter can write them.

    Integers of more than 64 bits become floats; what is no Unicode is written out (``\ud800``).

    Raises:
        TypeError, ValueError: The value is no number.
    """
    if any(not text.isascii() for text in attributes.values()):
        attributes = {
            name: text.encode("utf-8", "backslashreplace").decode("utf-8") for name, text in attributes.items()
        }
    if not isinstance(value, Buckets):
        return attributes, _number(value)
    total = _number(value.sum)
    if total is not value.sum:
        sound = Buckets(value.bounds)
        sound.counts, sound.sum = value.counts, total
        return attributes, sound
    return attributes, value


def _number(value: float) -> float:
    if type(value) is float or type(value) is bool:
        return value
    try:
        whole = operator.index(value)  # type: ignore[arg-type]  # also those of other packages
    except TypeError:
        return float(value)
    if -(2**63) <= whole < 2**63:
        return whole
    try:
        return float(whole)
    except OverflowError:
        return float("inf" if whole > 0 else "-inf")

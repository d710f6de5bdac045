"""Metrics at one moment, as exporters get them."""

from __future__ import annotations

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

"""Metrics through OpenTelemetry's SDK: to a collector (OTLP over HTTP), and as Prometheus text.

The SDK's instruments are not used, because a call of one takes longer than a small record. What its exporters and its reader for
Prometheus are given is its own data model.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry, generate_latest

from agentflow.api.metrics import Buckets
from agentflow.observability.exporting import Reachability
from agentflow.observability.names import MetricKind
from agentflow.observability.otlp import OtlpSender
from agentflow.observability.series import Series

_SCOPE = InstrumentationScope("agentflow")
_CUMULATIVE, _DELTA = sdk.AggregationTemporality.CUMULATIVE, sdk.AggregationTemporality.DELTA
_Slot = tuple[str, tuple[tuple[str, str], ...]]


class MetricsEncoder:
    """Turns metrics into the SDK's data.

    Args:
        resource: Whose they are.
        is_delta: Counters and histograms say what came since the last data that were taken (`take`), instead of since the process
            began.
    """

    def __init__(self, resource: Resource, *, is_delta: bool = False) -> None:
        self._resource = resource
        self._is_delta = is_delta
        self._temporality = _DELTA if is_delta else _CUMULATIVE
        self._began_ns = time.time_ns()
        self._before: dict[_Slot, Any] = {}  # as of the last data that were taken
        self._encoded: dict[_Slot, Any] = {}  # as of the last data
        self._encoded_ns = self._began_ns

    def encode(self, series: Sequence[Series]) -> sdk.MetricsData:
        """Return the data of now."""
        self._encoded_ns = now_ns = time.time_ns()
        self._encoded = {}
        metrics = [
            sdk.Metric(one.name.name, one.name.description, one.name.unit, self._points(one, now_ns)) for one in series
        ]
        scope = sdk.ScopeMetrics(_SCOPE, metrics, "")
        return sdk.MetricsData([sdk.ResourceMetrics(self._resource, [scope], "")])

    def take(self) -> None:
        """Count the last data as taken: whoever they were for has them. What was refused is said again, in the next ones."""
        if self._is_delta:
            self._before.update(self._encoded)
            self._began_ns = self._encoded_ns

    def _points(self, series: Series, now_ns: int) -> Any:  # noqa: ANN401 (one of the SDK's kinds of data)
        kind = series.name.kind
        if kind is MetricKind.HISTOGRAM:
            points = [
                self._histogram(series.name.name, attributes, value, now_ns) for attributes, value in series.points
            ]
            return sdk.Histogram(points, self._temporality)
        numbers = [
            sdk.NumberDataPoint(dict(attributes), self._began_ns, now_ns, self._number(series, attributes, value))
            for attributes, value in series.points
        ]
        if kind is MetricKind.GAUGE:
            return sdk.Gauge(numbers)
        is_monotonic = kind is MetricKind.COUNTER
        return sdk.Sum(numbers, self._temporality if is_monotonic else _CUMULATIVE, is_monotonic)

    def _number(self, series: Series, attributes: Mapping[str, str], value: Any) -> float:  # noqa: ANN401 (a number)
        number = value + 0  # a truth value becomes a number
        if self._is_delta and series.name.kind is MetricKind.COUNTER:
            slot = (series.name.name, tuple(attributes.items()))
            self._encoded[slot] = number
            number -= self._before.get(slot, 0)
        return number  # type: ignore[no-any-return]

    def _histogram(
        self,
        name: str,
        attributes: Mapping[str, str],
        value: Any,  # noqa: ANN401 (a `Buckets`)
        now_ns: int,
    ) -> sdk.HistogramDataPoint:
        assert isinstance(value, Buckets)
        counts, total = value.counts, value.sum
        if self._is_delta:
            slot = (name, tuple(attributes.items()))
            counts_before, total_before = self._before.get(slot, ([0] * len(counts), 0))
            self._encoded[slot] = counts, total
            counts = [now - before for now, before in zip(counts, counts_before, strict=True)]
            total -= total_before
        return sdk.HistogramDataPoint(
            dict(attributes),
            self._began_ns,
            now_ns,
            sum(counts),
            total,
            counts,
            [float(bound) for bound in value.bounds],
            None,  # type: ignore[arg-type]  # the least: unknown
            None,  # type: ignore[arg-type]  # the greatest
        )


class OtlpMetrics:
    """A collector. See `agentflow.observability.exporting.Destination`.

    Args:
        resource: Whose metrics they are.
        endpoint: Base URL of the collector; None: as the variables ``OTEL_EXPORTER_OTLP_…`` say, which say everything else too.
    """

    def __init__(self, resource: Resource, endpoint: str | None) -> None:
        self._sender = OtlpSender("metrics", endpoint)
        preferred = os.environ.get("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "").upper()
        self._encoder = MetricsEncoder(resource, is_delta=preferred in ("DELTA", "LOWMEMORY"))
        self.reachability = Reachability("metrics", self._sender.url)

    def push(self, series: Sequence[Series]) -> None:
        """Send the metrics, once: where they are refused, the next ones say what these did."""
        refusal = self._sender.send(encode_metrics(self._encoder.encode(series)).SerializeToString())
        if refusal is None:
            self._encoder.take()
        self.reachability.tell(is_sent=refusal is None, reason=None if refusal is None else refusal.reason)


class PrometheusText:
    """Metrics as Prometheus text.

    Args:
        resource: Whose metrics they are.
    """

    def __init__(self, resource: Resource) -> None:
        self._encoder = MetricsEncoder(resource)
        self._registry = CollectorRegistry()  # of its own: the process may have other metrics
        self._reader = _Reader(registry=self._registry, scope_info_enabled=False)
        # A reader asks its provider first; this one has nothing to say.
        self._provider = MeterProvider([self._reader], resource, shutdown_on_exit=False)
        self._lock = threading.Lock()

    def text(self, series: Sequence[Series]) -> bytes:
        """Return metrics in Prometheus' text format; from any thread."""
        with self._lock:
            self._reader.take(self._encoder.encode(series))
            return generate_latest(self._registry)


class _Reader(PrometheusMetricReader):
    def take(self, metrics: sdk.MetricsData) -> None:
        """Show these the next time."""
        self._receive_metrics(metrics)

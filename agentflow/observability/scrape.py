"""Metrics of a process as it serves them: Prometheus text, fetched over HTTP and read by name."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from agentflow.errors import MetricsUnreachable
from agentflow.observability.names import MetricKind, MetricName

_TIMEOUT_S = 2.0
_UNITS = {"s": "_seconds", "By": "_bytes"}
Labels = Mapping[str, str]


def prometheus_name(metric: MetricName) -> str:
    """Return what Prometheus' text calls a metric; of a histogram: without ``_bucket``, ``_sum`` or ``_count``."""
    unit = "_per_second" if metric.unit.endswith("/s") else _UNITS.get(metric.unit, "")
    end = "_total" if metric.kind is MetricKind.COUNTER else ""
    return metric.name.replace(".", "_") + unit + end


class Scrape(msgspec.Struct, frozen=True):
    """The metrics of one process at one moment.

    Attributes:
        at_s: When, on the monotonic clock.
        samples: Sample name → labels and value of each series.
    """

    at_s: float
    samples: Mapping[str, Sequence[tuple[Labels, float]]]

    def values(self, metric: MetricName) -> Iterator[tuple[Labels, float]]:
        """Yield the labels and the value of each series of a metric that is no histogram."""
        yield from self.samples.get(prometheus_name(metric), ())

    def total(self, metric: MetricName) -> float:
        """Return the sum over all series of a metric that is no histogram."""
        return sum(value for _, value in self.values(metric))

    def buckets(self, metric: MetricName) -> Iterator[tuple[Labels, float, float]]:
        """Yield labels, upper bound and cumulative count of each bucket of a histogram."""
        for labels, count in self.samples.get(f"{prometheus_name(metric)}_bucket", ()):
            yield labels, float(labels["le"]), count


def read_scrape(text: str, at_s: float) -> Scrape:
    """Read Prometheus text.

    Raises:
        ValueError: It is none.
    """
    samples: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return Scrape(at_s, samples)


def fetch(address: str) -> Scrape:
    """Return the metrics that a process serves at ``http://host:port``; blocks for two seconds at most.

    Raises:
        MetricsUnreachable: Nobody answers there, or no agentflow process does.
    """
    url = f"{address}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 (http or https: the command has looked)
            text = answer.read().decode()
        scrape = read_scrape(text, time.monotonic())
    except urllib.error.HTTPError as error:
        raise _unreachable(url, f"it answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise _unreachable(url, str(reason) or type(error).__name__) from error
    except ValueError as error:
        raise _unreachable(url, f"what it answers is no Prometheus text: {error}") from error
    if not any(name.startswith("agentflow_") for name in scrape.samples):
        raise _unreachable(url, "it serves no metrics of agentflow")
    return scrape


def _unreachable(url: str, reason: str) -> MetricsUnreachable:
    fix = "start the job with admin.port set, and give its address: http://host:port"
    return MetricsUnreachable(f"there are no metrics at {url}: {reason}", fix=fix)

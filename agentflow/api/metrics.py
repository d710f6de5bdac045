"""Metrics that actions keep: counters, meters, gauges, histograms, in groups.

An update changes numbers in memory and calls nothing else; who exports them reads them when it wants to. They work where nobody
exports them, too. Nothing of them survives: they begin at zero with the process, and what a failed attempt has counted stays
counted, also when the attempt is made again.
"""

from __future__ import annotations

import itertools
import math
import re
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Attributes = tuple[tuple[str, str], ...]
RATE_S = 60
CARDINALITY_MAX = 1_000
OVERFLOW: Attributes = (("otel.metric.overflow", "true"),)
"""Attributes of what is beyond the limit, as OpenTelemetry says."""
VALUE_BOUNDS = (1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_./-]{0,99}")
_OWN_ATTRIBUTES = ("job", "agent", "action", "subtask", "le")  # the last one is Prometheus' own, of histograms
_PROMETHEUS_FOLDS = re.compile(r"[^A-Za-z0-9]+")


class Buckets:
    """Counts numbers by upper bounds. Another thread may read it, and may see a number that is not in the sum yet.

    Args:
        bounds: Upper bounds, each inclusive, ascending; above the last one is a bucket more.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum: float = 0

    def add(self, number: float, times: int = 1) -> None:
        """Count a number."""
        self.counts[bisect_left(self.bounds, number)] += times
        self.sum += number * times


class Counter:
    """A number that goes up; one that has gone down is exported as a number that goes up and down.

    Attributes:
        is_monotonic: It has never gone down.
    """

    def __init__(self) -> None:
        self.is_monotonic = True
        self._count = 0
        self._lock = threading.Lock()  # as everywhere here: blocking actions run in threads

    def inc(self, n: int = 1) -> None:
        """Count ``n`` more."""
        with self._lock:
            self._count += n
            if n < 0:
                self.is_monotonic = False

    def dec(self, n: int = 1) -> None:
        """Count ``n`` less."""
        self.inc(-n)

    def get_count(self) -> int:
        """Return the count."""
        return self._count


class Meter:
    """Counts events, and says how many come per second."""

    def __init__(self) -> None:
        self._count = 0
        self._began_s = self._second = int(time.monotonic())
        self._of_seconds: deque[tuple[int, int]] = (
            deque()
        )  # (second, events), of the last minute but for the current second
        self._of_second = 0
        self._lock = threading.Lock()

    def mark(self, n: int = 1) -> None:
        """Count ``n`` events."""
        second = int(time.monotonic())
        with self._lock:
            if second != self._second:
                self._turn(second)
            self._count += n
            self._of_second += n

    def _turn(self, second: int) -> None:
        if self._of_second:
            self._of_seconds.append((self._second, self._of_second))
        self._second, self._of_second = second, 0
        while self._of_seconds and self._of_seconds[0][0] < second - RATE_S:
            self._of_seconds.popleft()

    def get_rate(self) -> float:
        """Return events per second of the last minute, or since the meter was made if that is shorter."""
        second = int(time.monotonic())
        with self._lock:
            if second != self._second:
                self._turn(second)
            events = self._of_second + sum(count for _, count in self._of_seconds)
            return events / min(max(second - self._began_s, 1), RATE_S)

    def get_count(self) -> int:
        """Return the count."""
        return self._count


class Gauge:
    """A number that is as it was last set; 0 before that."""

    def __init__(self) -> None:
        self._value: float = 0

    def update(self, value: float) -> None:
        """Set the number.

        Raises:
            TypeError: It is none.
        """
        if isinstance(value, bool) or not isinstance(value, int | float):
            msg = f"a gauge takes a number, not {value!r}"
            raise TypeError(msg)
        self._value = value

    def get_value(self) -> float:
        """Return the number."""
        return self._value


class Histogram:
    """How numbers are spread. The questions are answered from the last ones; what is exported counts all.

    Args:
        window_size: How many numbers mean, greatest and least are those of.
        bounds: Upper bounds of the buckets that are exported.

    Attributes:
        buckets: All numbers.
    """

    def __init__(self, window_size: int, bounds: Sequence[float]) -> None:
        self.buckets = Buckets(bounds)
        self._window: deque[float] = deque(maxlen=window_size)
        self._lock = threading.Lock()

    def update(self, value: float) -> None:
        """Count a number."""
        with self._lock:
            self.buckets.add(value)
            self._window.append(value)

    def get_mean(self) -> float:
        """Return the mean of the window; 0 when it is empty."""
        with self._lock:
            return sum(self._window) / len(self._window) if self._window else 0

    def get_max(self) -> float:
        """Return the greatest number of the window; 0 when it is empty."""
        with self._lock:
            return max(self._window, default=0)

    def get_min(self) -> float:
        """Return the least number of the window; 0 when it is empty."""
        with self._lock:
            return min(self._window, default=0)

    def get_count(self) -> int:
        """Return how many numbers were counted, those that the window has lost included."""
        return sum(self.buckets.counts)


Metric = Counter | Meter | Gauge | Histogram
_MetricT = TypeVar("_MetricT", Counter, Meter, Gauge, Histogram)


class MetricGroup:
    """Metrics that belong together: their names begin alike, and they carry the same attributes.

    Groups and metrics are found again by their names, so an action need not keep them.
    """

    def __init__(self, registry: MetricRegistry, prefix: str, attributes: Attributes) -> None:
        self._registry = registry
        self._prefix = prefix
        self._attributes = attributes
        self._groups: dict[tuple[str, str | None], MetricGroup] = {}
        self._metrics: dict[tuple[str, type[Metric]], Metric] = {}

    def get_sub_group(self, name: str, value: str | None = None) -> MetricGroup:
        """Return the group ``name`` below this one: names of its metrics begin with ``name.``.

        Args:
            name: Name of the group, or of the attribute.
            value: Where it is given, the metrics keep their names and carry the attribute ``name`` with this value instead: a tenant,
                a model. Each value is a series of its own, kept as long as the process lives; there are to be few.

        Raises:
            ValueError: Not a name; or the engine's own attribute: job, agent, action, subtask, le.
        """
        found = self._groups.get((name, value))
        if found is None:
            check_name(name)
            if value is not None and name in _OWN_ATTRIBUTES:
                msg = f"attribute '{name}' is the engine's own, and says something else; choose another name"
                raise ValueError(msg)
            if value is None:
                found = MetricGroup(self._registry, f"{self._prefix}{name}.", self._attributes)
            else:
                kept = tuple(one for one in self._attributes if one[0] != name)
                found = MetricGroup(self._registry, self._prefix, (*kept, (name, str(value))))
            if len(self._groups) < self._registry.cardinality_max:
                self._groups[name, value] = found
        return found

    def get_counter(self, name: str) -> Counter:
        """Return the counter ``name`` of this group."""
        return self._get(name, Counter, Counter)

    def get_meter(self, name: str) -> Meter:
        """Return the meter ``name`` of this group; its rate is exported as ``name.rate``."""
        return self._get(name, Meter, Meter)

    def get_gauge(self, name: str) -> Gauge:
        """Return the gauge ``name`` of this group."""
        return self._get(name, Gauge, Gauge)

    def get_histogram(self, name: str, window_size: int = 100, *, bounds: Sequence[float] = VALUE_BOUNDS) -> Histogram:
        """Return the histogram ``name`` of this group.

        Args:
            name: Its name.
            window_size: How many numbers `Histogram.get_mean` and the like look at.
            bounds: Upper bounds of the buckets that are exported, ascending. Of a histogram that exists both are as they were.

        Raises:
            ValueError: The bounds do not ascend.
        """
        return self._get(name, Histogram, lambda: Histogram(window_size, _ascending(bounds)))

    def _get(self, name: str, kind: type[_MetricT], make: Callable[[], _MetricT]) -> _MetricT:
        found = self._metrics.get((name, kind))
        if found is None:
            check_name(name)
            found = self._registry.metric(self._prefix + name, self._attributes, kind, make)
            if len(self._metrics) < self._registry.cardinality_max:
                self._metrics[name, kind] = found
        assert isinstance(found, kind)
        return found


class MetricRegistry:
    """All metrics of the agents of a process, by name and attributes.

    Args:
        cardinality_max: How many sets of attributes a metric may have. Whatever has another one is counted together, in one set more.

    Attributes:
        overflows: Names of the metrics that have too many.
    """

    def __init__(self, cardinality_max: int = CARDINALITY_MAX) -> None:
        self.cardinality_max = cardinality_max
        self.overflows: dict[str, None] = {}
        self._metrics: dict[str, dict[Attributes, Metric]] = {}
        self._prometheus_names: dict[str, str] = {}  # its own → ours
        self._groups: dict[Attributes, MetricGroup] = {}
        self._lock = threading.Lock()

    def group(self, agent: str, action: str | None = None) -> MetricGroup:
        """Return the group of an agent, or of one of its actions."""
        attributes: Attributes = (("agent", agent),) if action is None else (("agent", agent), ("action", action))
        found = self._groups.get(attributes)
        if found is None:
            found = self._groups[attributes] = MetricGroup(self, "", attributes)
        return found

    def metric(self, name: str, attributes: Attributes, kind: type[_MetricT], make: Callable[[], _MetricT]) -> _MetricT:
        """Return a metric; made when it is asked for first.

        Raises:
            ValueError: The name is that of a metric of another kind, or Prometheus takes it for another one's.
        """
        with self._lock:
            if name not in self._metrics:
                other = self._prometheus_names.setdefault(_PROMETHEUS_FOLDS.sub("_", name), name)
                if other != name:
                    msg = f"metric '{name}' and metric '{other}' are one to Prometheus; choose another name"
                    raise ValueError(msg)
            series = self._metrics.setdefault(name, {})
            of_name = type(next(iter(series.values()))) if series else kind
            if of_name is not kind:
                msg = f"metric '{name}' is a {of_name.__name__.lower()}, and no {kind.__name__.lower()}; choose another name"
                raise ValueError(msg)
            if attributes not in series and len(series) >= self.cardinality_max:
                self.overflows[name] = None
                attributes = OVERFLOW
            found = series.get(attributes)
            if found is None:
                found = series[attributes] = make()
        assert isinstance(found, kind)
        return found

    def series(self) -> Iterator[tuple[str, list[tuple[Attributes, Metric]]]]:
        """Iterate over the metrics by name, as they are now; from any thread."""
        with self._lock:
            metrics = {name: list(series.items()) for name, series in self._metrics.items()}
        yield from metrics.items()


def _ascending(bounds: Sequence[float]) -> tuple[float, ...]:
    found = tuple(bounds)
    if not all(map(math.isfinite, found)) or any(upper <= lower for lower, upper in itertools.pairwise(found)):
        msg = f"the bounds of a histogram are finite numbers, each above the one before, not {found!r}"
        raise ValueError(msg)
    return found


def check_name(name: str) -> None:
    """Refuse a name that exporters cannot show.

    Raises:
        ValueError: It has other characters, or too many.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        msg = f"{name!r} is no name of a metric or a group; a letter, then letters, digits and _ . / - (at most 100)"
        raise ValueError(msg)

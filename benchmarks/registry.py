"""All measurements by name; as a program it makes one of them and prints its number."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import msgspec

from benchmarks import footprint, processes, workloads

EXACTLY_ONCE = "exactly-once"
IN_MEMORY = "in memory"
QUICK = 0.25


class Workload(msgspec.Struct, frozen=True):
    """One measurement.

    Attributes:
        measure: Makes it once; gets a factor for the amount of work.
        unit: Unit of its number.
        target: What it has to reach; None: it is only shown.
        guarantee: What the measured job gives; ``-`` where no job runs.
        is_more_better: Whether the target is a lower limit.
        is_size_named: Whether the name states the full amount of work: a quick run has less, and is not judged.
    """

    measure: Callable[[float], float]
    unit: str
    target: float | None = None
    guarantee: str = EXACTLY_ONCE
    is_more_better: bool = False
    is_size_named: bool = False

    def is_met(self, value: float) -> bool | None:
        """Say whether a value meets the target; None without one."""
        if self.target is None:
            return None
        return value >= self.target if self.is_more_better else value <= self.target


def _rates() -> dict[str, Workload]:
    kinds: list[tuple[str, Callable[[int, float], float], str, str, dict[int, int]]] = [
        ("trivial", workloads.trivial_rate, "records/s", IN_MEMORY, {100: 200_000}),
        ("stateful", workloads.stateful_rate, "records/s", EXACTLY_ONCE, {100: 100_000, 10_000: 100_000}),
        ("two-hop", workloads.two_hop_rate, "records/s", IN_MEMORY, {100: 120_000}),
        ("async 50 ms", workloads.async_rate, "runs/s", IN_MEMORY, {10_000: 25_000}),
    ]
    return {
        f"{kind}, {keys:,} key{'s' if keys > 1 else ''}": Workload(
            partial(measure, keys), unit, targets.get(keys), guarantee, is_more_better=True
        )
        for kind, measure, unit, guarantee, targets in kinds
        for keys in (1, 100, 10_000)
    }


def _kafka_rates() -> dict[str, Workload]:
    rows: list[tuple[str, int, int, int, float | None]] = [  # action, keys, records, checkpoint interval, target
        ("trivial", 1_000, 1_000_000, 1_000, 130_000),
        ("stateful", 1_000, 1_000_000, 1_000, 100_000),
        ("stateful", 50_000, 1_000_000, 1_000, 90_000),
        ("stateful", 1_000, 1_000_000, 100, None),
        ("async", 1_000, 100_000, 1_000, 17_000),
        ("async", 10_000, 200_000, 1_000, 25_000),
    ]
    return {
        f"{action}, {keys:,} keys, {interval_ms} ms": Workload(
            partial(_kafka_rate, action, keys, records, interval_ms), "records/s", target, is_more_better=True
        )
        for action, keys, records, interval_ms, target in rows
    }


def _kafka_rate(action: str, keys: int, records: int, interval_ms: int, factor: float) -> float:
    from benchmarks import kafka  # needs the extra `kafka`, and a broker

    return kafka.rate(action, keys, records, interval_ms, factor)


ENGINE = {
    **_rates(),
    "memory per waiting run": Workload(footprint.waiting_run_bytes, "bytes", 6 * 1024, IN_MEMORY),
    "checkpoint, 100,000 dirty": Workload(footprint.dirty_duration_ms, "ms", 500),
    "- longest stall": Workload(footprint.dirty_stall_ms, "ms", 20),
    "checkpoint, 10,000 in flight": Workload(footprint.in_flight_duration_ms, "ms"),
    "- longest stall, in flight": Workload(footprint.in_flight_stall_ms, "ms"),
    "restore, 1,000,000 keys": Workload(footprint.restore_ms, "ms", 2_000, is_size_named=True),
    "start to first output": Workload(processes.start_ms, "ms", 800),
    "idle memory": Workload(footprint.idle_mib, "MiB", 80),
    "import agentflow": Workload(processes.import_ms, "ms", 150, "-"),
}

SUITES = {"engine": ENGINE, "kafka": _kafka_rates()}

if __name__ == "__main__":
    print(SUITES[sys.argv[1]][sys.argv[2]].measure(QUICK if "--quick" in sys.argv else 1.0))

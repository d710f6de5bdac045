"""All measurements by name; as a program it makes one of them and prints its number."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

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
    million, tenth = 1_000_000, 100_000
    rows: list[tuple[str, str, int, int, float | None, dict[str, Any]]] = [
        # name, action, keys, records, target, options
        ("trivial", "trivial", 1_000, million, 130_000, {}),
        ("stateful, 1,000 keys", "stateful", 1_000, million, 100_000, {}),
        ("stateful, 50,000 keys", "stateful", 50_000, million, 90_000, {}),
        ("stateful, 1 partition", "stateful", 1_000, million, None, {"partitions": 1}),
        ("stateful, 2 processes", "stateful", 1_000, 2 * million, None, {"processes": 2}),
        ("stateful, 100 ms", "stateful", 1_000, million, None, {"interval_ms": 100}),
        ("trivial, at-least-once", "trivial", 1_000, million, None, {"guarantee": "at-least-once"}),
        ("stateful, at-least-once", "stateful", 1_000, million, None, {"guarantee": "at-least-once"}),
        ("async 50 ms, 1,000 keys", "async", 1_000, 3 * tenth, 17_000, {}),
        ("async 50 ms, 10,000 keys", "async", 10_000, 3 * tenth, 25_000, {}),
    ]
    return {
        name: Workload(
            partial(_kafka, "rate", "agentflow", action, keys, records, options),
            "records/s",
            target,
            options.get("guarantee", EXACTLY_ONCE),
            is_more_better=True,
        )
        for name, action, keys, records, target, options in rows
    }


def _kafka_peers() -> dict[str, Workload]:
    rows = [
        ("quix", EXACTLY_ONCE, "trivial", 1_000),
        ("quix", EXACTLY_ONCE, "stateful", 1_000),
        ("quix", EXACTLY_ONCE, "stateful", 50_000),
        ("aiokafka-loop", "none", "stateful", 1_000),
        ("confluent-loop", "none", "stateful", 1_000),
    ]
    return {
        f"{peer}: {action}, {keys:,}": Workload(
            partial(_kafka, "rate", peer, action, keys, 500_000, {}), "records/s", None, guarantee, is_more_better=True
        )
        for peer, guarantee, action, keys in rows
    }


def _kafka(
    field: str, contender: str, action: str, keys: int, records: int, options: dict[str, Any], factor: float
) -> float:
    from benchmarks import kafka  # needs the extra `kafka`, and a broker

    return float(getattr(kafka.run(contender, action, keys, int(records * factor), **options), field))


def _kafka_time(name: str, *arguments: float) -> float:
    from benchmarks import kafka

    return float(getattr(kafka, name)(*arguments))


def _kafka_rest() -> dict[str, Workload]:
    stateful: dict[int, tuple[Any, ...]] = {
        keys: ("agentflow", "stateful", keys, 1_000_000, {}) for keys in (1_000, 50_000)
    }
    return {
        "CPU per 100,000 records": Workload(partial(_kafka, "cpu_s", *stateful[1_000]), "s", 1.0),
        "memory, 1,000 keys": Workload(partial(_kafka, "rss_mib", *stateful[1_000]), "MiB", 150),
        "memory, 50,000 keys": Workload(partial(_kafka, "rss_mib", *stateful[50_000]), "MiB", 250),
        "latency p50, 10,000/s": Workload(partial(_kafka_time, "latency_ms", 0.5), "ms"),
        "latency p99, 10,000/s": Workload(partial(_kafka_time, "latency_ms", 0.99), "ms", 250),
        "start to first output": Workload(partial(_kafka_time, "start_ms"), "ms", 1_500),
        "restart to new output": Workload(partial(_kafka_time, "restart_ms"), "ms", 2_500),
        "takeover behind the session": Workload(partial(_kafka_time, "takeover_ms"), "ms", 3_000),
        "gap of a rolling restart": Workload(partial(_kafka_time, "rolling_restart_ms"), "ms", 3_000),
        "memory of an idle subtask": Workload(partial(_kafka_time, "idle_subtask_mib"), "MiB", 4),
        "checkpoint, 64 subtasks": Workload(partial(_kafka_time, "busy_subtasks_ms"), "ms", 300),
        "restore, 1,000,000 entries": Workload(partial(_kafka_time, "restore_ms"), "ms", 5_000, is_size_named=True),
    }


def _embedding(name: str, *arguments: Any) -> float:
    from benchmarks import embedding  # with the factor last

    return float(getattr(embedding, name)(*arguments))


def _requests() -> dict[str, Workload]:
    durable, more = "durable", {"is_more_better": True}
    return {
        "submit, in memory, p50": Workload(partial(_embedding, "submit_us", False), "us", 150, IN_MEMORY),
        "submit, durable, p50": Workload(partial(_embedding, "submit_us", True), "us", None, durable),
        "- above an fdatasync": Workload(partial(_embedding, "submit_above_sync_ms"), "ms", 0.4, durable),
        "1,000 callers, in memory": Workload(
            partial(_embedding, "submit_rate", False), "requests/s", 50_000, IN_MEMORY, **more
        ),
        "1,000 callers, durable": Workload(
            partial(_embedding, "submit_rate", True), "requests/s", 20_000, durable, **more
        ),
    }


ENGINE = {
    **_rates(),
    **_requests(),
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


def _durable(name: str, *arguments: Any) -> float:
    from benchmarks import durable  # with the factor last

    return float(getattr(durable, name)(*arguments))


def _durable_suite() -> dict[str, Workload]:
    def one(name: str, unit: str, target: float | None, *arguments: Any, **options: Any) -> Workload:
        return Workload(partial(_durable, name, *arguments), unit, target, **options)

    more = {"is_more_better": True}
    ours = {
        "fdatasync of this disk": one("sync_ms", "ms", None, guarantee="-"),
        "step, one at a time": one("step_ms", "ms", None),
        "- above an fdatasync": one("step_above_sync_ms", "ms", 0.2),
        "step, sync: interval": one("unsynced_step_us", "us", 60, guarantee="killed"),
        "steps, 1,000 in flight": one("rate", "steps/s", 20_000, 1_000, **more),
        "steps, 200 in flight": one("rate", "steps/s", None, 200, **more),
        "replay": one("replay_rate", "steps/s", 100_000, **more),
        "recovery, 10,000 runs": one("recovery_ms", "ms", 1_000, is_size_named=True),
        "recovery, process, 200 runs": one("process_recovery_ms", "ms", 800),
        "memory per sleeping run": one("sleeping_run_bytes", "bytes", 2_048),
        "disk per byte of results": one("disk_times", "times", 3),
    }
    on_kafka = {
        "Kafka: steps, 1,000 in flight": Workload(
            partial(_kafka_steps, "rate"), "steps/s", 10_000, EXACTLY_ONCE, is_more_better=True
        ),
        "Kafka: step, one at a time": Workload(partial(_kafka_steps, "step_ms"), "ms", 0.6),
    }
    peers = {
        f"{name}: {what}": one("peer", unit, None, name, mode, guarantee="-", is_more_better=mode == "rate")
        for mode, unit, what in (("rate", "steps/s", "steps"), ("step", "ms", "step"))
        for name in ("dbos", "dbos-wal", "langgraph")
    }
    return {**ours, **on_kafka, **peers}


def _kafka_steps(name: str, factor: float) -> float:
    from benchmarks import kafka  # needs the extra `kafka`, and a broker

    if name == "rate":
        run = kafka.run("agentflow", "steps", 20_000, int(40_000 * factor), in_flight=1_000)
        return 5 * run.rate
    return kafka.step_ms(factor)


def _event_log(name: str, *arguments: Any) -> float:
    from benchmarks import event_log  # with the factor last

    return float(getattr(event_log, name)(*arguments))


def _event_log_rows() -> dict[str, Workload]:
    rows: list[tuple[str, str, str, float | None, tuple[Any, ...]]] = [
        ("event log, 100 keys", "loss_percent", "%", 25, ("stateful", 100, False)),
        ("event log, 10,000 keys", "loss_percent", "%", 25, ("stateful", 10_000, False)),
        ("event log, two hops", "loss_percent", "%", None, ("two-hop", 100, False)),
        ("event log with trace", "loss_percent", "%", None, ("stateful", 100, True)),
        ("trace show, a run in 1 GB", "show_s", "s", 5, ("run",)),
        ("trace show, a key in 1 GB", "show_s", "s", 5, ("key",)),
    ]
    return {
        name: Workload(partial(_event_log, measure, *arguments), unit, target, "-" if unit == "s" else EXACTLY_ONCE)
        for name, measure, unit, target, arguments in rows
    }


def _observability(name: str, *arguments: float) -> float:
    from benchmarks import observability  # with the factor last

    return float(getattr(observability, name)(*arguments))


def _telemetry_rows() -> dict[str, Workload]:
    def one(target: float | None, name: str, *arguments: float) -> Workload:
        return Workload(partial(_observability, name, *arguments), "times", target, is_more_better=True)

    return {
        "off / off": one(None, "off_ratio"),
        "metrics on / off": one(0.95, "metrics_ratio"),
        "tracing 0 % on / off": one(None, "tracing_ratio", 0.0),
        "tracing 1 % on / off": one(0.90, "tracing_ratio", 0.01),
    }


def _agents(name: str, *arguments: Any) -> float:
    from benchmarks import agents  # with the factor last

    return float(getattr(agents, name)(*arguments))


def _agent_rows() -> dict[str, Workload]:
    rows: list[tuple[str, str, str, float | None, bool, str, tuple[Any, ...]]] = [
        # name, measurement, unit, target, is more better, guarantee, arguments
        ("openai SDK alone", "sdk_rate", "calls/s", None, True, "-", ("openai",)),
        ("openai, ctx.chat", "call_rate", "calls/s", 900, True, EXACTLY_ONCE, ("openai", False)),
        ("openai, ChatRequestEvent", "call_rate", "calls/s", 900, True, EXACTLY_ONCE, ("openai", True)),
        ("openai, loop lag p99", "lag_p99_ms", "ms", 50, False, EXACTLY_ONCE, ("openai",)),
        ("anthropic SDK alone", "sdk_rate", "calls/s", None, True, "-", ("anthropic",)),
        ("anthropic, ctx.chat", "call_rate", "calls/s", 900, True, EXACTLY_ONCE, ("anthropic", False)),
        ("anthropic, ChatRequestEvent", "call_rate", "calls/s", 900, True, EXACTLY_ONCE, ("anthropic", True)),
        ("anthropic, loop lag p99", "lag_p99_ms", "ms", 50, False, EXACTLY_ONCE, ("anthropic",)),
        ("ReAct, overhead of a turn", "turn_overhead_ms", "ms", 2, False, EXACTLY_ONCE, ()),
        ("ReAct, 3 turns, 4 tools", "react_rate", "runs/s", None, True, EXACTLY_ONCE, ()),
        ("beside a model with 429", "beside_refusing_ratio", "times", 0.9, True, EXACTLY_ONCE, ()),
        ("429: fairness over keys", "refused_fairness", "Jain", 0.9, True, EXACTLY_ONCE, ()),
    ]
    return {
        name: Workload(partial(_agents, measure, *arguments), unit, target, guarantee, is_more_better=is_more)
        for name, measure, unit, target, is_more, guarantee, arguments in rows
    }


SUITES = {
    "agents": _agent_rows(),
    "durable": _durable_suite(),
    "engine": ENGINE,
    "kafka": {**_kafka_rates(), **_kafka_peers(), **_kafka_rest()},
    "observability": {**_telemetry_rows(), **_event_log_rows()},
}

RATIOS = (
    ("trivial", "quix: trivial, 1,000", None),
    ("stateful, 1,000 keys", "quix: stateful, 1,000", 1.6),
    ("stateful, 50,000 keys", "quix: stateful, 50,000", 2.0),
    ("steps, 1,000 in flight", "dbos: steps", 25),
    ("steps, 1,000 in flight", "dbos-wal: steps", 25),
    ("steps, 1,000 in flight", "langgraph: steps", 20),
    ("openai, ctx.chat", "openai SDK alone", 0.75),
    ("openai, ChatRequestEvent", "openai SDK alone", 0.75),
    ("anthropic, ctx.chat", "anthropic SDK alone", 0.75),
    ("anthropic, ChatRequestEvent", "anthropic SDK alone", 0.75),
)
"""Workload, peer, and how many times as fast the one has to be as the other in the same run."""

if __name__ == "__main__":
    try:
        print(SUITES[sys.argv[1]][sys.argv[2]].measure(QUICK if "--quick" in sys.argv else 1.0))
    except ImportError as error:
        print(f"skipped: {error}")

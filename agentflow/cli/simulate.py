"""`agentflow simulate`: replay seeds of the simulator."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from agentflow.cli.output import EXIT_DONE, EXIT_PROBLEMS_FOUND, print_json

if TYPE_CHECKING:
    from agentflow.testing.simulation import SimulationReport


def run_simulations(chosen: argparse.Namespace) -> int:
    """Run the seeds, print what they came to, and say whether all of them are as the sequential run."""
    seeds: range = chosen.seeds if chosen.seeds is not None else range(chosen.seed, chosen.seed + 1)
    failed = 0
    reports: list[dict[str, object]] = []
    for report in map(_world(chosen), seeds):
        failed += not report.is_ok
        if chosen.json:
            reports.append(_fields(report, with_trace=chosen.trace))
        elif not report.is_ok or chosen.trace or len(seeds) == 1:
            print("\n".join(_lines(report, with_trace=chosen.trace)), flush=True)
    if chosen.json:
        print_json(reports)
    elif len(seeds) > 1:
        print(f"{len(seeds)} seeds, {failed} failed")
    if failed and not chosen.json:
        print("help: agentflow simulate --seed N --trace", file=sys.stderr)
    return EXIT_PROBLEMS_FOUND if failed else EXIT_DONE


def _world(chosen: argparse.Namespace) -> Callable[[int], SimulationReport]:
    if chosen.requests:
        from agentflow.testing.request_simulation import simulate_requests

        return simulate_requests
    if chosen.kafka:
        from agentflow.testing.kafka_simulation import simulate_kafka

        return simulate_kafka
    from agentflow.testing.simulation import simulate

    return simulate


def _lines(report: SimulationReport, *, with_trace: bool) -> Iterator[str]:
    if with_trace:
        yield from (f"  {point}" for point in report.trace)
    yield str(report)


def _fields(report: SimulationReport, *, with_trace: bool) -> dict[str, object]:
    fields: dict[str, object] = {
        "seed": report.seed,
        "ok": report.is_ok,
        "violations": report.violations,
        "lives": report.lives,
        "points": report.points,
        "outputs": report.outputs,
    }
    return fields | {"trace": report.trace} if with_trace else fields

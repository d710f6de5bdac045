"""`python -m benchmarks engine [--quick] [--runs N] [--json FILE] [--check]`."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.workloads import WORKLOADS

EXIT_MISSED = 3


def commit() -> str:
    """Return the commit that is measured."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def measure(name: str, *, is_quick: bool) -> float:
    """Run one workload in a process of its own: a clean heap, and no influence of the one before."""
    command = [sys.executable, "-m", "benchmarks.workloads", name, *(["--quick"] if is_quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return float(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, and say whether the targets are met."""
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure the engine")
    parser.add_argument("suite", choices=["engine"])
    parser.add_argument("--quick", action="store_true", help="one short run each, under a minute")
    parser.add_argument("--runs", type=int, default=5, help="runs of each workload; the median counts")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON")
    parser.add_argument("--check", action="store_true", help="exit 3 when a target is missed")
    chosen = parser.parse_args(argv)
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    head = commit()
    results: list[dict[str, Any]] = []
    print(f"{'workload':28} {'median':>12} {'target':>12}  unit       guarantee       runs")
    for name, workload in WORKLOADS.items():
        runs = [measure(name, is_quick=chosen.quick) for _ in range(1 if chosen.quick else chosen.runs)]
        value = median(runs)
        met = None
        if workload.target is not None:
            met = value >= workload.target if workload.is_more_better else value <= workload.target
        results.append(
            {
                "name": name, "value": value, "unit": workload.unit, "target": workload.target, "met": met, "runs": runs,
                "machine": machine, "commit": head, "guarantee": workload.guarantee,
            }
        )  # fmt: skip
        target = "-" if workload.target is None else f"{workload.target:,.0f}"
        mark = {True: "", False: "  MISSED", None: ""}[met]
        spread = " ".join(f"{run:,.0f}" for run in runs)
        print(
            f"{name:28} {value:12,.0f} {target:>12}  {workload.unit:10} {workload.guarantee:14} {spread}{mark}",
            flush=True,
        )
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(results, indent=2) + "\n")
    is_missed = any(result["met"] is False for result in results)
    return EXIT_MISSED if chosen.check and is_missed else 0


if __name__ == "__main__":
    sys.exit(main())

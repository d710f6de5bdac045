"""`python -m benchmarks agents|durable|engine|kafka|observability [--quick] [--runs N] [--only TEXT] [--json FILE] [--plot FILE] [--check]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.plot import amount, draw
from benchmarks.registry import RATIOS, SUITES, Workload

EXIT_MISSED = 3
PLOT = ".cache/benchmarks/{suite}.png"
ROOT = Path(__file__).resolve().parents[1]


def commit() -> str:
    """Return the commit that is measured, marked where the files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def machine() -> str:
    """Return processor, cores, system and Python."""
    processor, cpuinfo = platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = f"{models[0]} ({processor})" if models else processor
    return f"{processor}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def measure(suite: str, name: str, *, is_quick: bool) -> float | str:
    """Make one measurement in a process of its own: a clean heap, and no influence of the one before; or say why not."""
    command = [sys.executable, "-m", "benchmarks.registry", suite, name, *(["--quick"] if is_quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    said = done.stdout.splitlines()[-1]
    return said if said.startswith("skipped") else float(said)


def result(name: str, workload: Workload, runs: Sequence[float], *, is_quick: bool) -> dict[str, Any]:
    """Return the median of the runs, judged; a quick run of a size that the name states is not."""
    value = median(runs)
    is_judged = not (is_quick and workload.is_size_named)
    return {
        "name": name if is_judged else f"{name} (quick: a quarter)",
        "value": value,
        "unit": workload.unit,
        "target": workload.target if is_judged else None,
        "met": workload.is_met(value) if is_judged else None,
        "is_more_better": workload.is_more_better,
        "runs": list(runs),
        "guarantee": workload.guarantee,
    }


def row(one: dict[str, Any]) -> str:
    """Return a result as a line of the table."""
    target = "-" if one["target"] is None else amount(one["target"])
    spread = " ".join(amount(run) for run in one["runs"])
    mark = "  MISSED" if one["met"] is False else ""
    return (
        f"{one['name']:29} {amount(one['value']):>12} {target:>9}  {one['unit']:9} {one['guarantee']:12} {spread}{mark}"
    )


def ratios(results: Sequence[dict[str, Any]], place: dict[str, str]) -> list[dict[str, Any]]:
    """Return what was measured as a multiple of a peer that was measured in the same run."""
    values = {one["name"]: one["value"] for one in results}
    return [
        result(
            f"- times {peer}", Workload(float, "times", target, is_more_better=True), [ours / theirs], is_quick=False
        )
        | place
        for name, peer, target in RATIOS
        if (ours := values.get(name)) is not None and (theirs := values.get(peer)) is not None
    ]


def exit_status(results: Sequence[dict[str, Any]], *, is_checked: bool) -> int:
    """Return 3 where targets count and one is missed."""
    return EXIT_MISSED if is_checked and any(one["met"] is False for one in results) else 0


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, and say whether the targets are met."""
    parser = argparse.ArgumentParser(
        prog="benchmarks",
        description="Measure agents with models, durable steps, the engine, workers on Kafka, or what it costs to look at them",
    )
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument("--quick", action="store_true", help="one short run each, under a minute")
    parser.add_argument("--runs", type=int, default=5, help="runs of each workload; the median counts")
    parser.add_argument("--only", metavar="TEXT", default="", help="only workloads whose name contains this")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON")
    parser.add_argument("--plot", metavar="FILE", default=PLOT, help=f"where to draw the results (.png, .svg): {PLOT}")
    parser.add_argument("--check", action="store_true", help="exit 3 when a target is missed")
    chosen = parser.parse_args(argv)
    workloads = SUITES[chosen.suite]
    names = [name for name in workloads if chosen.only in name]
    if not names or chosen.runs < 1:
        parser.error("no workload has such a name" if not names else "--runs has to be at least 1")
    place = {"machine": machine(), "commit": commit()}
    print(f"{place['machine']}; commit {place['commit']}")
    print(f"{'workload':29} {'median':>12} {'target':>9}  {'unit':9} {'guarantee':12} runs")
    results = []
    for name in names:
        measured = [
            measure(chosen.suite, name, is_quick=chosen.quick) for _ in range(1 if chosen.quick else chosen.runs)
        ]
        runs = [one for one in measured if not isinstance(one, str)]
        if not runs:
            print(f"{name:29} {measured[0]}", flush=True)
            continue
        results.append(result(name, workloads[name], runs, is_quick=chosen.quick) | place)
        print(row(results[-1]), flush=True)
    for one in ratios(results, place):
        results.append(one)
        print(row(one))
    if chosen.json:
        Path(chosen.json).write_text(json.dumps(results, indent=2) + "\n")
    print(draw(results, Path(chosen.plot.format(suite=chosen.suite))))
    return exit_status(results, is_checked=chosen.check)


if __name__ == "__main__":
    sys.exit(main())

"""The plot of the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def amount(value: float) -> str:
    """Return a number as people read it."""
    return f"{value:,.2f}" if value < 10 else f"{value:,.0f}"


def draw(results: Sequence[dict[str, Any]], path: Path) -> str:
    """Draw each result that has a target as a multiple of it, 1 and more being met; return what was done, in words."""
    try:
        from matplotlib.figure import Figure  # a development dependency
    except ImportError:
        return "no plot: matplotlib is not installed"
    judged = [one for one in results if one["target"] is not None and one["value"] > 0][::-1]
    if not judged:
        return "no plot: no result has a target"
    ratios = [one["value"] / one["target"] if one["is_more_better"] else one["target"] / one["value"] for one in judged]
    figure = Figure(figsize=(9, 1.5 + 0.4 * len(judged)), layout="constrained")
    axes = figure.subplots()
    colors = ["tab:green" if one["met"] else "tab:red" for one in judged]
    bars = axes.barh([one["name"] for one in judged], ratios, color=colors)
    axes.bar_label(bars, [f"{amount(one['value'])} {one['unit']}" for one in judged], padding=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.set_xlabel("multiple of the target (right of 1: met)")
    axes.set_title(f"commit {judged[0]['commit']}, {judged[0]['machine']}", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return f"plot: {path}"

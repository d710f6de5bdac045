"""The tables of metrics and attributes in the documentation are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from agentflow.observability import names

PAGE = Path(__file__).parents[2] / "docs" / "metrics-and-traces.md"


def row(metric: names.MetricName) -> str:
    flink = ", ".join(f"`{name.strip()}`" for name in metric.flink.split(",") if name.strip())
    return f"| `{metric.name}` | {metric.kind.value} | {metric.unit} | {metric.description} | {flink} |"


def test_every_metric_is_documented_as_it_is():
    lines = PAGE.read_text().splitlines()
    assert [line for line in lines if re.match(r"\| `agentflow\.[\w.]+` \| (counter|gauge|histogram)", line)] == [
        row(metric) for metric in names.METRICS
    ]


def test_every_attribute_of_a_span_is_documented():
    attributes = {
        value
        for name, value in vars(names).items()
        if isinstance(value, str)
        and value.startswith(("agentflow.", "error."))
        and name.isupper()
        and name not in ("USER_PREFIX", "RESUMED")
    }
    documented = set(
        re.findall(
            r"^\| `((?:agentflow|error)\.[\w.]+)` \| (?:run|action|step|event|link|all)", PAGE.read_text(), re.MULTILINE
        )
    )
    assert documented == attributes


def test_metrics_of_workers_keep_their_names():
    page = (PAGE.parent / "operating-kafka.md").read_text()
    table = page[page.index("| metric | meaning |") : page.index("`agentflow group describe job.yaml` shows")]
    shown = set(re.findall(r"`(?:agentflow)?(_\w+)`", table))
    known = set()
    for metric in names.METRICS:
        suffix = {"s": "_seconds", "By": "_bytes"}.get(metric.unit, "")
        total = "_total" if metric.kind is names.MetricKind.COUNTER else ""
        known.add(metric.name.removeprefix("agentflow").replace(".", "_") + suffix + total)
    assert all(any(name.endswith(one) for name in known) for one in shown)

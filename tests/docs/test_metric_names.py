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
            r"^\| `((?:agentflow|error)\.[\w.]+)` \| (?:run|action|step|chat|event|link|all)",
            PAGE.read_text(),
            re.MULTILINE,
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


def test_every_metric_of_the_conventions_for_generative_ai_is_documented_as_it_is():
    lines = PAGE.read_text().splitlines()
    for convention in (names.GEN_AI_1_41, names.GEN_AI_LATEST):
        of_tokens = (*convention.tokens_per_call.values(), *convention.tokens.values())
        for metric in (convention.duration, convention.first_chunk, *of_tokens):
            assert f"| `{metric.name}` | {metric.kind.value} | {metric.unit} | {metric.description} |" in lines


def test_every_attribute_of_the_conventions_for_generative_ai_is_documented():
    page = PAGE.read_text()
    values = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}
    assert [
        one for one in (*values, *names.GEN_AI_CONTENT.values()) if one.startswith("gen_ai.") and not is_in(one, page)
    ] == []


def is_in(attribute: str, page: str) -> bool:
    """Whether a page has an attribute: in full, or as the end of those that it follows."""
    parts = attribute.split(".")
    return any(
        f"`{prefix}{'.'.join(parts[at:])}" in page
        for at, prefix in [(0, ""), *((n, ".") for n in range(1, len(parts)))]
    )

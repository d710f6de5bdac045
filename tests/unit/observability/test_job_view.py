"""What `agentflow top` makes of two scrapes: rates, percentiles, the order of actions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow.cli.top import summary
from agentflow.observability import names
from agentflow.observability.job_view import quantile, view_of
from agentflow.observability.otel_metrics import PrometheusText
from agentflow.observability.scrape import Scrape, prometheus_name, read_scrape
from agentflow.observability.series import Series


def scrape(at_s: float, **text: str) -> Scrape:
    lines = "\n".join(text.values())
    return read_scrape(f"{lines}\n", at_s)


def records(count: int, job: str = "shop") -> str:
    return f'agentflow_records_in_total{{job="{job}"}} {count}'


def durations(action: str, *counts: int) -> str:
    bounds = ("0.001", "0.01", "+Inf")
    return "\n".join(
        f'agentflow_action_duration_seconds_bucket{{action="{action}",agent="A",le="{bound}"}} {count}'
        for bound, count in zip(bounds, counts, strict=True)
    )


def test_rates_are_between_the_scrapes_and_summed_over_processes() -> None:
    view = view_of(
        {
            "http://a": (scrape(10, r=records(100)), scrape(12, r=records(300))),
            "http://b": (scrape(10, r=records(0)), scrape(11, r=records(50))),
        }
    )
    assert (view.records_in, view.in_per_s, view.processes) == (350, 150.0, ["http://a", "http://b"])


def test_process_that_began_again_counts_from_nothing_and_the_first_look_has_no_rates() -> None:
    assert view_of({"http://a": (scrape(10, r=records(100)), scrape(12, r=records(30)))}).in_per_s == 15.0
    first = view_of({"http://a": (None, scrape(12, r=records(30), d=durations("act", 1, 2, 3)))})
    assert (first.in_per_s, first.records_in) == (0.0, 30)
    assert [(call.total, call.per_s, call.p50_s) for call in first.actions] == [(3, 0.0, None)]


def test_percentiles_are_of_what_ended_between_the_scrapes_and_the_slowest_is_first() -> None:
    before = scrape(0, r=records(0), a=durations("fast", 50, 50, 50), b=durations("slow", 100, 100, 100))
    now = scrape(2, r=records(0), a=durations("fast", 150, 150, 150), b=durations("slow", 100, 110, 110))
    slow, fast = view_of({"http://a": (before, now)}).actions
    assert (slow.name, slow.per_s, slow.total) == ("slow", 5.0, 110)
    assert slow.p50_s == pytest.approx(0.0055)
    assert (fast.name, fast.per_s, fast.total) == ("fast", 50.0, 150)
    assert fast.p50_s == pytest.approx(0.0005)


def test_names_are_those_of_the_text_that_is_served() -> None:
    from opentelemetry.sdk.resources import Resource

    plain = [metric for metric in names.METRICS if metric.kind is not names.MetricKind.HISTOGRAM]
    text = PrometheusText(Resource({})).text([Series(metric, [({"job": "j"}, 7)]) for metric in plain]).decode()
    served = read_scrape(text, 0.0)
    assert {metric.name: served.total(metric) for metric in plain} == {metric.name: 7 for metric in plain}
    assert prometheus_name(names.ACTION_DURATION) == "agentflow_action_duration_seconds"


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1))
def test_quantile_lies_in_the_bucket_of_the_value(values: list[float], share: float) -> None:
    bounds = [1.0, 5.0, 20.0, math.inf]
    cumulative = {bound: float(sum(value <= bound for value in values)) for bound in bounds}
    exact = sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]
    bucket = next(number for number, bound in enumerate(bounds) if exact <= bound)
    found = quantile(share, cumulative)
    assert found is not None
    assert ([0.0, *bounds][bucket] <= found <= bounds[bucket]) or (bucket == 3 and found == 20.0)


def test_quantile_of_nothing_is_none() -> None:
    assert quantile(0.5, {}) is None
    assert quantile(0.5, {1.0: 0.0, math.inf: 0.0}) is None


def test_calls_of_models_and_what_has_failed_are_shown_where_there_is_something() -> None:
    assert view_of({"http://a": (None, scrape(1, r=records(1)))}).models is None

    def calls(count: int) -> str:
        labels = 'agent="A",action="act",resource="big",model="m"'
        tokens = "\n".join(
            f'agentflow_llm_tokens_total{{{labels},token_type="{kind}"}} {count * each}'
            for kind, each in (("input", 10), ("output", 5), ("cached", 8), ("reasoning", 3))
        )
        return f"agentflow_llm_calls_total{{{labels}}} {count}\n{tokens}\nagentflow_llm_cost_total{{{labels}}} {count / 100}"

    state = (
        'agentflow_resources{resource="store",type="vector_store",state="failed"} 1\n'
        'agentflow_resources{resource="openai",type="chat_model_connection",state="open"} 1\n'
        'agentflow_gate_waiting{connection="openai"} 3\n'
        'agentflow_gate_circuit_open{connection="openai"} 1\n'
        'agentflow_gate_circuit_open{connection="ollama"} 0'
    )
    view = view_of({"http://a": (scrape(0, c=calls(10)), scrape(2, c=calls(30), s=state))})
    assert view.models is not None
    assert (view.models.calls_per_s, view.models.tokens_per_s, view.models.cost) == (10.0, 150.0, 0.3)
    assert (view.models.waiting, view.resources_failed, view.circuits_open) == (3, ["store"], ["openai"])
    line = dict(summary(view))
    assert (line["model calls"], line["cost"], line["failed"], line["circuit open"]) == (
        "10/s",
        "0.3",
        "store",
        "openai",
    )

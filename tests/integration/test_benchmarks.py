"""The benchmark's command: form of its results, judgement, exit status. What it measures is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.__main__ import EXIT_MISSED, exit_status, main, ratios, result
from benchmarks.registry import ENGINE, Workload
from benchmarks.workloads import check_outputs


def test_results_say_what_was_measured_where_on_what_and_against_which_target(tmp_path, capsys):
    plot, results = tmp_path / "deep" / "plot.svg", tmp_path / "results.json"
    arguments = ["engine", "--quick", "--only", "two-hop, 100 keys", "--json", str(results), "--plot", str(plot)]
    assert main(arguments) == 0
    (one,) = json.loads(results.read_text())
    assert (one["name"], one["unit"], one["target"], one["guarantee"]) == (
        "two-hop, 100 keys", "records/s", 120_000, "in memory",
    )  # fmt: skip
    assert one["runs"] == [one["value"]]
    assert one["met"] is (one["value"] >= 120_000)
    assert one["machine"]
    assert one["commit"]
    assert "<svg" in plot.read_text()
    assert "two-hop, 100 keys" in capsys.readouterr().out


def test_wrong_outputs_are_no_result():
    check_outputs("two-hop", [b'{"id":0}', b'{"id":1}'], 2)
    for outputs in ([b'{"id":0}'], [b'{"id":0}', b'{"id":0}']):
        with pytest.raises(AssertionError):
            check_outputs("two-hop", outputs, 2)


@pytest.mark.parametrize(
    ("value", "is_more_better", "is_met"), [(9, True, False), (10, True, True), (10, False, True), (11, False, False)]
)
def test_check_fails_exactly_when_a_target_is_missed(value, is_more_better, is_met):
    workload = Workload(float, "ms", 10, is_more_better=is_more_better)
    judged = result("w", workload, [value, value, 10_000 * value * (1 if is_more_better else -1)], is_quick=False)
    assert judged["value"] == value
    assert judged["met"] is is_met
    assert exit_status([judged], is_checked=True) == (0 if is_met else EXIT_MISSED)
    assert exit_status([judged], is_checked=False) == 0


def test_a_quick_run_of_a_size_that_the_name_states_is_not_judged():
    judged = result("restore, 9 keys", Workload(float, "ms", 10, is_size_named=True), [99], is_quick=True)
    assert (judged["met"], judged["target"], judged["name"]) == (None, None, "restore, 9 keys (quick: a quarter)")


def test_every_target_of_the_engine_has_a_workload():
    targets = {name: workload.target for name, workload in ENGINE.items() if workload.target is not None}
    assert targets == {
        "trivial, 100 keys": 200_000,
        "stateful, 100 keys": 100_000,
        "stateful, 10,000 keys": 100_000,
        "two-hop, 100 keys": 120_000,
        "async 50 ms, 10,000 keys": 25_000,
        "submit, in memory, p50": 150,
        "- above an fdatasync": 0.4,
        "1,000 callers, in memory": 50_000,
        "1,000 callers, durable": 20_000,
        "memory per waiting run": 6 * 1024,
        "checkpoint, 100,000 dirty": 500,
        "- longest stall": 20,
        "restore, 1,000,000 keys": 2_000,
        "start to first output": 800,
        "idle memory": 80,
        "import agentflow": 150,
    }


def test_unknown_workload_is_wrong_use():
    command = [sys.executable, "-m", "benchmarks", "engine", "--only", "nothing of this name"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no workload has such a name" in done.stderr


def test_ratio_to_a_peer_is_judged_where_both_were_measured_in_the_same_run():
    measured = [
        {"name": name, "value": value}
        for name, value in [("stateful, 1,000 keys", 300.0), ("quix: stateful, 1,000", 200.0), ("trivial", 400.0)]
    ]
    (one,) = ratios(measured, {"machine": "m", "commit": "c"})
    assert (one["name"], one["value"], one["target"], one["met"]) == ("- times quix: stateful, 1,000", 1.5, 1.6, False)


@pytest.mark.kafka
@pytest.mark.parametrize("name", ["stateful, 2 processes", "start to first output", "latency p99, 10,000/s"])
def test_kafka_workload_runs_and_checks_its_outputs(kafka, name, tmp_path, monkeypatch):
    monkeypatch.setenv("AGENTFLOW_TEST_KAFKA", kafka)
    results = tmp_path / "results.json"
    arguments = ["kafka", "--quick", "--only", name, "--json", str(results), "--plot", str(tmp_path / "plot.svg")]
    assert main(arguments) == 0
    (one,) = json.loads(results.read_text())
    assert one["value"] > 0

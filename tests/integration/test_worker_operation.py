"""What an operator of a Kafka job has: health, metrics, several processes, the group, dead letters."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests.kafka_place import ROOT, Place
from tests.kafka_topics import check_history

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


@pytest.fixture
def place(tmp_path, kafka):
    return Place(tmp_path, kafka)


def agentflow(place, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "agentflow", *arguments]
    return subprocess.run(
        command, cwd=place.path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def get(address, path):
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def logged(worker, pattern):
    """Wait for a line in the worker's log; return the match."""
    deadline = time.monotonic() + 30
    while (found := re.search(pattern, worker.log.read_text())) is None:
        assert worker.poll() is None, worker.log.read_text()
        assert time.monotonic() < deadline, worker.log.read_text()
    return found


def test_health_and_metrics_are_served_on_one_port(place):
    place.topics.create(place.source, 2)
    place.write(200)
    place.topics.write(place.source, [("k0", {"id": 200, "bad": True})])
    with place.worker("--set", "admin.port=0", "--set", "admin.host=127.0.0.1") as worker:
        address = logged(worker, r"address=(\S+)")[1]
        place.wait_for(place.sink, 200, worker)
        assert get(address, "/livez") == (200, "ok\n")
        assert get(address, "/readyz") == (200, "ok\n")
        assert get(address, "/other")[0] == 404
        _, text = get(address, "/metrics")
    metrics = {
        name: float(value) for name, value in re.findall(r"^(agentflow_\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE)
    }
    assert metrics["agentflow_records_in_total"] == 201
    assert metrics["agentflow_records_out_total"] == 200
    assert metrics["agentflow_dead_letters_total"] == 1
    assert metrics["agentflow_rebalances_total"] == 1
    assert metrics["agentflow_transaction_aborts_total"] == 0
    assert metrics["agentflow_lag"] == 0
    assert metrics["agentflow_checkpoint_size_bytes"] > 0
    expected = ("runs_in_flight", "checkpoint_duration_seconds", "checkpoint_age_seconds", "loop_lag_seconds")
    assert {f"agentflow_{name}" for name in (*expected, "restore_duration_seconds")} <= metrics.keys()
    assert re.search(rf'^agentflow_lag{{.*partition="1",topic="{place.source}"}} 0.0$', text, re.MULTILINE)
    log = worker.log.read_text()
    assert [line for line in log.splitlines() if "opentelemetry" in line or "Exception" in line] == []


def test_worker_is_not_ready_before_it_has_joined_and_a_taken_port_is_told(place):
    place.topics.create(place.source, 1)
    with place.worker("--set", "admin.port=0", "--set", "admin.host=127.0.0.1") as worker:
        address = logged(worker, r"address=(\S+)")[1]
        assert get(address, "/livez")[0] == 200
        logged(worker, "subtask started")
        port = address.rpartition(":")[2]
        second = agentflow(place, "worker", "job.yaml", "--set", f"admin.port={port}", "--set", "admin.host=127.0.0.1")
    assert second.returncode == 2
    assert f"error: admin.port: 127.0.0.1:{port} cannot be listened on" in second.stderr


def test_processes_share_the_job_and_one_that_is_killed_comes_back(place):
    place.topics.create(place.source, 4)
    place.write(2_000, keys=41)
    with place.worker("--processes", "2", "--log-format", "json") as supervisor:
        place.wait_for(place.sink, 2_000, supervisor)
        logged(supervisor, r'"subtasks": ?\[\d, ?\d\].*"process": ?1|"process": ?1.*"subtasks": ?\[\d, ?\d\]')
        children = subprocess.run(
            ["pgrep", "-P", str(supervisor.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert len(children) == 2
        os.kill(int(children[0]), signal.SIGKILL)
        place.write(2_000, keys=41, start=2_000)
        logged(supervisor, "process restarts")
        values = place.wait_for(place.sink, 4_000, supervisor)
    assert check_history(values, range(4_000)) == ""


def test_supervisor_ends_with_the_configuration_error_of_its_members(place):
    done = agentflow(place, "worker", "job.yaml", "--processes", "2")
    assert done.returncode == 2
    assert f"input topic '{place.source}' does not exist" in done.stderr


def test_members_end_when_their_supervisor_is_killed(place):
    place.topics.create(place.source, 2)
    with place.worker("--processes", "2", sends=signal.SIGKILL) as supervisor:
        logged(supervisor, "subtask started")
    deadline = time.monotonic() + 30
    while supervisor.log.read_text().count("worker stopped") < 2:
        assert time.monotonic() < deadline, supervisor.log.read_text()


def test_group_describe_shows_subtasks_owners_checkpoints_and_lag(place):
    place.topics.create(place.source, 2)
    place.write(100)
    with place.worker() as worker:
        place.wait_for(place.sink, 100, worker)
        group = json.loads(agentflow(place, "group", "describe", "job.yaml", "--json").stdout)
        text = agentflow(place, "group", "describe", "job.yaml").stdout
    assert (group["group"], group["state"], group["members"]) == (place.job, "Stable", 1)
    assert [subtask["subtask"] for subtask in group["subtasks"]] == [0, 1]
    for subtask in group["subtasks"]:
        (partition,) = subtask["partitions"]
        assert subtask["checkpoint"] >= 1
        assert str(worker.pid) in subtask["owner"]
        assert (partition["committed"], partition["lag"]) == (partition["end"], 0)
    assert re.search(rf"0 +{place.source}/0 +\d+ +\d+ +\d+ +0 +\S+", text)
    place.write(10, start=100)
    group = json.loads(agentflow(place, "group", "describe", "job.yaml", "--json").stdout)
    assert (group["state"], [subtask["owner"] for subtask in group["subtasks"]]) == ("Empty", [None, None])
    assert sum(partition["lag"] for subtask in group["subtasks"] for partition in subtask["partitions"]) == 10


def test_dead_letters_are_listed_shown_and_sent_back_once(place):
    place.topics.create(place.source, 2)
    records = [(f"k{n}", {"id": n, "bad": n % 2 == 1}) for n in range(4)]
    place.topics.write(place.source, records, headers=[("h", b"1")])
    with place.worker() as worker:
        place.wait_for(place.dead, 2, worker)
    found = json.loads(agentflow(place, "dlq", "list", "job.yaml", "--json").stdout)
    assert sorted(entry["key"] for entry in found) == ["k1", "k3"]
    first = found[0]
    assert (first["reason"]["error-type"], first["headers"], first["sent-back"]) == ("ValueError", {"h": "1"}, False)
    assert "ValueError: bad on purpose" in agentflow(place, "dlq", "list", "job.yaml").stdout
    shown = agentflow(place, "dlq", "show", "job.yaml", first["record"])
    assert (shown.returncode, f"record: {first['record']}" in shown.stdout) == (0, True)
    assert agentflow(place, "dlq", "show", "job.yaml", f"{place.source}/0@999").returncode == 3
    assert agentflow(place, "dlq", "redrive", "job.yaml").returncode == 2
    told = agentflow(place, "dlq", "redrive", "job.yaml", "nothing/0@1")
    assert (told.returncode, "there is no dead letter of 'nothing/0@1'" in told.stderr) == (2, True)

    sent = json.loads(agentflow(place, "dlq", "redrive", "job.yaml", "--all", "--json").stdout)
    assert sorted(sent["redriven"]) == sorted(entry["record"] for entry in found)
    again = json.loads(agentflow(place, "dlq", "redrive", "job.yaml", "--all", "--json").stdout)
    assert again == {"redriven": []}
    back = place.topics.read(place.source)
    assert len(back) == 6
    headers = [record.headers for record in back if len(record.headers) == 2]
    assert sorted(value.decode() for _, (_, value) in headers) == sorted(entry["record"] for entry in found)
    with place.worker() as worker:
        place.wait_for(place.dead, 4, worker)
    found = json.loads(agentflow(place, "dlq", "list", "job.yaml", "--json").stdout)
    assert [entry["sent-back"] for entry in found].count(True) == 2
    assert {entry["headers"].get("agentflow-first-position") for entry in found if not entry["sent-back"]} == {
        entry["record"] for entry in found if entry["sent-back"]
    }


def test_job_without_a_cluster_says_so(place):
    for command in (["group", "describe"], ["dlq", "list"]):
        done = agentflow(place, *command, "job.yaml", "--set", "kafka.brokers=127.0.0.1:1")
        assert done.returncode == 1
        assert "error: no Kafka broker answers" in done.stderr

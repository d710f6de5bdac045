"""Approvals of a Kafka job: the answers come by the topic of its signals, whether a worker runs or not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.desk_agent import DESK
from tests.kafka_place import ROOT, Place

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]
ORDERS = ("o-1", "o-2", "o-3")


def test_answers_reach_a_worker_that_runs_and_the_next_one(tmp_path, kafka):
    place = Place(tmp_path, kafka)
    (tmp_path / "desk.py").write_text(DESK)
    job = (tmp_path / "job.yaml").read_text().replace("agents:Count", "desk:agent")
    (tmp_path / "job.yaml").write_text(f"{job}signals: {{topic: {place.job}-signals}}\nrun: {{park-after: 200ms}}\n")
    place.topics.create(place.source, 2)
    place.topics.write(place.source, [(order, {"order": order}) for order in ORDERS])

    def inbox(*arguments, status=0):
        done = subprocess.run(
            [sys.executable, "-m", "agentflow", "inbox", *arguments, "--json"],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout) if status == 0 else done.stdout + done.stderr

    def waiting(count, worker):
        deadline = time.monotonic() + 60
        while len(waits := inbox("job.yaml")) != count:
            assert worker.poll() is None, worker.log.read_text()
            assert time.monotonic() < deadline, worker.log.read_text()
        return {wait["key"]: wait["id"] for wait in waits}

    with place.worker(sends=signal.SIGKILL) as worker:
        place.wait_for(place.sink, len(ORDERS), worker)  # everybody has asked
        waits = waiting(len(ORDERS), worker)
        inbox("approve", "job.yaml", waits["o-1"])
        place.wait_for(place.sink, len(ORDERS) + 1, worker)
        waiting(2, worker)
    assert "nobody waits" in inbox("approve", "job.yaml", waits["o-1"], status=3)
    assert "give its job file" in inbox("approve", "state", waits["o-2"], status=2)  # nobody would read it there
    inbox("deny", "job.yaml", waits["o-2"], "--reason", "no")
    inbox(
        "approve", "job.yaml", waits["o-2"]
    )  # nobody knows of the first answer before a worker has read it; it counts
    inbox("approve", "job.yaml", waits["o-3"], "--arguments", '{"order": "o-3", "amount": 5}')
    with place.worker() as worker:
        values = place.wait_for(place.sink, 2 * len(ORDERS), worker)
    assert {value["order"]: value["answer"] for value in values if "order" in value} == {
        "o-1": "told: refunded 25",
        "o-2": "told: The call of tool `refund` was denied: no",
        "o-3": "told: refunded 5",
    }
    assert sorted((tmp_path / "refunds").read_text().splitlines()) == ["o-1 25", "o-3 5"]

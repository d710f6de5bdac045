"""Durable steps from Kafka to Kafka: the journal is a topic, and the next owner has nothing but Kafka."""

from __future__ import annotations

import shutil
import signal
import time

import pytest

from tests.kafka_place import Place
from tests.payments import AGENT, CALLS_PER_RUN, check, serve_payments

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]
RUNS = 240


@pytest.fixture
def place(tmp_path, kafka):
    place = Place(tmp_path, kafka)
    (tmp_path / "payments_agent.py").write_text(AGENT)
    job = (tmp_path / "job.yaml").read_text().replace("agents:Count", "payments_agent:Payments")
    (tmp_path / "job.yaml").write_text(job)
    return place


def test_a_worker_that_has_only_kafka_pays_nothing_twice(place, monkeypatch):
    place.topics.create(place.source, 2)
    place.topics.write(place.source, [(f"k{n % 80}", {"n": n}) for n in range(RUNS)])
    with serve_payments() as (service, port):
        monkeypatch.setenv("PAYMENTS_PORT", str(port))
        for life in range(1, 5):
            with place.worker(sends=signal.SIGKILL) as worker:
                deadline = time.monotonic() + 60
                while service.total < RUNS * CALLS_PER_RUN * life // 6:
                    assert worker.poll() is None, worker.log.read_text()
                    assert time.monotonic() < deadline, worker.log.read_text()
                    time.sleep(0.002)
            shutil.rmtree(place.path / "state")
        with place.worker() as worker:
            values = place.wait_for(place.sink, RUNS, worker)
        check(service, values, RUNS)

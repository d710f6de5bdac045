"""A broker that dies, comes back, stands still: nothing is lost, nothing comes twice."""

from __future__ import annotations

import signal
import time

import pytest

from tests.kafka_place import Place
from tests.kafka_topics import check_history
from tests.own_broker import OwnBroker

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    made = OwnBroker(tmp_path_factory.mktemp("broker"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def place(tmp_path, broker):
    return Place(tmp_path, broker.address)


@pytest.mark.parametrize("end", ["SIGKILL", "stop"])
def test_job_goes_on_when_the_broker_comes_back(place, broker, end):
    place.topics.create(place.source, 4)
    place.write(3_000, keys=41)
    with place.worker() as worker:
        place.wait_for(place.sink, 1, worker)
        if end == "stop":
            broker.stop()
        else:
            broker.signal(signal.SIGKILL)
        broker.start()
        place.write(1_000, keys=41, start=3_000)
        values = place.wait_for(place.sink, 4_000, worker)
    assert check_history(values, range(4_000)) == ""


def test_transaction_that_the_broker_aborts_is_repeated(place, broker):
    """A frozen broker lets time pass without answers; one that thaws has transactions that are too old."""
    place.topics.create(place.source, 2)
    place.write(1_000, keys=41)
    with place.worker("--set", "kafka.transaction-timeout=2s", "--set", "checkpoint.interval=900ms") as worker:
        place.wait_for(place.sink, 1_000, worker)
        place.write(1_000, keys=41, start=1_000)
        broker.signal(signal.SIGSTOP)
        time.sleep(4)  # the point: time passes
        broker.signal(signal.SIGCONT)
        values = place.wait_for(place.sink, 2_000, worker)
    assert check_history(values, range(2_000)) == ""


@pytest.mark.timeout(300)  # three brokers start on one machine
def test_job_goes_on_while_one_of_three_brokers_is_dead(tmp_path):
    """Leaders, the coordinator of the group and those of the transactions move to the other two."""
    cluster = OwnBroker(tmp_path, ["broker.session.timeout.ms=3000", "broker.heartbeat.interval.ms=500"], nodes=3)
    cluster.start()
    try:
        place = Place(tmp_path, cluster.address)
        place.topics.create(place.source, 4, replicas=3)
        place.write(1_000, keys=41)
        with place.worker() as worker:
            values = place.wait_for(place.sink, 1_000, worker)
            for node in (1, 2):
                cluster.signal(signal.SIGKILL, node)
                place.write(1_000, keys=41, start=1_000 * node)
                values = place.wait_for(place.sink, 1_000 * (node + 1), worker)
                cluster.start()
        assert check_history(values, range(3_000)) == ""
    finally:
        cluster.stop()


def test_worker_that_finds_no_broker_says_so(place, broker):
    broker.stop()
    try:
        done = place.run()
    finally:
        broker.start()
    assert done.returncode == 1
    assert "error: no Kafka broker answers" in done.stderr

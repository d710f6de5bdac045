"""Membership and recovery: static members, rolling restarts, other clients, and changelogs that lost something."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time

import pytest
from confluent_kafka import Consumer, Producer

from tests.kafka_place import Place
from tests.kafka_topics import check_history

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]


@pytest.fixture
def place(tmp_path, kafka):
    return Place(tmp_path, kafka)


def wait_for_line(worker, pattern, count=1):
    deadline = time.monotonic() + 60
    while len(re.findall(pattern, worker.log.read_text())) < count:
        assert worker.poll() is None, worker.log.read_text()
        assert time.monotonic() < deadline, worker.log.read_text()


def test_static_member_that_restarts_moves_nothing(place):
    place.topics.create(place.source, 4)
    place.write(500, keys=41)
    named = ("--set", "kafka.session-timeout=30s", "--set", "state.dir=state-{0}", "--set", "kafka.instance-id={0}")
    first, second = ([part.format(name) for part in named] for name in ("a", "b"))
    with place.worker(*first) as kept:
        with place.worker(*second, sends=signal.SIGKILL) as other:
            place.wait_for(place.sink, 500, kept)
            wait_for_line(other, "subtask started", 2)
            wait_for_line(kept, "subtask started", 2)
        assignments = kept.log.read_text().count("subtasks assigned")
        with place.worker(*second) as other:
            place.write(500, keys=41, start=500)
            values = place.wait_for(place.sink, 1_000, other)
        assert kept.log.read_text().count("subtasks assigned") == assignments
    assert check_history(values, range(1_000)) == ""


def test_rolling_restart_of_three_workers_loses_and_doubles_nothing(place):
    place.topics.create(place.source, 6)
    with place.worker("--set", "state.dir=a") as first:
        with place.worker("--set", "state.dir=b"), place.worker("--set", "state.dir=c"):
            place.write(1_000, keys=97)
            wait_for_line(first, r"subtasks assigned  subtasks=\"\[\d, \d\]\"")
        with place.worker("--set", "state.dir=b") as second:
            place.write(1_000, keys=97, start=1_000)
            wait_for_line(second, "subtask started")
            place.wait_for(place.sink, 1_500, second)
            with place.worker("--set", "state.dir=c") as third:
                place.write(1_000, keys=97, start=2_000)
                wait_for_line(third, "subtask started")
                values = place.wait_for(place.sink, 3_000, third)
    assert check_history(values, range(3_000)) == ""
    assert "worker failed" not in first.log.read_text()


def test_plain_client_feeds_a_job_and_reads_what_it_writes(place):
    place.topics.create(place.source, 3)
    producer = Producer({"bootstrap.servers": place.topics.brokers})
    for number in range(300):
        producer.produce(place.source, json.dumps({"id": number}), key=f"k{number % 7}", headers={"h": b"1"})
    producer.produce(place.source, b"{broken", key="k0")
    assert producer.flush(30) == 0
    consumer = Consumer(
        {
            "bootstrap.servers": place.topics.brokers,
            "group.id": f"{place.job}-reader",
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    with place.worker() as worker:
        place.wait_for(place.sink, 300, worker)
        place.wait_for_records(place.dead, 1, worker)
        consumer.subscribe([place.sink, place.dead, f"{place.job}-changelog"])
        read = {place.sink: [], place.dead: [], f"{place.job}-changelog": []}
        deadline = time.monotonic() + 60
        while len(read[place.sink]) < 300 or not read[place.dead] or not read[f"{place.job}-changelog"]:
            assert time.monotonic() < deadline, {topic: len(records) for topic, records in read.items()}
            for record in consumer.consume(500, 0.5):
                assert record.error() is None
                read[record.topic()].append(record)
        consumer.close()
    assert check_history([json.loads(record.value()) for record in read[place.sink]], range(300)) == ""
    (dead,) = read[place.dead]
    assert (dead.key(), dead.value(), dict(dead.headers())["agentflow-error-type"]) == (
        b"k0",
        b"{broken",
        b"DecodeError",
    )


def test_changelog_without_its_beginning_is_told_and_nothing_is_guessed(place):
    place.topics.create(place.source, 1)
    place.write(50)
    with place.worker() as worker:
        place.wait_for(place.sink, 50, worker)
    shutil.rmtree(place.path / "state")
    place.topics.configure(f"{place.job}-changelog", {"cleanup.policy": "compact,delete"})
    place.topics.delete_before(f"{place.job}-changelog", 0, 3)
    place.topics.configure(f"{place.job}-changelog", {"cleanup.policy": "compact"})
    done = place.run("--set", "restart.strategy=none")
    assert done.returncode == 1
    assert "error: the changelog begins at offset 3; what was before is gone" in done.stderr


def test_copy_that_may_have_missed_deletions_is_rebuilt(place):
    place.topics.create(place.source, 1)
    place.write(50)
    with place.worker("--set", "state.dir=old") as worker:
        place.wait_for(place.sink, 50, worker)
    shutil.copytree(place.path / "old", place.path / "older")
    place.write(50, start=50)
    with place.worker("--set", "state.dir=old") as worker:
        place.wait_for(place.sink, 100, worker)
    place.topics.configure(f"{place.job}-changelog", {"cleanup.policy": "compact", "delete.retention.ms": "100"})
    (place.path / "older" / "subtask-0" / "marker").touch()
    place.write(50, start=100)
    with place.worker("--set", "state.dir=older") as worker:
        values = place.wait_for(place.sink, 150, worker)
    assert check_history(values, range(150)) == ""
    assert not (place.path / "older" / "subtask-0" / "marker").exists()

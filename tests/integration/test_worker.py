"""`agentflow worker` against a real Apache Kafka: exactly once, and what can be wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.kafka_place import ROOT, Place
from tests.kafka_topics import check_history

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


@pytest.fixture
def place(tmp_path, kafka):
    return Place(tmp_path, kafka)


def test_every_record_is_processed_once_in_the_order_of_its_key(place):
    place.topics.create(place.source, 4)
    place.write(1_000, keys=37)
    with place.worker() as worker:
        values = place.wait_for(place.sink, 1_000, worker)
    assert check_history(values, range(1_000)) == ""
    keys = {record.key.decode(): record.partition for record in place.topics.read(place.source)}
    assert {record.key.decode(): record.partition for record in place.topics.read(place.sink)} == keys


def test_worker_goes_on_behind_its_checkpoint_after_every_kind_of_end(place):
    place.topics.create(place.source, 2)
    for life, end in enumerate((signal.SIGTERM, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)):
        place.write(300, start=300 * life)
        with place.worker(sends=end) as worker:
            values = place.wait_for(place.sink, 300 * (life + 1), worker)
        assert check_history(values, range(300 * (life + 1))) == ""


def test_state_is_restored_from_nothing_but_kafka(place):
    place.topics.create(place.source, 2)
    place.write(300)
    with place.worker(sends=signal.SIGKILL) as worker:
        place.wait_for(place.sink, 300, worker)
    shutil.rmtree(place.path / "state")
    place.write(300, start=300)
    with place.worker() as worker:
        values = place.wait_for(place.sink, 600, worker)
    assert check_history(values, range(600)) == ""


def test_values_larger_than_a_record_may_be_are_restored_from_the_changelog(place):
    place.topics.create(place.source, 1)
    sizes = [3_000_000, 700_000, 2_000_000]
    place.topics.write(place.source, [("k", {"id": n, "large": size}) for n, size in enumerate(sizes)])
    with place.worker() as worker:
        place.wait_for(place.sink, 3, worker)
    shutil.rmtree(place.path / "state")
    place.topics.write(place.source, [("k", {"id": 3, "show": True})])
    with place.worker() as worker:
        assert place.wait_for(place.sink, 4, worker)[-1] == 2_000_000


def test_bad_records_in_the_middle_become_dead_letters_as_they_came(place):
    place.topics.create(place.source, 1)
    bad = [("k0", {"id": 1, "bad": True}), ("k1", b"{not json"), (None, {"id": 2})]
    place.write(3)
    place.topics.write(place.source, bad, headers=[("traceparent", b"00-abc"), ("raw", b"\xff")])
    place.write(3, start=3)
    with place.worker() as worker:
        values = place.wait_for(place.sink, 6, worker)
    assert check_history(values, range(6)) == ""
    letters = sorted(
        place.topics.read(place.dead), key=lambda letter: dict(letter.headers)["agentflow-source-position"]
    )
    assert [(letter.key, letter.value) for letter in letters] == [
        (b"k0", json.dumps(bad[0][1]).encode()),
        (b"k1", b"{not json"),
        (None, json.dumps(bad[2][1]).encode()),
    ]
    for letter, error, offset in zip(letters, ("ValueError", "DecodeError", "MissingKey"), (3, 4, 5), strict=True):
        assert letter.headers[:2] == (("traceparent", b"00-abc"), ("raw", b"\xff"))
        reason = dict(letter.headers[2:])
        assert reason["agentflow-error-type"] == error.encode()
        assert reason["agentflow-source-position"] == f"{place.source}/0/{offset}".encode()
        assert reason["agentflow-job"] == place.job.encode()


def test_second_worker_takes_over_what_the_first_one_held(place):
    place.topics.create(place.source, 4)
    place.write(200, keys=40)
    with place.worker(sends=signal.SIGKILL) as first:
        place.wait_for(place.sink, 200, first)
        with place.worker("--set", "state.dir=other") as second:
            place.write(200, keys=40, start=200)
            place.wait_for(place.sink, 400, second)
            first.kill()
            first.wait()
            place.write(200, keys=40, start=400)
            values = place.wait_for(place.sink, 600, second)
            first.poll = lambda: None  # its end is part of the test
            first.send_signal = lambda number: None
    assert check_history(values, range(600)) == ""


def test_topics_that_are_missing_or_do_not_fit_are_told_all_at_once(place):
    place.topics.create(f"{place.job}-a", 2)
    place.topics.create(f"{place.job}-b", 3)
    place.topics.create(f"{place.job}-changelog", 2)
    topics = f"[{place.job}-a, {place.job}-b, {place.source}]"
    done = place.run("--set", f"source={{kafka: {{topics: {topics}}}}}", "--set", "topics.create=false")
    assert done.returncode == 2
    for problem in (
        f"error: input topic '{place.source}' does not exist",
        f"error: input topics have unequal partition counts ('{place.job}-a' has 2, '{place.job}-b' has 3)",
        f"error: topic '{place.sink}' does not exist, and topics.create is false",
        f"error: changelog topic '{place.job}-changelog' has cleanup.policy=delete, it has to be compact",
    ):
        assert problem in done.stderr


def test_broker_that_does_not_answer_is_told(place):
    done = place.run("--set", "kafka.brokers=127.0.0.1:9")
    assert done.returncode == 1
    assert "error: no Kafka broker answers" in done.stderr
    assert "brokers 127.0.0.1:9" in done.stderr
    assert "Traceback" not in done.stderr


def test_records_that_retention_took_are_never_skipped_silently(place):
    place.topics.create(place.source, 1)
    place.write(10)
    with place.worker() as worker:
        place.wait_for(place.sink, 10, worker)
    recreate = f"""
import asyncio
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka import TopicPartition, AIOKafkaProducer
async def main():
    producer = AIOKafkaProducer(bootstrap_servers="{place.topics.brokers}")
    await producer.start()
    for n in range(5):
        await producer.send_and_wait("{place.source}", b'{{"id": %d}}' % (10 + n), key=b"k0")
    await producer.stop()
    admin = AIOKafkaAdminClient(bootstrap_servers="{place.topics.brokers}")
    await admin.start()
    await admin.delete_records({{TopicPartition("{place.source}", 0): RecordsToDelete(before_offset=13)}})
    await admin.close()
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", recreate], check=True)
    done = place.run()
    assert done.returncode == 1
    assert f"error: offset 10 of '{place.source}/0' does not exist (any more)" in done.stderr


def test_changelog_that_was_deleted_is_told_and_nothing_is_read_anew(place):
    place.topics.create(place.source, 1)
    place.write(10)
    with place.worker() as worker:
        place.wait_for(place.sink, 10, worker)
    shutil.rmtree(place.path / "state")
    place.topics.delete(f"{place.job}-changelog")
    done = place.run("--set", "restart.strategy=none")
    assert done.returncode == 1
    assert (
        f"error: the group has read '{place.source}/0' up to offset 10, but the changelog knows nothing" in done.stderr
    )
    assert len(place.topics.values(place.sink)) == 10


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("event-time={field: t}", "event time does not cross a repartition topic"),
        ("kafka.security.protocol=sasl-ssl", "kafka.security.mechanism is missing"),
        ("sink={jsonl: {path: out/}}", "a job that reads Kafka writes Kafka"),
        ("guarantee=none", "a worker gives exactly-once or at-least-once, not none"),
        ("checkpoint.interval=40s", "the broker would abort open checkpoints"),
        ("state.dir=null", "needs a state directory"),
    ],
)
def test_what_a_worker_cannot_give_is_an_error(place, setting, told):
    done = place.run("--set", setting, "--set", "key-by=user")
    assert done.returncode == 2
    assert told in done.stderr


def test_run_refuses_a_kafka_job_and_names_the_command(place):
    command = [sys.executable, "-m", "agentflow", "run", "job.yaml"]
    done = subprocess.run(
        command, cwd=place.path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "is run by: agentflow worker" in done.stderr

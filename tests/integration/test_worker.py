"""`agentflow worker` against a real Apache Kafka: exactly once, and what can be wrong."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.kafka_topics import Topics, check_history

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]
ROOT = Path(__file__).resolve().parents[2]

AGENTS = """\
from agentflow import Agent, EventType, InputEvent, OutputEvent, Retry, RunnerContext, action


class Count(Agent):
    @action(EventType.InputEvent, retry=Retry(attempts=2, initial="1ms"))
    async def count(event: InputEvent, ctx: RunnerContext) -> None:
        count = ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)
        if event.input.get("bad"):
            raise ValueError("bad on purpose")
        if event.input.get("large"):
            ctx.short_term_memory.set("large", "x" * event.input["large"])
        if event.input.get("show"):
            ctx.send_event(OutputEvent(len(ctx.short_term_memory.get("large"))))
            return
        ctx.send_event(OutputEvent({"k": ctx.key, "n": count, "id": event.input["id"]}))
"""


class Place:
    """A job of its own: topics, job file, state."""

    def __init__(self, path, brokers):
        self.path = path
        self.topics = Topics(brokers)
        self.job = f"t{uuid.uuid4().hex[:12]}"
        self.source, self.sink, self.dead = f"{self.job}-in", f"{self.job}-out", f"{self.job}-dead"
        (path / "agents.py").write_text(AGENTS)
        (path / "job.yaml").write_text(
            f"job: {self.job}\nagent: agents:Count\nkey-by: record.key\n"
            f"source: {{kafka: {{topics: {self.source}}}}}\nsink: {{kafka: {{topic: {self.sink}}}}}\n"
            f"dead-letter: {{kafka: {{topic: {self.dead}}}}}\n"
            f'checkpoint: {{interval: 100ms}}\nkafka: {{brokers: "{brokers}", session-timeout: 6s, heartbeat-interval: 500ms}}\n'
            "state: {dir: state}\nrestart: {delay: 100ms}\n"
        )

    def write(self, count, *, keys=5, start=0):
        self.topics.write(self.source, [(f"k{n % keys}", {"id": n}) for n in range(start, start + count)])

    @contextlib.contextmanager
    def worker(self, *arguments, sends=signal.SIGTERM):
        """A running worker; at the end it gets a signal."""
        command = [sys.executable, "-m", "agentflow", "worker", "job.yaml", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        log = self.path / f"log-{uuid.uuid4().hex}"
        with log.open("wb") as out:
            process = subprocess.Popen(command, cwd=self.path, env=environment, stdout=out, stderr=out)
            process.log = log
            try:
                yield process
                assert process.poll() is None, log.read_text()
                process.send_signal(sends)
                assert process.wait(30) == (143 if sends == signal.SIGTERM else -9), log.read_text()
            finally:
                process.kill()
                process.wait()

    def wait_for(self, topic, count, process):
        """Wait until a topic has so many committed records; return their values."""
        deadline = time.monotonic() + 60
        while len(values := self.topics.values(topic)) < count:
            assert process.poll() is None, process.log.read_text()
            assert time.monotonic() < deadline, f"{len(values)} of {count}:\n{process.log.read_text()}"
        return values

    def run(self, *arguments):
        command = [sys.executable, "-m", "agentflow", "worker", "job.yaml", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, cwd=self.path, env=environment, capture_output=True, text=True, check=False, timeout=60
        )


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
    done = place.run("--set", f"source={{kafka: {{topics: {topics}}}}}", "--set", "kafka.create-topics=false")
    assert done.returncode == 2
    for problem in (
        f"error: input topic '{place.source}' does not exist",
        f"error: input topics have unequal partition counts ('{place.job}-a' has 2, '{place.job}-b' has 3)",
        f"error: output topic '{place.sink}' does not exist, and kafka.create-topics is false",
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
        ("key-by=user", "records of Kafka lie where their own key belongs"),
        ("sink={jsonl: {path: out/}}", "a job that reads Kafka writes Kafka"),
        ("guarantee=at-least-once", "a worker gives exactly-once"),
        ("checkpoint.interval=40s", "the broker would abort open checkpoints"),
        ("state.dir=null", "needs a state directory"),
    ],
)
def test_what_a_worker_cannot_give_is_an_error(place, setting, told):
    done = place.run("--set", setting)
    assert done.returncode == 2
    assert told in done.stderr


def test_run_refuses_a_kafka_job_and_names_the_command(place):
    command = [sys.executable, "-m", "agentflow", "run", "job.yaml"]
    done = subprocess.run(
        command, cwd=place.path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "is run by: agentflow worker" in done.stderr

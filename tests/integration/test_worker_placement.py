"""A key has one place, whoever spreads the input, whenever a worker starts, and whatever was known then."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from agentflow.connectors.kafka.connection import Consumer
from agentflow.connectors.kafka.partitioners import crc32, murmur2
from agentflow.state.changelog_records import CHECKPOINT_KEY
from agentflow.state.kafka_placement import read_placement
from tests.kafka_place import ROOT, Place
from tests.kafka_topics import check_history

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

PARTITIONS = 4
USERS = 8
AGENTS = """\
from agentflow import Agent, EventType, InputEvent, OutputEvent, RunnerContext, action


class Count(Agent):
    @action(EventType.InputEvent)
    async def count(event: InputEvent, ctx: RunnerContext) -> None:
        count = ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)
        if event.input.get("asks"):
            ctx.send_event(OutputEvent({"asks": ctx.key}))
            await ctx.wait_for("go", timeout="1h")
        ctx.send_event(OutputEvent({"k": ctx.key, "n": count, "id": event.input["id"]}))
"""


@pytest.fixture
def place(tmp_path, kafka):
    made = Place(tmp_path, kafka)
    (tmp_path / "agents.py").write_text(AGENTS)
    with (tmp_path / "job.yaml").open("a") as file:
        file.write(f"signals: {{topic: {made.job}-signals}}\nrun: {{park-after: 50ms}}\n")
    made.topics.create(made.source, PARTITIONS)
    return made


def by(key, *more):
    return [part for pair in (f"key-by={key}", *more) for part in ("--set", pair)]


def write(place, key_by, ids, **fields):
    """Write records as librdkafka does: by CRC-32 of the record's key, which is not the job's where that is in the value."""
    records = {}
    for number in ids:
        user = f"u{number % USERS}"
        key = user if key_by == "record.key" else f"order-{number}"
        value = {"user": user, "id": number} | fields
        records.setdefault(crc32(key.encode(), PARTITIONS), []).append((key, value))
    for partition, written in records.items():
        place.topics.write(place.source, written, partition=partition)


def wait_until_ready(worker, subtasks=PARTITIONS):
    """Wait until so many subtasks run there."""
    while worker.log.read_text().count("subtask started") < subtasks:
        assert worker.poll() is None, worker.log.read_text()


def agentflow(place, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "agentflow", *arguments],
        cwd=place.path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def misplaced(place, partitioner):
    """Return outputs whose key would be elsewhere."""
    return [r for r in place.topics.read(place.sink) if partitioner(r.key, PARTITIONS) != r.partition]


def stored(place):
    return asyncio.run(
        read_placement(f"{place.job}-changelog", PARTITIONS, {"bootstrap_servers": place.topics.brokers}, Consumer)
    )


def append(place, topic, partition, records):
    """Append (key, value) records as they are."""

    async def send():
        producer = AIOKafkaProducer(bootstrap_servers=place.topics.brokers, linger_ms=5)
        await producer.start()
        await asyncio.gather(*[await producer.send(topic, value, key, partition=partition) for key, value in records])
        await producer.stop()

    asyncio.run(send())


def forget_the_partitioner(place):
    """Write the checkpoint records anew, as a version did that did not name it."""
    topic = f"{place.job}-changelog"
    last = {r.partition: r.value for r in place.topics.read(topic) if r.key == CHECKPOINT_KEY}
    assert last
    for partition, value in last.items():
        old = msgspec.msgpack.encode(msgspec.msgpack.decode(value)[:3])
        append(place, topic, partition, [(CHECKPOINT_KEY, old)])
    assert stored(place).partitioners == ()


@pytest.mark.parametrize(("key_by", "partitioner"), [("user", murmur2), ("record.key", crc32)])
def test_a_key_keeps_its_place_over_restarts_though_nothing_was_known_at_first(place, key_by, partitioner):
    with place.worker(*by(key_by)) as first:
        wait_until_ready(first)  # the input is empty
        write(place, key_by, range(24))
        place.wait_for(place.sink, 24, first)
        with place.worker(*by(key_by)) as second:  # another one, which has an input to look at
            wait_until_ready(second, PARTITIONS // 2)
            write(place, key_by, range(24, 48))
            place.wait_for(place.sink, 48, second)
    assert stored(place).partitioners == (partitioner.__name__,)
    with place.worker(*by(key_by)) as third:
        write(place, key_by, range(48, 72))
        outputs = place.wait_for(place.sink, 72, third)
    assert check_history(outputs, range(72)) == ""
    assert misplaced(place, partitioner) == []


@pytest.mark.parametrize("key_by", ["user", "record.key"])
def test_signals_reach_every_run_that_waits(place, key_by):
    with place.worker(*by(key_by)) as worker:
        wait_until_ready(worker)
        write(place, key_by, range(USERS), asks=True)
        place.wait_for(place.sink, USERS, worker)
    for partition in range(PARTITIONS):  # what the input has shown once, it shows no more
        place.topics.delete_before(place.source, partition, -1)
    with place.worker(*by(key_by)) as worker:
        for number in range(USERS):
            agentflow(place, "signal", "job.yaml", f"u{number}", "go", "1", *by(key_by))
        outputs = place.wait_for(place.sink, 2 * USERS, worker)
    assert check_history([output for output in outputs if "id" in output], range(USERS)) == ""


@pytest.mark.parametrize("key_by", ["user", "record.key"])
def test_a_job_whose_checkpoints_say_another_partitioner_is_not_started(place, key_by):
    place.topics.write(place.source, [(f"u{n}", {"user": f"u{n}", "id": n}) for n in range(USERS)])
    with place.worker(*by(key_by)) as worker:
        place.wait_for(place.sink, USERS, worker)
    failed = place.run(*by(key_by, "kafka.partitioner=crc32"))
    assert failed.returncode == 2
    assert "say that its keys are placed by murmur2, and the job has kafka.partitioner: crc32" in failed.stderr
    assert "help: set kafka.partitioner: murmur2, or auto" in failed.stderr


def test_an_input_that_changes_its_partitioner_is_an_error_that_does_not_advise_to_split_keys(place):
    place.topics.write(place.source, [(f"u{n}", {"id": n}) for n in range(USERS)])
    with place.worker(*by("record.key")) as worker:
        place.wait_for(place.sink, USERS, worker)
    write(place, "record.key", range(100, 200))
    failed = place.run(*by("record.key"))
    assert failed.returncode == 2
    assert "the job's checkpoints say murmur2" in failed.stderr
    assert "let every producer of the input use murmur2" in failed.stderr


def test_records_that_come_where_the_configured_partitioner_would_not_put_them_stop_the_worker(place):
    with place.worker(*by("record.key", "kafka.partitioner=murmur2")) as worker:
        wait_until_ready(worker)
        write(place, "record.key", range(USERS))
        assert worker.wait(60) == 2
        worker.is_expected_to_end = True
        told = worker.log.read_text()
    assert "by murmur2 (kafka.partitioner: murmur2): keys would be split over subtasks" in told
    assert "set kafka.partitioner: crc32" in told
    with place.worker(*by("record.key", "kafka.partitioner=crc32")) as worker:
        outputs = place.wait_for(place.sink, USERS, worker)
    assert check_history(outputs, range(USERS)) == ""


def test_state_of_an_older_version_goes_on_by_the_partitioner_that_placed_it(place):
    write(place, "user", range(24))
    with place.worker(*by("user", "kafka.partitioner=crc32")) as worker:
        place.wait_for(place.sink, 24, worker)
    forget_the_partitioner(place)
    failed = place.run(*by("user", "kafka.partitioner=murmur2"))
    assert failed.returncode == 2
    assert "set kafka.partitioner: crc32, which agrees with all" in failed.stderr
    with place.worker(*by("user")) as worker:
        write(place, "user", range(24, 48))
        outputs = place.wait_for(place.sink, 48, worker)
    assert check_history(outputs, range(48)) == ""
    assert misplaced(place, crc32) == []
    assert stored(place).partitioners == ("crc32",)


def test_state_that_an_older_version_has_split_is_an_error(place):
    place.topics.write(place.source, [(f"u{n}", {"user": f"u{n}", "id": n}) for n in range(USERS)])
    with place.worker(*by("user")) as worker:
        place.wait_for(place.sink, USERS, worker)
    forget_the_partitioner(place)
    changelog = f"{place.job}-changelog"
    rows = [(r.key, r.value) for r in place.topics.read(changelog) if r.key.startswith(b"r\x01") and r.partition == 2]
    assert rows
    append(place, changelog, 1, rows)
    failed = place.run(*by("user"))
    assert (failed.returncode, "the memory of keys is split already" in failed.stderr) == (2, True)
    chosen = by("user", "kafka.partitioner=murmur2", "kafka.partitioner-check=false")
    with place.worker(*chosen) as worker:
        write(place, "user", range(USERS, 2 * USERS))
        place.wait_for(place.sink, 2 * USERS, worker)
    with place.worker(*by("user")) as worker:  # it is stored now
        write(place, "user", range(2 * USERS, 3 * USERS))
        outputs = place.wait_for(place.sink, 3 * USERS, worker)
    assert check_history(outputs, range(3 * USERS)) == ""


def test_what_is_stored_is_found_behind_everything_that_was_written_after_it(place):
    write(place, "user", range(USERS))
    with place.worker(*by("user")) as worker:
        place.wait_for(place.sink, USERS, worker)
    for partition in range(PARTITIONS):
        append(place, f"{place.job}-changelog", partition, [(b"m", b"")] * 700)
    assert stored(place).partitioners == ("murmur2",)

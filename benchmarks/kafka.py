"""Kafka to Kafka through a worker in this process; the broker runs on the same machine.

The rate counts from the first record that the worker admits to the commit of the last one. Every output is read back, as a
consumer with `read_committed` sees it: their number, and the sums of the counts.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from agentflow import Agent, AgentPlan, EventType, JobSettings, StateSettings
from agentflow.connectors.kafka.group import Reading
from agentflow.connectors.kafka.partitioners import murmur2
from agentflow.environment import KafkaJob, new_event_loop
from agentflow.runtime.collection import rare_collections
from agentflow.runtime.job import AgentStage
from agentflow.runtime.settings import CheckpointSettings, KafkaSettings, RunSettings
from benchmarks.workloads import record, stateful, trivial, waiting

DEADLINE_S = 120
PARTITIONS = 4


async def _create(brokers: str, topic: str, partitions: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
    await admin.start()
    await admin.create_topics([NewTopic(topic, partitions, 1)])
    await admin.close()


async def _load(brokers: str, topic: str, partitions: int, records: Iterable[tuple[bytes, bytes]]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=brokers, max_batch_size=2**18)
    await producer.start()
    batches = [producer.create_batch() for _ in range(partitions)]
    places: dict[bytes, int] = {}
    sent = []
    for key, value in records:
        place = places.get(key)
        if place is None:
            place = places[key] = murmur2(key, partitions)
        if batches[place].append(timestamp=None, key=key, value=value) is None:
            sent.append(await producer.send_batch(batches[place], topic, partition=place))
            batches[place] = producer.create_batch()
            batches[place].append(timestamp=None, key=key, value=value)
    sent += [await producer.send_batch(batch, topic, partition=place) for place, batch in enumerate(batches)]
    await asyncio.gather(*sent)
    await producer.stop()


async def _read(brokers: str, topic: str, count: int) -> list[Any]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=brokers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=2**23,
    )
    await consumer.start()
    partitions = [TopicPartition(topic, number) for number in range(count)]
    consumer.assign(partitions)
    ends = await consumer.end_offsets(partitions)
    values = []
    for partition in partitions:
        consumer.seek(partition, 0)
    while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
        for fetched in (await consumer.getmany(timeout_ms=20)).values():
            values += [msgspec.json.decode(one.value) for one in fetched]
    await consumer.stop()
    return values


async def _rate(
    brokers: str, action: Callable[..., Any], keys: int, records: int, partitions: int, interval_ms: int, directory: str
) -> float:
    job = f"bench-{uuid.uuid4().hex[:8]}"
    await _create(brokers, f"{job}-in", partitions)
    made = (record("in", n, keys) for n in range(records))
    await _load(brokers, f"{job}-in", partitions, ((b"u%05d" % (one.offset % keys), one.value or b"") for one in made))
    settings = JobSettings(
        job=job,
        state=StateSettings(dir=directory),
        run=RunSettings(in_flight_max=10_000),
        checkpoint=CheckpointSettings(interval_ms=interval_ms),
        kafka=KafkaSettings(brokers=brokers),
    )
    agent = Agent("bench").add_action("act", [EventType.InputEvent], action)
    stage = AgentStage(AgentPlan.from_agent(agent), "record.key")
    kafka = KafkaJob(settings, [stage], Reading((f"{job}-in",)), f"{job}-out")
    worker = await kafka.worker()
    running = asyncio.ensure_future(worker.run())
    began = ended = 0.0
    deadline = time.perf_counter() + DEADLINE_S
    last_ms = 0
    while not ended:
        await asyncio.sleep(0.002)
        assert not running.done(), running.result()
        assert time.perf_counter() < deadline, f"{worker.status} after {DEADLINE_S} s"
        status = worker.status
        began = began or (time.perf_counter() if status.records_in else 0.0)
        if status.records_out == records and status.runs_in_flight == 0:
            last_ms = last_ms or int(time.time() * 1000)
            if (status.checkpoint_completed_ms or 0) > last_ms:
                ended = time.perf_counter()
    worker.request_stop()
    await running
    _check(await _read(brokers, f"{job}-out", partitions), records, keys, is_counting=action is stateful)
    return records / (ended - began)


def _check(values: list[Any], records: int, keys: int, *, is_counting: bool) -> None:
    assert len(values) == records, f"{len(values)} outputs of {records} records"
    if is_counting:
        last: dict[str, int] = {}
        for value in values:
            assert value["count"] == last.get(value["user"], 0) + 1, f"{value}: out of order, lost or doubled"
            last[value["user"]] = value["count"]
        assert len(last) == min(keys, records)
    else:
        ids = [value if isinstance(value, int) else value["id"] for value in values]
        assert len(set(ids)) == records, "an output came twice"


def _brokers() -> str:
    """Return a broker's address: that of AGENTFLOW_TEST_KAFKA, or of the project's own script."""
    given = os.environ.get("AGENTFLOW_TEST_KAFKA")
    if given:
        return given
    script = Path(__file__).resolve().parents[1] / "scripts" / "kafka"
    started = subprocess.run([script, "start"], stdout=subprocess.PIPE, text=True, check=True)
    return started.stdout.strip().splitlines()[-1]


def rate(name: str, keys: int, records: int, interval_ms: int, factor: float) -> float:
    """Run a job over a topic of its own with 4 partitions, and return its records per second."""
    brokers = _brokers()
    action = {"trivial": trivial, "stateful": stateful, "async": waiting}[name]
    with (
        tempfile.TemporaryDirectory() as directory,
        rare_collections(),
        asyncio.Runner(loop_factory=new_event_loop) as runner,
    ):
        return runner.run(_rate(brokers, action, keys, int(records * factor), PARTITIONS, interval_ms, directory))

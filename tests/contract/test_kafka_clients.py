"""One suite for the clients that simulations use and for aiokafka with a real broker: what a job relies on."""

from __future__ import annotations

import asyncio
import random
import uuid

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import IllegalOperation, ProducerFenced

from agentflow.connectors.kafka.simulated_clients import SimulatedConsumer, SimulatedProducer
from agentflow.connectors.kafka.simulated_cluster import Link, SimulatedCluster
from tests.kafka_topics import Topics


class Simulated:
    """Clients of a simulated cluster."""

    def __init__(self):
        self.topic, self.group = "t", "g"
        self._cluster = SimulatedCluster({"t": 1}, lambda: 0.005)
        self._link = Link(random.Random(1), 0.0, 0.001)

    def producer(self, identity):
        return SimulatedProducer(self._cluster, self._link, transactional_id=identity)

    def consumer(self, isolation="read_committed"):
        luck = random.Random(2)
        return SimulatedConsumer(self._cluster, self._link, luck, isolation_level=isolation, group_id=None)

    async def committed(self):
        found = self._cluster.offsets.get((self.group, TopicPartition(self.topic, 0)))
        return None if found is None else found[0]


class Real:
    """Clients of a broker."""

    def __init__(self, brokers):
        self._brokers = brokers
        self.topic = self.group = f"c{uuid.uuid4().hex[:8]}"
        self._prefix = self.topic
        Topics(brokers).create(self.topic, 1)

    def producer(self, identity):
        name = f"{self._prefix}-{identity}"
        return AIOKafkaProducer(bootstrap_servers=self._brokers, transactional_id=name, retry_backoff_ms=10)

    def consumer(self, isolation="read_committed"):
        return AIOKafkaConsumer(
            bootstrap_servers=self._brokers,
            isolation_level=isolation,
            enable_auto_commit=False,
            auto_offset_reset="none",
        )

    async def committed(self):
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._brokers, group_id=self.group, enable_auto_commit=False, auto_offset_reset="none"
        )
        await consumer.start()
        try:
            return await consumer.committed(TopicPartition(self.topic, 0))
        finally:
            await consumer.stop()


@pytest.fixture(params=["simulated", pytest.param("real", marks=pytest.mark.kafka)])
def clients(request):
    return Simulated() if request.param == "simulated" else Real(request.getfixturevalue("kafka"))


async def send(producer, topic, *values):
    batch = producer.create_batch()
    for value in values:
        assert batch.append(timestamp=1, key=b"k", value=value, headers=[]) is not None
    return await producer.send_batch(batch, topic, partition=0)


async def read_to(clients, end):
    """Wait until a reader is told this end, and return its values; a decided transaction shows a moment later."""
    while (found := await read(clients))[1] < end:
        assert found[1] <= end
    return found[0]


async def read(clients, isolation="read_committed"):
    """Return the values of the topic, the end that a reader is told, and its position behind them."""
    consumer, where = clients.consumer(isolation), TopicPartition(clients.topic, 0)
    await consumer.start()
    try:
        consumer.assign([where])
        end = (await consumer.end_offsets([where]))[where]
        consumer.seek(where, 0)
        values = []
        while await consumer.position(where) < end:
            fetched = await consumer.getmany(where, timeout_ms=20)
            values += [record.value for record in fetched.get(where, [])]
        return values, end, await consumer.position(where)
    finally:
        await consumer.stop()


async def test_record_is_visible_when_its_transaction_is_committed(clients):
    producer = clients.producer("a")
    await producer.start()
    await producer.begin_transaction()
    await (await send(producer, clients.topic, b"1", b"2"))
    assert await read(clients) == ([], 0, 0)
    assert (await read(clients, "read_uncommitted"))[0] == [b"1", b"2"]
    await producer.commit_transaction()
    await producer.stop()
    assert await read_to(clients, 3) == [b"1", b"2"]
    assert await read(clients) == ([b"1", b"2"], 3, 3)


async def test_aborted_records_are_passed_over(clients):
    producer = clients.producer("a")
    await producer.start()
    for value, is_committed in ((b"1", True), (b"2", False), (b"3", True)):
        await producer.begin_transaction()
        await (await send(producer, clients.topic, value))
        await (producer.commit_transaction() if is_committed else producer.abort_transaction())
    await producer.stop()
    assert await read_to(clients, 6) == [b"1", b"3"]


async def test_open_transaction_hides_what_is_behind_it(clients):
    first, second = clients.producer("a"), clients.producer("b")
    await first.start()
    await second.start()
    await first.begin_transaction()
    await (await send(first, clients.topic, b"1"))
    await second.begin_transaction()
    await (await send(second, clients.topic, b"2"))
    await second.commit_transaction()
    assert (await read(clients))[:2] == ([], 0)
    await first.abort_transaction()
    await first.stop()
    await second.stop()
    assert await read_to(clients, 4) == [b"2"]


async def test_second_owner_fences_the_first_and_aborts_what_it_has_open(clients):
    old, new = clients.producer("a"), clients.producer("a")
    await old.start()
    await old.begin_transaction()
    await (await send(old, clients.topic, b"old"))
    await new.start()
    assert (await read(clients))[:2] == ([], 2)
    with pytest.raises(ProducerFenced):
        await old.commit_transaction()
    await new.begin_transaction()
    await (await send(new, clients.topic, b"new"))
    await new.commit_transaction()
    await old.stop()
    await new.stop()
    assert await read_to(clients, 4) == [b"new"]


async def test_send_of_a_fenced_producer_fails(clients):
    old, new = clients.producer("a"), clients.producer("a")
    await old.start()
    await new.start()
    await old.begin_transaction()
    with pytest.raises(ProducerFenced):
        await (await send(old, clients.topic, b"old"))
    await asyncio.wait_for(old.stop(), 5)
    await new.stop()
    assert (await read(clients, "read_uncommitted"))[0] == []


async def test_group_offsets_take_effect_with_the_commit(clients):
    producer, where = clients.producer("a"), TopicPartition(clients.topic, 0)
    await producer.start()
    await producer.begin_transaction()
    await producer.send_offsets_to_transaction({where: (7, "")}, clients.group)
    await producer.abort_transaction()
    assert await clients.committed() is None
    await producer.begin_transaction()
    await producer.send_offsets_to_transaction({where: (9, "note")}, clients.group)
    await producer.commit_transaction()
    await producer.stop()
    assert await clients.committed() == 9


async def test_nothing_is_sent_outside_a_transaction(clients):
    producer = clients.producer("a")
    await producer.start()
    with pytest.raises(IllegalOperation):
        await send(producer, clients.topic, b"1")
    with pytest.raises((IllegalOperation, AssertionError)):
        await producer.commit_transaction()
    await producer.stop()

"""All journals obey the laws of the port; that of Kafka some more."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from agentflow.connectors.kafka.producer import SubtaskProducer
from agentflow.errors import SinkError, StateCorrupted, StateMismatch
from agentflow.runtime.ports import KeyedState
from agentflow.runtime.settings import KafkaSettings
from agentflow.state.kafka_journal import KafkaJournal
from agentflow.state.memory import MemoryKeyedState, MemoryStorage
from agentflow.state.rocksdb import RocksDBKeyedState
from agentflow.testing.conformance.journal import JournalConformance, OpenJournal
from tests.kafka_topics import Topics


class _BesideState(JournalConformance):
    """The journals of keyed states, which close them."""

    @pytest.fixture
    def open_journal(self, open_state: Callable[[], KeyedState]) -> OpenJournal:
        async def open_journal():
            self.state = open_state()
            return self.state.journal

        return open_journal

    async def close(self, journal):
        self.state.close()


class TestRocksDBJournal(_BesideState):
    @pytest.fixture
    def open_state(self, tmp_path):
        return lambda: RocksDBKeyedState.open(tmp_path / "state", job="contract", free_min_bytes=0)


class TestMemoryJournal(_BesideState):
    @pytest.fixture
    def open_state(self):
        storage = MemoryStorage()
        return lambda: MemoryKeyedState(storage)

    async def crash(self, journal):
        self.state.close()
        self.state._storage.lose_unsynced()


@pytest.mark.kafka
@pytest.mark.timeout(60)
class TestKafkaJournal(JournalConformance):
    @pytest.fixture
    def open_journal(self, kafka) -> OpenJournal:
        job = f"j{uuid.uuid4().hex[:8]}"
        self.topic = f"{job}-journal"
        self.topics = Topics(kafka)
        self.topics.create(self.topic, 1)
        self.producers = {}

        async def open_journal():
            producer = SubtaskProducer(KafkaSettings(brokers=kafka), job, 0, f"{job}-changelog")
            await producer.start()
            journal = KafkaJournal(producer, self.topic, 0, {"bootstrap_servers": kafka}, AIOKafkaConsumer)
            self.producers[journal] = producer
            return journal

        return open_journal

    async def close(self, journal):
        await self.producers.pop(journal).close()

    async def begin(self) -> int:
        """Return the first offset that the broker has."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.topics.brokers)
        await consumer.start()
        try:
            partition = TopicPartition(self.topic, 0)
            return (await consumer.beginning_offsets([partition]))[partition]
        finally:
            await consumer.stop()

    async def test_an_owner_that_was_fenced_cannot_append_and_what_it_appended_counts(self, open_journal) -> None:
        old = await open_journal()
        await old.read(0)
        await old.append([(0, b"paid for")])
        new = await open_journal()
        with pytest.raises(SinkError):
            await old.append([(0, b"too late")])
        assert list((await new.read(0))[0]) == [(0, b"paid for")]
        await self.close(old)
        await self.close(new)

    async def test_the_broker_deletes_what_is_released_when_it_is_much(self, open_journal) -> None:
        journal = await open_journal()
        await journal.read(0)
        few = await journal.append([(0, b"x")] * 100)
        await journal.release(few)
        assert await self.begin() == 0, "each cut costs a connection"
        many = await journal.append([(0, b"x")] * 10_000)
        end = await journal.append([(0, b"y")])
        await journal.release(many)
        assert await self.begin() == many
        await self.close(journal)
        journal = await open_journal()
        records, read_to = await journal.read(many)
        assert list(records) == [(0, b"y")]
        assert read_to >= end
        await self.close(journal)

    async def test_a_journal_that_lacks_records_or_ends_too_early_is_refused(self, open_journal) -> None:
        journal = await open_journal()
        await journal.read(0)
        position = await journal.append([(0, b"a"), (0, b"b"), (0, b"c")])
        await self.close(journal)
        journal = await open_journal()
        with pytest.raises(StateMismatch, match="the journal ends at"):
            await journal.read(position + 1_000)
        await journal.append([(0, b"d")])
        await asyncio.to_thread(self.topics.delete_before, self.topic, 0, 2)
        with pytest.raises(StateCorrupted, match="what no checkpoint has, from 1 on, is gone"):
            await journal.read(1)
        await self.close(journal)

"""Signals of a Kafka job: a topic beside its input topics, with as many partitions and the same keys."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from agentflow.api.codecs import JSON
from agentflow.connectors.kafka.connection import client_options, unreachable
from agentflow.connectors.kafka.partitioners import Partitioner
from agentflow.core.records import Record
from agentflow.errors import NotConfigured
from agentflow.runtime.settings import KafkaSettings


class PartitionSignals:
    """The signals of one subtask. Its `PartitionSource` is opened and closed with them, and fills the buffer.

    Attributes:
        label: Of the partition.
        buffer: What was fetched and not taken out.
        next_offset: Behind the last one that was taken out.
    """

    name = "signals"
    is_replayable = True
    codec = JSON
    partitions = ()
    idle_timeout_ms = None

    def __init__(self, label: str) -> None:
        self.label = label
        self.buffer: deque[Record] = deque()
        self.next_offset = 0
        self._arrived = asyncio.Event()

    def take(self, records: Sequence[Record]) -> None:
        """Take fetched records; those from before a seek are dropped."""
        wanted = self.wanted_offset
        self.buffer += [record for record in records if record.offset >= wanted]
        self._arrived.set()

    @property
    def wanted_offset(self) -> int:
        """Offset of the next record that is wanted."""
        return self.buffer[-1].next_offset if self.buffer else self.next_offset

    async def open(self, positions: Mapping[str, int]) -> None:
        """Nothing: the source of the subtask is open."""

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next signals; wait while there is none."""
        while not self.buffer:
            self._arrived.clear()
            await self._arrived.wait()
        records = [self.buffer.popleft() for _ in range(min(records_max, len(self.buffer)))]
        self.next_offset = records[-1].next_offset
        return records

    async def append(self, document: bytes) -> None:  # noqa: ARG002 (the port)
        """Refuse: another subtask may have the key.

        Raises:
            NotConfigured: Always.
        """
        raise NotConfigured(
            "a Kafka job gets its signals from its topic",
            fix=f"send it to the topic of partition {self.label}, or with 'agentflow signal'",
        )

    async def release(self, positions: Mapping[str, int]) -> None:
        """Nothing: the topic has its own retention."""

    async def close(self) -> None:
        """Nothing: the source of the subtask is closed."""


async def send_signal(
    settings: KafkaSettings, topic: str, partitioner: Partitioner, key: bytes, document: bytes
) -> None:
    """Write a signal to where the subtask of its key reads it; the topic exists.

    Raises:
        SourceError: No broker answers.
    """
    producer = AIOKafkaProducer(**client_options(settings), acks="all", enable_idempotence=True)
    try:
        await producer.start()
        partitions = await producer.partitions_for(topic)
        await producer.send_and_wait(topic, document, key=key, partition=partitioner(key, len(partitions)))
    except KafkaError as error:
        raise unreachable(settings, error) from error
    finally:
        await producer.stop()

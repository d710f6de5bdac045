"""The dead-letter topic of a job: read it, and send records back to where they came from.

Redriving all that has not been redriven yet is exactly-once: the records and the place up to which they are sent back, an
offset of the group ``{job}-dlq``, are one transaction. Records that are named one by one are sent each time they are named.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec
from aiokafka import AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from agentflow.connectors.kafka.connection import (
    KAFKA_ERRORS,
    REQUEST_BYTES_MAX,
    Consumer,
    broken,
    client_options,
    unreachable,
)
from agentflow.connectors.kafka.sinks import REASON_PREFIX
from agentflow.core.records import FIRST_POSITION_HEADER
from agentflow.errors import ConfigError
from agentflow.runtime.settings import KafkaSettings

_FETCH_BYTES = 8 * 2**20
_WAIT_MS = 20


class DeadLetterEntry(msgspec.Struct, frozen=True):
    """One record of a dead-letter topic.

    Attributes:
        position: Its place there, ``topic/partition@offset``.
        record: Where it came from, ``topic/partition@offset``.
        key: Its own key; None: it has none.
        value: Its own value; None: it has none.
        headers: Its own headers.
        reason: Why it is here: job, agent, action, error-type, error-message, attempt, …
        timestamp_ms: Its own timestamp.
        is_redriven: Whether it was sent back with all others before it.
    """

    position: str
    record: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    reason: dict[str, str]
    timestamp_ms: int
    is_redriven: bool


class DeadLetterTopic:
    """A job's dead letters.

    Args:
        settings: Brokers.
        job: Name of the job.
        topic: Its dead-letter topic.
    """

    def __init__(self, settings: KafkaSettings, job: str, topic: str) -> None:
        self._settings = settings
        self._job = job
        self._topic = topic
        self._group = f"{job}-dlq"

    async def entries(self) -> list[DeadLetterEntry]:
        """Return every dead letter, partition after partition, oldest first.

        Raises:
            SourceError: No broker answers.
            ConfigError: There is no such topic.
        """
        try:
            redriven = await self._redriven()
            return [
                _entry(record, is_redriven=record.offset < redriven.get(record.partition, 0))
                async for record in self._records()
            ]
        except KafkaError as error:
            raise unreachable(self._settings, error) from error

    async def redrive(self, positions: Sequence[str]) -> list[DeadLetterEntry]:
        """Send records back to the partitions they came from, in one transaction, and return them.

        Args:
            positions: Records by either of their positions; empty: all that were not redriven yet.

        Raises:
            ConfigError: A position names no dead letter.
            SinkError: Nothing was sent.
        """
        entries = await self.entries()
        wanted = [normal_position(position) for position in positions]
        known = {position for entry in entries for position in (entry.position, entry.record)}
        if missing := [position for position in wanted if position not in known]:
            raise ConfigError([f"there is no dead letter of '{position}'" for position in missing])
        chosen = [
            entry
            for entry in entries
            if (not entry.is_redriven if not wanted else entry.position in wanted or entry.record in wanted)
        ]
        if chosen:
            await self._send(chosen, is_all=not wanted)
        return chosen

    async def _send(self, chosen: Sequence[DeadLetterEntry], *, is_all: bool) -> None:
        producer = AIOKafkaProducer(
            **client_options(self._settings),
            transactional_id=f"{self._job}-dlq-redrive",
            max_request_size=REQUEST_BYTES_MAX,
        )
        try:
            await producer.start()
            async with producer.transaction():
                sent = []
                for entry in chosen:
                    topic, partition, _ = _parts(entry.record)
                    first = dict(entry.headers).get(FIRST_POSITION_HEADER, entry.record.encode())
                    headers = [header for header in entry.headers if header[0] != FIRST_POSITION_HEADER]
                    headers.append((FIRST_POSITION_HEADER, first))
                    future = await producer.send(
                        topic,
                        entry.value,
                        entry.key,
                        partition=partition,
                        timestamp_ms=entry.timestamp_ms,
                        headers=headers,
                    )
                    sent.append(future)
                for future in sent:
                    await future
                if is_all:
                    ends: dict[TopicPartition, int] = {}
                    for entry in chosen:
                        topic, partition, offset = _parts(entry.position)
                        ends[TopicPartition(topic, partition)] = offset + 1
                    await producer.send_offsets_to_transaction(ends, self._group)
        except KAFKA_ERRORS as error:
            raise broken(error, "sending dead letters back", {"topic": self._topic}) from error
        finally:
            await producer.stop()

    async def _redriven(self) -> dict[int, int]:
        """Return partition → offset up to which everything was redriven."""
        admin = AIOKafkaAdminClient(**client_options(self._settings))
        try:
            await admin.start()
            if self._topic not in await admin.list_topics():
                raise ConfigError([f"dead-letter topic '{self._topic}' does not exist: no record has failed yet"])
            found = await admin.list_consumer_group_offsets(self._group)
            return {one.partition: committed.offset for one, committed in found.items() if one.topic == self._topic}
        finally:
            await admin.close()

    async def _records(self) -> AsyncIterator[ConsumerRecord]:
        consumer = Consumer(
            self._topic,
            **client_options(self._settings),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_partition_fetch_bytes=_FETCH_BYTES,
        )
        try:
            await consumer.start()
            partitions = sorted(consumer.assignment())
            ends = await consumer.end_offsets(partitions)
            for one in partitions:
                await consumer.seek_to_beginning(one)
                while await consumer.position(one) < ends[one]:
                    for record in (await consumer.getmany(one, timeout_ms=_WAIT_MS)).get(one, ()):
                        yield record
        finally:
            await consumer.stop()


def normal_position(position: str) -> str:
    """Return ``topic/partition@offset`` for that, or for a run id (``topic/partition/offset``)."""
    head, _, offset = position.replace("@", "/").rpartition("/")
    return f"{head}@{offset}"


def _parts(position: str) -> tuple[str, int, int]:
    label, _, offset = position.rpartition("@")
    topic, _, partition = label.rpartition("/")
    return topic, int(partition), int(offset)


def _entry(record: ConsumerRecord, *, is_redriven: bool) -> DeadLetterEntry:
    own, reason = [], {}
    for name, value in record.headers:
        if name.startswith(REASON_PREFIX) and name != FIRST_POSITION_HEADER:
            reason[name.removeprefix(REASON_PREFIX)] = (value or b"").decode("utf-8", "replace")
        else:
            own.append((name, value or b""))
    return DeadLetterEntry(
        f"{record.topic}/{record.partition}@{record.offset}",
        normal_position(reason.pop("source-position", "?/0@0")),
        record.key,
        record.value,
        tuple(own),
        reason,
        record.timestamp,
        is_redriven,
    )

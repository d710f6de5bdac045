"""The consumer group of a worker: which subtasks it owns, and their records.

One consumer reads for all subtasks. A partition whose subtask is behind is not asked for, so its fetched records stay where they
are (`pause` would throw them away). Exceptions of a rebalance listener are swallowed by aiokafka, so they are kept and raised.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError

from agentflow.connectors.kafka.assignor import subtask_assignor
from agentflow.connectors.kafka.connection import client_options, unreachable
from agentflow.connectors.kafka.producer import SubtaskProducer
from agentflow.core.records import Record
from agentflow.errors import SourceError
from agentflow.runtime.settings import KafkaSettings

_BUFFERED_MAX = 2_000  # records per subtask; above it the partition is not asked for
_FETCH_MS = 50
_FETCH_BYTES = 4 * 2**20
_NEVER_MS = 24 * 3_600_000

OnAssigned = Callable[[Sequence[int]], Awaitable[None]]


class KafkaGroup:
    """One member of the job's consumer group.

    Args:
        settings: Brokers and membership.
        job: Name of the group.
        topics: Input topics; equal partition counts make the subtasks.
    """

    def __init__(self, settings: KafkaSettings, job: str, topics: Sequence[str]) -> None:
        self._settings = settings
        self._job = job
        self.topics = tuple(topics)
        self._sources: dict[int, PartitionSource] = {}
        self._owned: list[int] = []
        self._consumer: AIOKafkaConsumer | None = None
        self._wake = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self.failure: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def start(self, on_assigned: OnAssigned, on_revoked: Callable[[], Awaitable[None]]) -> None:
        """Join the group; ``on_assigned`` gets the subtasks of this worker after each rebalance.

        Raises:
            SourceError: No broker answers.
        """
        settings = self._settings
        consumer = AIOKafkaConsumer(
            **client_options(settings),
            group_id=self._job,
            group_instance_id=settings.instance_id,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            session_timeout_ms=settings.session_timeout_ms,
            heartbeat_interval_ms=min(settings.heartbeat_interval_ms, settings.session_timeout_ms // 3),
            max_poll_interval_ms=_NEVER_MS,
            max_partition_fetch_bytes=_FETCH_BYTES,
            partition_assignment_strategy=[subtask_assignor(lambda: sorted(self._sources))],
        )
        consumer.subscribe(self.topics, listener=_Listener(self, on_assigned, on_revoked))
        try:
            await consumer.start()
        except KafkaError as error:
            with contextlib.suppress(KafkaError):
                await consumer.stop()
            raise unreachable(settings, error) from error
        self._consumer = consumer
        self._reading = asyncio.ensure_future(self._read())

    async def stop(self) -> None:
        """Leave the group. Idempotent."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
            self._reading = None
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.stop()
        if not self.failure.done():
            self.failure.cancel()

    def fail(self, error: BaseException) -> None:
        """Keep the first error for whoever waits on ``failure``."""
        if not self.failure.done():
            self.failure.set_exception(error)

    def source(self, subtask: int, producer: SubtaskProducer) -> PartitionSource:
        """Return a new source of a subtask, in the place of its former one."""
        self._sources[subtask] = source = PartitionSource(self, subtask, producer)
        return source

    def forget(self, subtask: int) -> None:
        """Hold a subtask no more."""
        self._sources.pop(subtask, None)

    # -- for the sources
    async def seek(self, subtask: int, positions: Mapping[str, int]) -> None:
        """Go to positions; a partition without one is read from its beginning.

        Offsets are not looked at: the broker answers requests of one connection in order, and a fetch may wait there. A
        position that does not exist any more fails the group with the first fetch.

        Raises:
            SourceError: The group has an offset, and the changelog has none: it was deleted, and with it the job's memory.
        """
        consumer = self._consumer
        assert consumer is not None
        for topic in self.topics:
            partition = TopicPartition(topic, subtask)
            if partition not in consumer.assignment():
                continue
            offset = positions.get(_label(partition))
            if offset is not None:
                consumer.seek(partition, offset)
                continue
            committed = await consumer.committed(partition)
            if committed is not None:
                raise _lost_changelog(_label(partition), committed, self._job)
            await consumer.seek_to_beginning(partition)
        self._wake.set()

    def unplace(self) -> None:
        """Ask for nothing until it is said anew where to read."""
        for source in self._sources.values():
            source.is_placed = False

    def wake(self) -> None:
        """Look again at who wants records."""
        self._wake.set()

    async def _read(self) -> None:
        try:
            while True:
                try:
                    await self._read_once()
                except NoOffsetForPartitionError:
                    continue  # of a partition that was just assigned, from before we said where to read it
                except OffsetOutOfRangeError as error:
                    self._check_lost(error)
        except SourceError as error:
            self.fail(error)
        except KafkaError as error:
            self.fail(unreachable(self._settings, error))

    def _check_lost(self, error: OffsetOutOfRangeError) -> None:
        """Raise SourceError when an offset that is really wanted does not exist (not one from before a seek)."""
        for partition, offset in dict(error.args[0]).items():
            source = self._sources.get(partition.partition)
            label = _label(partition)
            if source is not None and source.is_open and source.wanted_offset(label) == offset:
                raise _lost_place(label, offset)

    async def _read_once(self) -> None:
        consumer = self._consumer
        assert consumer is not None
        wanted = [
            partition
            for partition in consumer.assignment()
            if (source := self._sources.get(partition.partition)) is not None and source.wants_more
        ]
        if not wanted:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FETCH_MS / 1000):
                    await self._wake.wait()
            return
        fetched = await consumer.getmany(*wanted, timeout_ms=_FETCH_MS)
        for partition, records in fetched.items():
            source = self._sources.get(partition.partition)
            if source is not None and records:
                source.take(_label(partition), records)

    async def _assigned(self, partitions: set[TopicPartition], on_assigned: OnAssigned) -> None:
        self._owned = sorted({partition.partition for partition in partitions})
        await on_assigned(self._owned)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, group: KafkaGroup, on_assigned: OnAssigned, on_revoked: Callable[[], Awaitable[None]]) -> None:
        self._group = group
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Everything is revoked before each join: perhaps lost, most likely kept."""
        if not revoked:
            return
        self._group.unplace()
        try:
            await self._on_revoked()
        except Exception as error:  # noqa: BLE001 (aiokafka would swallow it)
            self._group.fail(error)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Tell the worker what it owns now."""
        try:
            await self._group._assigned(assigned, self._on_assigned)  # noqa: SLF001 (one module)
        except Exception as error:  # noqa: BLE001 (aiokafka would swallow it)
            self._group.fail(error)


class PartitionSource:
    """The records of one subtask: partitions of the same number of all input topics."""

    name = "kafka"
    is_replayable = True
    codec = "json"

    def __init__(self, group: KafkaGroup, subtask: int, producer: SubtaskProducer) -> None:
        self._group = group
        self._subtask = subtask
        self._producer = producer
        self._buffer: deque[Record] = deque()
        self._arrived = asyncio.Event()
        self._next: dict[str, int] = {}  # label → offset behind the last record that was taken out
        self.is_open = False
        self.is_placed = False  # since the last rebalance

    @property
    def wants_more(self) -> bool:
        """Whether its partitions are to be asked for."""
        return self.is_open and self.is_placed and len(self._buffer) < _BUFFERED_MAX

    def wanted_offset(self, label: str) -> int:
        """Offset of the next record that is wanted from a partition."""
        for record in reversed(self._buffer):
            if record.source == label:
                return record.next_offset
        return self._next.get(label, 0)

    async def open(self, positions: Mapping[str, int]) -> None:
        """Start at positions; a partition without one at its beginning."""
        self._buffer.clear()
        self._next = dict(positions)
        await self._group.seek(self._subtask, self._next)
        self.is_placed = True
        self.is_open = True
        self._group.wake()

    async def resume(self) -> None:
        """Go on behind what was taken out, after a rebalance that gave the subtask back."""
        if self.is_open:
            self._buffer.clear()
            await self._group.seek(self._subtask, self._next)
            self.is_placed = True
            self._group.wake()

    def take(self, label: str, records: Sequence[Any]) -> None:
        """Take fetched records; those that do not follow on are of a fetch from before a seek."""
        expected = self.wanted_offset(label)
        self._buffer.extend(
            Record(label, r.offset, r.offset + 1, r.value or b"null", r.key, r.timestamp, tuple(r.headers))
            for r in records
            if r.offset >= expected
        )
        self._arrived.set()

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Wait for records, and for room in the outbox of the producer."""
        await self._producer.room()
        while not self._buffer:
            self._arrived.clear()
            await self._arrived.wait()
        was_full = not self.wants_more
        buffer = self._buffer
        records = [buffer.popleft() for _ in range(min(records_max, len(buffer)))]
        for record in records:
            self._next[record.source] = record.next_offset
        if was_full and self.wants_more:
            self._group.wake()
        return records

    async def close(self) -> None:
        """Take no more records, and abort what the producer has open: it lives as long as the source that it belongs to."""
        self.is_open = False
        self._buffer.clear()
        await self._producer.close()


def _label(partition: TopicPartition) -> str:
    return f"{partition.topic}/{partition.partition}"


def _lost_changelog(label: str, offset: int, job: str) -> SourceError:
    return SourceError(
        f"the group has read '{label}' up to offset {offset}, but the changelog knows nothing of it",
        where={"group": job, "partition": label},
        expected="the changelog topic that belongs to the group's offsets",
        fix="restore the changelog topic; or start a job of another name, which begins with empty state",
    )


def _lost_place(label: str, offset: int) -> SourceError:
    return SourceError(
        f"offset {offset} of '{label}' does not exist (any more)",
        where={"partition": label},
        expected="every record from the last checkpoint on",
        fix="look at the retention of the input topic; restore it, or start a job of another name, knowing what it misses",
    )

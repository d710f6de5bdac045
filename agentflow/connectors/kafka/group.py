"""The consumer group of a worker: which subtasks it owns, and their records.

One consumer reads for all subtasks. A partition whose subtask is behind is not asked for, so its fetched records stay where they
are (`pause` would throw them away). Exceptions of a rebalance listener are swallowed by aiokafka, so they are kept and raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.errors import IllegalStateError, KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError

from agentflow.api.codecs import JSON, Codec
from agentflow.connectors.kafka.assignor import subtask_assignor
from agentflow.connectors.kafka.connection import Consumer, client_options, unreachable
from agentflow.connectors.kafka.placement import LOOKED_AT, Placement
from agentflow.connectors.kafka.producer import SubtaskProducer
from agentflow.connectors.kafka.signals import PartitionSignals
from agentflow.core.records import Record
from agentflow.errors import ConfigError, PartitionCountChanged, SourceError
from agentflow.runtime.settings import KafkaSettings

_FETCH_RECORDS = 2_000  # some 3 ms of decoding
_ROUND_RECORDS = 1_024
_TURN_RECORDS_MIN = 16
_BUFFERED_MAX = 2_000  # records per subtask; above it the partition is not asked for
_FETCH_MS = 50
_FETCH_BYTES = 4 * 2**20
_METADATA_MS = 10_000  # so soon new partitions are seen
_WATCH_S = 1
_PURGE_S = 30
_LEAVE_S = 10
_NEVER_MS = 24 * 3_600_000

OnAssigned = Callable[[Sequence[int]], Awaitable[None]]


class Reading(msgspec.Struct, frozen=True):
    """What a job reads.

    Attributes:
        topics: Input topics; equal partition counts make the subtasks.
        codec: Of their values.
        on_offset_reset: Where to go on when the next record does not exist any more: ``fail``, ``earliest`` or ``latest``.
        idle_timeout_ms: See `Source.idle_timeout_ms`.
        signals: Topic of signals; None: there is none.
    """

    topics: tuple[str, ...]
    codec: Codec = JSON
    on_offset_reset: str = "fail"
    idle_timeout_ms: int | None = None
    signals: str | None = None

    @property
    def every(self) -> tuple[str, ...]:
        """All topics that the group reads."""
        return self.topics if self.signals is None else (*self.topics, self.signals)


class KafkaGroup:
    """One member of the job's consumer group.

    Args:
        settings: Brokers and membership.
        job: Name of the group.
        reading: What to read, and how.
        subtasks: Number of subtasks; topics that get more or fewer partitions stop the group.
        repartition: Topics of ``reading`` whose records are deleted when they are in a completed checkpoint.
        on_event: Told as (name, fields) of what somebody should know; for logs.
        placement: Learns where records of the input are; None: nobody looks.
        new_consumer: Makes the client.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        job: str,
        reading: Reading,
        subtasks: int,
        repartition: Sequence[str] = (),
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
        placement: Placement | None = None,
        new_consumer: Callable[..., Any] = Consumer,
    ) -> None:
        self._new_consumer = new_consumer
        self.placement = placement
        self._on_event = on_event or (lambda name, fields: None)  # noqa: ARG005
        self._settings = settings
        self.reading = reading
        self._subtasks = subtasks
        self._repartition = tuple(repartition)
        self.transaction_aborts = 0
        self._background: list[asyncio.Task[None]] = []
        self._job = job
        self._sources: dict[int, PartitionSource] = {}
        self._owned: list[int] = []
        self._consumer: Any = None  # Consumer
        self._wake = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self.failure: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def start(self, on_assigned: OnAssigned, on_revoked: Callable[[], Awaitable[None]]) -> None:
        """Join the group; ``on_assigned`` gets the subtasks of this worker after each rebalance.

        Raises:
            SourceError: No broker answers.
        """
        settings = self._settings
        consumer = self._new_consumer(
            **client_options(settings),
            group_id=self._job,
            client_id=f"{socket.gethostname()}-{os.getpid()}",
            group_instance_id=settings.instance_id or None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            session_timeout_ms=settings.session_timeout_ms,
            heartbeat_interval_ms=min(settings.heartbeat_interval_ms, settings.session_timeout_ms // 3),
            max_poll_interval_ms=_NEVER_MS,
            max_partition_fetch_bytes=_FETCH_BYTES,
            metadata_max_age_ms=_METADATA_MS,
            partition_assignment_strategy=[subtask_assignor(lambda: sorted(self._sources))],
        )
        consumer.subscribe(self.reading.every, listener=_Listener(self, on_assigned, on_revoked))
        try:
            await consumer.start()
        except KafkaError as error:
            with contextlib.suppress(KafkaError):
                await consumer.stop()
            raise unreachable(settings, error) from error
        self._consumer = consumer
        self._reading = asyncio.ensure_future(self._read())
        self._background = [asyncio.ensure_future(self._watch_partitions())]
        if self._repartition:
            self._background.append(asyncio.ensure_future(self._purge()))

    async def stop(self) -> None:
        """Leave the group. Idempotent."""
        tasks = [*self._background, *([self._reading] if self._reading is not None else [])]
        self._background, self._reading = [], None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with contextlib.suppress(TimeoutError):  # the group notices by itself then
                async with asyncio.timeout(_LEAVE_S):
                    await consumer.stop()
        if not self.failure.done():
            self.failure.cancel()

    @property
    def turn_share(self) -> int:
        """Records that one subtask may take for a turn of the loop: all busy ones together make a round of some 10 ms.

        Else the checkpoint of one of 64, which is a dozen turns, would take seconds.
        """
        busy = sum([1 for source in self._sources.values() if source.is_busy])
        return max(_TURN_RECORDS_MIN, _ROUND_RECORDS // max(busy, 1))

    @property
    def lags(self) -> dict[str, int]:
        """Partition → records behind the last one that was admitted; of partitions that were read from."""
        lags, consumer = {}, self._consumer
        for source in list(self._sources.values()) if consumer is not None else ():
            for label in source.partitions:
                topic, _, number = label.rpartition("/")
                try:
                    end = consumer.highwater(TopicPartition(topic, int(number)))
                except IllegalStateError:
                    continue  # not ours just now
                if end is not None:
                    lags[label] = max(0, end - source.next_offset(label))
        return lags

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
        for topic in self.reading.every:
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

    async def _watch_partitions(self) -> None:
        """Fail when a topic has another number of partitions than at start: keys would move away from their memory."""
        while True:
            try:
                self._check_partitions()
            except PartitionCountChanged as error:
                self.fail(error)
                return
            await asyncio.sleep(_WATCH_S)

    def _check_partitions(self) -> None:
        consumer = self._consumer
        if consumer is None:
            return  # the first assignment comes while the consumer starts
        for topic in self.reading.every:
            count = len(consumer.partitions_for_topic(topic) or ())
            if count and count != self._subtasks:
                raise _other_partitions(topic, self._subtasks, count)

    async def _purge(self) -> None:
        """Delete records of repartition topics that no recovery reads again, as Kafka Streams does."""
        admin = AIOKafkaAdminClient(**client_options(self._settings))
        done: dict[TopicPartition, int] = {}
        try:
            await admin.start()
            while True:
                await asyncio.sleep(_PURGE_S)
                ready = {
                    TopicPartition(topic, number): source.committed.get(f"{topic}/{number}", 0)
                    for topic in self._repartition
                    for number, source in self._sources.items()
                }
                ready = {partition: offset for partition, offset in ready.items() if offset > done.get(partition, 0)}
                if ready:
                    await admin.delete_records({one: RecordsToDelete(before_offset=end) for one, end in ready.items()})
                    done |= ready
        except KafkaError as error:
            self._on_event("purge failed", {"topics": list(self._repartition), "error": repr(error)})
        finally:
            await admin.close()

    async def _read(self) -> None:
        try:
            while True:
                try:
                    await self._read_once()
                except NoOffsetForPartitionError:
                    # Of a partition that was just assigned, from before we said where to read it.
                    await asyncio.sleep(_FETCH_MS / 1000)
                except OffsetOutOfRangeError as error:
                    await self._reset_lost(error)
        except (SourceError, ConfigError) as error:
            self.fail(error)
        except KafkaError as error:
            self.fail(unreachable(self._settings, error))

    async def _reset_lost(self, error: OffsetOutOfRangeError) -> None:
        """Go on elsewhere, as it is configured, when an offset that is really wanted does not exist (any more).

        Raises:
            SourceError: ``on_offset_reset`` is ``fail``.
        """
        consumer = self._consumer
        assert consumer is not None
        for partition, offset in dict(error.args[0]).items():
            source = self._sources.get(partition.partition)
            label = _label(partition)
            if source is None or not source.is_open or source.wanted_offset(label) != offset:
                continue  # from before a seek
            if self.reading.on_offset_reset == "fail":
                raise _lost_place(label, offset)
            where = consumer.beginning_offsets if self.reading.on_offset_reset == "earliest" else consumer.end_offsets
            position = (await where([partition]))[partition]
            self._on_event("offset reset", {"partition": label, "wanted": offset, "position": position})
            source.skip_to(label, position)
            consumer.seek(partition, position)

    async def _read_once(self) -> None:
        consumer = self._consumer
        assert consumer is not None
        wanted = [
            partition
            for partition in sorted(consumer.assignment())
            if (source := self._sources.get(partition.partition)) is not None and source.wants(partition.topic)
        ]
        if not wanted:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FETCH_MS / 1000):
                    await self._wake.wait()
            return
        fetched = await consumer.getmany(*wanted, timeout_ms=_FETCH_MS, max_records=_FETCH_RECORDS)
        for partition, records in fetched.items():
            source = self._sources.get(partition.partition)
            if source is not None and records:
                source.take(_label(partition), records)
        await asyncio.sleep(0)  # what is fetched already comes without waiting

    async def _assigned(self, partitions: set[TopicPartition], on_assigned: OnAssigned) -> None:
        self._check_partitions()
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

    def __init__(self, group: KafkaGroup, subtask: int, producer: SubtaskProducer) -> None:
        self._group = group
        self._subtask = subtask
        self._producer = producer
        self._buffer: deque[Record] = deque()
        self._arrived = asyncio.Event()
        self.codec = group.reading.codec
        self.partitions = [f"{topic}/{subtask}" for topic in group.reading.topics]
        self.idle_timeout_ms = group.reading.idle_timeout_ms
        signals = group.reading.signals
        self.signals = None if signals is None else PartitionSignals(f"{signals}/{subtask}")
        self._next: dict[str, int] = {}  # label → offset behind the last record that was taken out
        self._to_look_at = dict.fromkeys(self.partitions, LOOKED_AT)  # label → records whose place is not looked at yet
        self.is_open = False
        self.is_placed = False  # since the last rebalance

    @property
    def committed(self) -> Mapping[str, int]:
        """Label → next offset of the last completed checkpoint."""
        return self._producer.committed

    @property
    def is_busy(self) -> bool:
        """Whether it has records to be taken."""
        return bool(self._buffer)

    @property
    def wants_more(self) -> bool:
        """Whether its partitions are to be asked for."""
        return self.is_open and self.is_placed and len(self._buffer) < _BUFFERED_MAX

    def wants(self, topic: str) -> bool:
        """Whether the partition of a topic is to be asked for: signals also when records are not."""
        signals = self.signals
        if signals is None or topic != self._group.reading.signals:
            return self.wants_more
        return self.is_open and self.is_placed and len(signals.buffer) < _BUFFERED_MAX

    def next_offset(self, label: str) -> int:
        """Offset behind the last record that was taken out."""
        return self._next.get(label, 0)

    def wanted_offset(self, label: str) -> int:
        """Offset of the next record that is wanted from a partition."""
        if self.signals is not None and label == self.signals.label:
            return self.signals.wanted_offset
        for record in reversed(self._buffer):
            if record.source == label:
                return record.next_offset
        return self._next.get(label, 0)

    def skip_to(self, label: str, offset: int) -> None:
        """Want nothing before ``offset`` of a partition."""
        if self.signals is not None and label == self.signals.label:
            self.signals.next_offset = offset
        self._next[label] = offset

    async def open(self, positions: Mapping[str, int]) -> None:
        """Start at positions; a partition without one at its beginning."""
        self._buffer.clear()
        self._next = dict(positions)
        if self.signals is not None:
            self.signals.next_offset = positions.get(self.signals.label, 0)
        await self._group.seek(self._subtask, self._next)
        self.is_placed = True
        self.is_open = True
        self._group.wake()

    async def keep(self) -> None:
        """Prove that nobody owned the subtask meanwhile, after a rebalance that gave it back, and go on behind what was taken out."""
        if self.is_open:
            await self._producer.prove_ownership()
        if self.is_open:  # still
            self._buffer.clear()
            positions = dict(self._next)
            if self.signals is not None:
                self.signals.buffer.clear()
                positions[self.signals.label] = self.signals.next_offset
            await self._group.seek(self._subtask, positions)
            self.is_placed = True
            self._group.wake()

    def take(self, label: str, records: Sequence[Any]) -> None:
        """Take fetched records; those that do not follow on are of a fetch from before a seek.

        Raises:
            ConfigError: They are not where the job's partitioner puts their keys.
        """
        expected = self.wanted_offset(label)
        if records[0].offset < expected:
            records = [r for r in records if r.offset >= expected]
        taken = [
            Record(label, r.offset, r.offset + 1, r.value, r.key, r.timestamp, _headers(r.headers) if r.headers else ())
            for r in records
        ]
        if self.signals is not None and label == self.signals.label:
            self.signals.take(taken)
        else:
            placement = self._group.placement
            if placement is not None and (self._to_look_at[label] or not placement.is_settled):
                self._look(placement, label, records)
            self._buffer += taken
            self._arrived.set()

    def _look(self, placement: Placement, label: str, records: Sequence[Any]) -> None:
        """Let the first records that come of a partition be compared; as long as no rule is known, each key of every fetch."""
        if placement.is_settled:
            records = records[: self._to_look_at[label]]
            self._to_look_at[label] -= len(records)
        first = {record.key: record.offset for record in reversed(records) if record.key}
        topic, _, number = label.rpartition("/")
        placement.look([(topic, int(number), offset, key) for key, offset in first.items()])

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Wait for records, and for room in the outbox of the producer."""
        await self._producer.room()
        while not self._buffer:
            self._arrived.clear()
            await self._arrived.wait()
        was_full = not self.wants_more
        buffer = self._buffer
        share = min(records_max, self._group.turn_share, len(buffer))
        records = [buffer.popleft() for _ in range(share)]
        if len(self.partitions) == 1:
            self._next[records[-1].source] = records[-1].next_offset
        else:
            self._next.update({record.source: record.next_offset for record in records})
        if was_full and self.wants_more:
            self._group.wake()
        return records

    async def close(self) -> None:
        """Take no more records, and abort what the producer has open: it lives as long as the source that it belongs to."""
        self.is_open = False
        self._buffer.clear()
        if await self._producer.close():
            self._group.transaction_aborts += 1


def _headers(headers: Sequence[tuple[str, bytes | None]]) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, value or b"") for name, value in headers)


def _label(partition: TopicPartition) -> str:
    return f"{partition.topic}/{partition.partition}"


def _other_partitions(topic: str, before: int, now: int) -> PartitionCountChanged:
    return PartitionCountChanged(
        f"topic '{topic}' has {now} partitions now, and had {before} when the job started",
        where={"topic": topic},
        expected=f"{before} partitions: the memory of a key lies where its records were",
        fix="let the job read the old partitions to their end, then start a job of another name on the new ones; "
        'docs/operating-kafka.md, "Partition counts"',
    )


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
        fix="look at the retention of the input topic; source.on-offset-reset: earliest goes on with what is left",
    )

"""Clients of a `SimulatedCluster`, with the methods of aiokafka's that this package uses, and its group protocol."""

# ruff: noqa: D102 (the clients' methods are those of aiokafka, and documented there)
from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from aiokafka import TopicPartition
from aiokafka.errors import (
    IllegalOperation,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    OutOfOrderSequenceNumber,
)

from agentflow.connectors.kafka.simulated_cluster import Link, SimulatedCluster, StoredRecord

_REBALANCE_S = 10.0


class _Batch:
    def __init__(self, size_max: int) -> None:
        self.records: list[Any] = []
        self._size = 0
        self._size_max = size_max

    def append(
        self,
        *,
        timestamp: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> object | None:
        size = len(key or b"") + len(value or b"") + 70
        if self.records and self._size + size > self._size_max:
            return None
        self.records.append((key, value, tuple(headers), timestamp))
        self._size += size
        return self

    def record_count(self) -> int:
        return len(self.records)


class Metadata(msgspec.Struct, frozen=True):
    """What a send answers: the offset of the batch's first record, as aiokafka does."""

    offset: int


class SimulatedProducer:
    """Has what is used of `AIOKafkaProducer`."""

    def __init__(
        self,
        cluster: SimulatedCluster,
        link: Link,
        *,
        transactional_id: str | None = None,
        transaction_timeout_ms: int = 60_000,
        max_batch_size: int = 16_384,
        **_: Any,  # noqa: ANN401 (options that mean nothing here)
    ) -> None:
        self._cluster = cluster
        self._link = link
        self._id = transactional_id
        self._timeout_s = transaction_timeout_ms / 1000
        self._batch_size = max_batch_size
        self._epoch = -1
        self._is_in_transaction = False
        self._sends: dict[TopicPartition, asyncio.Task[Metadata]] = {}
        self._broken: set[TopicPartition] = set()

    async def start(self) -> None:
        if self._id is not None:
            name = self._id
            self._epoch = await self._link.request(lambda: self._cluster.init_producer(name, self._timeout_s))

    async def stop(self) -> None:
        for send in self._sends.values():
            send.cancel()

    async def partitions_for(self, topic: str) -> set[int]:
        return await self._link.request(lambda: set(range(self._cluster.topics[topic])))

    def create_batch(self) -> _Batch:
        return _Batch(self._batch_size)

    async def begin_transaction(self) -> None:
        if self._is_in_transaction:
            raise IllegalOperation("a transaction is open")
        self._is_in_transaction = True

    async def send_batch(self, batch: _Batch, topic: str, *, partition: int) -> asyncio.Task[Metadata]:
        if self._id is not None and not self._is_in_transaction:
            raise IllegalOperation("no transaction is open")
        where = TopicPartition(topic, partition)
        self._sends[where] = send = asyncio.ensure_future(self._send(where, batch.records, self._sends.get(where)))
        send.add_done_callback(_consume)
        return send

    async def _send(self, where: TopicPartition, records: list[Any], before: asyncio.Task[Metadata] | None) -> Metadata:
        if before is not None:
            await asyncio.wait([before])
        if where in self._broken:
            raise OutOfOrderSequenceNumber
        name, epoch = self._id, self._epoch

        def effect() -> int:
            if name is None:
                return self._cluster.append(where, records)
            return self._cluster.produce(name, epoch, where, records)

        try:
            return Metadata(await self._link.request(effect))
        except KafkaError:
            self._broken.add(where)
            raise

    async def send_offsets_to_transaction(self, offsets: Mapping[TopicPartition, tuple[int, str]], group: str) -> None:
        name, epoch = str(self._id), self._epoch
        await self._link.request(lambda: self._cluster.add_offsets(name, epoch, group, offsets))

    async def commit_transaction(self) -> None:
        await self._end(is_committed=True)

    async def abort_transaction(self) -> None:
        await self._end(is_committed=False)

    async def _end(self, *, is_committed: bool) -> None:
        if not self._is_in_transaction:
            raise IllegalOperation("no transaction is open")
        if pending := [send for send in self._sends.values() if not send.done()]:
            await asyncio.wait(pending)
        self._is_in_transaction = False
        name, epoch = str(self._id), self._epoch
        await self._link.request(lambda: self._cluster.end(name, epoch, is_committed=is_committed))


def _consume(task: asyncio.Task[Metadata]) -> None:
    if not task.cancelled():
        task.exception()


class SimulatedConsumer:
    """Has what is used of `AIOKafkaConsumer`: as a reader of assigned partitions, and as a member of a group."""

    def __init__(
        self,
        cluster: SimulatedCluster,
        link: Link,
        luck: random.Random,
        *topics: str,
        group_id: str | None = None,
        isolation_level: str = "read_uncommitted",
        partition_assignment_strategy: Sequence[Any] = (),
        **_: Any,  # noqa: ANN401 (options that mean nothing here)
    ) -> None:
        self._cluster = cluster
        self.link = link
        self._luck = luck
        self.topics = list(topics)
        self._group_id = group_id
        self._is_committed_only = isolation_level == "read_committed"
        self.strategies = list(partition_assignment_strategy)
        self.listener: Any = None
        self._assigned: set[TopicPartition] = set()
        self._positions: dict[TopicPartition, int] = {}
        self._group: SimulatedGroup | None = None

    async def start(self) -> None:
        await self.link.request(lambda: None)
        if self._group_id is not None:
            self._group = self._cluster.groups.setdefault(self._group_id, SimulatedGroup(self._cluster))
            await self._group.join(self)

    async def stop(self) -> None:
        if self._group is not None:
            self._group.leave(self)

    def subscribe(self, topics: Sequence[str], listener: Any = None) -> None:  # noqa: ANN401 (aiokafka's listener)
        self.topics, self.listener = list(topics), listener

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        self._assigned = set(partitions)

    def give(self, partitions: set[TopicPartition]) -> None:
        """Take an assignment of the group; positions of the former one mean nothing."""
        self._assigned, self._positions = partitions, {}

    def assignment(self) -> set[TopicPartition]:
        return set(self._assigned)

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(range(self._cluster.topics[topic]))

    async def committed(self, partition: TopicPartition) -> int | None:
        key = (str(self._group_id), partition)
        return await self.link.request(lambda: self._cluster.offsets[key][0] if key in self._cluster.offsets else None)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        if partition not in self._assigned:
            raise IllegalStateError(f"{partition} is not assigned")
        self._positions[partition] = offset

    async def seek_to_beginning(self, *partitions: TopicPartition) -> None:
        for partition in partitions:
            self.seek(partition, 0)

    async def position(self, partition: TopicPartition) -> int:
        return self._positions[partition]

    def highwater(self, partition: TopicPartition) -> int | None:
        return len(self._cluster.logs[partition])

    async def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return await self.link.request(lambda: dict.fromkeys(partitions, 0))

    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return await self.link.request(lambda: {one: self._end(one) for one in partitions})

    def _end(self, partition: TopicPartition) -> int:
        return self._cluster.stable_end(partition) if self._is_committed_only else len(self._cluster.logs[partition])

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[StoredRecord]]:
        deadline = asyncio.get_running_loop().time() + timeout_ms / 1000
        await asyncio.sleep(self._luck.uniform(0, 0.001))
        while True:
            fetched: dict[TopicPartition, list[StoredRecord]] = {}
            for partition in partitions or sorted(self._assigned):
                try:
                    records = self._fetch(partition, max_records)
                except KafkaError:
                    if fetched:
                        break  # what there is comes first, as in aiokafka; the error comes with the next call
                    raise
                if records:
                    fetched[partition] = records
            left_s = deadline - asyncio.get_running_loop().time()
            if fetched or left_s < 1e-6:  # less would not move the time
                return fetched  # nothing comes between a fetch and its answer: a seek counts for the next one
            await asyncio.sleep(min(left_s, 0.02))

    def _fetch(self, partition: TopicPartition, max_records: int | None) -> list[StoredRecord]:
        if not self.link.is_up or partition not in self._assigned:
            return []
        position = self._positions.get(partition)
        if position is None:
            raise NoOffsetForPartitionError(partition)
        end = self._end(partition)
        if position > len(self._cluster.logs[partition]):
            raise OffsetOutOfRangeError({partition: position})
        stop = min(end, position + self._luck.randint(1, max_records or 500))
        if self._is_committed_only:
            records = self._cluster.committed(partition, position, stop)
        else:
            records = [record for record in self._cluster.logs[partition][position:stop] if not record.is_control]
        self._positions[partition] = max(position, stop)
        return records


class _ClusterView:
    """What an assignor sees."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(range(self._cluster.topics[topic]))


class SimulatedGroup:
    """The eager protocol: every join, leave or loss revokes everything from everybody, and then assigns anew."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster
        self.members: list[SimulatedConsumer] = []
        self._joined: set[SimulatedConsumer] = set()
        self._is_due = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def join(self, member: SimulatedConsumer) -> None:
        """Add a member; what is assigned to it is told by its listener."""
        self._add(member)

    def leave(self, member: SimulatedConsumer) -> None:
        """Remove a member; its listener is not told."""
        self._joined.discard(member)
        if member in self.members:
            self.members.remove(member)
            self.rebalance()

    def rejoin(self, member: SimulatedConsumer) -> None:
        """A member that was out of reach comes back; one that has not joined yet, or has left, does not."""
        if member in self._joined:
            self._add(member)

    def _add(self, member: SimulatedConsumer) -> None:
        self._joined.add(member)
        if member not in self.members:
            self.members.append(member)
        self.rebalance()

    def rebalance(self) -> None:
        """Assign anew, as soon as a rebalance that is under way has ended."""
        self._is_due.set()
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._rebalance_until_quiet())

    async def _rebalance_until_quiet(self) -> None:
        while self._is_due.is_set():
            self._is_due.clear()
            await self._rebalance()

    async def _rebalance(self) -> None:
        """One generation. Who does not answer in time is left out, and joins again when it has answered."""
        self._leave_out([member for member in self.members if not member.link.is_up])
        revoking = {
            member: asyncio.ensure_future(member.listener.on_partitions_revoked(member.assignment()))
            for member in self.members
        }
        await self._answered(revoking)
        members = [member for member in self.members if member.link.is_up]
        if not members:
            return
        (strategy,) = members[0].strategies
        metadata = {str(index): member.strategies[0].metadata(member.topics) for index, member in enumerate(members)}
        assignments = strategy.assign(_ClusterView(self._cluster), metadata)
        assigning = {}
        for index, member in enumerate(members):
            partitions = {
                TopicPartition(topic, number)
                for topic, numbers in assignments[str(index)].assignment
                for number in numbers
            }
            member.give(partitions)
            assigning[member] = asyncio.ensure_future(member.listener.on_partitions_assigned(set(partitions)))
        await self._answered(assigning)

    async def _answered(self, calls: Mapping[SimulatedConsumer, asyncio.Future[None]]) -> None:
        if calls:
            await asyncio.wait(calls.values(), timeout=_REBALANCE_S)
        late = {member: call for member, call in calls.items() if not call.done()}
        self._leave_out(late)
        for member, call in late.items():
            call.add_done_callback(functools.partial(self._answered_late, member))

    def _answered_late(self, member: SimulatedConsumer, call: asyncio.Future[None]) -> None:
        if not call.cancelled() and not member.link.is_dead:
            self.rejoin(member)

    def _leave_out(self, members: Iterable[SimulatedConsumer]) -> None:
        for member in members:
            self.members.remove(member)

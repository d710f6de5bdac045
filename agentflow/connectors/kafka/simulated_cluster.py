"""A Kafka cluster in memory, for simulations; its clients are in `simulated_clients`.

What a job may rely on is modelled: the order of a partition, transactions with fencing and timeouts, `read_committed` with the
last stable offset, committed group offsets, and the eager group protocol. What may go wrong on the way is decided by a `Link`:
a request that is lost, one that is carried out while its answer is lost, one that is carried out later, and silence.

The suite `tests/contract/test_kafka_clients.py` runs against these clients and against aiokafka with a real broker.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import msgspec
from aiokafka import TopicPartition
from aiokafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    ProducerFenced,
)

T = TypeVar("T")
Headers = tuple[tuple[str, bytes], ...]
_OPEN, _COMMITTED, _ABORTED = "open", "committed", "aborted"


class StoredRecord(msgspec.Struct):
    """One offset of a partition.

    Attributes:
        offset: Its offset.
        transaction: (transactional id, number of the transaction); None outside one.
        key, value, headers, timestamp: As they were sent.
        is_control: It marks the end of a transaction, and no reader gets it.
    """

    offset: int
    transaction: tuple[str, int] | None
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp: int | None = None
    is_control: bool = False


class _Transactions(msgspec.Struct):
    """What the coordinator knows of one transactional id."""

    epoch: int = -1
    number: int = 0
    timeout_s: float = 60.0
    began_s: float | None = None
    partitions: dict[TopicPartition, int] = {}  # → first offset
    offsets: dict[tuple[str, TopicPartition], tuple[int, str]] = {}


class SimulatedCluster:
    """Topics, transactions, group offsets, groups.

    Args:
        topics: Topic → number of partitions.
        marker_delay_s: Returns how long the marks of a decided transaction take; readers see it behind them only. The next
            request of the same producer, or of its successor, waits for them: here they come at once then.
    """

    def __init__(self, topics: Mapping[str, int], marker_delay_s: Callable[[], float] = lambda: 0.0) -> None:
        self._marker_delay_s = marker_delay_s
        self._unmarked: dict[tuple[str, int], dict[TopicPartition, int]] = {}
        self.topics = dict(topics)
        self.logs: dict[TopicPartition, list[StoredRecord]] = {
            TopicPartition(topic, number): [] for topic, count in topics.items() for number in range(count)
        }
        self.offsets: dict[tuple[str, TopicPartition], tuple[int, str]] = {}
        self._transactional: dict[str, _Transactions] = {}
        self._states: dict[tuple[str, int], str] = {}
        self.groups: dict[str, Any] = {}  # by name, kept for the clients: SimulatedGroup

    # -- writing
    def append(
        self, partition: TopicPartition, records: Iterable[Any], transaction: tuple[str, int] | None = None
    ) -> int:
        """Append (key, value, headers, timestamp) records; return the offset of the first."""
        log = self.logs[partition]
        first = len(log)
        for key, value, headers, timestamp in records:
            log.append(StoredRecord(len(log), transaction, key, value, tuple(headers), timestamp))
        return first

    def init_producer(self, transactional_id: str, timeout_s: float) -> int:
        """Begin a new epoch: fence the former owner and abort what it has open; return the epoch."""
        owner = self._transactional.setdefault(transactional_id, _Transactions())
        if owner.began_s is not None:
            self._end(transactional_id, owner, is_committed=False)
        self._settle(transactional_id)
        owner.epoch += 1
        owner.timeout_s = timeout_s
        return owner.epoch

    def produce(self, transactional_id: str, epoch: int, partition: TopicPartition, records: Sequence[Any]) -> int:
        """Append to the open transaction, which begins with its first record.

        Raises:
            ProducerFenced: Another owner has begun, or the transaction was too old.
        """
        owner = self._owner(transactional_id, epoch)
        self._settle(transactional_id)
        if owner.began_s is None:
            owner.began_s = asyncio.get_running_loop().time()
            self._states[transactional_id, owner.number] = _OPEN
        first = self.append(partition, records, (transactional_id, owner.number))
        owner.partitions.setdefault(partition, first)
        return first

    def add_offsets(
        self, transactional_id: str, epoch: int, group: str, offsets: Mapping[TopicPartition, tuple[int, str]]
    ) -> None:
        """Let offsets take effect with the transaction."""
        owner = self._owner(transactional_id, epoch)
        if owner.began_s is None:
            owner.began_s = asyncio.get_running_loop().time()
            self._states[transactional_id, owner.number] = _OPEN
        owner.offsets |= {(group, partition): offset for partition, offset in offsets.items()}

    def end(self, transactional_id: str, epoch: int, *, is_committed: bool) -> None:
        """Commit or abort; an empty transaction is nothing."""
        owner = self._owner(transactional_id, epoch)
        if owner.began_s is not None:
            self._end(transactional_id, owner, is_committed=is_committed)

    def expire(self) -> None:
        """Abort transactions that are too old; their producers are fenced."""
        now_s = asyncio.get_running_loop().time()
        for transactional_id, owner in self._transactional.items():
            if owner.began_s is not None and now_s - owner.began_s > owner.timeout_s:
                self._end(transactional_id, owner, is_committed=False)
                owner.epoch += 1

    def _owner(self, transactional_id: str, epoch: int) -> _Transactions:
        self.expire()
        owner = self._transactional[transactional_id]
        if epoch != owner.epoch:
            raise ProducerFenced
        return owner

    def _end(self, transactional_id: str, owner: _Transactions, *, is_committed: bool) -> None:
        transaction = (transactional_id, owner.number)
        self._states[transaction] = _COMMITTED if is_committed else _ABORTED
        self._unmarked[transaction] = owner.partitions
        if is_committed:
            self.offsets |= owner.offsets
        delay_s = self._marker_delay_s()
        if delay_s:
            asyncio.get_running_loop().call_later(delay_s, self._mark, transaction)
        else:
            self._mark(transaction)
        owner.number += 1
        owner.began_s, owner.partitions, owner.offsets = None, {}, {}

    def _mark(self, transaction: tuple[str, int]) -> None:
        """Let readers see how a transaction ended."""
        for partition in self._unmarked.pop(transaction, {}):
            log = self.logs[partition]
            log.append(StoredRecord(len(log), transaction, None, None, is_control=True))

    def _settle(self, transactional_id: str) -> None:
        for transaction in [one for one in self._unmarked if one[0] == transactional_id]:
            self._mark(transaction)

    # -- reading
    def stable_end(self, partition: TopicPartition) -> int:
        """Return the last stable offset: the first record of an open transaction, or the end."""
        self.expire()
        pending = [owner.partitions for owner in self._transactional.values()] + list(self._unmarked.values())
        firsts = [partitions[partition] for partitions in pending if partition in partitions]
        return min(firsts, default=len(self.logs[partition]))

    def committed(self, partition: TopicPartition, begin: int = 0, end: int | None = None) -> list[StoredRecord]:
        """Return what a `read_committed` reader gets of [begin, end)."""
        end = self.stable_end(partition) if end is None else end
        return [
            record
            for record in self.logs[partition][begin:end]
            if not record.is_control and (record.transaction is None or self._states[record.transaction] == _COMMITTED)
        ]

    def values(self, topic: str) -> list[StoredRecord]:
        """Return every committed record of a topic, partition after partition."""
        return [
            record for number in range(self.topics[topic]) for record in self.committed(TopicPartition(topic, number))
        ]


class Link:
    """The way from one process to the cluster.

    Args:
        luck: Decides delays and faults.
        fault_rate: Share of requests that something happens to.
        delay_s_max: Longest way there or back.
    """

    def __init__(self, luck: random.Random, fault_rate: float = 0.0, delay_s_max: float = 0.0) -> None:
        self._luck = luck
        self.fault_rate = fault_rate
        self._delay_s_max = delay_s_max
        self.is_dead = False
        self.faults = 0
        self._is_up = asyncio.Event()
        self._is_up.set()

    @property
    def is_up(self) -> bool:
        """Whether requests get through."""
        return self._is_up.is_set() and not self.is_dead

    def cut(self) -> None:
        """Let nothing through; requests wait."""
        self._is_up.clear()

    def heal(self) -> None:
        """Let everything through."""
        self._is_up.set()

    def kill(self) -> None:
        """The process is gone: nothing it still does has an effect."""
        self.is_dead = True
        self._is_up.set()

    async def request(self, effect: Callable[[], T]) -> T:
        """Carry out a request.

        Raises:
            KafkaError: It was lost, or its answer; or the process is gone.
        """
        await self._pass()
        fault = self._luck.choice(["lost", "answer lost", "late"]) if self._luck.random() < self.fault_rate else None
        if fault is not None:
            self.faults += 1
        if fault == "late":
            asyncio.get_running_loop().call_later(self._luck.uniform(0, 0.5), _try, effect)
        result = effect() if fault in (None, "answer lost") else None
        await self._pass()
        if fault is not None:
            raise KafkaTimeoutError(f"simulated: {fault}")
        return cast("T", result)

    async def _pass(self) -> None:
        await asyncio.sleep(self._luck.uniform(0, self._delay_s_max))
        await self._is_up.wait()
        if self.is_dead:
            raise KafkaError("the process is gone")


def _try(effect: Callable[[], Any]) -> None:
    try:
        effect()
    except KafkaError:
        return  # fenced meanwhile

"""Savepoints of Kafka jobs: read from the committed changelog, written as the changelog of a job of another name.

Reading touches no worker. Each subtask is read up to the end of what is committed: its state is that of its last completed checkpoint
N, and needs nothing of another subtask, because keys belong to subtasks. Records of durable steps that are in N come with it.

What was recorded behind N is in the journal topic. It is read too where the job has no workers, as of a job that was killed: then
nobody appends to it, and nobody completes a checkpoint that its records would depend on.

Between subtasks there is the repartition topic, where the key is not the record's own. What was sent there and is not processed
belongs to the job; which records these are is only known where nobody sends and nobody commits. So such a job is read without workers
only.

Writing is one transaction over all partitions: there is a whole job, or none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, Final

import msgspec
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from agentflow.core.delta import JOURNAL_NAME, POSITIONS_NAME, StoredRow, Table, decode_positions
from agentflow.errors import StateCorrupted, StateMismatch, StateUnavailable
from agentflow.state.changelog_records import checkpoint_record, records_of
from agentflow.state.kafka_changelog import ChangelogCopy, partition_ends, replay_changelog
from agentflow.state.kafka_journal import journal_values
from agentflow.state.layout import storage_key

PENDING_FILE: Final = "pending/repartition.records"
"""Name, within a subtask, of the records that it has not taken from its repartition topic yet."""

_FETCH_BYTES = 8 * 2**20
_WAIT_MS = 200
_BATCH_BYTES = 256 * 2**10
_REQUEST_BYTES_MAX = 2**30
_SENT_MAX = 64  # batches that are not acknowledged
_LENGTH = 4

Client = Mapping[str, Any]
NewConsumer = Callable[..., Any]


class PendingRecord(msgspec.Struct, array_like=True, frozen=True):
    """A record of a repartition topic."""

    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: list[tuple[str, bytes]]


_encode_pending = msgspec.msgpack.Encoder().encode
_decode_pending = msgspec.msgpack.Decoder(PendingRecord).decode


class ChangelogReader:
    """Reads changelogs and repartition topics as they are committed.

    Args:
        client: Arguments of aiokafka clients.
        new_consumer: Makes the client.
    """

    def __init__(self, client: Client, new_consumer: NewConsumer) -> None:
        self._reader: Any = new_consumer(
            **client,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            max_partition_fetch_bytes=_FETCH_BYTES,
        )
        self._client = client
        self._new_consumer = new_consumer

    async def start(self) -> None:
        """Connect."""
        await self._reader.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._reader.stop()

    async def end(self, topic: str, partition: int) -> int:
        """Return the offset behind what is committed."""
        place = TopicPartition(topic, partition)
        self._reader.assign([place])
        return (await partition_ends(self._reader, place))[1]

    async def copy(
        self, topic: str, partition: int, copy: ChangelogCopy, tell: Callable[[int, int], object]
    ) -> tuple[int, str]:
        """Copy a changelog partition up to its end; return that, and the partitioner of the last checkpoint that was copied.

        ``tell`` is told of (offset, end).
        """
        place = TopicPartition(topic, partition)
        self._reader.assign([place])
        begin, end = await partition_ends(self._reader, place)
        last = await replay_changelog(self._reader, place, copy, begin, end, lambda position: tell(position, end))
        return end, "" if last is None else last.partitioner

    async def copy_pending(self, topic: str, partition: int, position: int, file: IO[bytes], wait_s: float) -> int:
        """Write the records from ``position`` on to a file, and return their number.

        Raises:
            StateUnavailable: As `settled_end`.
        """
        place = TopicPartition(topic, partition)
        end = await self.settled_end(topic, partition, wait_s)
        self._reader.assign([place])
        begin, _ = await partition_ends(self._reader, place)
        position = max(position, begin)
        self._reader.seek(place, position)
        count = 0
        while position < end:
            for record in (await self._reader.getmany(place, timeout_ms=_WAIT_MS)).get(place, []):
                headers = [(name, value or b"") for name, value in record.headers]
                encoded = _encode_pending(PendingRecord(record.key, record.value, record.timestamp, headers))
                file.write(len(encoded).to_bytes(_LENGTH, "big") + encoded)
                count += 1
            position = await self._reader.position(place)
        return count

    async def settled_end(self, topic: str, partition: int, wait_s: float) -> int:
        """Return the end of a partition when everything before it is committed or aborted.

        A transaction of a worker that was killed is open until the broker aborts it, and one that is committed is not so in all of
        its partitions at one moment. Both are waited for.

        Raises:
            StateUnavailable: It takes longer than ``wait_s``.
        """
        place = TopicPartition(topic, partition)
        whole = self._new_consumer(**self._client, enable_auto_commit=False, isolation_level="read_uncommitted")
        try:
            await whole.start()
            whole.assign([place])
            _, end = await partition_ends(whole, place)
        finally:
            await whole.stop()
        deadline_s = time.monotonic() + wait_s
        while await self.end(place.topic, place.partition) < end:
            if time.monotonic() > deadline_s:
                raise StateUnavailable(
                    "a transaction of a worker that is gone is still open",
                    where={"topic": place.topic, "partition": place.partition},
                    expected="an abort by the broker after kafka.transaction-timeout",
                    fix="try again; or start the job, and stop it well",
                )
            await asyncio.sleep(_WAIT_MS / 1000)
        return end


def pending_records(content: Iterable[bytes]) -> Iterator[PendingRecord]:
    """Yield the records of a file that `ChangelogReader.copy_pending` has written.

    Raises:
        StateCorrupted: It is not one.
    """
    held = b""
    for chunk in content:
        held += chunk
        start = 0
        while len(held) - start >= _LENGTH:
            end = start + _LENGTH + int.from_bytes(held[start : start + _LENGTH], "big")
            if end > len(held):
                break
            try:
                yield _decode_pending(held[start + _LENGTH : end])
            except msgspec.DecodeError as error:
                raise _broken_pending(str(error)) from error
            start = end
        held = held[start:]
    if held:
        raise _broken_pending("it ends in the middle of a record")


def _broken_pending(why: str) -> StateCorrupted:
    return StateCorrupted(
        f"the pending records cannot be read: {why}",
        where={"file": PENDING_FILE},
        expected="the file as agentflow wrote it",
        fix="take another savepoint",
    )


class RestoredSubtask(msgspec.Struct, frozen=True):
    """What becomes the changelog of one subtask.

    Attributes:
        subtask: Its number.
        checkpoint: Number of its last completed checkpoint.
        rows: Every row of a table.
        journal: Records that no checkpoint has, as (operator, record).
        pending: Records of its repartition topic.
        partitioner: How keys are spread over subtasks; empty: it is not known.
    """

    subtask: int
    checkpoint: int
    rows: Callable[[Table], Iterable[StoredRow]]
    journal: Sequence[tuple[int, bytes]]
    pending: Callable[[], Iterable[PendingRecord]]
    partitioner: str = ""


class ChangelogWriter:
    """Writes restored subtasks into the topics of a new job, in one transaction.

    Args:
        client: Arguments of aiokafka clients.
        job: Name of the new job.
        timeout_ms: How long the transaction may take: the brokers' limit.
        batch_bytes: Largest batch that the topics take.
        changelog: Changelog topic.
        journal: Journal topic.
        repartition: Repartition topics of the job in the savepoint and of the new one; None: it has none.
        tell: Told of records written.
    """

    def __init__(
        self,
        client: Client,
        job: str,
        timeout_ms: int,
        batch_bytes: int,
        changelog: str,
        journal: str,
        repartition: tuple[str, str] | None,
        tell: Callable[[int], object],
    ) -> None:
        self._producer = AIOKafkaProducer(
            **client,
            transactional_id=f"{job}-restore",
            transaction_timeout_ms=timeout_ms,
            max_batch_size=min(_BATCH_BYTES, batch_bytes),
            max_request_size=_REQUEST_BYTES_MAX,
        )
        self._changelog = changelog
        self._journal = journal
        self._repartition = repartition
        self._tell = tell
        self._batches: dict[tuple[str, int], Any] = {}
        self._sent: list[asyncio.Future[Any]] = []
        self._count = 0

    async def write(self, subtasks: Iterable[RestoredSubtask]) -> None:
        """Write everything; nothing of it is there after an error.

        Raises:
            StateUnavailable: As the brokers say.
        """
        producer = self._producer
        try:
            await producer.start()
            await producer.begin_transaction()
            try:
                for subtask in subtasks:
                    await self._write(subtask)
                for (topic, partition), batch in self._batches.items():
                    await self._send(topic, partition, batch)
                await self._acknowledged(0)
            except BaseException:
                await producer.abort_transaction()
                raise
            await producer.commit_transaction()
        except KafkaError as error:
            raise unreadable(error, "writing the changelog", self._changelog) from error
        finally:
            await producer.stop()

    async def _write(self, subtask: RestoredSubtask) -> None:
        number = subtask.subtask
        positions: dict[str, int] = {}
        for table in Table:
            for row in subtask.rows(table):
                value: bytes | None = row.value
                if table is Table.META and row.name == POSITIONS_NAME:
                    positions = self._renamed(decode_positions(row.value))
                    value = msgspec.msgpack.encode(positions)
                elif table is Table.META and row.name == JOURNAL_NAME:
                    continue  # the journal of the new job begins anew
                stored = int(table), storage_key(row.operator, row.key, row.name), value
                for key, content in records_of([stored]):
                    await self._append(self._changelog, number, key, content)
        if subtask.checkpoint:
            last = checkpoint_record(subtask.checkpoint, positions, subtask.partitioner)
            await self._append(self._changelog, number, *last)
        for operator, record in subtask.journal:
            for content in journal_values(operator, record):
                await self._append(self._journal, number, None, content)
        if self._repartition is not None:
            for one in subtask.pending():
                await self._append(self._repartition[1], number, one.key, one.value, one.timestamp_ms, one.headers)

    def _renamed(self, positions: dict[str, int]) -> dict[str, int]:
        """Return positions in which the repartition topic is that of the new job, at its beginning."""
        if self._repartition is None:
            return positions
        old, new = self._repartition
        renamed = {}
        for label, position in positions.items():
            topic, _, partition = label.rpartition("/")
            if topic == old:
                renamed[f"{new}/{partition}"] = 0
            else:
                renamed[label] = position
        return renamed

    async def _append(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        self._count += 1
        batch = self._batches.get((topic, partition))
        if batch is not None:
            if batch.append(timestamp=timestamp_ms, key=key, value=value, headers=list(headers)) is not None:
                return
            await self._send(topic, partition, batch)
            self._tell(self._count)
        batch = self._batches[topic, partition] = self._producer.create_batch()
        appended = batch.append(timestamp=timestamp_ms, key=key, value=value, headers=list(headers))
        assert appended is not None, "a record that fits into no batch"

    async def _send(self, topic: str, partition: int, batch: Any) -> None:  # noqa: ANN401
        self._sent.append(await self._producer.send_batch(batch, topic, partition=partition))
        await self._acknowledged(_SENT_MAX)

    async def _acknowledged(self, left: int) -> None:
        """Wait until no more than ``left`` batches are not acknowledged."""
        while len(self._sent) > left:
            await self._sent.pop(0)


async def refuse_records(
    topics: Iterable[tuple[str, int]], client: Client, new_consumer: NewConsumer, *, is_committed: bool
) -> None:
    """See that topics hold nothing that a reader would read.

    Args:
        topics: Topic and number of its partitions.
        client: Arguments of aiokafka clients.
        new_consumer: Makes the client.
        is_committed: Whether records of aborted transactions are nothing.

    Raises:
        StateMismatch: One of them holds a record.
    """
    level = "read_committed" if is_committed else "read_uncommitted"
    reader = new_consumer(**client, enable_auto_commit=False, auto_offset_reset="earliest", isolation_level=level)
    try:
        await reader.start()
        for topic, partitions in topics:
            for partition in range(partitions):
                async for record in _records(reader, TopicPartition(topic, partition)):
                    raise StateMismatch(
                        f"topic '{topic}' has records already, and a savepoint never overwrites any",
                        where={"topic": topic, "partition": partition, "offset": record.offset},
                        expected="a job of a name that was never used",
                        fix="give the job another name",
                    )
    finally:
        await reader.stop()


async def _records(reader: Any, place: TopicPartition) -> AsyncIterator[Any]:  # noqa: ANN401
    reader.assign([place])
    position, end = await partition_ends(reader, place)
    reader.seek(place, position)
    while position < end:
        for record in (await reader.getmany(place, timeout_ms=_WAIT_MS, max_records=1)).get(place, []):
            yield record
        position = await reader.position(place)


def unreadable(error: KafkaError, doing: str, topic: str) -> StateUnavailable:
    """Return the error for a cluster that does not do what is asked."""
    return StateUnavailable(
        f"{doing}: {error!r}",
        where={"topic": topic},
        expected="brokers that answer",
        fix="look at the brokers and the rights of this client, then try again",
    )

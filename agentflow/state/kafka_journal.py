"""The journal of one Kafka subtask: its partition of the topic ``{job}-journal``.

Written by the subtask's own transactional producer, so an owner that was fenced cannot append; read uncommitted, because an outcome
counts even if its transaction was aborted. Never compacted (compaction drops records of aborted transactions), kept without limit, and
cut with DeleteRecords behind checkpoints.

    value = operator (2 bytes), place (1 byte: 1 first, 2 last part), up to 512 KiB of the record

Parts of one record follow each other; what an owner left unfinished is read over when the next first part comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import KafkaError

from agentflow.errors import StateCorrupted, StateMismatch, StateUnavailable
from agentflow.runtime.ports import ChangelogTransaction
from agentflow.state.kafka_changelog import partition_ends

PART_BYTES: Final = 512 * 2**10
_FIRST, _LAST = 1, 2
_FETCH_BYTES = 4 * 2**20
_WAIT_MS = 200
_CUT_RECORDS = 10_000


class KafkaJournal:
    """See `agentflow.runtime.ports.Journal`. Positions are offsets.

    Args:
        transaction: The subtask's producer; None: it is read only.
        topic: The journal topic; its partition is ``subtask``.
        subtask: Number of the subtask.
        client: Arguments of aiokafka clients.
        new_consumer: Makes a consumer.
        new_admin: Makes an admin client.
    """

    def __init__(
        self,
        transaction: ChangelogTransaction | None,
        topic: str,
        subtask: int,
        client: Mapping[str, Any],
        new_consumer: Callable[..., Any],
        new_admin: Callable[..., Any] = AIOKafkaAdminClient,
    ) -> None:
        self._transaction = transaction
        self._partition = TopicPartition(topic, subtask)
        self._client = client
        self._new_consumer = new_consumer
        self._new_admin = new_admin
        self._begins = 0

    async def read(self, position: int) -> tuple[list[tuple[int, bytes]], int]:
        """See `Journal`.

        Raises:
            StateUnavailable: The topic cannot be read now.
            StateCorrupted: It lacks records that no checkpoint has.
        """
        reader = self._new_consumer(
            **self._client,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_uncommitted",
            max_partition_fetch_bytes=_FETCH_BYTES,
        )
        parts: list[bytes] = []
        try:
            await reader.start()
            reader.assign([self._partition])
            self._begins, end = await partition_ends(reader, self._partition)
            self._check(position, end)
            reader.seek(self._partition, max(position, self._begins))
            while await reader.position(self._partition) < end:
                fetched = await reader.getmany(self._partition, timeout_ms=_WAIT_MS)
                parts += [record.value for record in fetched.get(self._partition, [])]
        except KafkaError as error:
            raise StateUnavailable(
                f"the journal cannot be read: {error!r}",
                where=self._where(),
                expected="a broker that answers",
                fix="the subtask tries again; look at the brokers",
            ) from error
        finally:
            await reader.stop()
        return list(_whole(parts)), end

    def _check(self, position: int, end: int) -> None:
        if position > end:
            raise StateMismatch(
                f"the last checkpoint is at journal offset {position}, the journal ends at {end}",
                where=self._where(),
                expected="the journal that this job has written",
                fix="put the topic back, or start a job of another name",
            )
        if position < self._begins and position:
            raise StateCorrupted(
                f"the journal begins at offset {self._begins}; what no checkpoint has, from {position} on, is gone",
                where=self._where(),
                expected="cleanup.policy=delete without a limit: only agentflow cuts it",
                fix="set retention.ms and retention.bytes to -1; runs whose records are gone cannot be recovered",
            )

    async def append(self, records: Sequence[tuple[int, bytes]]) -> int:
        """See `Journal`."""
        assert self._transaction is not None
        return await self._transaction.append_journal(
            self._partition.topic, [part for operator, record in records for part in journal_values(operator, record)]
        )

    def append_now(self, records: Sequence[tuple[int, bytes]]) -> int | None:  # noqa: ARG002 (the port)
        """See `Journal`: never, the broker is elsewhere."""
        return None

    async def release(self, position: int) -> None:
        """See `Journal`; only now and then: each time costs a connection."""
        if position - self._begins < _CUT_RECORDS:
            return
        admin = self._new_admin(**self._client)
        try:
            await admin.start()
            await admin.delete_records({self._partition: RecordsToDelete(position)})
            self._begins = position
        except KafkaError:
            self._begins = max(self._begins, position - _CUT_RECORDS // 2)  # a later cut takes this one with it
        finally:
            await admin.close()

    def _where(self) -> dict[str, object]:
        return {"topic": self._partition.topic, "partition": self._partition.partition}


def journal_values(operator: int, record: bytes) -> Iterator[bytes]:
    """Yield the values that a record is written as."""
    head = operator.to_bytes(2, "big")
    last = max(0, len(record) - 1) // PART_BYTES
    for part in range(last + 1):
        place = (_FIRST if part == 0 else 0) | (_LAST if part == last else 0)
        yield head + bytes((place,)) + record[part * PART_BYTES : (part + 1) * PART_BYTES]


def _whole(parts: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    begun: list[bytes] = []
    for part in parts:
        place = part[2]
        if place & _FIRST:
            begun = []
        begun.append(part[3:])
        if place & _LAST:
            yield int.from_bytes(part[:2], "big"), b"".join(begun)
            begun = []

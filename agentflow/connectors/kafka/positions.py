"""Where a job stands in its topics: what is kept of them, what was read, whether the changelog and the group's offsets fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError

from agentflow.connectors.kafka.connection import Consumer, client_options, unreachable
from agentflow.runtime.settings import KafkaSettings


class PartitionPlace(msgspec.Struct, frozen=True):
    """One partition.

    Attributes:
        topic: Its topic.
        number: Its number, which is that of its subtask.
        begin: The first offset that is kept.
        end: Offset behind the last committed record.
        committed: Next offset of the group; None: it has none.
        ahead: (offset, timestamp) of the first record from beyond ``later_ms``; None: there is none.
    """

    topic: str
    number: int
    begin: int
    end: int
    committed: int | None = None
    ahead: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """``topic/number``."""
        return f"{self.topic}/{self.number}"


async def places(
    settings: KafkaSettings, job: str, topics: Sequence[str], partitions: Mapping[str, int], later_ms: int
) -> list[PartitionPlace]:
    """Return the place of each partition of those topics that exist; nothing is fetched, and no group is joined.

    Args:
        settings: Brokers.
        job: Name of the group.
        topics: In this order.
        partitions: Topic → number of partitions, of those that exist.
        later_ms: Records whose timestamp is at or behind it are looked for, epoch milliseconds.

    Raises:
        SourceError: No broker answers.
    """
    wanted = [TopicPartition(topic, number) for topic in topics for number in range(partitions.get(topic, 0))]
    if not wanted:
        return []
    admin = AIOKafkaAdminClient(**client_options(settings))
    consumer = Consumer(**client_options(settings), enable_auto_commit=False, isolation_level="read_committed")
    try:
        await admin.start()
        await consumer.start()
        consumer.assign(wanted)
        begins, ends = await consumer.beginning_offsets(wanted), await consumer.end_offsets(wanted)
        later = await consumer.offsets_for_times(dict.fromkeys(wanted, later_ms))
        try:
            committed = await admin.list_consumer_group_offsets(job)
        except GroupCoordinatorNotAvailableError:
            committed = {}  # the first group of a new cluster
    except KafkaError as error:
        raise unreachable(settings, error) from error
    finally:
        await consumer.stop()
        await admin.close()
    found = []
    for one in wanted:
        offset = committed[one].offset if one in committed and committed[one].offset >= 0 else None
        ahead = None if later[one] is None else (later[one].offset, later[one].timestamp)
        found.append(PartitionPlace(one.topic, one.partition, begins[one], ends[one], offset, ahead))
    return found

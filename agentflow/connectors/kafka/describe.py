"""What the brokers know of a job's group: who owns which subtask, how far it is."""

from __future__ import annotations

import msgspec
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError

from agentflow.connectors.kafka.connection import Consumer, client_options, unreachable
from agentflow.connectors.kafka.producer import checkpoint_of
from agentflow.connectors.kafka.topics import known_topics
from agentflow.runtime.settings import KafkaSettings

_OWNER_STATES = ("Stable", "CompletingRebalance")


class PartitionState(msgspec.Struct, frozen=True):
    """One input partition of a subtask.

    Attributes:
        partition: ``topic/number``.
        committed: Next offset of the last completed checkpoint; None: there is none.
        end: Offset behind its last committed record.
        lag: Records between the two; None where nothing is committed.
    """

    partition: str
    committed: int | None
    end: int
    lag: int | None


class SubtaskState(msgspec.Struct, frozen=True):
    """One subtask.

    Attributes:
        subtask: Its number.
        owner: Client id and host of the member that it is assigned to; None: nobody.
        checkpoint: Its last completed checkpoint; None: there is none.
        partitions: Its input partitions.
    """

    subtask: int
    owner: str | None
    checkpoint: int | None
    partitions: tuple[PartitionState, ...]


class GroupState(msgspec.Struct, frozen=True):
    """The group of a job.

    Attributes:
        group: Its name, that of the job.
        state: What Kafka says: Stable, Empty, Dead, PreparingRebalance, …
        members: Number of workers.
        subtasks: In order.
        protocol: Name of the assignor that the members agreed on; empty: there are none.
    """

    group: str
    state: str
    members: int
    subtasks: tuple[SubtaskState, ...]
    protocol: str = ""


async def describe_group(settings: KafkaSettings, job: str, topics: tuple[str, ...]) -> GroupState:
    """Return the state of a job's group; topics that do not exist are left out.

    Raises:
        SourceError: No broker answers.
    """
    admin = AIOKafkaAdminClient(**client_options(settings))
    consumer = Consumer(**client_options(settings), enable_auto_commit=False, isolation_level="read_committed")
    try:
        await admin.start()
        await consumer.start()
        counts = await known_topics(admin, topics)
        labels = {
            f"{topic}/{number}": TopicPartition(topic, number)
            for topic in topics
            for number in range(counts.get(topic, 0))
        }
        consumer.assign(list(labels.values()))
        ends = await consumer.end_offsets(list(labels.values())) if labels else {}
        state, protocol, members, owners = await _owners(admin, job)
        try:
            found_offsets = await admin.list_consumer_group_offsets(job)
        except GroupCoordinatorNotAvailableError:
            found_offsets = {}  # the first group of a new cluster
        committed = {one: found for one, found in found_offsets.items() if found.offset >= 0}
    except KafkaError as error:
        raise unreachable(settings, error) from error
    finally:
        await consumer.stop()
        await admin.close()
    subtasks = []
    for number in range(max(counts.values(), default=0)):
        own = [one for one in labels.values() if one.partition == number]
        partitions = []
        for one in own:
            offset = committed[one].offset if one in committed else None
            lag = None if offset is None else max(0, ends[one] - offset)
            partitions.append(PartitionState(f"{one.topic}/{number}", offset, ends[one], lag))
        owner = next((owners[one] for one in own if one in owners), None)
        checkpoints = [checkpoint_of(committed[one].metadata) for one in own if one in committed]
        latest = max((checkpoint for checkpoint in checkpoints if checkpoint is not None), default=None)
        subtasks.append(SubtaskState(number, owner, latest, tuple(partitions)))
    return GroupState(job, state, members, tuple(subtasks), protocol)


async def _owners(admin: AIOKafkaAdminClient, job: str) -> tuple[str, str, int, dict[TopicPartition, str]]:
    """Return the group's state, its assignor, the number of members, and partition → who owns it."""
    try:
        (answer,) = await admin.describe_consumer_groups([job])
    except GroupCoordinatorNotAvailableError:
        return "Dead", "", 0, {}  # the first group of a new cluster
    owners: dict[TopicPartition, str] = {}
    _, _, state, _, protocol, members = answer.groups[0][:6]
    if state in _OWNER_STATES:
        for member_id, client, host, _, encoded in (member[:5] for member in members):
            if not encoded:
                continue
            name = f"{client}{host}" if client else f"{member_id}{host}"
            for topic, numbers in ConsumerProtocolMemberAssignment.decode(encoded).assignment:
                owners |= {TopicPartition(topic, number): name for number in numbers}
    return state, protocol or "", len(members), owners

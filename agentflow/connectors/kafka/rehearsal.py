"""Topics of a rehearsal: made, filled, read back and removed again, beside those of the job.

    {job}-verify-{8 hex digits}-in, -out, -dead, …    and the group of that name

The name begins with the job's, so that rights for everything of the job cover its rehearsals too.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupIdNotFound, KafkaError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.admin import DeleteGroupsRequest

from agentflow.connectors.kafka.connection import (
    KAFKA_ERRORS,
    REQUEST_BYTES_MAX,
    Consumer,
    broken,
    client_options,
    unreachable,
)
from agentflow.connectors.kafka.topics import REPLICAS, known_topics
from agentflow.core.records import Record
from agentflow.errors import ConfigError
from agentflow.runtime.settings import KafkaSettings

_NAME_CHARS = 60  # of a job; a topic's name has at most 249, and internal topics have names behind it
_WAIT_MS = 50
_FORGET_S = 15.0
_LOOK_S = 0.1
_ATTEMPTS = 20
_PROBE_KEY = b"agentflow-clock"


def rehearsal_name(job: str) -> str:
    """Return a new name for a rehearsal of a job."""
    return f"{_prefix(job)}{uuid.uuid4().hex[:8]}"


def _prefix(job: str) -> str:
    return f"{job[:_NAME_CHARS]}-verify-"


async def rehearsal_topics(settings: KafkaSettings, job: str) -> list[str]:
    """Return the topics of rehearsals of a job: of one that runs now, or of some that were killed.

    Raises:
        SourceError: No broker answers.
    """
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await admin.start()
        return sorted(topic for topic in await admin.list_topics() if topic.startswith(_prefix(job)))
    except KafkaError as error:
        raise unreachable(settings, error) from error
    finally:
        await admin.close()


async def first_records(settings: KafkaSettings, topics: Sequence[str], count: int) -> list[Record]:
    """Return the first committed records that are kept, partition after partition; no group is joined, nothing is committed.

    Raises:
        SourceError: No broker answers.
    """
    admin = AIOKafkaAdminClient(**client_options(settings))
    consumer = Consumer(**client_options(settings), enable_auto_commit=False, auto_offset_reset="none", isolation_level="read_committed")  # fmt: skip
    found: list[Record] = []
    try:
        await admin.start()
        counts = await known_topics(admin, topics)
        partitions = [TopicPartition(topic, number) for topic in topics for number in range(counts.get(topic, 0))]
        if not partitions:
            return []
        await consumer.start()
        consumer.assign(partitions)
        begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        for one in partitions:
            consumer.seek(one, begins[one])
            while len(found) < count and await consumer.position(one) < ends[one]:
                fetched = await consumer.getmany(one, timeout_ms=_WAIT_MS, max_records=count - len(found))
                found += [record_of(record) for record in fetched.get(one, ())]
            if len(found) >= count:
                break
    except KafkaError as error:
        raise unreachable(settings, error) from error
    finally:
        await consumer.stop()
        await admin.close()
    return found


def record_of(record: Any) -> Record:  # noqa: ANN401 (aiokafka's)
    """Return a fetched record as the engine has it."""
    headers = tuple((name, value or b"") for name, value in record.headers)
    label = f"{record.topic}/{record.partition}"
    return Record(label, record.offset, record.offset + 1, record.value, record.key, record.timestamp, headers)


class RehearsalTopics:
    """Topics of one rehearsal.

    Args:
        settings: Brokers.
        name: From `rehearsal_name`.
    """

    def __init__(self, settings: KafkaSettings, name: str) -> None:
        self._settings = settings
        self.name = name
        self.source = f"{name}-in"
        self.output = f"{name}-out"
        self.dead_letters = f"{name}-dead"

    async def create(self, replicas: int | None) -> None:
        """Make input and output with one partition; the job makes the rest. The output has the times of the brokers.

        Args:
            replicas: Of each; None: 3, or as many as there are brokers.

        Raises:
            ConfigError: The brokers do not make them.
            SourceError: No broker answers.
        """
        by_broker = {"message.timestamp.type": "LogAppendTime"}
        admin = AIOKafkaAdminClient(**client_options(self._settings))
        try:
            await admin.start()
            replicas = replicas or min(REPLICAS, len((await admin.describe_cluster())["brokers"]))
            wanted = [NewTopic(self.source, 1, replicas), NewTopic(self.output, 1, replicas, topic_configs=by_broker)]
            answer = await admin.create_topics(wanted)
            problems = [
                f"the brokers do not create topic '{topic}': {for_code(code).__name__}{f': {text[0]}' if text and text[0] else ''}\n"
                f"help: give this client the right to create topics that begin with '{self.name.rpartition('-')[0]}-'"
                for topic, code, *text in answer.topic_errors
                if code
            ]
        except KafkaError as error:
            raise unreachable(self._settings, error) from error
        finally:
            await admin.close()
        if problems:
            raise ConfigError(problems)

    async def fill(self, records: Iterable[Record], on_writing: Callable[[], None]) -> float:
        """Write records to the input, and return by how many seconds the brokers' clock is ahead of this machine's.

        Args:
            records: In this order.
            on_writing: Called before the first one is written, behind all that is only preparation.

        Raises:
            SinkError: They are not taken.
        """
        producer = AIOKafkaProducer(
            **client_options(self._settings), enable_idempotence=True, max_request_size=REQUEST_BYTES_MAX
        )
        try:
            await producer.start()
            await producer.send_and_wait(
                self.output, b"", _PROBE_KEY, partition=0
            )  # the first one looks for the leader
            before = time.time()
            taken = await producer.send_and_wait(self.output, b"", _PROBE_KEY, partition=0)
            ahead_s = float(taken.timestamp / 1000 - (before + time.time()) / 2)
            await producer.partitions_for(self.source)
            on_writing()
            for record in records:
                await producer.send_and_wait(
                    self.source,
                    record.value,
                    record.key,
                    partition=0,
                    timestamp_ms=record.timestamp_ms,
                    headers=list(record.headers),
                )
            return ahead_s
        except KAFKA_ERRORS as error:
            raise broken(error, "writing the records of the rehearsal", {"topic": self.source}) from error
        finally:
            await producer.stop()

    async def follow_outputs(self, seen: list[tuple[Record, int]]) -> None:
        """Read committed outputs until it is cancelled.

        Args:
            seen: Takes (record, `time.perf_counter_ns` when it was there).

        Raises:
            SourceError: No broker answers.
        """
        partition = TopicPartition(self.output, 0)
        consumer = Consumer(**client_options(self._settings), enable_auto_commit=False, auto_offset_reset="none", isolation_level="read_committed")  # fmt: skip
        try:
            await consumer.start()
            consumer.assign([partition])
            consumer.seek(partition, 0)
            while True:
                fetched = await consumer.getmany(partition, timeout_ms=_WAIT_MS)
                now_ns = time.perf_counter_ns()
                records = [record for record in fetched.get(partition, ()) if record.key != _PROBE_KEY]
                seen += [(record_of(record), now_ns) for record in records]
        except KafkaError as error:
            raise unreachable(self._settings, error) from error
        finally:
            await consumer.stop()

    async def remove(self, topics: Sequence[str], *, has_group: bool) -> list[str]:
        """Delete the topics and the group, and return what is still there; nothing is raised for that.

        Args:
            topics: All that the rehearsal may have.
            has_group: Whether somebody may have joined its group.
        """
        admin = AIOKafkaAdminClient(**client_options(self._settings))
        left = {topic: f"topic {topic}" for topic in topics}
        try:
            await admin.start()
            left = await self._delete_topics(admin, left)
            return [*left.values(), *(await self._delete_group(admin) if has_group else ())]
        except KafkaError as error:
            return [*left.values(), *([f"group {self.name} ({error!r})"] if has_group else ())]
        finally:
            await admin.close()

    async def _delete_topics(self, admin: AIOKafkaAdminClient, left: Mapping[str, str]) -> dict[str, str]:
        known = await known_topics(admin, left)
        reasons: dict[str, str] = {}
        if known:
            answer = await admin.delete_topics(sorted(known))
            reasons = {
                topic: for_code(code).__name__
                for topic, code in answer.topic_error_codes
                if code and for_code(code) is not UnknownTopicOrPartitionError
            }
        deadline = time.monotonic() + _FORGET_S
        while set(known) - set(reasons) and time.monotonic() < deadline:  # brokers forget a topic a little later
            await asyncio.sleep(_LOOK_S)
            known = await known_topics(admin, known)
        return {topic: f"topic {topic}{f' ({reasons[topic]})' if topic in reasons else ''}" for topic in known}

    async def _delete_group(self, admin: AIOKafkaAdminClient) -> list[str]:
        """Delete the group; it may take a moment until the last member is known to have left."""
        error: type[KafkaError] = KafkaError
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(KafkaError):  # another coordinator, or none yet
                coordinator = await admin.find_coordinator(self.name)
                answer = await admin._send_request(DeleteGroupsRequest([self.name]), coordinator)  # noqa: SLF001 (it has no method for that)
                ((_, code),) = answer.results
                error = for_code(code)
                if not code or error is GroupIdNotFound:
                    return []
            await asyncio.sleep(_LOOK_S)
        return [f"group {self.name} ({error.__name__})"]

"""What a client may do, asked of the brokers in ways that change nothing.

Brokers look at rights before they look at anything else. So each question is a request that is refused for another reason by whoever
has the right:

    read a topic        fetch at an offset that does not exist            OFFSET_OUT_OF_RANGE
    write a topic       add it to the transaction of a producer that      NOT_COORDINATOR, or
      and use a           does not exist                                  INVALID_PRODUCER_ID_MAPPING
      transactional id
    be in a group       a sign of life of a member that does not exist    NOT_COORDINATOR, or UNKNOWN_MEMBER_ID
    cut a topic         delete what lies before offset 0                  (nothing lies there)

Rejected: starting a producer with the job's transactional id, which would fence the worker that runs; asking for the ACLs, which needs
a right of its own and does not know of prefixes, groups and super users what the broker makes of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import HeartbeatRequest
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest

from agentflow.connectors.kafka.connection import client_options, unreachable
from agentflow.connectors.kafka.topics import JobTopics
from agentflow.runtime.settings import KafkaSettings

_NOWHERE = 2**62  # an offset, and the id of a producer
_NOBODY = "agentflow-doctor"


class MissingRight(msgspec.Struct, frozen=True):
    """A right that the job needs and this client does not have.

    Attributes:
        what: What it may not do.
        fix: The ACL that lets it, in Kafka's words.
    """

    what: str
    fix: str


async def missing_rights(
    settings: KafkaSettings, job: str, topics: JobTopics, partitions: Mapping[str, int]
) -> list[MissingRight]:
    """Return what a worker of the job needs and this client may not do; nothing is changed.

    Args:
        settings: Brokers and credentials.
        job: Name of the job: its group, and the first part of its transactional ids.
        topics: Its topics; those that do not exist are asked for too, except whether they may be cut.
        partitions: Topic → number of partitions, of those that exist.

    Raises:
        SourceError: No broker answers.
    """
    read = (*topics.inputs, *topics.roles)
    written = tuple(topic for topic in topics.every if topic not in topics.inputs and topic != topics.signals)
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await admin.start()
        questions = _Questions(admin, job)
        subtasks = max((partitions.get(topic, 1) for topic in topics.inputs), default=1)
        return [
            *await questions.read(read),
            *await questions.write(written, sorted({0, subtasks - 1})),
            *await questions.join(),
            *await questions.cut([topic for topic in (topics.journal, *topics.repartition) if topic in partitions]),
        ]
    except KafkaError as error:
        raise unreachable(settings, error) from error
    finally:
        await admin.close()


class _Questions:
    def __init__(self, admin: AIOKafkaAdminClient, job: str) -> None:
        self._admin = admin
        self._job = job

    async def _ask(self, request: object) -> Any:  # noqa: ANN401 (aiokafka has no types for it)
        return await self._admin._send_request(request)  # noqa: SLF001 (to any broker: it has no method for these)

    async def read(self, topics: Sequence[str]) -> list[MissingRight]:
        answer = await self._ask(FetchRequest(0, 0, 1, 0, [(topic, [(0, _NOWHERE, 1)]) for topic in topics]))
        refused = _refused(answer.topics, TopicAuthorizationFailedError)
        return [
            MissingRight(f"read topic '{topic}'", f"ACL: READ on topic {topic}") for topic in topics if topic in refused
        ]

    async def write(self, topics: Sequence[str], subtasks: Iterable[int]) -> list[MissingRight]:
        missing: dict[str, MissingRight] = {}
        for subtask in subtasks:
            transactional_id = f"{self._job}-{subtask}"
            answer = await self._ask(
                AddPartitionsToTxnRequest(transactional_id, _NOWHERE, 0, [(topic, [0]) for topic in topics])
            )
            if _refused(answer.errors, TransactionalIdAuthorizationFailed):
                missing[transactional_id] = MissingRight(
                    f"use the transactional id '{transactional_id}'; whether it may write the topics, the brokers do not tell then",
                    f"ACL: WRITE on the transactional ids that begin with {self._job}-",
                )
            for topic in _refused(answer.errors, TopicAuthorizationFailedError):
                missing[topic] = MissingRight(f"write topic '{topic}'", f"ACL: WRITE on topic {topic}")
        return list(missing.values())

    async def join(self) -> list[MissingRight]:
        answer = await self._ask(HeartbeatRequest(self._job, 0, _NOBODY))
        if answer.error_code != GroupAuthorizationFailedError.errno:
            return []
        return [MissingRight(f"be a member of the group '{self._job}'", f"ACL: READ on group {self._job}")]

    async def cut(self, topics: Sequence[str]) -> list[MissingRight]:
        missing = []
        for topic in topics:
            try:
                await self._admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=0)})
            except TopicAuthorizationFailedError:
                missing.append(
                    MissingRight(
                        f"cut topic '{topic}' behind its checkpoints: it would grow for ever",
                        f"ACL: DELETE on topic {topic}",
                    )
                )
        return missing


def _refused(answer: Iterable[Any], error: type[KafkaError]) -> list[str]:
    """Return the topics of an answer that have an error; an entry of a partition begins with its number and the error."""
    return [topic for topic, parts in answer if any(part[1] == error.errno for part in parts)]

"""Topics as sinks: outputs, and dead letters beside them in the same transaction."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from agentflow.connectors.kafka.partitioners import Partitioner
from agentflow.connectors.kafka.plain_producer import PlainProducer
from agentflow.connectors.kafka.producer import SubtaskProducer
from agentflow.core.effects import DeadLetter, EmitRecord
from agentflow.core.records import ORIGIN_HEADER, ORIGINAL_KEY_HEADER, Record
from agentflow.runtime.ports import Guarantee, Staged

_AROUND_BYTES = 4 * 2**10  # what a batch has around the value of its only record: its head, key and headers
_NO_HEADERS: list[tuple[str, bytes]] = []
REASON_PREFIX = "agentflow-"
"""Of the headers that say why a record is a dead letter."""
_decode_key = msgspec.msgpack.Decoder().decode


def kafka_key(encoded: bytes) -> bytes:
    """Return the record key of a job's key: text as UTF-8, bytes as they are, numbers and truth values as JSON."""
    key: Any = _decode_key(encoded)
    if isinstance(key, bytes):
        return key
    return key.encode() if isinstance(key, str) else json.dumps(key).encode()


class _Topic:
    """What the sinks share: a topic, and the producer's protocol."""

    name = "kafka"

    def __init__(
        self,
        producer: SubtaskProducer | PlainProducer,
        topic: str,
        partitioner: Partitioner,
        message_max_bytes: int | None = None,
    ) -> None:
        is_transactional = isinstance(producer, SubtaskProducer)
        self.guarantee = Guarantee.EXACTLY_ONCE if is_transactional else Guarantee.AT_LEAST_ONCE
        self.record_max_bytes = None if message_max_bytes is None else message_max_bytes - _AROUND_BYTES
        self._producer = producer
        self._topic = topic
        self._partitioner = partitioner
        self._partitions = 0

    async def open(self, prepared: tuple[int, Staged] | None) -> None:  # noqa: ARG002 (nothing is ever staged)
        """Look at the topic."""
        self._partitions = await self._producer.partitions(self._topic)

    def barrier(self, checkpoint: int) -> None:  # noqa: ARG002 (the producer needs no number)
        """Close the epoch of the producer."""
        self._producer.barrier()

    async def stage(self, checkpoint: int) -> Staged:  # noqa: ARG002 (the transaction is the staging)
        """Wait until the broker has every record of the epoch, where that is not part of the commit that shows them."""
        await self._producer.flush()
        return Staged()

    async def publish(self, checkpoint: int, staged: Staged) -> None:
        """Nothing: the commit has published."""

    async def close(self) -> None:
        """Nothing: the producer is closed by its owner."""


class KafkaSink(_Topic):
    """Outputs as records, with the key of their run."""

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Append one output."""
        assert isinstance(record, EmitRecord)
        run = record.task.run
        state = run.state
        destination = state.destination
        if destination is None:
            key = kafka_key(state.key)
            destination = state.destination = (key, self._partitioner(key, self._partitions))
        is_plain = record.own_headers is None and record.headed is None and not run.record.headers
        headers = _NO_HEADERS if is_plain else list(record.headers)
        self._producer.append(self._topic, destination[1], destination[0], record.value, headers, record.timestamp_ms)


class KafkaDeadLetters(_Topic):
    """Failed records as they came: key, value, headers untouched, the reason in headers beside them."""

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Append one dead letter."""
        assert isinstance(record, DeadLetter)
        failed, reason = record.record, dict(record.reason)
        key, headers = failed.key, list(failed.headers)
        carried = dict(headers)
        if ORIGIN_HEADER in carried:  # it came through a repartition topic
            key = carried.get(ORIGINAL_KEY_HEADER)
            headers = list(failed.user_headers)
            reason["source-position"] = carried[ORIGIN_HEADER].decode()
        partition = self._partitioner(key, self._partitions) if key else 0
        headers += [(f"{REASON_PREFIX}{name}", text.encode()) for name, text in reason.items()]
        self._producer.append(self._topic, partition, key, failed.value, headers, failed.timestamp_ms)


class KafkaRepartition(_Topic):
    """Records on their way to the subtask of their key. The record key is the canonical encoding of the job's key."""

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Nothing is written here: see `forward`."""
        raise AssertionError(record)

    def forward(self, record: Record, key: bytes) -> None:
        """Append one record with its new key; what it was is kept in headers."""
        headers = [*record.headers, (ORIGIN_HEADER, record.run_id.encode())]
        if record.key is not None:
            headers.append((ORIGINAL_KEY_HEADER, record.key))
        partition = self._partitioner(kafka_key(key), self._partitions)  # where outputs and signals of the key are too
        self._producer.append(self._topic, partition, key, record.value, headers, record.timestamp_ms)

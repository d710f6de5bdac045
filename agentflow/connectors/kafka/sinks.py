"""Topics as sinks: outputs, and dead letters beside them in the same transaction."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from agentflow.connectors.kafka.partitioners import Partitioner
from agentflow.connectors.kafka.producer import SubtaskProducer
from agentflow.core.effects import DeadLetter, EmitRecord
from agentflow.runtime.ports import Guarantee, Staged

_KEYS_MAX = 100_000
_NO_HEADERS: list[tuple[str, bytes]] = []
_decode_key = msgspec.msgpack.Decoder().decode


def kafka_key(encoded: bytes) -> bytes:
    """Return the record key of a job's key: text as UTF-8, bytes as they are, numbers and truth values as JSON."""
    key: Any = _decode_key(encoded)
    if isinstance(key, bytes):
        return key
    return key.encode() if isinstance(key, str) else json.dumps(key).encode()


class _Topic:
    """What both sinks share: a topic, and the producer's protocol."""

    name = "kafka"
    guarantee = Guarantee.EXACTLY_ONCE

    def __init__(self, producer: SubtaskProducer, topic: str, partitioner: Partitioner) -> None:
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
        """Wait until the broker has every record of the epoch; the commit makes them visible."""
        await self._producer.flush()
        return Staged()

    async def publish(self, checkpoint: int, staged: Staged) -> None:
        """Nothing: the commit has published."""

    async def close(self) -> None:
        """Nothing: the producer is closed by its owner."""


class KafkaSink(_Topic):
    """Outputs as records, with the key of their run."""

    def __init__(self, producer: SubtaskProducer, topic: str, partitioner: Partitioner) -> None:
        super().__init__(producer, topic, partitioner)
        self._places: dict[
            bytes, tuple[bytes, int]
        ] = {}  # key → record key and partition, because hashing costs 1.6 µs

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Append one output."""
        assert isinstance(record, EmitRecord)
        encoded = record.task.run.key
        place = self._places.get(encoded)
        if place is None:
            if len(self._places) >= _KEYS_MAX:
                self._places.clear()
            key = kafka_key(encoded)
            place = self._places[encoded] = (key, self._partitioner(key, self._partitions))
        self._producer.append(self._topic, place[1], place[0], record.value, _NO_HEADERS, record.timestamp_ms)


class KafkaDeadLetters(_Topic):
    """Failed records as they came: key, value, headers untouched, the reason in headers beside them."""

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Append one dead letter."""
        assert isinstance(record, DeadLetter)
        failed = record.record
        reason = [(f"agentflow-{name}", text.encode()) for name, text in record.reason.items()]
        partition = 0 if failed.key is None else self._partitioner(failed.key, self._partitions)
        headers = [*failed.headers, *reason]
        self._producer.append(self._topic, partition, failed.key, failed.value, headers, failed.timestamp_ms)

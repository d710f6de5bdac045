"""The event log in a Kafka topic: records by business key, so that those of a key stay in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from agentflow.connectors.kafka.partitioners import murmur2
from agentflow.connectors.kafka.plain_producer import PlainProducer
from agentflow.connectors.kafka.topics import ensure_topic
from agentflow.runtime.settings import KafkaSettings, TopicSettings

_BATCH_BYTES = 512 * 2**10
_WRITTEN_WITHIN_S = 30.0


class _Keyed(msgspec.Struct):
    """What is looked at in a record."""

    key: Any = msgspec.field(name="businessKey", default=None)


_decode = msgspec.json.Decoder(_Keyed).decode


class KafkaEventLog:
    """Writes from a thread of its own, with an event loop of its own: nothing of the job waits for it.

    Args:
        settings: Where the brokers are.
        creation: Whether the topic may be created, and how.
        topic: The topic.
    """

    name = "kafka"

    def __init__(self, settings: KafkaSettings, creation: TopicSettings, topic: str) -> None:
        self._settings = settings
        self._creation = creation
        self._topic = topic
        self._runner: asyncio.Runner | None = None
        self._producer: PlainProducer | None = None
        self._partitions = 0

    def write(self, subtask: int, lines: Sequence[bytes]) -> None:  # noqa: ARG002 (the port)
        """Write the records, and wait until the brokers have them.

        Raises:
            AgentflowError: They have not.
            TimeoutError: They do not answer.
        """
        if self._runner is None:
            self._runner = asyncio.Runner()
        self._runner.run(self._write(lines))

    async def _write(self, lines: Sequence[bytes]) -> None:
        try:
            async with asyncio.timeout(_WRITTEN_WITHIN_S):
                producer = self._producer or await self._start()
                for some in lines:
                    for line in filter(None, some.split(b"\n")):
                        own = _decode(line).key
                        key = own.encode() if isinstance(own, str) else msgspec.json.encode(own)
                        producer.append(self._topic, murmur2(key, self._partitions), key, line, [], None)
                await producer.flush()
        except BaseException:
            await self._stop()  # its next life begins with a new connection, and without what this one has left
            raise

    async def _start(self) -> PlainProducer:
        await ensure_topic(self._settings, self._creation, self._topic)
        producer = self._producer = PlainProducer(self._settings, _BATCH_BYTES)
        await producer.start()
        self._partitions = await producer.partitions(self._topic)
        return producer

    async def _stop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.close()

    def tend(self) -> None:
        """Nothing is due."""

    def close(self) -> None:
        """Disconnect."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.run(self._stop())
            runner.close()

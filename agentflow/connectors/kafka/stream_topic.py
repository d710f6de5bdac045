"""Streams of actions (`ctx.stream`) in a topic: by the job's key, at most once, never waited for.

A chunk is a JSON object with the fields of `agentflow.StreamChunk`. What the brokers have not taken waits in a buffer that drops the oldest;
what was on its way when they failed is lost. A topic of tokens is to look at: what counts are the outputs.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import Iterator

import msgspec

from agentflow.api.streams import StreamChunk
from agentflow.connectors.kafka.connection import KAFKA_ERRORS
from agentflow.connectors.kafka.partitioners import murmur2
from agentflow.connectors.kafka.plain_producer import PlainProducer
from agentflow.connectors.kafka.sinks import kafka_key
from agentflow.connectors.kafka.topics import ensure_topic
from agentflow.errors import AgentflowError
from agentflow.runtime.logs import logger_of
from agentflow.runtime.settings import KafkaSettings, TopicSettings

_BATCH_BYTES = 512 * 2**10
_AROUND_BYTES = 200  # what a chunk takes in the buffer beside its text
_WRITTEN_WITHIN_S = 30.0
_AGAIN_S = 1.0
_CLOSED_WITHIN_S = 5.0
_encode = msgspec.json.Encoder().encode


class KafkaStreamTopic:
    """See `agentflow.runtime.ports.StreamOutlet`. It connects with the first chunk.

    Args:
        settings: Where the brokers are.
        creation: Whether the topic may be created, and how.
        topic: The topic.
        buffer_bytes: What may wait for the brokers.

    Attributes:
        written: Chunks that the brokers have.
        dropped: Chunks that there was no room for.
        failed: Chunks that were on their way when the brokers failed.
    """

    def __init__(self, settings: KafkaSettings, creation: TopicSettings, topic: str, buffer_bytes: int) -> None:
        self.written = self.dropped = self.failed = 0
        self._settings = settings
        self._creation = creation
        self._topic = topic
        self._buffer_bytes = buffer_bytes
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._waiting_bytes = 0
        self._has_some = asyncio.Event()
        self._is_closing = False
        self._producer: PlainProducer | None = None
        self._partitions = 0
        self._sender: asyncio.Task[None] | None = None

    def counts(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Return what became of the chunks, for metrics; from any thread."""
        yield self.written, {"outcome": "written"}
        yield self.dropped, {"outcome": "dropped"}
        yield self.failed, {"outcome": "failed"}

    def write(self, key: bytes, chunk: StreamChunk) -> None:
        """Take a chunk."""
        value = _encode(chunk)
        self._waiting.append((key, value))
        self._waiting_bytes += len(value) + _AROUND_BYTES
        while self._waiting_bytes > self._buffer_bytes:
            self._waiting_bytes -= len(self._waiting.popleft()[1]) + _AROUND_BYTES
            self.dropped += 1
        self._has_some.set()
        if self._sender is None and not self._is_closing:
            context = contextvars.Context()  # not that of the action that happens to write first
            self._sender = asyncio.get_running_loop().create_task(
                self._send(), name="agentflow-streams", context=context
            )

    async def close(self) -> None:
        """Give the brokers what is left, if they take it in time."""
        self._is_closing = True
        self._has_some.set()
        if self._sender is not None:
            await asyncio.wait([self._sender], timeout=_CLOSED_WITHIN_S)
            self._sender.cancel()
            await asyncio.wait([self._sender])
        await self._disconnect()
        self.dropped += len(self._waiting)
        self._waiting.clear()

    async def _send(self) -> None:
        was_told = False
        while not self._is_closing or self._waiting:
            await self._has_some.wait()
            self._has_some.clear()
            try:
                while self._waiting:
                    await self._send_some()
                    was_told = False
            except (AgentflowError, TimeoutError, *KAFKA_ERRORS) as error:
                await self._disconnect()
                if not was_told:
                    was_told = True
                    fields = {"topic": self._topic, "error": str(error).partition("\n")[0]}
                    logger_of("agentflow.streams").warning(
                        "chunks of streams are lost: the topic cannot be written", **fields
                    )
                if self._is_closing:
                    return
                await asyncio.sleep(_AGAIN_S)
                self._has_some.set()

    async def _send_some(self) -> None:
        async with asyncio.timeout(_WRITTEN_WITHIN_S):
            producer = self._producer or await self._connect()
            taken = self._take()
            try:
                for key, value in taken:
                    record_key = kafka_key(key)
                    producer.append(self._topic, murmur2(record_key, self._partitions), record_key, value, [], None)
                await producer.flush()
            except BaseException:
                self.failed += len(taken)
                raise
        self.written += len(taken)

    def _take(self) -> list[tuple[bytes, bytes]]:
        taken: list[tuple[bytes, bytes]] = []
        size = 0
        while self._waiting and size < _BATCH_BYTES:
            taken.append(self._waiting.popleft())
            size += len(taken[-1][1]) + _AROUND_BYTES
        self._waiting_bytes -= size
        return taken

    async def _connect(self) -> PlainProducer:
        await ensure_topic(self._settings, self._creation, self._topic)
        producer = self._producer = PlainProducer(self._settings, _BATCH_BYTES)
        await producer.start()
        self._partitions = await producer.partitions(self._topic)
        return producer

    async def _disconnect(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(AgentflowError, TimeoutError, *KAFKA_ERRORS):
                await producer.close()

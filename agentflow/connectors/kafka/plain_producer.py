"""Outputs of an at-least-once job: they leave at once, and are all acknowledged before a checkpoint commits.

While one send is under way, what is appended meanwhile gathers in batches; so batches grow with the load by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from aiokafka import AIOKafkaProducer

from agentflow.connectors.kafka.connection import KAFKA_ERRORS, REQUEST_BYTES_MAX, broken, client_options
from agentflow.runtime.settings import KafkaSettings

_BATCHES_MAX = 32


class PlainProducer:
    """Idempotent, not transactional. Has what the sinks want of `SubtaskProducer`.

    Args:
        settings: Where the brokers are.
        batch_bytes: Size that a batch is filled to.
    """

    def __init__(self, settings: KafkaSettings, batch_bytes: int) -> None:
        self._batch_bytes = batch_bytes
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._open: dict[tuple[str, int], Any] = {}
        self._full: list[tuple[str, int, Any]] = []
        self._futures: list[asyncio.Future[Any]] = []
        self._failure: Exception | None = None
        self._wake = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._turn = asyncio.Lock()
        self._sender: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect."""
        producer = AIOKafkaProducer(
            **client_options(self._settings),
            enable_idempotence=True,
            max_batch_size=self._batch_bytes,
            max_request_size=REQUEST_BYTES_MAX,
        )
        try:
            await producer.start()
        except KAFKA_ERRORS as error:
            with contextlib.suppress(*KAFKA_ERRORS):
                await producer.stop()
            raise broken(error, "starting the producer of outputs", self._where()) from error
        self._producer = producer
        self._sender = asyncio.ensure_future(self._send_regularly())

    async def partitions(self, topic: str) -> int:
        """Return the number of partitions of a topic."""
        assert self._producer is not None
        try:
            return len(await self._producer.partitions_for(topic))
        except KAFKA_ERRORS as error:
            raise broken(error, "looking at the output topic", self._where() | {"topic": topic}) from error

    def append(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
        timestamp_ms: int | None,
    ) -> None:
        """Add a record; no I/O here."""
        assert self._producer is not None, "append to a producer that is not started"
        slot = (topic, partition)
        batch = self._open.get(slot)
        if batch is None or batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers) is None:
            if batch is not None:
                self._full.append((*slot, batch))
                if len(self._full) >= _BATCHES_MAX:
                    self._has_room.clear()
            batch = self._open[slot] = self._producer.create_batch()
            if batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers) is None:
                self._failure = self._failure or ValueError(
                    f"a record of {len(value or b''):,} bytes fits into no batch"
                )
        self._wake.set()

    def barrier(self) -> None:
        """Nothing: what is appended leaves at once."""

    async def room(self) -> None:
        """Wait while more is appended than leaves."""
        await self._has_room.wait()

    async def _send_regularly(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                async with self._turn:
                    await self._send_all()
        except KAFKA_ERRORS as error:
            self._failure = self._failure or error
            self._has_room.set()

    async def _send_all(self) -> None:
        producer = self._producer
        assert producer is not None
        batches = self._full + [(*slot, batch) for slot, batch in self._open.items()]
        self._full, self._open = [], {}
        self._has_room.set()
        self._futures = [future for future in self._futures if not future.done() or future.exception() is not None]
        for topic, partition, batch in batches:
            self._futures.append(await producer.send_batch(batch, topic, partition=partition))

    async def flush(self) -> None:
        """Wait until the broker has all that was appended.

        Raises:
            SinkError: A record was not taken.
        """
        try:
            async with self._turn:
                await self._send_all()
                futures, self._futures = self._futures, []
            if self._failure is not None:
                raise broken(self._failure, "writing outputs", self._where())
            for future in futures:
                await future
        except KAFKA_ERRORS as error:
            raise broken(error, "writing outputs", self._where()) from error

    async def close(self) -> None:
        """Disconnect. Idempotent."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait([self._sender])
            self._sender = None
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(*KAFKA_ERRORS, TimeoutError):
                async with asyncio.timeout(5):
                    await producer.stop()
        for future in self._futures:
            if future.done() and not future.cancelled():
                future.exception()  # nobody else looks at it

    def _where(self) -> dict[str, object]:
        return {"brokers": self._settings.brokers}

"""The transactional producer of one subtask: outputs, dead letters and changelog of an epoch in one transaction.

    append…                 full batches of the open epoch are sent while the epoch goes on
    barrier                 the epoch is closed; what is appended now belongs to the next one and is held back
    append_changelog…       as append: full batches are sent
    commit                  what is left of outputs and changelog is sent together, every record of the epoch is acknowledged,
                            and the commit is the completion of the checkpoint; then the next epoch's records may leave

A small checkpoint is four round trips: partitions into the transaction, records beside the group's two for the offsets, the
commit. One task at a time talks to the producer (`_turn`): aiokafka answers a send beside a commit with an error. A failed batch does
not fail a transaction in aiokafka, so every future is checked before the commit. A commit is never retried and a transaction
never resumed: after any error the subtask is dropped, and its next life fences this producer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition

from agentflow.connectors.kafka.connection import KAFKA_ERRORS, REQUEST_BYTES_MAX, broken, client_options
from agentflow.connectors.kafka.plain_producer import PlainProducer
from agentflow.runtime.settings import KafkaSettings

BATCH_BYTES = 256 * 2**10
"""Size that a batch is filled to; a record that is larger makes a batch of its own."""
_Sent = tuple[asyncio.Future[Any], int]
"""A batch that was handed over: its acknowledgement to come, and how many records it has."""
_OUTBOX_BATCHES_MAX = 32  # 8 MiB; above it reading waits


class SubtaskProducer:
    """See the module's docstring.

    Args:
        settings: Where the brokers are.
        job: Name of the job: its consumer group, and the first part of the transactional id.
        subtask: Number of the subtask.
        changelog: Name of the changelog topic.
        batch_max_bytes: Largest batch that every topic takes.
        outputs: Producer of outputs that leave at once, in an at-least-once job; None: they are in the transaction.
        new_producer: Makes the client.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        job: str,
        subtask: int,
        changelog: str,
        batch_max_bytes: int = BATCH_BYTES,
        outputs: PlainProducer | None = None,
        new_producer: Callable[..., Any] = AIOKafkaProducer,
    ) -> None:
        self._new_producer = new_producer
        self.outputs = outputs
        self._batch_bytes = min(BATCH_BYTES, batch_max_bytes)
        self._settings = settings
        self._group = job
        self._subtask = subtask
        self._changelog = changelog
        self.transactional_id = f"{job}-{subtask}"
        self._producer: Any = None  # AIOKafkaProducer
        self._turn = asyncio.Lock()
        self._open: dict[str, dict[int, Any]] = {}  # topic → partition → batch that is being filled
        self._outbox: deque[tuple[str, int, Any]] = deque()  # full batches of the epoch that may leave
        self._held: deque[tuple[str, int, Any]] = deque()  # those of the next epoch, while this one is closed
        self._is_closed_epoch = False
        self._is_in_transaction = False
        self._futures: list[asyncio.Future[Any]] = []
        self._changelog_batch: Any = None
        self._last_changelog: _Sent | None = None
        self._wake = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._sender: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self.committed: dict[str, int] = {}  # source label → next offset, of the last commit

    # -- life
    async def start(self) -> None:
        """Fence every earlier owner of the subtask; its open transaction is aborted, a prepared one is finished."""
        producer = self._new_producer(
            **client_options(self._settings),
            transactional_id=self.transactional_id,
            transaction_timeout_ms=self._settings.transaction_timeout_ms,
            max_batch_size=self._batch_bytes,
            max_request_size=REQUEST_BYTES_MAX,
        )
        try:
            await producer.start()
        except KAFKA_ERRORS as error:
            with contextlib.suppress(*KAFKA_ERRORS):
                await producer.stop()
            raise broken(error, "starting the producer", self._where()) from error
        self._producer = producer
        if self.outputs is not None:
            await self.outputs.start()
        self._sender = asyncio.ensure_future(self._send_full_batches())

    async def partitions(self, topic: str) -> int:
        """Return the number of partitions of a topic."""
        assert self._producer is not None
        try:
            return len(await self._producer.partitions_for(topic))
        except KAFKA_ERRORS as error:
            raise broken(error, "looking at the output topic", self._where() | {"topic": topic}) from error

    async def close(self) -> bool:
        """Abort what is open and disconnect; whether there was something. Idempotent."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait([self._sender])
            self._sender = None
        if self.outputs is not None:
            await self.outputs.close()
        producer, self._producer = self._producer, None
        if producer is None:
            return False
        with contextlib.suppress(*KAFKA_ERRORS, TimeoutError):
            async with asyncio.timeout(5):
                if self._is_in_transaction:
                    await producer.abort_transaction()
        with contextlib.suppress(*KAFKA_ERRORS, TimeoutError):
            async with asyncio.timeout(5):
                await producer.stop()
        for future in self._futures:
            if future.done() and not future.cancelled():
                future.exception()  # of a producer that was fenced: nobody else looks at it
        return self._is_in_transaction

    # -- records of the open epoch
    def append(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
        timestamp_ms: int | None,
    ) -> None:
        """Add a record to the open epoch; no I/O."""
        open_batches = self._open.get(topic)
        if open_batches is None:
            open_batches = self._open[topic] = {}
        batch = open_batches.get(partition)
        if batch is not None:
            if batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers) is not None:
                return
            self._put_out(topic, partition, batch)
            self._wake.set()
        assert self._producer is not None, "append to a producer that is not started"
        batch = open_batches[partition] = self._producer.create_batch()
        if batch.append(timestamp=timestamp_ms, key=key, value=value, headers=headers) is None:
            self._failure = self._failure or ValueError(f"a record of {len(value or b''):,} bytes fits into no batch")

    def _put_out(self, topic: str, partition: int, batch: Any) -> None:  # noqa: ANN401 (aiokafka has no types for it)
        outbox = self._held if self._is_closed_epoch else self._outbox
        outbox.append((topic, partition, batch))
        if len(self._outbox) + len(self._held) >= _OUTBOX_BATCHES_MAX:
            self._has_room.clear()

    async def room(self) -> None:
        """Wait while more is appended than leaves."""
        await self._has_room.wait()
        if self.outputs is not None:
            await self.outputs.room()

    def barrier(self) -> None:
        """Close the epoch: what is appended from now on leaves after its commit. Once per checkpoint."""
        if self._is_closed_epoch:
            return
        for topic, open_batches in self._open.items():
            for partition, batch in open_batches.items():
                self._put_out(topic, partition, batch)
        self._open = {}
        self._is_closed_epoch = True

    # -- sending
    async def _send_full_batches(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                async with self._turn:
                    await self._send_outbox()
        except KAFKA_ERRORS as error:
            self._failure = self._failure or error
            self._has_room.set()

    async def _send_outbox(self) -> None:
        """Hand over what may leave; the caller has the turn."""
        while self._outbox:
            topic, partition, batch = self._outbox.popleft()
            await self._send(topic, partition, batch)
        if len(self._held) < _OUTBOX_BATCHES_MAX:
            self._has_room.set()

    async def _send(self, topic: str, partition: int, batch: Any) -> _Sent:  # noqa: ANN401
        """Hand a batch over."""
        producer = self._producer
        assert producer is not None
        if not self._is_in_transaction:
            await producer.begin_transaction()
            self._is_in_transaction = True
        records = batch.record_count()
        future = await producer.send_batch(batch, topic, partition=partition)
        self._futures.append(future)
        if topic == self._changelog:
            self._last_changelog = future, records
        return future, records

    async def flush(self) -> None:
        """Nothing: `commit` sends what is left, and waits for all of it."""

    async def _acknowledged(self) -> None:
        if self._failure is not None:
            raise broken(
                self._failure if isinstance(self._failure, Exception) else RuntimeError(repr(self._failure)),
                "writing the records of a checkpoint",
                self._where(),
            )
        futures, self._futures = self._futures, []
        if futures:
            try:
                await asyncio.wait(futures)
                for future in futures:
                    future.result()
            finally:
                self._futures += [future for future in futures if not future.done()]

    # -- the checkpoint
    async def append_changelog(self, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Append records to the subtask's changelog partition, in the transaction of the closed epoch."""
        with self._told("writing the changelog"):
            async with self._in_time(), self._turn:
                self._changelog_batch, _ = await self._fill(self._changelog, self._changelog_batch, records)

    async def append_journal(self, topic: str, values: Sequence[bytes]) -> int:
        """Append values to the subtask's partition of a journal; return the offset behind them when they are durable."""
        with self._told("writing the journal"):
            async with self._in_time():
                async with self._turn:
                    batch, sent = await self._fill(topic, None, [(None, value) for value in values])
                    sent.append(await self._send(topic, self._subtask, batch))
                await asyncio.wait([future for future, _ in sent])
                last, records = sent[-1]
                for future, _ in sent:
                    future.result()
        return int(last.result().offset) + records

    async def _fill(
        self,
        topic: str,
        batch: Any,  # noqa: ANN401 (aiokafka has no types for it)
        records: Iterable[tuple[bytes | None, bytes | None]],
    ) -> tuple[Any, list[_Sent]]:
        """Append records to a batch of the subtask's partition, sending what is full; return the open batch, and what was sent."""
        producer = self._producer
        assert producer is not None
        sent: list[_Sent] = []
        batch = batch or producer.create_batch()
        for key, value in records:
            if batch.append(timestamp=None, key=key, value=value) is None:
                sent.append(await self._send(topic, self._subtask, batch))
                batch = producer.create_batch()
                appended = batch.append(timestamp=None, key=key, value=value)
                assert appended is not None, "a part is too large"
        return batch, sent

    async def commit(self, checkpoint: int, positions: Mapping[str, int]) -> int:
        """Check every record of the transaction and commit it; see `ChangelogTransaction.commit`."""
        producer = self._producer
        assert producer is not None
        with self._told("committing a checkpoint"):
            async with self._in_time(), self._turn:
                await self._send_outbox()
                batch, self._changelog_batch = self._changelog_batch, None
                assert batch is not None, "a commit without a checkpoint record"
                await self._send(self._changelog, self._subtask, batch)
                note = f"{_NOTE}{checkpoint}"
                offsets = {
                    TopicPartition(label.rpartition("/")[0], int(label.rpartition("/")[2])): (offset, note)
                    for label, offset in positions.items()
                }
                if offsets:
                    offsets_sent = producer.send_offsets_to_transaction(offsets, self._group)
                    await asyncio.gather(self._acknowledged(), offsets_sent)
                else:
                    await self._acknowledged()
                await producer.commit_transaction()
                self._is_in_transaction = False
        self.committed.update(positions)
        self._is_closed_epoch = False
        self._outbox, self._held = self._held, deque()
        self._has_room.set()
        self._wake.set()
        assert self._last_changelog is not None
        last, records = self._last_changelog
        return int(last.result().offset) + records

    async def prove_ownership(self) -> None:
        """Append a record that means nothing to the changelog: a fenced producer cannot.

        Raises:
            SinkError: Another worker owns the subtask, or did meanwhile.
        """
        producer = self._producer
        assert producer is not None
        with self._told("proving the ownership of the subtask"):
            # The turn is held to the end: a batch of outputs that came between would be committed with the marker.
            async with self._in_time(), self._turn:
                # In a transaction that is open already the marker belongs to the epoch, and ends with it.
                is_own_transaction = not self._is_in_transaction
                batch = producer.create_batch()
                batch.append(timestamp=None, key=MARKER_KEY, value=b"")
                await self._send(self._changelog, self._subtask, batch)
                await self._acknowledged()
                if is_own_transaction:
                    await producer.commit_transaction()
                    self._is_in_transaction = False

    def _in_time(self) -> asyncio.Timeout:
        """Bound what the client may wait for: the broker has aborted a transaction that is older."""
        return asyncio.timeout(self._settings.transaction_timeout_ms / 1000)

    @contextlib.contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Turn the client's errors into the job's."""
        try:
            yield
        except (*KAFKA_ERRORS, TimeoutError) as error:
            raise broken(error, doing, self._where()) from error

    def _where(self) -> dict[str, object]:
        return {"transactional id": self.transactional_id, "brokers": self._settings.brokers}


_NOTE = "agentflow checkpoint "


def checkpoint_of(metadata: str) -> int | None:
    """Return the checkpoint that an offset was committed with; None: by somebody else."""
    number = metadata.removeprefix(_NOTE)
    return int(number) if metadata.startswith(_NOTE) and number.isdecimal() else None


MARKER_KEY = b"m"
"""Key of records that only prove who may write."""

"""Keyed state of a Kafka subtask: the committed changelog is the truth, RocksDB is a copy of a beginning of it.

A checkpoint, in the order of semantics.md ("Kafka job"); `EmbeddedCheckpoints` calls the steps:

1. (sinks) every output of the epoch is acknowledged, inside the open transaction;
2. `prepare`: the delta goes to the changelog in the same transaction, the checkpoint record last; the source positions go with
   it; the commit completes the checkpoint;
3. (sinks) nothing: the commit has published;
4. `complete`: the delta is applied to RocksDB in slices, the changelog position last.

Recovery: fence the former owner → read the end of the changelog → open RocksDB → replay the tail from its position. So nothing
is ever decided and not completed, and `prepared` is always None.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from agentflow.core.delta import POSITIONS_NAME, DeltaSlices, StoredRow, Table, decode_positions
from agentflow.errors import NotConfigured, StateCorrupted, StateMismatch, StateUnavailable
from agentflow.runtime.ports import ChangelogTransaction, Journal, Prepared, Staged, StateFacts
from agentflow.state.changelog_records import (
    ChangelogReplay,
    CheckpointRecord,
    Row,
    checkpoint_record,
    records_of,
    rows_of,
)

_FETCH_BYTES = 8 * 2**20
_ROWS_PER_TURN = 2_000
_LEADER_ATTEMPTS = 50
_LEADER_WAIT_S = 0.1
_WAIT_MS = 10  # behind the last record there is the mark of its commit, which getmany does not return for


class ChangelogCopy(Protocol):
    """What a changelog is copied into: `RocksDBKeyedState`, or in memory for simulations."""

    @property
    def checkpoint(self) -> int:
        """Number of the checkpoint that was noted last."""
        ...

    @property
    def changelog_position(self) -> int | None:
        """Offset up to which the changelog is applied; None: nothing of it is."""
        ...

    @property
    def changelog_applied_ms(self) -> int:
        """When that was noted."""
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """See `KeyedState`."""
        ...

    def get(self, operator: int, key: bytes, path: str) -> bytes | None:
        """See `KeyedState`."""
        ...

    def scan(self, operator: int, key: bytes, prefix: str) -> list[tuple[str, bytes]]:
        """See `KeyedState`."""
        ...

    def find(self, table: Table, operator: int, key: bytes, name: str) -> bytes | None:
        """See `KeyedState`."""
        ...

    def rows(self, table: Table) -> Iterable[StoredRow]:
        """See `KeyedState`."""
        ...

    def apply_changes(self, rows: Iterable[Row]) -> None:
        """Write rows; may be repeated."""
        ...

    def note_changelog(self, checkpoint: int, position: int, now_ms: int) -> None:
        """Note that everything before ``position`` is applied; never durable before that is."""
        ...

    async def sweep(self, table: Table, unused_since_ms: int, fresh_ms: int) -> int:
        """See `KeyedState`."""
        ...

    def close(self) -> None:
        """Release it. Idempotent."""
        ...


class KeyPlacement(Protocol):
    """The rule by which keys are spread over subtasks; every checkpoint says which one it was."""

    @property
    def stored_name(self) -> str:
        """Its name; empty: it is not known for sure yet."""
        ...

    def meet(self, name: str) -> None:
        """Learn what a stored checkpoint says, which is not empty.

        Raises:
            ConfigError: It is another rule.
        """
        ...


class ChangelogKeyedState:
    """`KeyedState` of one Kafka subtask. Open one with `open_changelog_state`."""

    prepared: Prepared | None = None

    def __init__(
        self,
        copy: ChangelogCopy,
        transaction: ChangelogTransaction,
        journal: Journal | None = None,
        placement: KeyPlacement | None = None,
    ) -> None:
        self.journal = journal
        self._placement = placement
        self._copy = copy
        self._transaction = transaction
        self._positions: dict[str, int] = {}
        self._unapplied: list[list[Row]] = []
        self._committed: tuple[int, int] | None = None  # checkpoint, changelog position
        self.get = copy.get
        self.scan = copy.scan
        self.find = copy.find
        self.close = copy.close

    @property
    def checkpoint(self) -> int:
        """Number of the last completed checkpoint; 0 when there is none."""
        return self._copy.checkpoint

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of the copy, by part."""
        return self._copy.sizes

    def rows(self, table: Table) -> Iterable[StoredRow]:
        """Iterate over a whole table."""
        return self._copy.rows(table)

    async def prepare(self, checkpoint: int, delta: DeltaSlices, staged: Mapping[str, Staged]) -> None:  # noqa: ARG002
        """Append the delta to the changelog and commit. When it returns, the checkpoint is completed."""
        assert not self._unapplied, "prepare before the former checkpoint is applied"
        meta = Table.META  # once: looking up a member of an enum costs more than the rest of the loop
        for writes in delta:
            rows = rows_of(writes)
            if not rows:
                continue
            self._unapplied.append(rows)
            for table, _, _, name, value in writes:
                if table is meta and name == POSITIONS_NAME and value is not None:
                    self._positions = decode_positions(value)
            await self._transaction.append_changelog(records_of(rows))
        partitioner = "" if self._placement is None else self._placement.stored_name
        await self._transaction.append_changelog([checkpoint_record(checkpoint, self._positions, partitioner)])
        self._committed = checkpoint, await self._transaction.commit(checkpoint, self._positions)

    async def complete(self) -> None:
        """Apply the committed delta to RocksDB. A crash on the way leaves a copy whose position is the former one."""
        if self._committed is None:
            return
        for rows in self._unapplied:
            self._copy.apply_changes(rows)
            await asyncio.sleep(0)
        self._copy.note_changelog(*self._committed, _now_ms())
        self._unapplied, self._committed = [], None

    async def sweep(self, table: Table, unused_since_ms: int, fresh_ms: int) -> int:
        """Sweep the copy; the changelog keeps expired values until they are written again, and they are never returned."""
        return await self._copy.sweep(table, unused_since_ms, fresh_ms)

    async def export(self, request: str, facts: StateFacts) -> None:  # noqa: ARG002 (it is not asked for)
        """Refuse: a copy of the changelog is no truth of its own."""
        raise NotConfigured(
            "the state of a Kafka job is its changelog",
            expected="a savepoint of the changelog, which needs no worker",
            fix="agentflow savepoint create",
        )


async def open_changelog_state(
    open_copy: Callable[[bool], ChangelogCopy],
    transaction: ChangelogTransaction,
    topic: str,
    subtask: int,
    client: Mapping[str, Any],
    delete_retention_ms: int,
    new_consumer: Callable[..., Any],
    journal: Journal | None = None,
    placement: KeyPlacement | None = None,
) -> ChangelogKeyedState:
    """Become the owner of a subtask's state and bring RocksDB up to the end of the changelog.

    Args:
        open_copy: Opens the subtask's RocksDB directory; True: empties it before.
        transaction: The subtask's producer, not started.
        topic: The changelog topic; its partition is ``subtask``.
        subtask: Number of the subtask.
        client: Arguments of aiokafka clients.
        delete_retention_ms: How long the topic keeps deletions. A copy that did not follow for half of that may have missed some,
            and is rebuilt.
        new_consumer: Makes the client.
        journal: The subtask's journal; None: it has none.
        placement: How keys are spread; None: checkpoints do not say.

    Raises:
        ConfigError: The last checkpoint was written where keys were spread by another rule.
        StateUnavailable: The changelog cannot be read now.
        StateMismatch: RocksDB is ahead of the changelog: the topic was made anew, or belongs to another job.
        StateCorrupted: The changelog lacks its beginning, or what its own records name.
    """
    await transaction.start()
    partition = TopicPartition(topic, subtask)
    reader = new_consumer(
        **client,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=_FETCH_BYTES,
    )
    with contextlib.ExitStack() as opened:
        try:
            await reader.start()
            reader.assign([partition])
            begin, end = await partition_ends(reader, partition)
            copy = open_copy(False)
            opened.callback(copy.close)
            start = copy.changelog_position
            if start is not None and start < end and _now_ms() - copy.changelog_applied_ms > delete_retention_ms // 2:
                copy.close()
                copy = open_copy(True)
                opened.callback(copy.close)
            last = await replay_changelog(reader, partition, copy, begin, end)
        except KafkaError as error:
            raise StateUnavailable(
                f"the changelog cannot be read: {error!r}",
                where={"topic": topic, "partition": subtask},
                expected="a broker that answers",
                fix="the subtask tries again; look at the brokers",
            ) from error
        finally:
            await reader.stop()
        if placement is not None and last is not None and last.partitioner:
            placement.meet(last.partitioner)
        state = ChangelogKeyedState(copy, transaction, journal, placement)
        positions = next((row.value for row in copy.rows(Table.META) if row.name == POSITIONS_NAME), None)
        state._positions = decode_positions(positions) if positions is not None else {}  # noqa: SLF001 (made here)
        opened.pop_all()
    return state


async def partition_ends(reader: AIOKafkaConsumer, partition: TopicPartition) -> tuple[int, int]:
    """Return the first and the next offset; a partition that was just created, or whose leader just died, gets a moment."""
    return (await ends_of(reader, [partition]))[partition]


async def ends_of(
    reader: AIOKafkaConsumer, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, tuple[int, int]]:
    """As `partition_ends`, for several at once."""
    for attempt in range(_LEADER_ATTEMPTS):
        try:
            begins, ends = await reader.beginning_offsets(partitions), await reader.end_offsets(partitions)
            return {partition: (begins[partition], ends[partition]) for partition in partitions}
        except KafkaError as error:
            if not error.retriable or attempt == _LEADER_ATTEMPTS - 1:
                raise
            await asyncio.sleep(_LEADER_WAIT_S)
    raise AssertionError(partitions)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def replay_changelog(
    reader: AIOKafkaConsumer,
    partition: TopicPartition,
    copy: ChangelogCopy,
    begin: int,
    end: int,
    tell: Callable[[int], object] = lambda position: None,  # noqa: ARG005
) -> CheckpointRecord | None:
    """Bring a copy of a changelog from its position up to ``end``; return the last checkpoint on the way, if there is one.

    Raises:
        StateMismatch: The copy is ahead of it.
        StateCorrupted: It lacks its beginning, or what its own records name.
    """
    start = copy.changelog_position
    where: dict[str, object] = {"topic": partition.topic, "partition": partition.partition}
    if start is not None and start > end:
        raise StateMismatch(
            f"the local state is at changelog offset {start}, the changelog ends at {end}",
            where=where,
            expected="the changelog that this state was written with",
            fix="put the topic back, or move the subtask's directory away: it is rebuilt from the changelog",
        )
    if begin > (start or 0):
        raise StateCorrupted(
            f"the changelog begins at offset {begin}; what was before is gone",
            where=where,
            expected="every key's last record, as cleanup.policy=compact keeps it",
            fix="restore the topic; or start a job of another name, which begins with empty state",
        )
    replay = ChangelogReplay()
    position = start or 0
    reader.seek(partition, position)
    while position < end:
        fetched = await reader.getmany(partition, timeout_ms=_WAIT_MS)
        records = fetched.get(partition, [])
        for first in range(0, len(records), _ROWS_PER_TURN):
            part = records[first : first + _ROWS_PER_TURN]
            copy.apply_changes(list(replay.rows((record.key, record.value) for record in part)))
            await asyncio.sleep(0)
        position = await reader.position(partition)
        tell(position)
    if replay.incomplete:
        raise StateCorrupted(
            f"{len(replay.incomplete)} large values of the changelog lack parts",
            where=where,
            expected="records as agentflow wrote them, with cleanup.policy=compact",
            fix="restore the topic, or start a job of another name",
        )
    if replay.last is not None:
        copy.note_changelog(replay.last.checkpoint, end, _now_ms())
    return replay.last

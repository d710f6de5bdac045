"""The ports of a subtask: everything that touches the world is behind one of these.

Concrete adapters live in `state/` and `connectors/`; fakes that inject faults in `testing/`. Each port
has one conformance suite in `agentflow.testing.conformance`, which every adapter and every fake passes.

Reading order: `Source` and `Sink` are the data path, `KeyedState` is what survives, `Clock` is the only time.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

if TYPE_CHECKING:
    from agentflow.api.codecs import Codec
    from agentflow.api.streams import StreamChunk
    from agentflow.core.delta import DeltaSlices, StoredRow, Table
    from agentflow.core.effects import DeadLetter, EmitRecord
    from agentflow.core.records import Headers, Record
    from agentflow.runtime.observation import Turn


class Guarantee(enum.Enum):
    """What a sink promises about an output across failures."""

    EXACTLY_ONCE = "exactly-once"
    IDEMPOTENT = "idempotent"
    AT_LEAST_ONCE = "at-least-once"


class Clock(Protocol):
    """Processing time."""

    def now_ms(self) -> int:
        """Return epoch milliseconds; never goes backwards within a process."""
        ...


class Observer(Protocol):
    """Looks at one operator, and changes nothing: event log, metrics, traces. Made anew with each life of its subtask."""

    def observe(self, turn: Turn, now_ms: int) -> None:
        """Take what happened in a turn of the loop; it is the caller's again when this returns.

        It is called on the loop behind the turn, so it has to be quick, and it must not raise. What it is shown is as it was left
        by the turn, and no longer as it was when each fact came.
        """
        ...


class RecordTarget(Protocol):
    """Where records of the event log go. One thread uses it, from its first `write` to `close`; it may wait, and it may fail.

    A record is one line: a JSON object without a line end inside, and a line end.
    """

    name: str
    """Short name for messages (``file``)."""

    def write(self, subtask: int, lines: Sequence[bytes]) -> None:
        """Take records of a subtask, in order, some whole ones in each element; they are safe from the end of the process when this
        returns.

        Raises:
            Exception: Whatever it is: none of these records, or some of them whole, are written.
        """
        ...

    def tend(self) -> None:
        """Do what is due by time; called now and then, also when there are no records. It does not raise."""
        ...

    def close(self) -> None:
        """Release everything. It does not raise."""
        ...


class StreamOutlet(Protocol):
    """Where chunks of streams (`ctx.stream`) go beside those who wait for their runs. On the loop of the job."""

    def write(self, key: bytes, chunk: StreamChunk) -> None:
        """Take a chunk of a run of ``key`` (its canonical encoding). It neither waits nor raises: what there is no room for is dropped."""
        ...

    async def close(self) -> None:
        """Write what is left, for a moment, and release everything. It does not raise."""
        ...


class Source(Protocol):
    """Records of the partitions that one subtask owns, in order per partition.

    Life cycle: `open` once, `fetch` until it returns an empty list (end of input), `close`.
    """

    name: str
    """Short name for messages (``jsonl``)."""
    is_replayable: bool
    """Whether `open` can go back to any earlier position. Exactly-once needs it."""
    codec: Codec
    """How values are encoded."""

    @property
    def partitions(self) -> Sequence[str]:
        """Labels that are read at the same time, so that each has a watermark; empty: one after the other, as one."""
        ...

    @property
    def idle_timeout_ms(self) -> int | None:
        """Silence after which one of ``partitions`` does not hold the watermark; None: it always does."""
        ...

    async def open(self, positions: Mapping[str, int]) -> None:
        """Start at ``positions`` (source label → next offset); labels that are not in it start at their beginning.

        Raises:
            SourceError: The input is missing, unreadable, or shorter than its position.
        """
        ...

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next 1..records_max records; wait while there is none; an empty sequence is the end of input.

        A record that is unusable as such (too large) is returned with the bytes there are; `Record.value` is judged by
        the caller. Raises SourceError when the input disappears.
        """
        ...

    async def close(self) -> None:
        """Release everything; idempotent; also after a failed `open`."""
        ...


Accept = Callable[[bytes, str | None, "Headers"], Awaitable[str]]
"""Takes a record of an `Ingress`: its value, its id where its sender gave one, its headers. Returns the id of its run when it is durable."""


@runtime_checkable
class Ingress(Source, Protocol):
    """A source whose records come from senders who want to be told: once a record is accepted, nobody sends it again.

    It is made once and opened at each start; `accept_by` comes before. Its `fetch` gives nothing, and ends when it is cancelled.
    """

    def accept_by(self, accept: Accept) -> None:
        """Give records to ``accept``; it raises RecordError and RequestError for the sender to know."""
        ...


@runtime_checkable
class CheckpointedSource(Source, Protocol):
    """A source that takes part in checkpoints: its labels come and go, or it has to say elsewhere what is done with.

    Order per checkpoint N: `barrier` → (N is decided, or nothing changed) → `release`. Records may be fetched in between.
    """

    def barrier(self, positions: Mapping[str, int]) -> Mapping[str, int]:
        """Return what the checkpoint keeps of ``positions``, and `open` gets back: without labels that will never be read again.

        ``positions`` holds what was kept last, with the positions behind all records that were applied since. Entries of the
        source's own are kept as well. Called in one turn of the loop with the barrier of the operators, so it must be quick.
        """
        ...

    async def release(self, positions: Mapping[str, int]) -> None:
        """Take note that a checkpoint with these positions is complete: nothing before them is asked for again."""
        ...


class Signals(Source, Protocol):
    """A source of signals, one JSON document each (`runtime.signals`). It never ends and is never paused."""

    async def append(self, document: bytes) -> None:
        """Send a signal to this job; durable, as its state is, when it returns."""
        ...

    async def release(self, positions: Mapping[str, int]) -> None:
        """Delete what lies before its position: a checkpoint has it."""
        ...


class Staged(msgspec.Struct, frozen=True):
    """What one sink has staged for one checkpoint; stored inside ``prepared/N``.

    Attributes:
        names: Names of staged files (a sink with staging), in publish order.
        outputs: The encoded outputs themselves (a sink without staging), in order.
    """

    names: tuple[str, ...] = ()
    outputs: tuple[bytes, ...] = ()


class Sink(Protocol):
    """Where outputs go. Outputs become visible when their checkpoint completes, never before.

    Order per checkpoint N, as in semantics.md ("Embedded job"): `write`* → `barrier(N)` → `stage(N)` → (N is decided)
    → `publish(N)`. Writes of N+1 may arrive between `barrier(N)` and `publish(N)`.
    """

    name: str
    guarantee: Guarantee

    @property
    def record_max_bytes(self) -> int | None:
        """Largest value that it takes, known when it is open; None: any."""
        ...

    async def open(self, prepared: tuple[int, Staged] | None) -> None:
        """Make ready; called once, before everything else.

        ``prepared`` names the checkpoint that is decided but perhaps not published: staging that belongs to it is kept
        for `publish`; every other staging is deleted. None: delete all staging.

        Raises:
            SinkError: The place cannot be written.
        """
        ...

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Take one record of the sink's role (``value`` of an output is its encoded bytes); cheap, buffered, in order."""
        ...

    def barrier(self, checkpoint: int) -> None:
        """Close the epoch: everything written so far belongs to ``checkpoint``."""
        ...

    async def stage(self, checkpoint: int) -> Staged:
        """Make the epoch's outputs durable but not visible: write, sync the file, sync the directory."""
        ...

    async def publish(self, checkpoint: int, staged: Staged) -> None:
        """Make them visible, atomically per name; may be repeated: what is no longer staged is published already."""
        ...

    async def close(self) -> None:
        """Release everything; unpublished staging may stay behind. Idempotent."""
        ...


@runtime_checkable
class BufferingSink(Sink, Protocol):
    """A sink that holds outputs in memory until they are published, and so many at most."""

    room: asyncio.Event
    """Set while it can take more; nothing is read of the source while it is not. What runs already may still write."""


class Repartition(Sink, Protocol):
    """A sink in the role ``repartition``: records on their way to the subtask that owns their key."""

    def forward(self, record: Record, key: bytes) -> None:
        """Take one record as it was read; ``key`` is the canonical encoding of the key that `key-by` found."""
        ...


class ChangelogTransaction(Protocol):
    """The transactional producer of one Kafka subtask, as its keyed state sees it: outputs and changelog commit together."""

    async def start(self) -> None:
        """Fence every earlier owner of the subtask and settle its transaction. Raises SinkError, SinkForbidden."""
        ...

    async def append_changelog(self, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Append records to the subtask's changelog partition, inside the transaction."""
        ...

    async def append_journal(self, topic: str, values: Sequence[bytes]) -> int:
        """Append values to the subtask's partition of the journal topic; return the offset behind them when they are durable.

        They count whatever becomes of the transaction.
        """
        ...

    async def commit(self, checkpoint: int, positions: Mapping[str, int]) -> int:
        """Check every record, commit with the source positions, and return the changelog offset behind the last record.

        When it returns, the checkpoint is complete. After an error it may be or not: only a new owner can tell.
        """
        ...


class Prepared(msgspec.Struct, frozen=True):
    """The decision record ``prepared/N``: checkpoint N will complete, whatever happens.

    Attributes:
        checkpoint: N.
        staged: Per sink role (``sink``, ``dead-letter``) what `Sink.publish` needs.
    """

    checkpoint: int
    staged: dict[str, Staged]


class StateFacts(msgspec.Struct, frozen=True, rename="kebab"):
    """What is to be known of the state of one completed checkpoint, beside the state itself.

    Attributes:
        checkpoint: Its number.
        positions: Where the sources go on: label → next offset.
        plan_hashes: Of the plans that wrote it, in the order of the chain.
        incarnation: Id of the state, which idempotency keys derive from.
    """

    checkpoint: int
    positions: dict[str, int]
    plan_hashes: list[str]
    incarnation: str


class Journal(Protocol):
    """The log of the open epoch: records that are durable before a run goes on, whatever becomes of the checkpoint.

    Positions grow; 0 is the beginning.
    """

    async def append(self, records: Sequence[tuple[int, bytes]]) -> int:
        """Append (operator, record) pairs; return the position behind them. When it returns, they are durable.

        One call at a time. After an error, some of them may be durable: only a new owner can tell.
        """
        ...

    def append_now(self, records: Sequence[tuple[int, bytes]]) -> int | None:
        """Append as `append` does, and be done; None where that would hold up the loop: nothing is appended then."""
        ...

    async def read(self, position: int) -> tuple[Sequence[tuple[int, bytes]], int]:
        """Return what earlier owners appended, from ``position`` on, and the position behind it; before the first `append`."""
        ...

    async def release(self, position: int) -> None:
        """Delete what lies before ``position``, unsynced: it may come back after a crash."""
        ...


class KeyedState(Protocol):
    """Keyed state of one subtask, with the ``prepared/N`` protocol of an embedded job.

    What an opened state shows is durable. A killed process may have written a decision and not synced it; recovery publishes
    what it decides, and a power loss behind that must not take the decision back.

    Rows change only by `apply`; between checkpoints nothing is written. `get` and `scan` see the last applied rows (in
    the middle of an `apply`: some of them; the operator's own overlay hides that).
    """

    @property
    def checkpoint(self) -> int:
        """Number of the last completed checkpoint; 0 when there is none."""
        ...

    @property
    def prepared(self) -> Prepared | None:
        """The decided checkpoint that is not completed; None when there is none."""
        ...

    def get(self, operator: int, key: bytes, path: str) -> bytes | None:
        """Return one memory value; None when there is none. Synchronous: a point read costs 1 to 2 µs."""
        ...

    def scan(self, operator: int, key: bytes, prefix: str) -> list[tuple[str, bytes]]:
        """Return the memory values of ``key`` whose path starts with ``prefix``, ordered by the path's UTF-8 bytes."""
        ...

    def find(self, table: Table, operator: int, key: bytes, name: str) -> bytes | None:
        """Return one row of any table, as last applied; None when there is none. Slower than `get`."""
        ...

    def rows(self, table: Table) -> Iterable[StoredRow]:
        """Iterate over a whole table, for restore, ordered by (operator, key, name)."""
        ...

    async def prepare(self, checkpoint: int, delta: DeltaSlices, staged: Mapping[str, Staged]) -> None:
        """Write the delta and then the decision record, and sync. When it returns, the checkpoint is decided.

        Yields to the loop between slices. Raises DiskFull, StateUnavailable, StateCorrupted; nothing is decided then.
        """
        ...

    async def complete(self) -> None:
        """Apply the prepared delta in slices, remove ``prepared/N``, sync. Repeatable after a crash at any point."""
        ...

    async def sweep(self, table: Table, unused_since_ms: int, fresh_ms: int) -> int:
        """Delete some values of a table whose TTL stamp is at or before ``unused_since_ms``; return how many.

        Bounded work per call; successive calls go round the whole table, and do nothing where the last round has shown that
        nothing can be so old. Never called between `prepare` and `complete`.

        Args:
            table: The table.
            unused_since_ms: Less than ``fresh_ms``.
            fresh_ms: Least stamp of what is written from now on; never less than at the last call.
        """
        ...

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes that it takes, by part; cheap, for metrics. Empty: nobody knows."""
        ...

    @property
    def journal(self) -> Journal | None:
        """The journal beside it; None: it has none, and durable steps are refused."""
        ...

    async def export(self, request: str, facts: StateFacts) -> None:
        """Hand the state out to whoever waits for ``request`` beside it, for a savepoint; between checkpoints.

        Nothing happens where nobody waits (any more). What goes wrong is told to who waits and is not raised: the job goes on.

        Raises:
            NotConfigured: This state is in memory, or has its truth elsewhere.
        """
        ...

    def close(self) -> None:
        """Release the directory, and the journal. Idempotent."""
        ...

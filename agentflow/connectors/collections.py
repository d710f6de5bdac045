"""Python collections as source and sink: for `from_list`, `to_list` and tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from agentflow.api.codecs import MSGPACK
from agentflow.api.encoding import encode_msgpack
from agentflow.core.records import Record
from agentflow.errors import SourceError
from agentflow.runtime.ports import Guarantee, Staged

if TYPE_CHECKING:
    from agentflow.core.effects import DeadLetter, EmitRecord


class CollectionSource:
    """Values of a collection; the offset is the index.

    Args:
        values: Read and encoded at once, so later changes of the collection are not seen.

    Raises:
        TypeError: A value cannot be encoded; names its index and type.
    """

    name = "list"
    is_replayable = True
    codec = MSGPACK
    partitions = ()
    idle_timeout_ms = None

    def __init__(self, values: Iterable[object]) -> None:
        self._values: list[bytes] = []
        for index, value in enumerate(values):
            try:
                self._values.append(encode_msgpack(value))
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                raise TypeError(f"value {index} of the list, a {type(value).__name__}: {error}") from error
        self._next = 0

    async def open(self, positions: Mapping[str, int]) -> None:
        """Start at an index.

        Raises:
            SourceError: There are fewer values than were read before.
        """
        self._next = positions.get(self.name, 0)
        if self._next > len(self._values):
            raise SourceError(
                "the list is shorter than its position",
                where={"source": self.name, "position": self._next, "values": len(self._values)},
                expected="the list that the job was started with, or a longer one",
                fix="Give the same values, or start a job of another name.",
            )

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next records; empty at the end of the collection."""
        start = self._next
        values = self._values[start : start + records_max]
        self._next = start + len(values)
        return [Record(self.name, index, index + 1, value) for index, value in enumerate(values, start)]

    async def close(self) -> None:
        """Release nothing: the collection belongs to the caller."""


class CollectionSink:
    """Outputs as decoded values in a list.

    Attributes:
        values: The outputs of published checkpoints, in order.
    """

    name = "list"
    guarantee = Guarantee.EXACTLY_ONCE
    record_max_bytes = None

    def __init__(self) -> None:
        self.values: list[object] = []
        self._written: list[bytes] = []
        self._closed: dict[int, list[bytes]] = {}
        self._published = 0

    async def open(self, prepared: tuple[int, Staged] | None) -> None:
        """Forget what was written and not published; what is prepared comes back with `publish`."""
        self._written = []
        self._closed = {}
        if prepared is None:
            self._published = 0  # all that was decided is complete: a number that comes now is a new checkpoint

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Take one output."""
        self._written.append(record.value or b"null")

    def barrier(self, checkpoint: int) -> None:
        """Close the epoch."""
        self._closed[checkpoint] = self._written
        self._written = []

    async def stage(self, checkpoint: int) -> Staged:
        """Hand over the epoch's outputs; they are durable with the decision record."""
        return Staged(outputs=tuple(self._closed.pop(checkpoint)))

    async def publish(self, checkpoint: int, staged: Staged) -> None:
        """Append the outputs to `values`, once per checkpoint."""
        if checkpoint <= self._published:
            return
        self.values += [msgspec.json.decode(output) for output in staged.outputs]
        self._published = checkpoint

    async def close(self) -> None:
        """Forget what is not published."""
        self._written = []
        self._closed = {}

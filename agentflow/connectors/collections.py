"""Python collections as source and sink: for scripts, notebooks and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from agentflow.core.effects import DeadLetter, EmitRecord
from agentflow.core.records import Record
from agentflow.errors import SourceError
from agentflow.runtime.ports import Guarantee, Staged


class CollectionSource:
    """Reads values; they are encoded when the source is made, so later changes of them change nothing.

    Position = index. The same values give the same run ids (``list/0``, ``list/1``, …), also in another process.

    Args:
        values: Plain values, dataclasses, msgspec Structs or pydantic models. Consumed at once.

    Raises:
        TypeError: A value cannot be encoded; names its index and type.
    """

    name = "list"
    is_replayable = True
    codec = "msgpack"

    def __init__(self, values: Iterable[object]) -> None:
        self._values = [_encoded(index, value) for index, value in enumerate(values)]
        self._next = 0

    async def open(self, positions: Mapping[str, int]) -> None:
        """Start at the index of ``list`` in ``positions``, or at the first value.

        Raises:
            SourceError: There are fewer values than were read before.
        """
        self._next = positions.get(self.name, 0)
        if self._next > len(self._values):
            raise SourceError(
                "the list is shorter than the position where reading goes on",
                where={"source": self.name, "position": self._next, "values": len(self._values)},
                expected="the list that the job was started with, or a longer one",
                fix="give the same values, or start the job with a new state directory",
            )

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next records; never waits."""
        first, name = self._next, self.name
        values = self._values[first : first + records_max]
        self._next += len(values)
        return [Record(name, index, index + 1, value) for index, value in enumerate(values, first)]

    async def close(self) -> None:
        """Keep the values: the source can be opened again."""


class CollectionSink:
    """Collects outputs in a list; the outputs of a checkpoint are appended when it completes.

    Guarantee: exactly once within a process. What was staged is part of the checkpoint itself, so that after a crash the
    outputs of a decided checkpoint appear in the list of the process that finishes it.

    Args:
        decode: Makes a value of an encoded output.

    Attributes:
        values: The published outputs, in order. One and the same list for the life of the sink.
    """

    name = "list"
    guarantee = Guarantee.EXACTLY_ONCE

    def __init__(self, decode: Callable[[bytes], Any] = msgspec.json.decode) -> None:
        self.values: list[Any] = []
        self._decode = decode
        self._published: int | None = None  # the last published checkpoint that may be published again
        self._closed: dict[int, list[bytes]] = {}  # epochs between `barrier` and `stage`
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._outputs: list[bytes] = []
        self._append = self._outputs.append

    async def open(self, prepared: tuple[int, Staged] | None) -> None:
        """Forget what was not published."""
        self._closed.clear()
        self._begin_epoch()
        if prepared is None:
            self._published = None  # all that was decided is completed: a number that comes now is a new checkpoint

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Keep an output for the open epoch."""
        self._append(record.value)

    def barrier(self, checkpoint: int) -> None:
        """Close the epoch."""
        self._closed[checkpoint] = self._outputs
        self._begin_epoch()

    async def stage(self, checkpoint: int) -> Staged:
        """Return the outputs: the checkpoint keeps them."""
        return Staged(outputs=tuple(self._closed.pop(checkpoint)))

    async def publish(self, checkpoint: int, staged: Staged) -> None:
        """Append the outputs to `values`, once per checkpoint."""
        if self._published is None or checkpoint > self._published:
            self.values.extend([self._decode(output) for output in staged.outputs])
            self._published = checkpoint

    async def close(self) -> None:
        """Keep `values`; the sink can be opened again."""


def _encode_hook(value: object) -> object:
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json")  # as outputs are encoded
    raise NotImplementedError(type(value).__qualname__)


_encode = msgspec.msgpack.Encoder(enc_hook=_encode_hook).encode


def _encoded(index: int, value: object) -> bytes:
    try:
        return _encode(value)
    except NotImplementedError as error:  # of the hook: the type of the value, or of something inside it
        unknown = str(error)
        inside = "" if unknown == type(value).__qualname__ else f" with a {unknown} inside"
        msg = (
            f"value {index} of the list is a {type(value).__qualname__}{inside}, which cannot be encoded; "
            "use plain values, dataclasses, msgspec Structs or pydantic models"
        )
        raise TypeError(msg) from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        msg = f"value {index} of the list is a {type(value).__qualname__} that cannot be encoded: {error}"
        raise TypeError(msg) from error

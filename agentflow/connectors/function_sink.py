"""A function as a sink: called once per checkpoint with the outputs that became final with it.

    @idempotent
    def store(outputs):
        table.upsert([(output.id, output.value) for output in outputs])

The outputs are part of the decided checkpoint, so they survive a crash, and the function is called with them again until it has returned.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from agentflow.api.durations import size_bytes
from agentflow.api.outputs import OutputRecord, is_idempotent
from agentflow.connectors.function_source import reference
from agentflow.core.effects import DeadLetter, EmitRecord
from agentflow.errors import AgentflowError, SinkError
from agentflow.runtime.ports import Guarantee, Staged

SinkFunction = Callable[[list[OutputRecord]], Any]
"""Takes outputs, in order; a function that returns an awaitable is awaited, any other one runs in a thread."""

_encode = msgspec.msgpack.Encoder().encode
_decode_key = msgspec.msgpack.Decoder().decode
_decode = msgspec.msgpack.Decoder(tuple[str, Any, bytes, int | None]).decode


class FunctionSink:
    """Gives the outputs of each checkpoint to a function, at least once.

    What it raises restarts the job by its restart strategy, and the same outputs come again; `SinkForbidden` ends the job. While it is
    slow the checkpoint is not complete; above ``buffer_max`` the source is paused.

    Args:
        function: Called with the outputs of a checkpoint that has any.
        options: Further arguments of the function, by name.
        idempotent: The same outputs again change nothing, which makes the job exactly-once; `agentflow.idempotent` says so of the function
            itself.
        buffer_max: Size of the outputs that wait, at which nothing more is read.

    Raises:
        TypeError: It is no function that takes outputs.
    """

    name = "python"
    record_max_bytes = None

    def __init__(
        self,
        function: SinkFunction,
        *,
        options: Mapping[str, Any] | None = None,
        idempotent: bool = False,
        buffer_max: str | int = "64MiB",
    ) -> None:
        check_sink_function(function, options or {})
        self.guarantee = Guarantee.IDEMPOTENT if idempotent or is_idempotent(function) else Guarantee.AT_LEAST_ONCE
        self._reference = reference(function)
        self._call = functools.partial(function, **(options or {}))
        self._buffer_max_bytes = size_bytes(buffer_max) if isinstance(buffer_max, str) else buffer_max
        self.room = asyncio.Event()
        self._reset()
        self._published = 0
        self._calling: asyncio.Future[Any] | None = None

    def _reset(self) -> None:
        self.room.set()
        self._held_bytes = 0
        self._written: list[bytes] = []
        self._closed: dict[int, list[bytes]] = {}

    async def open(self, prepared: tuple[int, Staged] | None) -> None:
        """Forget what was written and not published; what is prepared comes back with `publish`."""
        self.room = asyncio.Event()
        self._reset()
        if prepared is None:
            self._published = 0  # all that was decided is complete: a number that comes now is a new checkpoint

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Take one output."""
        output = _encode(_described(record))
        self._written.append(output)
        self._held_bytes += len(output)
        if self._held_bytes > self._buffer_max_bytes:
            self.room.clear()

    def barrier(self, checkpoint: int) -> None:
        """Close the epoch."""
        self._closed[checkpoint] = self._written
        self._written = []

    async def stage(self, checkpoint: int) -> Staged:
        """Hand over the epoch's outputs; they are durable with the decision record."""
        return Staged(outputs=tuple(self._closed.pop(checkpoint)))

    async def publish(self, checkpoint: int, staged: Staged) -> None:
        """Call the function, once per checkpoint of this process.

        Raises:
            SinkError: It raised an error, or was it itself that raised one.
        """
        if checkpoint <= self._published:
            return
        if staged.outputs:
            outputs = [OutputRecord(*_decode(output)) for output in staged.outputs]
            try:
                await self._give(outputs)
            except AgentflowError:
                raise
            except Exception as error:
                raise SinkError(
                    f"the sink function raised {type(error).__name__}: {error}",
                    where={
                        "function": self._reference,
                        "checkpoint": checkpoint,
                        "outputs": len(outputs),
                        "first": outputs[0].id,
                    },
                    expected="that it returns when the outputs are written",
                    fix="correct it, or what it writes to; raise SinkForbidden for what a restart cannot cure",
                ) from error
        self._published = checkpoint
        self._held_bytes = max(0, self._held_bytes - sum(map(len, staged.outputs)))
        if self._held_bytes <= self._buffer_max_bytes:
            self.room.set()

    async def close(self) -> None:
        """Forget what is not published; waits for a function that runs in a thread, which cannot be cancelled."""
        self._reset()
        if self._calling is not None:
            await asyncio.wait([self._calling])
            self._calling = None

    async def _give(self, outputs: list[OutputRecord]) -> None:
        if inspect.iscoroutinefunction(self._call):
            await self._call(outputs)
            return
        self._calling = asyncio.ensure_future(asyncio.to_thread(self._call, outputs))
        self._calling.add_done_callback(lambda call: call.cancelled() or call.exception())  # looked at
        answer = await asyncio.shield(self._calling)
        self._calling = None
        if isinstance(answer, Awaitable):
            await answer


def check_sink_function(function: object, options: Mapping[str, Any]) -> None:
    """Refuse what cannot be called with outputs.

    Raises:
        TypeError: It is no function, or takes other arguments.
    """
    if not callable(function):
        raise TypeError(f"a sink is a function of a list of outputs, not a {type(function).__name__}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C: it has no signature
        return
    try:
        signature.bind([], **options)
    except TypeError as error:
        raise TypeError(f"sink function {reference(function)}{signature} takes no list of outputs: {error}") from None


def _described(record: EmitRecord | DeadLetter) -> tuple[str, Any, bytes, int | None]:
    value = b"null" if record.value is None else record.value
    if isinstance(record, DeadLetter):
        letter = record.record
        return f"{letter.run_id}/dead-letter", record.reason.get("key"), value, letter.timestamp_ms
    return record.event_id, _decode_key(record.task.run.key), value, record.timestamp_ms

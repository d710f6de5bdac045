"""Standard input and output: JSON lines in a pipe."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

from agentflow.api.codecs import JSON
from agentflow.connectors.lines import RECORD_MAX_BYTES, LineSplitter
from agentflow.core.records import Record
from agentflow.errors import SinkError, SinkForbidden, SourceError
from agentflow.runtime.ports import Guarantee, Staged

if TYPE_CHECKING:
    from agentflow.core.effects import DeadLetter, EmitRecord

_BLOCK_BYTES = 2**16
_BATCHES_MAX = 8
_FINAL = (errno.EPIPE, errno.EBADF, errno.ENOSPC, errno.EIO)  # of a write: no restart opens the stream anew


def _read_block(stream: BinaryIO) -> bytes:
    """Wait for bytes; empty at the end."""
    try:
        fd = stream.fileno()
    except OSError:  # a stream in memory
        return stream.read(_BLOCK_BYTES)
    # Past the stream's buffer: a thread that waits inside it holds its lock, and the interpreter cannot exit.
    while True:
        try:
            return os.read(fd, _BLOCK_BYTES)
        except BlockingIOError:
            select.select([fd], [], [])


class StdinSource:
    """Lines of standard input. They cannot be read twice, so no guarantee across failures is possible.

    A daemon thread reads ahead, at most 8 blocks of 64 KiB.

    Args:
        stream: Another binary stream; it is not closed.
        record_max_bytes: A longer line is returned with its first ``record_max_bytes + 1`` bytes only.
    """

    name = "stdin"
    is_replayable = False
    codec = JSON
    partitions = ()
    idle_timeout_ms = None

    def __init__(self, stream: BinaryIO | None = None, *, record_max_bytes: int = RECORD_MAX_BYTES) -> None:
        self._stream = stream
        self._record_max_bytes = record_max_bytes
        self._has_reader = False  # the thread lives from the first `open` to the end of input
        self._batches: deque[list[Record] | OSError | ValueError] = deque()  # an empty list is the end of input
        self._arrived = asyncio.Event()
        self._free = threading.Semaphore(_BATCHES_MAX)

    async def open(self, positions: Mapping[str, int]) -> None:
        """Begin to read. Offsets go on from ``positions``, so that no run id is given twice; nothing is skipped.

        Opened again in the same loop, it goes on with what the thread has read ahead.
        """
        if self._has_reader:
            return
        stream = self._stream
        if stream is None:
            if sys.stdin is None or sys.stdin.closed:
                raise self._failed("standard input is closed")
            stream = sys.stdin.buffer
        lines = LineSplitter(self.name, positions.get(self.name, 0), self._record_max_bytes)
        self._has_reader = True
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(stream, lines, loop), name="agentflow-stdin", daemon=True).start()

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Wait for lines and return them; empty when the writer has closed the pipe."""
        while not self._batches:
            self._arrived.clear()
            await self._arrived.wait()
        batch = self._batches[0]
        if isinstance(batch, OSError | ValueError):
            raise self._failed(f"standard input cannot be read: {batch}") from batch
        if len(batch) > records_max:
            self._batches[0] = batch[records_max:]
            return batch[:records_max]
        if batch:  # the end stays, for a fetch behind it
            self._batches.popleft()
            self._free.release()
        return batch

    async def close(self) -> None:
        """Stop nothing: the thread waits for bytes or for room, and ends with the process. What it has read is kept."""

    def _failed(self, what: str) -> SourceError:
        return SourceError(
            what,
            where={"source": self.name},
            expected="an open pipe or file of JSON lines",
            fix="Start the job with its input, as in: agentflow run job.yaml < input.jsonl",
        )

    def _read(self, stream: BinaryIO, lines: LineSplitter, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while block := _read_block(stream):
                records = lines.feed(block)
                if records and not self._give(records, loop):
                    return
        except (OSError, ValueError) as error:  # ValueError: the stream was closed meanwhile
            self._give(error, loop)
            return
        records = lines.finish()
        if not records or self._give(records, loop):
            self._give([], loop)

    def _give(self, batch: list[Record] | OSError | ValueError, loop: asyncio.AbstractEventLoop) -> bool:
        """Hand a batch to the loop when there is room. Returns whether anybody still listens."""
        self._free.acquire()
        try:
            loop.call_soon_threadsafe(self._take, batch)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _take(self, batch: list[Record] | OSError | ValueError) -> None:
        self._batches.append(batch)
        self._arrived.set()


class StdoutSink:
    """Outputs as lines of standard output, at least once: a crash while lines are written writes them again.

    Args:
        stream: Another binary stream; it is not closed.
    """

    name = "stdout"
    guarantee = Guarantee.AT_LEAST_ONCE
    record_max_bytes = None

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self._stream = stream
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
        """Write the lines and flush, in a thread; once per checkpoint of this process.

        Raises:
            SinkError: The reader of the pipe has gone, the stream is closed, or its place is full or broken.
        """
        if checkpoint <= self._published:
            return
        if staged.outputs:
            try:
                await asyncio.to_thread(self._print, b"\n".join((*staged.outputs, b"")))
            except (OSError, ValueError) as error:  # ValueError: the stream is closed
                is_final = isinstance(error, ValueError) or error.errno in _FINAL
                kind = SinkForbidden if is_final else SinkError
                raise kind(
                    f"standard output cannot be written: {error}",
                    where={"sink": self.name, "checkpoint": checkpoint},
                    expected="a reader at the other end of the pipe, or a file with space",
                    fix="Keep standard output open until the job ends, or write to files: sink: {jsonl: {path: out/}}",
                ) from error
        self._published = checkpoint

    async def close(self) -> None:
        """Forget what is not published."""
        self._written = []
        self._closed = {}

    def _print(self, lines: bytes) -> None:
        stream = sys.stdout.buffer if self._stream is None else self._stream
        rest = memoryview(lines)
        while rest:
            try:
                written = stream.write(rest)  # an unbuffered stream (`python -u`) may take a part, or nothing: None
            except BlockingIOError as error:
                written = error.characters_written
            rest = rest[written or 0 :]
            if rest:
                select.select([], [stream.fileno()], [])
        while True:
            try:
                stream.flush()
            except BlockingIOError:
                select.select([], [stream.fileno()], [])
            else:
                return

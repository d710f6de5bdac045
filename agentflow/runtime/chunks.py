"""The chunks of runs as they are kept for readers: a ring for each run, and a limit on all of them.

A run writes and never waits. A reader has the offset of its last chunk and nothing else; it finds what came behind it, or that it is not
there any more. So a slow reader costs a run nothing, and one that comes back goes on where it was.
"""

from __future__ import annotations

from collections import deque

import msgspec

from agentflow.api.streams import ChunkKind, StreamChunk

_LIFE = 1_000_000_000
"""Offsets of a run begin anew, higher by this, in each life of the job that takes it up."""
_CHUNK_BYTES = 400  # what an empty chunk takes


class ChunkBuffers:
    """What the rings of all runs may take.

    Args:
        run_bytes_max: What those of one may.
        bytes_max: What all of them may; above it the oldest ones are emptied.
    """

    def __init__(self, run_bytes_max: int, bytes_max: int) -> None:
        self.run_bytes_max = run_bytes_max
        self._bytes_max = bytes_max
        self._filled: dict[ChunkLog, None] = {}  # those with chunks, the first one that had some first
        self._used = 0

    @property
    def used_bytes(self) -> int:
        """What is kept now, of runs that are not over."""
        return self._used

    def grow(self, log: ChunkLog, size: int) -> None:
        """Account for a chunk."""
        self._filled[log] = None
        self._used += size
        while self._used > self._bytes_max and len(self._filled) > 1:
            next(iter(self._filled)).drop_all()

    def shrink(self, log: ChunkLog, size: int) -> None:
        """Account for chunks that are dropped."""
        self._used -= size
        if not log.size:
            self._filled.pop(log, None)


class ChunkLog:
    """The chunks of one run, newest ones kept.

    Args:
        lives: Lives of the job since the run was admitted.
        buffers: Limits; None: nothing is kept, it only counts.
        is_fresh: Nobody can have seen a chunk that is not counted here.

    Attributes:
        base: Offset before the first chunk.
        last: Offset of the last chunk.
        size: Bytes that are kept.
    """

    def __init__(self, lives: int, buffers: ChunkBuffers | None, *, is_fresh: bool) -> None:
        self.base = self.last = lives * _LIFE
        self.size = 0
        self._buffers = buffers
        self._is_fresh = is_fresh
        self._kept: deque[tuple[StreamChunk, int, int]] = deque()  # chunk, outputs that were there before it, size
        self._said: dict[tuple[str, str], bool] = {}  # (stream, step) → whether it has said something that is not final

    def add(self, chunk: StreamChunk, outputs: int) -> None:
        """Take a chunk, whose offset is the next one; ``outputs`` are before it."""
        self.last = chunk.offset
        buffers = self._buffers
        if buffers is None:
            return
        size = _CHUNK_BYTES + len(chunk.text) + (0 if chunk.value is None else len(msgspec.json.encode(chunk.value)))
        self._kept.append((chunk, outputs, size))
        self.size += size
        buffers.grow(self, size)
        while self.size > buffers.run_bytes_max and len(self._kept) > 1:
            self._drop_first(buffers)

    def since(self, offset: int) -> list[tuple[StreamChunk, int]]:
        """Return what is kept of the chunks behind an offset, each with the number of outputs before it."""
        found: list[tuple[StreamChunk, int]] = []
        for chunk, outputs, _ in reversed(self._kept):
            if chunk.offset <= offset:
                break
            found.append((chunk, outputs))
        found.reverse()
        return found

    def is_known(self, offset: int) -> bool:
        """Whether an offset is one of this life of the run."""
        return self.base <= offset <= self.last

    def drop_all(self) -> None:
        """Keep nothing of what came so far."""
        assert self._buffers is not None, "what is dropped was accounted for"
        size, self.size = self.size, 0
        self._kept.clear()
        self._buffers.shrink(self, size)

    def _drop_first(self, buffers: ChunkBuffers) -> None:
        _, _, size = self._kept.popleft()
        self.size -= size
        buffers.shrink(self, size)

    def release(self) -> None:
        """The run is over: what is kept is for those who read it already, and goes with them."""
        buffers, self._buffers = self._buffers, None
        if buffers is not None:
            size, self.size = self.size, 0
            buffers.shrink(self, size)

    # -- what is final
    def say(self, stream: str, step: str) -> None:
        """Note that a step says something."""
        self._said[stream, step] = True

    def is_void(self, stream: str, step: str) -> bool:
        """Whether there may be something to take back when a step begins anew."""
        return self._said.get((stream, step), not self._is_fresh)

    def settle(self, stream: str, step: str) -> bool:
        """Note that what a step has said is final, or taken back; return whether there was something."""
        was_open = self._said.pop((stream, step), False)
        if not self._is_fresh:
            self._said[stream, step] = False
        return was_open


def marker(kind: ChunkKind, run: str, offset: int) -> StreamChunk:
    """Return a chunk that tells a reader what became of others: it belongs to no step."""
    return StreamChunk(stream="", run=run, step="", attempt=0, offset=offset, kind=kind)

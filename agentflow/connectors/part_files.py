"""Outputs as files, exactly once: one file per subtask and checkpoint that has outputs, in any `FileStore`.

An epoch is collected as lines of JSON, whatever its files will be: in memory, and above a MiB in a file that is being written. When its
checkpoint comes, a thread stages it: the lines as they are, or encoded as a table (`TableFormat`). Published files are named by subtask
and checkpoint, ``part-00000-0000000012.jsonl``, and never change.
"""

from __future__ import annotations

import asyncio
import errno
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from agentflow.connectors.file_store import FileStore, StagingFile
from agentflow.errors import OutputExists, OutputLocked, SinkError, SinkForbidden
from agentflow.runtime.ports import Guarantee, Staged

if TYPE_CHECKING:
    from agentflow.core.effects import DeadLetter, EmitRecord

_PartT = TypeVar("_PartT")
_ResultT = TypeVar("_ResultT")
_ArgumentsP = ParamSpec("_ArgumentsP")

_FLUSH_BYTES = 2**20
_LINE_BYTES = 48  # a bytes object beside its content, and its place in the list
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EINVAL)
_FIXES = {
    errno.ENOSPC: "Free space on the disk; published files are intact.",
    errno.EDQUOT: "Free space within the quota; published files are intact.",
    errno.EACCES: "Give this user the right to write into the directory.",
    errno.EPERM: "Give this user the right to write into the directory.",
    errno.EROFS: "Name a directory on a file system that can be written.",
    errno.ENOTDIR: "Name a directory: the sink writes one file per checkpoint into it.",
    errno.EEXIST: "Name a directory: the sink writes one file per checkpoint into it.",
    errno.ENOENT: "The directory or its staging was removed while the job ran; leave it to the job.",
}


class TableFormat(Protocol):
    """How the outputs of an epoch become one file. Its methods run in a thread, one at a time."""

    @property
    def has_columns(self) -> bool:
        """Whether its columns are known by now."""
        ...

    def adopt(self, store: FileStore, newest: str) -> None:
        """Learn the columns from a file that was published before; asked for where they are not known.

        Raises:
            SinkError: It is no such file.
        """
        ...

    def encode(self, lines: LineBlocks, file: StagingFile, checkpoint: int) -> None:
        """Write the epoch's outputs.

        Raises:
            SchemaMismatch: An output does not fit the columns.
        """
        ...


class LineBlocks:
    """The outputs of one file as lines of JSON, in order and in blocks; can be gone through several times.

    Args:
        file: The first ones, each with its line end; None: there are no others.
        lines: The last ones.
    """

    def __init__(self, file: StagingFile | None, lines: list[bytes]) -> None:
        self._file = file
        self._lines = lines

    def __iter__(self) -> Iterator[list[bytes]]:
        rest = b""
        for chunk in self._file.chunks() if self._file is not None else ():
            *lines, rest = (rest + chunk).split(b"\n")
            yield lines
        if self._lines:
            yield self._lines


class _Epoch:
    """Outputs of one epoch: a buffer before staging files, which are made when the buffer is full."""

    def __init__(self, store: FileStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._lines: list[bytes] = []
        self.append_line = self._lines.append
        self.weight = 0  # bytes that the buffer holds, objects included
        self._files: list[StagingFile] = []
        self._written = 0  # bytes in the last one

    @property
    def is_empty(self) -> bool:
        return not self._lines and not self._files

    def flush(self) -> None:
        lines, self._lines, self.weight = self._lines, [], 0
        self.append_line = self._lines.append
        lines.append(b"")  # the newline of the last line
        joined = b"\n".join(lines)
        if joined.count(b"\n") != len(lines) - 1:
            raise SinkError(
                "an output contains a line break",
                where={"directory": self._store.place},
                expected="one line of JSON per output",
                fix="Give values instead of text that is JSON already (msgspec.Raw), or write that text without line breaks.",
            )
        if not self._files or self._written >= (self._store.part_max_bytes or math.inf):
            self._files.append(self._store.begin(self._prefix))
            self._written = 0
        self._written += self._files[-1].write(joined)

    def files(self) -> list[StagingFile]:
        """Return its files, with everything in them."""
        if self._lines:
            self.flush()
        return self._files

    def blocks(self) -> list[LineBlocks]:
        """Return its outputs, by file; what is in the buffer comes last."""
        files: list[StagingFile | None] = [*self._files] or [None]
        return [LineBlocks(file, self._lines if file is files[-1] else []) for file in files]

    def discard(self) -> None:
        for file in self._files:
            file.discard()


class PartFileSink:
    """Outputs as part files in a store, exactly once.

    An epoch without outputs makes no file. The place belongs to one job; published files may be taken away.

    Args:
        store: Where they go.
        suffix: What their names end with, as ``.jsonl``.
        table: How they are encoded; None: as lines of JSON.
        subtask: Number of the subtask that writes; several subtasks share a place.
    """

    guarantee = Guarantee.EXACTLY_ONCE
    record_max_bytes = None
    name: str

    def __init__(self, store: FileStore, suffix: str, table: TableFormat | None = None, *, subtask: int = 0) -> None:
        self._store = store
        self._suffix = suffix
        self._table = table
        self._owner = f"{subtask:05d}"
        self._prefix = f"part-{subtask:05d}-"
        self._running: asyncio.Future[Any] | None = None  # the last thing that was done in a thread
        self._epoch = self._new_epoch()
        self._closed: dict[int, _Epoch] = {}
        self._staged: set[str] = set()  # staged by this object and not yet published

    async def open(self, prepared: tuple[int, Staged] | None) -> None:
        """Take the place and delete this subtask's staging, except the names in ``prepared``."""
        self._forget()
        self._staged = set()
        kept = frozenset(prepared[1].names) if prepared else frozenset()
        try:
            if prepared and kept and not await self._in_thread(self._store.is_there):
                raise SinkError(
                    "the directory with the outputs of a decided checkpoint does not exist",
                    where={"directory": self._store.place, "checkpoint": prepared[0]},
                    expected=f"the directory in which they were staged, with {', '.join(sorted(kept))}",
                    fix="Put the directory back, or its path in the configuration; the outputs would be lost.",
                )
            await self._in_thread(self._take_place, kept)
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Take one output; every MiB goes to a staging file, without a sync.

        Raises:
            SinkError: The staging file cannot be written.
        """
        epoch, value = self._epoch, record.value or b"null"
        epoch.append_line(value)
        epoch.weight += len(value) + _LINE_BYTES
        if epoch.weight >= _FLUSH_BYTES:
            try:
                epoch.flush()
            except OSError as error:
                raise self._unwritable(error) from error

    def barrier(self, checkpoint: int) -> None:
        """Close the epoch; no I/O."""
        self._closed[checkpoint] = self._epoch
        self._epoch = self._new_epoch()

    async def stage(self, checkpoint: int) -> Staged:
        """Write the rest of the epoch and make it durable, in a thread.

        Raises:
            SinkError: It cannot be made durable.
            SchemaMismatch: An output does not fit the columns of a table.
            OutputExists: The checkpoint's file exists: the place holds another job's outputs, never overwritten.
            OutputLocked: Another job has taken the place.
        """
        epoch = self._closed.pop(checkpoint)
        if epoch.is_empty:
            return Staged()
        try:
            names = await self._in_thread(self._stage, epoch, checkpoint)
        except OSError as error:
            raise self._unwritable(error) from error
        self._staged.update(names)
        return Staged(names=tuple(names))

    async def publish(self, checkpoint: int, staged: Staged) -> None:  # noqa: ARG002 - the names say it
        """Give the staged files their names, in a thread.

        Raises:
            SinkError: The place is gone, or what this object staged was removed before it was published.
            OutputLocked: Another job has taken the place.
        """
        if not staged.names:
            return
        try:
            missing = await self._in_thread(self._store.publish, staged.names)
            # Only what an earlier life staged may be missing: then that life published it.
            lost = self._staged.intersection(missing)
            self._staged.difference_update(staged.names)
            if lost:
                raise FileNotFoundError(errno.ENOENT, f"the staged file {min(lost)} is gone")
        except OSError as error:
            raise self._unwritable(error) from error

    async def close(self) -> None:
        """Drop what is not staged; what is stays behind, and the next `open` deletes it. Waits for a thread that is at work."""
        if self._running is not None:
            await asyncio.wait([self._running])
            self._running.exception()  # who waited for it was told
            self._running = None
        self._forget()
        self._store.release()

    async def _in_thread(
        self, function: Callable[_ArgumentsP, _ResultT], *args: _ArgumentsP.args, **kwargs: _ArgumentsP.kwargs
    ) -> _ResultT:
        """Run a function in a thread. When this is cancelled it goes on there; `close` waits, so that it cannot meet the next life."""
        running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
        self._running = running
        return await asyncio.shield(running)

    def _new_epoch(self) -> _Epoch:
        return _Epoch(self._store, self._prefix)

    def _forget(self) -> None:
        for epoch in (self._epoch, *self._closed.values()):
            epoch.discard()
        self._closed = {}
        self._epoch = self._new_epoch()

    def _take_place(self, kept: frozenset[str]) -> None:
        self._store.acquire(self._owner)
        self._store.sweep(self._prefix, kept)
        if self._table is not None and not self._table.has_columns:
            published = [file.name for file in self._store.find("part-") if file.name.endswith(self._suffix)]
            if published:  # part-SUBTASK-CHECKPOINT: the newest one of any subtask
                self._table.adopt(self._store, max(published, key=lambda name: name.split("-", 2)[-1]))

    def _stage(self, epoch: _Epoch, checkpoint: int) -> list[str]:
        """Stage an epoch; its names are numbered where one file would be too large for the store."""
        try:
            if self._table is None:
                return [file.stage(name) for file, name in self._named(epoch.files(), checkpoint)]
            return [
                self._stage_table(lines, name, checkpoint) for lines, name in self._named(epoch.blocks(), checkpoint)
            ]
        finally:
            epoch.discard()

    def _named(self, parts: list[_PartT], checkpoint: int) -> Iterator[tuple[_PartT, str]]:
        for number, part in enumerate(parts):
            numbered = f"-{number:05d}" if len(parts) > 1 else ""
            name = f"{self._prefix}{checkpoint:010d}{numbered}{self._suffix}"
            if self._store.has(name):
                raise OutputExists(
                    "the output file of this checkpoint exists already",
                    where={"directory": self._store.place, "file": name, "checkpoint": checkpoint},
                    expected="a directory without outputs of another job or of an earlier life of this one",
                    fix="name an empty directory, or restore the state that belongs to these outputs.",
                )
            yield part, name

    def _stage_table(self, lines: LineBlocks, name: str, checkpoint: int) -> str:
        assert self._table is not None, "blocks are made for tables"
        file = self._store.begin(self._prefix)
        try:
            self._table.encode(lines, file, checkpoint)
            return file.stage(name)
        finally:
            file.discard()

    def _unwritable(self, error: OSError) -> SinkError:
        place, number = self._store.place, error.errno or 0
        if isinstance(error, BlockingIOError):
            return OutputLocked(
                "another job writes into the output directory",
                where={"directory": place},
                expected="one job per output directory",
                fix="Stop the other job, or name another directory.",
            )
        kind = SinkForbidden if number in _FORBIDDEN else SinkError
        return kind(
            f"the output directory cannot be written: {error.strerror or error}",
            where={"directory": place},
            expected="a directory that this user can write and nobody else clears",
            fix=_FIXES.get(number, self._store.advice),
        )

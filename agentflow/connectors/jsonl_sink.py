"""A directory of JSON lines files as a sink: one file per subtask and checkpoint that has outputs.

Names, for subtask 0 and checkpoint 12; names that start with a dot are skipped by readers:

    .lock-00000                     flock of the job that writes; it stays behind
    .part-00000-open-3              the epoch is open (its checkpoint has no number yet)
    .part-00000-0000000012.jsonl    staged: durable, invisible
    part-00000-0000000012.jsonl     published, by one rename
"""

# ruff: noqa: PTH100, PTH112, PTH104, PTH108, PTH118, PTH120, PTH208, ASYNC240 - descriptors and names, no path arithmetic

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
from typing import TYPE_CHECKING

from agentflow.connectors.directories import make_directory, sync_directory
from agentflow.errors import OutputExists, OutputLocked, SinkError, SinkForbidden
from agentflow.runtime.ports import Guarantee, Staged

if TYPE_CHECKING:
    from agentflow.core.effects import DeadLetter, EmitRecord

_FLUSH_BYTES = 2**20
_LINE_BYTES = 48  # a bytes object beside its content, and its place in the list
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
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


def _unwritable(path: str, error: OSError) -> SinkError:
    kind = SinkForbidden if error.errno in _FORBIDDEN else SinkError
    return kind(
        f"the output directory cannot be written: {error.strerror}",
        where={"directory": path},
        expected="a directory that this user can write and nobody else clears",
        fix=_FIXES.get(error.errno or 0, "Check the disk or the network drive."),
    )


class _Epoch:
    """Outputs of one epoch: a buffer before a staging file that is made when the buffer is full."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lines: list[bytes] = []
        self.append_line = self._lines.append
        self.weight = 0  # bytes that the buffer holds, objects included
        self._fd = -1

    @property
    def is_empty(self) -> bool:
        return not self._lines and self._fd < 0

    def flush(self) -> None:
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        lines, self._lines, self.weight = self._lines, [], 0
        self.append_line = self._lines.append
        lines.append(b"")  # the newline of the last line
        joined = b"\n".join(lines)
        if joined.count(b"\n") != len(lines) - 1:
            raise SinkError(
                "an output contains a line break",
                where={"file": self.path},
                expected="one line of JSON per output",
                fix="Give values instead of text that is JSON already (msgspec.Raw), or write that text without line breaks.",
            )
        rest = memoryview(joined)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def stage(self, path: str) -> None:
        """Make the epoch durable under its staged name."""
        if self._lines:
            self.flush()
        os.fsync(self._fd)
        self.close()
        os.rename(self.path, path)
        sync_directory(os.path.dirname(path))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class JsonlSink:
    """Outputs as lines of files in a directory, exactly once.

    An epoch without outputs makes no file. The directory belongs to one job; published files may be taken away.

    Args:
        path: The directory; created, with its parents, where it is missing.
        subtask: Number of the subtask that writes; several subtasks share a directory.
    """

    name = "jsonl"
    guarantee = Guarantee.EXACTLY_ONCE
    record_max_bytes = None

    def __init__(self, path: str, *, subtask: int = 0) -> None:
        self._path = path
        self._directory = os.path.abspath(path)
        self._prefix = f"part-{subtask:05d}-"
        self._lock_name = f".lock-{subtask:05d}"
        self._lock = -1
        self._staging: asyncio.Future[None] | None = None
        self._opened = 0  # epochs so far; names the open staging files
        self._epoch = self._new_epoch()
        self._closed: dict[int, _Epoch] = {}
        self._staged: set[str] = set()  # staged by this object and not yet renamed

    async def open(self, prepared: tuple[int, Staged] | None) -> None:
        """Create the directory and delete this subtask's staging, except the names in ``prepared``."""
        self._forget()
        self._staged = set()
        kept = frozenset(prepared[1].names) if prepared else frozenset()
        if prepared and kept and not os.path.isdir(self._directory):
            raise SinkError(
                "the directory with the outputs of a decided checkpoint does not exist",
                where={"directory": self._path, "checkpoint": prepared[0]},
                expected=f"the directory in which they were staged, with {', '.join(sorted(kept))}",
                fix="Put the directory back, or its path in the configuration; the outputs would be lost.",
            )
        try:
            await asyncio.to_thread(self._take_directory, kept)
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Take one output; every MiB goes to the staging file, without a sync.

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
                raise _unwritable(self._path, error) from error

    def barrier(self, checkpoint: int) -> None:
        """Close the epoch; no I/O."""
        self._closed[checkpoint] = self._epoch
        self._epoch = self._new_epoch()

    async def stage(self, checkpoint: int) -> Staged:
        """Write the rest of the epoch and sync file and directory, in a thread.

        Raises:
            SinkError: It cannot be made durable.
            OutputExists: The checkpoint's file exists: the directory holds another job's outputs, never overwritten.
        """
        epoch = self._closed.pop(checkpoint)
        if epoch.is_empty:
            return Staged()
        published = f"{self._prefix}{checkpoint:010d}.jsonl"
        if os.path.lexists(os.path.join(self._directory, published)):
            epoch.close()
            raise OutputExists(
                "the output file of this checkpoint exists already",
                where={"directory": self._path, "file": published, "checkpoint": checkpoint},
                expected="a directory without outputs of another job or of an earlier life of this one",
                fix="name an empty directory, or restore the state that belongs to these outputs.",
            )
        # A cancelled stage goes on in its thread; `close` waits for it, so that it cannot meet the next life's staging.
        self._staging = asyncio.ensure_future(
            asyncio.to_thread(epoch.stage, os.path.join(self._directory, f".{published}"))
        )
        try:
            await asyncio.shield(self._staging)
        except OSError as error:
            epoch.close()
            raise _unwritable(self._path, error) from error
        self._staged.add(f".{published}")
        return Staged(names=(f".{published}",))

    async def publish(self, checkpoint: int, staged: Staged) -> None:  # noqa: ARG002 - the names say it
        """Rename the staged files and sync the directory, in a thread.

        Raises:
            SinkError: The directory is gone, or what this object staged was removed before it was published.
        """
        if not staged.names:
            return
        try:
            await asyncio.to_thread(self._rename, staged.names)
        except OSError as error:
            raise _unwritable(self._path, error) from error

    async def close(self) -> None:
        """Close the staging files; they stay behind and the next `open` deletes them. Waits for a stage under way."""
        if self._staging is not None:
            with contextlib.suppress(OSError, SinkError):
                await self._staging
            self._staging = None
        self._forget()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _new_epoch(self) -> _Epoch:
        self._opened += 1
        return _Epoch(os.path.join(self._directory, f".{self._prefix}open-{self._opened}"))

    def _forget(self) -> None:
        for epoch in (self._epoch, *self._closed.values()):
            epoch.close()
        self._closed = {}
        self._epoch = self._new_epoch()

    def _take_directory(self, kept: frozenset[str]) -> None:
        """Create the directory, lock it, and delete staging that is not kept."""
        make_directory(self._directory)
        if self._lock < 0:
            self._take_lock()
        for name in os.listdir(self._directory):
            if name.startswith(f".{self._prefix}") and name not in kept:
                os.unlink(os.path.join(self._directory, name))
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        sync_directory(self._directory)

    def _take_lock(self) -> None:
        lock = os.open(os.path.join(self._directory, self._lock_name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise OutputLocked(
                "another job writes into the output directory",
                where={"directory": self._path},
                expected="one job per output directory",
                fix="Stop the other job, or name another directory.",
            ) from None
        except OSError:
            os.close(lock)
            raise
        self._lock = lock

    def _rename(self, names: tuple[str, ...]) -> None:
        for name in names:
            # Only what an earlier life staged may be missing: then that life published it.
            with contextlib.nullcontext() if name in self._staged else contextlib.suppress(FileNotFoundError):
                os.rename(os.path.join(self._directory, name), os.path.join(self._directory, name.removeprefix(".")))
                self._staged.discard(name)
        sync_directory(self._directory)

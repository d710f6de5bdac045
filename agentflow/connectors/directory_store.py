"""A directory as a `FileStore`.

Names in it, for files ``part-00000-…``; readers skip names that start with a dot:

    .lock-00000                     flock of the owner; it stays behind
    .part-00000-open-3              being written
    .part-00000-0000000012.jsonl    staged: durable, invisible
    part-00000-0000000012.jsonl     published, by one rename
"""

# ruff: noqa: PTH100, PTH112, PTH104, PTH108, PTH116, PTH118, PTH120, PTH208 - descriptors and names, no path arithmetic

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator, Sequence

from agentflow.connectors.directories import make_directory, sync_directory
from agentflow.connectors.file_store import FileReader, StagingFile, StoredFile

_CHUNK_BYTES = 2**20


class DirectoryStore:
    """Files in a directory and below it; it is made when something is written.

    Args:
        path: The directory; relative to the current one now.
    """

    part_max_bytes: int | None = None
    advice = "Check the disk or the network drive."

    def __init__(self, path: str) -> None:
        self.place = path
        self._directory = os.path.abspath(path)
        self._lock = -1
        self._begun = 0  # names the files that are being written

    def is_there(self) -> bool:
        """See `FileStore`."""
        return os.path.isdir(self._directory)

    def acquire(self, owner: str) -> None:
        """See `FileStore`."""
        make_directory(self._directory)
        if self._lock < 0:
            lock = os.open(self._path(f".lock-{owner}"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                os.close(lock)
                raise
            self._lock = lock
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def release(self) -> None:
        """See `FileStore`."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def begin(self, prefix: str) -> StagingFile:
        """See `FileStore`."""
        self._begun += 1
        return _OpenFile(self._directory, self._path(f".{prefix}open-{self._begun}"))

    def sweep(self, prefix: str, kept: frozenset[str]) -> None:
        """See `FileStore`."""
        for name in os.listdir(self._directory):
            if name.startswith(f".{prefix}") and name not in kept:
                os.unlink(self._path(name))
        sync_directory(self._directory)

    def publish(self, staged: Sequence[str]) -> list[str]:
        """See `FileStore`."""
        missing = []
        for name in staged:
            try:
                os.rename(self._path(name), self._path(name.removeprefix(".")))
            except FileNotFoundError:
                missing.append(name)
        sync_directory(self._directory)
        return missing

    def has(self, name: str) -> bool:
        """See `FileStore`."""
        return os.path.lexists(self._path(name))

    def find(self, prefix: str = "") -> list[StoredFile]:
        """See `FileStore`."""
        found = []
        folder, _, _ = prefix.rpartition("/")
        for path, folders, names in os.walk(self._path(folder)):
            folders[:] = [name for name in folders if not name.startswith((".", "_"))]
            for name in names:
                full = os.path.join(path, name)
                relative = os.path.relpath(full, self._directory)
                if name.startswith((".", "_")) or not relative.startswith(prefix):
                    continue
                with contextlib.suppress(FileNotFoundError):  # taken away meanwhile
                    found.append(StoredFile(relative, os.stat(full).st_size))
        return sorted(found, key=lambda file: file.name)

    def open(self, name: str) -> FileReader:
        """See `FileStore`."""
        return LocalFile(self._path(name))

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        """See `FileStore`."""
        path = self._path(name)
        make_directory(os.path.dirname(path))
        self._begun += 1
        folder, base = os.path.split(path)
        file = _OpenFile(folder, os.path.join(folder, f".{base}.put-{os.getpid()}-{self._begun}"))
        try:
            for chunk in chunks:
                file.write(chunk)
            file.stage_as(path)
        except BaseException:
            file.discard()
            raise

    def copy(self, name: str, to: str) -> None:
        """See `FileStore`: by a hard link where that is possible."""
        source, path = self._path(name), self._path(to)
        make_directory(os.path.dirname(path))
        try:
            os.link(source, path)
        except FileNotFoundError:
            raise
        except OSError:
            with open(source, "rb", buffering=0) as file:  # noqa: PTH123
                self.put(to, iter(lambda: file.read(_CHUNK_BYTES), b""))
            return
        sync_directory(os.path.dirname(path))

    def delete(self, names: Sequence[str]) -> None:
        """See `FileStore`."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(name))

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)


class _OpenFile:
    """A `StagingFile` in a directory; the file is made when something is written."""

    def __init__(self, directory: str, path: str) -> None:
        self._directory = directory
        self._path = path
        self._fd = -1
        self._written = 0

    def write(self, content: bytes | memoryview) -> int:
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        rest = memoryview(content)
        size = len(rest)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        self._written += size
        return size

    def chunks(self) -> Iterator[bytes]:
        at = 0
        while at < self._written:
            chunk = os.pread(self._fd, _CHUNK_BYTES, at)
            at += len(chunk)
            yield chunk

    def stage(self, name: str) -> str:
        self.stage_as(os.path.join(self._directory, f".{name}"))
        return f".{name}"

    def stage_as(self, path: str) -> None:
        if self._fd < 0:
            self.write(b"")
        os.fsync(self._fd)
        self._close()
        os.rename(self._path, path)
        sync_directory(os.path.dirname(path))

    def discard(self) -> None:
        if self._fd >= 0:
            self._close()
            with contextlib.suppress(OSError):  # it is swept at the next start
                os.unlink(self._path)

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1


class LocalFile:
    """A file of this machine as a `FileReader`.

    Args:
        path: The file.
        may_grow: It may get longer while it is read; else any change of it is one too many.
    """

    version: str | None = None
    block_bytes = 2**20

    def __init__(self, path: str, *, may_grow: bool = False) -> None:
        self._path = path
        self._may_grow = may_grow
        self._seen = 0  # offset behind the last byte that was read
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would wait for its writer
        try:
            self._opened = os.fstat(self._fd)
            self._check_kind()
        except BaseException:
            self.close()
            raise
        self.size = self._opened.st_size

    def read(self, offset: int, length: int) -> bytes:
        """See `FileReader`."""
        content = os.pread(self._fd, length, offset)
        now = os.stat(self._path)
        self._seen = max(self._seen, offset + len(content)) if content else self._seen
        is_same = os.path.samestat(now, self._opened) and now.st_size >= self._seen
        if not self._may_grow:
            is_same &= (now.st_size, now.st_mtime_ns) == (self.size, self._opened.st_mtime_ns)
        if not is_same:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return content

    def close(self) -> None:
        """See `FileReader`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _check_kind(self) -> None:
        if stat.S_ISDIR(self._opened.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(self._opened.st_mode):
            raise OSError(errno.ESPIPE, os.strerror(errno.ESPIPE))

"""Where savepoints are kept: a directory, or anything else that keeps named bytes.

One savepoint is one folder, and stands for itself: it can be copied, and deleted, without the others. A file that an older savepoint
has already is not copied again but shared: by a hard link in a directory, by a copy within an object store.

Rejected: a store of contents that manifests refer to. It would save space on object stores, and every deletion would have to know all
manifests, at a moment when nobody writes another one; a life-cycle rule of a bucket would break it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from agentflow.errors import DiskFull, StateCorrupted, StateError, StateForbidden, StateUnavailable
from agentflow.state.directory import make_directory, sync_directory

CHUNK_BYTES = 2**20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)
_NOT_SHARED = (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.ENOENT, errno.ENOTSUP, errno.ENOSYS)


class SavepointStorage(Protocol):
    """Keeps named bytes; names have slashes, the part before the first one is the folder. Every method may block.

    Whatever cannot be read or written is a `StateError`.
    """

    @property
    def place(self) -> str:
        """Where it is, for people and for commands."""
        ...

    def folders(self) -> Sequence[str]:
        """Return the names of all folders, sorted."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return small content whole; None: there is none of that name."""
        ...

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield content piece by piece. `StateCorrupted`: there is none of that name."""
        ...

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write content: whole and durable when this returns, invisible or unfinished before."""
        ...

    def share(self, name: str, shared: str) -> bool:
        """Make the content of ``shared`` available as ``name`` too, without moving it through this process.

        False: that cannot be done, or ``shared`` is not there any more.
        """
        ...

    def delete(self, folder: str, first: str) -> None:
        """Delete a folder with everything in it, what is named ``first`` before all else; it may be gone already."""
        ...

    def fetch(self, name: str, path: Path) -> None:
        """Make content that is never changed available as a local file, by a link where that is possible.

        `StateCorrupted`: there is none of that name.
        """
        ...


class DirectoryStorage:
    """Savepoints in a directory; it is made with the first one.

    Args:
        path: The directory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def place(self) -> str:
        """See `SavepointStorage`."""
        return str(self._path)

    def folders(self) -> Sequence[str]:
        """See `SavepointStorage`."""
        with self._told("listing savepoints", self._path):
            if not self._path.exists():
                return []
            return sorted(found.name for found in self._path.iterdir() if found.is_dir())

    def read(self, name: str) -> bytes | None:
        """See `SavepointStorage`."""
        with self._told("reading a savepoint", self._path / name):
            try:
                return (self._path / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `SavepointStorage`."""
        path = self._path / name
        with self._told("reading a savepoint", path):
            try:
                file = path.open("rb", buffering=0)
            except FileNotFoundError as error:
                raise missing_file(path) from error
            with file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """See `SavepointStorage`."""
        path = self._path / name
        with self._told("writing a savepoint", path):
            make_directory(path.parent.absolute())
            draft = path.with_name(f".{path.name}.new")
            write_durably(draft, chunks)
            draft.rename(path)
            sync_directory(path.parent)

    def share(self, name: str, shared: str) -> bool:
        """See `SavepointStorage`."""
        path = self._path / name
        with self._told("writing a savepoint", path):
            make_directory(path.parent.absolute())
            try:
                path.hardlink_to(self._path / shared)
            except OSError as error:
                if error.errno in _NOT_SHARED:
                    return False
                raise
            sync_directory(path.parent)
            return True

    def delete(self, folder: str, first: str) -> None:
        """See `SavepointStorage`."""
        path = self._path / folder
        with self._told("deleting a savepoint", path):
            (path / first).unlink(missing_ok=True)
            if path.is_dir():
                sync_directory(path)
                shutil.rmtree(path)

    def fetch(self, name: str, path: Path) -> None:
        """See `SavepointStorage`."""
        source = (self._path / name).absolute()
        with self._told("reading a savepoint", source):
            if not source.exists():
                raise missing_file(source)
            path.symlink_to(source)

    @contextlib.contextmanager
    def _told(self, doing: str, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise storage_error(error, doing, path) from error


def write_durably(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a new file and sync it; nothing is left of it after an error."""
    try:
        with path.open("wb", buffering=0) as file:
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:
                    rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def missing_file(place: object) -> StateCorrupted:
    """Return the error for content that a manifest names, and that is not there."""
    return StateCorrupted(
        "a file of the savepoint is missing",
        where={"file": str(place)},
        expected="every file that its manifest names",
        fix="take another savepoint; agentflow savepoint verify shows all that is damaged",
    )


def storage_error(error: OSError, doing: str, path: Path) -> StateError:
    """Return the typed error for what the operating system says of a file."""
    what = f"{doing}: {error.strerror or error}"
    where: dict[str, object] = {"file": str(path)}
    if error.errno in _NO_SPACE:
        return DiskFull(what, where=where, expected="space for the whole state", fix="free space on its disk")
    if error.errno in _FORBIDDEN:
        return StateForbidden(
            what,
            where=where,
            expected="a directory that may be read and written",
            fix="look at its permissions, or name another directory",
        )
    if error.errno == errno.ENOENT:
        return StateUnavailable(
            what, where=where, expected="a file that stays where it is", fix="look at what removes it, then try again"
        )
    return StateUnavailable(what, where=where, expected="a disk that works", fix="look at the disk, then try again")

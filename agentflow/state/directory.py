"""The directory of one subtask: who owns it, what it holds, and whether there is room.

    <path>/agentflow.json   format, job, who created it; replaced atomically, read before anything else
    <path>/agentflow.lock   flock; its text is the process id of the owner
    <path>/rocksdb/         RocksDB's own files

`agentflow.json` is written twice when a directory is created: with ``is_ready`` false before RocksDB makes its files and
with true after they are durable. So a crash while creating is told apart from files that were lost later: in a ready
directory nothing is ever created again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from importlib import metadata
from pathlib import Path

import msgspec

from agentflow.errors import (
    StateCorrupted,
    StateError,
    StateForbidden,
    StateMismatch,
    StateUnavailable,
    StateVersionTooNew,
)
from agentflow.state.rocksdb_errors import corrupted, disk_full, locked

FORMAT = 1
"""Version of everything in a state directory that a reader must understand."""

FORMAT_FILE = "agentflow.json"
LOCK_FILE = "agentflow.lock"
ROCKSDB_DIRECTORY = "rocksdb"

_FOR_A_MOMENT = "for a moment"
_MOMENT_MAX_S = 30.0
_LOOK_AGAIN_S = 0.05

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _FormatFile(msgspec.Struct, frozen=True):
    format: int
    job: str
    created_by: str
    is_ready: bool


class _FormatVersion(msgspec.Struct, frozen=True):
    """The two fields that every version has, so that a newer file can be refused with its own words."""

    format: int
    created_by: str = "an unknown version"


class StateDirectory:
    """An owned state directory; at most one owner at a time, in this process or any other.

    Attributes:
        is_new: Whether RocksDB's files are still to be created.
    """

    def __init__(self, path: Path, *, job: str, free_min_bytes: int, is_momentary: bool = False) -> None:
        """Create the directory if it is missing or empty, lock it and check what it holds.

        A momentary owner gives it back by itself soon: it takes a savepoint of a stopped job. Others wait for that, so that a job
        that starts meanwhile does not fail.

        Raises:
            DiskFull: Less than ``free_min_bytes`` free.
            StateLocked: Somebody else has it open.
            StateVersionTooNew: A newer agentflow wrote it.
            StateMismatch: It belongs to another job.
            StateCorrupted: The format file is damaged, or missing beside files of RocksDB.
            StateUnavailable: An I/O error.
        """
        self.path = path
        self.is_new = False
        self._job = job
        self._free_min_bytes = free_min_bytes
        self._is_momentary = is_momentary
        self._lock: int | None = None
        try:
            make_directory(path)
            self._take_lock()
            self.check_free_space("opening the state")
            self._check_format()
        except OSError as error:
            self.close()
            raise self._os_error(error, "opening the state") from error
        except StateError:
            self.close()
            raise

    @property
    def rocksdb_path(self) -> Path:
        """Where RocksDB's files are."""
        return self.path / ROCKSDB_DIRECTORY

    def mark_ready(self) -> None:
        """Note, durably, that RocksDB's files exist and are durable themselves."""
        try:
            sync_directory(self.rocksdb_path)
            self._write_format(is_ready=True)
        except OSError as error:
            raise self._os_error(error, "creating the state") from error
        self.is_new = False

    def check_free_space(self, doing: str) -> None:
        """Raise DiskFull when less than the configured space is free."""
        try:
            disk = os.statvfs(self.path)
        except OSError as error:
            raise self._os_error(error, doing) from error
        free = disk.f_bavail * disk.f_frsize
        if free < self._free_min_bytes:
            where: dict[str, object] = {
                "directory": str(self.path),
                "free": f"{free} bytes",
                "state.free-min": f"{self._free_min_bytes} bytes",
            }
            raise disk_full(f"{doing}: not enough free space", where)

    def close(self) -> None:
        """Give the directory up. Idempotent. The lock file stays: removing it would race with the next owner."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline_s = time.monotonic() + _MOMENT_MAX_S
        try:
            while not _is_locked_now(lock):
                owner = os.pread(lock, 40, 0).decode("ascii", "replace").strip()
                if (owner and not owner.endswith(_FOR_A_MOMENT)) or time.monotonic() > deadline_s:
                    where: dict[str, object] = {"directory": str(self.path), "owner process": owner or "unknown"}
                    raise locked("the state directory is in use", where)
                time.sleep(_LOOK_AGAIN_S)  # nothing else goes on while state is opened
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}{f' {_FOR_A_MOMENT}' if self._is_momentary else ''}\n".encode(), 0)

    def _check_format(self) -> None:
        is_ready = read_format(self.path, self._job)
        if is_ready is None:
            self._write_format(is_ready=False)
        self.is_new = not is_ready

    def _write_format(self, *, is_ready: bool) -> None:
        write_format(self.path, self._job, is_ready=is_ready)

    def _os_error(self, error: OSError, doing: str) -> StateError:
        what = f"{doing}: {error.strerror or error}"
        where: dict[str, object] = {"directory": str(self.path)}
        if error.filename is not None:
            where["file"] = os.fspath(error.filename)
        if error.errno in _NO_SPACE:
            return disk_full(what, where)
        kind = StateForbidden if error.errno in _FORBIDDEN else StateUnavailable
        return kind(
            what,
            where=where,
            expected="a directory that may be read and written",
            fix="look at state.dir, its permissions and its disk",
        )


def _is_locked_now(lock: int) -> bool:
    """Take a lock if it is free."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def written_by() -> str:
    """Return who writes: ``agentflow 0.1.0``."""
    try:
        version = metadata.version("agentflow")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    return f"agentflow {version}"


def write_format(path: Path, job: str, *, is_ready: bool) -> None:
    """Say, durably and in one step, what a directory is and whose."""
    content = msgspec.json.encode(_FormatFile(FORMAT, job, written_by(), is_ready))
    draft = path / f"{FORMAT_FILE}.tmp"
    with draft.open("wb") as file:
        file.write(content + b"\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path / FORMAT_FILE)
    sync_directory(path)


def stored_job(path: Path) -> str:
    """Return the name of the job that a state directory belongs to.

    Raises:
        StateUnavailable: There is no state.
        StateCorrupted: It does not say.
    """
    try:
        return msgspec.json.decode((path / FORMAT_FILE).read_bytes(), type=_FormatFile).job
    except FileNotFoundError as error:
        raise no_state(path) from error
    except msgspec.DecodeError as error:
        raise corrupted(
            f"{FORMAT_FILE} cannot be read: {error}", {"directory": str(path), "file": FORMAT_FILE}
        ) from error


def no_state(path: Path) -> StateUnavailable:
    """Return the error for a place where no job has run."""
    return StateUnavailable(
        "there is no state",
        where={"directory": str(path)},
        expected="the state directory of a job that has run",
        fix="look at state.dir of the job file",
    )


def read_format(path: Path, job: str) -> bool | None:
    """Check what a state directory holds, and change nothing.

    Args:
        path: The directory; it exists.
        job: Name of the job that wants it.

    Returns:
        Whether RocksDB's files are there and durable; None: the directory is not one of agentflow yet.

    Raises:
        StateVersionTooNew: A newer agentflow wrote it.
        StateMismatch: It belongs to another job.
        StateCorrupted: The format file is damaged, or missing beside files of RocksDB.
        OSError: It cannot be read.
    """
    try:
        content = (path / FORMAT_FILE).read_bytes()
    except FileNotFoundError:
        _refuse_unknown_files(path)
        return None
    try:
        version = msgspec.json.decode(content, type=_FormatVersion)
        if version.format > FORMAT:
            raise StateVersionTooNew(
                f"the state directory has format {version.format}, written by {version.created_by}",
                where={"directory": str(path)},
                expected=f"format {FORMAT} or older",
                fix="run the newer agentflow, or restore a savepoint that this version can read",
            )
        stored = msgspec.json.decode(content, type=_FormatFile)
    except msgspec.DecodeError as error:
        raise _damaged(path, f"{FORMAT_FILE} cannot be read: {error}") from error
    if stored.format < 1:
        raise _damaged(path, f"{FORMAT_FILE} names format {stored.format}, which never existed")
    if stored.job != job:
        raise StateMismatch(
            "the state directory belongs to another job",
            where={"directory": str(path), "its job": repr(stored.job), "this job": repr(job)},
            expected="one directory per job",
            fix=f"give this job another state.dir, or name it {stored.job!r} again",
        )
    return stored.is_ready


def _refuse_unknown_files(path: Path) -> None:
    for name in sorted(entry.name for entry in path.iterdir()):
        if name in {ROCKSDB_DIRECTORY, "CURRENT"} or name.startswith("MANIFEST-") or name.endswith(".sst"):
            raise _damaged(path, f"{FORMAT_FILE} is missing, but there is '{name}'")


def _damaged(path: Path, what: str) -> StateCorrupted:
    return corrupted(what, {"directory": str(path), "file": FORMAT_FILE})


def make_directory(path: Path) -> None:
    """Create ``path`` with its parents; every new name is durable when this returns."""
    missing = [path]
    while not missing[-1].exists() and missing[-1] != missing[-1].parent:
        missing.append(missing[-1].parent)
    for directory in reversed(missing[:-1]):
        with contextlib.suppress(FileExistsError):  # another subtask makes the common parent at the same moment
            directory.mkdir()
        sync_directory(directory)
        sync_directory(directory.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

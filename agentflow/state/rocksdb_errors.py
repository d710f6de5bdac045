"""RocksDB's failures as typed errors: the one place that reads its texts.

The binding raises bare `Exception` with RocksDB's status text, without class or code. What the engine does about a full
disk, a damaged file and a passing I/O error is different, so the text is matched here and nowhere else. The texts are those
of `rocksdb::Status::ToString` ("IO error: …", "Corruption: …") and of `strerror`; tests provoke every one for real.
"""

from __future__ import annotations

import re
from pathlib import Path

from rocksdict import DbClosedError

from agentflow.errors import DiskFull, StateCorrupted, StateError, StateForbidden, StateLocked, StateUnavailable

_NO_SPACE = ("No space left on device", "Disk quota exceeded", "File too large")
_FORBIDDEN = ("Permission denied", "Operation not permitted", "Read-only file system")
_LOCKED = ("lock hold by current process", "While lock file")
_DAMAGED = (
    "Corruption:",  # wrong checksum, torn file, missing SST file
    "No such file or directory",  # a file that the manifest names
    "does not exist (create_if_missing is false)",  # CURRENT
    "Column famil",  # "Column families not opened", "Column family not found": the manifest is not ours
)
_FILE = re.compile(r"(?<![\w.-])(\d+\.(?:sst|log)|MANIFEST-\d+|OPTIONS-\d+|CURRENT|IDENTITY)\b")


def state_error(error: Exception, *, directory: Path, doing: str) -> StateError:
    """Return the typed error for what the binding raised.

    Args:
        error: What was raised. Anything but RocksDB's own failures (a TypeError: a bug of ours) is raised again.
        directory: The state directory.
        doing: What was being done: "reading", "writing the prepared delta".
    """
    if isinstance(error, DbClosedError):
        return closed_error(directory, doing)
    if type(error) is not Exception:
        raise error
    text = str(error)
    where: dict[str, object] = {"directory": str(directory)}
    file = _FILE.search(text)
    if file is not None:
        where["file"] = file[1]
    what = f"{doing}: {text}"
    if any(mark in text for mark in _NO_SPACE):
        return disk_full(what, where)
    if any(mark in text for mark in _LOCKED):
        return locked(what, where)
    if any(mark in text for mark in _DAMAGED):
        return corrupted(what, where)
    if any(mark in text for mark in _FORBIDDEN):
        return StateForbidden(
            what,
            where=where,
            expected="a directory that may be read and written",
            fix="look at the permissions of state.dir and of the files in it",
        )
    return StateUnavailable(
        what,
        where=where,
        expected="a directory on a disk that works and may be read and written",
        fix="look at the disk and the permissions; the job goes on from its last completed checkpoint",
    )


def closed_error(directory: Path, doing: str) -> StateUnavailable:
    """Return the error for a use after `close`."""
    return StateUnavailable(
        f"{doing}: the state is closed",
        where={"directory": str(directory)},
        expected="no use after close",
        fix="open the state again",
    )


def interrupted_error(directory: Path, doing: str) -> StateUnavailable:
    """Return the error for writes after a sync that was cancelled."""
    return StateUnavailable(
        f"{doing}: interrupted before it was known to be durable",
        where={"directory": str(directory)},
        expected="no write after an interrupted checkpoint",
        fix="open the state again; it then says whether the checkpoint is decided",
    )


def disk_full(what: str, where: dict[str, object]) -> DiskFull:
    """Return the error for a full disk, a used-up quota, or a file size limit."""
    return DiskFull(
        what,
        where=where,
        expected="free space on the disk of state.dir",
        fix="free space or enlarge the disk; the last completed checkpoint is intact and the job goes on from it",
    )


def locked(what: str, where: dict[str, object]) -> StateLocked:
    """Return the error for a directory that somebody else has open."""
    return StateLocked(
        what,
        where=where,
        expected="one owner per state directory",
        fix="stop the other process, or give this job another state.dir",
    )


def corrupted(what: str, where: dict[str, object]) -> StateCorrupted:
    """Return the error for a damaged directory."""
    return StateCorrupted(
        what,
        where=where,
        expected="files as agentflow wrote them",
        fix="restore the directory from a savepoint or a backup, or move it away to start with empty state",
    )

"""Directories and disks, looked at without changing them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

SYNCED = b"agentflow" * 455
"""What is appended before each measured sync, as by a small checkpoint: nearly a page."""
_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(rb"\\([0-7]{3})")


def nearest_existing(path: Path) -> Path:
    """Return ``path``, or the first of its parents that exists: where it would be created.

    What lies behind a directory that may not be searched counts as missing; that directory is returned then.
    """
    path = path.absolute()
    while not _is_seen(path) and path != path.parent:
        path = path.parent
    return path


def _is_seen(path: Path) -> bool:
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def is_writable(directory: Path) -> bool:
    """Whether this user may make files in a directory."""
    is_effective = os.access in os.supports_effective_ids
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=is_effective)


def described_mode(path: Path) -> str:
    """Return owner and permissions for people: ``owner 1000, mode 0755``."""
    status = path.stat()
    return f"owner {_user(status.st_uid)}, mode {stat.S_IMODE(status.st_mode):04o}"


def user() -> str:
    """Return who this process is."""
    return _user(os.geteuid())


def _user(number: int) -> str:
    import pwd

    with contextlib.suppress(KeyError):  # a number without a name is usual in containers
        return f"{pwd.getpwuid(number).pw_name} ({number})"
    return str(number)


def lock_owner(lock_file: Path) -> str | None:
    """Return who holds the lock of a file, for people; None: nobody does, or there is no such file.

    To know that, the lock is shared for some microseconds; nothing else tells it of owners in other containers too.
    """
    try:
        descriptor = os.open(lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        number = os.pread(descriptor, 40, 0).decode("ascii", "replace").split()
        return _process(number[0]) if number else "an unknown process"
    finally:
        os.close(descriptor)
    return None


def _process(number: str) -> str:
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        return f"process {number} ({command[:80]})" if command else f"process {number}"
    return f"process {number}"


def size_of(directory: Path) -> int:
    """Return the bytes of all files below a directory."""
    size = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):  # a file that is compacted away meanwhile
                size += (Path(folder) / name).stat().st_size
    return size


def free_bytes(directory: Path) -> int:
    """Return the space that this user may still use."""
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize


class FileSystem(msgspec.Struct, frozen=True):
    """Where a directory is.

    Attributes:
        kind: As the system calls it: ``ext4``, ``nfs4``, ``fuse.sshfs``.
        mount: Where it is mounted.
    """

    kind: str
    mount: str


def file_system(directory: Path) -> FileSystem | None:
    """Return the file system of an existing directory; None where the system does not tell (not Linux)."""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return None
    real = os.path.realpath(directory)
    found: FileSystem | None = None
    for line in lines:
        before, _, behind = line.partition(b" - ")
        mount = os.fsdecode(_ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), before.split()[4]))
        is_around = mount in ("/", real) or real.startswith(f"{mount}/")
        # Of two at one place the later one is on top.
        if is_around and (found is None or len(mount) >= len(found.mount)):
            found = FileSystem(os.fsdecode(behind.split()[0]), mount)
    return found


@contextlib.contextmanager
def _scratch_file(directory: Path) -> Iterator[int]:
    """Open a file without a name, which is gone with this process however it ends; elsewhere one that is deleted."""
    with contextlib.ExitStack() as opened:
        try:
            descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            opened.callback(os.close, descriptor)
        except (OSError, AttributeError):  # not on this file system, or not on this platform
            named = opened.enter_context(tempfile.NamedTemporaryFile(dir=directory, prefix=".agentflow-doctor-"))
            descriptor = named.fileno()
        yield descriptor


def sync_times(directory: Path, count: int, seconds_max: float) -> list[float]:
    """Append and sync some thousand bytes, again and again, and return how long each sync took, in seconds, sorted.

    Args:
        directory: Where; nothing is left behind.
        count: How often, at most.
        seconds_max: When to stop.
    """
    sync = getattr(os, "fdatasync", os.fsync)
    times: list[float] = []
    began = time.monotonic()
    with _scratch_file(directory) as descriptor:
        while len(times) < count and time.monotonic() - began < seconds_max:
            os.write(descriptor, SYNCED)
            before = time.perf_counter()
            sync(descriptor)
            times.append(time.perf_counter() - before)
    return sorted(times)


def can_link(directory: Path) -> bool:
    """Whether files of a directory can have a second name beside them: savepoints share files by it."""
    with tempfile.TemporaryDirectory(dir=directory, prefix=".agentflow-doctor-") as scratch:
        first = Path(scratch) / "first"
        first.touch()
        try:
            (Path(scratch) / "second").hardlink_to(first)
        except OSError:
            return False
    return True


def size_text(size: float) -> str:
    """Return bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"

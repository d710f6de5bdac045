"""The event log in files: JSON lines, one set of files per subtask.

    events-{job}-{subtask}.{when it was begun, UTC}.log

A file is begun with its first record, never written again once the next one is begun, and never renamed; names sort as records do.
Every life of a process begins files of its own, so that nothing is written behind a line that a killed process has torn, and two
owners of a subtask (the old one may not know yet that it is one no more) have a file each.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from agentflow.runtime.settings import EventLogSettings

_PIECES_MAX = 512  # below what systems take in one call
_TENDED_EVERY_S = 30.0
_STAMP = re.compile(r"\d{8}T\d{9}")


def log_files(directory: str | Path, job: str, subtask: int | None = None) -> list[Path]:
    """Return the files of a job, or of a subtask, in the order in which they were begun; none where there is no directory.

    Raises:
        OSError: The directory cannot be read.
    """
    number = r"\d+" if subtask is None else str(subtask)
    pattern = re.compile(rf"events-{re.escape(job)}-{number}\.({_STAMP.pattern})\.log")
    try:
        names = [path.name for path in Path(directory).iterdir()]
    except FileNotFoundError:
        return []
    found = sorted((match[1], name) for name in names if (match := pattern.fullmatch(name)))
    return [Path(directory) / name for _, name in found]


class LogFiles:
    """Writes the files of the subtasks that this process owns.

    Args:
        job: Name of the job.
        settings: Directory, rotation, retention.
    """

    name = "file"

    def __init__(self, job: str, settings: EventLogSettings) -> None:
        self._job = job
        self._directory = Path(settings.dir)
        self._rotation = settings.rotation
        self._retention = settings.retention
        self._open: dict[int, _OpenFile] = {}
        self._tended_next = 0.0

    def write(self, subtask: int, lines: Sequence[bytes]) -> None:
        """Append lines to the file of a subtask, all or none."""
        file = self._open.get(subtask)
        if file is not None and self._is_full(file, sum(map(len, lines))):
            self._open.pop(subtask).close()
            file = None
        if file is None:
            file = self._open[subtask] = self._begin(subtask)
            self._remove_old(subtask, file.path)
        try:
            file.append(lines)
        except OSError:
            if not file.is_usable:
                self._open.pop(subtask).close()
            raise

    def tend(self) -> None:
        """Begin no file that has no records; delete files by age."""
        now = time.monotonic()
        if self._retention.age_ms is not None and now >= self._tended_next:
            self._tended_next = now + _TENDED_EVERY_S
            for subtask, file in self._open.items():
                self._remove_old(subtask, file.path)

    def close(self) -> None:
        """Close the files."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _is_full(self, file: _OpenFile, more: int) -> bool:
        age_ms = self._rotation.age_ms
        return (
            (file.size and file.size + more > self._rotation.size_bytes)
            or (age_ms is not None and time.monotonic() - file.begun > age_ms / 1000)
            or file.is_deleted
        )

    def _begin(self, subtask: int) -> _OpenFile:
        os.makedirs(self._directory, exist_ok=True)  # noqa: PTH103 (as the rest: no objects for what is done seldom)
        existing = log_files(self._directory, self._job, subtask)
        stamp = _stamp(time.time_ns() // 1_000_000)
        if existing:  # by a clock that was ahead of ours, or in this millisecond
            last = existing[-1].name.split(".")[-2]
            stamp = max(stamp, _stamp(_stamp_ms(last) + 1))
        while True:
            path = self._directory / f"events-{self._job}-{subtask}.{stamp}.log"
            try:
                return _OpenFile(path)
            except FileExistsError:
                stamp = _stamp(_stamp_ms(stamp) + 1)

    def _remove_old(self, subtask: int, current: Path) -> None:
        """Delete the oldest files of a subtask as the settings say, all but the current one and its followers."""
        retention = self._retention
        with contextlib.suppress(OSError):
            files = [(path, path.stat()) for path in log_files(self._directory, self._job, subtask)]
            count, size = len(files), sum(stat.st_size for path, stat in files if path.name < current.name)
            if retention.size_bytes is not None:
                size += self._rotation.size_bytes  # what the current one may come to
            oldest_s = None if retention.age_ms is None else time.time() - retention.age_ms / 1000
            for path, stat in files:
                if path.name >= current.name or not (
                    (retention.files is not None and count > retention.files)
                    or (retention.size_bytes is not None and size > retention.size_bytes)
                    or (oldest_s is not None and stat.st_mtime < oldest_s)
                ):
                    break
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                count, size = count - 1, size - stat.st_size


class _OpenFile:
    """A file that is written.

    Attributes:
        is_usable: It ends with a whole line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.begun = time.monotonic()
        self.is_usable = True
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o640)

    @property
    def is_deleted(self) -> bool:
        """Whether somebody has deleted it: what is written then is seen by nobody."""
        return os.fstat(self._fd).st_nlink == 0

    def append(self, lines: Sequence[bytes]) -> None:
        """Append lines; of a write that failed nothing is left."""
        size = sum(map(len, lines))
        try:
            for start in range(0, len(lines), _PIECES_MAX):
                _write_all(self._fd, lines[start : start + _PIECES_MAX])
        except OSError:
            try:
                os.ftruncate(self._fd, self.size)
            except OSError:
                self.is_usable = False
            raise
        self.size += size

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)


def _write_all(fd: int, pieces: Sequence[bytes]) -> None:
    written = os.writev(fd, pieces)
    if written < sum(map(len, pieces)):  # a signal, or a disk that is nearly full
        rest = memoryview(b"".join(pieces))[written:]
        while rest:
            rest = rest[os.write(fd, rest) :]


def _stamp(ms: int) -> str:
    moment = datetime.fromtimestamp(ms / 1000, tz=UTC)
    return f"{moment:%Y%m%dT%H%M%S}{ms % 1000:03d}"


def _stamp_ms(stamp: str) -> int:
    moment = datetime.strptime(stamp[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    return int(moment.timestamp()) * 1000 + int(stamp[15:])

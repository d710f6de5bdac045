"""JSON Lines files as a source.

Position of a record = byte offset of its line in its file; the label is the file's path as it was given, so that moving the
working directory together with the files keeps the positions.

Files are read inline, not in a thread: a chunk that is in the page cache, where read-ahead puts it, takes about 50 µs, less
than handing it from thread to thread costs in latency and throughput. A disk so slow that this hurts makes the job wait for
its input anyway.
"""

from __future__ import annotations

import asyncio
import errno
import glob
import itertools
import os
import stat
from collections.abc import Iterable, Mapping, Sequence

from agentflow.connectors.lines import RECORD_MAX_BYTES, LineCutter
from agentflow.core.records import Record
from agentflow.errors import SourceError

CHUNK_BYTES = 256 * 1024
"""One read. Larger ones gain nothing measurable; 90,000 lines of two bytes are cut in about 2 ms, 1 MiB would take 10."""

_BOM = b"\xef\xbb\xbf"
_READS_PER_TURN = 64
"""Reads without a record (a very long line, a desert of blank ones) after which other tasks get a turn."""

StrPath = str | os.PathLike[str]


class JsonlSource:
    """Reads JSON Lines files one after the other, in the order of their labels.

    Files are looked up when the source is opened; what matches a pattern later is read by the next start. A file that is
    named must exist, a file that was read completely and matched a pattern may be gone. Files may grow between runs, by
    whole lines; they must not change otherwise.

    Args:
        path: A file, several files, or a pattern (``*``, ``?``, ``[…]``, ``**``; names that start with ``.`` or ``_`` are
            staging and do not match unless the pattern says so).
        record_max: Longest line in bytes that is read whole; a longer one becomes a record with its first
            ``record_max + 1`` bytes, for the job to reject.
    """

    name = "jsonl"
    is_replayable = True
    codec = "json"

    def __init__(self, path: StrPath | Iterable[StrPath], *, record_max: int = RECORD_MAX_BYTES) -> None:
        paths = [path] if isinstance(path, str | os.PathLike) else list(path)
        self._paths = [os.fspath(one) for one in paths]
        self._record_max = record_max
        LineCutter("", 0, record_max)  # a wrong limit is told where it is given
        self._positions: dict[str, int] = {}  # label → where to begin
        self._waiting: list[tuple[str, str]] = []  # (label, path) of files not begun, last one first
        self._file: _OpenFile | None = None  # None before the first, between two, and after the last one
        self._cutter = LineCutter("", 0, record_max)

    async def open(self, positions: Mapping[str, int]) -> None:
        """Find the files and check that each can be read from its position.

        Positions of files that are not part of the input any more are ignored.

        Raises:
            SourceError: No file; one is missing, a directory, unreadable, or does not have its position.
        """
        await self.close()
        files = {_label(path): path for path in self._find()}
        self._positions = {label: positions.get(label, 0) for label in files}
        for label, path in files.items():
            with _OpenFile(label, path) as file:
                file.check_position(self._positions[label])
        self._waiting = sorted(files.items(), reverse=True)

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next records; fewer than ``records_max`` when a chunk ends. Never waits for a file to grow.

        Raises:
            SourceError: A file disappeared, was replaced or became shorter, or the disk failed.
        """
        for reads in itertools.count(1):
            records = self._cutter.take(records_max)
            if records:
                return records
            if not self._read():
                break
            if reads % _READS_PER_TURN == 0:
                await asyncio.sleep(0)
        return []

    async def close(self) -> None:
        """Close the file that is open; what is left is not read any more."""
        self._waiting = []
        self._cutter = LineCutter("", 0, self._record_max)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> bool:
        """Give one chunk to the cutter; return False at the end of the last file."""
        if self._file is None:
            if not self._waiting:
                return False
            label, path = self._waiting.pop()
            self._file = _OpenFile(label, path)
            self._cutter = LineCutter(label, self._file.begin(self._positions[label]), self._record_max)
        chunk = self._file.read()
        if chunk:
            self._cutter.feed(chunk)
        else:
            self._cutter.finish()
            self._file.close()
            self._file = None
        return True

    def _find(self) -> list[str]:
        if not self._paths:
            raise SourceError("no input file is named", where={"source": self.name}, fix="name at least one file")
        found = []
        for path in self._paths:
            if not glob.has_magic(path) or os.path.lexists(path):
                found.append(path)
                continue
            matches = [match for match in glob.glob(path, recursive=True) if _is_meant(match, path)]
            if not matches:
                raise SourceError(
                    "no file matches the pattern of the input",
                    where={"source": self.name, "pattern": path},
                    expected="at least one file",
                    fix=f"check the pattern; relative ones start at {os.getcwd()}",
                )
            found += matches
        return found


class _OpenFile:
    """One file and how far it is read. Every read checks that it is still the same file and not shorter."""

    def __init__(self, label: str, path: str) -> None:
        self._label = label
        self._path = path
        self._offset = 0  # of the next read
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not block here
        except OSError as error:
            raise self._os_error(error, "opened") from error
        status = os.fstat(self._fd)
        self._identity = (status.st_dev, status.st_ino)
        self._size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise self._wrong_kind(is_directory=stat.S_ISDIR(status.st_mode))

    def __enter__(self) -> _OpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def begin(self, position: int) -> int:
        """Go to a position; return where the first line begins (behind a byte order mark)."""
        self.check_position(position)
        is_marked = position == 0 and self._pread(len(_BOM), 0) == _BOM
        self._offset = len(_BOM) if is_marked else position
        return self._offset

    def check_position(self, position: int) -> None:
        """Refuse a position that cannot be the beginning of a line: the file is not the one that was read."""
        if position > self._size:
            raise SourceError(
                "the input file is shorter than the position where reading goes on: it was truncated or replaced",
                where=self._where | {"position": position, "bytes": self._size},
                expected=f"at least {position} bytes, the first ones as they were",
                fix="restore the file, or start the job with a new state directory to read it from the beginning",
            )
        if position in {0, self._size}:
            return
        before, after = self._pread(1, position - 1), self._pread(2, position)
        is_behind_bom = position == len(_BOM) and self._pread(len(_BOM), 0) == _BOM
        # A last line without its end may have been read, and got its end later.
        if before != b"\n" and not after.startswith(b"\n") and after != b"\r\n" and not is_behind_bom:
            raise SourceError(
                "the position where reading goes on is in the middle of a line: the input file was changed or replaced",
                where=self._where | {"position": position, "bytes": self._size},
                expected="a file that only grows, by whole lines",
                fix="restore the file, or start the job with a new state directory to read it from the beginning",
            )

    def read(self) -> bytes:
        """Return the next bytes; nothing at the end."""
        chunk = self._pread(CHUNK_BYTES, self._offset)
        self._offset += len(chunk)
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise self._os_error(error, "read to its end") from error
        if (status.st_dev, status.st_ino) != self._identity:
            raise SourceError(
                "the input file was replaced while it was read",
                where=self._where | {"position": self._offset},
                expected="the same file until its end",
                fix="restore the file, then start the job again: it goes on from its last checkpoint",
            )
        if status.st_size < self._offset:
            raise SourceError(
                "the input file became shorter while it was read",
                where=self._where | {"position": self._offset, "bytes": status.st_size},
                expected=f"at least {self._offset} bytes",
                fix="restore the file, then start the job again: it goes on from its last checkpoint",
            )
        return chunk

    def _pread(self, size: int, offset: int) -> bytes:
        try:
            return os.pread(self._fd, size, offset)
        except OSError as error:
            raise self._os_error(error, "read") from error

    @property
    def _where(self) -> dict[str, object]:
        return {"source": JsonlSource.name, "file": self._label}

    def _os_error(self, error: OSError, what: str) -> SourceError:
        fix = {
            errno.ENOENT: f"check the path; relative ones start at {os.getcwd()}",
            errno.EACCES: "give the user of this process the right to read the file",
        }.get(error.errno or 0, "look at the disk and the mount of the file, then start the job again")
        return SourceError(
            f"the input file cannot be {what}: {error.strerror}",
            where=self._where,
            expected="a readable JSON Lines file",
            fix=fix,
        )

    def _wrong_kind(self, *, is_directory: bool) -> SourceError:
        if is_directory:
            fix = f"name the files in it: {self._label.rstrip('/')}/*.jsonl"
        else:
            fix = "for a pipe use the source stdin"
        return SourceError(
            f"the input is {'a directory' if is_directory else 'not a regular file'}",
            where=self._where,
            expected="a JSON Lines file, which can be read again from any position",
            fix=fix,
        )


def _is_meant(match: str, pattern: str) -> bool:
    """Whether a match is input: a file, and no staging unless the pattern asks for it."""
    name, wanted = os.path.basename(match), os.path.basename(pattern)
    return os.path.isfile(match) and (not name.startswith(("_", ".")) or wanted.startswith(name[0]))


def _label(path: str) -> str:
    label = path.replace(os.sep, "/")
    try:
        label.encode()
    except UnicodeEncodeError as error:
        raise SourceError(
            "the name of the input file is not UTF-8, so its position cannot be kept",
            where={"source": JsonlSource.name, "file": ascii(path)},
            expected="a name in UTF-8",
            fix="rename the file",
        ) from error
    return label

"""Files of JSON lines as a source."""

# ruff: noqa: PTH118, PTH116, PTH110, PTH207, PTH112 - a label is the path as given, which Path would rewrite

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import glob
import os
import stat
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from agentflow.api.codecs import JSON
from agentflow.api.durations import duration_ms
from agentflow.connectors.follow.identity import is_of_follow
from agentflow.connectors.lines import RECORD_MAX_BYTES, LineSplitter
from agentflow.core.records import Record
from agentflow.errors import SourceError

if TYPE_CHECKING:
    from agentflow.connectors.follow.follower import Follower

_BLOCK_BYTES = 2**18  # a block of two-byte lines is split without holding the interpreter for long


def _unreadable(path: str, error: OSError) -> SourceError:
    match error:
        case FileNotFoundError():
            what, fix = "the input file does not exist", "Correct `path`, or put the file there."
        case PermissionError():
            what, fix = "the input file may not be read", "Give this user the right to read the file and its directory."
        case IsADirectoryError():
            what, fix = "the input is a directory", f"Name its files by a pattern: {os.path.join(path, '*.jsonl')}"
        case _:
            what, fix = f"the input file cannot be read: {error.strerror}", "Check the disk or the network drive."
    return SourceError(what, where={"file": path}, expected="a file of JSON lines that can be read", fix=fix)


def _changed(path: str, what: str, position: int, expected: str) -> SourceError:
    return SourceError(
        what,
        where={"file": path, "position": position},
        expected=expected,
        fix="Put the original file back (files may only grow), or read it from its beginning in a job of another name.",
    )


def _is_staging(path: str, pattern: str) -> bool:
    """Whether readers skip the file: its name starts with ``_`` and the pattern does not ask for that."""
    return Path(path).name.startswith("_") and not Path(pattern).name.startswith("_")


def _check_name(path: str) -> None:
    """Refuse a name that cannot be kept as a position."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise SourceError(
            "the name of the input file is no UTF-8, so its position cannot be kept",
            where={"file": repr(os.fsencode(path))},
            expected="a name in UTF-8",
            fix="Rename the file.",
        ) from error


def _refuse_followed(positions: Mapping[str, int]) -> None:
    """Refuse to read from the beginning what was followed before."""
    if any(is_of_follow(label) for label in positions):
        raise SourceError(
            "the job has followed its files so far, and would read them again from the beginning",
            expected="follow: true",
            fix="set it again, or read the files in a job of another name",
        )


class _OpenFile:
    """One file being read from a position."""

    def __init__(self, path: str, position: int, record_max_bytes: int) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would wait for its writer
        except OSError as error:
            raise _unreadable(path, error) from error
        try:
            self._opened = os.fstat(self._fd)
            self._check_start(position)
        except BaseException:
            self.close()
            raise
        self._lines = LineSplitter(path, position, record_max_bytes)

    def _check_start(self, position: int) -> None:
        if stat.S_ISDIR(self._opened.st_mode):
            raise _unreadable(self.path, IsADirectoryError())
        if not stat.S_ISREG(self._opened.st_mode):
            raise SourceError(
                "the input is not a regular file",
                where={"file": self.path},
                expected="a file, which can be read again after a failure",
                fix="Read pipes with the source `stdin`.",
            )
        if self._opened.st_size < position:
            expected = f"at least {position} bytes, there are {self._opened.st_size}"
            raise _changed(self.path, "the input file is shorter than its position", position, expected)
        if position:
            # A last line without newline ends at the file's end, so the newline may also follow the position.
            around = os.pread(self._fd, 2, position - 1)
            if around[:1] != b"\n" and around[1:] not in (b"", b"\n", b"\r"):
                raise _changed(self.path, "the input file has changed", position, "the beginning of a line")
            os.lseek(self._fd, position, os.SEEK_SET)

    def read(self) -> list[Record] | None:
        """Return the records of the next block, perhaps none; None at the end of the file."""
        position = self._lines.position
        try:
            block = os.read(self._fd, _BLOCK_BYTES)
            now = os.stat(self.path)
        except FileNotFoundError as error:
            raise _changed(self.path, "the input file disappeared while it was read", position, "the file") from error
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if not os.path.samestat(now, self._opened):
            raise _changed(self.path, "the input file was replaced while it was read", position, "the same file")
        if now.st_size < position + len(block):
            expected = f"at least {position + len(block)} bytes, there are {now.st_size}"
            raise _changed(self.path, "the input file shrank while it was read", position, expected)
        if block:
            return self._lines.feed(block)
        return self._lines.finish() or None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class JsonlSource:
    """Lines of files, in the order of the sorted paths; a file's label is its path, an offset is a byte offset.

    The end of the last file is the end of input; files that grow later are read on by the next run.

    With ``follow`` there is no end: files are read on as they grow, new ones are found, and rotation neither loses nor repeats a line
    (`connectors.follow`). A last line is a record when its newline has come. A directory stands for all its files; none has to be
    there yet; a label is no path then.

    Args:
        path: Path or glob pattern (`**` goes through directories), or several. A pattern finds no names that start with
            ``.`` or ``_``, which are staging.
        record_max_bytes: A longer line is returned with its first ``record_max_bytes + 1`` bytes only.
        follow: Read files on as they grow.
        poll_interval: Look so often (``"1s"``) instead of being told by the system: for network file systems.
        rotate_wait: How long a file is read on that was renamed to what no pattern finds.
    """

    name = "jsonl"
    is_replayable = True
    codec = JSON
    partitions = ()
    idle_timeout_ms = None

    def __init__(
        self,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        record_max_bytes: int = RECORD_MAX_BYTES,
        follow: bool = False,
        poll_interval: timedelta | str | None = None,
        rotate_wait: timedelta | str = "5s",
    ) -> None:
        paths = (path,) if isinstance(path, str | os.PathLike) else path
        self._patterns = tuple(os.fspath(one) for one in paths)
        self._record_max_bytes = record_max_bytes
        self._follower: Follower | None = None
        if poll_interval is not None and not follow:
            raise ValueError("poll_interval is for files that are followed: give follow=True as well")
        if follow:
            from agentflow.connectors.follow.follower import Follower

            self._follower = Follower(
                self._patterns,
                lambda position, _: LineSplitter("", position, record_max_bytes),
                poll_interval_ms=None if poll_interval is None else duration_ms(poll_interval),
                rotate_wait_ms=duration_ms(rotate_wait),
            )
        self._positions: dict[str, int] = {}
        self._paths: deque[str] = deque()
        self._file: _OpenFile | None = None
        self._ready: deque[Record] = deque()
        self._reading: asyncio.Task[list[Record]] | None = None

    async def open(self, positions: Mapping[str, int]) -> None:
        """Find the files and check that each one can be read from its position.

        A position whose file no pattern names any more is ignored: the input was changed on purpose.
        """
        if self._follower is not None:
            await self._follower.open(positions)
            return
        _refuse_followed(positions)
        self._positions = dict(positions)
        self._paths = deque(await asyncio.to_thread(self._find))

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next lines; blank lines are skipped. Blocks are read in a thread."""
        if self._follower is not None:
            return await self._follower.fetch(records_max)
        while not self._ready:
            # A cancelled fetch leaves its block to the next one: nothing is read twice and nothing is lost.
            self._reading = self._reading or asyncio.create_task(asyncio.to_thread(self._read))
            records = await asyncio.shield(self._reading)
            self._reading = None
            if not records:
                return []
            self._ready.extend(records)
        if records_max >= len(self._ready):
            result = list(self._ready)
            self._ready.clear()
            return result
        return [self._ready.popleft() for _ in range(records_max)]

    def barrier(self, positions: Mapping[str, int]) -> Mapping[str, int]:
        """Keep all positions; of followed files those that are there."""
        return positions if self._follower is None else self._follower.barrier(positions)

    async def release(self, positions: Mapping[str, int]) -> None:
        """Go on: a checkpoint has completed."""
        if self._follower is not None:
            await self._follower.release(positions)

    async def close(self) -> None:
        """Close the file."""
        if self._follower is not None:
            await self._follower.close()
        if self._reading is not None:
            with contextlib.suppress(SourceError):
                await self._reading
            self._reading = None
        if self._file is not None:
            self._file.close()
            self._file = None
        self._paths.clear()
        self._ready.clear()

    def _find(self) -> list[str]:
        found: set[str] = set()
        for pattern in self._patterns:
            if glob.has_magic(pattern) and not os.path.exists(pattern):
                # A file that a pattern found earlier must still be there: its rest would be lost without a word.
                known = [path for path in self._positions if fnmatch.fnmatchcase(path, pattern)]
                matches = {*glob.glob(pattern, recursive=True), *known}
                matches = {path for path in matches if not os.path.isdir(path) and not _is_staging(path, pattern)}
                if not matches:
                    raise SourceError(
                        "no file matches the pattern",
                        where={"pattern": pattern},
                        expected="at least one file",
                        fix="Correct `path`, or put the files there.",
                    )
                found |= matches
            else:
                found.add(pattern)
        for path in sorted(found):
            _check_name(path)
            _OpenFile(path, self._positions.get(path, 0), self._record_max_bytes).close()
        return sorted(found)

    def _read(self) -> list[Record]:
        """Return the records of the next block that completes any; empty at the end of the last file."""
        while True:
            if self._file is None:
                if not self._paths:
                    return []
                path = self._paths.popleft()
                self._file = _OpenFile(path, self._positions.get(path, 0), self._record_max_bytes)
            records = self._file.read()
            if records:
                return records
            if records is None:
                self._file.close()
                self._file = None

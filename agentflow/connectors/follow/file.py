"""One followed file: read on from where it was, as long as it is the file that it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from agentflow.connectors.follow.identity import HEAD_BYTES, first_line_digest
from agentflow.connectors.follow.places import FileKey, Found
from agentflow.core.records import FILE_HEADER, Headers, Record

_BLOCK_BYTES = 2**18


class Splitter(Protocol):
    """Turns the blocks of one file into records: what a format is made of (`LineSplitter`).

    Attributes:
        label: The source label of the records that it makes; it is set before the second block.
    """

    label: str

    @property
    def position(self) -> int:
        """Offset behind the last byte that was fed."""
        ...

    @property
    def resume(self) -> int:
        """Offset behind the last record that was complete: another splitter, made for it, goes on there."""
        ...

    def feed(self, block: bytes) -> list[Record]:
        """Return the records that ``block`` completes; what is not complete waits for more. `next_offset` of each is a place to resume."""
        ...


ReadAt = Callable[[int, int], bytes]
"""Reads so many bytes of the file from an offset on; fewer at its end. For formats that need the beginning (the header of CSV)."""
NewSplitter = Callable[[int, ReadAt], Splitter]
"""Makes the splitter of a file that is read from an offset on, which is 0 or a place to resume."""


class FileChanged(Exception):
    """The file is not any more what was read: it was truncated or overwritten, or its path leads to another one."""


class FollowedFile:
    """A file that is read as it grows.

    Args:
        found: Where it is.
        position: Where to go on; 0, or behind a record.
        new_splitter: Makes what splits it.
        label: Its label; empty while it has none, because nothing of it was read.
        head: Its beginning, as far as it is known.
        is_matched: As below.

    Attributes:
        path: Its path when it was last seen; the open file stays the same one when it is renamed.
        status: What the file system said of it then.
        is_matched: A path or pattern still finds it; else it was rotated away, and is read to its end.
        end: Position behind the last record that was read.
        seen_to: Offset behind the last byte that was read.
        quiet_since_s: When it was last seen to have grown, or was rotated away.
    """

    def __init__(
        self,
        found: Found,
        position: int,
        new_splitter: NewSplitter,
        now_s: float,
        label: str = "",
        head: bytes = b"",
        *,
        is_matched: bool = True,
    ) -> None:
        self.path = found.path
        self.status = found.status
        self.label = label
        self.head = head
        self.is_matched = is_matched
        self.end = position
        self.seen_to = position
        self.resume = position
        self.quiet_since_s = now_s
        self._new_splitter = new_splitter
        self._splitter: Splitter | None = None
        self._fd = -1

    @property
    def key(self) -> FileKey:
        """Device and inode."""
        return self.status.st_dev, self.status.st_ino

    @property
    def size(self) -> int:
        """Its size when it was last seen."""
        return self.status.st_size

    @property
    def digest(self) -> str | None:
        """Digest of the first line; None while that is not complete."""
        return first_line_digest(self.head)

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        return self._fd >= 0

    @property
    def is_read(self) -> bool:
        """Whether all that was seen of it is read."""
        return self.seen_to >= self.size

    def give_label(self, label: str) -> None:
        """Name the file; the next records have the label."""
        self.label = label
        if self._splitter is not None:
            self._splitter.label = label

    def see(self, found: Found, now_s: float) -> bool:
        """Take what is seen of it now; return whether it is still what was read of it, else it stays as it was last.

        Raises:
            OSError: It cannot be looked into.
        """
        before, self.status, self.path, self.is_matched = self.status, found.status, found.path, True
        if (before.st_size, before.st_mtime_ns) == (found.status.st_size, found.status.st_mtime_ns):
            return True
        self.quiet_since_s = now_s
        if found.status.st_size >= self.seen_to:
            if not self.head:
                return True
            self.open()
            if self._is_same():
                return True
        self.status = before
        return False

    def see_open(self, now_s: float) -> bool:
        """Look at the open file itself, which no path leads to; return whether it is still what was read of it."""
        before, self.status = self.status, os.fstat(self._fd)
        if before.st_size != self.size:
            self.quiet_since_s = now_s
        if self.is_matched:
            self.is_matched, self.quiet_since_s = False, now_s
        return self.size >= self.seen_to and self._is_same()

    def open(self) -> None:
        """Open it, if it is not.

        Raises:
            FileChanged: Its path leads to another file.
            OSError: It cannot be opened.
        """
        if self._fd >= 0:
            return
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != self.key:
            os.close(fd)
            raise FileChanged
        self._fd = fd

    def look_into(self) -> bytes:
        """Return its beginning, of which at least so much is there as was before.

        Raises:
            FileChanged: Its path leads to another file, or it begins with something else.
            OSError: It cannot be read.
        """
        self.open()
        if not self._is_same():
            raise FileChanged
        return self.head

    def read_at(self, size: int, offset: int) -> bytes:
        """Read so many bytes from an offset on; fewer at its end."""
        self.open()
        return os.pread(self._fd, size, offset)

    def read(self, until: int) -> list[Record]:
        """Return the records of the next block that ends at ``until`` or before; perhaps none.

        Raises:
            FileChanged: It is not what was read of it any more; nothing is read.
            OSError: It cannot be read.
        """
        self.open()
        splitter = self._splitter
        if splitter is None:
            splitter = self._splitter = self._new_splitter(self.resume, self.read_at)
            splitter.label = self.label
        offset = splitter.position
        block = os.pread(self._fd, min(_BLOCK_BYTES, max(0, until - offset)), offset)
        # Looked at behind the read: what was truncated or overwritten before it is not taken for the rest of what was there.
        if not block or os.fstat(self._fd).st_size < offset + len(block) or not self._is_same():
            raise FileChanged
        records = splitter.feed(block)
        self.seen_to, self.resume = splitter.position, splitter.resume
        if records:
            headers: Headers = ((FILE_HEADER, os.fsencode(self.path)),)
            for record in records:
                record.headers = headers
            self.end = records[-1].next_offset
        return records

    def close(self) -> None:
        """Close it; what is not complete is read again when it is opened."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._splitter = None

    def _is_same(self) -> bool:
        """Whether it begins as it did; learns more of its beginning."""
        head = os.pread(self._fd, HEAD_BYTES, 0)
        if not head.startswith(self.head):
            return False
        self.head = head
        return True

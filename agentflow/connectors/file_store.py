"""What file connectors need of the place where files are kept: a directory, or a prefix of an object store.

A file of a store is there whole, or not at all. Outputs are staged first: durable, and under a name that readers skip; then they are
published, whole files at a time, and publishing can be repeated. Names are relative to the store, their parts separated by ``/``.

Methods block, so they belong into a thread, unless they say that they are cheap. Whatever a store cannot do is an `OSError`:

    FileNotFoundError            there is no such file
    PermissionError              this user may not
    BlockingIOError              somebody else owns the place
    errno ESTALE                 the file is not the one any more that was opened
    any other                    may pass when tried again
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import msgspec


class StoredFile(msgspec.Struct, frozen=True):
    """A file as a listing shows it.

    Attributes:
        name: Its name in the store.
        size: Bytes.
        version: Another one when the content is (an ETag); None: the store cannot tell.
    """

    name: str
    size: int
    version: str | None = None


class FileReader(Protocol):
    """An open file. It notices when it is not the file any more that was opened.

    Attributes:
        size: Bytes, when it was opened.
        version: As in `StoredFile`.
        block_bytes: How much is best read at once.
    """

    size: int
    version: str | None
    block_bytes: int

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes from ``offset`` on, fewer than ``length`` at the end of the file only."""
        ...

    def close(self) -> None:
        """Release it; repeatable."""
        ...


class StagingFile(Protocol):
    """A file that is being written, invisible."""

    def write(self, content: bytes | memoryview) -> int:
        """Append content, unsynced; cheap. Returns how much: all of it."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """Yield what was written so far."""
        ...

    def stage(self, name: str) -> str:
        """Make it durable, still invisible; return the staged name, which `FileStore.publish` turns into ``name``."""
        ...

    def discard(self) -> None:
        """Drop what is not staged; repeatable."""
        ...


class FileStore(Protocol):
    """Files in one place. Making one does nothing yet.

    Attributes:
        place: Where it is, as it was given, for messages.
        advice: What to look at when it does not work, for messages.
        part_max_bytes: Size at which a file of outputs should be followed by another one; None: there is none.
    """

    place: str
    advice: str
    part_max_bytes: int | None

    def is_there(self) -> bool:
        """Return whether somebody has written here: for a decided checkpoint whose staging has to be found again."""
        ...

    def acquire(self, owner: str) -> None:
        """Make the place ready for writing, and own it under this name until `release`; several names share a place.

        A directory has one owner, and refuses another one. Of an object store the last one is: the one before learns it from its
        next `StagingFile.stage` or `publish`.
        """
        ...

    def release(self) -> None:
        """Give up what `acquire` took; cheap, repeatable."""
        ...

    def begin(self, prefix: str) -> StagingFile:
        """Begin a file whose staged and final names will begin with ``prefix``; cheap."""
        ...

    def sweep(self, prefix: str, kept: frozenset[str]) -> None:
        """Delete what begins with ``prefix`` and is staged or unfinished, except the staged names in ``kept``."""
        ...

    def publish(self, staged: Sequence[str]) -> list[str]:
        """Give staged files their final names, durably; return those that are not staged (any more)."""
        ...

    def has(self, name: str) -> bool:
        """Return whether there is a file of that name."""
        ...

    def find(self, prefix: str = "") -> list[StoredFile]:
        """Return the files whose name begins with ``prefix``, sorted by name; none whose name, or a folder of it, begins with ``.`` or ``_``."""
        ...

    def open(self, name: str) -> FileReader:
        """Open a file for reading."""
        ...

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a file: when this returns, it is visible, whole and durable. It replaces one of that name."""
        ...

    def copy(self, name: str, to: str) -> None:
        """Make a file available under a second name, without moving it through this process."""
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Delete files; those that are not there are no error."""
        ...

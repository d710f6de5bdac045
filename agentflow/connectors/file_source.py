"""Files as a source: what the formats have in common.

Files are read one after the other, in the order of their sorted paths, in a thread, one block ahead of the job. A file's label is its path.
Where a file may not change, a fingerprint of its content follows, as in ``orders.parquet#5c1f03aa``: an offset in one file means nothing
in another one, and so a file that was replaced between two runs is noticed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

from agentflow.api.codecs import Codec
from agentflow.connectors.file_store import FileReader
from agentflow.connectors.input_files import InputFile, find_inputs
from agentflow.connectors.read_ahead import ReadAhead
from agentflow.connectors.stores import is_url
from agentflow.core.records import Record
from agentflow.errors import SourceError, SourceUnavailable
from agentflow.runtime.settings import ObjectStoreSettings

_HEAD_BYTES = 4096
_TAIL_BYTES = 2**16
_OBJECT_STORE_FIX = (
    "Check the bucket, and endpoint, region and credentials (object-store.*); see that the server answers."
)
_FINGERPRINT = re.compile(r"#[0-9a-f]{8}$")


Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class OpenRows(Protocol):
    """One file being read from a position."""

    def read(self) -> list[Record] | None:
        """Return the records of the next block, perhaps none; None at the end of the file.

        Raises:
            SourceError: The content is not what it should be.
            OSError: The file cannot be read.
        """
        ...


class FileFormat(Protocol):
    """How files become records.

    Attributes:
        kind: What such a file is called, for messages.
        codec: How values are encoded.
        may_grow: A local file may get longer behind what was read of it.
        has_byte_offsets: Offsets are bytes; else they are numbers of rows.
    """

    kind: str
    codec: Codec
    may_grow: bool
    has_byte_offsets: bool

    def open(self, file: FileReader, path: str, label: str, position: int) -> OpenRows:
        """Begin to read a file, at 0 or at a `next_offset` of its records.

        Raises:
            SourceError: The content is not what it should be, or there is no such position in it.
            OSError: The file cannot be read.
        """
        ...


class FileSource:
    """Files of one format.

    Args:
        path: Path or pattern (`**` goes through directories), or several. A pattern finds no names that start with ``.`` or ``_``, which are
            staging. Or URLs of an object store, and patterns of them.
        file_format: Their format.
        store: How object stores are reached.
    """

    name: str
    is_replayable = True
    partitions: Sequence[str] = ()
    idle_timeout_ms: int | None = None

    def __init__(self, path: Paths, file_format: FileFormat, store: ObjectStoreSettings | None = None) -> None:
        paths = (path,) if isinstance(path, str | os.PathLike) else path
        self._patterns = tuple(os.fspath(one) for one in paths)
        self._format = file_format
        self._store = store
        self.codec = file_format.codec
        self._known: dict[str, tuple[str, int]] = {}  # path → label, position
        self._inputs: deque[InputFile] = deque()
        self._open: _OpenFile | None = None
        self._ahead = ReadAhead(self._read)

    async def open(self, positions: Mapping[str, int]) -> None:
        """Find the files and check that those that were read before can be read on.

        A position whose file no pattern names any more is ignored: the input was changed on purpose.

        Raises:
            SourceError: There is no file, or one cannot be read, or has changed.
            SourceUnavailable: An object store does not answer.
        """
        self._known = {self._path_of(label): (label, offset) for label, offset in positions.items()}
        self._inputs = deque(await asyncio.to_thread(self._find))

    async def fetch(self, records_max: int) -> Sequence[Record]:
        """Return the next records."""
        return await self._ahead.fetch(records_max)

    async def close(self) -> None:
        """Close the file."""
        await self._ahead.close()
        if self._open is not None:
            self._open.close()
            self._open = None
        self._inputs.clear()

    def _path_of(self, label: str) -> str:
        return label if self._format.may_grow and not is_url(label) else _FINGERPRINT.sub("", label)

    def _find(self) -> list[InputFile]:
        try:
            inputs = find_inputs(self._patterns, self._known, self._store, may_grow=self._format.may_grow)
        except ConnectionError as error:
            raise SourceUnavailable(
                f"the input files cannot be listed: {error.strerror}",
                where={"path": ", ".join(self._patterns)},
                expected="an object store that answers",
                fix=_OBJECT_STORE_FIX,
            ) from error
        except OSError as error:
            raise SourceError(
                f"the input files cannot be listed: {error.strerror}",
                where={"path": ", ".join(self._patterns)},
                expected="a bucket that this user may list",
                fix=_OBJECT_STORE_FIX,
            ) from error
        for found in inputs:
            self._opened(found, is_checked_only=True).close()
        return inputs

    def _opened(self, found: InputFile, *, is_checked_only: bool = False) -> _OpenFile:
        label, position = self._known.get(found.path, (None, 0))
        return _OpenFile(found, self._format, label, position, is_checked_only=is_checked_only)

    def _read(self) -> list[Record]:
        """Return the records of the next block that completes any; empty at the end of the last file."""
        while True:
            if self._open is None:
                if not self._inputs:
                    return []
                self._open = self._opened(self._inputs.popleft())
            records = self._open.read()
            if records:
                return records
            if records is None:
                self._open.close()
                self._open = None


class _OpenFile:
    """One file being read.

    Args:
        found: The file.
        file_format: Its format.
        known_label: The label that it had before; None: it was not read before.
        position: Where to go on.
        is_checked_only: It is only asked whether the file can be opened.
    """

    def __init__(
        self,
        found: InputFile,
        file_format: FileFormat,
        known_label: str | None,
        position: int,
        *,
        is_checked_only: bool,
    ) -> None:
        self._path = found.path
        self._format = file_format
        self._rows: OpenRows | None = None
        try:
            self._file = found.open()
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            if known_label is not None or not is_checked_only:
                self._begin(known_label, position, is_checked_only=is_checked_only)
        except OSError as error:
            self.close()
            raise self._unreadable(error) from error
        except BaseException:
            self.close()
            raise

    def _begin(self, known_label: str | None, position: int, *, is_checked_only: bool) -> None:
        label = self._path
        fingerprint = self._fingerprint()
        if fingerprint is not None:
            label += f"#{zlib.crc32(fingerprint):08x}"
        if known_label not in (None, label):
            raise self._changed("the input file has changed since it was read", known_label)
        is_read = self._format.has_byte_offsets and position == self._file.size
        if self._file.version is not None and known_label is not None and (is_read or is_checked_only):
            return  # an object that is the same has its position: no request for what is asked only, or read already
        self._rows = self._format.open(self._file, self._path, label, position)

    def _fingerprint(self) -> bytes | None:
        """Return what tells this content from another one; None: it may grow."""
        file = self._file
        if file.version is not None:
            return file.version.encode()
        if self._format.may_grow:
            return None
        tail = max(0, file.size - _TAIL_BYTES)
        return b"%d" % file.size + file.read(0, _HEAD_BYTES) + file.read(tail, _TAIL_BYTES)

    def read(self) -> list[Record] | None:
        """Return the records of the next block, perhaps none; None at the end of the file."""
        try:
            return None if self._rows is None else self._rows.read()
        except OSError as error:
            raise self._unreadable(error) from error

    def close(self) -> None:
        self._file.close()

    def _changed(self, what: str, label: str | None = None) -> SourceError:
        return SourceError(
            what,
            where={"file": self._path, **({"label": label} if label else {})},
            expected="the same content" if not self._format.may_grow else "the same content, or more of it",
            fix="Put the original file back, or read the files from their beginning in a job of another name.",
        )

    def _unreadable(self, error: OSError) -> SourceError:
        """Return the error that says why the file cannot be read."""
        if error.errno == errno.ESTALE:
            return self._changed("the input file was changed or replaced while it was read")
        what, fix = f"the input file cannot be read: {error.strerror or error}", "Check the disk or the network drive."
        kind = SourceError
        match error:
            case FileNotFoundError() if self._rows is not None:
                return self._changed("the input file disappeared while it was read")
            case FileNotFoundError():
                what, fix = "the input file does not exist", "Correct `path`, or put the file there."
            case PermissionError():
                what, fix = (
                    "the input file may not be read",
                    "Give this user the right to read the file and its directory.",
                )
            case IsADirectoryError():
                what, fix = "the input is a directory", f"Name its files by a pattern: {self._path.rstrip('/')}/*"
            case OSError(errno=errno.ESPIPE):
                what, fix = "the input is not a regular file", "Read pipes with the source `stdin`."
            case ConnectionError():
                kind = SourceUnavailable
                fix = _OBJECT_STORE_FIX
        return kind(what, where={"file": self._path}, expected=f"{self._format.kind} that can be read", fix=fix)


def shorter_than_position(path: str, position: int, unit: str, size: int) -> SourceError:
    """Return the error of a file that has less in it than was read of it before."""
    return SourceError(
        "the input file is shorter than its position",
        where={"file": path, "position": position},
        expected=f"at least {position} {unit}, there are {size}",
        fix="Put the original file back, or read the files from their beginning in a job of another name.",
    )


def check_start(file: FileReader, path: str, position: int) -> None:
    """Refuse a byte offset at which no line begins.

    Raises:
        SourceError: The file is shorter, or has changed.
        OSError: It cannot be read.
    """
    if not position:
        return
    if position > file.size:
        raise shorter_than_position(path, position, "bytes", file.size)
    # A last line without newline ends at the file's end, so the newline may also follow the position.
    around = file.read(position - 1, 2)
    if around[:1] != b"\n" and around[1:] not in (b"", b"\n", b"\r"):
        raise SourceError(
            "the input file has changed since it was read",
            where={"file": path, "position": position},
            expected="the beginning of a line at its position",
            fix="Put the original file back (files may only grow), or read it from its beginning in a job of another name.",
        )

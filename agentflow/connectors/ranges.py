"""Files of a store as Python file objects, for libraries that read and write those."""

from __future__ import annotations

import io

from agentflow.connectors.file_store import FileReader, StagingFile


class RangeFile(io.RawIOBase):
    """A `FileReader` as a file that can be read anywhere. Closing it leaves the reader open."""

    def __init__(self, reader: FileReader) -> None:
        self._reader = reader
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._reader.size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def size(self) -> int:
        """Return all bytes."""
        return self._reader.size

    def read(self, size: int | None = -1) -> bytes:
        """Return the next bytes, fewer at the end only."""
        rest = max(0, self._reader.size - self._at)
        length = rest if size is None or size < 0 else min(size, rest)
        content = self._reader.read(self._at, length) if length else b""
        self._at += len(content)
        return content


class OutputFile(io.RawIOBase):
    """A `StagingFile` as a file that is written from its beginning to its end. Closing it leaves the staging file open."""

    def __init__(self, file: StagingFile) -> None:
        self._file = file
        self._at = 0

    def writable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Return how much was written."""
        return self._at

    def write(self, content: bytes | memoryview) -> int:  # type: ignore[override]  # any buffer, in typeshed's words
        """Append content."""
        size = self._file.write(content)
        self._at += size
        return size

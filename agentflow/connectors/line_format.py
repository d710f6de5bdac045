"""Lines of JSON as a `FileFormat`."""

from __future__ import annotations

from agentflow.api.codecs import JSON
from agentflow.connectors.file_source import check_start
from agentflow.connectors.file_store import FileReader
from agentflow.connectors.lines import LineSplitter
from agentflow.core.records import Record


class LineFormat:
    """One value per line.

    Args:
        record_max_bytes: A longer line is returned with its first ``record_max_bytes + 1`` bytes only.
    """

    kind = "a file of JSON lines"
    codec = JSON
    may_grow = True
    has_byte_offsets = True

    def __init__(self, record_max_bytes: int) -> None:
        self._record_max_bytes = record_max_bytes

    def open(self, file: FileReader, path: str, label: str, position: int) -> _Lines:
        """See `FileFormat`."""
        check_start(file, path, position)
        return _Lines(file, LineSplitter(label, position, self._record_max_bytes))


class _Lines:
    """The lines of one file: `OpenRows`."""

    def __init__(self, file: FileReader, lines: LineSplitter) -> None:
        self._file = file
        self._lines = lines

    def read(self) -> list[Record] | None:
        block = self._file.read(self._lines.position, self._file.block_bytes)
        return self._lines.feed(block) if block else self._lines.finish() or None

"""Lines of bytes as records: what files and standard input have in common.

Splitting is done per block, not per line; the work per record is one comparison and one constructor.
"""

from __future__ import annotations

from itertools import accumulate

from agentflow.core.records import Record

RECORD_MAX_BYTES = 8 * 2**20
_BOM = b"\xef\xbb\xbf"


class LineSplitter:
    """Turn blocks of one byte stream into records, one per line that is not blank.

    Memory is bounded by one block and ``record_max_bytes``: of a longer line only the first ``record_max_bytes + 1``
    bytes are kept, enough to see that it is too long. A byte order mark at offset 0 and a carriage return before the
    newline are not part of the value.

    Args:
        label: The source label of the records.
        position: Byte offset of the first block.
        record_max_bytes: Longest value, in bytes.

    Attributes:
        label: As given; it may change between two blocks.
        position: Offset behind the last byte that was fed.
    """

    def __init__(self, label: str, position: int, record_max_bytes: int) -> None:
        self.label = label
        self._kept_max = record_max_bytes + 1
        self._start = position  # offset of the line that is not complete yet
        self._begun = bytearray()  # its first bytes, at most _kept_max
        self.position = position

    @property
    def resume(self) -> int:
        """Offset of the line that is not complete yet: another splitter can go on there."""
        return self._start

    def feed(self, block: bytes) -> list[Record]:
        """Return the records that ``block`` completes."""
        first = block.find(b"\n")
        base = self.position
        self.position += len(block)
        if first < 0:
            self._keep(block)
            return []
        records = []
        body = 0
        if self._start < base:
            self._keep(block[:first])
            records = self._last_begun(base + first, base + first + 1)
            body = first + 1
        last = block.rfind(b"\n")
        if body <= last:
            records += self._split(block[body:last], base + body)
        self._start = base + last + 1
        self._begun.clear()
        self._keep(block[last + 1 :])
        return records

    def finish(self) -> list[Record]:
        """Return the last line, if it has no newline."""
        records = self._last_begun(self.position, self.position) if self._start < self.position else []
        self._begun.clear()
        self._start = self.position
        return records

    def _keep(self, part: bytes) -> None:
        missing = self._kept_max - len(self._begun)
        if missing > 0:
            self._begun += part[:missing]

    def _last_begun(self, end: int, next_offset: int) -> list[Record]:
        value = bytes(self._begun)
        if end - self._start == len(value):  # a shortened line ends anywhere, its last byte is no line end
            value = value.removesuffix(b"\r")
        if self._start == 0:
            value = value.removeprefix(_BOM)
        return [Record(self.label, self._start, next_offset, value)] if value and not value.isspace() else []

    def _split(self, body: bytes, base: int) -> list[Record]:
        lines = body.split(b"\n")
        ends = list(accumulate([len(line) + 1 for line in lines], initial=base))
        if b"\r\n" in body or body.endswith(b"\r"):
            lines = [line.removesuffix(b"\r") for line in lines]
        if base == 0:
            lines[0] = lines[0].removeprefix(_BOM)
        if len(body) > self._kept_max:
            lines = [line[: self._kept_max] for line in lines]
        label = self.label
        return [
            Record(label, start, end, line)
            for line, start, end in zip(lines, ends, ends[1:], strict=False)
            if line and not line.isspace()
        ]

"""Cuts a stream of bytes into records, one per line.

It does no I/O: chunks go in, records come out, so files and pipes share it and it is tested without either.

- A line ends with ``\\n`` or ``\\r\\n``; the last one may end with the input. Lines of white space alone are skipped.
- The position of a record is the byte offset of its first byte; the next position is behind the line's end.
- A line above ``record_max`` is never held whole: its record has the first ``record_max + 1`` bytes, so that whoever judges
  records sees that it is too large, and reading goes on behind its real end.

Complexity: about 0.2 µs per line. Only the lines that are asked for become records, so that a chunk of very short lines
does not stop the event loop for long.
"""

from __future__ import annotations

from agentflow.core.records import Record

RECORD_MAX_BYTES = 8 * 2**20


class LineCutter:
    """Turns chunks of one stream into records.

    Args:
        source: Label of the records.
        offset: Position of the first byte that will be fed.
        record_max: Longest line in bytes, without its end, that is returned whole.
    """

    def __init__(self, source: str, offset: int, record_max: int) -> None:
        if record_max < 1:
            msg = f"record_max is {record_max}; expected at least 1 byte"
            raise ValueError(msg)
        self._source = source
        self._record_max = record_max
        self._offset = offset  # of the first line that is not taken
        self._ready: Record | None = None  # a long or last line; comes before `_lines`
        self._lines: list[bytes] = []  # complete lines without "\n"
        self._taken = 0  # how many of `_lines` are records by now
        self._is_plain = True  # no line of `_lines` can end with "\r" or be too long
        self._parts: list[bytes] = []  # beginning of the line that is not complete
        self._parts_bytes = 0
        self._head: bytes | None = None  # of a line that is too long, while its rest is read; None: no such line
        self._head_length = 0  # how long that line is so far

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes. Only when `take` has nothing left."""
        assert self._taken == len(self._lines) and self._ready is None, "lines would be lost"
        self._lines, self._taken = [], 0
        if self._head is not None:
            end = chunk.find(b"\n")
            if end < 0:
                self._head_length += len(chunk)
                return
            self._end_long_line(self._head_length + end, len(b"\n"))
            chunk = chunk[end + 1 :]
        end = chunk.rfind(b"\n")
        if end >= 0:
            body = b"".join([*self._parts, chunk[:end]]) if self._parts else chunk[:end]
            self._lines = body.split(b"\n")
            self._is_plain = len(body) <= self._record_max and b"\r" not in body
            self._parts, self._parts_bytes = [], 0
            chunk = chunk[end + 1 :]
        if chunk:
            self._parts.append(chunk)
            self._parts_bytes += len(chunk)
            if self._parts_bytes > self._record_max + 1:  # one more: it may be the "\r" of a line that fits
                self._head = b"".join(self._parts)[: self._record_max + 1]
                self._head_length = self._parts_bytes
                self._parts, self._parts_bytes = [], 0

    def finish(self) -> None:
        """Say that the input has ended: what is left is the last line. Only when `take` has nothing left."""
        assert self._taken == len(self._lines) and self._ready is None, "lines would be lost"
        if self._head is not None:
            self._end_long_line(self._head_length, 0)
        elif self._parts:
            line = b"".join(self._parts)
            self._parts, self._parts_bytes = [], 0
            start, self._offset = self._offset, self._offset + len(line)
            self._ready = self._record(start, self._offset, line)

    def take(self, records_max: int) -> list[Record]:
        """Return up to ``records_max`` records; none when more input is needed."""
        if self._ready is not None:
            ready, self._ready = self._ready, None
            return [ready]
        source, records = self._source, []
        while not records and self._taken < len(self._lines):
            lines = self._lines[self._taken : self._taken + records_max]
            self._taken += len(lines)
            offset = self._offset
            if self._is_plain and all(lines) and True not in map(bytes.isspace, lines):
                # Positional arguments are evaluated from left to right: the start, then the end, which is the next start.
                records = [Record(source, offset, (offset := offset + len(line) + 1), line) for line in lines]
            else:
                for line in lines:
                    start, offset = offset, offset + len(line) + 1
                    record = self._record(start, offset, line)
                    if record is not None:
                        records.append(record)
            self._offset = offset
        return records

    def _end_long_line(self, length: int, newline: int) -> None:
        assert self._head is not None
        start, self._offset = self._offset, self._offset + length + newline
        self._ready = Record(self._source, start, self._offset, self._head)
        self._head, self._head_length = None, 0

    def _record(self, start: int, end: int, line: bytes) -> Record | None:
        if not line or line.isspace():
            return None
        value = line[:-1] if line.endswith(b"\r") else line
        return Record(self._source, start, end, value[: self._record_max + 1])

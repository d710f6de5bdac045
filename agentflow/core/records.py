"""What flows through an operator: records in, events as bytes inside.

The core never holds a user's object: a record's value, an event's attributes and a memory value are bytes, and every
action task gets a freshly decoded copy. So a live run, a retry and a recovered run see the same input, and a snapshot
needs no encoding of its own.
"""

from __future__ import annotations

import msgspec

Headers = tuple[tuple[str, bytes], ...]
"""Names and values, in order; a name may come twice."""
ORIGIN_HEADER = "agentflow-origin"
"""Of a record that comes through a repartition topic: its source position before."""
ORIGINAL_KEY_HEADER = "agentflow-original-key"
"""And its record key before; missing where it had none."""
FIRST_POSITION_HEADER = "agentflow-first-position"
"""Of a record that was sent back as a dead letter: where it lay first, ``topic/partition@offset``. It stays when it fails again."""

FILE_HEADER = "agentflow-file"
"""Of a record of a file that is followed: the file's path when it was read. Its label is none, since files are renamed."""


class Record(msgspec.Struct, gc=False):
    """One record of a source, undecoded.

    Attributes:
        source: Position label without the offset (``topic/partition``; a file's path). With ``offset`` it names the run.
        offset: Position of this record in ``source`` (Kafka offset; byte offset of a line).
        next_offset: Where reading goes on behind this record.
        value: The value's bytes, in the source's codec; None: the record has none (a tombstone), the input is None.
        key: The source's own key bytes; None where it has none.
        timestamp_ms: Event time in epoch milliseconds; None where it has none.
        headers: Header names and values, in order.
        fault: Why it has no value in the source's codec: a row that does not fit its columns. ``value`` is its bytes as they are; it is
            rejected. None: nothing is wrong with it.
    """

    source: str
    offset: int
    next_offset: int
    value: bytes | None
    key: bytes | None = None
    timestamp_ms: int | None = None
    headers: Headers = ()
    fault: str | None = None

    @property
    def run_id(self) -> str:
        """The id of the run this record starts."""
        return f"{self.source}/{self.offset}"

    @property
    def first_position(self) -> str:
        """Where the record lay before it was sent back, and before a repartition topic: the same for every run of it."""
        headers = dict(self.headers)
        first = headers.get(FIRST_POSITION_HEADER) or headers.get(ORIGIN_HEADER)
        return self.run_id if first is None else first.decode("utf-8", "replace").replace("@", "/")

    @property
    def user_headers(self) -> Headers:
        """The headers without those of a repartition topic."""
        return tuple(header for header in self.headers if header[0] not in (ORIGIN_HEADER, ORIGINAL_KEY_HEADER))


class ErrorReport(msgspec.Struct, frozen=True, gc=False):
    """An error as data: what the failure policy and a dead letter need of it.

    Attributes:
        type: Class name of the error (``KeyError``).
        message: Its text.
        is_retryable: False where a retry cannot help (bad input, limits).
        traceback: The user's part of the traceback; empty where there is none.
    """

    type: str
    message: str
    is_retryable: bool = True
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type

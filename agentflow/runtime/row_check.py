"""Whether stored rows and records can be read: what a check of a savepoint asks of each one. No user code is needed."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agentflow.api.events import EventType
from agentflow.api.memory_codec import decode_value, is_object_mark
from agentflow.core.delta import INCARNATION_NAME, JOURNAL_NAME, POSITIONS_NAME, StoredRow, Table, decode_positions
from agentflow.core.epoch import META_NAME, decode_meta
from agentflow.core.journal_records import (
    ADMITTED,
    ATTEMPT,
    COMPLETION,
    ERROR,
    FAILURE,
    INTENT,
    RESULT,
    WAIT,
    WAITED,
    RecordKind,
    decode_completion,
    decode_failure,
    decode_record,
)
from agentflow.core.results import decode_result
from agentflow.core.signals import decode_signal
from agentflow.core.stored_runs import RunEntry, decode_entry
from agentflow.core.timers import decode_timer
from agentflow.core.waits import decode_outcome, decode_wait
from agentflow.errors import StateError
from agentflow.runtime.step_values import describe_error

_decode_any = msgspec.msgpack.Decoder(strict=False).decode
_OF_META: dict[str, Callable[[bytes], object]] = {
    META_NAME: decode_meta,
    POSITIONS_NAME: decode_positions,
    INCARNATION_NAME: msgspec.msgpack.Decoder(str).decode,
    JOURNAL_NAME: msgspec.msgpack.Decoder(int).decode,
}
_OF_RECORD: dict[int, Callable[[bytes], object]] = {
    INTENT: _decode_any,
    RESULT: _decode_any,
    ERROR: describe_error,
    COMPLETION: decode_completion,
    FAILURE: decode_failure,
    WAIT: decode_wait,
    ATTEMPT: decode_wait,
    WAITED: decode_outcome,
    ADMITTED: lambda payload: _read_entry(decode_entry(payload)),
}


def row_problem(table: Table, row: StoredRow) -> str:
    """Return why a row cannot be read; empty when it can."""
    return _problem(lambda: _READERS[table](row))


def record_problem(record: bytes) -> str:
    """Return why a record of the journal cannot be read; empty when it can."""
    return _problem(lambda: _read_record(record))


def _problem(read: Callable[[], object]) -> str:
    try:
        read()
    except StateError as error:
        return error.what
    except (ValueError, TypeError, IndexError) as error:  # msgspec's errors are ValueErrors
        return f"{type(error).__name__}: {error}"
    return ""


def _read_memory(row: StoredRow) -> None:
    _decode_any(row.key)
    if not is_object_mark(row.value):
        decode_value(row.value)


def _read_run(row: StoredRow) -> None:
    _decode_any(row.key)
    _read_entry(decode_entry(row.value))


def _read_entry(entry: RunEntry) -> None:
    for task in entry.tasks:
        if task.payload is not None and task.event_type != EventType.InputEvent:  # that one is as the source encodes it
            _decode_any(task.payload)
    for value in (entry.sensory or {}).values():
        if value is not None and not is_object_mark(value):
            decode_value(value)


def _read_timer(row: StoredRow) -> None:
    _decode_any(row.key)
    _decode_any(decode_timer(row.value).payload)


def _read_meta(row: StoredRow) -> None:
    read = _OF_META.get(row.name)
    if read is not None:  # others are of a newer version, which says so in its format
        read(row.value)


def _read_signal(row: StoredRow) -> None:
    _decode_any(row.key)
    _decode_any(decode_signal(row.value).value)


def _read_record(value: bytes) -> None:
    record = decode_record(value)
    _decode_any(record.key)
    kind = RecordKind(record.kind)
    if kind in _OF_RECORD:
        _OF_RECORD[kind](record.payload)


_READERS: dict[Table, Callable[[StoredRow], object]] = {
    Table.MEMORY: _read_memory,
    Table.RUNS: _read_run,
    Table.TIMERS: _read_timer,
    Table.META: _read_meta,
    Table.STEPS: lambda row: _read_record(row.value),
    Table.SIGNALS: _read_signal,
    Table.RESULTS: lambda row: decode_result(row.value),  # its outputs are as the sink encodes them
}

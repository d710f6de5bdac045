"""From records of a source to inputs of the first operator."""

from __future__ import annotations

from agentflow.api.encoding import text_of
from agentflow.core.inputs import RecordReceived, RecordRejected
from agentflow.core.records import ErrorReport, Record
from agentflow.errors import DecodeError, MissingKey, RecordTooLarge
from agentflow.runtime.codecs import KeyReader, TimestampReader


class RecordReader:
    """Checks records, and reads their key and their event time.

    Args:
        keys: Reads keys.
        timestamps: Reads event times; None: a record has the time that its source gives it.
        record_max: Most bytes of a value.
    """

    def __init__(self, keys: KeyReader, timestamps: TimestampReader | None, record_max: int) -> None:
        self._read_key = keys.read
        self._timestamps = timestamps
        self._record_max = record_max

    def read(self, record: Record) -> RecordReceived | RecordRejected:
        """Return the record with its key, or why it cannot be processed."""
        try:
            if record.value is not None and len(record.value) > self._record_max:
                raise _too_large(record, self._record_max)
            if record.fault is not None:
                raise DecodeError(record.fault)
            if self._timestamps is not None:
                record.timestamp_ms = self._timestamps.read(record)
            return RecordReceived(record, self._read_key(record))
        except (DecodeError, MissingKey, RecordTooLarge) as error:
            return RecordRejected(record, ErrorReport(type(error).__name__, error.what, is_retryable=False))
        except Exception as error:  # noqa: BLE001 (key-by is user code)
            return without_key(record, error)


def without_key(record: Record, error: Exception) -> RecordRejected:
    """Return that a record cannot be processed, because a user's function finds no key in it."""
    return RecordRejected(
        record, ErrorReport(type(error).__name__, f"key-by failed: {text_of(error)}", is_retryable=False)
    )


def _too_large(record: Record, record_max: int) -> RecordTooLarge:
    return RecordTooLarge(
        f"the record has more than {record_max:,} bytes",
        where={"record": record.run_id},
        expected="at most record-max",
        fix="raise record-max, or configure a dead-letter sink",
    )

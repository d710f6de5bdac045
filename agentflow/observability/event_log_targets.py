"""Where records of the event log go besides files: standard output, OpenTelemetry, functions of the user."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, BinaryIO

import msgspec

from agentflow.api.executions import ExecutionStatus
from agentflow.errors import ConfigError, NotConfigured
from agentflow.observability.event_log_buffer import Tell
from agentflow.observability.logs import log_event
from agentflow.observability.otlp import OtlpSender

EventListener = Callable[[dict[str, Any]], object]
"""Called with each record, as it is written: decoded, redacted, and its own to change."""
_TOLD_EVERY_S = 10.0


class StdoutLines:
    """Standard output, a line for each record."""

    name = "stdout"

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self._stream: BinaryIO | _TextAsBytes = stream or getattr(sys.stdout, "buffer", None) or _TextAsBytes()

    def write(self, subtask: int, lines: Sequence[bytes]) -> None:  # noqa: ARG002 (the port)
        """Write the lines."""
        for some in lines:
            self._stream.write(some)
        self._stream.flush()

    def tend(self) -> None:
        """Nothing is due."""

    def close(self) -> None:
        """Leave it open: it is the process's."""


class _TextAsBytes:
    """Standard output where somebody has put a stream of texts in its place, as notebooks and tests do."""

    def write(self, line: bytes) -> None:
        sys.stdout.write(line.decode())

    def flush(self) -> None:
        sys.stdout.flush()


def listener_name(listener: EventListener) -> str:
    """Return the name of a listener, for messages."""
    name = getattr(listener, "__qualname__", None) or type(listener).__name__
    return f"{getattr(listener, '__module__', '?')}:{name}"


def check_listener(listener: object) -> None:
    """Refuse what cannot be called with a record.

    Raises:
        TypeError: It is no function, or a coroutine function, which nobody would await.
    """
    if not callable(listener):
        msg = f"an event listener is a function of a record, not {type(listener).__name__}"
        raise TypeError(msg)
    if inspect.iscoroutinefunction(listener) or inspect.iscoroutinefunction(getattr(listener, "__call__", None)):  # noqa: B004 (looked at, not tested)
        msg = f"event listener {listener_name(listener)} is a coroutine function; listeners are called in a thread, in order: make it a def"
        raise TypeError(msg)


class Listeners:
    """Functions of the user, called with each record in turn; what one of them raises is counted, and the others are called.

    Attributes:
        failures: Name of a listener → how many of its calls have raised.
    """

    name = "listeners"

    def __init__(self, listeners: Sequence[EventListener], tell: Tell) -> None:
        self._listeners = [(listener_name(one), one) for one in listeners]
        self._tell = tell
        self.failures: dict[str, int] = {}
        self._told: dict[str, float] = {}

    def write(self, subtask: int, lines: Sequence[bytes]) -> None:  # noqa: ARG002 (the port)
        """Call every listener with every record."""
        for line in records_of(lines):
            for name, listener in self._listeners:
                try:
                    listener(msgspec.json.decode(line))
                except Exception as error:  # noqa: BLE001 (the edge to user code)
                    self._count(name, error)

    def tend(self) -> None:
        """Nothing is due."""

    def close(self) -> None:
        """Nothing to release."""

    def _count(self, name: str, error: Exception) -> None:
        self.failures[name] = self.failures.get(name, 0) + 1
        now = time.monotonic()
        if now - self._told.get(name, -_TOLD_EVERY_S) >= _TOLD_EVERY_S:
            self._told[name] = now
            text = f"{type(error).__name__}: {error}".split("\n")[0]
            self._tell("event listener failed", {"listener": name, "error": text, "failures": self.failures[name]})


def records_of(lines: Sequence[bytes]) -> Iterator[bytes]:
    """Iterate over single records, without line ends."""
    for some in lines:
        yield from some.removesuffix(b"\n").split(b"\n")


class OtelLogs:
    """OpenTelemetry log records over OTLP/HTTP: the body has the attributes of the event, the attributes everything else.

    Args:
        job: Name of the job.
        endpoint: Base URL of the collector; None: as OpenTelemetry's variables say.

    Raises:
        NotConfigured: The extra `telemetry` is not installed.
        ConfigError: The endpoint is no URL, or a variable says something that cannot be done.
    """

    name = "otel"
    _BATCH = 512

    def __init__(self, job: str, endpoint: str | None) -> None:
        try:
            from opentelemetry._logs import LogRecord, SeverityNumber
            from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
            from opentelemetry.sdk._logs import ReadableLogRecord
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope

            from agentflow.observability.otel import resource_of
        except ImportError as error:
            raise NotConfigured(
                f"event-log.target: otel needs a package that is not installed ({error.name})",
                fix="pip install 'agentflow[telemetry]'",
            ) from error
        try:
            self._sender = OtlpSender("logs", endpoint)
        except (ValueError, OSError) as error:  # a wrong variable; a certificate that cannot be read
            raise ConfigError([f"otlp.endpoint, or OpenTelemetry's variables: {error}"]) from error
        self._encode = encode_logs
        self._told_at = -_TOLD_EVERY_S
        self._new_record, self._readable = LogRecord, ReadableLogRecord
        self._resource = resource_of(job)
        self._scope = InstrumentationScope("agentflow.event_log")
        self._severities = {
            ExecutionStatus.FAILED: SeverityNumber.ERROR,
            ExecutionStatus.DEAD_LETTERED: SeverityNumber.ERROR,
            ExecutionStatus.RETRYING: SeverityNumber.WARN,
            ExecutionStatus.SKIPPED: SeverityNumber.WARN,
            ExecutionStatus.CANCELLED: SeverityNumber.WARN,
        }
        self._normal = SeverityNumber.INFO

    def write(self, subtask: int, lines: Sequence[bytes]) -> None:
        """Post the records, once: who calls this asks again, and stops asking when the job ends.

        Raises:
            OSError: The collector has not taken them.
        """
        batch = [record for line in records_of(lines) if (record := self._read(subtask, line)) is not None]
        for start in range(0, len(batch), self._BATCH):
            refusal = self._sender.send(self._encode(batch[start : start + self._BATCH]).SerializeToString())
            if refusal is not None:
                msg = f"the collector has not taken the records: {refusal.reason}"
                raise OSError(msg)

    def _read(self, subtask: int, line: bytes) -> Any:  # noqa: ANN401 (a class of the SDK)
        """Return a record as the SDK has it; None, and a line in the log, for one that cannot be read: it must not keep others back."""
        try:
            return self._record(subtask, msgspec.json.decode(line))
        except (msgspec.MsgspecError, AttributeError, KeyError, TypeError, ValueError) as error:
            now = time.monotonic()
            if now - self._told_at >= _TOLD_EVERY_S:
                self._told_at = now
                text = f"{type(error).__name__}: {error}".split("\n")[0]
                log_event("event log left out a record", "warning", target=self.name, error=text)
            return None

    def _record(self, subtask: int, record: dict[str, Any]) -> Any:  # noqa: ANN401 (a class of the SDK)
        attributes: dict[str, Any] = {"agentflow.subtask": subtask}
        for name, attribute in _OTEL_ATTRIBUTES.items():
            value = record.get(name)
            if value is not None:
                attributes[attribute] = value if isinstance(value, str | int | float | bool) else _json(value)
        severity = self._severities.get(record.get("status", ""), self._normal)
        at_ns = _epoch_ns(record["timestamp"])
        log_record = self._new_record(
            timestamp=at_ns,
            observed_timestamp=at_ns,
            severity_number=severity,
            severity_text=severity.name,
            body=_otel_value(record["eventAttributes"]),
            attributes=attributes,
            event_name=record["eventType"],
        )
        return self._readable(log_record, self._resource, self._scope)

    def tend(self) -> None:
        """Nothing is due."""

    def close(self) -> None:
        """Nothing is open between requests."""


_OTEL_ATTRIBUTES = {
    "inputRunId": "agentflow.run.id",
    "businessKey": "agentflow.key",
    "agentName": "agentflow.agent.name",
    "incarnation": "agentflow.incarnation",
    "executionId": "agentflow.execution.id",
    "parentExecutionId": "agentflow.execution.parent.id",
    "entityType": "agentflow.entity.type",
    "entityName": "agentflow.entity.name",
    "entityMetadata": "agentflow.entity.metadata",
    "eventId": "agentflow.event.id",
    "upstreamEventId": "agentflow.event.upstream.id",
    "upstreamActionName": "agentflow.event.upstream.action",
    "status": "agentflow.status",
    "problemCategory": "agentflow.problem.category",
    "logLevel": "agentflow.log.level",
}


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _otel_value(value: Any) -> Any:  # noqa: ANN401 (any JSON)
    """Return a value that OTLP has: without null, and with integers of 64 bits."""
    if isinstance(value, dict):
        return {name: _otel_value(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_otel_value("null" if inner is None else inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return str(value)
    return value


def _epoch_ns(timestamp: str) -> int:
    moment = datetime.fromisoformat(timestamp)
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1_000

"""Log lines: structlog for the engine and for ``ctx.logger``, the standard library's for everybody else.

Only a command configures this. Importing it changes nothing: in an embedding service lines go to its own `logging`
(`agentflow.runtime.logs`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec
import structlog

from agentflow.core.effects import DeadLetter
from agentflow.runtime.logs import logger_of, take_lines
from agentflow.runtime.redaction import Redaction

if TYPE_CHECKING:
    from agentflow.core.effects import EmitRecord
    from agentflow.runtime.ports import Guarantee, Sink, Staged

EventDict = MutableMapping[str, Any]
_COLORS = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "31;1"}
_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+/:,@%#()*")
_FIRST = ("timestamp", "level", "event")


class TextStream(Protocol):
    """Where lines go: standard error, or the progress line that makes room for them."""

    def write(self, text: str, /) -> Any: ...  # noqa: ANN401, D102
    def flush(self) -> Any: ...  # noqa: ANN401, D102


def configure_logs(
    *,
    format: Literal["console", "json"],  # noqa: A002 (as the flag)
    level: str,
    stream: TextStream,
    is_colored: bool = False,
) -> None:
    """Send all log lines of the process to ``stream``, one line each (a traceback follows in lines of its own).

    Other packages' lines are shown from ``warning``, at level ``debug`` all of them.
    """
    least = logging.getLevelNamesMapping()[level.upper()]
    render = render_json if format == "json" else ConsoleLines(is_colored=is_colored)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _add_timestamp,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=lambda *_: _Lines(stream),
        cache_logger_on_first_use=True,
    )
    take_lines(structlog.get_logger, least)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        )
    )
    handler.addFilter(_Chatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(least if least <= logging.DEBUG else max(least, logging.WARNING))
    logging.getLogger("agentflow").setLevel(least)


def bind_log_fields(**fields: Any) -> None:  # noqa: ANN401 (fields of any kind)
    """Put fields into every log line of this process."""
    structlog.contextvars.bind_contextvars(**fields)


class _Chatter(logging.Filter):
    """Says what other packages repeat once in a while, and without their tracebacks.

    A client that cannot reach its broker logs each attempt. What it means for the job is told by the job's own lines. Of OpenTelemetry's
    exporters only why they gave up is shown: the job does not depend on them.
    """

    _EVERY_S = 10.0
    _EXPORTERS, _EXPORTERS_EVERY_S = "opentelemetry.exporter.", 300.0

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is shown."""
        if record.name.startswith("agentflow") or record.levelno < logging.WARNING:
            return True
        is_exporter = record.name.startswith(self._EXPORTERS)
        if is_exporter and record.levelno < logging.ERROR:
            return False
        record.exc_info = record.exc_text = None
        slot, now = (record.name, str(record.msg)), time.monotonic()
        every_s = self._EXPORTERS_EVERY_S if is_exporter else self._EVERY_S
        if now - self._said.get(slot, -every_s) < every_s:
            return False
        self._said[slot] = now
        return True


class _Lines:
    """The logger behind structlog's: writes one rendered line per call."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    debug = info = warning = warn = error = critical = exception = log = msg


def _add_timestamp(_logger: object, _method: str, event: EventDict) -> EventDict:
    event["timestamp"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event


def render_json(_logger: object, _method: str, event: EventDict) -> str:
    """Return one JSON object: timestamp, level, event, then what was bound; anything JSON has not is shown by its repr."""
    ordered = {name: event[name] for name in _FIRST if name in event} | dict(event)
    return msgspec.json.encode(ordered, enc_hook=repr).decode()


class ConsoleLines:
    """Renders lines for people: ``time level event  name=value …``."""

    def __init__(self, *, is_colored: bool) -> None:
        self._is_colored = is_colored

    def __call__(self, _logger: object, _method: str, event: EventDict) -> str:
        """Return one line."""
        rest = {name: value for name, value in event.items() if name not in _FIRST}
        exception = rest.pop("exception", None)
        level = str(event.get("level", "info"))
        shown = f"{level:<7}"
        if self._is_colored:
            shown = f"\x1b[{_COLORS.get(level, '0')}m{shown}\x1b[0m"
        text = str(event.get("event", "")).replace("\n", "\\n")
        fields = "".join(f"  {name}={_field(value)}" for name, value in rest.items())
        line = f"{event.get('timestamp', '')} {shown} {text}{fields}"
        return f"{line}\n{exception}" if exception else line


def _field(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if text and _BARE.issuperset(text) else msgspec.json.encode(text).decode()


def log_event(event: str, level: str = "info", **fields: object) -> None:
    """Write one line of the engine; fields that are None are left out."""
    shown = {name: value for name, value in fields.items() if value is not None}
    getattr(logger_of("agentflow.engine"), level)(event, **shown)


class DeadLetterLog:
    """A dead-letter sink that also says in the log what it was given.

    At most ``lines_max`` lines in ``window_s`` seconds; what is left out is counted in the next line. A record that is given
    again after a restart is told again.
    """

    def __init__(
        self,
        sink: Sink,
        place: str,
        redaction: Redaction | None = None,
        *,
        lines_max: int = 10,
        window_s: float = 10.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sink = sink
        self._place = place
        self._redaction = redaction or Redaction()
        self._lines_max = lines_max
        self._window_s = window_s
        self._now = now
        self._window_start = now()
        self._lines = 0
        self._left_out = 0
        self.name: str = sink.name
        self.guarantee: Guarantee = sink.guarantee
        self.record_max_bytes: int | None = None
        self._any_room = asyncio.Event()
        self._any_room.set()

    @property
    def room(self) -> asyncio.Event:
        """That of the sink, if what it holds is limited."""
        return getattr(self._sink, "room", self._any_room)

    async def open(self, prepared: tuple[int, Staged] | None) -> None:
        """Open the sink."""
        await self._sink.open(prepared)

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Give the sink a record and say so."""
        self._sink.write(record)
        if isinstance(record, DeadLetter):
            self._tell(record)

    def _tell(self, letter: DeadLetter) -> None:
        now = self._now()
        if now - self._window_start >= self._window_s:
            self._window_start, self._lines = now, 0
        if self._lines >= self._lines_max:
            self._left_out += 1
            return
        self._lines += 1
        reason = {name: letter.reason[name] for name in ("action", "attempt") if name in letter.reason}
        left_out, self._left_out = self._left_out, 0
        log_event(
            "dead letter",
            "warning",
            record=letter.record.run_id,
            **reason,
            error=self._redaction.text(str(letter.error)),
            to=self._place,
            not_shown=left_out or None,
        )

    def barrier(self, checkpoint: int) -> None:
        """Close the sink's epoch."""
        self._sink.barrier(checkpoint)

    async def stage(self, checkpoint: int) -> Staged:
        """Stage the sink's epoch."""
        return await self._sink.stage(checkpoint)

    async def publish(self, checkpoint: int, staged: Staged) -> None:
        """Publish the sink's epoch."""
        await self._sink.publish(checkpoint, staged)

    async def close(self) -> None:
        """Close the sink."""
        await self._sink.close()

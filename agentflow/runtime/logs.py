"""Where log lines go: to the host's standard `logging`, unless a command has taken them (`agentflow.observability.logs.configure_logs`).

An embedding service keeps its own configuration: nothing is configured or installed here, and structlog's own configuration is not
asked. Loggers are named ``agentflow.…``; the fields of a line follow its text, and are in the record's attribute ``agentflow``.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

Fields = Mapping[str, Any]
_FRAMES = 4  # of structlog, between whoever writes a line and `logging`
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "exception": logging.ERROR,
    "critical": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}


class _Destination:
    """What a command has taken log lines with; None: nobody has.

    Attributes:
        logger_of: Returns structlog's logger of a name.
        least: Least level that is shown.
    """

    logger_of: Callable[[str], Any] | None = None
    least = logging.NOTSET


def take_lines(logger_of: Callable[[str], Any] | None, least: int = logging.NOTSET) -> None:
    """Let all log lines go to the loggers that a function returns; None: to the host again."""
    _Destination.logger_of, _Destination.least = logger_of, least


def logger_of(name: str) -> Any:  # noqa: ANN401 (structlog's bound loggers have no common type)
    """Return the structlog logger of a name."""
    taken = _Destination.logger_of
    return _host_logger(name) if taken is None else taken(name)


def is_shown(name: str, level: int) -> bool:
    """Whether a line of a level would go anywhere."""
    if _Destination.logger_of is None:
        return logging.getLogger(name).isEnabledFor(level)
    return level >= _Destination.least


@functools.cache
def _host_logger(name: str) -> Any:  # noqa: ANN401 (as above)
    import structlog  # 25 ms at import that a job without log lines does not pay

    return structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, _as_record],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
    )


def _as_record(_logger: object, _method: str, fields: MutableMapping[str, Any]) -> tuple[Any, ...]:
    """Return the arguments of a call of `logging`: positional ones, and the others."""
    event, exc_info = fields.pop("event", ""), fields.pop("exc_info", None)
    stack_info, args = fields.pop("stack_info", False), fields.pop("positional_args", ())
    shown = "".join(f"  {name}={value}" for name, value in fields.items())
    text = str(event)
    if args:
        text = text % args
    options = {
        "exc_info": exc_info,
        "stack_info": stack_info,
        "stacklevel": _FRAMES,
        "extra": {"agentflow": dict(fields)},
    }
    return ("%s", f"{text}{shown}"), options


class LazyLogger:
    """A structlog logger whose fields are made when a line is written: a line that is not shown costs a comparison.

    Args:
        name: Name of the logger.
        fields: Makes the fields that it is bound to.
    """

    __slots__ = ("_bound", "_fields", "_name")

    def __init__(self, name: str, fields: Callable[[], Fields]) -> None:
        self._name = name
        self._fields = fields
        self._bound: Any = None

    def __getattr__(self, attribute: str) -> Any:  # noqa: ANN401 (whatever structlog's logger has)
        level = _LEVELS.get(attribute)
        if level is not None and not is_shown(self._name, level):
            return _nothing
        if self._bound is None:
            self._bound = logger_of(self._name).bind(**self._fields())
        return getattr(self._bound, attribute)

    def __repr__(self) -> str:
        return f"LazyLogger({self._name!r})"


def _nothing(*_: object, **__: object) -> None:
    """Do nothing: the line is not shown."""

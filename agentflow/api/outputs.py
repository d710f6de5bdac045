"""What a function that is a sink is given, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

_Function = TypeVar("_Function", bound=Callable[..., Any])
_MARK = "__agentflow_idempotent__"


class OutputRecord(msgspec.Struct, frozen=True):
    """One output on its way out.

    Attributes:
        id: The same on every attempt and after every recovery, and never of two outputs of a job: what an idempotent write goes by.
        key: The key of the run that sent it; None of a dead letter whose record had none.
        json: The value, as one JSON document.
        timestamp_ms: Event time of the run's input; None where it has none.
    """

    id: str
    key: Any
    json: bytes
    timestamp_ms: int | None

    @property
    def value(self) -> Any:  # noqa: ANN401 (any JSON value)
        """The value, decoded anew each time it is asked for."""
        return msgspec.json.decode(self.json)


def idempotent(function: _Function) -> _Function:
    """Declare that a sink function may be given the same outputs again, and that this changes nothing.

    Whoever writes by `OutputRecord.id`, such as an upsert into a table with that key, may say so. The job is exactly-once then.
    """
    setattr(function, _MARK, True)
    return function


def is_idempotent(function: object) -> bool:
    """Whether a sink function is declared so."""
    return bool(getattr(function, _MARK, False))

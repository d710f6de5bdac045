"""What a durable step may be told: its name, and what to do about a call that is in doubt."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Literal

import msgspec


class Done(msgspec.Struct, frozen=True):
    """A reconciler's answer: the call in doubt has happened, and this is its result."""

    result: Any


class Verdict(enum.Enum):
    """A reconciler's other answers."""

    NOT_DONE = "not done"  # it has not happened: call
    CANNOT_TELL = "cannot tell"  # the step fails with `InDoubt`


class StepIntent(msgspec.Struct, frozen=True):
    """What is known of a call in doubt: it was about to happen when the process died, or its attempt was given up.

    Attributes:
        function: Id of the function.
        args: Its arguments.
        kwargs: Its keyword arguments.
        attempt: Attempt of the action that asks now.
        idempotency_key: The key that the call had, and would have again.
    """

    function: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    attempt: int
    idempotency_key: str


class Reconcile(msgspec.Struct, frozen=True):
    """Ask ``function``, plain or `async def`, what became of a call in doubt: `Done`, or a `Verdict`."""

    function: Callable[[StepIntent], Any]


OnInDoubt = Literal["retry", "fail"] | Reconcile
"""``retry``: call again, with the same idempotency key. ``fail``: raise `InDoubt`. `Reconcile`: ask."""


def reconcile(function: Callable[[StepIntent], Any]) -> Reconcile:
    """Return the policy that asks ``function`` about a call in doubt."""
    return Reconcile(function)

"""What a step calls, and its policies: about a call in doubt, about one that fails, about one that takes too long."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from agentflow.api.failure import Retry
from agentflow.api.steps import Done, OnInDoubt, Reconcile, StepIntent, Verdict
from agentflow.core.inputs import StepCall, StepRetry
from agentflow.core.journal_records import ERROR, RESULT
from agentflow.errors import AgentflowError, InDoubt, Recovery
from agentflow.runtime.step_values import encode_error, encode_result


class StepWork(msgspec.Struct, frozen=True):
    """What a step calls.

    Attributes:
        function: The function.
        args: Its arguments.
        kwargs: Its keyword arguments.
        name: What it is called by in the journal; None: its module and name.
        on_in_doubt: What to do about a call in doubt.
        retry: What follows a call that fails; None: its error is the outcome.
        timeout_ms: Longest call; None: no limit.
        cache_ms: How long the result answers later runs of the key; None: it does not.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str | None = None
    on_in_doubt: OnInDoubt = "retry"
    retry: Retry | None = None
    timeout_ms: int | None = None
    cache_ms: int | None = None

    @property
    def needs_intent(self) -> bool:
        """Whether a record before the call is wanted."""
        return self.on_in_doubt != "retry"

    @property
    def reconciler(self) -> Callable[[StepIntent], Any] | None:
        """Who is asked about a call in doubt; None: the policy says it."""
        return self.on_in_doubt.function if isinstance(self.on_in_doubt, Reconcile) else None

    @property
    def verdict(self) -> Verdict:
        """What the policy says where nobody is asked."""
        return Verdict.NOT_DONE if self.on_in_doubt == "retry" else Verdict.CANNOT_TELL

    def outcome_in_doubt(self, call: StepCall, verdict: object) -> tuple[int, bytes] | None:
        """Return the outcome that a verdict means; None: call.

        Raises:
            TypeError: It is no verdict.
        """
        if isinstance(verdict, Done):
            return RESULT, encode_result(self.function, verdict.result)
        if verdict is Verdict.NOT_DONE:
            return None
        if verdict is Verdict.CANNOT_TELL:
            what = f"step {call.function}, called at {call.where}, may have happened"
            return ERROR, encode_error(InDoubt(what, fix="look at the other side; then redrive the record, or drop it"))
        msg = f"the reconciler of step {call.function} answered {verdict!r}: it takes Done(result), NOT_DONE or CANNOT_TELL"
        raise TypeError(msg)

    def next_call(self, step: str, calls: int, error: BaseException) -> StepRetry | None:
        """Return when a step is called again that has failed ``calls`` times; None: never.

        Args:
            step: Its id; the jitter derives from it, so a replay waits as long.
            calls: Calls that failed, the last one included.
            error: What the last one raised. Its hint (``retry_after``, or a Retry-After header) is followed.
        """
        retry = self.retry
        if retry is None or calls >= retry.attempts:
            return None
        if isinstance(error, AgentflowError) and error.recovery is not Recovery.RETRY:
            return None
        wait_ms = retry_after_ms(error)
        if wait_ms is None:
            wait_ms = retry.wait_ms(calls, zlib.crc32(f"{step}#{calls}".encode()) / 2**32)
        return StepRetry(calls, wait_ms, self.needs_intent)


def retry_after_ms(error: BaseException) -> int | None:
    """Return how long an error says to wait; None where it says nothing.

    Looked at are ``error.retry_after`` (a timedelta, or seconds), and the Retry-After headers of ``error.response``, which the
    SDKs of model providers have.
    """
    hint = getattr(error, "retry_after", None)
    headers = getattr(getattr(error, "response", None), "headers", None)
    if hint is None and isinstance(headers, Mapping):
        in_ms = headers.get("retry-after-ms")
        hint = headers.get("retry-after") if in_ms is None else _seconds(in_ms, 1000)
    if isinstance(hint, timedelta):
        hint = hint.total_seconds()
    seconds = _seconds(hint, 1)
    return None if seconds is None or not 0 <= seconds < _HINT_S_MAX else round(seconds * 1000)


def _seconds(hint: object, divisor: int) -> float | None:
    """Return seconds from a number, its text, or an HTTP date."""
    if isinstance(hint, (int, float)):
        return hint / divisor
    if not isinstance(hint, str):
        return None
    try:
        return float(hint) / divisor
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(hint) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


_HINT_S_MAX = 30 * 86_400  # what is above is a mistake of the other side

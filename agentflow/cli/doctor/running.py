"""Running checks: at the same time where they wait, each with its own time, and each by itself when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, TypeVar

from agentflow.api.callables import call_anywhere
from agentflow.cli.doctor.findings import Check, Finding, Outcome, Subject, error, error_of, skipped
from agentflow.errors import AgentflowError

_GRACE_S = 1.0  # for a check that was cancelled: then it is left behind
_T = TypeVar("_T")


def run_checks(
    checks: Sequence[Check], subject: Subject, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
) -> list[Outcome]:
    """Make all checks and return what they found, in the order of ``checks``; nothing is raised.

    Args:
        checks: Those that a check needs stand before it.
        subject: What is looked at.
        loop_factory: Makes the event loop.
    """
    outcomes: dict[str, Outcome] = {}
    for check in checks:
        if check.is_first:
            outcomes[check.name] = _before(check, subject, outcomes) or _run_first(check, subject)
    rest = [check for check in checks if not check.is_first]
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        outcomes |= runner.run(_run_rest(rest, subject, outcomes))
    return [outcomes[check.name] for check in checks]


def _before(check: Check, subject: Subject, outcomes: Mapping[str, Outcome]) -> Outcome | None:
    """Return why a check is not made; None: it is."""
    try:
        reason = check.unless(subject)
    except Exception as broken:  # noqa: BLE001 (the edge of the command line: a check that breaks is a finding)
        return Outcome(check, (_broken(broken),))
    if reason:
        return Outcome(check, (skipped(reason),))
    failed = next((name for name in check.needs if outcomes[name].is_failed), None)
    if failed is not None:
        return Outcome(check, (skipped(f"'{failed}' has to be well first"),), is_blocked=True)
    return None


def _run_first(check: Check, subject: Subject) -> Outcome:
    began = time.monotonic()
    try:
        with _alarm(check.timeout_s):
            findings: Any = check.look(subject)
    except _TimeIsUpError:
        findings = (_late(check),)
    except AgentflowError as failure:
        findings = (error_of(failure),)
    except Exception as broken:  # noqa: BLE001 (as above)
        findings = (_broken(broken),)
    return Outcome(check, tuple(findings), time.monotonic() - began)


class _TimeIsUpError(BaseException):
    """Interrupts whatever the main thread does: nobody's `except Exception` is meant."""


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Interrupt the body after so many seconds, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (a signal handler)
        raise _TimeIsUpError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


async def _run_rest(checks: Sequence[Check], subject: Subject, before: Mapping[str, Outcome]) -> dict[str, Outcome]:
    loop = asyncio.get_running_loop()
    outcomes: dict[str, asyncio.Future[Outcome]] = {}
    for name, outcome in before.items():
        outcomes[name] = loop.create_future()
        outcomes[name].set_result(outcome)
    for check in checks:
        needed = [outcomes[name] for name in check.needs]
        outcomes[check.name] = asyncio.ensure_future(_run_one(check, subject, needed))
    return {name: await future for name, future in outcomes.items()}


async def _run_one(check: Check, subject: Subject, needed: Sequence[asyncio.Future[Outcome]]) -> Outcome:
    known = {outcome.check.name: outcome for outcome in [await one for one in needed]}
    refusal = _before(check, subject, known)
    if refusal is not None:
        return refusal
    began = time.monotonic()
    work = asyncio.ensure_future(_look(check, subject))
    done, _ = await asyncio.wait([work], timeout=check.timeout_s)
    if not done:
        work.cancel()
        await asyncio.wait([work], timeout=_GRACE_S)
        return Outcome(check, (_late(check),), time.monotonic() - began, is_late=True)
    return Outcome(check, work.result(), time.monotonic() - began)


async def _look(check: Check, subject: Subject) -> tuple[Finding, ...]:
    try:
        return tuple(await call_anywhere(check.look, (subject,), {}, in_thread))
    except AgentflowError as failure:
        return (error_of(failure),)
    except Exception as broken:  # noqa: BLE001 (as above)
        return (_broken(broken),)


def in_thread(function: Callable[[], _T]) -> asyncio.Future[_T]:
    """Run a function in a daemon thread: one that hangs on a dead disk must not keep the process from ending.

    That is what a thread of `asyncio.to_thread` would do.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(setter: Callable[[Any], None], value: object) -> None:
        if not future.done():
            setter(value)

    def work() -> None:
        try:
            setter, value = future.set_result, function()
        except BaseException as broken:  # noqa: BLE001 (a crash of foreign code, such as a panic of RocksDB's binding, is no Exception)
            failure = broken if isinstance(broken, Exception) else RuntimeError(f"{type(broken).__name__}: {broken}")
            setter, value = future.set_exception, failure  # type: ignore[assignment]
        with contextlib.suppress(RuntimeError):  # nobody waits any more, and the loop is closed
            loop.call_soon_threadsafe(settle, setter, value)

    threading.Thread(target=work, name="agentflow-check", daemon=True).start()
    return future


def _late(check: Check) -> Finding:
    return error(f"it did not end within {check.timeout_s:g} s", "an answer", check.stuck)


def _broken(broken: BaseException) -> Finding:
    frames = traceback.extract_tb(broken.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno}, {frames[-1].name})" if frames else ""
    return error(
        f"the check itself broke: {type(broken).__name__}: {broken}{place}",
        "a finding",
        "this is a bug of the check, or of what it calls; the other checks count all the same",
    )

"""Ends of an engine's job: a source of nothing, sinks for outputs that answer nobody, and errors for those who wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from agentflow.api.codecs import MSGPACK
from agentflow.core.effects import DeadLetter
from agentflow.core.results import RequestResult
from agentflow.errors import RequestError, RunFailed
from agentflow.runtime.ports import Guarantee, Staged
from agentflow.runtime.requests import OpenRequest, refusal

if TYPE_CHECKING:
    from agentflow.core.effects import EmitRecord
    from agentflow.core.records import Record

_TOLD_EVERY_S = 10.0


class NoSource:
    """A source that gives nothing and does not end: inputs are submitted."""

    name = "requests"
    is_replayable = True
    codec = MSGPACK
    partitions = ()
    idle_timeout_ms = None

    async def open(self, positions: Mapping[str, int]) -> None:
        """Start nowhere."""

    async def fetch(self, records_max: int) -> Sequence[Record]:  # noqa: ARG002 (the port)
        """Wait until it is cancelled."""
        await asyncio.get_running_loop().create_future()
        return []

    async def close(self) -> None:
        """Hold nothing."""


class Answers:
    """A sink for outputs and dead letters of an engine that has none of its own.

    Those of requests have gone to whoever waits for them; what answers nobody, the output of a timer's run, is told in the log:
    the first, and once in a while how many.
    """

    name = "answers"
    guarantee = Guarantee.EXACTLY_ONCE
    record_max_bytes = None

    def __init__(self, role: str) -> None:
        self._role = role
        self._untold = 0
        self._told_at = -_TOLD_EVERY_S

    async def open(self, prepared: tuple[int, Staged] | None) -> None:
        """Hold nothing."""

    def write(self, record: EmitRecord | DeadLetter) -> None:
        """Drop what somebody has, and tell of what nobody has."""
        if isinstance(record, DeadLetter):
            if not record.record.source.startswith("requests/"):
                self._tell("a run failed for good, and nobody waits for it", record.record.run_id, str(record.error))
        elif record.task.run.request is None:
            self._tell("an output answers nobody: give the engine a sink", record.task.run.id, "")

    def _tell(self, what: str, run: str, error: str) -> None:
        self._untold += 1
        now = time.monotonic()
        if now - self._told_at >= _TOLD_EVERY_S:
            import structlog

            count, self._untold, self._told_at = self._untold, 0, now
            structlog.get_logger("agentflow.engine").warning(what, run=run, error=error or None, times=count)

    def barrier(self, checkpoint: int) -> None:
        """Close the epoch."""

    async def stage(self, checkpoint: int) -> Staged:  # noqa: ARG002 (the port)
        """Stage nothing."""
        return Staged()

    async def publish(self, checkpoint: int, staged: Staged) -> None:
        """Publish nothing."""

    async def close(self) -> None:
        """Hold nothing."""


def failure_of(request: OpenRequest | RequestResult) -> RequestError:
    """Return the error of a request whose run ended early."""
    error = request.error if isinstance(request, OpenRequest) else request.failure
    assert error is not None
    if isinstance(request, OpenRequest) and request.is_refused:
        return refusal(request.run_id, error)
    outputs = [None if output is None else msgspec.json.decode(output) for output in request.outputs]
    return RunFailed(request.run_id, error.type, error.message, outputs)

"""A worker: one member of a job's group, running one `Job` per subtask that the group gives it.

```
            assigned            kept: prove that nobody else owned it meanwhile, read on
  (not ours) ──────► running ◄────────────────────────┐
                        │   revoked: perhaps lost ─────┘
                        └──────► dropped, without a checkpoint: the next owner goes on from the last one
```

Revoked means "perhaps lost": the group protocol revokes everything before every join. So runs and calls in flight go on until it
is known who owns the subtask; what a lost one does meanwhile can never be committed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import reduce
from typing import Any, Protocol

from agentflow.errors import AgentflowError, Recovery
from agentflow.runtime.counters import Amounts
from agentflow.runtime.figures import SubtaskFigures
from agentflow.runtime.job import Job
from agentflow.runtime.job_status import JobStatus
from agentflow.runtime.settings import RestartSettings

_REVOKED_CHECKPOINT_S = 3  # the group waits for us meanwhile


class OwnedSubtask(Protocol):
    """A subtask with its ports; made when the group gives it to this worker."""

    job: Job

    async def keep(self) -> None:
        """Go on after a rebalance that gave the subtask back. Raises AgentflowError when somebody else owned it meanwhile."""
        ...

    async def release(self) -> None:
        """Hold it no more; called behind the end of its job."""
        ...


class Group(Protocol):
    """Membership of the job's group."""

    failure: asyncio.Future[Any]
    """Fails when membership or reading fails."""
    transaction_aborts: int
    """Transactions that were aborted."""

    @property
    def lags(self) -> Mapping[str, int]:
        """Partition → records that are not read yet; only of partitions that were read from."""
        ...

    async def start(
        self, on_assigned: Callable[[Sequence[int]], Awaitable[None]], on_revoked: Callable[[], Awaitable[None]]
    ) -> None:
        """Join."""
        ...

    async def stop(self) -> None:
        """Leave."""
        ...


class Worker:
    """Runs until it is stopped or something fails that no restart cures.

    Args:
        new_group: Makes the group, not joined; again when membership broke and the worker joins anew.
        own: Makes a subtask that the group gave to this worker.
        restart: What follows when membership breaks: brokers that are away are waited for.
        on_event: Told of assignments as (name, fields); for logs.
    """

    def __init__(
        self,
        new_group: Callable[[], Group],
        own: Callable[[Any, int], OwnedSubtask],
        restart: RestartSettings,
        on_event: Callable[[str, dict[str, object]], None] | None = None,
    ) -> None:
        self._new_group = new_group
        self._group = new_group()
        self._own = own
        self._restart = restart
        self._on_event = on_event or (lambda name, fields: None)  # noqa: ARG005
        self._owned: dict[int, OwnedSubtask] = {}
        self._running: dict[int, asyncio.Task[None]] = {}
        self._before = JobStatus()  # of subtasks that are not ours any more
        self._aborts_before = 0
        self.rebalances = 0
        self._stops = 0
        self._stopped = asyncio.Event()
        self._failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    @property
    def status(self) -> JobStatus:
        """The sum over all subtasks."""
        statuses = [self._before, *self.statuses.values()]
        return JobStatus(
            state="draining" if self._stops else "running",
            records_in=sum(status.records_in for status in statuses),
            records_out=sum(status.records_out for status in statuses),
            dead_letters=sum(status.dead_letters for status in statuses),
            undone=reduce(Amounts.plus, (status.undone for status in statuses)),
            runs_in_flight=sum(status.runs_in_flight for status in statuses),
            timers_pending=sum(status.timers_pending for status in self.statuses.values()),
            checkpoint=max((status.checkpoint for status in statuses), default=0),
            checkpoint_completed_ms=min(
                (s.checkpoint_completed_ms for s in statuses if s.checkpoint_completed_ms is not None), default=None
            ),
            restarts=sum(status.restarts for status in statuses),
        )

    @property
    def statuses(self) -> Mapping[int, JobStatus]:
        """Status of each subtask that runs here."""
        return {number: owned.job.status for number, owned in list(self._owned.items())}

    @property
    def figures(self) -> Mapping[int, SubtaskFigures]:
        """What each subtask that runs here holds now; on the loop."""
        found = {number: owned.job.figures for number, owned in self._owned.items()}
        return {number: figures for number, figures in found.items() if figures is not None}

    @property
    def lags(self) -> Mapping[str, int]:
        """Partition → records that are not read yet."""
        return self._group.lags

    @property
    def transaction_aborts(self) -> int:
        """Transactions that were aborted."""
        return self._aborts_before + self._group.transaction_aborts

    @property
    def not_ready(self) -> str | None:
        """Why the worker does not take part yet; None when it does."""
        if self.rebalances == 0:
            return "joining the group"
        restoring = sorted(
            number
            for number, status in self.statuses.items()
            if status.state in ("starting", "restoring", "restarting")
        )
        return f"restoring subtasks {restoring}" if restoring else None

    @property
    def subtasks(self) -> list[int]:
        """Numbers of the subtasks that this worker runs."""
        return sorted(self._owned)

    def request_stop(self) -> None:
        """Drain, take last checkpoints, leave the group; again: do not wait for runs in flight."""
        self._stops += 1
        self._stopped.set()
        for owned in self._owned.values():
            owned.job.request_stop()

    async def run(self) -> JobStatus:
        """Run until `request_stop`.

        Raises:
            AgentflowError: A subtask failed for good, or the group did; committed checkpoints are intact.
        """
        attempt, rebalances = 0, 0
        while True:
            try:
                await self._run_member()
            except AgentflowError as failure:
                attempt = 1 if self.rebalances > rebalances else attempt + 1
                rebalances = self.rebalances
                is_curable = failure.recovery is Recovery.RESTART_SUBTASK and self._restart.strategy != "none"
                if not is_curable or self._stops or attempt > self._restart.attempts:
                    raise
                await self._wait_before_joining(attempt, failure)
            if self._stops:
                self._before.state = "stopped"
                return self._before
            self._aborts_before += self._group.transaction_aborts
            self._group = self._new_group()
            self._failed = asyncio.get_running_loop().create_future()

    async def _wait_before_joining(self, attempt: int, failure: AgentflowError) -> None:
        delay_ms = self._restart.delay_before(attempt)
        self._on_event("joining again", {"error": failure.what, "attempt": attempt, "delay_ms": delay_ms})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_ms / 1000):
                await self._stopped.wait()

    async def _run_member(self) -> None:
        """Join, run what the group gives, leave."""
        stopped: asyncio.Future[Any] = asyncio.ensure_future(self._stopped.wait())
        try:
            await self._group.start(self._assigned, self._revoked)
            await asyncio.wait([stopped, self._failed, self._group.failure], return_when=asyncio.FIRST_COMPLETED)
            for failure in (self._failed, self._group.failure):
                if failure.done():
                    failure.result()
            if self._running:
                await asyncio.wait(self._running.values())
            if self._failed.done():
                self._failed.result()
        finally:
            stopped.cancel()
            await self._group.stop()
            for number in list(self._owned):
                await self._drop(number)
            for failure in (self._failed, self._group.failure):
                if failure.done() and not failure.cancelled():
                    failure.exception()  # one that came too late to end anything is not asyncio's to complain about

    async def _revoked(self) -> None:
        """Take checkpoints, so that a next owner has little to repeat; an error is the subtask's own."""
        self._on_event("revoked", {"subtasks": self.subtasks})
        checkpoints = [asyncio.ensure_future(owned.job.checkpoint_now()) for owned in self._owned.values()]
        if checkpoints:
            await asyncio.wait(checkpoints, timeout=_REVOKED_CHECKPOINT_S)

    async def _assigned(self, subtasks: Sequence[int]) -> None:
        self.rebalances += 1
        lost = [number for number in self._owned if number not in subtasks]
        await asyncio.gather(*(self._drop(number) for number in lost))
        kept = list(self._owned)
        await asyncio.gather(*(self._keep(number) for number in kept))
        new = [number for number in subtasks if number not in self._owned]
        if not self._stops:
            for number in new:
                self._start(number)
        self._on_event("assigned", {"subtasks": list(subtasks), "new": new, "lost": lost})

    def _start(self, number: int) -> None:
        owned = self._owned[number] = self._own(self._group, number)
        self._running[number] = asyncio.ensure_future(self._run_job(number, owned))

    async def _run_job(self, number: int, owned: OwnedSubtask) -> None:
        try:
            await owned.job.run()
        except (AgentflowError, OSError, RuntimeError) as error:
            if self._stops and isinstance(error, AgentflowError) and error.recovery is Recovery.RESTART_SUBTASK:
                # Somebody else owns it, or the brokers are away; its next owner goes on from the last checkpoint.
                self._on_event("stopped without a last checkpoint", {"subtask": number, "error": error.what})
            elif not self._failed.done():
                self._failed.set_exception(error)

    async def _keep(self, number: int) -> None:
        try:
            await self._owned[number].keep()
        except AgentflowError as error:
            self._on_event("lost meanwhile", {"subtask": number, "error": error.what})
            await self._drop(number)

    async def _drop(self, number: int) -> None:
        owned, running = self._owned.pop(number), self._running.pop(number)
        running.cancel()
        await asyncio.wait([running])
        await owned.release()
        status, before = owned.job.status, self._before
        before.records_in += status.records_in
        before.records_out += status.records_out
        before.dead_letters += status.dead_letters
        before.undone = before.undone.plus(status.undone)
        before.restarts += status.restarts
        before.checkpoint = max(before.checkpoint, status.checkpoint)

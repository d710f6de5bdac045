"""The lives of one job on one simulated machine: processes in virtual time, each of which begins where the last one was killed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from agentflow.errors import AgentflowError
from agentflow.runtime.job import Job
from agentflow.runtime.job_spec import JobSpec
from agentflow.testing.faults import Fault, Machine, SimulatedCrash
from agentflow.testing.virtual_time import VirtualClock, VirtualTimeLoop, VirtualTimeStopped

_UNWINDING_ROUNDS_MAX = 10
LIFE_S_MAX = 30
"""Virtual seconds after which a life that does not end is called hanging."""


class Lives:
    """See the module's docstring.

    Args:
        machine: What outlives a process.
        begin: Returns the job of the next life; called on its loop.
        attend: Told of each start of the job.

    Attributes:
        count: Lives that have begun.
        complaints: What should not have happened in them: a hanging job, a failed one, an error that asyncio tells of.
    """

    def __init__(
        self, machine: Machine, begin: Callable[[], JobSpec], attend: Callable[[Job], object] | None = None
    ) -> None:
        self.count = 0
        self._has_failed = False
        self.complaints: list[str] = []
        self._machine = machine
        self._begin = begin
        self._attend = attend
        self._now_s = 0.0

    def live(self, *, crash_after_s: float | None = None) -> bool:
        """Run one process until the job ends or the process dies; whether the job ended, and did not fail while it was stopped."""
        self.count += 1
        self._has_failed = False
        loop = VirtualTimeLoop(self._now_s)
        loop.set_exception_handler(self._complain)
        try:
            return self._live(loop, crash_after_s)
        finally:
            self._now_s = loop.time() + 0.001
            self._machine.fuse.is_dead = True
            end_tasks(loop)
            loop.close()

    def live_with_faults(self, luck: random.Random) -> bool:
        """Run a few lives, each with a fault at a random point or moment; whether the job ended in one, else the next may begin."""
        machine = self._machine
        for _ in range(luck.randint(0, 5)):
            fault = luck.choice([Fault.KILLED, Fault.POWER_LOST])
            if luck.random() < 0.3:
                machine.fuse.arm(luck.randint(1, 150), Fault.ERROR)
            crash_after_s = None
            if luck.random() < 0.2:
                crash_after_s = luck.random() * 0.1
            else:
                machine.fuse.arm(luck.randint(1, luck.choice([20, 60, 250])), fault)
            if self.live(crash_after_s=crash_after_s):
                return True
            machine.restart(fault)
        return False

    def _live(self, loop: VirtualTimeLoop, crash_after_s: float | None) -> bool:
        fuse = self._machine.fuse
        main = loop.create_task(self._run(loop))
        main.add_done_callback(_stop_loop)
        hanging = loop.call_later(LIFE_S_MAX, loop.stop)
        crash = None if crash_after_s is None else loop.call_later(crash_after_s, fuse.crash)
        try:
            loop.run_forever()
        except VirtualTimeStopped as stopped:
            main.remove_done_callback(_stop_loop)
            self.complaints.append(f"life {self.count}: the job hangs: {stopped}")
            return not fuse.is_dead
        for timer in (hanging, crash):
            if timer is not None:
                timer.cancel()
        main.remove_done_callback(_stop_loop)
        if fuse.is_dead:
            return False
        if not main.done():
            self.complaints.append(f"life {self.count}: the job did not end within {LIFE_S_MAX} virtual seconds")
        return not self._has_failed

    async def _run(self, loop: VirtualTimeLoop) -> None:
        def note(name: str, fields: dict[str, object]) -> None:  # noqa: ARG001 (the signature)
            if name == "started" and self._attend is not None:
                self._attend(job)

        job = Job(self._begin(), clock=VirtualClock(loop), on_event=note)
        try:
            await job.run()
        except SimulatedCrash:
            return
        except AgentflowError as error:
            if job.is_stopping:
                self._has_failed = True  # nobody restarts it, but the next process
            elif not self._machine.fuse.is_dead:
                self.complaints.append(
                    f"life {self.count}: the job failed: {error!r} {error}; cause {error.__cause__!r}"
                )

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # noqa: ARG002 (asyncio)
        if not isinstance(context.get("exception"), SimulatedCrash):
            self.complaints.append(f"life {self.count}: asyncio: {context}")


def _stop_loop(main: asyncio.Task[None]) -> None:
    main.get_loop().stop()


def end_tasks(loop: VirtualTimeLoop) -> None:
    """Let every task of a dead process unwind; its ports do nothing any more."""
    loop.call_soon(loop.stop)  # takes with it a stop that the end of the job had scheduled already
    loop.run_forever()
    for _ in range(_UNWINDING_ROUNDS_MAX):
        pending = asyncio.all_tasks(loop)
        if not pending:
            break
        for task in pending:
            task.cancel()
        loop.run_until_complete(asyncio.wait(pending, timeout=1))
        for task in pending:
            if task.done() and not task.cancelled():
                task.exception()
    loop.run_until_complete(loop.shutdown_asyncgens())

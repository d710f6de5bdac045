"""When a subtask takes checkpoints: regularly, and beside that when somebody asks; never two at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agentflow.runtime.failing import look_at


class CheckpointSchedule:
    """Takes the checkpoints of one subtask.

    Args:
        take: Takes one.
        fail: Told of an error: it ends the subtask, before the next checkpoint begins, which would be behind a half one.
        interval_ms: Time between the regular ones.

    Attributes:
        first_interval_share: Share of the interval before the first one.
    """

    def __init__(
        self, take: Callable[[], Awaitable[None]], fail: Callable[[BaseException], None], interval_ms: int
    ) -> None:
        self._take = take
        self._fail = fail
        self._interval_s = interval_ms / 1000
        self.first_interval_share = 1.0
        self._one_at_a_time = asyncio.Lock()
        self._extra: set[asyncio.Task[None]] = set()

    @property
    def extra(self) -> tuple[asyncio.Task[None], ...]:
        """Those that were asked for and have not ended."""
        return tuple(self._extra)

    async def run(self) -> None:
        """Take the regular ones until it is cancelled; one that has begun ends first. An error ends it."""
        wait_s = self._interval_s * self.first_interval_share
        while True:
            await asyncio.sleep(wait_s)
            wait_s = self._interval_s
            work = asyncio.ensure_future(self.take())
            work.add_done_callback(look_at)
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                await asyncio.wait([work])
                raise
            except BaseException:  # noqa: BLE001 (the subtask's edge: it has failed with it)
                return

    def take_extra(self, then: Callable[[], Awaitable[None]] | None = None) -> asyncio.Task[None]:
        """Take one beside the regular ones, as soon as one that is under way has ended; ``then`` is called before the next one."""
        task = asyncio.ensure_future(self.take(then))
        self._extra.add(task)
        task.add_done_callback(look_at)
        task.add_done_callback(self._extra.discard)
        return task

    def fail_behind(self, error: BaseException) -> None:
        """End the subtask with an error, behind a checkpoint: attempts that have failed up to here are not made again."""
        self.take_extra().add_done_callback(lambda _: self._fail(error))

    async def take(self, then: Callable[[], Awaitable[None]] | None = None) -> None:
        """Take one now; behind it, and before the next one, nothing writes to keyed state. An error of ``then`` is its caller's."""
        async with self._one_at_a_time:
            try:
                await self._take()
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                self._fail(error)
                raise
            if then is not None:
                await then()

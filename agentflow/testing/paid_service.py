"""A service outside the simulated machine whose calls cost money: it knows which outcomes user code has seen.

Laws: a call whose outcome was seen is never made again; every later sight of it is the same; the idempotency key of a step is the
same on every attempt. Its answers are random, so a call that is repeated silently shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import random
import zlib
from typing import TYPE_CHECKING, Protocol

from agentflow.api.failure import Retry
from agentflow.errors import SinkError

if TYPE_CHECKING:
    from agentflow.api.runner_context import RunnerContext
    from agentflow.testing.faults import Fuse

LUCK_PATH = "luck"
"""Memory path of what an action without steps drew: nothing but its recorded completion can bring it back."""

_Step = tuple[str, str, str, str]  # task id, place in the action, arguments


_FAILURES_MAX = 2  # of one step, in all its lives
_RETRY = Retry(attempts=_FAILURES_MAX + 1, initial="2ms", wait_max="8ms")


def price(*what: object) -> int:
    """Return what a call answers: the same for the same arguments."""
    return zlib.crc32(repr(what).encode()) % 1_000


class Caller(Protocol):
    """A process that calls the service."""

    @property
    def is_gone(self) -> bool:
        """It was killed: what it still does has no effect."""
        ...

    @property
    def may_repeat(self) -> bool:
        """It was cut off, so it may call what its successor has called: no engine can promise otherwise."""
        ...


class PaidService:
    """See the module's docstring. It survives every crash.

    Args:
        seed: Decides its answers and how long they take.
        fuse: Of the machine that calls it.
    """

    def __init__(self, seed: str, fuse: Fuse) -> None:
        self.violations: list[str] = []
        self._caller: Caller | None = None
        self._luck = random.Random(seed)  # noqa: S311 (the seed of a simulation)
        self._fuse = fuse
        self._keys: dict[_Step, str] = {}
        self._seen: dict[_Step, int] = {}
        self._failed: dict[_Step, int] = {}

    def called_by(self, caller: Caller) -> PaidService:
        """Return the same service, as one of several processes calls it."""
        service = copy.copy(self)
        service._caller = caller  # noqa: SLF001 (its own)
        return service

    def draw(self) -> int:
        """Return a number that no second attempt draws again."""
        return self._luck.getrandbits(40)

    async def step(self, ctx: RunnerContext, place: str, n: object) -> int:
        """Let an action pay: a durable step; return its price."""
        luck = ctx.short_term_memory.get(LUCK_PATH)
        step = (ctx.task_id, place, repr(n), repr(luck))

        async def pay(n: object, luck: object) -> list[int]:  # noqa: ARG001 (it is in the digest)
            await self._reach("service.call")
            if self._keys.setdefault(step, ctx.idempotency_key) != ctx.idempotency_key:
                self.violations.append(f"step {step} has another idempotency key")
            if step in self._seen and not (self._caller is not None and self._caller.may_repeat):
                self.violations.append(f"step {step} is called again, and its outcome was seen")
            if self._luck.random() < 0.2 and self._failed.get(step, 0) < _FAILURES_MAX:
                self._failed[step] = self._failed.get(step, 0) + 1
                raise ConnectionError
            await asyncio.sleep(self._luck.choice([0, 0, 0.001, 0.01]))
            await self._reach("service.call done")
            return [price(n), self._luck.getrandbits(40)]

        paid, token = await ctx.durable_execute_async(pay, n, luck, retry=_RETRY)
        if self._seen.setdefault(step, token) != token:
            self.violations.append(f"step {step} shows another outcome than before")
        return int(paid)

    async def _reach(self, point: str) -> None:
        if self._caller is not None and self._caller.is_gone:
            await asyncio.get_running_loop().create_future()
        with contextlib.suppress(SinkError):  # an error of the service itself would be an outcome
            self._fuse.reach(point, SinkError)

    async def branches(self, ctx: RunnerContext, place: str, n: object) -> int:
        """Let an action pay in two branches at the same time, two steps each; return the sum."""

        async def branch(number: int) -> int:
            first = await self.step(ctx, f"{place}/{number}/0", [n, number])
            return await self.step(ctx, f"{place}/{number}/1", [first, number])

        return sum(await asyncio.gather(branch(0), branch(1)))


def branches_price(n: object) -> int:
    """Return what `PaidService.branches` comes to."""
    return sum(price([price([n, number]), number]) for number in (0, 1))

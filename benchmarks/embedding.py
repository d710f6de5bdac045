"""`Engine` inside of a service: one caller at a time, and a thousand at once.

The collector runs as in any service: an embedded engine leaves it alone.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

from agentflow import Agent, Engine, EventType
from agentflow.environment.openers import new_event_loop
from benchmarks.durable import sync_ms
from benchmarks.workloads import trivial

CALLERS = 1_000
KEYS = 100
WARM = 200


def _run(work: Callable[[Engine], Awaitable[float]], *, is_durable: bool) -> float:
    async def run(options: dict[str, Any]) -> float:
        agent = Agent("trivial").add_action("act", [EventType.InputEvent], trivial)
        async with Engine(agent, **options) as engine:
            return await work(engine)

    with tempfile.TemporaryDirectory() as directory, asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(run({"state_dir": directory} if is_durable else {"in_memory": True}))


def submit_us(is_durable: bool, factor: float) -> float:  # noqa: FBT001 (of the table)
    """Return the median round trip of a caller that asks alone, in microseconds."""

    async def ask(engine: Engine) -> float:
        took = []
        for number in range(WARM + int(4_000 * factor)):
            began = time.perf_counter()
            outputs = await engine.submit(f"u{number % KEYS}", number)
            took.append(time.perf_counter() - began)
            assert outputs == [number]
        return median(took[WARM:]) * 1e6

    return _run(ask, is_durable=is_durable)


def submit_above_sync_ms(factor: float) -> float:
    """Return what a durable round trip takes besides one `fdatasync` of this disk, in milliseconds."""
    return submit_us(True, factor) / 1000 - sync_ms(factor)


def submit_rate(is_durable: bool, factor: float) -> float:  # noqa: FBT001 (of the table)
    """Return requests per second of a thousand callers, each of which waits for its answer before it asks again."""
    each = int(300 * factor)

    async def call(engine: Engine, caller: int) -> int:
        total = 0
        for number in range(each):
            (output,) = await engine.submit(f"u{caller}", number)
            total += output
        return total

    async def ask(engine: Engine) -> float:
        began = time.perf_counter()
        totals = await asyncio.gather(*(call(engine, caller) for caller in range(CALLERS)))
        took = time.perf_counter() - began
        assert totals == [each * (each - 1) // 2] * CALLERS, "an answer is another caller's"
        return each * CALLERS / took

    return _run(ask, is_durable=is_durable)

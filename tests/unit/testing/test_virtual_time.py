"""The loop whose time jumps."""

from __future__ import annotations

import asyncio
import time

import pytest

from agentflow.testing import VirtualClock, VirtualTimeLoop, VirtualTimeStopped


@pytest.fixture
def loop():
    loop = VirtualTimeLoop()
    yield loop
    loop.close()


def test_sleeps_end_in_the_order_of_their_deadlines_without_sleeping(loop):
    woken = []

    async def sleep(hours):
        await asyncio.sleep(hours * 3600)
        woken.append((hours, loop.time()))

    async def main():
        await asyncio.gather(*(sleep(hours) for hours in (100, 1, 50)))

    began = time.monotonic()
    loop.run_until_complete(main())
    assert [hours for hours, _ in woken] == [1, 50, 100]
    assert [round(at / 3600, 6) for _, at in woken] == [1, 50, 100]
    assert time.monotonic() - began < 60


def test_timeouts_work(loop):
    async def main():
        async with asyncio.timeout(5):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        loop.run_until_complete(main())
    assert loop.time() == pytest.approx(5)


def test_waiting_for_nothing_is_an_error_not_a_hang(loop):
    with pytest.raises(VirtualTimeStopped, match="no deadline is left"):
        loop.run_until_complete(asyncio.Event().wait())


def test_the_clock_follows_the_loop_to_the_millisecond(loop):
    clock = VirtualClock(loop, epoch_ms=1_000)

    async def main():
        seen = []
        for _ in range(1_000):
            await asyncio.sleep(0.001)
            seen.append(clock.now_ms())
        return seen

    assert loop.run_until_complete(main()) == list(range(1_001, 2_001))


def test_running_until_idle_moves_no_time(loop):
    done = []
    loop.call_soon(done.append, "now")
    loop.call_later(1, done.append, "later")
    loop.run_until_idle()
    assert (done, loop.time()) == (["now"], 0)
    loop.run_to_next_deadline(0.5)
    assert (done, loop.time()) == (["now"], 0.5)
    loop.run_to_next_deadline(10)
    assert (done, loop.time()) == (["now", "later"], 1)

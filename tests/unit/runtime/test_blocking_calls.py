"""Plain functions that are steps or tools: called in threads, and given up when their time is over."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from agentflow.errors import StateUnavailable
from agentflow.runtime.blocking import BlockingThreads

name = contextvars.ContextVar("name", default="nobody")


@pytest.fixture
def threads():
    made = BlockingThreads(threads_max=1, leaked_max=2)
    yield made
    made.close()


async def leave(threads: BlockingThreads, release: threading.Event) -> None:
    """Give up a call that hangs until it is released."""
    loop, left = asyncio.get_running_loop(), asyncio.Event()

    def hang() -> None:
        loop.call_soon_threadsafe(left.set)
        release.wait()

    hung = asyncio.ensure_future(threads.call(hang))
    await left.wait()
    hung.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hung


async def test_a_call_returns_what_the_function_does_and_raises_what_it_raises(threads):
    assert await threads.call(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await threads.call(lambda: 1 / 0)


async def test_a_call_has_the_context_of_its_caller(threads):
    name.set("ann")
    assert await threads.call(name.get) == "ann"


async def test_a_call_that_is_given_up_keeps_no_place_of_the_others(threads):
    release = threading.Event()
    await leave(threads, release)
    assert threads.leaked == 1
    assert await threads.call(lambda: "next") == "next"
    release.set()


async def test_a_call_that_is_given_up_before_a_thread_comes_to_it_is_not_made(threads):
    release, entered, called = threading.Event(), asyncio.Event(), []
    loop = asyncio.get_running_loop()

    def hold() -> None:
        loop.call_soon_threadsafe(entered.set)
        release.wait()

    held = asyncio.ensure_future(threads.call(hold))
    await entered.wait()
    queued = [asyncio.ensure_future(threads.call(lambda: called.append(1))) for _ in range(3)]
    await asyncio.sleep(0)
    for one in queued:
        one.cancel()
    await asyncio.wait(queued)
    assert threads.leaked == 0
    release.set()
    await held
    assert await threads.call(lambda: "next") == "next"
    assert not called


async def test_an_error_that_no_future_takes_is_told(threads):
    def stop() -> None:
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        await threads.call(stop)


async def test_calls_that_are_given_up_and_do_not_come_back_are_limited_and_those_that_do_are_not_counted(threads):
    told: list[BaseException] = []
    threads.fail = told.append
    releases = [threading.Event() for _ in range(3)]
    await leave(threads, releases[0])
    releases[0].set()
    while threads.leaked:  # noqa: ASYNC110 (nobody is told that a thread has come back)
        await asyncio.sleep(0)
    await leave(threads, releases[1])
    assert told == []
    await leave(threads, releases[2])
    (error,) = told
    assert isinstance(error, StateUnavailable)
    assert "hang" in error.where["function"]
    assert error.expected == "fewer than blocking.leaked-max"
    for release in releases:
        release.set()

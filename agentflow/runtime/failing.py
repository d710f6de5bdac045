"""Where errors of a subtask end, and work that ends when something else has failed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TypeVar

ResultT = TypeVar("ResultT")


class Edge:
    """The edge of a subtask, to be entered by what the loop calls: an error ends in ``fail``, and not in the loop.

    What ends the process passes: KeyboardInterrupt and SystemExit.
    """

    def __init__(self, fail: Callable[[BaseException], None]) -> None:
        self._fail = fail

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        """Take the error."""
        if error is None or isinstance(error, (KeyboardInterrupt, SystemExit)):
            return False
        self._fail(error)
        return True


class ExitCalled(Exception):
    """User code has raised SystemExit, in a task where that itself would end the loop."""


async def contained(work: Awaitable[ResultT], fail: Callable[[BaseException], object]) -> ResultT:
    """Await user code whose task runs by itself: nothing that it raises may end the loop.

    KeyboardInterrupt ends in ``fail``. Nothing goes on behind it: it waits until whoever was told cancels the task.

    Raises:
        ExitCalled: It has raised SystemExit.
    """
    try:
        return await work
    except SystemExit as error:
        raise ExitCalled(f"SystemExit: {error}") from error
    except KeyboardInterrupt as error:
        fail(error)
        never: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        return await never


async def unless_failed(work: Awaitable[None], failure: asyncio.Future[None]) -> None:
    """Await ``work``, unless ``failure`` comes first: then its error is raised, behind the end of the work."""
    task = asyncio.ensure_future(work)
    if failure.done():
        task.cancel()  # before its first step
    try:
        await asyncio.wait([task, failure], return_when=asyncio.FIRST_COMPLETED)
        if failure.done():
            failure.result()
        await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        look_at(task)  # it may have failed at the same moment, and the other one is what counts


def look_at(future: asyncio.Future[None]) -> None:
    """Look at an error that came too late to end anything, or ends it elsewhere; asyncio would complain that nobody does."""
    if not future.cancelled():
        future.exception()

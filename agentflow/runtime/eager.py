"""Tasks whose first step runs at once: a coroutine that never waits costs no trip through the event loop.

Python 3.12 has `Task(eager_start=True)`. Before it, asyncio's own pure-Python task is driven the same way: the coroutine must
see one and the same `asyncio.current_task()` in its first and in its later steps (timeouts and cancel scopes compare it), so
stepping it bare and making a task later would not do.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")

if sys.version_info >= (3, 12):

    def start_eagerly(
        coroutine: Coroutine[Any, Any, ResultT], loop: asyncio.AbstractEventLoop
    ) -> asyncio.Task[ResultT]:
        """Run the first step of ``coroutine`` and return its task, which is done if it did not wait.

        Call it from a callback of the loop, not from inside a task.
        """
        return asyncio.Task(coroutine, loop=loop, eager_start=True)

else:
    from asyncio import futures, tasks

    class _EagerTask(tasks._PyTask):  # type: ignore[name-defined,misc]  # noqa: SLF001 (see the module's docstring)
        """asyncio's Python task; only its constructor differs: it steps instead of scheduling a step."""

        def __init__(self, coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> None:
            futures._PyFuture.__init__(self, loop=loop)  # type: ignore[attr-defined]  # noqa: SLF001
            self._name = "agentflow-action"
            self._num_cancels_requested = 0
            self._must_cancel = False
            self._fut_waiter = None
            self._coro = coroutine
            self._context = contextvars.copy_context()
            tasks._register_task(self)  # noqa: SLF001
            self._context.run(self._Task__step)

    def start_eagerly(
        coroutine: Coroutine[Any, Any, ResultT], loop: asyncio.AbstractEventLoop
    ) -> asyncio.Task[ResultT]:
        """Run the first step of ``coroutine`` and return its task, which is done if it did not wait.

        Call it from a callback of the loop, not from inside a task.
        """
        return _EagerTask(coroutine, loop)

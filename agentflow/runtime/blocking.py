"""Threads for blocking actions, and for plain functions that are steps or tools.

Daemon threads of our own rather than `ThreadPoolExecutor`: a thread that hangs in user code must neither keep the process
from exiting nor occupy one of the pool's places for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from agentflow.errors import RestartsExhausted, StateUnavailable
from agentflow.runtime.step_values import function_id

ResultT = TypeVar("ResultT")
Call = Callable[[], None]

_LIVES_MAX: Final = 20  # lives of a job that may leave all the threads behind that one may


class BlockingThreads:
    """At most ``threads_max`` calls at once; others wait in order. A thread that is given up is replaced.

    Args:
        threads_max: Most calls at once.
        leaked_max: Threads that were given up at which ``fail`` is called.
        earlier: Threads of earlier lives of the job, which a restart has not freed.

    Attributes:
        leaked: Threads that were given up and have not come back.
        fail: Takes the error when these are ``leaked_max``.
    """

    def __init__(self, threads_max: int, leaked_max: int, earlier: Sequence[BlockingThreads] = ()) -> None:
        self._earlier = earlier
        self._threads_max = threads_max
        self._leaked_max = leaked_max
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0  # idle threads; below zero: queued calls
        self._threads = 0
        self.leaked = 0
        self.fail: Callable[[BaseException], object] = _nobody

    async def call(self, function: Callable[[], ResultT]) -> ResultT:
        """Call a function in a thread, in the context of the caller; a caller that is cancelled gives the thread up.

        Where no thread has come to it yet, it is not called.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[ResultT] = loop.create_future()
        context = contextvars.copy_context()
        has_begun = False

        def report(result: ResultT | None, error: BaseException | None) -> None:
            if answer.done():
                self.come_back()
            elif error is None:
                answer.set_result(result)  # type: ignore[arg-type]
            else:
                answer.set_exception(error)

        def work() -> None:
            nonlocal has_begun
            result: ResultT | None = None
            failure: BaseException | None = None
            with self._lock:
                if answer.cancelled():
                    return
                has_begun = True
            try:
                result = context.run(function)
            except StopIteration as error:  # no future takes it
                failure = RuntimeError(f"the function raised {error!r}")
            except BaseException as error:  # noqa: BLE001 (it is the caller's)
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants it any more
                loop.call_soon_threadsafe(report, result, failure)

        self.submit(work)
        try:
            return await answer
        except asyncio.CancelledError:
            with self._lock:
                is_given_up = answer.cancelled() and has_begun
            if is_given_up:
                self.give_up({"function": function_id(function)})
            raise

    def submit(self, call: Call) -> None:
        """Run ``call`` in a thread; it reports its outcome itself and does not raise."""
        with self._lock:
            if self._idle <= 0 and self._threads < self._threads_max:
                self._start_thread()
            else:
                self._idle -= 1
        self._calls.put(call)

    def give_up(self, where: dict[str, object]) -> None:
        """Count one running call as leaked, and let another thread take its place; called on the loop.

        Args:
            where: Whose call it is, for the error about too many of them.
        """
        with self._lock:
            self.leaked += 1
            self._threads -= 1
            if self._idle < 0:  # calls are queued
                self._idle += 1
                self._start_thread()
        if self.leaked == self._leaked_max:
            of_all_lives = self.leaked + sum(threads.leaked for threads in self._earlier)
            is_over = of_all_lives >= _LIVES_MAX * self._leaked_max
            kind = RestartsExhausted if is_over else StateUnavailable  # a restart frees no thread
            self.fail(
                kind(
                    f"{of_all_lives if is_over else self.leaked} threads of calls that were given up have not come back",
                    where=where,
                    expected="fewer than blocking.leaked-max",
                    fix="give what the function calls a timeout below that of the action, tool or step",
                )
            )

    def come_back(self) -> None:
        """A leaked call returned after all; its thread works on."""
        with self._lock:
            self.leaked -= 1
            self._threads += 1

    def close(self) -> None:
        """Let idle threads end; running calls end by themselves."""
        with self._lock:
            for _ in range(self._threads):
                self._calls.put(None)

    def _start_thread(self) -> None:
        self._threads += 1
        threading.Thread(target=self._work, name="agentflow-blocking", daemon=True).start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            with self._lock:
                self._idle += 1


def _nobody(error: BaseException) -> None:
    raise error

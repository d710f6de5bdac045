"""Durable steps of one operator as user code meets them: it calls, and gets the recorded outcome."""

from __future__ import annotations

import asyncio
import builtins
import contextvars
import hashlib
import itertools
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from types import CoroutineType
from typing import Any

import msgspec

from agentflow.actions.outcomes import is_outcome
from agentflow.api.callables import InThread, call_anywhere, is_coroutine_function
from agentflow.api.runner_context import RunnerContext
from agentflow.api.steps import StepIntent
from agentflow.core.effects import RefuseStep, ResolveStep, RunStep
from agentflow.core.inputs import (
    ActionStopped,
    KeptWrites,
    ParkRequested,
    StepCall,
    StepEnded,
    StepRequested,
    WaitOrder,
    WaitRequested,
)
from agentflow.core.journal_records import CANCELLED, RESULT, WAITED
from agentflow.core.recorded import PATCH
from agentflow.core.runs import PARKED, ActionTask
from agentflow.core.waits import SLEEP, WAIT_FOR, decode_outcome
from agentflow.errors import ContextClosed, Divergence, WrongContext
from agentflow.runtime.failing import contained
from agentflow.runtime.kept_writes import kept_of
from agentflow.runtime.observation import StepSeen, monotonic_ns
from agentflow.runtime.step_cache import cached_result
from agentflow.runtime.step_calls import (
    answered,
    encoded_about,
    failed,
    place_of,
    recordable,
    seen,
    step_id,
)
from agentflow.runtime.step_values import (
    decode_error,
    digest,
    function_id,
)
from agentflow.runtime.step_work import StepWork
from agentflow.runtime.task_steps import Answer, TaskSteps

_STOPPING_PARK_S = 0.05
_PARKED_AT_ONCE = 64  # some 5 ms of the loop
StepInput = StepRequested | WaitRequested | StepEnded | ParkRequested | ActionStopped

_current: contextvars.ContextVar[tuple[TaskSteps, StepCall, int] | None] = contextvars.ContextVar(
    "agentflow_step", default=None
)
"""The step whose function is being called, and the number of the call."""


def current_step() -> tuple[str, int]:
    """Return the path of the step whose function is being called here, and the number of the call; empty: of none."""
    return ("", 0) if (step := _current.get()) is None else (step[1].path, step[2])


class StepRunner:
    """Runs and answers the steps of one operator.

    Attributes:
        work: Makes the description of a step's call.
        in_thread: Calls plain functions; the job sets threads of its own.
        coroutine_of: Returns the asyncio task of an action that waits; the action runner sets it.
        leave: Gives up a coroutine without an answer; the action runner sets it.
        fail: Takes KeyboardInterrupt; the action runner sets it.
        seen: Told of calls that ended and of answers from the journal; None: nobody looks.
        began: Told of calls that begin; None: nobody wants to know.
        enter_step: Called before the function of a step, and returns what is called behind it (see `Observation`); None: nobody looks.

    Args:
        decide: Takes an input of the operator, at once, on the loop; returns the answer to a step if that is all that follows.
        carry_out: Carries out what follows else.
        incarnation: Of the job's state; part of idempotency keys.
        errors: Classes that recorded errors may come back as, beside Python's own.
        park_after_ms: How long the coroutine of a task is kept that only waits for time or signals.
    """

    def __init__(
        self,
        decide: Callable[[StepInput], Answer | None],
        carry_out: Callable[[], None],
        incarnation: str,
        errors: tuple[type[Exception], ...],
        park_after_ms: int,
    ) -> None:
        self.work = StepWork
        self.in_thread: InThread = asyncio.to_thread
        self._decide = decide
        self._carry_out = carry_out
        self._incarnation = incarnation
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._errors = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in (*_PYTHONS_ERRORS, *errors)}
        self._tasks: dict[ActionTask, TaskSteps] = {}
        self.coroutine_of: Callable[[ActionTask], asyncio.Task[Any] | None] = _unknown
        self.leave: Callable[[ActionTask], object] = _unknown
        self.fail: Callable[[BaseException], object] = _raise
        self.seen: Callable[[StepSeen], object] | None = None
        self.began: Callable[[ActionTask, StepCall, int, int], object] | None = None
        self.enter_step: Callable[[ActionTask, StepCall, int], Callable[[], object] | None] | None = None
        self._park_after_s = park_after_ms / 1000
        self._sleepers: dict[TaskSteps, float] = {}  # until when they are kept, the first one first
        self._sweeper: asyncio.TimerHandle | None = None

    # -- effects
    def answer(self, effect: Answer) -> None:
        """Carry out an effect of the operator: tell the one who waits for the step."""
        steps = self._tasks.get(effect.task)
        future = None if steps is None else steps.waiting.get(effect.path)
        if steps is not None and future is not None and not future.done():
            steps.sleeping.discard(effect.path)
            future.set_result(effect)

    def forget(self, task: ActionTask, ctx: RunnerContext) -> None:
        """Forget an attempt that has ended; the next one may have begun."""
        steps = self._tasks.get(task)
        if steps is not None and steps.ctx is ctx:
            del self._tasks[task]
            self._sleepers.pop(steps, None)

    def left_by(self, task: ActionTask) -> KeptWrites | None:
        """Return what an attempt leaves if it is stopped now; None: nothing, as all do that have called no step."""
        steps = self._tasks.get(task)
        return None if steps is None else kept_of(steps.ctx)

    def only_sleeps(self, task: ActionTask) -> bool:
        """Whether a task waits for time or signals and does nothing else, so that its coroutine may be closed."""
        steps = self._tasks.get(task)
        return steps is not None and not steps.is_in_thread and steps.only_sleeps

    def only_waits(self, task: ActionTask) -> bool:
        """Whether a task waits for answers to steps and does nothing else."""
        steps = self._tasks.get(task)
        return steps is not None and steps.only_waits

    def close(self) -> None:
        """Let nobody wait any more: threads would, for ever."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for steps in self._tasks.values():
            for future in steps.waiting.values():
                future.cancel()
        self._tasks.clear()

    def interrupt(self, task: ActionTask) -> None:
        """Note that the engine cancels an attempt: a step in the middle of its call stays in doubt."""
        steps = self._tasks.get(task)
        if steps is not None:
            steps.is_interrupted = True

    # -- steps in coroutines
    def execute(self, ctx: RunnerContext, work: StepWork) -> Coroutine[Any, Any, Any]:
        """Name a step, and return the coroutine that runs it or returns what is recorded.

        Raises:
            NotRecordable: The arguments cannot be recorded.
            ContextClosed: The action has ended.
        """
        current = self._current_task(
            ctx, "durable_execute_async", "call durable_execute in a def action, or make the action async"
        )
        steps = self._steps(ctx, current)
        return self._execute(steps, self._call(steps, work, current), work)

    def check_coroutine(self, ctx: RunnerContext, feature: str) -> None:
        """Refuse what is to be awaited where nobody can.

        Raises:
            WrongContext: This is no coroutine of the loop.
        """
        self._current_task(ctx, feature, f"make the action async: await ctx.{feature}(…)")

    def _current_task(self, ctx: RunnerContext, feature: str, fix: str) -> asyncio.Task[Any]:
        """Return the asyncio task that calls.

        Raises:
            WrongContext: There is none.
        """
        # Asked for without its loop, asyncio makes a system call to learn that this is not a forked process.
        current = asyncio.current_task(self._loop) if threading.get_ident() == self._thread else None
        if current is None:
            raise WrongContext(f"{feature} was called outside a coroutine", where={"task": ctx.task_id}, fix=fix)
        return current

    def _steps(self, ctx: RunnerContext, current: asyncio.Task[Any] | None) -> TaskSteps:
        if not ctx._is_open:  # noqa: SLF001 (the context's engine side)
            raise ContextClosed("a step was called after the action had ended", fix="await all steps in the action")
        task: ActionTask = ctx._task  # type: ignore[assignment]  # noqa: SLF001
        steps = self._tasks.get(task)
        if steps is None or steps.ctx is not ctx:
            # In its first step an action's coroutine is not known yet, and no branch of it can be running.
            steps = self._tasks[task] = TaskSteps(task, ctx, self.coroutine_of(task) or current)
        return steps

    def _call(self, steps: TaskSteps, work: StepWork, current: asyncio.Task[Any] | None) -> StepCall:
        name, arguments = work.name or function_id(work.function), digest(work.function, work.args, work.kwargs)
        return StepCall(steps.next_path(name, arguments, current), name, arguments, place_of(sys._getframe(3)))  # noqa: SLF001

    async def _execute(self, steps: TaskSteps, call: StepCall, work: StepWork) -> Any:  # noqa: ANN401 (a user's value)
        result = await self._outcome(steps, call, StepRequested(steps.task, call, work.needs_intent), work)
        return answered(steps, call, work, result)

    async def _outcome(
        self, steps: TaskSteps, call: StepCall, request: StepRequested | WaitRequested, work: StepWork | None
    ) -> bytes:
        """Return the recorded result of a step, or raise its recorded error; ``work`` is called where there is none, None: a wait."""
        try:
            answer = self._decide(request) or await self._wait_answer(steps, call, request)
            if self.seen is not None and type(answer) is ResolveStep and work is not None:
                self.seen(StepSeen(steps.task, call, 0, monotonic_ns(), calls=0))
            while type(answer) is RunStep:
                assert work is not None, "a wait is not run"
                began_ns = 0 if self.seen is None else self._begin(steps, call, answer.calls + 1)
                settled = await self._settle_doubt(steps, call, work) if answer.is_in_doubt else None
                ended = settled or await self._run(steps, call, work, answer.calls)
                if self.seen is not None:
                    self.seen(seen(ended, began_ns, answer.calls + 1))
                if ended.kind != RESULT:
                    steps.settle_streams(call.path, is_final=False)
                answer = self._decide(ended) or await self._wait_answer(steps, call, ended)
                if type(answer) is ResolveStep and answer.kind == RESULT:
                    steps.settle_streams(call.path, is_final=True)
        except asyncio.CancelledError:
            if not steps.is_interrupted:  # by user code
                steps.settle_streams(call.path, is_final=False)
                self._apply(StepEnded(steps.task, call, CANCELLED, b""))
            raise
        if type(answer) is ResolveStep and answer.kind == CANCELLED:
            steps.calls += 1
            await self._loop.create_future()  # it was cancelled the last time, and is cancelled again
        return self._recorded(steps.task, answer)

    def _begin(self, steps: TaskSteps, call: StepCall, calls: int) -> int:
        """Return when a call begins, and tell whoever wants to know."""
        began_ns = monotonic_ns()
        if self.began is not None:
            self.began(steps.task, call, began_ns, calls)
        return began_ns

    def _recorded(self, task: ActionTask, answer: Answer) -> bytes:
        if type(answer) is RefuseStep:
            raise Divergence(answer.message, where={"task": task.id}, fix=_DIVERGENCE_FIX)
        assert type(answer) is ResolveStep
        if answer.kind in (RESULT, WAITED):
            return answer.payload
        raise decode_error(answer.payload, self._errors)

    async def _wait_answer(
        self, steps: TaskSteps, call: StepCall, received: StepRequested | WaitRequested | StepEnded
    ) -> Answer:
        """Carry out what the operator has decided about ``received``, and return the answer when it comes."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        steps.waiting[call.path] = future
        is_wait = type(received) is WaitRequested or (type(received) is StepEnded and received.retry is not None)
        if is_wait:
            steps.sleeping.add(call.path)
            self._note_sleeper(steps)
        try:
            self._carry_out()
            return await future
        finally:
            del steps.waiting[call.path]
            steps.sleeping.discard(call.path)

    def _apply(self, received: StepInput) -> None:
        """Say something that nobody waits for an answer to."""
        self._decide(received)
        self._carry_out()

    async def _settle_doubt(self, steps: TaskSteps, call: StepCall, work: StepWork) -> StepEnded | None:
        """Return the outcome of a call in doubt as its policy says; None: call."""
        ask = work.reconciler
        steps.calls += 1
        try:
            verdict = work.verdict if ask is None else await self._called(ask, (self._intent(steps, call, work),), {})
        finally:
            steps.calls -= 1
        outcome = work.outcome_in_doubt(call, verdict)
        return None if outcome is None else StepEnded(steps.task, call, *outcome)

    def _intent(self, steps: TaskSteps, call: StepCall, work: StepWork) -> StepIntent:
        key = self._key_of(step_id(steps, call))
        return StepIntent(call.function, work.args, work.kwargs, steps.task.attempt, key)

    async def _called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        return await contained(call_anywhere(function, args, kwargs, self.in_thread), self.fail)

    async def _run(self, steps: TaskSteps, call: StepCall, work: StepWork, calls: int) -> StepEnded:
        """Call the function of a step, once, unless a result is kept for it."""
        if work.cache_ms is not None and (kept := cached_result(steps.ctx, call)) is not None:
            return StepEnded(steps.task, call, RESULT, kept)
        token = _current.set((steps, call, calls + 1))
        leave = None if self.enter_step is None else self.enter_step(steps.task, call, calls + 1)
        steps.calls += 1
        limit = None
        try:
            if work.timeout_ms is None:
                result = await self._called(work.function, work.args, work.kwargs)
            else:
                async with asyncio.timeout(work.timeout_ms / 1000) as limit:
                    result = await self._called(work.function, work.args, work.kwargs)
        except BaseException as error:
            if not is_outcome(error):
                raise
            if limit is None or not isinstance(error, TimeoutError) or not limit.expired():
                return failed(steps, call, work, calls + 1, error)
            if work.needs_intent and (settled := await self._settle_doubt(steps, call, work)) is not None:
                return settled
            late = f"step {call.function} took longer than its timeout of {work.timeout_ms} ms"
            return failed(steps, call, work, calls + 1, TimeoutError(late))
        finally:
            steps.calls -= 1
            if leave is not None:
                leave()
            _current.reset(token)
        return StepEnded(steps.task, call, RESULT, recordable(steps.ctx, call, work.function, result))

    # -- changed code
    def patch(self, ctx: RunnerContext, change: str) -> bool:
        """See `RunnerContext.patch`."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # a thread
            return asyncio.run_coroutine_threadsafe(self._patch(ctx, change, None), self._loop).result()
        return self._patch_now(ctx, change, asyncio.current_task())

    async def _patch(self, ctx: RunnerContext, change: str, current: asyncio.Task[Any] | None) -> bool:
        return self._patch_now(ctx, change, current)

    def _patch_now(self, ctx: RunnerContext, change: str, current: asyncio.Task[Any] | None) -> bool:
        task = self._steps(ctx, current).task
        call = StepCall(f"{PATCH}:{change}", PATCH, b"", "")
        recorded = task.recorded
        if recorded is not None and call.path in recorded.steps:
            return True
        if recorded is not None and recorded.unasked(task.attempt) is not None:
            return False  # this run has gone the old way
        self._apply(StepEnded(task, call, RESULT, b""))  # recorded before whatever the new way records
        return True

    # -- waits
    def sleep(self, ctx: RunnerContext, duration_ms: int) -> Coroutine[Any, Any, None]:
        """Name a wait for time, and return the coroutine that waits."""
        return self._wait(ctx, SLEEP, WaitOrder(duration_ms), None, "sleep")

    def wait_for(
        self, ctx: RunnerContext, name: str, correlation: str, timeout_ms: int | None, default: object, about: object
    ) -> Coroutine[Any, Any, Any]:
        """Name a wait for a signal, and return the coroutine that waits."""
        order = WaitOrder(timeout_ms, name, correlation, encoded_about(ctx, name, about))
        return self._wait(ctx, f"{WAIT_FOR}:{name}", order, default, "wait_for")

    def _wait(
        self, ctx: RunnerContext, function: str, order: WaitOrder, default: object, feature: str
    ) -> Coroutine[Any, Any, Any]:
        current = self._current_task(ctx, feature, f"make the action async: await ctx.{feature}(…)")
        steps = self._steps(ctx, current)
        arguments = digest(WaitOrder, (order.duration_ms, order.correlation), {})
        path = steps.next_path(function, arguments, current)
        call = StepCall(path, function, arguments, place_of(sys._getframe(3)))  # noqa: SLF001
        return self._await_signal(steps, call, order, default)

    async def _await_signal(self, steps: TaskSteps, call: StepCall, order: WaitOrder, default: object) -> Any:  # noqa: ANN401
        ctx = steps.ctx
        wait = StepRequested(steps.task, call, order=order)
        request = WaitRequested(wait, list(ctx._sent or ()), ctx._headers)  # noqa: SLF001 (the context's engine side)
        outcome = decode_outcome(await self._outcome(steps, call, request, None))
        return default if outcome.value is None else msgspec.msgpack.decode(outcome.value)

    def _note_sleeper(self, steps: TaskSteps) -> None:
        if steps.is_in_thread:
            return
        self._sleepers.pop(steps, None)
        self._sleepers[steps] = self._loop.time() + self._park_after_s
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._park_after_s, self._sweep)

    def _sweep(self) -> None:
        """Close the coroutines of tasks that have only waited for long enough."""
        self._sweeper = None
        now = self._loop.time()
        for steps, due in list(itertools.islice(self._sleepers.items(), _PARKED_AT_ONCE)):
            if due > now:
                break
            if self._sleepers.pop(steps, None) is None:
                continue  # it has gone on, or ended, because of one before it
            if steps.sleeping and not (self.only_sleeps(steps.task) and self.park(steps.task)):
                self._sleepers[steps] = now + self._park_after_s
        if self._sleepers:
            self._sweeper = self._loop.call_at(next(iter(self._sleepers.values())), self._sweep)

    def park(self, task: ActionTask) -> bool:
        """Close the coroutine of a task that `only_sleeps`, unless its wait is not recorded yet, or over; whether it is closed."""
        self._decide(ParkRequested(task))
        is_parked = task.status == PARKED
        if is_parked:
            steps = self._tasks[task]
            if (kept := kept_of(steps.ctx)) is not None:
                self._decide(ActionStopped(task, kept))
            self.forget(task, steps.ctx)
            self.leave(task)
            steps.end()
        self._carry_out()
        return is_parked

    def park_soon(self) -> None:
        """Keep coroutines that only wait no more than for a moment from now on: the job is stopping."""
        self._park_after_s = min(self._park_after_s, _STOPPING_PARK_S)
        self.park_all()

    def park_all(self) -> None:
        """Close every coroutine that only waits, from the next turn on: their number is a limit."""
        self._sleepers = dict.fromkeys(self._sleepers, 0.0)
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._sweeper = self._loop.call_later(0, self._sweep)

    # -- branches
    async def gather(self, ctx: RunnerContext, aws: Sequence[Awaitable[Any]]) -> list[Any]:
        """See `RunnerContext.gather`."""
        branches = self._branches(ctx, aws)
        try:
            if branches:
                await asyncio.wait(branches)
        finally:
            await _end(branches, aws)
        return [branch.result() for branch in branches]

    async def as_completed(self, ctx: RunnerContext, aws: Sequence[Awaitable[Any]]) -> AsyncIterator[Any]:
        """See `RunnerContext.as_completed`."""
        branches = self._branches(ctx, aws)
        waiting = dict(enumerate(branches))

        async def next_to_end(turn: int) -> int:  # noqa: ARG001 (it is in the digest)
            done, _ = await asyncio.wait(waiting.values(), return_when=asyncio.FIRST_COMPLETED)
            return next(place for place, branch in waiting.items() if branch in done)

        try:
            for turn in range(len(branches)):
                place = await self.execute(ctx, StepWork(next_to_end, (turn,), {}))
                yield await waiting.pop(place)
        finally:
            await _end(branches, aws)

    def _branches(self, ctx: RunnerContext, aws: Sequence[Awaitable[Any]]) -> list[asyncio.Future[Any]]:
        """Start branches, each with a scope named by its place."""
        current = asyncio.current_task()
        steps = self._steps(ctx, current)
        outer = steps.scope_of(current)
        group = f"branches#{outer.groups}"
        outer.groups += 1
        branches: list[asyncio.Future[Any]] = []
        for place, awaitable in enumerate(aws):
            if type(awaitable) is CoroutineType:  # as nearly always; asyncio asks in a slower way
                branch: asyncio.Future[Any] = self._loop.create_task(contained(awaitable, self.fail))
            else:
                branch = asyncio.ensure_future(awaitable)
            if isinstance(branch, asyncio.Task):
                steps.name(branch, f"{outer.name}/{group}[{place}]")
            branches.append(branch)
        return branches

    # -- steps in threads
    def execute_in_thread(self, ctx: RunnerContext, work: StepWork) -> Any:  # noqa: ANN401 (a user's value)
        """Run a step, or return what is recorded; blocks the thread, never the loop.

        Raises:
            WrongContext: This is the thread of the loop, or the function is a coroutine function.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise WrongContext(
                "durable_execute would block the event loop here",
                where={"task": ctx.task_id},
                fix="await ctx.durable_execute_async(…) in an async action; a def action that calls durable_execute in a helper "
                "needs @action(…, blocking=True)",
            )
        steps = self._steps(ctx, None)
        call = self._call(steps, work, None)
        task = steps.task
        for function in (work.function, work.reconciler):
            if function is not None and is_coroutine_function(function):
                raise WrongContext(
                    f"durable_execute was given the coroutine function {function_id(function)}",
                    where={"task": task.id},
                    fix="await ctx.durable_execute_async(…) in an async action",
                )
        if work.timeout_ms is not None:
            raise WrongContext(
                f"step {call.function} has a timeout, and a thread cannot be stopped",
                where={"task": task.id},
                fix="give the call its own timeout, or await ctx.durable_execute_async(…) in an async action",
            )
        answer = self._ask_from_thread(steps, call, StepRequested(task, call, work.needs_intent))
        if self.seen is not None and type(answer) is ResolveStep:
            self.seen(StepSeen(task, call, 0, monotonic_ns(), calls=0))
        while type(answer) is RunStep:
            began_ns = 0 if self.seen is None else self._begin(steps, call, answer.calls + 1)
            settled = self._settle_doubt_in_thread(steps, call, work) if answer.is_in_doubt else None
            ended = settled or self._run_in_thread(steps, call, work, answer.calls)
            if self.seen is not None:
                self.seen(seen(ended, began_ns, answer.calls + 1))
            if ended.kind != RESULT:
                steps.settle_streams(call.path, is_final=False)
            answer = self._ask_from_thread(steps, call, ended)
            if type(answer) is ResolveStep and answer.kind == RESULT:
                steps.settle_streams(call.path, is_final=True)
        return answered(steps, call, work, self._recorded(task, answer))

    def _settle_doubt_in_thread(self, steps: TaskSteps, call: StepCall, work: StepWork) -> StepEnded | None:
        ask = work.reconciler
        verdict = work.verdict if ask is None else ask(self._intent(steps, call, work))
        outcome = work.outcome_in_doubt(call, verdict)
        return None if outcome is None else StepEnded(steps.task, call, *outcome)

    def _run_in_thread(self, steps: TaskSteps, call: StepCall, work: StepWork, calls: int) -> StepEnded:
        if work.cache_ms is not None and (kept := cached_result(steps.ctx, call)) is not None:
            return StepEnded(steps.task, call, RESULT, kept)
        token = _current.set((steps, call, calls + 1))
        leave = None if self.enter_step is None else self.enter_step(steps.task, call, calls + 1)
        try:
            result = work.function(*work.args, **work.kwargs)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 (an error is an outcome too; and nobody cancels a thread)
            return failed(steps, call, work, calls + 1, error)
        finally:
            if leave is not None:
                leave()
            _current.reset(token)
        return StepEnded(steps.task, call, RESULT, recordable(steps.ctx, call, work.function, result))

    def _ask_from_thread(self, steps: TaskSteps, call: StepCall, received: StepRequested | StepEnded) -> Answer:
        async def ask() -> Answer:
            return self._decide(received) or await self._wait_answer(steps, call, received)

        return asyncio.run_coroutine_threadsafe(ask(), self._loop).result()

    # -- idempotency
    def idempotency_key(self, ctx: RunnerContext) -> str:
        """Return the key of the step whose function is being called."""
        step = _current.get()
        if step is None:
            raise WrongContext(
                "ctx.idempotency_key outside a step",
                where={"task": ctx.task_id},
                fix="read it in the function that durable_execute calls",
            )
        return self._key_of(step_id(*step[:2]))

    def _key_of(self, step: str) -> str:
        return hashlib.blake2b(f"{self._incarnation}/{step}".encode(), digest_size=16).hexdigest()


def _raise(error: BaseException) -> None:
    raise error


_DIVERGENCE_FIX = "an action calls the same steps with the same arguments every time; what varies belongs into a step"
_PYTHONS_ERRORS = tuple(
    kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, Exception)
)


async def _end(branches: Sequence[asyncio.Future[Any]], aws: Sequence[Awaitable[Any]]) -> None:
    """Cancel what still runs, and look at every error: perhaps nobody else does."""
    running = [branch for branch in branches if not branch.done()]
    for branch in running:
        branch.cancel()
    if running:
        await asyncio.wait(running)
    for branch, awaitable in zip(branches, aws, strict=True):
        if not branch.cancelled():
            branch.exception()
        elif type(awaitable) is CoroutineType:
            awaitable.close()  # cancelled before its first step, it would complain that nobody awaits it


def _unknown(task: ActionTask) -> None:  # noqa: ARG001 (the signature)
    return None

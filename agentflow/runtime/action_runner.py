"""Runs user code: inline, as an eagerly started task, or in a thread; answers with one input per attempt.

An action that raises, hangs or is cancelled affects only its own run: whatever it does becomes `ActionCompleted` or
`ActionFailed`, SystemExit too: the process is not user code's to end. KeyboardInterrupt fails the job, wherever the action runs. A task
that ended with one of the two would end the loop, and in the middle of a turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable

import msgspec

from agentflow.api.codecs import Codec
from agentflow.api.encoding import text_of, user_traceback
from agentflow.api.events import CancelEvent, Event, EventType, InputEvent, TimerEvent
from agentflow.api.failure import DEFAULT_RETRY
from agentflow.api.runner_context import RunnerContext
from agentflow.core.inputs import ActionCompleted, ActionFailed, ActionStopped, TimerOrder
from agentflow.core.records import ErrorReport
from agentflow.core.runs import ActionTask
from agentflow.errors import ActionTimeout, AgentflowError, ModelError, Recovery
from agentflow.plan.plan import Action, ActionKind
from agentflow.runtime.blocking import BlockingThreads
from agentflow.runtime.codecs import input_decoder
from agentflow.runtime.eager import start_eagerly
from agentflow.runtime.kept_writes import kept_of
from agentflow.runtime.services import OperatorServices

_INPUT = EventType.InputEvent
_CANCEL = EventType.CancelEvent
_ENGINE_EVENTS = {EventType.TimerEvent: TimerEvent, _CANCEL: CancelEvent}
_SYNC, _ASYNC = ActionKind.SYNC, ActionKind.ASYNC  # members of an enum take ten times as long to look up
_new_event = object.__new__
_decode_attributes = msgspec.msgpack.Decoder().decode

_PARK_AGAIN_S = 0.1
_STUBBORN_S = 5  # what a cancelled coroutine may take to unwind

Answer = ActionCompleted | ActionFailed
Attempt = asyncio.Task[BaseException | None]
"""The coroutine of an action; its result is an error that would end the loop if it were raised."""


class ActionRunner:
    """Runs the actions of one operator.

    Args:
        services: What contexts need.
        codec: How input values are encoded.
        deliver: Takes the answers of attempts that did not answer at once; called on the loop.
        fail: Takes an error that is not the action's own (keyed state broke under it), and KeyboardInterrupt.
        threads: For blocking actions.
    """

    def __init__(
        self,
        services: OperatorServices,
        codec: Codec,
        deliver: Callable[[Answer], None],
        fail: Callable[[BaseException], None],
        threads: BlockingThreads,
    ) -> None:
        self._services = services
        self._steps = services.steps
        self._deliver = deliver
        self._fail = fail
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._decoders = {action: input_decoder(codec, action.input_type) for action in services.plan.actions}
        self._waiting: dict[ActionTask, Attempt] = {}
        if self._steps is not None:
            self._steps.coroutine_of, self._steps.leave = self._waiting.get, self._leave_parked
            self._steps.fail = fail
        self._in_threads: dict[ActionTask, RunnerContext] = {}
        self._timeouts: dict[ActionTask, asyncio.TimerHandle] = {}
        self._timed_out: set[Attempt] = set()
        self._is_closed = False

    def start(self, task: ActionTask) -> Answer | None:
        """Run one attempt; None when the answer comes later."""
        action = task.action
        ctx = RunnerContext(self._services, task)
        kind = action.kind
        try:
            if task.event_type == _INPUT:
                event: Event = _new_event(InputEvent)  # as its constructor does, without the call
                event.type = _INPUT
                value = task.payload
                event.attributes = {"input": None if value is None else self._decoders[action](value)}
                event.origin = task
            else:
                event = _internal_event(task)
                if task.event_type == _CANCEL:
                    value = task.run.record.value
                    event.attributes["input"] = None if value is None else self._decoders[action](value)
            if kind is _SYNC:
                action.function(event, ctx)
                return _completed(task, ctx)
        except asyncio.CancelledError:
            return _cancelled_inside(task, ctx)
        except BaseException as error:  # noqa: BLE001 (the edge to user code)
            return self._failed(task, ctx, error)
        if kind is _ASYNC:
            return self._start_coroutine(task, ctx, action, event)
        self._start_thread(task, ctx, action, event)
        return None

    # -- coroutines
    def _start_coroutine(self, task: ActionTask, ctx: RunnerContext, action: Action, event: Event) -> Answer | None:
        running = start_eagerly(_attempt(action, event, ctx), self._loop)
        if running.done():
            self._forget(task, ctx)
            return self._outcome(task, ctx, running)
        self._waiting[task] = running
        if action.timeout_ms is not None:
            self._timeouts[task] = self._loop.call_later(action.timeout_ms / 1000, self._time_out, task, ctx, running)
        running.add_done_callback(lambda done: self._coroutine_done(task, ctx, done))
        return None

    def _time_out(self, task: ActionTask, ctx: RunnerContext, running: Attempt) -> None:
        """Cancel a coroutine; one that swallows it is left behind after a while, so that it holds up its own key only.

        One that only waits is parked instead: a timeout limits what an attempt does, not what it waits for.
        """
        if self._steps is not None and self._steps.only_sleeps(task):
            if not self._steps.park(task):
                self._timeouts[task] = self._loop.call_later(_PARK_AGAIN_S, self._time_out, task, ctx, running)
            return
        self._interrupt(task)
        running.cancel("timeout")
        self._timed_out.add(running)
        self._timeouts[task] = self._loop.call_later(_STUBBORN_S, self._leave_coroutine, task, ctx, running)

    def _leave_coroutine(self, task: ActionTask, ctx: RunnerContext, running: Attempt) -> None:
        del self._timeouts[task]
        if self._waiting.get(task) is not running:
            return
        del self._waiting[task]
        self._timed_out.discard(running)
        self._forget(task, ctx)
        _abandon(running)
        answer = self._failed(task, ctx, _timed_out(task))
        if answer is not None and not self._is_closed:
            self._deliver(answer)

    def _coroutine_done(self, task: ActionTask, ctx: RunnerContext, done: Attempt) -> None:
        timeout = None
        is_wanted = self._waiting.get(task) is done  # else it was given up, and perhaps the next one runs
        if is_wanted:
            del self._waiting[task]
            timeout = self._timeouts.pop(task, None)
        self._forget(task, ctx)
        is_timed_out = done in self._timed_out
        self._timed_out.discard(done)
        answer = self._outcome(task, ctx, done, is_timed_out=is_timed_out and done.cancelled())
        if timeout is not None:
            timeout.cancel()
        if is_wanted and not self._is_closed and answer is not None:
            self._deliver(answer)

    def _outcome(
        self, task: ActionTask, ctx: RunnerContext, done: Attempt, *, is_timed_out: bool = False
    ) -> Answer | None:
        if done.cancelled():
            _let_go(done)
            if is_timed_out:
                return self._failed(task, ctx, _timed_out(task))
            return _cancelled_inside(task, ctx)
        error = done.exception() or done.result()
        if error is None:
            try:
                return _completed(task, ctx)
            except Exception as late:  # noqa: BLE001 (what user code has left cannot be encoded)
                return self._failed(task, ctx, late)
        return self._failed(task, ctx, error)

    # -- threads
    def _start_thread(self, task: ActionTask, ctx: RunnerContext, action: Action, event: Event) -> None:
        def call() -> None:
            answer: Answer | BaseException | None
            try:
                action.function(event, ctx)
                answer = _completed(task, ctx)
            except asyncio.CancelledError:
                answer = _cancelled_inside(task, ctx)
            except KeyboardInterrupt as error:
                answer = error  # it counts only where the thread was not given up
            except BaseException as error:  # noqa: BLE001 (the edge to user code)
                answer = self._failed(task, ctx, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants the answer any more
                self._loop.call_soon_threadsafe(self._thread_done, task, answer)

        context = contextvars.copy_context()
        self._in_threads[task] = ctx
        if action.timeout_ms is not None:
            self._timeouts[task] = self._loop.call_later(action.timeout_ms / 1000, self._leave_thread, task)
        self._threads.submit(lambda: context.run(call))

    def _thread_done(self, task: ActionTask, answer: Answer | BaseException | None) -> None:
        timeout = self._timeouts.pop(task, None)
        if timeout is not None:
            timeout.cancel()
        ctx = self._in_threads.pop(task, None)
        if ctx is None:
            self._threads.come_back()
            return
        self._forget(task, ctx)
        if isinstance(answer, BaseException):
            self._fail(answer)
        elif answer is not None and not self._is_closed:
            self._deliver(answer)

    def _leave_thread(self, task: ActionTask) -> None:
        """Give a blocking action up: its context is closed, its thread is replaced."""
        del self._timeouts[task]
        ctx = self._in_threads.pop(task)
        self._forget(task, ctx)
        self._threads.give_up({"action": task.action.name})
        answer = self._failed(task, ctx, _timed_out(task))
        if answer is not None:
            self._deliver(answer)

    @property
    def is_busy(self) -> bool:
        """Whether an action is at something else than waiting for the answer to a step."""
        at_work = (*self._waiting, *self._in_threads)
        return any(self._steps is None or not self._steps.only_waits(task) for task in at_work)

    # -- the end
    def cancel(self, task: ActionTask) -> ActionStopped | None:
        """Stop an attempt whose answer is not wanted any more; return what is kept of it, if anything is."""
        running = self._waiting.pop(task, None)
        if running is None:
            return None
        kept = None if self._steps is None else self._steps.left_by(task)
        self._interrupt(task)
        running.cancel()
        return None if kept is None else ActionStopped(task, kept)

    def _leave_parked(self, task: ActionTask) -> None:
        """Want no answer of a coroutine that is about to be closed."""
        self._waiting.pop(task, None)
        timeout = self._timeouts.pop(task, None)
        if timeout is not None:
            timeout.cancel()

    def _forget(self, task: ActionTask, ctx: RunnerContext) -> None:
        if self._steps is not None:
            self._steps.forget(task, ctx)

    def _interrupt(self, task: ActionTask) -> None:
        if self._steps is not None:
            self._steps.interrupt(task)

    async def close(self, unwind_s: float = _STUBBORN_S) -> None:
        """Cancel what waits and let it unwind for so long; threads are left to themselves, with closed contexts."""
        self._is_closed = True
        for timeout in self._timeouts.values():
            timeout.cancel()
        for ctx in self._in_threads.values():
            ctx.close()
        for task in self._waiting:
            self._interrupt(task)
        waiting = list(self._waiting.values())
        self._waiting.clear()
        for running in waiting:
            running.cancel()
        if waiting:
            _, stubborn = await asyncio.wait(waiting, timeout=unwind_s)
            for running in stubborn:
                _abandon(running)
        if self._steps is not None:
            self._steps.close()

    def _failed(self, task: ActionTask, ctx: RunnerContext, error: BaseException) -> ActionFailed | None:
        """Turn an error into the answer; KeyboardInterrupt, and what is of the engine under the action, ends the subtask instead."""
        kept = kept_of(ctx)
        ctx.close()
        is_ours = isinstance(error, AgentflowError) and error.recovery is Recovery.RESTART_SUBTASK
        if is_ours or isinstance(error, KeyboardInterrupt):
            self._loop.call_soon_threadsafe(self._fail, error)
            return None
        is_retryable = not isinstance(error, (msgspec.DecodeError, UnicodeDecodeError))
        name = type(error).__name__
        if isinstance(error, AgentflowError):
            is_retryable = error.recovery is Recovery.RETRY
            if isinstance(error, ModelError) and task.action.retry is DEFAULT_RETRY:
                is_retryable = False  # the call was, as its own policy says
        elif type(error).__module__.startswith("pydantic"):
            is_retryable = False  # a value that does not fit its declared model will not fit the next time
        elif not is_retryable:
            name = "DecodeError"
        report = ErrorReport(name, text_of(error), is_retryable=is_retryable, traceback=user_traceback(error))
        return ActionFailed(task, report, kept=kept)


async def _attempt(action: Action, event: Event, ctx: RunnerContext) -> BaseException | None:
    try:
        await action.function(event, ctx)
    except (KeyboardInterrupt, SystemExit) as error:
        return error  # raised, it would end the loop
    return None


def _internal_event(task: ActionTask) -> Event:
    """Decode an event that an action sent, or a timer."""
    event: Event = _new_event(_ENGINE_EVENTS.get(task.event_type, Event))
    event.type = task.event_type
    assert task.payload is not None, "only a record may have no value"
    event.attributes = _decode_attributes(task.payload)
    event.origin = task
    return event


def _completed(task: ActionTask, ctx: RunnerContext) -> ActionCompleted:
    """Encode what the action did and close its context."""
    short_term, sensory = ctx._short_term, ctx._sensory  # noqa: SLF001 (the context's engine side)
    answer = ActionCompleted(
        task,
        ctx._sent,  # noqa: SLF001
        None if short_term is None else short_term.encoded_writes(),
        None if sensory is None else sensory.encoded_writes(),
        None if ctx._timers is None else [TimerOrder(*order) for order in ctx._timers],  # noqa: SLF001
        ctx._headers,  # noqa: SLF001
        None if short_term is None and sensory is None else kept_of(ctx),
    )
    ctx._is_open = False  # noqa: SLF001
    if ctx._streams is not None:  # noqa: SLF001
        for stream in ctx._streams.values():  # noqa: SLF001
            stream.close(is_final=True)
    return answer


def _let_go(cancelled: Attempt) -> None:
    """Take the error from a cancelled task: its traceback holds the task, and only the cyclic collector would free them."""
    try:
        cancelled.exception()
    except asyncio.CancelledError as error:
        error.__traceback__ = None


def _cancelled_inside(task: ActionTask, ctx: RunnerContext) -> ActionFailed:
    kept = kept_of(ctx)
    ctx.close()
    return ActionFailed(task, ErrorReport("CancelledError", "the action was cancelled from inside"), kept=kept)


def _abandon(running: Attempt) -> None:
    """Forget a coroutine that swallows its cancellation: nobody waits for it any more, not even the end of the loop."""
    asyncio._unregister_task(running)  # noqa: SLF001 (documented for those who extend asyncio)
    running._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001


def _timed_out(task: ActionTask) -> ActionTimeout:
    return ActionTimeout(f"the action ran longer than its timeout of {task.action.timeout_ms} ms")

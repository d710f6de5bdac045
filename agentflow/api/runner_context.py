"""`RunnerContext`: what an action may do besides computing."""

from __future__ import annotations

import hashlib
import random as random_module
import uuid as uuid_module
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from agentflow.api.context_services import ContextServices, TaskView
from agentflow.api.durations import duration_ms
from agentflow.api.encoding import check_text
from agentflow.api.events import Event, EventType
from agentflow.api.memory import MemoryObject, MemoryScope, MemoryType
from agentflow.api.metrics import MetricGroup
from agentflow.api.reporting import Reporting
from agentflow.errors import ContextClosed, NotConfigured, RecordTooLarge

if TYPE_CHECKING:
    from agentflow.api.chat_history import ChatHistory
    from agentflow.api.chat_messages import ChatMessage
    from agentflow.api.failure import Retry
    from agentflow.api.options import Configuration
    from agentflow.api.resources import ResourceType
    from agentflow.api.steps import OnInDoubt
    from agentflow.api.streams import Stream

Headers = tuple[tuple[str, bytes], ...]

_OUTPUT = EventType.OutputEvent
_SHORT_TERM = MemoryType.SHORT_TERM
_decode_key = msgspec.msgpack.Decoder().decode


class RunnerContext(Reporting, msgspec.Struct, eq=False, weakref=True, repr_omit_defaults=True):
    """Handed to each action call, one per attempt; closed when the attempt ends.

    A Struct because one is made per call, and a Struct is made without running Python.
    """

    _services: ContextServices
    _task: TaskView
    _is_open: bool = True
    _sent: list[tuple[str | None, bytes | None]] | None = None
    _short_term: MemoryScope | None = None
    _sensory: MemoryScope | None = None
    _timers: list[tuple[str, int | None, bool, bytes]] | None = None
    _random: random_module.Random | None = None
    _headers: dict[int, Headers] | None = None
    _streams: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"RunnerContext(task={self._task.id!r}, attempt={self._task.attempt})"

    # -- what the run is about
    @property
    def key(self) -> Any:  # noqa: ANN401 (keys keep their type)
        """The decoded key of this run."""
        return _decode_key(self._task.run.state.key)

    @property
    def timestamp(self) -> int | None:
        """Event time of the run's input in epoch milliseconds; outputs inherit it. None where the source has none."""
        timestamp_ms: int | None = self._task.run.timestamp_ms
        return timestamp_ms

    @property
    def headers(self) -> Headers:
        """Headers of the run's input record, in order; a name may come twice. Empty where the source has none, and for timers."""
        headers: Headers = self._task.run.record.user_headers
        return headers

    @property
    def now(self) -> datetime:
        """The run's clock: when its input was admitted. The same in every action, attempt and recovery of the run."""
        return datetime.fromtimestamp(self._task.run.admitted_ms / 1000, tz=UTC)

    @property
    def run_id(self) -> str:
        """Id of the run: its source position."""
        return str(self._task.run.id)

    @property
    def task_id(self) -> str:
        """Id of this action task: the path of events and actions that led to it."""
        return self._task.id

    @property
    def attempt(self) -> int:
        """Number of this attempt, from 1."""
        return self._task.attempt

    @property
    def config(self) -> Configuration:
        """The job's options for its agents."""
        return self._services.config

    @property
    def action_config(self) -> dict[str, Any]:
        """What `Agent.add_action` was given as extra keywords."""
        return dict(self._task.action.config)

    def get_action_config_value(self, key: str) -> Any:  # noqa: ANN401 (user values)
        """Return one value of `action_config`; None when it is missing."""
        return self._task.action.config.get(key)

    @property
    def logger(self) -> Any:  # noqa: ANN401 (structlog's bound loggers have no common type)
        """A structlog logger, bound to job, agent, subtask, key, run, action, attempt, and the trace where there is one.

        Cheap until a line is written. In a command's process lines go to standard error; in a service of your own to its standard
        `logging`, as ``agentflow.agent``.
        """
        return self._services.logger(self._task)

    @property
    def random(self) -> random_module.Random:
        """A random generator seeded by job incarnation, run and task: a replay draws the same numbers."""
        if self._random is None:
            seed = f"{self._services.incarnation}/{self._task.id}".encode()
            self._random = random_module.Random(hashlib.blake2b(seed, digest_size=16).digest())  # noqa: S311
        return self._random

    def uuid(self) -> uuid_module.UUID:
        """Return a version 4 UUID from `random`: the same on every attempt and replay."""
        return uuid_module.UUID(int=self.random.getrandbits(128), version=4)

    # -- metrics
    @property
    def agent_metric_group(self) -> MetricGroup:
        """Metrics of the agent, which all of its actions share.

        An update counts at once, in memory, whoever exports it or not. It is no state: it counts also when the attempt fails, and
        again when the attempt is made again; a restarted process begins at zero.
        """
        services = self._services
        return services.metrics.group(services.agent)

    @property
    def action_metric_group(self) -> MetricGroup:
        """Metrics of the action; as those of the agent, with the attribute ``action``."""
        services = self._services
        return services.metrics.group(services.agent, self._task.action.name)

    # -- memory
    @property
    def short_term_memory(self) -> MemoryObject:
        """Memory of this key, across runs; durable, exactly once."""
        scope = self._short_term
        if scope is None:
            services, run = self._services, self._task.run
            state = run.state
            scope = self._short_term = MemoryScope(
                _SHORT_TERM,
                state.memory,
                services.fetch_memory,
                state,
                run.admitted_ms,
                services.memory_limits,
            )
        return MemoryObject(scope)

    @property
    def sensory_memory(self) -> MemoryObject:
        """Memory of this run; cleared when the run ends."""
        scope = self._sensory
        if scope is None:
            run = self._task.run
            scope = self._sensory = MemoryScope(
                MemoryType.SENSORY, run.sensory or {}, _no_entry, None, run.admitted_ms, self._services.sensory_limits
            )
        return MemoryObject(scope)

    def chat_history(self, name: str = "default") -> ChatHistory:
        """Return a conversation of this key, which is kept across runs in short-term memory."""
        from agentflow.api.chat_history import ChatHistory  # what talks to no model does not pay for it

        return ChatHistory(self, name)

    # -- effects of the action; they happen when it completes, all or none
    def send_event(self, event: Event) -> None:
        """Send an event to the actions it matches, or an `OutputEvent` out of the operator, when this action completes.

        The event is encoded here; changing it afterwards changes nothing.

        Raises:
            TypeError: Not an `Event`, or it holds something that cannot be encoded.
            RecordTooLarge: Above `record-max`.
            ContextClosed: The action has ended.
        """
        if not self._is_open:
            raise ContextClosed(
                "send_event after the action had ended", fix="keep no reference to ctx beyond the action"
            )
        if not isinstance(event, Event):
            msg = f"send_event takes an Event, not {type(event).__name__}; wrap it: OutputEvent(value) or Event('type', {{…}})"
            raise TypeError(msg)
        services = self._services
        event_type: str | None = event.type
        if event_type == _OUTPUT:
            event_type = None
            attributes = event.attributes
            value = attributes["output"]
            encoded = None if value is None and services.has_tombstones else services.encode_output(value)
            if "headers" in attributes:
                self._set_headers(attributes["headers"])
        elif event_type in _ENGINE_TYPES:
            msg = f"event type '{event_type}' belongs to the engine; choose another name"
            raise TypeError(msg)
        else:
            if event_type in _REQUESTS:  # who sends one waits for a response with its id
                task = self._task
                event.origin = SentOrigin(f"{task.id}/{len(self._sent or ())}", task)
            elif not event.type.isascii():
                check_text(event.type, "event type")
            encoded = services.encode_event(event.attributes)
        if encoded is not None and len(encoded) > services.output_max:
            _check_size(event.type, len(encoded), services)
        if self._sent is None:
            self._sent = [(event_type, encoded)]
        else:
            self._sent.append((event_type, encoded))

    def _set_headers(self, headers: Mapping[str, str | bytes]) -> None:
        if self._headers is None:
            self._headers = {}
        place = 0 if self._sent is None else len(self._sent)
        try:
            self._headers[place] = tuple(
                (name.encode().decode(), value if isinstance(value, bytes) else value.encode())
                for name, value in headers.items()
            )
        except AttributeError:
            msg = f"OutputEvent(headers=…) takes names with text or bytes, not {headers!r}; write {{'name': 'value'}}"
            raise TypeError(msg) from None

    def set_timer(
        self,
        name: str,
        *,
        at: datetime | None = None,
        after: timedelta | str | None = None,
        is_event_time: bool = False,
        attributes: dict[str, Any] | None = None,
    ) -> None:
        """Start a run of this key with a `TimerEvent` later. A timer of the same name is replaced.

        Args:
            name: Name of the timer, unique per key.
            at: When it is due. Exactly one of ``at`` and ``after``.
            after: How long after `now` (or, in event time, after `timestamp`) it is due.
            is_event_time: Due when the watermark reaches it, instead of by the clock.
            attributes: Go into the `TimerEvent`.
        """
        if (at is None) == (after is None):
            msg = "set_timer takes exactly one of at= and after="
            raise ValueError(msg)
        if at is not None:
            if at.tzinfo is None:
                msg = f"set_timer: at={at!r} has no time zone; use datetime.now(UTC) or .replace(tzinfo=UTC)"
                raise ValueError(msg)
            due_ms = round(at.timestamp() * 1000)
        else:
            start_ms = self._task.run.timestamp_ms if is_event_time else self._task.run.admitted_ms
            if start_ms is None:
                msg = "set_timer(after=…, is_event_time=True) needs an input with a timestamp; use at="
                raise ValueError(msg)
            due_ms = start_ms + duration_ms(after)  # type: ignore[arg-type]
        payload = self._services.encode_event({**(attributes or {}), "name": name, "due_ms": due_ms})
        self._order_timer((name, due_ms, is_event_time, payload))

    def cancel_timer(self, name: str) -> None:
        """Cancel the timer ``name`` of this key, of either kind of time; nothing happens when there is none."""
        check_text(name, "cancel_timer: name")
        self._order_timer((name, None, False, b""))

    def _order_timer(self, order: tuple[str, int | None, bool, bytes]) -> None:
        if not self._is_open:
            raise ContextClosed("a timer was set after the action had ended", fix="keep no reference to ctx")
        if self._timers is None:
            self._timers = []
        self._timers.append(order)

    def close(self) -> None:
        """Close the context: every later use raises ContextClosed. Called by the engine."""
        self._is_open = False
        for scope in (self._short_term, self._sensory):
            if scope is not None:
                scope.is_open = False
        for stream in (self._streams or {}).values():  # an attempt that has failed takes back what it has said
            stream.close(is_final=False)

    # -- durable steps
    def durable_execute(
        self,
        func: Callable[..., Any],
        /,
        *args: Any,  # noqa: ANN401
        name: str | None = None,
        on_in_doubt: OnInDoubt = "retry",
        retry: Retry | None = None,
        timeout: timedelta | str | None = None,
        cache: timedelta | str | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 (a user's value)
        """Call ``func`` as a step: its outcome is recorded, and once it is, ``func`` is not called again.

        For `def` actions; such an action runs in a thread. Returns the result, as its declared type; an error is raised, as
        its own class where that is Python's or declared by the agent, else as `StepFailed`.

        Args:
            func: The function.
            args: Its arguments; they are part of what the step is.
            name: What the step is called by in the journal; None: the function's module and name.
            on_in_doubt: What to do when a process died between the call and its record: ``retry`` (call again, with the same
                `idempotency_key`), ``fail`` (raise `InDoubt`), or `reconcile(function)`. The last two cost one record more.
            retry: What follows a call that raises; None: the error is the outcome. Calls and waits are recorded, so a restart
                goes on with them; a hint of the error (``retry_after``, or the Retry-After header of its response) is followed.
            timeout: Longest call, of async actions; a call that takes longer has failed with `TimeoutError`.
            cache: How long the result answers the same call (function and arguments) of later runs of this key too, without
                calling; measured by the runs' clocks. It is kept in short-term memory, below ``__cached_steps__``, when the
                action completes; members of a parallel group are answered by it and add nothing to it. Errors are not kept.
            kwargs: Its keyword arguments.

        Durability: the outcome is in the journal before this returns.

        Raises:
            NotRecordable: Arguments or result cannot be recorded; a TypeError.
            InDoubt: Nobody knows whether the call has happened.
            Divergence: Another step is recorded here.
            WrongContext: This would block the event loop.
        """
        runner, timeout_ms = self._step_runner("durable_execute"), None if timeout is None else duration_ms(timeout)
        cache_ms = None if cache is None else duration_ms(cache)
        work = runner.work(func, args, kwargs, name, on_in_doubt, retry, timeout_ms, cache_ms)
        return runner.execute_in_thread(self, work)

    def durable_execute_async(
        self,
        func: Callable[..., Any],
        /,
        *args: Any,  # noqa: ANN401
        name: str | None = None,
        on_in_doubt: OnInDoubt = "retry",
        retry: Retry | None = None,
        timeout: timedelta | str | None = None,
        cache: timedelta | str | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Awaitable[Any]:
        """Call ``func``, a function or a coroutine function, as a step of an async action; see `durable_execute`.

        Ordering: a step is named where it is called, not where it is awaited; steps in tasks of their own (`asyncio.gather`,
        `TaskGroup`) are named by their task's first step.
        """
        runner = self._step_runner("durable_execute_async")
        timeout_ms = None if timeout is None else duration_ms(timeout)
        cache_ms = None if cache is None else duration_ms(cache)
        work = runner.work(func, args, kwargs, name, on_in_doubt, retry, timeout_ms, cache_ms)
        return runner.execute(self, work)  # type: ignore[no-any-return]

    def gather(self, *aws: Awaitable[Any]) -> Awaitable[list[Any]]:
        """Await steps, or coroutines that call steps, at the same time; return their results in the order of the arguments.

        All of them are waited for, also when one fails; then the first error in the order of the arguments is raised. So the
        outcome does not depend on which was faster, and what a sibling has paid for is recorded.
        """
        return self._step_runner("gather").gather(self, aws)  # type: ignore[no-any-return]

    def as_completed(self, *aws: Awaitable[Any]) -> AsyncIterator[Any]:
        """Iterate over the results of steps, or of coroutines that call steps, in the order in which they end.

        The order is recorded as they end: a replay gives the same one. An error is raised at its turn.
        """
        return self._step_runner("as_completed").as_completed(self, aws)  # type: ignore[no-any-return]

    # -- time and people
    def sleep(self, duration: timedelta | str) -> Awaitable[None]:
        """Wait, durably: the deadline is recorded, and a restart waits for what is left of it.

        Outputs that were sent before it leave now. Behind a while the coroutine is closed and the run costs its state only;
        when the time comes, the action starts from its beginning and its recorded steps are answered.
        """
        runner = self._step_runner("sleep")
        return runner.sleep(self, duration_ms(duration))  # type: ignore[no-any-return]

    def wait_for(
        self,
        name: str,
        *,
        timeout: timedelta | str | None = None,
        default: Any = None,  # noqa: ANN401 (a user's value)
        correlation: str = "",
        about: Any = None,  # noqa: ANN401 (a user's value)
    ) -> Awaitable[Any]:
        """Wait for a signal to this key, durably; return its value.

        A signal that came before is taken from the buffer. Of several waits for one name the oldest gets the signal. Waits as
        `sleep` does.

        Args:
            name: Name of the signal.
            timeout: Longest wait, recorded as a deadline; None: no end. (`asyncio.timeout` around it is no state.)
            default: What is returned when the time is up.
            correlation: Tells apart waits for one name: only a signal with the same one ends this one.
            about: What people are shown of it by ``agentflow inbox`` and `Engine.inbox`: whatever JSON can carry. It is recorded with the
                wait, and may differ in a replay.
        """
        if not name:
            msg = "wait_for takes the name of a signal"
            raise ValueError(msg)
        check_text(name, "wait_for: name")
        check_text(correlation, "wait_for: correlation")
        timeout_ms = None if timeout is None else duration_ms(timeout)
        runner = self._step_runner("wait_for")
        return runner.wait_for(self, name, correlation, timeout_ms, default, about)  # type: ignore[no-any-return]

    def patch(self, change: str) -> bool:
        """Say whether this run goes the new way of a change of its code, so that old and new runs live side by side.

        False where records of the run show that it has gone past this point the old way; else True, which is recorded. Remove the
        old way when no run of it is unfinished (`agentflow runs list`), and then the call.

            if ctx.patch("ask-the-supplier-first"):
                await ctx.durable_execute_async(ask, …)
        """
        return self._step_runner("patch").patch(self, change)  # type: ignore[no-any-return]

    @property
    def idempotency_key(self) -> str:
        """Key of the step whose function is being called: the same on every attempt, by every owner, for 32 hex digits."""
        return self._step_runner("idempotency_key").idempotency_key(self)  # type: ignore[no-any-return]

    def _step_runner(self, feature: str) -> Any:  # noqa: ANN401 (the engine's)
        steps = self._services.steps
        if steps is None:
            _not_configured(feature, "no journal is configured, so the outcome could not be recorded")
        return steps

    # -- models and tools
    @property
    def resources(self) -> Any:  # noqa: ANN401 (`ResourceContext`, and what the built-in actions need)
        """The agent's resources."""
        return self._services.resources

    def get_resource(self, name: str, type: ResourceType) -> Any:  # noqa: A002, ANN401 (as in Flink Agents)
        """Return a resource of the agent; ``await`` it to have it open: ``await ctx.get_resource("db", …)``.

        Raises:
            NotConfigured: The agent has none of this name and type.
            ConfigError: It cannot be built.
        """
        return self._services.resources.get_resource(name, type)

    def chat(
        self,
        model: str,
        messages: Sequence[ChatMessage | str] | ChatMessage | str,
        *,
        prompt_args: Mapping[str, Any] | None = None,
        output: Any = None,  # noqa: ANN401 (a type or a schema)
        tools: Sequence[Any] = (),
        stream: Stream | str | None = None,
        max_turns: int | None = None,
        tenant: str = "",
        history: ChatHistory | str | None = None,
    ) -> Awaitable[ChatMessage]:
        """Ask a chat model of the agent, for async actions; return its last message. Each call of a model or tool is a durable step.

        Args:
            model: Name of the chat model.
            messages: The conversation; a text is a message of the user.
            prompt_args: Values for the placeholders of the model's prompt.
            output: What the answer has to be: a type (msgspec Struct, dataclass, TypedDict, pydantic model) or a JSON schema; the
                value is `ChatMessage.output`. An answer that does not fit goes back to the model with the reason.
            tools: Tools beside those of the model: names, functions, `Tool`s. What the model wants of them is called, all calls of a
                turn at the same time, until it answers.
            stream: Where tokens go as they come: ``ctx.stream("answer")``, or its name.
            max_turns: Most calls of the model; None: as the chat model says.
            tenant: Whose rate limits count.
            history: The conversation of this key (`chat_history`) that goes before ``messages``, and that they, what tools said and
                the answer are added to.

        Raises:
            ModelError: No call, and no fallback model, has led to an answer.
            BudgetExhausted: A call would spend more than a budget has left, or the turns are used up.
            OutputInvalid: The answer does not fit ``output``, also after it was told why.
            TypeError, ValueError: An argument is not what it should be, or there is nothing to ask; no model was called.
            WrongContext: This is no coroutine.
        """
        self._step_runner("chat").check_coroutine(self, "chat")
        if isinstance(stream, str):
            stream = self.stream(stream)
        elif stream is not None and not hasattr(stream, "begin_attempt"):
            raise TypeError(f"ctx.chat: stream is {stream!r}; give ctx.stream(name), or its name")
        return self._services.chat(
            self,
            model,
            messages,
            prompt_args=prompt_args,
            output=output,
            tools=tools,
            stream=stream,
            max_turns=max_turns,
            tenant=tenant,
            history=history,
        )

    def stream(self, name: str = "answer") -> Stream:
        """Return a stream of the run: what is written to it reaches whoever follows (`Engine.stream`, SSE, a topic) before it is durable.

        It is ``stream=`` of `chat`, and takes texts and values: ``ctx.stream("progress").write("searching")``. What a durable step has
        written is not written again when it is answered from the journal. Where nobody can follow, it is dropped.
        """
        streams = self._streams
        if streams is None:
            streams = self._streams = {}
        if (found := streams.get(name)) is None:
            check_text(name, "stream: name")
            found = streams[name] = self._services.stream(self._task, name)
        return found  # type: ignore[no-any-return]

    # -- declared with its final signature; this job does not have it
    @property
    def long_term_memory(self) -> Any:  # noqa: ANN401
        """External memory."""
        _not_configured("long_term_memory", "no long-term memory is configured")


_ENGINE_TYPES = frozenset({EventType.InputEvent, EventType.TimerEvent, EventType.CancelEvent})
_REQUESTS = frozenset({EventType.ChatRequestEvent, EventType.ToolRequestEvent})


class SentOrigin(msgspec.Struct, frozen=True):
    """Where a sent request comes from; see `agentflow.api.events.EventOrigin`."""

    event_id: str
    sender: Any

    @property
    def upstream_event_id(self) -> str | None:
        """Id of the event whose action sends this one."""
        event_id: str = self.sender.event_id
        return event_id

    @property
    def upstream_action_name(self) -> str | None:
        """Name of the action that sends it."""
        name: str = self.sender.action.name
        return name


def _check_size(event_type: str, size: int, services: ContextServices) -> None:
    """Raise RecordTooLarge for an event or output above its limit."""
    is_output = event_type == _OUTPUT
    if size > services.record_max:
        raise RecordTooLarge(
            f"event '{event_type}' has {size:,} bytes",
            expected=f"at most {services.record_max:,} bytes (record-max)",
            fix="send less, or put it into memory and send its MemoryRef",
        )
    if is_output:
        raise RecordTooLarge(
            f"the output has {size:,} bytes",
            expected=f"at most {services.output_max:,} bytes (the sink's limit; of a topic: max.message.bytes)",
            fix="send less, or raise the limit of the sink",
        )


def _no_entry(owner: None, path: str) -> None:  # noqa: ARG001 (the signature of a memory fetch)
    """Sensory memory has nothing below its cached entries."""
    return


def _not_configured(feature: str, reason: str) -> NoReturn:
    raise NotConfigured(f"ctx.{feature}: {reason}", fix="remove the call, or run the job on an engine that has it")

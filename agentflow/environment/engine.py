"""`Engine`: agents inside of an asyncio service. Somebody submits an input, and gets the outputs of its run.

```
async with Engine(ReviewAgent(), state_dir="./state") as engine:
    outputs = await engine.submit("p-1", {"stars": 2}, request_id="r-17")
```

It is a job without a source: inputs come from callers, and are durable, together with how their runs ended, before an answer leaves
(`core/requests.py`). It lives in the caller's event loop and touches nothing else of the process: no signal handler, no logging
configuration, no event-loop policy, no garbage collector.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec

from agentflow.api.agent import Agent
from agentflow.api.codecs import MSGPACK
from agentflow.api.durations import duration_ms
from agentflow.api.memory import MemoryLimits as Limits
from agentflow.api.memory import MemoryObject, read_only_memory
from agentflow.api.options import Configuration
from agentflow.core.results import RequestResult, result_name, result_name_of_id
from agentflow.environment.answers import Answers, NoSource, failure_of
from agentflow.environment.event_log import EventListener
from agentflow.environment.following import outputs_of, with_chunks
from agentflow.environment.openers import signals_opener, state_opener
from agentflow.environment.request_arguments import Headers, encoded_headers, encoded_value
from agentflow.environment.savepoints import savepoint_writer
from agentflow.environment.settings import engine_settings, settings_of
from agentflow.environment.telemetry import Telemetry
from agentflow.errors import AgentflowError, ConfigError, EngineClosed, UnknownRun
from agentflow.plan.compilation import Declared
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.chunks import ChunkBuffers
from agentflow.runtime.codecs import RECORD_KEY, encoded_key
from agentflow.runtime.inbox import Verdict, this_user
from agentflow.runtime.inspection import RunView, WaitView, waits_for_signals
from agentflow.runtime.intake import Intake
from agentflow.runtime.job import Job, SystemClock
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.ports import Clock, Sink
from agentflow.runtime.requests import OpenRequest, RequestTable, closed
from agentflow.runtime.resources import ResourceHealth
from agentflow.runtime.settings import JobSettings

if TYPE_CHECKING:
    from agentflow.observability.admin import AdminServer

_decode = msgspec.json.Decoder().decode
AgentOrPlan = Agent | AgentPlan


class EngineStats(msgspec.Struct, frozen=True, rename="kebab"):
    """What an engine is doing; a copy.

    Attributes:
        state: starting, restoring, running, restarting, draining, stopped or failed.
        agents: Names of its agents.
        requests: Requests admitted since the process began.
        answered: Requests of it whose run came to its end.
        failed: Requests whose run ended early.
        open: Requests that are not answered.
        waiting: Callers that wait until there is room.
        runs_in_flight: Unfinished runs, those of timers included.
        outputs: Outputs of all runs.
        dead_letters: Runs that failed for good.
        checkpoint: The last completed checkpoint.
        checkpoint_completed_ms: When it was, epoch milliseconds.
        restarts: Restarts of the subtask since the process began.
        restored_runs: Unfinished runs that the last start found.
        resources: How models, tools and the like are doing that were asked for.
    """

    state: str
    agents: tuple[str, ...]
    requests: int
    answered: int
    failed: int
    open: int
    waiting: int
    runs_in_flight: int
    outputs: int
    dead_letters: int
    checkpoint: int
    checkpoint_completed_ms: int | None
    restarts: int
    restored_runs: int
    resources: tuple[ResourceHealth, ...] = ()


class Engine:
    """Runs agents in the current event loop; an asynchronous context manager, used once.

    Args:
        agent: The agent, its plan, or several of either: each is asked for itself, by its name.
        state_dir: Directory of the state. An engine that is started on it again goes on with what was accepted.
        in_memory: Keep state in memory, lost with the process. One of both has to be said.
        config: Settings as in a job file (``{"checkpoint.interval": "5s", "run.in-flight-max": 500}``); the section ``config`` are
            the agents' own options. Or `JobSettings`.
        on_overload: At a limit let callers wait, first come, first served, or raise `EngineOverloaded`.
        sink: Takes every output of every run too, those of timers included, as the sink of a job does; None: outputs that
            answer nobody are counted and told in the log.
        dead_letters: Takes inputs whose run failed for good; its caller gets the error either way.
        resources: For agents that have none of this name and type: (name, type, descriptor or instance).
        event_listeners: Called with each record of the event log, in a thread of their own.
        on_event: Told of starts, restarts and the end as (name, fields).
        clock: Processing time; None: the system's.
    """

    def __init__(
        self,
        agent: AgentOrPlan | Sequence[AgentOrPlan],
        *,
        state_dir: str | None = None,
        in_memory: bool = False,
        config: Mapping[str, Any] | JobSettings | None = None,
        on_overload: Literal["wait", "raise"] = "wait",
        sink: Sink | Callable[[], Sink] | None = None,
        dead_letters: Sink | Callable[[], Sink] | None = None,
        resources: Sequence[Declared] = (),
        event_listeners: Sequence[EventListener] = (),
        on_event: Callable[[str, dict[str, object]], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        settings, options = (config, {}) if isinstance(config, JobSettings) else settings_of(config or {})
        self.settings = engine_settings(settings, state_dir, in_memory=in_memory)
        agents = list(agent) if isinstance(agent, Sequence) else [agent]
        self._plans = [_plan(one, options, resources) for one in agents]
        self._places = {plan.name: place for place, plan in enumerate(self._plans)}
        if len(self._places) < max(1, len(self._plans)):
            raise ConfigError(["an engine has one agent or several, each with a name of its own"])
        if on_overload not in ("wait", "raise"):
            raise ConfigError([f"on_overload: {on_overload!r} is unknown: 'wait' or 'raise'"])
        self._sinks = (sink, dead_letters)
        self._event_listeners = event_listeners
        self._on_event = on_event or (lambda name, fields: None)  # noqa: ARG005
        self._clock = clock or SystemClock()
        self._limits = Limits(self.settings.state.value_max_bytes, self.settings.state.ttl_ms)
        streams = self.settings.streams
        buffers = ChunkBuffers(streams.run_buffer_bytes, streams.buffer_bytes)
        self._table = RequestTable(self.settings.run.in_flight_max, buffers)
        self._intake = Intake(self._table, self._result_of, self.settings, self._clock, waits=on_overload == "wait")
        self._job: Job | None = None
        self._admin: AdminServer | None = None
        self._running: asyncio.Task[None] | None = None
        self._started = asyncio.Event()

    # -- life
    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Open the state, take unfinished runs up, and admit requests.

        Raises:
            AgentflowError: The state cannot be opened, or an agent is not what its unfinished runs need.
        """
        if self._job is not None:
            msg = "an engine is started once: make another one on the same state_dir"
            raise RuntimeError(msg)
        telemetry = Telemetry(self.settings, self._event_listeners)
        try:
            self._admin = telemetry.serve(self._not_ready)
        except ConfigError:
            await telemetry.close()
            raise
        spec = JobSpec(
            self.settings,
            tuple(AgentStage(plan, RECORD_KEY) for plan in self._plans),
            NoSource,
            self._open_sinks,
            state_opener(self.settings),
            open_signals=signals_opener(self.settings),
            observers=telemetry.observers(0),
            requests=self._table,
            is_chain=False,
            metrics=telemetry.registry,
            stream_outlet=telemetry.stream_outlet,
            on_end=telemetry.close,
            write_savepoint=savepoint_writer(self.settings),
        )
        self._job = job = Job(spec, clock=self._clock, on_event=self._note)
        telemetry.watch(job)
        self._running = asyncio.get_running_loop().create_task(self._run(job), name="agentflow-engine")
        started = asyncio.ensure_future(self._started.wait())
        try:
            await asyncio.wait([started, self._running], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._abandon()
            raise
        finally:
            started.cancel()
        if self._running.done():
            await self._running

    async def _abandon(self) -> None:
        """Give up a start whose caller was cancelled: nobody would close the engine."""
        assert self._job is not None
        assert self._running is not None
        self._job.request_stop()
        self._job.request_stop()
        await asyncio.wait([self._running])
        with contextlib.suppress(AgentflowError):
            self._running.result()  # whatever it was: nobody is there who could be told

    async def _run(self, job: Job) -> None:
        reason: Exception = closed()
        try:
            await job.run()
        except AgentflowError as error:
            reason = error
            raise
        finally:
            self._table.close(reason)
            if self._admin is not None:
                self._admin.close()

    def _not_ready(self) -> str | None:
        state = "starting" if self._job is None else self._job.status.state
        return None if state in ("running", "draining") else f"the engine is {state}"

    def _note(self, name: str, fields: dict[str, object]) -> None:
        if name == "started":
            self._started.set()
        self._on_event(name, fields)

    def _open_sinks(self) -> Mapping[str, Sink]:
        sink, dead = (opened() if callable(opened) else opened for opened in self._sinks)
        return {"sink": sink or Answers("sink"), "dead-letter": dead or Answers("dead-letter")}

    async def close(self) -> None:
        """Admit nothing more, wait for unfinished runs up to ``shutdown.drain-timeout``, take a last checkpoint. Idempotent.

        What has not ended then goes on when an engine is started on the same state; whoever waits for it gets `EngineClosed`.

        Raises:
            AgentflowError: The engine has failed; its last completed checkpoint, and what was accepted, are intact.
        """
        if self._job is None or self._running is None:
            return
        self._job.request_stop()
        while not self._running.done():
            try:
                await asyncio.wait([self._running])
            except asyncio.CancelledError:  # whoever closes is in a hurry: no longer for runs, but for the checkpoint
                self._job.request_stop()
                await asyncio.wait([self._running])
                raise
        await self._running

    # -- requests
    async def submit(
        self,
        key: object,
        value: object,
        *,
        request_id: str | None = None,
        timeout: timedelta | str | float | None = None,  # noqa: ASYNC109 (the caller's word for it)
        agent: str | None = None,
        headers: Headers | None = None,
    ) -> list[Any]:
        """Run an agent on an input and return the outputs of its run, in order, as values of JSON.

        Args:
            key: The key: a str, int, float, bool or bytes. Runs of a key take turns.
            value: The input: whatever an `InputEvent` can carry.
            request_id: Id of the request. A second one with the same id joins the first, or gets its outputs, also after a restart,
                for `request-id.retention`; without one, every call is a run.
            timeout: Longest wait (``"5s"``, a timedelta, seconds); the run goes on behind it.
            agent: Name of the agent, where the engine has several.
            headers: Of the input: `ctx.headers`; ``traceparent`` continues a trace.

        Durability: the input, what the run did to memory, and its outputs are durable when this returns.

        Raises:
            RunFailed: The run ended early: its action failed for good, or it was cancelled.
            EngineOverloaded: A limit is reached, and callers do not wait; or that of the key.
            EngineClosed: The engine ends; the run goes on when it is started again.
            RequestMismatch: The request with this id has another key or input.
            TimeoutError: ``timeout`` is over.
            TypeError: The key cannot be one, or the value cannot be encoded.
        """
        if timeout is not None:
            async with asyncio.timeout(_seconds(timeout)):
                return await self.submit(key, value, request_id=request_id, agent=agent, headers=headers)
        request = self._enter(key, value, request_id, agent, headers)
        if isinstance(request, Coroutine):
            request = await request
        if type(request) is OpenRequest:
            await request.end()
            if request.error is not None:
                raise failure_of(request)
            return [None if output is None else _decode(output) for output in request.outputs]
        return outputs_of(request)  # type: ignore[arg-type]

    async def stream(
        self,
        key: object,
        value: object,
        *,
        request_id: str | None = None,
        agent: str | None = None,
        headers: Headers | None = None,
        skip: int = 0,
        tokens: bool = False,
        after: int = 0,
    ) -> AsyncIterator[Any]:
        """Run an agent on an input and yield its outputs as they are emitted: each when its task, or what is before a wait, is durable.

        With ``tokens`` also what its actions write to `ctx.stream`, as `StreamChunk` between the outputs: at once, and not durable.

        Args:
            key: As in `submit`.
            value: As in `submit`.
            request_id: As in `submit`; a stream that was cut goes on with the same id and ``skip``.
            agent: As in `submit`.
            headers: As in `submit`.
            skip: So many outputs are known to the caller and are left out.
            tokens: Yield chunks too.
            after: Offset of the last chunk that the caller has. Where what follows it is not there any more, a `reset` or a `gap` says so.

        Raises:
            RunFailed, EngineOverloaded, EngineClosed, RequestMismatch, TypeError: As `submit`.
            ValueError: ``skip`` or ``after`` is negative.
        """
        if min(skip, after) < 0:
            msg = f"stream: skip and after count from 0, not {skip} and {after}"
            raise ValueError(msg)
        request = self._enter(key, value, request_id, agent, headers)
        if isinstance(request, Coroutine):
            request = await request
        if tokens:
            async with contextlib.aclosing(with_chunks(self._table, request, skip, after)) as found:
                async for one in found:
                    yield one
        elif type(request) is OpenRequest:
            while True:
                outputs = request.outputs
                while skip < len(outputs):
                    output = outputs[skip]
                    skip += 1
                    yield None if output is None else _decode(output)
                    outputs = request.outputs
                if request.is_over:
                    break
                await request.news()
            if request.error is not None:
                raise failure_of(request)
        else:
            for output in outputs_of(request)[skip:]:  # type: ignore[arg-type]
                yield output

    async def send(
        self,
        key: object,
        value: object,
        *,
        request_id: str | None = None,
        agent: str | None = None,
        headers: Headers | None = None,
    ) -> str:
        """Accept an input durably and return the id of its run; `result` waits for the outputs.

        Raises:
            EngineOverloaded, EngineClosed, RequestMismatch, TypeError: As `submit`.
        """
        request = self._enter(key, value, request_id, agent, headers, is_sent=True)
        if isinstance(request, Coroutine):
            request = await request
        if type(request) is OpenRequest:
            await request.accepted()
        return request.run_id

    async def result(
        self,
        run_id: str = "",
        *,
        request_id: str | None = None,
        agent: str | None = None,
        timeout: timedelta | str | float | None = None,  # noqa: ASYNC109 (the caller's word for it)
    ) -> list[Any]:
        """Return the outputs of a run that `send` began, or of a request by its id, when the run is over; kept for `request-id.retention`.

        Raises:
            RunFailed: As `submit`.
            EngineClosed: The engine ends before the run does.
            UnknownRun: There is no such run, or its result is not kept, or not any more.
            TimeoutError: ``timeout`` is over; the run goes on.
        """
        if timeout is not None:
            async with asyncio.timeout(_seconds(timeout)):
                return await self.result(run_id, request_id=request_id, agent=agent)
        if self._job is None:
            raise _not_started()
        if not isinstance(run_id, str):
            msg = f"a run id is a text, not {run_id!r}"
            raise TypeError(msg)
        await self._table.attached.wait()
        if request_id is not None:
            places = [self._place(agent)]
            request = self._table.find_id(places[0], request_id)
            name = result_name_of_id(request_id)
        else:
            places = [self._place(agent)] if agent is not None else list(self._places.values())
            request = self._table.find(run_id)
            name = result_name(run_id)
        if request is not None:
            await request.end()
            if request.error is not None:
                raise failure_of(request)
            return [None if output is None else _decode(output) for output in request.outputs]
        for place in places:
            kept = self._intake.kept(place, name)
            if kept is not None and run_id in ("", kept.run_id):
                return outputs_of(kept)
        raise UnknownRun(
            "there is no such run, its result is not kept, or not any more",
            where={"run": run_id or None, "request_id": request_id},
            expected="a run that `send` began, or a request with an id, within request-id.retention",
            fix="raise request-id.retention, or ask sooner",
        )

    def _enter(
        self,
        key: object,
        value: object,
        request_id: str | None,
        agent: str | None,
        headers: Headers | None,
        *,
        is_sent: bool = False,
    ) -> OpenRequest | RequestResult | Coroutine[Any, Any, OpenRequest | RequestResult]:
        """Submit an input, or find what is known of its request; a coroutine: its caller has to wait for room."""
        if self._job is None:
            raise _not_started()
        place = 0 if agent is None and len(self._plans) == 1 else self._place(agent)
        asked = (
            place,
            encoded_key(key),
            encoded_value(value),
            request_id,
            () if headers is None else encoded_headers(headers),
        )
        return self._intake.enter(*asked, is_sent=is_sent) or self._intake.enter_later(*asked, is_sent=is_sent)

    def _result_of(self, place: int, name: str) -> bytes | None:
        return None if self._job is None else self._job.result_of(place, name)

    # -- looking and talking
    async def signal(
        self, key: object, name: str, value: object = None, *, correlation: str = "", run: str = "", agent: str = ""
    ) -> None:
        """Send a signal to runs that wait for it (`ctx.wait_for`), or will; durable when this returns. See `Job.signal`."""
        await self._running_job().signal(
            key, name, value, correlation=correlation, run=run, agent=self._addressed(agent)
        )

    async def cancel(self, key: object, *, run: str = "", reason: str = "", agent: str = "") -> None:
        """Cancel the active run of a key, or the one with an id; its caller gets `RunFailed` (``RunCancelled``). See `Job.cancel`."""
        await self._running_job().cancel(key, run=run, reason=reason, agent=self._addressed(agent))

    async def retry(self, key: object, *, agent: str = "") -> None:
        """Try at once what the active run of a key would try later."""
        await self._running_job().retry(key, agent=self._addressed(agent))

    def inbox(self, *, agent: str | None = None, limit: int = 1000) -> list[WaitView]:
        """Return who waits for a signal, longest first, of at most ``limit`` runs of each agent; what is secret by the rules is left out."""
        return waits_for_signals(self.runs(agent=agent, limit=limit))

    async def approve(
        self, wait_id: str, *, reason: str = "", arguments: dict[str, Any] | None = None, by: str | None = None
    ) -> None:
        """Approve what a wait of the `inbox` is about, by its id or its first digits; durable when this returns. The first answer counts.

        ``arguments``, a dict, replace all that the model wants; ``reason`` and ``by`` (None: the user of this process) are for the record.

        Raises:
            UnknownWait: There is no such wait, or it is answered already.
            ConfigError: The digits are those of several waits, it waits for another signal, or ``arguments`` do not fit its tool.
            TypeError: ``arguments`` are no dict.
        """
        if not isinstance(arguments, dict | None):
            msg = f"approve: arguments is a dict of the call's arguments by name, not {arguments!r}"
            raise TypeError(msg)
        verdict = Verdict(approved=True, by=by or this_user(), reason=reason, arguments=arguments)
        await self._running_job().answer(wait_id, verdict)

    async def deny(self, wait_id: str, *, reason: str = "", by: str | None = None) -> None:
        """Deny a call that waits for an approval; the model is told, with the reason. As `approve`."""
        await self._running_job().answer(wait_id, Verdict(approved=False, by=by or this_user(), reason=reason))

    async def savepoint(self, target: str | os.PathLike[str]) -> str:
        """Take a savepoint while the engine runs, and return where it is. See `Job.savepoint`; restore: `agentflow savepoint restore`."""
        return await self._running_job().savepoint(target)

    def runs(self, *, agent: str | None = None, limit: int = 100) -> list[RunView]:
        """Return unfinished runs, at most ``limit`` of each agent: their key, state, task, steps; as they are at this moment."""
        places = self._places.values() if agent is None else [self._place(agent)]
        return [run for place in places for run in self._running_job().unfinished(place, limit)]

    def run(self, run_id: str) -> RunView | None:
        """Return an unfinished run; None: there is none of that id (it may have ended: see `result`)."""
        job = self._running_job()
        found = (job.unfinished(place, 1, run_id) for place in self._places.values())
        return next((run for runs in found for run in runs), None)

    def memory(self, key: object, *, agent: str | None = None) -> MemoryObject:
        """Return the short-term memory of a key, to read: as the last completed task left it, at this moment."""
        entries = self._running_job().memory_of(self._place(agent), encoded_key(key))
        return read_only_memory(entries, self._clock.now_ms(), self._limits)

    def stats(self) -> EngineStats:
        """Return what the engine is doing."""
        table = self._table
        status = None if self._job is None else self._job.status
        return EngineStats(
            "starting" if status is None else status.state,
            tuple(plan.name for plan in self._plans),
            0 if status is None else status.records_in,
            table.answered,
            table.failed,
            table.open_count,
            table.blocked_count,
            0 if status is None else status.runs_in_flight,
            0 if status is None else status.records_out,
            0 if status is None else status.dead_letters,
            0 if status is None else status.checkpoint,
            None if status is None else status.checkpoint_completed_ms,
            0 if status is None else status.restarts,
            0 if status is None else status.restored_runs,
            () if self._job is None else tuple(self._job.resources.health()),
        )

    @property
    def plans(self) -> tuple[AgentPlan, ...]:
        """The compiled agents, in the order in which they were given."""
        return tuple(self._plans)

    def _running_job(self) -> Job:
        if self._job is None or self._running is None or self._running.done():
            raise closed()
        return self._job

    def _place(self, agent: str | None) -> int:
        if agent is None and len(self._plans) == 1:
            return 0
        if agent is None or agent not in self._places:
            known = ", ".join(self._places)
            what = f"there is no agent '{agent}'" if agent else "the engine has several agents"
            raise ConfigError([f"{what}: name one of {known} (agent=…)"])
        return self._places[agent]

    def _addressed(self, agent: str) -> str:
        self._place(agent or None)
        return agent


def _plan(agent: object, options: Mapping[str, Any], resources: Sequence[Declared]) -> AgentPlan:
    if isinstance(agent, AgentPlan):
        return agent
    if isinstance(agent, Agent):
        return AgentPlan.from_agent(agent, Configuration(options), resources)
    if isinstance(agent, type) and issubclass(agent, Agent):
        raise ConfigError([f"give an agent, not its class: {agent.__name__}()"])
    raise ConfigError([f"{agent!r} is neither an Agent nor an AgentPlan"])


def _not_started() -> EngineClosed:
    return EngineClosed(
        "the engine is not started",
        expected="async with Engine(…) as engine",
        fix="await engine.start(), and close() at its end",
    )


def _seconds(timeout: timedelta | str | float) -> float:
    seconds = timeout if isinstance(timeout, int | float) else duration_ms(timeout) / 1000
    if math.isnan(seconds):
        msg = "timeout: nan is no time"
        raise ValueError(msg)
    return seconds


assert MSGPACK.name == "msgpack", "inputs are encoded for `NoSource`, whose codec it is"

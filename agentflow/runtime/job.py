"""A job: one agent chain from a source to sinks, restarted after infrastructure errors.

```
starting ─► restoring ─► running ─► draining ─► finished      end of input, or request_stop (then: stopped)
               ▲            │
               │            └─────────┬─► failed              FAIL_JOB, or the restart strategy gave up
               └───── restarting ◄────┘
```
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import msgspec

from agentflow.api.codecs import MSGPACK, Codec
from agentflow.api.metrics import MetricRegistry
from agentflow.core.delta import StateWrite, StoredRow, Table
from agentflow.core.effects import Headed
from agentflow.core.failures import FailurePolicy
from agentflow.core.operator import Operator
from agentflow.core.trace_context import TraceIds
from agentflow.errors import (
    AgentflowError,
    ConfigError,
    InternalError,
    NotConfigured,
    Recovery,
    RestartsExhausted,
    StateMismatch,
)
from agentflow.runtime.action_runner import ActionRunner
from agentflow.runtime.blocking import BlockingThreads
from agentflow.runtime.checkpoints import EmbeddedCheckpoints
from agentflow.runtime.codecs import KeyReader, TimestampReader, input_decoder, output_encoder
from agentflow.runtime.counters import Counters
from agentflow.runtime.epoch_writer import EpochWriter
from agentflow.runtime.figures import SubtaskFigures
from agentflow.runtime.inbox import UNREDACTED, Verdict, answer_document, check_arguments, find_wait, may_name_run
from agentflow.runtime.inspection import RunView, unfinished_runs
from agentflow.runtime.intake import Intake
from agentflow.runtime.job_spec import JobSpec, operator_limits
from agentflow.runtime.job_status import JobStatus
from agentflow.runtime.logs import logger_of
from agentflow.runtime.observation import Observation
from agentflow.runtime.ports import Clock, Guarantee, Ingress, KeyedState, Signals, Sink, Source
from agentflow.runtime.record_reader import RecordReader
from agentflow.runtime.redaction import Redaction
from agentflow.runtime.replay_check import diverging_runs, is_changed
from agentflow.runtime.requests import RequestTable, closed
from agentflow.runtime.resources import Resources
from agentflow.runtime.services import OperatorServices
from agentflow.runtime.settings import JobSettings
from agentflow.runtime.signals import SignalReader, encode_control, encode_signal
from agentflow.runtime.stage import Stage
from agentflow.runtime.step_runner import StepRunner, current_step
from agentflow.runtime.stored_job import StoredJob, read_stored_job
from agentflow.runtime.streams import Streams
from agentflow.runtime.subtask import Subtask


class SystemClock:
    """The machine's clock, kept from going backwards."""

    def __init__(self) -> None:
        self._last_ms = 0

    def now_ms(self) -> int:
        """Return epoch milliseconds."""
        now_ms = time.time_ns() // 1_000_000
        if now_ms > self._last_ms:  # noqa: PLR1730 (asked for with every step: max() takes twice as long)
            self._last_ms = now_ms
        return self._last_ms


class Job:
    """Runs a `JobSpec` in the current event loop.

    Args:
        spec: What to run.
        clock: Processing time.
        on_event: Told of starts, restarts and the end as (name, fields); for logs.
    """

    def __init__(
        self,
        spec: JobSpec,
        *,
        clock: Clock | None = None,
        on_event: Callable[[str, dict[str, object]], None] | None = None,
    ) -> None:
        self._spec = spec
        self._clock = clock or SystemClock()
        self._on_event = on_event or (lambda name, fields: None)  # noqa: ARG005
        self._counters = Counters()
        self._status = JobStatus()
        self._subtask: Subtask | None = None
        self._state: KeyedState | None = None
        self._signals: Signals | None = None
        self._requests = spec.requests
        self._stops = 0
        self._stopped = asyncio.Event()
        self._metrics = spec.metrics or MetricRegistry()
        self.resources = spec.resources or Resources()
        """What its agents have opened: models, tools."""
        self._earlier_threads: list[BlockingThreads] = []  # of earlier lives, that have not come back

    @property
    def figures(self) -> SubtaskFigures | None:
        """What its subtask holds now, None: there is none; on the loop."""
        return None if self._subtask is None else self._subtask.figures

    @property
    def requests(self) -> RequestTable | None:
        """Requests that it was asked; None: it takes none, or has not begun."""
        return self._requests

    @property
    def status(self) -> JobStatus:
        """What the job is doing now."""
        status, counters = self._status, self._counters
        subtask = self._subtask
        in_flight = 0 if subtask is None else subtask.runs_in_flight
        timers = status.timers_pending if subtask is None else self._timers_of(subtask)
        return msgspec.structs.replace(
            status,
            records_in=counters.records_in,
            records_out=counters.records_out,
            dead_letters=counters.dead_letters,
            undone=counters.undone,
            runs_in_flight=in_flight,
            timers_pending=timers,
            checkpoint=counters.checkpoint,
            checkpoint_completed_ms=counters.checkpoint_completed_ms,
            checkpoint_ms=counters.checkpoint_ms,
            checkpoint_bytes=counters.checkpoint_bytes,
        )

    @property
    def is_stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stops > 0

    def request_stop(self) -> None:
        """Admit nothing more, drain, take a final checkpoint and return from `run`; again: do not wait for runs."""
        self._stops += 1
        self._stopped.set()
        if self._subtask is not None:
            self._status.state = "draining"
            self._subtask.stop()

    async def checkpoint_now(self) -> None:
        """Take a checkpoint beside the regular ones; nothing where the job is not running. Its error is the job's own."""
        if self._subtask is not None:
            await self._subtask.checkpoint_now()

    async def savepoint(self, target: str | os.PathLike[str]) -> str:
        """Take a savepoint of the running job, and return where it is; see `agentflow.runtime.savepoints`.

        The job goes on meanwhile; its next checkpoint waits for some ms.

        Args:
            target: Directory that holds savepoints of the job, or will; what it has already is not copied again.

        Raises:
            NotConfigured: The job is not running, or its state is in memory or in a changelog.
            StateError: It cannot be written, or the job ended before it was taken.
        """
        write = self._spec.write_savepoint
        if write is None or self._subtask is None:
            raise NotConfigured(
                "no savepoint can be taken: "
                + ("the job is not running" if write is not None else "its state is in no directory of its own"),
                expected="a running job with state.dir",
                fix="of a stopped job, or of one over Kafka, it is taken by: agentflow savepoint create",
            )
        return await write(self._export, os.fspath(target))

    async def _export(self, request: str) -> None:
        if self._subtask is None:
            return
        exporting = self._subtask.export(request)
        await asyncio.wait([exporting])
        if not exporting.cancelled():
            exporting.result()

    async def signal(
        self, key: object, name: str, value: object = None, *, correlation: str = "", run: str = "", agent: str = ""
    ) -> None:
        """Send a signal to runs that wait for it (`ctx.wait_for`), or will; durable, as the job's state is, when this returns.

        Args:
            key: Key of the run.
            name: Name of the signal.
            value: What `wait_for` returns: whatever JSON can carry.
            correlation: Only waits with the same one are meant.
            run: Only the run with this id is meant.
            agent: Name of the agent, where the job chains several.

        Raises:
            NotConfigured: The job is not running, or takes no signals.
        """
        await self._send(encode_signal(key, name, value, correlation=correlation, run=run, agent=agent))

    async def cancel(self, key: object, *, run: str = "", reason: str = "", agent: str = "") -> None:
        """Cancel the active run of a key, or the one with an id; what listens to `CancelEvent` compensates.

        The request is durable, as the job's state is, when this returns; the run stops a moment later.

        Raises:
            NotConfigured: The job is not running, or takes no signals.
        """
        await self._send(encode_control(key, "cancel", run=run, reason=reason, agent=agent))

    async def retry(self, key: object, *, agent: str = "") -> None:
        """Try at once what the active run of a key would try later: its action, or its steps.

        Raises:
            NotConfigured: The job is not running, or takes no signals.
        """
        await self._send(encode_control(key, "retry", agent=agent))

    def memory_of(self, agent: int, key: bytes) -> dict[str, bytes | None]:
        """Return the short-term memory of a key as its last completed task left it: stored values by path.

        Args:
            agent: Place of the agent.
            key: Canonical encoding of the key.

        Raises:
            NotConfigured: The job is not running.
        """
        if self._subtask is None or self._state is None:
            raise NotConfigured("there is no memory to look at: the job is not running", fix="start it")
        cached = self._subtask.operator(agent).keys.states.get(key)
        stored: dict[str, bytes | None] = dict(self._state.scan(agent, key, ""))
        if cached is not None:
            stored.update(cached.memory)
        return stored

    async def answer(self, wait_id: str, verdict: Verdict) -> None:
        """Approve or deny what waits for an approval; durable, as the job's state is, when this returns.

        Args:
            wait_id: Id of the wait, or its first digits.
            verdict: What is said.

        Raises:
            UnknownWait: There is none, or it has ended.
            ConfigError: The digits are those of several, it waits for something else, or the arguments do not fit its tool.
            NotConfigured: The job is not running, or takes no signals.
        """
        if self._subtask is None:
            raise _nobody()
        named = [
            run
            for place in range(len(self._spec.stages))
            for run_id in self._subtask.operator(place).unfinished.run_ids
            if may_name_run(wait_id, place, run_id)
            for run in self.unfinished(place, 1, run_id, UNREDACTED)
        ]
        wait = find_wait(named, wait_id)
        check_arguments(wait, verdict, self._spec.stages[wait.agent].plan.resources)
        await self._send(answer_document(wait, verdict))

    def unfinished(
        self, agent: int, runs_max: int, run_id: str | None = None, redaction: Redaction | None = None
    ) -> list[RunView]:
        """Return unfinished runs of an agent, as they are now.

        Args:
            agent: Place of the agent.
            runs_max: Most runs.
            run_id: Only the run with this id; None: any.
            redaction: What must not be seen; None: what the job's rules say.
        """
        if self._subtask is None:
            return []
        runs, steps = self._subtask.operator(agent).unfinished.rows(runs_max, run_id)
        rules = redaction or Redaction(self._spec.settings.redaction)
        return unfinished_runs(map(_stored, runs), map(_stored, steps), (), self.status.checkpoint, rules)

    def result_of(self, agent: int, name: str) -> bytes | None:
        """Return the kept result of a request, as a completed checkpoint has it; None when there is none."""
        return None if self._state is None else self._state.find(Table.RESULTS, agent, b"", name)

    async def _send(self, document: bytes) -> None:
        if self._signals is None:
            raise _nobody()
        await self._signals.append(document)

    async def run(self) -> JobStatus:
        """Run to the end of input, or until `request_stop`.

        Raises:
            AgentflowError: The job failed; its last completed checkpoint is intact.
        """
        try:
            return await self._run()
        finally:
            if self._requests is not None and self._requests is not self._spec.requests:
                self._requests.close(closed())
            if self._spec.resources is None:
                await self.resources.close()
            if self._spec.on_end is not None:
                await self._spec.on_end()

    async def _run(self) -> JobStatus:
        restart, attempt = self._spec.settings.restart, 0
        while True:
            checkpoint_before = self._counters.checkpoint
            try:
                await self._run_once()
            except AgentflowError as error:
                failure = error
            except TimeoutError as error:
                failure = _as_internal(error, "a checkpoint took longer than checkpoint.timeout")
            except (
                ArithmeticError,
                AttributeError,
                LookupError,
                OSError,
                RuntimeError,
                TypeError,
                ValueError,
            ) as error:
                failure = _as_internal(error, f"{type(error).__name__}: {error}")
            else:
                self._status.state = "stopped" if self._stops else "finished"
                self._tell_timers()
                self._on_event(self._status.state, msgspec.structs.asdict(self.status))
                return self.status
            self._counters.undo()
            if failure.recovery is not Recovery.RESTART_SUBTASK or restart.strategy == "none" or self._stops:
                self._status.state = "failed"
                raise failure
            of_the_start = self._requests is not None  # it keeps the number of the life, and is no progress
            attempt = 1 if self._counters.checkpoint > checkpoint_before + of_the_start else attempt + 1
            if attempt > restart.attempts:
                self._status.state = "failed"
                raise RestartsExhausted(
                    f"the job failed {attempt} times without completing a checkpoint; the last time: {failure.what}",
                    where=failure.where,
                    fix=failure.fix
                    or "look at the cause, then start the job again: it goes on from its last checkpoint",
                ) from failure
            await self._wait_before_restart(attempt, failure)

    async def _wait_before_restart(self, attempt: int, failure: AgentflowError) -> None:
        delay_ms = self._spec.settings.restart.delay_before(attempt)
        self._status.restarts += 1
        self._status.state = "restarting"
        self._on_event("restarting", {"error": str(failure), "attempt": attempt, "delay_ms": delay_ms})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_ms / 1000):
                await self._stopped.wait()

    async def _run_once(self) -> None:
        self._status.state = "restoring"
        spec, began = self._spec, time.monotonic()
        self._check_guarantees(source := spec.open_source(), sinks := spec.open_sinks())
        if isinstance(source, Ingress):
            self._accept_from(source)
        state: KeyedState | None = None
        blocking = spec.settings.blocking
        threads = BlockingThreads(blocking.threads_max, blocking.leaked_max, self._earlier_threads)
        try:
            opened = spec.open_state()
            state = await opened if isinstance(opened, Awaitable) else opened
            checkpoints = EmbeddedCheckpoints(state, sinks)
            self._counters.recover(await checkpoints.recover())
            stored = await read_stored_job(state, len(spec.stages))
            if not spec.settings.run.accept_changes:
                await self._refuse_divergence(source, state, stored)
            await source.open(stored.positions)
            signals = self._signals = spec.open_signals()
            if signals is not None:
                await signals.open(stored.positions)
            self._state = state
            subtask = self._subtask = self._make_subtask(source, sinks, checkpoints, state, threads, stored)
            if state.journal is not None:
                subtask.use_journal(state.journal, stored.journal_end)
            if signals is not None:
                subtask.use_signals(signals, SignalReader([stage.plan.name for stage in spec.stages]))
            if self._requests is not None:
                subtask.use_requests(self._requests, self.result_of)
            self._status.restored_checkpoint = self._counters.checkpoint
            self._status.restored_runs = subtask.runs_in_flight
            self._status.restore_ms = round((time.monotonic() - began) * 1000)
            self._status.state = "running"
            self._on_event("started", msgspec.structs.asdict(self.status))
            for _ in range(self._stops):
                subtask.stop()
            await subtask.run()
            self._status.timers_pending = self._timers_of(subtask)
        finally:
            signals, self._subtask, self._signals, self._state = self._signals, None, None, None
            threads.close()
            self._earlier_threads = [one for one in (*self._earlier_threads, threads) if one.leaked]
            try:
                await source.close()
                if signals is not None:
                    await signals.close()
                for sink in sinks.values():
                    await sink.close()
            finally:  # also when it is cancelled once more: nobody else can give the directory back
                if state is not None:
                    state.close()

    def _timers_of(self, subtask: Subtask) -> int:
        return sum(subtask.operator(index).timers_pending for index in range(len(self._spec.stages)))

    def _tell_timers(self) -> None:
        """Say that the end of the input left timers, which nothing else shows."""
        count, is_durable = self._status.timers_pending, self._spec.settings.state.dir is not None
        if count and self._status.state == "finished":
            outcome = (
                "they fire with its next start" if is_durable else "they are lost with its state, which is in memory"
            )
            event = f"the job has finished, and timers are still set: {outcome}"
            logger_of("agentflow.engine").warning(event, job=self._spec.settings.job, timers=count)

    def _accept_from(self, ingress: Ingress) -> None:
        """Let the records of a source be requests that want no answer but that they are durable."""
        spec = self._spec
        if self._requests is None:
            self._requests = RequestTable(spec.settings.run.in_flight_max)
        intake = Intake(self._requests, self.result_of, spec.settings, self._clock, waits=False)
        ingress.accept_by(intake.accepting(KeyReader(spec.stages[0].key_by, ingress.codec).read))

    async def _refuse_divergence(self, source: Source, state: KeyedState, stored: StoredJob) -> None:
        """Refuse to start with a changed agent that unfinished runs would diverge from.

        Raises:
            StateMismatch: Names one of them.
        """
        for index, stage in enumerate(self._spec.stages):
            rows, journal = stored.rows[index], stored.journal[index]
            if not (rows.get(Table.STEPS) or journal) or not is_changed(stage.plan, rows):
                continue
            codec = source.codec if index == 0 else MSGPACK
            found = await diverging_runs(
                stage.plan,
                self._spec.settings,
                codec,
                state,
                rows,
                journal,
                self._counters.checkpoint,
                index=index,
                incarnation=stored.incarnation,
            )
            if found:
                raise StateMismatch(
                    f"agent '{stage.plan.name}' has changed, and {len(found)} unfinished runs would diverge: {found[0].message}",
                    where={"run": found[0].run, "task": found[0].task},
                    expected="the same steps as are recorded",
                    fix="let ctx.patch tell old runs from new ones (agentflow runs check shows all); or start with --accept, and "
                    "let these runs fail by their policy",
                )

    def _check_guarantees(self, source: Source, sinks: Mapping[str, Sink]) -> None:
        guarantee = self._spec.settings.guarantee
        problems = []
        if guarantee != "none" and not source.is_replayable:
            problems.append(
                f"source '{source.name}' cannot be read twice, so the job cannot be {guarantee}: set guarantee: none"
            )
        if guarantee == "exactly-once":
            problems += [
                f"{role} '{sink.name}' is {sink.guarantee.value}, not exactly-once: set guarantee: at-least-once"
                for role, sink in sinks.items()
                if sink.guarantee is Guarantee.AT_LEAST_ONCE
            ]
        if guarantee != "none" and isinstance(source, Ingress) and self._spec.settings.state.dir is None:
            problems.append(
                f"source '{source.name}' tells its senders that records are durable, and state is in memory: set state.dir, or "
                "guarantee: none"
            )
        self._status.guarantees = {role: sink.guarantee.value for role, sink in sinks.items()}
        if problems:
            raise ConfigError(problems)

    def _make_subtask(
        self,
        source: Source,
        sinks: Mapping[str, Sink],
        checkpoints: EmbeddedCheckpoints,
        state: KeyedState,
        threads: BlockingThreads,
        stored: StoredJob,
    ) -> Subtask:
        spec, settings, now_ms = self._spec, self._spec.settings, self._clock.now_ms()
        incarnation = stored.incarnation
        epochs = EpochWriter(checkpoints, state, settings, incarnation, self._counters)
        subtask = Subtask(source, sinks, epochs, self._clock, settings, stored.positions, self._counters)
        subtask.checkpoint_schedule.first_interval_share = spec.first_interval_share
        has_readers = spec.requests is not None or spec.stream_outlet is not None
        streams = Streams(self._requests, spec.stream_outlet) if has_readers else None
        for index, stage in enumerate(spec.stages):
            codec = source.codec if index == 0 else MSGPACK
            is_last = index == len(spec.stages) - 1 or not spec.is_chain
            rekeyed_source = spec.rekeyed_source if index == 0 else None
            policy = FailurePolicy(settings.job, stage.plan.name, "dead-letter" in sinks, codec.name)
            operator = Operator(
                stage.plan,
                policy,
                operator_limits(settings),
                index=index,
                decode_input=input_decoder(codec),
                takes_requests=self._requests is not None,
                headed=_headed(settings, incarnation),
            )
            operator.restore(stored.rows[index], now_ms, stored.journal[index], self._counters.checkpoint)
            output_codec = spec.output_codec if is_last else MSGPACK
            services = OperatorServices(operator, settings, incarnation, state, output_encoder(output_codec))
            services.metrics, services.subtask, services.streams = self._metrics, spec.subtask, streams
            services.shown_key = Redaction(settings.redaction).key
            if settings.tracing.enabled:
                services.trace_id = TraceIds(incarnation, settings.tracing.sample_ratio).sampled_trace_id
            services.resources = self.resources.of(stage.plan)
            services.has_tombstones = is_last and spec.has_tombstones
            if is_last and (output_max := sinks["sink"].record_max_bytes) is not None:
                services.output_max = min(services.record_max, output_max)
            if state.journal is not None:
                services.steps = StepRunner(
                    partial(subtask.decide_step, index),
                    partial(subtask.carry_out_step, index),
                    incarnation,
                    stage.plan.errors,
                    settings.run.park_after_ms,
                )
                services.steps.in_thread = threads.call
            services.in_thread = threads.call
            threads.fail = subtask.checkpoint_schedule.fail_behind
            runner = ActionRunner(services, codec, subtask.deliver_to(index), subtask.fail, threads)
            keys = KeyReader(stage.key_by, codec, rekeyed_source)
            observers = spec.observers(stage.plan, index, incarnation)
            observation = Observation(observers, runner.start, codec, output_codec) if observers else None
            if observation is not None:
                services.report, services.wants_reports = observation.report, observation.wants_reports
                services.wants_content = observation.wants_content
                observation.current_step, observation.scrub = current_step, self.resources.secrets.scrub
                if services.steps is not None:
                    services.steps.seen, services.steps.enter_step = observation.see_step, observation.enter_step
                    services.steps.began = observation.begin_step if observation.wants_progress else None
            reader = self._record_reader(keys, codec) if index == 0 else None
            subtask.add_stage(Stage(operator, runner, keys, services.steps, observation, is_last, reader))
        return subtask

    def _record_reader(self, keys: KeyReader, codec: Codec) -> RecordReader:
        settings = self._spec.settings
        field = settings.event_time.field
        return RecordReader(keys, TimestampReader(field, codec) if field else None, settings.record_max_bytes)


def _stored(write: StateWrite) -> StoredRow:
    _, operator, key, name, value = write
    return StoredRow(operator, key, name, value or b"")


def _nobody() -> NotConfigured:
    return NotConfigured(
        "a signal finds nobody: the job is not running, or takes no signals",
        fix="send it while the job runs; a stopped one gets signals by 'agentflow signal'",
    )


def _headed(settings: JobSettings, incarnation: str) -> Headed | None:
    """Return what makes the headers of outputs where runs are traced."""
    tracing = settings.tracing
    return TraceIds(incarnation, tracing.sample_ratio).headers_of if tracing.enabled else None


def _as_internal(error: Exception, what: str) -> InternalError:
    failure = InternalError(what, fix="the subtask restarts from its last completed checkpoint")
    failure.__cause__ = error
    return failure

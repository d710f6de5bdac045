"""A job: one agent chain from a source to sinks, restarted after infrastructure errors.

```
starting ─► restoring ─► running ─► draining ─► finished      end of input, or request_stop (then: stopped)
               ▲            │
               └─ restart ──┴─► failed                        FAIL_JOB, or the restart strategy gave up
```
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import msgspec

from agentflow.api.codecs import MSGPACK
from agentflow.api.encoding import encode_json, encode_msgpack
from agentflow.api.metrics import MetricRegistry
from agentflow.core.delta import POSITIONS_NAME, RESTORED_TABLES, StoredRow, Table, decode_positions
from agentflow.core.effects import Headed
from agentflow.core.failures import FailurePolicy
from agentflow.core.limits import OperatorLimits
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
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.action_runner import ActionRunner
from agentflow.runtime.blocking import BlockingThreads
from agentflow.runtime.checkpoints import EmbeddedCheckpoints
from agentflow.runtime.codecs import KeyBy, KeyReader, input_decoder
from agentflow.runtime.counters import Counters
from agentflow.runtime.figures import SubtaskFigures
from agentflow.runtime.observation import Observation
from agentflow.runtime.ports import Clock, Guarantee, KeyedState, Observer, Signals, Sink, Source
from agentflow.runtime.replay_check import diverging_runs, is_changed
from agentflow.runtime.services import OperatorServices
from agentflow.runtime.settings import JobSettings
from agentflow.runtime.signals import SignalReader, encode_control, encode_signal
from agentflow.runtime.step_runner import StepRunner
from agentflow.runtime.subtask import INCARNATION_NAME, JOURNAL_NAME, Stage, Subtask


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


class AgentStage(msgspec.Struct, frozen=True):
    """One agent of a chain and the key its records are grouped by."""

    plan: AgentPlan
    key_by: KeyBy


class JobSpec(msgspec.Struct, frozen=True):
    """What a job is made of.

    Attributes:
        settings: Settings.
        stages: The chain of agents, first one first.
        open_source: Makes the source; called at each (re)start.
        open_sinks: Makes the sinks by role: ``sink`` and perhaps ``dead-letter``; called at each (re)start.
        open_state: Opens keyed state, at once or as a coroutine; called at each (re)start.
        encode_output: Encoder of outputs for the sink.
        has_tombstones: Whether the sink's records may have no value: that is what an output of None becomes.
        first_interval_share: Share of the checkpoint interval before the first checkpoint; subtasks of one worker have different
            ones, so that they do not all commit at once.
        open_signals: Makes what signals come from, None: the job takes none; called at each (re)start, behind ``open_source``.
        rekeyed_source: Label of the source behind the sink ``repartition``, to which records of all other sources go.
        observers: Makes what looks at an agent, given its plan, its place in the chain and the incarnation; called at each (re)start.
        metrics: What the agents' own metrics are kept in; None: something that nobody exports.
        subtask: Number of the subtask.
        on_end: Called when the job has ended, for good.
    """

    settings: JobSettings
    stages: Sequence[AgentStage]
    open_source: Callable[[], Source]
    open_sinks: Callable[[], Mapping[str, Sink]]
    open_state: Callable[[], KeyedState | Awaitable[KeyedState]]
    encode_output: Callable[[object], bytes] = encode_json
    has_tombstones: bool = False
    first_interval_share: float = 1.0
    rekeyed_source: str | None = None
    open_signals: Callable[[], Signals | None] = lambda: None
    observers: Callable[[AgentPlan, int, str], Sequence[Observer]] = lambda plan, index, incarnation: ()  # noqa: ARG005
    metrics: MetricRegistry | None = None
    subtask: int = 0
    on_end: Callable[[], Awaitable[None]] | None = None


class JobStatus(msgspec.Struct):
    """What a job is doing; a copy.

    Attributes:
        state: starting, restoring, running, draining, finished, stopped or failed.
        records_in: Records admitted since the process began, rejected ones included.
        records_out: Outputs given to the sink; visible with the next checkpoint.
        dead_letters: Records given to the dead-letter sink.
        runs_in_flight: Unfinished runs.
        checkpoint: The last completed checkpoint.
        checkpoint_completed_ms: When it was, epoch milliseconds.
        checkpoint_ms: How long it took.
        checkpoint_bytes: Bytes of state in it.
        restarts: Restarts since the process began.
        restored_checkpoint: What the last start was restored from; 0: nothing.
        restored_runs: Unfinished runs that it had.
        restore_ms: How long that took.
        guarantees: What each sink gives, by role.
    """

    state: str = "starting"
    records_in: int = 0
    records_out: int = 0
    dead_letters: int = 0
    runs_in_flight: int = 0
    checkpoint: int = 0
    checkpoint_completed_ms: int | None = None
    checkpoint_ms: int = 0
    checkpoint_bytes: int = 0
    restarts: int = 0
    restored_checkpoint: int = 0
    restored_runs: int = 0
    restore_ms: int = 0
    guarantees: dict[str, str] = {}


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
        self._signals: Signals | None = None
        self._stops = 0
        self._stopped = asyncio.Event()
        self._metrics = spec.metrics or MetricRegistry()

    @property
    def figures(self) -> SubtaskFigures | None:
        """What its subtask holds now, None: there is none; on the loop."""
        return None if self._subtask is None else self._subtask.figures

    @property
    def status(self) -> JobStatus:
        """What the job is doing now."""
        status, counters = self._status, self._counters
        in_flight = self._subtask.runs_in_flight if self._subtask is not None else 0
        return msgspec.structs.replace(
            status,
            records_in=counters.records_in,
            records_out=counters.records_out,
            dead_letters=counters.dead_letters,
            runs_in_flight=in_flight,
            checkpoint=counters.checkpoint,
            checkpoint_completed_ms=counters.checkpoint_completed_ms,
            checkpoint_ms=counters.checkpoint_ms,
            checkpoint_bytes=counters.checkpoint_bytes,
        )

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

    async def _send(self, document: bytes) -> None:
        if self._signals is None:
            raise NotConfigured(
                "a signal finds nobody: the job is not running, or takes no signals",
                fix="send it while the job runs; a stopped one gets signals by 'agentflow signal'",
            )
        await self._signals.append(document)

    async def run(self) -> JobStatus:
        """Run to the end of input, or until `request_stop`.

        Raises:
            AgentflowError: The job failed; its last completed checkpoint is intact.
        """
        try:
            return await self._run()
        finally:
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
                self._on_event(self._status.state, msgspec.structs.asdict(self.status))
                return self.status
            if failure.recovery is not Recovery.RESTART_SUBTASK or restart.strategy == "none" or self._stops:
                self._status.state = "failed"
                raise failure
            attempt = 1 if self._counters.checkpoint > checkpoint_before else attempt + 1
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
        self._status.state = "restoring"
        self._on_event("restarting", {"error": str(failure), "attempt": attempt, "delay_ms": delay_ms})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_ms / 1000):
                await self._stopped.wait()

    async def _run_once(self) -> None:
        self._status.state = "restoring"
        spec, began = self._spec, time.monotonic()
        self._check_guarantees(source := spec.open_source(), sinks := spec.open_sinks())
        state: KeyedState | None = None
        threads = BlockingThreads(spec.settings.blocking.threads_max)
        try:
            opened = spec.open_state()
            state = await opened if isinstance(opened, Awaitable) else opened
            checkpoints = EmbeddedCheckpoints(state, sinks)
            self._counters.checkpoint = await checkpoints.recover()
            rows = _rows(state, len(spec.stages))
            incarnation, positions, journal_position = _job_meta(rows)
            journal, journal_end = await _journal_records(state, len(spec.stages), journal_position)
            if not spec.settings.run.accept_changes:
                await self._refuse_divergence(source, state, rows, journal, incarnation)
            await source.open(positions)
            signals = self._signals = spec.open_signals()
            if signals is not None:
                await signals.open(positions)
            subtask = self._subtask = self._make_subtask(
                source, sinks, checkpoints, state, threads, rows, journal, positions, incarnation
            )
            if state.journal is not None:
                subtask.use_journal(state.journal, journal_end)
            if signals is not None:
                subtask.use_signals(signals, SignalReader([stage.plan.name for stage in spec.stages]))
            self._status.restored_checkpoint = self._counters.checkpoint
            self._status.restored_runs = subtask.runs_in_flight
            self._status.restore_ms = round((time.monotonic() - began) * 1000)
            self._status.state = "running"
            self._on_event("started", msgspec.structs.asdict(self.status))
            for _ in range(self._stops):
                subtask.stop()
            await subtask.run()
        finally:
            signals, self._subtask, self._signals = self._signals, None, None
            threads.close()
            try:
                await source.close()
                if signals is not None:
                    await signals.close()
                for sink in sinks.values():
                    await sink.close()
            finally:  # also when it is cancelled once more: nobody else can give the directory back
                if state is not None:
                    state.close()

    async def _refuse_divergence(
        self,
        source: Source,
        state: KeyedState,
        rows: list[dict[Table, list[StoredRow]]],
        journal: list[list[bytes]],
        incarnation: str,
    ) -> None:
        """Refuse to start with a changed agent that unfinished runs would diverge from.

        Raises:
            StateMismatch: Names one of them.
        """
        for index, stage in enumerate(self._spec.stages):
            if not (rows[index].get(Table.STEPS) or journal[index]) or not is_changed(stage.plan, rows[index]):
                continue
            codec = source.codec if index == 0 else MSGPACK
            found = await diverging_runs(
                stage.plan,
                self._spec.settings,
                codec,
                state,
                rows[index],
                journal[index],
                self._counters.checkpoint,
                index=index,
                incarnation=incarnation,
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
        rows: list[dict[Table, list[StoredRow]]],
        journal: list[list[bytes]],
        positions: Mapping[str, int],
        incarnation: str,
    ) -> Subtask:
        spec, settings, now_ms = self._spec, self._spec.settings, self._clock.now_ms()
        subtask = Subtask(
            source, sinks, checkpoints, state, self._clock, settings, positions, incarnation, self._counters
        )
        subtask.checkpoint_schedule.first_interval_share = spec.first_interval_share
        for index, stage in enumerate(spec.stages):
            codec = source.codec if index == 0 else MSGPACK
            is_last = index == len(spec.stages) - 1
            rekeyed_source = spec.rekeyed_source if index == 0 else None
            policy = FailurePolicy(settings.job, stage.plan.name, "dead-letter" in sinks, codec.name)
            decode_input, headed = input_decoder(codec), _headed(settings, incarnation)
            operator = Operator(
                stage.plan, policy, _limits(settings), index=index, decode_input=decode_input, headed=headed
            )
            operator.restore(rows[index], now_ms, journal[index], self._counters.checkpoint)
            services = OperatorServices(
                operator, settings, incarnation, state, spec.encode_output if is_last else encode_msgpack
            )
            services.metrics, services.subtask = self._metrics, spec.subtask
            if settings.tracing.enabled:
                services.trace_id = TraceIds(incarnation, settings.tracing.sample_ratio).sampled_trace_id
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
            runner = ActionRunner(
                services, codec, subtask.deliver_to(index), subtask.fail, threads, settings.blocking.leaked_max
            )
            keys = KeyReader(stage.key_by, codec, rekeyed_source)
            observers = spec.observers(stage.plan, index, incarnation)
            observation = Observation(observers, runner.start) if observers else None
            if services.steps is not None and observation is not None:
                services.steps.seen = observation.turn.steps.append
                services.steps.enter_step = observation.enter_step
            subtask.add_stage(Stage(operator, runner, keys, services.steps, observation))
        return subtask


def _headed(settings: JobSettings, incarnation: str) -> Headed | None:
    """Return what makes the headers of outputs where runs are traced."""
    tracing = settings.tracing
    return TraceIds(incarnation, tracing.sample_ratio).headers_of if tracing.enabled else None


def _limits(settings: JobSettings) -> OperatorLimits:
    return OperatorLimits(
        in_flight_max=settings.run.in_flight_max,
        key_pending_max=settings.key.pending_max,
        is_overflow_dead=settings.on_overflow == "dead-letter",
        tasks_max=settings.run.tasks_max,
        timers_max=settings.timer.pending_max,
        cache_bytes=settings.state.cache_bytes,
        sleeping_max=settings.run.sleeping_max,
        signals_max=settings.signals.pending_max,
        signal_ttl_ms=settings.signals.ttl_ms,
    )


def _rows(state: KeyedState, operators: int) -> list[dict[Table, list[StoredRow]]]:
    """Return the rows of each operator; memory is not among them, it is read when asked for."""
    rows: list[dict[Table, list[StoredRow]]] = [{} for _ in range(operators)]
    for table in RESTORED_TABLES:
        of_table: list[list[StoredRow]] = [tables.setdefault(table, []) for tables in rows]
        for row in state.rows(table):
            if row.operator >= operators:
                raise StateMismatch(
                    f"the state has rows of operator {row.operator}, the job has {operators} agents",
                    expected="the same number of chained agents",
                    fix="start the former chain and let it drain, or use a new state directory",
                )
            of_table[row.operator].append(row)
    return rows


async def _journal_records(state: KeyedState, operators: int, position: int) -> tuple[list[list[bytes]], int]:
    """Return the journal's records of each operator, in order, from ``position`` on, and the position behind them."""
    records: list[list[bytes]] = [[] for _ in range(operators)]
    if state.journal is None:
        return records, position
    found, end = await state.journal.read(position)
    if found and not state.checkpoint:
        raise StateMismatch(
            f"the journal has {len(found)} records, and there is no checkpoint",
            expected="a journal that begins behind the first checkpoint",
            fix="delete the journal, which belongs to state that was removed, or put that state back",
        )
    for operator, record in found:
        records[operator].append(record)
    return records, end


def _job_meta(rows: list[dict[Table, list[StoredRow]]]) -> tuple[str, dict[str, int], int]:
    """Return the incarnation (a new one for new state), the source positions, and where the journal is to be read."""
    meta = {row.name: row.value for row in rows[0].get(Table.META, ())}
    incarnation = uuid.uuid4().hex
    if INCARNATION_NAME in meta:
        incarnation = msgspec.msgpack.decode(meta[INCARNATION_NAME], type=str)
    positions = decode_positions(meta[POSITIONS_NAME]) if POSITIONS_NAME in meta else {}
    position = msgspec.msgpack.decode(meta[JOURNAL_NAME], type=int) if JOURNAL_NAME in meta else 0
    return incarnation, positions, position


def _as_internal(error: Exception, what: str) -> InternalError:
    failure = InternalError(what, fix="the subtask restarts from its last completed checkpoint")
    failure.__cause__ = error
    return failure

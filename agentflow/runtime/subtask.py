"""One subtask: source → mailbox → operators → effects → sinks, and its checkpoints.

Work is done in turns of the loop. A turn is a plain callback: it drains the mailbox, carries out every effect, and leaves no
effect behind. So a barrier between two turns sees all operators of the chain at one point of the input, and a first step of
a coroutine action (`start_eagerly`) is never inside another task.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, cast

import msgspec

from agentflow.core.delta import DeltaSlices, StateWrite, Table
from agentflow.core.effects import (
    CancelAction,
    DeadLetter,
    Drained,
    EmitRecord,
    FailJob,
    ForwardWatermark,
    PauseSource,
    PersistStep,
    RefuseStep,
    ReplayAction,
    RequestCheckpoint,
    ResolveStep,
    ResumeSource,
    RunStep,
    ScheduleRetry,
    SkipTask,
    StartAction,
    TakeSnapshot,
)
from agentflow.core.failures import job_failure
from agentflow.core.inputs import (
    ActionCompleted,
    ActionFailed,
    BarrierReceived,
    CheckpointCompleted,
    DrainRequested,
    JournalAppended,
    RecordReceived,
    RecordRejected,
    StepEnded,
    StepRequested,
    TimeAdvanced,
    WaitRequested,
    WatermarkReceived,
)
from agentflow.core.operator import Operator
from agentflow.core.records import ErrorReport, Record
from agentflow.core.segments import END_OF_TIME_MS
from agentflow.errors import DecodeError, MissingKey, RecordTooLarge
from agentflow.runtime.action_runner import ActionRunner
from agentflow.runtime.alarm import Alarm
from agentflow.runtime.checkpoint_schedule import CheckpointSchedule
from agentflow.runtime.checkpoints import EmbeddedCheckpoints
from agentflow.runtime.codecs import KeyReader, TimestampReader, too_large
from agentflow.runtime.counters import Counters
from agentflow.runtime.failing import look_at, unless_failed
from agentflow.runtime.figures import SubtaskFigures, figures_of
from agentflow.runtime.journal_writer import JournalWriter
from agentflow.runtime.mailbox import Mailbox
from agentflow.runtime.observation import Observation
from agentflow.runtime.ports import Clock, Journal, KeyedState, Repartition, Signals, Sink, Source
from agentflow.runtime.settings import JobSettings
from agentflow.runtime.signals import SignalReader
from agentflow.runtime.step_runner import StepInput, StepRunner
from agentflow.runtime.task_steps import Answer
from agentflow.runtime.watermarks import WatermarkGenerator

_IDLE_STEP_MS = 100
INCARNATION_NAME = "incarnation"
JOURNAL_NAME = "journal"  # of the META row that holds the position up to which the checkpoint has the journal


_Answer = ActionCompleted | ActionFailed | JournalAppended | StepInput


class Stage(msgspec.Struct):
    """One operator of the chain with what surrounds it.

    Attributes:
        observation: What observers are shown of it; None: there are none.
    """

    operator: Operator
    runner: ActionRunner
    keys: KeyReader
    steps: StepRunner | None = None
    observation: Observation | None = None


class Subtask:
    """Runs until the input ends, `stop` is called, or something fails.

    Args:
        source: Already open at ``positions``.
        sinks: By role: ``sink``, perhaps ``dead-letter`` and ``repartition``.
        checkpoints: Already recovered.
        state: Keyed state.
        clock: Processing time.
        settings: The job's settings.
        positions: Where the source was opened.
        incarnation: Id of the state; written with every first checkpoint of a process.
        counters: Filled while running.
    """

    def __init__(
        self,
        source: Source,
        sinks: Mapping[str, Sink],
        checkpoints: EmbeddedCheckpoints,
        state: KeyedState,
        clock: Clock,
        settings: JobSettings,
        positions: Mapping[str, int],
        incarnation: str,
        counters: Counters,
    ) -> None:
        self._stages: list[Stage] = []
        self._sinks = dict(sinks)
        self._repartition = cast("Repartition", sinks.get("repartition"))
        self._checkpoints = checkpoints
        self._state = state
        self._clock = clock
        self._settings = settings
        self._positions = dict(positions)
        self._incarnation = incarnation
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._failure: asyncio.Future[None] = self._loop.create_future()
        self._failure.add_done_callback(look_at)
        self._drained = asyncio.Event()
        self._mailbox = Mailbox(source, self._schedule, self.fail)
        self._stopping = self._mailbox.stopping
        self._hurry = asyncio.Event()
        self._answers: deque[tuple[int, _Answer]] = deque()
        self._journal: JournalWriter | None = None
        self._signals: Signals | None = None
        self._signal_reader = SignalReader([])
        self._is_in_effects = False
        self._is_scheduled = False
        self._is_observed = False
        self._context = contextvars.copy_context()  # of every turn: else it would be that of the action that caused it
        self._drain_requested = False
        self._is_restored = False
        self.checkpoint_schedule = CheckpointSchedule(self._take_checkpoint, self.fail, settings.checkpoint.interval_ms)
        self._alarm = Alarm(self._schedule)
        event_time = settings.event_time
        self._timestamps = TimestampReader(event_time.field, source.codec) if event_time.field else None
        self._watermarks = WatermarkGenerator(event_time, source.partitions, source.idle_timeout_ms, clock.now_ms())
        self._has_output = False
        self._is_first_checkpoint = True
        self._delta_bytes = 0
        self._last = -1
        self._snapshots: list[TakeSnapshot] = []
        self._carry_out: dict[type, Callable[[int, Any, int], object]] = {
            CancelAction: lambda index, effect, _: self._stages[index].runner.cancel(effect.task),
            DeadLetter: self._dead_letter,
            Drained: self._pass_drain,
            FailJob: self._fail_job,
            ForwardWatermark: self._pass_watermark,
            PauseSource: self._pause,
            PersistStep: lambda index, effect, _: cast("JournalWriter", self._journal).append(index, effect.record),
            ReplayAction: lambda index, effect, now_ms: self._stages[index].operator.apply(effect.ending, now_ms),
            RequestCheckpoint: lambda *_: self.checkpoint_schedule.take_extra(),
            ResumeSource: lambda *_: self._mailbox.resume(),
            **dict.fromkeys((RefuseStep, ResolveStep, RunStep), self._answer_step),
            ScheduleRetry: lambda *_: None,
            SkipTask: lambda *_: None,
            TakeSnapshot: lambda _, effect, __: self._snapshots.append(effect),
        }

    def use_journal(self, journal: Journal, position: int) -> None:
        """Record durable steps in ``journal``, which has been read up to ``position``; called behind `add_stage`."""
        first = self._stages[0].observation
        seen = None if first is None else first.turn.notes.append
        self._journal = JournalWriter(journal, self._deliver, self.fail, position, seen)

    def use_signals(self, signals: Signals, reader: SignalReader) -> None:
        """Take signals, which are open at the positions."""
        self._signals, self._signal_reader = signals, reader

    def add_stage(self, stage: Stage) -> None:
        """Append an operator to the chain, restored, before `run`; its runner delivers to `deliver_to` of its place."""
        self._stages.append(stage)
        self._last += 1
        self._is_observed |= stage.observation is not None

    @property
    def runs_in_flight(self) -> int:
        """Unfinished runs of all operators."""
        return sum(stage.operator.runs_unfinished for stage in self._stages)

    @property
    def figures(self) -> SubtaskFigures:
        """What it holds now; on the loop."""
        return figures_of((stage.operator for stage in self._stages), self._mailbox, self._state)

    # -- life
    async def run(self) -> None:
        """Process to the end of input, or until `stop`; then drain and take a final checkpoint.

        Raises:
            AgentflowError: What failed; nothing of the open epoch is committed.
        """
        self._is_restored = True
        self._schedule()
        readers = [self._loop.create_task(self._mailbox.read())]
        if self._signals is not None:
            readers.append(self._loop.create_task(self._mailbox.read_signals(self._signals)))
        timer = self._loop.create_task(self.checkpoint_schedule.run())
        try:
            await unless_failed(self._wait_drained(), self._failure)
            timer.cancel()
            await asyncio.wait([timer])
            await unless_failed(self.checkpoint_schedule.take(), self._failure)
        finally:
            self._tell_observers(self._clock.now_ms())  # of a turn that failed, too
            tasks = [*readers, timer, *self.checkpoint_schedule.extra]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._alarm.cancel()
            for stage in self._stages:
                await stage.runner.close()
            if self._journal is not None:
                await self._journal.close()

    def stop(self) -> None:
        """Admit nothing more, drain, take a final checkpoint; called again: do not wait for runs in flight."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    def fail(self, error: BaseException) -> None:
        """End `run` with an error; the first one counts."""
        if not self._failure.done():
            self._failure.set_exception(error)

    async def _wait_drained(self) -> None:
        drained, stopping = (self._loop.create_task(event.wait()) for event in (self._drained, self._stopping))
        try:
            await asyncio.wait([drained, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not drained.done():
                self._drain_requested = True
                for stage in self._stages:
                    if stage.steps is not None:
                        stage.steps.park_soon()
                self._schedule()
                hurry = self._loop.create_task(self._hurry.wait())
                timeout = self._settings.shutdown.drain_timeout_ms / 1000
                try:
                    await asyncio.wait([drained, hurry], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    hurry.cancel()
        finally:
            drained.cancel()
            stopping.cancel()

    def _take_signal(self, record: Record, now_ms: int) -> None:
        index, received = self._signal_reader.read(record)
        self._positions[record.source] = record.next_offset
        stage = self._stages[index]
        if stage.observation is not None:
            stage.observation.turn.notes.append(received)
        stage.operator.apply(received, now_ms)
        self._run_effects(index, now_ms)

    def _pause(self, index: int, effect: PauseSource, now_ms: int) -> None:  # noqa: ARG002 (one signature)
        self._mailbox.pause()
        steps = self._stages[index].steps
        if steps is not None:
            steps.park_all()  # what waits only is not in flight then

    # -- turns
    def decide_step(self, index: int, received: StepInput) -> Answer | None:
        """Apply what user code of operator ``index`` did about a step; return its answer if that is all that follows.

        Else `carry_out_step` is to be called. A wait waits for a turn, which sets the alarm; and what was sent before it may start an
        action of the next operator, which cannot be inside of its task.
        """
        if type(received) is WaitRequested or (type(received) is StepEnded and received.retry is not None):
            self._deliver(index, received)
        elif not self._failure.done():
            try:
                operator = self._stages[index].operator
                effects, before = operator.effects, len(operator.effects)
                operator.apply(received, self._clock.now_ms())
                if type(received) is StepRequested and len(effects) == before + 1:
                    last = effects[-1]
                    if type(last) in (RunStep, ResolveStep) and last.path == received.call.path:  # type: ignore[union-attr]
                        return effects.pop()  # type: ignore[return-value]
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: BLE001 (the subtask's edge: the job decides)
                self.fail(error)
        return None

    def carry_out_step(self, index: int) -> None:
        """Carry out what follows from `decide_step`, at once."""
        if self._failure.done() or self._is_in_effects:
            return  # in the middle of effects, they are read right behind this one
        try:
            if self._stages[index].operator.effects:
                self._run_effects(index, self._clock.now_ms())
            else:
                self._schedule()  # perhaps it waits, as recorded
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 (the subtask's edge: the job decides)
            self.fail(error)

    def _answer_step(self, index: int, effect: RefuseStep | ResolveStep | RunStep, _: int) -> None:
        cast("StepRunner", self._stages[index].steps).answer(effect)

    def _deliver(self, index: int, answer: _Answer) -> None:
        self._answers.append((index, answer))
        self._schedule()

    def deliver_to(self, index: int) -> Callable[[ActionCompleted | ActionFailed], None]:
        """Return the place where the runner of operator ``index`` delivers late answers."""
        return lambda answer: self._deliver(index, answer)

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._turn, context=self._context)

    def _turn(self) -> None:
        self._is_scheduled = False
        if self._failure.done():
            return
        mailbox = self._mailbox
        try:
            now_ms = self._clock.now_ms()
            if self._is_restored:
                self._is_restored = False
                self._run_effects(0, now_ms)  # of the restore: the start of unfinished runs
            for _ in range(len(self._answers)):
                index, answer = self._answers.popleft()
                stage = self._stages[index]
                if stage.observation is not None:
                    stage.observation.see(answer)
                stage.operator.apply(answer, now_ms)
                self._run_effects(index, now_ms)
            while mailbox.signals:
                self._take_signal(mailbox.signals.popleft(), now_ms)
            while mailbox.batches:
                batch = mailbox.batches.popleft()
                self._admit(batch, now_ms) if batch else self._end_input(now_ms)
                mailbox.take_more(self._clock.now_ms() - now_ms)
            if self._drain_requested:
                self._drain_requested = False
                self._stages[0].operator.apply(self._drain(), now_ms)
                self._run_effects(0, now_ms)
            self._advance_time(now_ms)
            if self._is_observed:
                self._tell_observers(now_ms)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 (the subtask's edge: the job decides)
            self.fail(error)

    def _tell_observers(self, now_ms: int) -> None:
        for stage in self._stages:
            if stage.observation is not None:
                stage.observation.flush(now_ms)

    def _admit(self, batch: Sequence[Record], now_ms: int) -> None:
        stage = self._stages[0]
        apply, read_key = stage.operator.apply, stage.keys.read
        record_max, timestamps = self._settings.record_max_bytes, self._timestamps
        rekeyed_source = stage.keys.rekeyed_source
        observation, others = stage.observation, 0
        seen = None if observation is None or not observation.needs_answers else observation.turn.records
        for record in batch:
            try:
                if record.value is not None and len(record.value) > record_max:
                    raise too_large(record, record_max)
                if timestamps is not None:
                    record.timestamp_ms = timestamps.read(record)
                key = read_key(record)
            except (DecodeError, MissingKey, RecordTooLarge) as error:
                others += 1
                apply(RecordRejected(record, ErrorReport(type(error).__name__, error.what, is_retryable=False)), now_ms)
            except Exception as error:  # noqa: BLE001 (key-by is user code)
                others += 1
                report = ErrorReport(type(error).__name__, f"key-by failed: {error}", is_retryable=False)
                apply(RecordRejected(record, report), now_ms)
            else:
                if rekeyed_source is None or record.source == rekeyed_source:
                    received = RecordReceived(record, key)
                    if seen is not None:
                        seen.append(received)
                    apply(received, now_ms)
                else:
                    others += 1
                    self._repartition.forward(record, key)
                    self._has_output = True
        if observation is not None:
            observation.turn.admitted += len(batch) - others
        self._positions.update({record.source: record.next_offset for record in batch})
        self._counters.records_in += len(batch)
        self._run_effects(0, now_ms)
        if self._watermarks.is_active:
            self._advance_watermark(self._watermarks.take(batch, now_ms), now_ms)

    def _advance_watermark(self, watermark_ms: int | None, now_ms: int) -> None:
        if watermark_ms is not None:
            self._stages[0].operator.apply(WatermarkReceived(watermark_ms), now_ms)
            self._run_effects(0, now_ms)

    def _end_input(self, now_ms: int) -> None:
        self._stages[0].operator.apply(WatermarkReceived(END_OF_TIME_MS), now_ms)
        self._run_effects(0, now_ms)
        self._drain_requested = True

    def _run_effects(self, index: int, now_ms: int) -> None:
        """Carry out every effect of an operator, those of synchronous actions included, then those down the chain."""
        stage = self._stages[index]
        apply, observation = stage.operator.apply, stage.observation
        start = stage.runner.start if observation is None else observation.start
        effects = stage.operator.effects
        write = self._sinks["sink"].write
        is_last = index == self._last
        emitted = 0
        self._is_in_effects = True
        for effect in effects:  # grows while it is read
            kind = type(effect)
            if kind is StartAction:
                answer = start(effect.task)  # type: ignore[union-attr,arg-type]
                if answer is not None:
                    apply(answer, now_ms)
            elif kind is EmitRecord:
                emitted += 1
                if is_last:
                    write(effect)  # type: ignore[arg-type]
                else:
                    self._pass_record(index + 1, effect, now_ms)  # type: ignore[arg-type]
            else:
                if observation is not None:
                    observation.turn.notes.append(effect)
                self._carry_out[kind](index, effect, now_ms)
        effects.clear()
        self._is_in_effects = False
        if observation is not None:
            observation.turn.emitted += emitted
        if not is_last:
            self._run_effects(index + 1, now_ms)
        elif emitted:
            self._counters.records_out += emitted
            self._has_output = True

    def _pass_record(self, index: int, effect: EmitRecord, now_ms: int) -> None:
        stage = self._stages[index]
        record = Record(effect.task.id, effect.index, 0, effect.value, None, effect.timestamp_ms, effect.headers)
        try:
            received = RecordReceived(record, stage.keys.read(record))
        except Exception as error:  # noqa: BLE001 (key-by is user code)
            report = ErrorReport(type(error).__name__, f"key-by failed: {error}", is_retryable=False)
            stage.operator.apply(RecordRejected(record, report), now_ms)
        else:
            if stage.observation is not None:
                stage.observation.see_record(received)
            stage.operator.apply(received, now_ms)

    def _pass_watermark(self, index: int, effect: ForwardWatermark, now_ms: int) -> None:
        if index < self._last:
            self._stages[index + 1].operator.apply(WatermarkReceived(effect.watermark_ms), now_ms)

    def _drain(self) -> DrainRequested:
        """Runs that sleep stay state when the job is stopped; at the end of its input they are part of its work."""
        return DrainRequested(awaits_sleepers=not self._stopping.is_set())

    def _pass_drain(self, index: int, effect: Drained, now_ms: int) -> None:  # noqa: ARG002 (one signature)
        if index < self._last:
            self._stages[index + 1].operator.apply(self._drain(), now_ms)
        else:
            self._drained.set()

    def _dead_letter(self, index: int, effect: DeadLetter, now_ms: int) -> None:  # noqa: ARG002 (one signature)
        self._sinks["dead-letter"].write(effect)
        self._counters.dead_letters += 1
        self._has_output = True

    def _fail_job(self, index: int, effect: FailJob, now_ms: int) -> None:  # noqa: ARG002 (one signature)
        raise job_failure(effect)

    def _advance_time(self, now_ms: int) -> None:
        """Tell operators that time has come, and wake up when it comes next."""
        due_ms = self._advance_idleness(now_ms) if self._watermarks.is_active else None
        for index, stage in enumerate(self._stages):
            next_ms = stage.operator.next_due_ms
            if next_ms is not None and next_ms <= now_ms:
                stage.operator.apply(TimeAdvanced(), now_ms)
                self._run_effects(index, now_ms)
                next_ms = stage.operator.next_due_ms
            if next_ms is not None:
                due_ms = next_ms if due_ms is None else min(due_ms, next_ms)
        self._alarm.set(due_ms, now_ms)

    def _advance_idleness(self, now_ms: int) -> int | None:
        """Let the watermark go on without idle partitions; return when to look again."""
        due_ms = self._watermarks.next_idle_ms
        if due_ms is not None and due_ms <= now_ms:
            self._advance_watermark(self._watermarks.pass_time(now_ms, is_paused=self._mailbox.is_paused), now_ms)
            due_ms = self._watermarks.next_idle_ms
            due_ms = None if due_ms is None else max(due_ms, now_ms + _IDLE_STEP_MS)
        return due_ms

    # -- checkpoints
    async def checkpoint_now(self) -> None:
        """Take a checkpoint beside the regular ones, as soon as one that is under way has ended. Its error ends `run`."""
        await asyncio.wait([self.checkpoint_schedule.take_extra()])

    async def _take_checkpoint(self) -> None:
        """Take one checkpoint: barrier in one turn, then make it durable while reading and actions go on.

        None behind a turn that failed: effects of it are not carried out, and a checkpoint would make that final.
        """
        if self._failure.done():
            return
        checkpoint, now_ms = self._counters.checkpoint + 1, self._clock.now_ms()
        for index, stage in enumerate(self._stages):
            positions = self._positions if index == 0 else {}
            stage.operator.apply(BarrierReceived(checkpoint, dict(positions)), now_ms)
            self._run_effects(index, now_ms)
        snapshots, self._snapshots = self._snapshots, []
        has_output, self._has_output = self._has_output, False
        journal_position = None if self._journal is None else self._journal.position
        positions = dict(self._positions)
        is_skipped = not has_output and all(snapshot.is_empty for snapshot in snapshots)
        if is_skipped:  # told at once: the open epoch has its number from now on
            for stage in self._stages:
                stage.operator.apply(CheckpointCompleted(checkpoint, is_skipped=True), now_ms)
        else:
            began, self._delta_bytes = self._loop.time(), 0
            self._checkpoints.barrier(checkpoint)
            async with asyncio.timeout(self._settings.checkpoint.timeout_ms / 1000):
                await self._checkpoints.complete(checkpoint, self._delta(snapshots, journal_position))
                if self._journal is not None and journal_position:
                    await self._journal.release(journal_position)
                if self._signals is not None:
                    await self._signals.release(positions)
            counters = self._counters
            counters.checkpoint, counters.checkpoint_bytes = checkpoint, self._delta_bytes
            counters.checkpoint_ms = round((self._loop.time() - began) * 1000)
            self._is_first_checkpoint = False
        if self._failure.done():
            return
        told: asyncio.Future[None] = self._loop.create_future()
        self._loop.call_soon(self._tell_completed, checkpoint, is_skipped, told, context=self._context)
        await told
        now_ms = self._clock.now_ms()
        ttl_ms = self._settings.state.ttl_ms
        if ttl_ms is not None:
            oldest_ms = min(stage.operator.oldest_run_ms(now_ms) for stage in self._stages)
            await self._state.sweep(oldest_ms - ttl_ms)

    def _tell_completed(self, checkpoint: int, is_skipped: bool, told: asyncio.Future[None]) -> None:  # noqa: FBT001 (a callback)
        """Tell the operators, as in a turn: what they start is not inside of the checkpoint's task."""
        try:
            now_ms = self._counters.checkpoint_completed_ms = self._clock.now_ms()
            for index, stage in enumerate(self._stages):
                if not is_skipped:
                    stage.operator.apply(CheckpointCompleted(checkpoint), now_ms)
                self._run_effects(index, now_ms)
        except Exception as error:  # noqa: BLE001 (the subtask's edge: the job decides)
            self.fail(error)
        self._schedule()  # something may wait for time now
        if not told.done():
            told.set_result(None)

    def _delta(self, snapshots: Sequence[TakeSnapshot], journal_position: int | None) -> DeltaSlices:
        first: list[StateWrite] = []
        if self._is_first_checkpoint:
            encoded = msgspec.msgpack.encode(self._incarnation)
            first.append((Table.META, 0, b"", INCARNATION_NAME, encoded))
        if journal_position:
            first.append((Table.META, 0, b"", JOURNAL_NAME, msgspec.msgpack.encode(journal_position)))
        for writes in chain([first], *(snapshot.slices for snapshot in snapshots)):
            self._delta_bytes += sum([len(value) for _, _, _, _, value in writes if value is not None])
            yield writes

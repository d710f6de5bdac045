"""One subtask: source → mailbox → operators → effects → sinks, and its checkpoints.

Work is done in turns of the loop. A turn is a plain callback: it drains the mailbox, carries out every effect, and leaves no
effect behind; what ends between turns, an action or an append to the journal, goes on by a callback of its own. So a barrier between
two of them sees all operators of the chain at one point of the input, and a first step of a coroutine action (`start_eagerly`) is
never inside another task.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from agentflow.core.effects import (
    AcknowledgeRequest,
    AnswerRequest,
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
    RequestReceived,
    StepEnded,
    StepRequested,
    TimeAdvanced,
    WaitRequested,
    WatermarkReceived,
)
from agentflow.core.operator import Operator
from agentflow.core.records import Record
from agentflow.core.results import REQUESTS
from agentflow.core.segments import END_OF_TIME_MS
from agentflow.runtime.alarm import Alarm
from agentflow.runtime.checkpoint_schedule import CheckpointSchedule
from agentflow.runtime.counters import Counters
from agentflow.runtime.draining import Draining
from agentflow.runtime.epoch_writer import EpochWriter
from agentflow.runtime.failing import Edge, look_at, unless_failed
from agentflow.runtime.figures import SubtaskFigures, figures_of
from agentflow.runtime.journal_writer import JournalWriter
from agentflow.runtime.mailbox import Mailbox
from agentflow.runtime.ports import CheckpointedSource, Clock, Journal, Repartition, Signals, Sink, Source
from agentflow.runtime.record_reader import RecordReader, without_key
from agentflow.runtime.requests import RequestTable, closed
from agentflow.runtime.settings import JobSettings
from agentflow.runtime.signals import ExportRequested, SignalReader
from agentflow.runtime.stage import Stage
from agentflow.runtime.step_runner import StepInput, StepRunner
from agentflow.runtime.task_steps import Answer
from agentflow.runtime.watermarks import WatermarkGenerator

_IDLE_STEP_MS = 100
_Answer = ActionCompleted | ActionFailed | JournalAppended | StepInput


class Subtask:
    """Runs until the input ends, `stop` is called, or something fails.

    Args:
        source: Already open at ``positions``.
        sinks: By role: ``sink``, perhaps ``dead-letter`` and ``repartition``.
        epochs: Makes checkpoints durable.
        clock: Processing time.
        settings: The job's settings.
        positions: Where the source was opened.
        counters: Filled while running.
    """

    def __init__(
        self,
        source: Source,
        sinks: Mapping[str, Sink],
        epochs: EpochWriter,
        clock: Clock,
        settings: JobSettings,
        positions: Mapping[str, int],
        counters: Counters,
    ) -> None:
        self._stages: list[Stage] = []
        self._sinks = dict(sinks)
        self._repartition = cast("Repartition", sinks.get("repartition"))
        self._epochs = epochs
        self._clock = clock
        self._settings = settings
        self._positions = dict(positions)
        self._own_positions: dict[str, int] = {}  # of signals and requests: the source does not see them
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._failure: asyncio.Future[None] = self._loop.create_future()
        self._failure.add_done_callback(look_at)
        self._edge = Edge(self.fail)
        self._checkpointed = source if isinstance(source, CheckpointedSource) else None
        self._answers: deque[tuple[int, _Answer]] = deque()
        self._journal: JournalWriter | None = None
        self._requests: RequestTable | None = None
        self._signals: Signals | None = None
        self._signal_reader = SignalReader([])
        self._is_in_effects = False
        self._is_scheduled = False
        self._is_observed = False
        self._context = contextvars.copy_context()  # of every turn: else it would be that of the action that caused it
        self._drain_requested = False
        self._is_restored = False
        self.checkpoint_schedule = CheckpointSchedule(self._take_checkpoint, self.fail, settings.checkpoint.interval_ms)
        self._mailbox = Mailbox(source, self._schedule, self.fail, sinks.values(), self.checkpoint_schedule.take_extra)
        self._draining = Draining(self._mailbox.stopping, settings.shutdown.drain_timeout_ms, self._begin_drain)
        self._alarm = Alarm(self._schedule)
        event_time = settings.event_time
        self._watermarks = WatermarkGenerator(event_time, source.partitions, source.idle_timeout_ms, clock.now_ms())
        self._has_output = False
        self._last = -1
        self._snapshots: list[TakeSnapshot] = []
        self._carry_out: dict[type, Callable[[int, Any, int], object]] = {
            CancelAction: self._cancel,
            DeadLetter: self._dead_letter,
            Drained: self._pass_drain,
            FailJob: self._fail_job,
            ForwardWatermark: self._pass_watermark,
            PauseSource: self._pause,
            ReplayAction: lambda index, effect, now_ms: self._stages[index].operator.apply(effect.ending, now_ms),
            RequestCheckpoint: lambda *_: self.checkpoint_schedule.take_extra(),
            ResumeSource: self._resume,
            **dict.fromkeys((RefuseStep, ResolveStep, RunStep), self._answer_step),
            ScheduleRetry: lambda *_: None,
            SkipTask: lambda *_: None,
            TakeSnapshot: lambda _, effect, __: self._snapshots.append(effect),
        }

    def use_journal(self, journal: Journal, position: int) -> None:
        """Record durable steps in ``journal``, which has been read up to ``position``; called behind `add_stage`."""
        first = self._stages[0].observation
        seen = None if first is None else first.turn.notes.append
        writer = self._journal = self._epochs.journal = JournalWriter(journal, self._take, self.fail, position, seen)
        self._carry_out[PersistStep] = lambda index, effect, _: writer.append(index, effect.record)

    def use_signals(self, signals: Signals, reader: SignalReader) -> None:
        """Take signals, which are open at the positions."""
        self._signals = self._epochs.signals = signals
        self._signal_reader = reader
        if signals.name in self._positions:
            self._own_positions[signals.name] = self._positions.pop(signals.name)

    def use_requests(self, requests: RequestTable, find_result: Callable[[int, str], bytes | None]) -> None:
        """Take requests; behind `add_stage`, which has restored the unfinished ones. ``find_result`` returns a kept one."""
        self._requests = requests
        self._carry_out[AcknowledgeRequest] = lambda _, effect, __: requests.acknowledge(effect)
        self._carry_out[AnswerRequest] = lambda _, effect, __: requests.answer(effect)
        life = self._own_positions[REQUESTS] = self._positions.pop(REQUESTS, 0) + 1
        open_runs = {index: stage.operator.unfinished.open_requests for index, stage in enumerate(self._stages)}
        requests.attach(life, open_runs, self._counters.checkpoint, find_result)

    def add_stage(self, stage: Stage) -> None:
        """Append an operator to the chain, restored, before `run`; its runner delivers to `deliver_to` of its place."""
        self._stages.append(stage)
        self._last += 1
        if stage.observation is not None:
            self._is_observed, stage.observation.wake = True, self._schedule

    @property
    def runs_in_flight(self) -> int:
        """Unfinished runs of all operators."""
        return sum(stage.operator.runs_unfinished for stage in self._stages)

    def operator(self, index: int) -> Operator:
        """Return operator ``index``, to look at."""
        return self._stages[index].operator

    @property
    def figures(self) -> SubtaskFigures:
        """What it holds now; on the loop."""
        return figures_of((stage.operator for stage in self._stages), self._mailbox, self._epochs.sizes)

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
            if self._requests is not None:  # none is admitted before the life and the incarnation are durable
                await unless_failed(self.checkpoint_schedule.take(), self._failure)
                self._requests.open(self._schedule)
            await unless_failed(self._draining.wait(), self._failure)
            timer.cancel()
            await asyncio.wait([timer])
            await unless_failed(self.checkpoint_schedule.take(), self._failure)
        finally:
            if self._requests is not None:
                self._requests.detach()
            tasks = [*readers, timer, *self.checkpoint_schedule.extra]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._alarm.cancel()
            await asyncio.gather(*(stage.runner.close(self._draining.unwind_s) for stage in self._stages))
            if self._journal is not None:
                await self._journal.close()
            if self._is_observed:
                self._tell_observers(self._clock.now_ms())  # also of a turn that failed

    def stop(self) -> None:
        """Admit nothing more, drain, take a final checkpoint; called again: do not wait for runs in flight."""
        self._draining.stop()
        if self._requests is not None:
            self._requests.stop(closed())

    def fail(self, error: BaseException) -> None:
        """End `run` with an error; the first one counts."""
        if not self._failure.done():
            self._failure.set_exception(error)

    def _begin_drain(self) -> None:
        self._drain_requested = True
        for stage in self._stages:
            if stage.steps is not None:
                stage.steps.park_soon()
        self._schedule()

    def _take_signal(self, record: Record, now_ms: int) -> None:
        self._own_positions[record.source] = record.next_offset
        if (read := self._signal_reader.read(record)) is None:
            return
        index, received = read
        if isinstance(received, ExportRequested):
            self.export(received.request)
            return
        stage = self._stages[index]
        if stage.observation is not None:
            stage.observation.turn.notes.append(received)
        stage.operator.apply(received, now_ms)
        self._run_effects(index, now_ms)

    def _pause(self, index: int, effect: PauseSource, now_ms: int) -> None:  # noqa: ARG002 (one signature)
        self._mailbox.pause()
        if self._requests is not None:
            self._requests.pause(index)
        steps = self._stages[index].steps
        if steps is not None:
            steps.park_all()  # what waits only is not in flight then

    def _resume(self, index: int, effect: ResumeSource, now_ms: int) -> None:  # noqa: ARG002 (one signature)
        self._mailbox.resume()
        if self._requests is not None:
            self._requests.resume(index)

    # -- turns
    def decide_step(self, index: int, received: StepInput) -> Answer | None:
        """Apply what user code of operator ``index`` did about a step; return its answer if that is all that follows.

        Else `carry_out_step` is to be called. A wait waits for a turn, which sets the alarm; and what was sent before it may start an
        action of the next operator, which cannot be inside of its task.
        """
        if type(received) is WaitRequested or (type(received) is StepEnded and received.retry is not None):
            self._deliver(index, received)
        elif not self._failure.done():
            with self._edge:
                operator = self._stages[index].operator
                effects, before = operator.effects, len(operator.effects)
                operator.apply(received, self._clock.now_ms())
                if type(received) is StepRequested and len(effects) == before + 1:
                    last = effects[-1]
                    if type(last) in (RunStep, ResolveStep) and last.path == received.call.path:  # type: ignore[union-attr]
                        return effects.pop()  # type: ignore[return-value]
        return None

    def carry_out_step(self, index: int) -> None:
        """Carry out what follows from `decide_step`, at once."""
        if self._failure.done() or self._is_in_effects:
            return  # in the middle of effects, they are read right behind this one
        with self._edge:
            if self._stages[index].operator.effects:
                self._run_effects(index, self._clock.now_ms())
            else:
                self._schedule()  # perhaps it waits, as recorded

    def _take(self, index: int, received: _Answer) -> None:
        """Go on at once behind what has ended: a turn looks at all else first. Where several actions end together, the others share one."""
        if self._is_scheduled and type(received) is not JournalAppended:
            self._deliver(index, received)
        elif not self._failure.done():
            self._context.run(self._take_now, index, received)  # not in that of whoever has caused it

    def _take_now(self, index: int, received: _Answer) -> None:
        with self._edge:
            self._apply(index, received, self._clock.now_ms())
            if self._is_observed or type(received) is not JournalAppended:  # it sets no alarm
                self._schedule()

    def _apply(self, index: int, received: _Answer, now_ms: int) -> None:
        stage = self._stages[index]
        if stage.observation is not None:
            stage.observation.see(received)
        stage.operator.apply(received, now_ms)
        self._run_effects(index, now_ms)

    def _cancel(self, index: int, effect: CancelAction, now_ms: int) -> None:
        stage = self._stages[index]
        if (stopped := stage.runner.cancel(effect.task)) is not None:
            stage.operator.apply(stopped, now_ms)

    def _answer_step(self, index: int, effect: RefuseStep | ResolveStep | RunStep, _: int) -> None:
        cast("StepRunner", self._stages[index].steps).answer(effect)

    def _deliver(self, index: int, answer: _Answer) -> None:
        self._answers.append((index, answer))
        self._schedule()

    def deliver_to(self, index: int) -> Callable[[ActionCompleted | ActionFailed], None]:
        """Return the place where the runner of operator ``index`` delivers late answers."""
        return lambda answer: self._take(index, answer)

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._turn, context=self._context)

    def _turn(self) -> None:
        self._is_scheduled = False
        if self._failure.done():
            return
        mailbox = self._mailbox
        with self._edge:
            now_ms = self._clock.now_ms()
            if self._is_restored:
                self._is_restored = False
                self._run_effects(0, now_ms)  # of the restore: the start of unfinished runs
            for _ in range(len(self._answers)):
                self._apply(*self._answers.popleft(), now_ms)
            while mailbox.signals:
                self._take_signal(mailbox.signals.popleft(), now_ms)
            while mailbox.batches:
                batch = mailbox.batches.popleft()
                self._admit(batch, now_ms) if batch else self._end_input(now_ms)
                mailbox.take_more(self._clock.now_ms() - now_ms)
            if self._requests is not None:
                self._admit_requests(self._requests, now_ms)
            if self._drain_requested and (self._requests is None or not self._requests.has_queued):
                self._drain_requested = False
                self._stages[0].operator.apply(self._drain(), now_ms)
                self._run_effects(0, now_ms)
            self._advance_time(now_ms)
            if self._is_observed:
                self._tell_observers(now_ms)

    def _tell_observers(self, now_ms: int) -> None:
        for stage in self._stages:
            if stage.observation is not None:
                stage.observation.flush(now_ms)

    def _admit(self, batch: Sequence[Record], now_ms: int) -> None:
        stage = self._stages[0]
        apply, read = stage.operator.apply, cast("RecordReader", stage.reader).read
        rekeyed_source = stage.keys.rekeyed_source
        observation, others = stage.observation, 0
        seen = None if observation is None or not observation.needs_answers else observation.turn.records
        for record in batch:
            received = read(record)
            if type(received) is RecordReceived:
                if rekeyed_source is not None and record.source != rekeyed_source:
                    others += 1
                    self._repartition.forward(record, received.key)
                    self._has_output = True
                    continue
                if seen is not None:
                    seen.append(received)
            else:
                others += 1
            apply(received, now_ms)
        if observation is not None:
            observation.turn.admitted += len(batch) - others
        self._positions.update({record.source: record.next_offset for record in batch})
        self._counters.records_in += len(batch)
        self._run_effects(0, now_ms)
        if self._watermarks.is_active:
            self._advance_watermark(self._watermarks.take(batch, now_ms), now_ms)

    def _admit_requests(self, requests: RequestTable, now_ms: int) -> None:
        taken = requests.take(self._mailbox.turn_records)
        if not taken:
            return
        for request in taken:
            stage = self._stages[request.agent]
            request.epoch = stage.operator.epoch
            received = RequestReceived(request.record, request.key, request.is_kept, request.wants_receipt)
            if stage.observation is not None:
                stage.observation.see_record(received)
            stage.operator.apply(received, now_ms)
        self._counters.admit_requests(len(taken))
        for index in sorted({request.agent for request in taken}):
            self._run_effects(index, now_ms)
        self._mailbox.take_more(self._clock.now_ms() - now_ms)
        if requests.has_queued:
            self._schedule()

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
        is_terminal = stage.is_terminal
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
                if is_terminal:
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
        if not is_terminal:
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
            stage.operator.apply(without_key(record, error), now_ms)
        else:
            if stage.observation is not None:
                stage.observation.see_record(received)
            stage.operator.apply(received, now_ms)

    def _pass_watermark(self, index: int, effect: ForwardWatermark, now_ms: int) -> None:
        if index < self._last:
            self._stages[index + 1].operator.apply(WatermarkReceived(effect.watermark_ms), now_ms)

    def _drain(self) -> DrainRequested:
        """Runs that sleep and timers stay state when the job is stopped; at the end of its input they are part of its work."""
        return DrainRequested(awaits_all=not self._mailbox.stopping.is_set())

    def _pass_drain(self, index: int, effect: Drained, now_ms: int) -> None:  # noqa: ARG002 (one signature)
        if index < self._last:
            self._stages[index + 1].operator.apply(self._drain(), now_ms)
        else:
            self._draining.drained.set()

    def _dead_letter(self, index: int, effect: DeadLetter, now_ms: int) -> None:  # noqa: ARG002 (one signature)
        self._sinks["dead-letter"].write(effect)
        self._counters.dead_letters += 1
        self._has_output = True

    def _fail_job(self, index: int, effect: FailJob, now_ms: int) -> None:  # noqa: ARG002 (one signature)
        raise job_failure(effect)

    def _advance_time(self, now_ms: int) -> None:
        """Tell operators that time has come, and wake up when it comes next; no more where all is over but the last checkpoint."""
        if self._draining.drained.is_set():
            return
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

    def export(self, request: str) -> asyncio.Task[None]:
        """Take a checkpoint, and hand out the state before the next one begins; see `KeyedState.export`."""

        async def hand_out() -> None:
            if not self._failure.done():
                await self._epochs.export(request)

        return self.checkpoint_schedule.take_extra(hand_out)

    async def _take_checkpoint(self) -> None:
        """Take one checkpoint: barrier in one turn, then make it durable while reading and actions go on.

        None behind a turn that failed: effects of it are not carried out, and a checkpoint would make that final.
        """
        if self._failure.done():
            return
        checkpoint, now_ms = self._counters.checkpoint + 1, self._clock.now_ms()
        if self._checkpointed is not None:
            self._positions = dict(self._checkpointed.barrier(self._positions))
        positions = self._positions | self._own_positions
        for index, stage in enumerate(self._stages):
            stage.operator.apply(BarrierReceived(checkpoint, positions if index == 0 else {}), now_ms)
            self._run_effects(index, now_ms)
        if self._is_observed:
            self._tell_observers(now_ms)  # what the checkpoint has is told before it is durable
        snapshots, self._snapshots = self._snapshots, []
        has_output, self._has_output = self._has_output, False
        journal_position = None if self._journal is None else self._journal.position
        is_skipped = not has_output and all(snapshot.is_empty for snapshot in snapshots)
        if is_skipped:  # told at once: the open epoch has its number from now on
            for stage in self._stages:
                stage.operator.apply(CheckpointCompleted(checkpoint, is_skipped=True), now_ms)
        else:
            self._epochs.barrier(checkpoint)
            if self._requests is not None:
                self._requests.barrier()
            await self._epochs.write(checkpoint, snapshots, positions, journal_position)
        if self._checkpointed is not None:
            await self._checkpointed.release(positions)
        if self._failure.done():
            return
        told: asyncio.Future[None] = self._loop.create_future()
        self._loop.call_soon(self._tell_completed, checkpoint, is_skipped, told, context=self._context)
        await told
        now_ms = self._clock.now_ms()
        await self._epochs.sweep(now_ms, min(stage.operator.oldest_run_ms(now_ms) for stage in self._stages))

    def _tell_completed(self, checkpoint: int, is_skipped: bool, told: asyncio.Future[None]) -> None:  # noqa: FBT001 (a callback)
        """Tell the operators, as in a turn: what they start is not inside of the checkpoint's task.

        Behind a turn that failed nobody is told: its effects are half carried out, and must not be carried out again.
        """
        if not self._failure.done():
            with self._edge:
                now_ms = self._counters.checkpoint_completed_ms = self._clock.now_ms()
                for index, stage in enumerate(self._stages):
                    if not is_skipped:
                        stage.operator.apply(CheckpointCompleted(checkpoint), now_ms)
                    self._run_effects(index, now_ms)
                if self._requests is not None and not is_skipped:
                    self._requests.checkpoint_completed()
                self._schedule()  # something may wait for time now
        if not told.done():
            told.set_result(None)

"""Traces of runs: one trace per run, or the caller's that it continues.

    run                  from admission to its end; its parent is the caller's span
    └── action           one attempt, however often a crash or a sleep made it begin again; linked to the attempt before it
        └── step         one call of a durable step; a step that the journal answered is none
            └── chat, execute_tool   one call of a model, or of a tool (`agentflow.observability.call_spans`)

A span is made when what it tells is over, from what the engine knows then, so a run that sleeps for days holds nothing open: its
children are exported meanwhile, and know its id. Ids are derived (`agentflow.core.trace_context`), so nothing has to be remembered
over a crash for its children to find it.

Of runs that are not sampled only failures are kept, until the run ends: one that fails is exported with its failed attempts.
"""

from __future__ import annotations

import contextvars
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from opentelemetry import context as otel_context
from opentelemetry import trace as otel

from agentflow.api.events import EventType
from agentflow.api.resources import ResourceType
from agentflow.core.effects import CancelAction, DeadLetter, FailJob, ScheduleRetry, SkipTask
from agentflow.core.inputs import ActionFailed, StepCall
from agentflow.core.records import ErrorReport, Record
from agentflow.core.trace_context import (
    LOT_MASK,
    SPREAD,
    TRACESTATE,
    TRACESTATE_BYTES_MAX,
    RunTrace,
    TraceIds,
    attempt_span_id,
    header,
    step_span_id,
)
from agentflow.observability import names
from agentflow.observability.call_spans import CallsOfAttempt, CallSpans, Capture
from agentflow.observability.operator_metrics import PlanView, Start
from agentflow.observability.span_encoding import CONSUMER, ERROR, INTERNAL, UNSET, EndedSpan, SpanEvent, SpanLink
from agentflow.observability.spans import LiveSpan, SpanSink, exception_attributes
from agentflow.runtime.observation import ExecutionReported, StepSeen, Turn, monotonic_ns
from agentflow.runtime.redaction import Redaction
from agentflow.runtime.settings import TracingSettings

_SWEEP_MS = 10_000
_FAILING_MAX = 10_000
_RUNNING = 1  # `TaskStatus`
_CALLED = (2, 3, 8)  # `RecordKind` of steps that were called: RESULT, ERROR, ATTEMPT
_MS = 1_000_000
Task = Any
Run = Any
_End = tuple[RunTrace, str]  # where a run stands, how it ends
_Times = dict[tuple[Task, int], tuple[int, int]]  # (task, attempt) → when it began and ended, epoch nanoseconds


class _Attempt(msgspec.Struct, eq=False):
    """An attempt that is traced, while its user code runs."""

    trace: RunTrace
    path: str
    span_id: int
    number: int
    live: LiveSpan
    steps_before: list[Any]
    calls: CallsOfAttempt


class _Failure(msgspec.Struct, eq=False):
    """A failed attempt of a run that is not sampled. Epoch nanoseconds."""

    action: str
    path: str
    attempt: int
    error: ErrorReport
    began_ns: int
    ended_ns: int


class Tracing:
    """Traces the runs of a job.

    Args:
        sink: Takes the spans.
        settings: What is sampled.
        redaction: What must not be seen in errors, in what user code adds to spans, and in what was said to models and tools.
        convention: What attributes of calls of models are called.
        capture: Where what was said is to be seen.
    """

    def __init__(
        self,
        sink: SpanSink,
        settings: TracingSettings,
        redaction: Redaction,
        convention: names.GenAiConvention = names.GEN_AI_1_41,
        capture: Capture = Capture.NO_CONTENT,
    ) -> None:
        self._sink = sink
        self._settings = settings
        self._redaction = redaction
        self._convention = convention
        self._capture = capture

    def observer(self, plan: PlanView, subtask: int, index: int, incarnation: str) -> OperatorTraces:  # noqa: ARG002 (the port)
        """Return what traces an agent in a life of its subtask."""
        ids = TraceIds(incarnation, self._settings.sample_ratio)
        return OperatorTraces(self._sink, plan, ids, self._redaction, self._convention, self._capture)

    async def close(self) -> None:
        """Export what is left."""
        await self._sink.close()


class OperatorTraces:
    """Traces one operator. See `agentflow.runtime.observation.Observation` for its attributes."""

    needs_answers = False

    def __init__(
        self,
        sink: SpanSink,
        plan: PlanView,
        ids: TraceIds,
        redaction: Redaction,
        convention: names.GenAiConvention,
        capture: Capture,
    ) -> None:
        self._emit = sink.emit
        self._redaction = redaction
        self._agent = agent = plan.name
        self._run_name = f"{names.RUN_SPAN} {agent}"
        self._of_run = {names.AGENT_NAME: agent}
        if any(one.type == ResourceType.CHAT_MODEL for one in plan.resources):
            self._of_run |= {names.GEN_AI_OPERATION: names.INVOKE_AGENT, names.GEN_AI_AGENT: agent}
        self._call_spans = CallSpans(agent, convention, capture, self._shown)
        self.wants_content = None if capture is Capture.NO_CONTENT else self.wants_reports
        self._ids = ids
        self._open: dict[tuple[Task, int], _Attempt] = {}
        self._calls: dict[tuple[Task, str, int], tuple[_Attempt, LiveSpan]] = {}
        self._failing: dict[Run, list[_Failure]] = {}
        self._ending: dict[Run, _End] = {}  # whose span is due when they are over
        self._sweep_ms = 0

    # -- while user code runs
    def wants_reports(self, task: Task) -> bool:
        """Whether the task's attempt is traced."""
        return (task, task.attempt) in self._open

    def context_of(self, task: Task) -> contextvars.Context | None:
        """Return the context of an attempt whose run is sampled."""
        trace = self._ids.run(task.run.record)
        return self._open_attempt(task, trace) if trace.is_sampled else None

    def choosing(
        self,
        context_of: Callable[[Task], contextvars.Context | None],
        start: Start,
        see_start: Callable[[Task, contextvars.Context], Any],
    ) -> Start:
        """See `agentflow.runtime.observation.start_in_context`. Of all that traces do, this is done for every attempt."""
        ids, threshold, last, first_lot = self._ids, self._ids.threshold, "", 0

        def start_chosen(task: Task) -> Any:  # noqa: ANN401 (an answer)
            nonlocal last, first_lot
            record = task.run.record
            if record.headers:
                is_chosen = True  # perhaps: its caller says so
            else:
                if record.source is not last:
                    _, first_lot = ids.source(record.source)
                    last = record.source
                is_chosen = (record.offset * SPREAD + first_lot) & LOT_MASK < threshold
            if is_chosen and (context := context_of(task)) is not None:
                return see_start(task, context)
            task.began_ns = 0
            answer = start(task)
            if answer is None and not task.began_ns:
                task.began_ns = monotonic_ns()
            return answer

        return start_chosen

    def _open_attempt(self, task: Task, trace: RunTrace) -> contextvars.Context:
        number, recorded, path = task.attempt, task.recorded, task.path
        span_id = attempt_span_id(trace.span_id, path, number)
        live = LiveSpan(trace.trace_id, span_id, _state(trace, task.run.record))
        before = [] if recorded is None else [step for step in recorded.steps.values() if step.attempt == number]
        self._open[task, number] = _Attempt(trace, path, span_id, number, live, before, CallsOfAttempt())
        context = contextvars.copy_context()
        context.run(otel_context.attach, otel.set_span_in_context(live))
        return context

    def enter_step(self, task: Task, call: StepCall, calls: int) -> Callable[[], object] | None:
        """Let the span of a step's call be the current one while its function runs."""
        opened = self._open.get((task, task.attempt))
        if opened is None:
            return None
        trace = opened.trace
        span_id = step_span_id(opened.span_id, call.path, calls)
        live = LiveSpan(trace.trace_id, span_id, _state(trace, task.run.record))
        self._calls[task, call.path, calls] = opened, live
        token = otel_context.attach(otel.set_span_in_context(live))
        return lambda: otel_context.detach(token)

    # -- behind the turn
    def observe(self, turn: Turn, now_ms: int) -> None:
        """Export what has ended."""
        if not (turn.answers or turn.steps or turn.notes or self._ending):
            return
        since_epoch_ns = time.time_ns() - monotonic_ns()
        now_ns = monotonic_ns() + since_epoch_ns
        for note in turn.notes:
            if type(note) is ExecutionReported:
                self._see_report(note, since_epoch_ns)
        for seen in turn.steps:
            if seen.calls:
                self._end_step(seen, since_epoch_ns)
        failed: _Times = {}
        over: dict[Run, _End] = {}
        for answer, attempt, began_ns, ended_ns in turn.answers:
            task = answer.task
            opened = self._open.pop((task, attempt), None)
            if opened is not None:
                error = answer.error if type(answer) is ActionFailed else None
                self._end_attempt(task, opened, began_ns + since_epoch_ns, ended_ns + since_epoch_ns, error)
                is_compensation = task.event_type == EventType.CancelEvent
                over[task.run] = opened.trace, names.CANCELLED if is_compensation else ""
            elif type(answer) is ActionFailed and began_ns:
                failed[task, attempt] = began_ns + since_epoch_ns, ended_ns + since_epoch_ns
        if turn.notes:
            self._see_notes(turn.notes, failed, over, now_ns)
        if over or self._ending:
            self._end_runs(over, now_ns)
        if now_ms >= self._sweep_ms:
            self._sweep_ms = now_ms + _SWEEP_MS
            self._sweep()

    def _see_report(self, note: ExecutionReported, since_epoch_ns: int) -> None:
        opened = self._open.get((note.task, note.attempt))
        span = None if opened is None else self._call_spans.see(note, opened.calls, opened.span_id, since_epoch_ns)
        if opened is None or span is None:
            return
        times = span.began_ns + since_epoch_ns, span.ended_ns + since_epoch_ns
        self._end(
            span.name,
            opened.trace,
            span.span_id,
            span.parent_id,
            *times,
            span.attributes,
            events=span.events,
            error=span.error,
            kind=span.kind,
        )

    def _end_step(self, seen: StepSeen, since_epoch_ns: int) -> None:
        task, call = seen.task, seen.call
        opened, live = self._calls.pop((task, call.path, seen.calls), (self._open.get((task, task.attempt)), None))
        if opened is None:
            return
        error = None
        if seen.error:
            kind, _, message = seen.error.partition(": ")
            error = ErrorReport(kind, message)
        self._end(
            f"{names.STEP_SPAN} {call.function}",
            opened.trace,
            step_span_id(opened.span_id, call.path, seen.calls),
            opened.span_id,
            seen.began_ns + since_epoch_ns,
            seen.ended_ns + since_epoch_ns,
            {names.STEP_NAME: call.function, names.STEP_PATH: call.path, names.STEP_CALL: seen.calls},
            error=error,
            live=live,
        )

    def _end_attempt(
        self, task: Task, opened: _Attempt, began_ns: int, ended_ns: int, error: ErrorReport | None, outcome: str = ""
    ) -> None:
        trace, path, action = opened.trace, opened.path, task.action.name
        links = [_link_before(trace, path, opened.number)] if opened.number > 1 else []
        events = []
        if opened.steps_before:
            recorded = sorted(opened.steps_before, key=lambda step: step.at_ms)
            events.append(SpanEvent(names.RESUMED, began_ns, {names.STEPS_RECORDED: len(recorded)}))
            began_ns = min(began_ns, recorded[0].at_ms * _MS)
            called = [step for step in recorded if step.kind in _CALLED]
            if called:
                last = step_span_id(opened.span_id, called[-1].call.path, 1)
                links.append(SpanLink(trace.trace_id, last, {names.LINK: names.LAST_STEP}))
        attributes = {names.ACTION_NAME: action, names.TASK_PATH: path, names.ATTEMPT: opened.number}
        attributes |= opened.calls.attributes()
        if outcome:
            attributes[names.ACTION_OUTCOME] = outcome
        self._end(
            f"{names.ACTION_SPAN} {action}",
            trace,
            opened.span_id,
            trace.span_id,
            began_ns,
            ended_ns,
            attributes,
            links=links,
            events=events,
            error=error,
            live=opened.live,
        )

    def _end(
        self,
        name: str,
        trace: RunTrace,
        span_id: int,
        parent_id: int,
        began_ns: int,
        ended_ns: int,
        attributes: dict[str, Any],
        *,
        links: Sequence[SpanLink] = (),
        events: Sequence[SpanEvent] = (),
        error: ErrorReport | None = None,
        live: LiveSpan | None = None,
        kind: int = INTERNAL,
    ) -> None:
        """Export a span, with what user code has added to it and what it failed with."""
        status, message = UNSET, ""
        if live is not None and live.is_changed:
            shown, text = self._shown, self._redaction.text
            attributes = {**shown(live.attributes), **attributes}
            own_links = [SpanLink(one.trace_id, one.span_id, shown(one.attributes)) for one in live.links]
            own_events = [SpanEvent(text(one.name), one.at_ns, shown(one.attributes)) for one in live.events]
            links, events = [*links, *own_links], [*events, *own_events]
            status, message = live.status, text(live.message)
        if error is not None:
            attributes[names.ERROR_TYPE] = error.type
            text = self._redaction.text
            status, message = ERROR, text(str(error))
            told = exception_attributes(error.type, text(error.message), text(error.traceback))
            events = [*events, SpanEvent("exception", ended_ns, told)]
        is_remote = kind == CONSUMER and trace.caller is not None
        self._emit(
            EndedSpan(
                name,
                trace.trace_id,
                span_id,
                parent_id,
                began_ns,
                max(began_ns, ended_ns),
                attributes,
                kind,
                is_remote,
                links,
                events,
                status,
                message,
            )
        )

    def _shown(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Return attributes that user code has added, without secrets: by their names, and inside of texts."""
        redacted = self._redaction.value(dict(attributes))
        return {name: self._without_pairs(value) for name, value in redacted.items()}

    def _without_pairs(self, value: Any) -> Any:  # noqa: ANN401 (whatever an attribute may be)
        """Return a value without what its texts say behind secret names: a URL, the message of an exception."""
        if isinstance(value, str):
            return self._redaction.text(value)
        if isinstance(value, bytes):
            text = value.decode("utf-8", "replace")
            redacted = self._redaction.text(text)
            return value if redacted == text else redacted
        if isinstance(value, Mapping):
            return {name: self._without_pairs(inner) for name, inner in value.items()}
        if isinstance(value, Sequence):
            return [self._without_pairs(inner) for inner in value]
        return value

    # -- failures
    def _see_notes(self, notes: list[object], failed: _Times, over: dict[Run, _End], now_ns: int) -> None:
        retries: dict[Task, list[ScheduleRetry]] = {}
        for note in notes:
            if isinstance(note, ScheduleRetry):
                retries.setdefault(note.task, []).append(note)
        for task, of_task in retries.items():
            if not self._ids.run(task.run.record).is_sampled:
                first = task.attempt - len(of_task)  # the operator has counted on
                for attempt, retry in enumerate(of_task, first):
                    self._note_failure(task, attempt, retry.error, failed.get((task, attempt), (now_ns, now_ns)))
        for note in notes:
            if isinstance(note, SkipTask):
                self._fail(note.task, note.error, failed, now_ns)
                over[note.task.run] = self._ids.run(note.task.run.record), ""
            elif isinstance(note, DeadLetter | FailJob):
                self._end_failed(note, failed, over, now_ns)
            elif isinstance(note, CancelAction):
                task = note.task
                opened = self._open.pop((task, task.attempt), None)
                if opened is not None:
                    began_ns = task.began_ns + now_ns - monotonic_ns() if task.began_ns else now_ns
                    self._end_attempt(task, opened, began_ns, now_ns, None, names.CANCELLED)
                    over[task.run] = opened.trace, names.CANCELLED

    def _note_failure(self, task: Task, attempt: int, error: ErrorReport, times: tuple[int, int]) -> None:
        """Keep a failed attempt of a run that is not sampled: perhaps the run fails."""
        if len(self._failing) >= _FAILING_MAX:
            del self._failing[next(iter(self._failing))]
        failure = _Failure(task.action.name, task.path, attempt, error, *times)
        self._failing.setdefault(task.run, []).append(failure)

    def _fail(self, task: Task, error: ErrorReport, failed: _Times, now_ns: int) -> None:
        """Export the failed attempts of a task's run, the last one included; where the run is sampled, they are exported already."""
        run, attempt = task.run, task.attempt
        trace = self._ids.run(run.record)
        if trace.is_sampled:
            return
        self._note_failure(task, attempt, error, failed.get((task, attempt), (now_ns, now_ns)))
        for failure in self._failing.pop(run, ()):
            self._end(
                f"{names.ACTION_SPAN} {failure.action}",
                trace,
                attempt_span_id(trace.span_id, failure.path, failure.attempt),
                trace.span_id,
                failure.began_ns,
                failure.ended_ns,
                {names.ACTION_NAME: failure.action, names.TASK_PATH: failure.path, names.ATTEMPT: failure.attempt},
                links=[_link_before(trace, failure.path, failure.attempt)] if failure.attempt > 1 else (),
                error=failure.error,
            )

    def _end_failed(self, note: DeadLetter | FailJob, failed: _Times, over: dict[Run, _End], now_ns: int) -> None:
        task = note.task
        if task is None:
            if isinstance(note, DeadLetter):
                self._reject(note.record, note.error, now_ns)
            return
        self._fail(task, note.error, failed, now_ns)
        over.pop(task.run, None)
        self._ending.pop(task.run, None)
        outcome = names.DEAD_LETTER if isinstance(note, DeadLetter) else names.FAILED
        self._end_run(task.run, self._ids.run(task.run.record), now_ns, outcome, note.error)

    def _reject(self, record: Record, error: ErrorReport, now_ns: int) -> None:
        """Export a record that never became a run, as one that failed at once."""
        attributes = {**self._of_run, names.RUN_ID: record.run_id, names.RUN_OUTCOME: names.REJECTED}
        self._end_span_of_run(self._ids.run(record), now_ns, now_ns, attributes, error)

    # -- runs
    def _end_runs(self, over: dict[Run, _End], now_ns: int) -> None:
        for run, (trace, outcome) in {**self._ending, **over}.items():
            if run.is_over and not run.is_parked:  # a folded run has let go of its tasks
                self._ending.pop(run, None)
                self._end_run(run, trace, now_ns, outcome, None)
            elif not trace.is_sampled:  # its later attempts are not seen
                self._ending[run] = trace, outcome

    def _end_run(self, run: Run, trace: RunTrace, now_ns: int, outcome: str, error: ErrorReport | None) -> None:
        attributes = {**self._of_run, names.RUN_ID: run.id}
        if not self._redaction.hides_key:
            attributes[names.KEY_HASH] = hashlib.blake2b(run.key, digest_size=8).hexdigest()
        if outcome:
            attributes[names.RUN_OUTCOME] = outcome
        self._end_span_of_run(trace, run.admitted_ms * _MS, now_ns, attributes, error)

    def _end_span_of_run(
        self, trace: RunTrace, began_ns: int, ended_ns: int, attributes: dict[str, Any], error: ErrorReport | None
    ) -> None:
        parent_id = 0 if trace.caller is None else trace.caller.span_id
        self._end(
            self._run_name, trace, trace.span_id, parent_id, began_ns, ended_ns, attributes, error=error, kind=CONSUMER
        )

    def _sweep(self) -> None:
        """Forget attempts that are parked: they begin again; and failures of runs that did not fail, or sleep."""
        for key in [key for key in self._open if key[0].status != _RUNNING]:
            del self._open[key]
        for call, (opened, _) in list(self._calls.items()):  # at once: threads add to it
            if (call[0], opened.number) not in self._open:
                del self._calls[call]
        for run in [run for run in self._failing if run.is_over or run.is_sleeping]:
            del self._failing[run]
        for run in [run for run in self._ending if run.is_parked]:
            del self._ending[run]


def _link_before(trace: RunTrace, path: str, attempt: int) -> SpanLink:
    """Return the link of an attempt to the one before it."""
    before = attempt_span_id(trace.span_id, path, attempt - 1)
    return SpanLink(trace.trace_id, before, {names.LINK: names.PREVIOUS_ATTEMPT})


def _state(trace: RunTrace, record: Record) -> otel.TraceState | None:
    """Return what the vendors of the caller's trace have to say; it goes along with calls of user code."""
    value = None if trace.caller is None else header(record.headers, TRACESTATE, TRACESTATE_BYTES_MAX)
    return None if value is None else otel.TraceState.from_header([value.decode("ascii", "replace")])

"""Records of the event log about executions: actions, steps, what user code reports, and what follows from failures.

Ids derive from run, path and attempt, so that what is written again after a recovery has the ids it had:

    execution of an attempt    {task id}#{attempt}                 of a step    {task id}{path of the step}
    of a report                {attempt}~{type}:{name}~{count}     event        {execution}:started, :finished, :failed, :reused
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
from msgspec import UNSET, UnsetType

from agentflow.api.codecs import MSGPACK
from agentflow.api.events import EventType
from agentflow.api.executions import (
    ExecutionEntityTypes,
    ExecutionLifecycleEvents,
    ExecutionProblemCategories,
    ExecutionStatus,
    TaskOutcomeEvents,
    ToolExecutionMetadataKeys,
)
from agentflow.core.effects import CancelAction, DeadLetter, FailJob, ReplayAction, ResolveStep, ScheduleRetry, SkipTask
from agentflow.core.inputs import ActionCompleted, CancelRequested, StepCall, WaitRequested
from agentflow.core.records import ErrorReport
from agentflow.observability.event_log_levels import EventLogLevel
from agentflow.observability.event_log_values import ValueForm, shown_key
from agentflow.runtime.observation import ExecutionReported, StepBegan

if TYPE_CHECKING:
    from agentflow.observability.event_log_lines import EventLines, Rules
    from agentflow.runtime.observation import Answer, StepSeen, Turn

_KEPT_MAX = 4096
_CANCELLED = 6  # status of a task
Value = TypeVar("Value")
Fact = tuple[Callable[[Any], None], Any]
"""Something that is to be told, and what tells it."""
_encode = msgspec.json.Encoder(enc_hook=repr).encode
_Lifecycle, _Status, _Category = ExecutionLifecycleEvents, ExecutionStatus, ExecutionProblemCategories


class ExecutionRecord(msgspec.Struct, kw_only=True, omit_defaults=True, rename="camel"):
    """A record as it is written; the order of the fields is that of the event log."""

    timestamp: str
    log_level: str
    input_run_id: str
    business_key: msgspec.Raw | None
    agent_name: str
    incarnation: str
    execution_id: str = ""
    parent_execution_id: str = ""
    entity_type: str = ""
    entity_name: str = ""
    entity_metadata: msgspec.Raw | UnsetType = UNSET
    event_id: str
    event_type: str
    upstream_event_id: str = ""
    upstream_action_name: str = ""
    status: str = ""
    problem_category: str = ""
    event_attributes: Any


class Execution(msgspec.Struct, frozen=True):
    """What is executed."""

    id: str
    parent: str
    type: str
    name: str
    metadata: bytes = b""


class ExecutionLines:
    """Adds the lines of one operator.

    Args:
        agent: Name of the agent.
        rules: What is written, and how.
        lines: Where the lines go, and what knows about runs and keys.
    """

    def __init__(self, agent: str, rules: Rules, lines: EventLines) -> None:
        self._agent = agent
        self._rules = rules
        self._lines = lines
        self._has_trace = rules.has_trace
        self._levels: dict[str, str | None] = {}
        self._metadata = ValueForm(MSGPACK, rules.redaction, rules.truncation)
        # What is known of tasks, by task: of so many at most, because a task may sleep for a month, and its object with it.
        self._begun: dict[Any, int] = {}  # attempts whose beginning is told, and whose end is not
        self._reports: dict[Any, _Reports] = {}
        self._waits: dict[Any, dict[str, str]] = {}  # path → what it waits for
        self._roots: dict[Any, None] = {}  # events of timers and cancellations that are told
        self._turn: Turn | None = None
        self._keys: dict[str, bytes] | None = None  # of the turn's runs; None: nobody has asked
        self._retries: dict[Any, int] = {}  # task → retries of this turn that are not told yet
        self._add_progress: dict[type, Callable[[Any], None]] = {}
        self._add_outcome_of: dict[type, Callable[[Any], None]] = {
            CancelAction: lambda note: self._add_cancelled(note.task),
            CancelRequested: self._add_cancelled_waits,
            DeadLetter: self._add_dead_letter,
            FailJob: self._add_job_failed,
            ReplayAction: self._add_replayed,
            ScheduleRetry: self._add_retry,
            SkipTask: self._add_skipped,
        }
        if self._has_trace:
            self._add_progress = {
                ExecutionReported: self._add_report,
                ResolveStep: self._add_wait_end,
                StepBegan: lambda note: self._add_step_begin(note.task, note.call, note.began_ns, note.calls),
            }

    def add(self, turn: Turn, answers: Any) -> None:  # noqa: ANN401 (some of the turn's answers)
        """Add what is to be told of a turn: of ``answers`` everything, of others what follows from them."""
        self._turn, self._keys = turn, None
        progress = self._progress(turn) if turn.left or turn.notes or turn.steps else {}
        for answer, attempt, began_ns, ended_ns in answers:
            self._add_root(answer.task)
            if self._has_trace and self._begun.get(answer.task) != attempt:
                self._add_begin(answer.task, attempt, began_ns)
            self._add_all(progress.pop(answer.task, ()))
            self._add_answer(answer, attempt, began_ns, ended_ns)
        for task in turn.started:
            self._add_root(task)
            if self._has_trace:
                self._reports.pop(task, None)  # begun again behind a wait
                self._add_begin(task, task.attempt, task.began_ns)
        for facts in progress.values():
            self._add_all(facts)
        self._retries.clear()
        for note in turn.notes:
            if type(note) is ScheduleRetry:
                self._retries[note.task] = self._retries.get(note.task, 0) + 1
        self._add_all((add, note) for note in turn.notes if (add := self._add_outcome_of.get(type(note))) is not None)
        self._turn = None

    def _progress(self, turn: Turn) -> dict[Any, list[Fact]]:
        """Return what has been done inside of tasks, by task."""
        found: dict[Any, list[Fact]] = {}
        for wait in turn.left:
            found.setdefault(wait[0].request.task, []).append((self._add_left, wait))
        for note in turn.notes:
            if (add := self._add_progress.get(type(note))) is not None:
                found.setdefault(cast("StepBegan", note).task, []).append((add, note))
        for step in turn.steps if self._has_trace else ():
            found.setdefault(step.task, []).append((self._add_step, step))
        return found

    def _add_all(self, facts: Iterable[Fact]) -> None:
        for add, fact in facts:
            add(fact)

    def _add_left(self, left: tuple[WaitRequested, int]) -> None:
        wait, first = left
        task = wait.request.task
        self._lines.add_outputs_before_wait(task, wait.sent, first)
        if self._has_trace:
            self._add_wait_begin(task, wait.request.call)

    # -- actions
    def _add_answer(self, answer: Answer, attempt: int, began_ns: int, ended_ns: int) -> None:
        if type(answer) is ActionCompleted:
            self._add_sent(answer.task, answer, attempt)
        if self._has_trace:
            self._forget(answer.task)
            self._add_end(answer, attempt, began_ns, ended_ns)

    def _add_sent(self, task: Any, answer: ActionCompleted, attempt: int) -> None:  # noqa: ANN401 (the operator's task)
        found = self._lines.found(task.run) if answer.sent else None
        if answer.sent and found is not None:
            run_id, key = found
            text = self._lines.text(task)
            if self._has_trace:
                key = self._lines.in_execution(key, run_id, text, attempt)
            self._lines.add_sent(run_id, key, text, answer.sent, left=task.emitted)

    def _add_root(self, task: Any) -> None:  # noqa: ANN401 (the operator's task)
        """Add the event of a timer, of a cancellation, or of a run that was restored, with the first task that it triggers."""
        if task.parent is not None or (task.stored_path is not None and "/" in task.stored_path):
            return
        if task.event_type == EventType.InputEvent and task.run.admitted_ms >= (self._lines.first_ms or 0):
            return  # it was told as a record of this life
        event_id = task.event_id
        if event_id not in self._roots:
            _keep(self._roots, event_id, None)
            self._lines.add_root(task)

    def _add_begin(self, task: Any, attempt: int, began_ns: int) -> None:  # noqa: ANN401 (the operator's task)
        _keep(self._begun, task, attempt)
        if (level := self._level(_Lifecycle.STARTED)) is not None:
            attributes = b'{"attempt":%d}' % attempt
            self._lines.add_attempt(task, attempt, "started", _Status.STARTED, level, began_ns, attributes)

    def _add_end(self, answer: Answer, attempt: int, began_ns: int, ended_ns: int) -> None:
        task, duration_ms = answer.task, _ms(ended_ns - began_ns)
        if type(answer) is ActionCompleted:
            if (level := self._level(_Lifecycle.FINISHED)) is not None:
                numbers = (attempt, duration_ms, len(answer.sent or ()))
                attributes = b'{"attempt":%d,"durationMs":%.3f,"eventsSent":%d}' % numbers
                self._lines.add_attempt(task, attempt, "finished", _Status.SUCCESS, level, ended_ns, attributes)
            return
        error = self._error(answer.error)  # type: ignore[union-attr]  # it is an ActionFailed
        failed = {"attempt": attempt, "durationMs": duration_ms, "error": error}
        execution = _action(task, attempt)
        self._add(task, _Lifecycle.FAILED, "failed", ended_ns, execution, failed, _Category.ACTION_EXECUTION_FAILED)

    def _add_replayed(self, note: ReplayAction) -> None:
        """Add what the journal has answered."""
        ending = note.ending
        task, attempt = ending.task, ending.task.attempt
        self._add_root(task)
        attributes: dict[str, Any] = {"attempt": attempt}
        if type(ending) is ActionCompleted:
            self._add_sent(task, ending, attempt)
        else:
            attributes["error"] = self._error(ending.error)  # type: ignore[union-attr]  # it is an ActionFailed
        if self._has_trace:
            self._add(task, _Lifecycle.REUSED, "reused", 0, _action(task, attempt), attributes)

    def _forget(self, task: object) -> None:
        for known in (self._begun, self._reports, self._waits):
            known.pop(task, None)

    # -- steps
    def _add_step_begin(self, task: Any, call: StepCall, began_ns: int, calls: int) -> None:  # noqa: ANN401 (the operator's task)
        execution, mark = _step(task, call), f"#{task.attempt}.{calls}"
        attributes = {"call": calls, "calledAt": call.where}
        self._add(task, _Lifecycle.STARTED, f"started{mark}", began_ns, execution, attributes)

    def _add_step(self, step: StepSeen) -> None:
        task, call = step.task, step.call
        execution, mark = _step(task, call), f"#{task.attempt}.{step.calls}"
        if not step.calls:
            attributes: dict[str, Any] = {"calledAt": call.where}
            self._add(task, _Lifecycle.REUSED, f"reused#{task.attempt}", step.ended_ns, execution, attributes)
            return
        attributes = {"call": step.calls, "durationMs": _ms(step.ended_ns - step.began_ns)}
        if step.error:
            attributes["error"] = self._rules.redaction.text(step.error)
            if not step.is_final:
                attributes["isFinal"] = False
        event_type, suffix = (_Lifecycle.FAILED, "failed") if step.error else (_Lifecycle.FINISHED, "finished")
        category = _Category.STEP_CALL_FAILED if step.error else ""
        self._add(task, event_type, f"{suffix}{mark}", step.ended_ns, execution, attributes, category)

    def _add_wait_begin(self, task: Any, call: StepCall) -> None:  # noqa: ANN401 (the operator's task)
        self._begun.pop(task, None)  # it may be closed; its beginning is told again behind the wait
        if (waits := self._waits.get(task)) is None:
            waits = _keep(self._waits, task, {})
        waits[call.path] = call.function
        execution = _step(task, call)
        self._add(task, _Lifecycle.STARTED, f"started#{task.attempt}", 0, execution, {"calledAt": call.where})

    def _add_wait_end(self, note: ResolveStep) -> None:
        function = self._waits.get(note.task, {}).pop(note.path, None)
        if function is not None:
            execution = _step(note.task, StepCall(note.path, function, b"", ""))
            self._add(note.task, _Lifecycle.FINISHED, f"finished#{note.task.attempt}", 0, execution, {})

    # -- reports
    def _add_report(self, note: ExecutionReported) -> None:
        task = note.task
        reports = self._reports.get(task)
        if reports is None or reports.attempt != note.attempt:
            reports = _keep(self._reports, task, _Reports(note.attempt))
        is_start = note.status == _Status.STARTED
        count, metadata, began_ns = reports.begin(note) if is_start else reports.end(note)
        parent = _attempt_id(task, note.attempt)
        name = f"{note.entity_type}:{note.entity_name}"
        within = f"{task.id}{note.step}" if note.step else parent
        execution = Execution(f"{parent}~{name}~{count}", within, note.entity_type, note.entity_name, metadata)
        attributes: dict[str, Any] = {}
        if began_ns and not is_start:
            attributes["durationMs"] = _ms(note.at_ns - began_ns)
        category = ""
        if is_start:
            event_type, suffix = _Lifecycle.STARTED, "started"
        elif note.status == _Status.SUCCESS:
            event_type, suffix = _Lifecycle.FINISHED, "finished"
        else:
            event_type, suffix = _Lifecycle.FAILED, "failed"
            category = note.category or _CATEGORY_OF.get(note.entity_type, "")
            attributes["error"] = self._rules.redaction.text(note.error)
        self._add(task, event_type, suffix, note.at_ns, execution, attributes, category)

    # -- what follows from failures
    def _add_retry(self, note: ScheduleRetry) -> None:
        task = note.task
        later = self._retries.pop(task)  # each has counted the attempt up by one
        if later > 1:
            self._retries[task] = later - 1
        attempt = task.attempt - later
        attributes = {
            "attempt": attempt,
            "error": self._error(note.error),
            "nextAttempt": attempt + 1,
            "nextAttemptAt": self._lines.time(note.due_ms * 1_000_000),
        }
        self._add_outcome(task, TaskOutcomeEvents.RETRY, f"retry#{attempt}", _Status.RETRYING, attributes, attempt)

    def _add_skipped(self, note: SkipTask) -> None:
        attributes = {"attempt": note.task.attempt, "error": self._error(note.error)}
        self._add_outcome(note.task, TaskOutcomeEvents.SKIPPED, "skipped", _Status.SKIPPED, attributes)

    def _add_cancelled(self, task: Any) -> None:  # noqa: ANN401 (the operator's task)
        self._forget(task)
        attributes = {"attempt": task.attempt}
        category = _Category.CANCELLED
        suffix = f"cancelled#{task.attempt}"
        self._add_outcome(task, TaskOutcomeEvents.CANCELLED, suffix, _Status.CANCELLED, attributes, category=category)

    def _add_cancelled_waits(self, note: CancelRequested) -> None:
        for task in [one for one in self._waits if one.run.state.key == note.key and one.status == _CANCELLED]:
            self._add_cancelled(task)

    def _add_outcome(
        self,
        task: Any,  # noqa: ANN401 (the operator's task)
        event_type: str,
        suffix: str,
        status: str,
        attributes: Mapping[str, Any],
        attempt: int = 0,
        category: str = _Category.ACTION_EXECUTION_FAILED,
    ) -> None:
        execution = _action(task, attempt or task.attempt)
        self._add(task, event_type, suffix, 0, execution, attributes, category, status, event_id=f"{task.id}:{suffix}")

    def _add_dead_letter(self, note: DeadLetter) -> None:
        record, reason = note.record, note.reason
        assert self._turn is not None, "notes are told of a turn"
        is_known = "key" in reason or any(received.record is record for received in self._turn.records)
        if (
            not is_known
            and self._rules.selection.has_run(record.run_id)
            and (form := self._lines.form(EventType.InputEvent))
        ):
            shown = msgspec.Raw(form.value.opening + form.value.render(record.value) + form.value.closing)
            event_id = f"{record.run_id}/0"
            self._write(EventType.InputEvent, record.run_id, None, event_id=event_id, event_attributes=shown)
        self._add_last_word(record.run_id, TaskOutcomeEvents.DEAD_LETTER, "dead-letter", note.error, reason)

    def _add_job_failed(self, note: FailJob) -> None:
        run_id = note.reason.get("source-position", "")
        self._add_last_word(run_id, TaskOutcomeEvents.JOB_FAILED, "job-failed", note.error, note.reason)

    def _add_last_word(
        self, run_id: str, event_type: str, suffix: str, error: ErrorReport, reason: Mapping[str, str]
    ) -> None:
        """Add what has ended a run or a record that could not become one."""
        selection = self._rules.selection
        action, task = reason.get("action", ""), reason.get("task", "")
        key = self._key_of(run_id, reason)
        is_selected = selection.has_run(run_id) and (not action or selection.has_action(action))
        if not is_selected or not (key is None or selection.has_key(key)):
            return
        attributes: dict[str, Any] = {"error": self._error(error)}
        if "attempt" in reason:
            attributes["attempt"] = int(reason["attempt"])
        attempt_id = f"{run_id}/{task}#{reason.get('attempt', 1)}" if task and self._has_trace else ""
        fields: dict[str, Any] = {}
        if attempt_id:
            fields = {"execution_id": attempt_id, "entity_type": ExecutionEntityTypes.ACTION, "entity_name": action}
        self._write(
            event_type,
            run_id,
            None if key is None else msgspec.Raw(shown_key(self._rules.redaction, msgspec.msgpack.encode(key))),
            event_id=f"{run_id}:{suffix}",
            upstream_event_id=f"{run_id}/{task.rpartition(':')[0]}" if task else f"{run_id}/0",
            upstream_action_name=action,
            status=_Status.DEAD_LETTERED if event_type == TaskOutcomeEvents.DEAD_LETTER else _Status.FAILED,
            problem_category=_Category.ACTION_EXECUTION_FAILED if task else _Category.INPUT_REJECTED,
            event_attributes=attributes,
            **fields,
        )

    def _key_of(self, run_id: str, reason: Mapping[str, str]) -> Any:  # noqa: ANN401 (any key)
        """Return the key of a run; its text where only that is known; None: it has none."""
        if self._keys is None:
            assert self._turn is not None, "notes are told of a turn"
            self._keys = {one.record.run_id: one.key for one in self._turn.records}
            self._keys |= {one.task.run.id: one.task.run.key for one, *_ in self._turn.answers}
        key = self._keys.get(run_id)
        return reason.get("key") if key is None else msgspec.msgpack.decode(key)

    # -- one record
    def _add(
        self,
        task: Any,  # noqa: ANN401 (the operator's task)
        event_type: str,
        suffix: str,
        at_ns: int,
        execution: Execution,
        attributes: Mapping[str, Any],
        category: str = "",
        status: str = "",
        event_id: str = "",
    ) -> None:
        """Add a record about a task; ``at_ns`` 0: now."""
        selection, run = self._rules.selection, task.run
        if self._lines.found(run) is None or not selection.has_action(task.action.name):
            return
        fields: dict[str, Any] = {}
        if self._has_trace:
            fields = {
                "execution_id": execution.id,
                "parent_execution_id": execution.parent,
                "entity_type": execution.type,
                "entity_name": execution.name,
            }
            if execution.metadata:
                fields["entity_metadata"] = msgspec.Raw(self._metadata.render(execution.metadata))
        self._write(
            event_type,
            run.id,
            msgspec.Raw(self._lines.key_json(run.key)),
            at_ns,
            event_id=event_id or f"{execution.id}:{suffix}",
            upstream_event_id=task.event_id,
            upstream_action_name=task.action.name,
            status=status or _Lifecycle.STATUS_BY_TYPE[event_type],
            problem_category=category,
            event_attributes=attributes,
            **fields,
        )

    def _write(
        self,
        event_type: str,
        run_id: str,
        key: msgspec.Raw | None,
        at_ns: int = 0,
        **fields: Any,  # noqa: ANN401 (fields of a record)
    ) -> None:
        level = self._level(event_type)
        if level is None:
            return
        lines = self._lines
        attributes = fields["event_attributes"]
        if level == EventLogLevel.STANDARD.name and not isinstance(attributes, msgspec.Raw):
            fields["event_attributes"] = self._rules.truncation.value(attributes, 1)
        record = ExecutionRecord(
            timestamp=lines.time_of(at_ns) if at_ns else lines.now,
            log_level=level,
            input_run_id=run_id,
            business_key=key,
            agent_name=self._agent,
            incarnation=self._lines.incarnation,
            event_type=event_type,
            **fields,
        )
        lines.pieces.append(_encode(record) + b"\n")
        lines.records += 1

    def _level(self, event_type: str) -> str | None:
        """Return the level of a type as records have it; None: it is not written."""
        try:
            return self._levels[event_type]
        except KeyError:
            level = self._rules.selection.level(event_type)
            self._levels[event_type] = None if level is EventLogLevel.OFF else level.name
            return self._levels[event_type]

    def _error(self, error: ErrorReport) -> dict[str, str]:
        return {"type": error.type, "message": self._rules.redaction.text(error.message)}


_CATEGORY_OF = {
    ExecutionEntityTypes.LLM: _Category.MODEL_CALL_FAILED,
    ExecutionEntityTypes.PARSER: _Category.MODEL_OUTPUT_PARSE_ERROR,
    ExecutionEntityTypes.TOOL: _Category.TOOL_CALL_FAILED,
}


class _Reports:
    """What user code has reported in one attempt, to find the start that an end belongs to."""

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self._counts: dict[tuple[str, str], int] = {}
        self._open: dict[tuple[str, str, str], deque[tuple[int, bytes, int]]] = {}

    def begin(self, note: ExecutionReported) -> tuple[int, bytes, int]:
        """Return (count, metadata, when it began) of a new execution."""
        begun = self._next(note), note.metadata, note.at_ns
        self._open.setdefault(_slot(note), deque()).append(begun)
        return begun

    def end(self, note: ExecutionReported) -> tuple[int, bytes, int]:
        """Return those of the oldest open one that this may be the end of; of a new one where there is none."""
        waiting = self._open.get(_slot(note)) or self._open.get((note.entity_type, note.entity_name, ""))
        if not waiting:
            return self._next(note), note.metadata, 0
        count, metadata, began_ns = waiting.popleft()
        return count, note.metadata or metadata, began_ns

    def _next(self, note: ExecutionReported) -> int:
        named = (note.entity_type, note.entity_name)
        count = self._counts[named] = self._counts.get(named, 0) + 1
        return count


def _keep(known: dict[Any, Value], task: Any, value: Value) -> Value:  # noqa: ANN401 (the operator's task)
    """Remember something of a task, and forget the oldest task where there are too many."""
    if len(known) >= _KEPT_MAX and task not in known:
        del known[next(iter(known))]
    known[task] = value
    return value


def _slot(note: ExecutionReported) -> tuple[str, str, str]:
    own: Any = msgspec.msgpack.decode(note.metadata) if note.metadata else {}
    names = (ToolExecutionMetadataKeys.TOOL_CALL_ID, ToolExecutionMetadataKeys.EXTERNAL_ID)
    return note.entity_type, note.entity_name, next((str(own[name]) for name in names if name in own), "")


def _attempt_id(task: Any, attempt: int) -> str:  # noqa: ANN401 (the operator's task)
    return f"{task.id}#{attempt}"


def _action(task: Any, attempt: int) -> Execution:  # noqa: ANN401 (the operator's task)
    return Execution(_attempt_id(task, attempt), "", ExecutionEntityTypes.ACTION, task.action.name)


def _step(task: Any, call: StepCall) -> Execution:  # noqa: ANN401 (the operator's task)
    parent = _attempt_id(task, task.attempt)
    return Execution(f"{task.id}{call.path}", parent, ExecutionEntityTypes.STEP, call.function)


def _ms(duration_ns: int) -> float:
    return round(duration_ns / 1_000_000, 3)

"""An operator with its journal and its keyed state, whose effects are lines of text."""

from __future__ import annotations

from typing import Any

import msgspec

from agentflow import Agent
from agentflow.core.delta import StoredRow, Table
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
from agentflow.core.failures import FailurePolicy
from agentflow.core.inputs import (
    ActionCompleted,
    ActionFailed,
    BarrierReceived,
    CancelRequested,
    CheckpointCompleted,
    JournalAppended,
    ParkRequested,
    RecordReceived,
    RequestReceived,
    SentEvent,
    Signal,
    SignalReceived,
    StepCall,
    StepEnded,
    StepRequested,
    TimeAdvanced,
    WaitOrder,
    WaitRequested,
)
from agentflow.core.journal_records import RESULT, RecordKind, decode_record
from agentflow.core.limits import OperatorLimits
from agentflow.core.operator import Operator
from agentflow.core.records import ErrorReport, Record
from agentflow.core.results import request_source
from agentflow.core.runs import ActionTask
from agentflow.core.waits import decode_outcome
from agentflow.plan.plan import AgentPlan

INPUT = "_input_event"


def nothing(event: object, ctx: object) -> None:
    """User code is never run by the core."""


def two_actions() -> Agent:
    agent = Agent("A")
    agent.add_action("a", [INPUT], nothing)
    return agent.add_action("b", ["x"], nothing)


def call(path: str, function: str = "f", digest: bytes = b"d") -> StepCall:
    return StepCall(path, function, digest, "agent.py:1")


def _text(kind: int, payload: bytes) -> str:
    """Return a step's payload: text as it is, the end of a wait by what it says."""
    if kind != RecordKind.WAITED:
        return payload.decode()
    outcome = decode_outcome(payload)
    return "time is up" if outcome.value is None else f"{msgspec.msgpack.decode(outcome.value)} by {outcome.position}"


class World:
    """An operator, its journal and its keyed state; `crash` makes the next owner of both."""

    def __init__(
        self,
        agent: Agent | None = None,
        *,
        tracking: bool = True,
        limits: OperatorLimits | None = None,
        takes_requests: bool = False,
    ) -> None:
        self.limits = limits or OperatorLimits()
        self.takes_requests = takes_requests
        self.plan = AgentPlan.from_agent(agent or two_actions())
        self.journal: list[bytes] = []
        self.rows: dict[tuple[Table, bytes, str], bytes] = {}
        self.checkpoint = 0
        self.now_ms = 1000
        self._open()
        if tracking:
            self.record("warm", -1)
            self.request("t/-1/0:a", call(".0"))
            self.take_checkpoint()
            self.end_step("t/-1/0:a", call(".0"))
            self.complete("t/-1/0:a")
            self.take_checkpoint()
            self.journal.clear()

    def _open(self) -> None:
        policy = FailurePolicy("job", self.plan.name, has_dead_letters=True)
        self.operator = Operator(self.plan, policy, self.limits, takes_requests=self.takes_requests)
        self.tasks: dict[str, ActionTask] = {}
        self.snapshot: TakeSnapshot | None = None
        self.unappended: list[bytes] = []

    def crash(self) -> list[str]:
        """Lose what is not in journal or state; return what the next owner does first."""
        self._open()
        rows: dict[Table, list[StoredRow]] = {}
        for (table, key, name), value in sorted(self.rows.items()):
            rows.setdefault(table, []).append(StoredRow(0, key, name, value))
        self.operator.restore(rows, self.now_ms, self.journal, self.checkpoint)
        return self._lines()

    def _lines(self) -> list[str]:
        lines: list[str] = []
        effects = self.operator.effects
        for effect in effects:
            lines.append(self._line(effect))
            if type(effect) is ReplayAction:
                self.operator.apply(effect.ending, self.now_ms)
        effects.clear()
        return lines

    def _line(self, effect: Any) -> str:
        match effect:
            case StartAction(task):
                self.tasks[task.id] = task
                return f"start {task.id} attempt {task.attempt}"
            case ReplayAction(ending):
                return f"replay {ending.task.id}"
            case PersistStep(record):
                self.unappended.append(record)
                one = decode_record(record)
                return f"persist {RecordKind(one.kind).name.lower()} {one.run}/{one.task}{one.step}"
            case RunStep(task, path, is_in_doubt):
                again = f" behind {effect.calls}" if effect.calls else ""
                return f"run {task.id}{path}{' in doubt' if is_in_doubt else ''}{again}"
            case ResolveStep(task, path, kind, payload):
                return f"resolve {task.id}{path} {RecordKind(kind).name.lower()} {_text(kind, payload)}"
            case RefuseStep(task, path, _):
                return f"refuse {task.id}{path}"
            case EmitRecord(value, task, index):
                return f"emit {task.id}/{index} {value.decode()}"
            case AcknowledgeRequest(record):
                return f"acknowledge {record.run_id}"
            case AnswerRequest(record, first, outputs):
                said = " ".join([f"{first}:", *(output.decode() for output in outputs)])
                end = f" end {'' if effect.error is None else effect.error.type}".rstrip() if effect.is_final else ""
                return f"{'refuse' if effect.is_refused else 'answer'} {record.run_id} {said}{end}"
            case DeadLetter(record, error):
                return f"dead {record.run_id} {error.type}"
            case FailJob(error):
                return f"fail job {error.type}"
            case ScheduleRetry(task):
                return f"retry {task.id}"
            case SkipTask(task):
                return f"skip {task.id}"
            case TakeSnapshot():
                self.snapshot = effect
                return "snapshot"
            case RequestCheckpoint():
                return "want checkpoint"
            case ForwardWatermark(watermark_ms):
                return f"watermark {watermark_ms}"
            case PauseSource(limit):
                return f"pause {limit}"
            case ResumeSource():
                return "resume"
            case CancelAction(task):
                return f"cancel {task.id}"
            case Drained():
                return "drained"
        raise AssertionError(effect)

    def apply(self, received: Any) -> list[str]:
        self.operator.apply(received, self.now_ms)
        return self._lines()

    def record(self, key: str, offset: int, source: str = "t") -> list[str]:
        record = Record(source, offset, offset + 1, b"{}")
        return self.apply(RecordReceived(record, msgspec.msgpack.encode(key)))

    def submit(
        self, key: str, number: int, *, life: int = 1, request_id: str | None = None, wants_receipt: bool = False
    ) -> list[str]:
        record = Record(request_source(life, request_id), number, number + 1, b"{}")
        is_kept = request_id is not None
        return self.apply(RequestReceived(record, msgspec.msgpack.encode(key), is_kept, wants_receipt))

    def cancel(self, key: str, run: str = "") -> list[str]:
        record = Record("signals", 0, 1, b"{}")
        return self.apply(CancelRequested(record, msgspec.msgpack.encode(key), run, "enough"))

    def request(self, task: str, step: StepCall, *, needs_intent: bool = False) -> list[str]:
        return self.apply(StepRequested(self.tasks[task], step, needs_intent))

    def sleep(self, task: str, step: StepCall, duration_ms: int, sent: list[SentEvent] | None = None) -> list[str]:
        request = StepRequested(self.tasks[task], step, order=WaitOrder(duration_ms))
        return self.apply(WaitRequested(request, sent or [], None))

    def wait_for(
        self, task: str, step: StepCall, signal: str, timeout_ms: int | None = None, correlation: str = ""
    ) -> list[str]:
        order = WaitOrder(timeout_ms, signal, correlation)
        return self.apply(WaitRequested(StepRequested(self.tasks[task], step, order=order), [], None))

    def park(self, task: str) -> list[str]:
        return self.apply(ParkRequested(self.tasks[task]))

    def signal(
        self,
        key: str,
        name: str,
        offset: int,
        value: object = True,
        *,
        correlation: str = "",
        run: str = "",
        step: str = "",
    ) -> list[str]:
        record = Record("signals", offset, offset + 1, b"{}")
        signal = Signal(name, msgspec.msgpack.encode(value), correlation, run, step)
        return self.apply(SignalReceived(record, msgspec.msgpack.encode(key), signal))

    def until(self, now_ms: int) -> list[str]:
        """Let time come."""
        self.now_ms = now_ms
        return self.apply(TimeAdvanced())

    def end_step(self, task: str, step: StepCall, result: bytes = b"r", kind: int = RESULT) -> list[str]:
        return self.apply(StepEnded(self.tasks[task], step, kind, result))

    def append(self) -> list[str]:
        """Let the journal have everything that was given to it."""
        count = len(self.unappended)
        self.journal += self.unappended
        self.unappended = []
        return self.apply(JournalAppended(count))

    def step(self, task: str, step: StepCall, result: bytes = b"r") -> None:
        """Let a step run and be recorded."""
        assert self.request(task, step) == [f"run {task}{step.path}"]
        self.end_step(task, step, result)
        assert self.append() == [f"resolve {task}{step.path} result {result.decode()}"]

    def fail(self, task: str) -> list[str]:
        return self.apply(ActionFailed(self.tasks[task], ErrorReport("Oops", "it broke")))

    def complete(self, task: str, **did: Any) -> list[str]:
        return self.apply(ActionCompleted(self.tasks[task], **did))

    def barrier(self) -> None:
        self.apply(BarrierReceived(self.checkpoint + 1, {"t": 1}))

    def complete_checkpoint(self) -> list[str]:
        assert self.snapshot is not None
        for writes in self.snapshot.slices:
            for table, _, key, name, value in writes:
                if value is None:
                    del self.rows[table, key, name]  # what is not there was never to be deleted
                else:
                    self.rows[table, key, name] = value
        self.checkpoint += 1
        return self.apply(CheckpointCompleted(self.checkpoint))

    def take_checkpoint(self) -> list[str]:
        self.barrier()
        return self.complete_checkpoint()

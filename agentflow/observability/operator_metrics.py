"""What metrics know of one agent: counted from turns of the loop, or where an attempt runs, in plain integers.

A clock costs more than all other work that a metric of a small action makes, so a quick action is not measured each time: behind an
attempt that took less than `QUICK_NS` only those are measured whose number is a multiple of `STRIDE`, until one takes longer. Those
in between count as long as the last quick one that was measured. So the number of attempts is exact, and so is each duration that was
measured: of all attempts that answer later, and of all of an action that is never quick. Of one that is mostly quick, a slow attempt
that answers at once is seen if it is measured, which is one in `STRIDE`, and counts as quick else.

Rejected: to let a measured attempt stand for those before it (one slow of sixteen would be sixteen slow ones).

Numbers are changed on the loop and read by exporters in their threads. Each of them only grows, so what a reader finds is right for
some moment of the last one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from agentflow.api.events import EventType
from agentflow.api.metrics import Buckets
from agentflow.core.effects import CancelAction, DeadLetter, FailJob, ScheduleRetry, SkipTask
from agentflow.core.inputs import ActionCompleted
from agentflow.observability.call_metrics import OTHER, CallMeters
from agentflow.runtime.observation import ExecutionReported, JournalSeen, StepSeen, Turn, monotonic_ns

STRIDE = 16
QUICK_NS = 50_000
RATE_S = 60
GROUP_BOUNDS = tuple(2**n for n in range(13))
Start = Callable[[Any], Any]


class PlanView(Protocol):
    """What metrics see of an agent (`agentflow.plan.plan.AgentPlan`)."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def actions(self) -> Sequence[Any]: ...  # noqa: D102
    @property
    def resources(self) -> Sequence[Any]: ...  # noqa: D102


class ActionMeter:
    """One action.

    Attributes:
        attempts: Attempts that have ended.
        mask: `STRIDE` - 1 while the action is quick, else 0: an attempt is measured if its number has none of these bits.
        durations: Of attempts, nanoseconds; those that were not measured are in it as long as the last quick one that was.
        retries, skips, cancellations: How many.
        failures: Name of the error → attempts.
    """

    __slots__ = (
        "_counted",
        "_quick_ns",
        "attempts",
        "cancellations",
        "durations",
        "failures",
        "mask",
        "retries",
        "skips",
    )

    def __init__(self, bounds_ns: Sequence[int]) -> None:
        self.durations = Buckets(bounds_ns)
        self.attempts = self.mask = self._counted = self._quick_ns = 0
        self.retries = self.skips = self.cancellations = 0
        self.failures: dict[str, int] = {}

    def add(self, duration_ns: int) -> None:
        """Count an attempt that was measured; a quick one not before the next, together with those behind it that are not measured."""
        if duration_ns < QUICK_NS:
            self.settle()
            self._quick_ns = duration_ns
            self.attempts += 1
        else:
            self.attempts += 1
            self._counted += 1
            self.durations.add(duration_ns)

    def settle(self) -> None:
        """Count the last quick attempt that was measured, and those behind it that were not: they took as long."""
        uncounted = self.attempts - self._counted
        if uncounted:
            self.durations.add(self._quick_ns, uncounted)
            self._counted += uncounted


class Rate:
    """How many of something come per second, of the last minute; asked for once a second."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self.per_second = 0.0

    def see(self, now_s: float, count: int) -> None:
        """Take the count of now."""
        seen = self._seen
        seen.append((now_s, count))
        while len(seen) > 2 and seen[1][0] <= now_s - RATE_S:
            seen.popleft()
        passed = now_s - seen[0][0]
        self.per_second = (count - seen[0][1]) / passed if passed > 0 else 0.0


class AgentMeter:
    """One agent, all subtasks of the process and all their lives together.

    Attributes:
        events: Inputs that were admitted, events that were sent, and outputs.
        actions: By name.
        steps: (function, error or nothing) → how long calls took.
        steps_replayed: Function → steps that the journal answered.
        step_retries: Function → calls that another one follows.
        journal_durations: Of appends, nanoseconds.
        journal_groups: Records per append.
        calls: Of models and tools.
        overflows: Metrics that have too many series.

    Args:
        plan: The agent.
        bounds_ns: Upper bounds of the buckets of durations, nanoseconds.
        cardinality_max: Functions of steps that are told apart, and errors of an action.
    """

    def __init__(self, plan: PlanView, bounds_ns: Sequence[int], cardinality_max: int) -> None:
        self.agent = plan.name
        self.events = 0
        self.actions = {action.name: ActionMeter(bounds_ns) for action in plan.actions}
        self.steps: dict[tuple[str, str], Buckets] = {}
        self.steps_replayed: dict[str, int] = {}
        self.step_retries: dict[str, int] = {}
        self.journal_durations = Buckets(bounds_ns)
        self.journal_groups = Buckets(GROUP_BOUNDS)
        self.event_rate = Rate()
        self.action_rates = {name: Rate() for name in self.actions}
        self.overflows: dict[str, None] = {}
        self.calls = CallMeters(bounds_ns, cardinality_max, self.overflows)
        self._bounds_ns = bounds_ns
        self._cardinality_max = cardinality_max

    def settle(self, now_s: float) -> None:
        """Take the rates of now, and count what was not measured; on the loop, once a second."""
        self.event_rate.see(now_s, self.events)
        for name, meter in self.actions.items():
            meter.settle()
            self.action_rates[name].see(now_s, meter.attempts)

    def step(self, seen: StepSeen) -> None:
        """Count a call of a step, or an answer of the journal."""
        function = seen.call.function
        if not seen.calls:
            self.count(self.steps_replayed, function, "agentflow.steps.replayed")
            self.calls.see_saved(seen)
            return
        error = seen.error.partition(":")[0]
        durations = self.steps.get((function, error))
        if durations is None:
            if len(self.steps) >= self._cardinality_max:
                self.overflows["agentflow.step.duration"] = None
                function, error = OTHER, ""
            durations = self.steps.setdefault((function, error), Buckets(self._bounds_ns))
        durations.add(seen.ended_ns - seen.began_ns)
        if not seen.is_final:
            self.count(self.step_retries, function, "agentflow.step.retries")

    def count(self, counts: dict[str, int], name: str, metric: str) -> None:
        """Count one more of a name, if there are not too many names."""
        if name not in counts and len(counts) >= self._cardinality_max:
            self.overflows[metric] = None
            name = OTHER
        counts[name] = counts.get(name, 0) + 1


class OperatorMetrics:
    """Looks at one operator for an `AgentMeter`. See `agentflow.runtime.observation.Observation` for its attributes."""

    needs_answers = False

    def __init__(self, plan: PlanView, meter: AgentMeter) -> None:
        self._meter = meter
        self._meters = {action: meter.actions[action.name] for action in plan.actions}
        # Events between actions are counted where somebody listens to them; else nobody looks at what an answer says.
        self._has_events = any(action.trigger_types != (EventType.InputEvent,) for action in plan.actions)
        self._notes: dict[type, Callable[[Any], None]] = {
            ScheduleRetry: self._see_retry,
            SkipTask: self._see_skip,
            CancelAction: self._see_cancellation,
            ExecutionReported: meter.calls.see_report,
            DeadLetter: self._see_end,
            FailJob: self._see_end,
            JournalSeen: self._see_append,
        }

    def measured(self, start: Start) -> Start:
        """Return what starts an attempt, and counts one that answers at once."""
        if len(self._meters) == 1 and not self._has_events:
            return _measured_one(start, *self._meters.values())
        meters, count_events = self._meters, self._count_events if self._has_events else None

        def start_measured(task: Any) -> Any:  # noqa: ANN401 (an `ActionTask`, and its answer)
            meter = meters[task.action]
            attempts = meter.attempts
            if attempts & meter.mask:
                answer = start(task)
                if answer is None:
                    task.began_ns = monotonic_ns()
                    return None
                meter.attempts = attempts + 1
            else:
                answer = _measure(start, task, meter)
            if count_events is not None:
                count_events(answer)
            return answer

        return start_measured

    def observe(self, turn: Turn, now_ms: int) -> None:  # noqa: ARG002 (the port)
        """Count what happened in a turn."""
        self._meter.events += turn.admitted + turn.emitted
        for answer, _, began_ns, ended_ns in turn.answers:
            self._meters[answer.task.action].add(ended_ns - began_ns)
            if self._has_events:
                self._count_events(answer)
        for step in turn.steps:
            self._meter.step(step)
        notes = self._notes
        for note in turn.notes:
            see = notes.get(type(note))
            if see is not None:
                see(note)

    def _count_events(self, answer: Any) -> None:  # noqa: ANN401 (an answer)
        """Count the events that an action has sent; outputs are counted when they leave."""
        if type(answer) is ActionCompleted and answer.sent is not None:
            self._meter.events += sum([event_type is not None for event_type, _ in answer.sent])

    # -- notes
    def _fail(self, meter: ActionMeter, error: str) -> None:
        self._meter.count(meter.failures, error, "agentflow.action.failures")

    def _see_retry(self, note: ScheduleRetry) -> None:
        meter = self._meters[note.task.action]
        meter.retries += 1
        self._fail(meter, note.error.type)

    def _see_skip(self, note: SkipTask) -> None:
        meter = self._meters[note.task.action]
        meter.skips += 1
        self._fail(meter, note.error.type)

    def _see_end(self, note: DeadLetter | FailJob) -> None:
        action = note.reason.get("action")
        if action is not None:  # else it is a record that never became a run
            self._fail(self._meter.actions[action], note.error.type)

    def _see_cancellation(self, note: CancelAction) -> None:
        self._meters[note.task.action].cancellations += 1

    def _see_append(self, note: JournalSeen) -> None:
        self._meter.journal_durations.add(note.ended_ns - note.began_ns)
        self._meter.journal_groups.add(note.records)


def _measured_one(start: Start, meter: ActionMeter) -> Start:
    """Return the same as `OperatorMetrics.measured` for an agent with one action, which is not looked up then."""

    def start_measured(task: Any) -> Any:  # noqa: ANN401 (an `ActionTask`, and its answer)
        attempts = meter.attempts
        if not attempts & meter.mask:
            return _measure(start, task, meter)
        answer = start(task)
        if answer is None:
            task.began_ns = monotonic_ns()
        else:
            meter.attempts = attempts + 1
        return answer

    return start_measured


def _measure(start: Start, task: Any, meter: ActionMeter) -> Any:  # noqa: ANN401 (an `ActionTask`, and its answer)
    """Start an attempt, and count it and how long it took if it answers at once."""
    began_ns = monotonic_ns()
    answer = start(task)
    if answer is None:
        task.began_ns = began_ns
        return None
    duration_ns = monotonic_ns() - began_ns
    meter.add(duration_ns)
    meter.mask = STRIDE - 1 if duration_ns < QUICK_NS else 0
    return answer

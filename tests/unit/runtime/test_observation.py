"""What observers are shown of a job: everything, in order, in one call behind each turn."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest

from agentflow import Agent, Event, EventType, JobFailed, OutputEvent, Retry, RunnerContext
from agentflow.connectors.collections import CollectionSink, CollectionSource
from agentflow.core.effects import DeadLetter, FailJob, ScheduleRetry
from agentflow.core.inputs import ActionCompleted, ActionFailed
from agentflow.plan.plan import AgentPlan
from agentflow.runtime import observation
from agentflow.runtime.job import Job
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.observation import ExecutionReported, JournalSeen, StepSeen, Turn
from agentflow.runtime.settings import JobSettings
from agentflow.state.memory import MemoryKeyedState


class Notes:
    """Keeps what it is shown."""

    context_of: Any = None

    def __init__(self) -> None:
        self.records: list[str] = []
        self.answers: list[tuple[str, int, bool]] = []
        self.outputs: list[bytes | None] = []
        self.steps: list[StepSeen] = []
        self.notes: list[object] = []
        self.began_later: list[str] = []
        self.left: list[int] = []
        self.over: list[str] = []
        self.are_times_right = True

    def observe(self, turn: Turn, now_ms: int) -> None:
        self.records += [received.record.run_id for received in turn.records]
        self.began_later += [task.path for task in turn.started]
        for answer, attempt, began_ns, ended_ns in turn.answers:
            task = answer.task
            self.are_times_right &= 0 < began_ns <= ended_ns
            self.answers.append((task.id, attempt, type(answer) is ActionCompleted))
            if isinstance(answer, ActionCompleted):
                self.outputs += [payload for kind, payload in answer.sent or () if kind is None]
            if task.run.is_over:
                self.over.append(task.run.id)
        self.steps += turn.steps
        self.notes += turn.notes
        self.left += [first for _, first in turn.left]


def observed(agent: Agent, values: list[Any], notes: Notes) -> list[Any]:
    """Run a job with an observer and return its outputs."""
    sink = CollectionSink()
    dead = CollectionSink()
    spec = JobSpec(
        JobSettings(),
        (AgentStage(AgentPlan.from_agent(agent), "k"),),
        lambda: CollectionSource(values),
        lambda: {"sink": sink, "dead-letter": dead},
        MemoryKeyedState,
        observers=lambda plan, index, incarnation: (notes,),
    )

    async def run() -> None:
        await Job(spec).run()

    asyncio.run(run())
    assert notes.are_times_right
    return sink.values


def test_records_answers_and_ends_are_shown_in_order() -> None:
    def first(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(Event("next", {"n": 1}))

    def second(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(ctx.key))

    agent = Agent("A").add_action("first", [EventType.InputEvent], first).add_action("second", ["next"], second)
    notes = Notes()
    assert observed(agent, [{"k": "a"}, {"k": "b"}], notes) == ["a", "b"]
    assert notes.records == ["list/0", "list/1"]
    for run in ("list/0", "list/1"):
        of_run = [answer for answer in notes.answers if answer[0].startswith(run)]
        assert of_run == [(f"{run}/0:first", 1, True), (f"{run}/0:first/0:second", 1, True)]
    assert notes.outputs == [b'"a"', b'"b"']
    assert set(notes.over) == {"list/0", "list/1"}


def test_failures_retries_and_dead_letters_are_notes() -> None:
    def act(event: Event, ctx: RunnerContext) -> None:
        raise KeyError("stars")

    agent = Agent("A").add_action("act", [EventType.InputEvent], act, retry=Retry(attempts=2, initial="1ms"))
    notes = Notes()
    observed(agent, [{"k": "a"}], notes)
    assert notes.answers == [("list/0/0:act", 1, False), ("list/0/0:act", 2, False)]
    kinds = [type(note) for note in notes.notes]
    assert kinds.index(ScheduleRetry) < kinds.index(DeadLetter)
    assert notes.over[-1:] == ["list/0"]


def test_steps_and_waits_of_coroutines_are_shown() -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        await ctx.durable_execute_async(abs, -1)  # type: ignore[arg-type]
        ctx.send_event(OutputEvent("before"))
        await ctx.sleep("1ms")
        ctx.send_event(OutputEvent("after"))

    notes = Notes()
    agent = Agent("A").add_action("act", [EventType.InputEvent], act)
    assert observed(agent, [{"k": "a"}], notes) == ["before", "after"]
    assert notes.began_later == ["0:act"]
    (step,) = notes.steps
    assert (step.call.function, step.calls, step.error, step.is_final) == ("builtins.abs", 1, "", True)
    assert 0 < step.began_ns <= step.ended_ns
    assert notes.left == [0]


def test_a_failed_call_of_a_step_is_shown_with_its_error_and_its_number() -> None:
    calls: list[int] = []

    def flaky() -> int:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError("away")
        return len(calls)

    async def act(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(await ctx.durable_execute_async(flaky, retry=Retry(attempts=3, initial="1ms"))))

    notes = Notes()
    assert observed(Agent("A").add_action("act", [EventType.InputEvent], act), [{"k": "a"}], notes) == [3]
    assert [(step.calls, step.error, step.is_final) for step in notes.steps] == [
        (1, "ConnectionError: away", False),
        (2, "ConnectionError: away", False),
        (3, "", True),
    ]


@pytest.mark.parametrize("is_async", [False, True])
def test_an_observer_may_choose_the_context_that_user_code_runs_in(*, is_async: bool) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("trace", default="none")

    def sync(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(variable.get()))

    async def later(event: Event, ctx: RunnerContext) -> None:
        await asyncio.sleep(0.001)
        ctx.send_event(OutputEvent(variable.get()))

    def context_of(task: Any) -> contextvars.Context:
        context = contextvars.copy_context()
        context.run(variable.set, task.id)
        return context

    notes = Notes()
    notes.context_of = context_of
    agent = Agent("A").add_action("act", [EventType.InputEvent], later if is_async else sync)
    assert observed(agent, [{"k": "a"}], notes) == ["list/0/0:act"]


def test_a_failing_action_is_told_as_such() -> None:
    def act(event: Event, ctx: RunnerContext) -> None:
        raise ValueError

    seen: list[type] = []

    class Kinds(Notes):
        def observe(self, turn: Turn, now_ms: int) -> None:
            seen.extend(type(answer) for answer, *_ in turn.answers)

    observed(
        Agent("A").add_action("act", [EventType.InputEvent], act, on_error="skip", retry=Retry(attempts=1)),
        [{"k": 1}],
        Kinds(),
    )
    assert seen == [ActionFailed]


class Counts(Notes):
    """Needs no answers: it looks at numbers, and at what comes late."""

    needs_answers = False

    def __init__(self) -> None:
        super().__init__()
        self.admitted = self.emitted = 0

    def observe(self, turn: Turn, now_ms: int) -> None:
        super().observe(turn, now_ms)
        self.admitted += turn.admitted
        self.emitted += turn.emitted


def test_whoever_needs_no_answers_is_shown_numbers_and_what_came_late() -> None:
    def quick(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(1))

    async def late(event: Event, ctx: RunnerContext) -> None:
        await asyncio.sleep(0.001)

    agent = Agent("A").add_action("quick", [EventType.InputEvent], quick)
    agent.add_action("late", [EventType.InputEvent], late)
    counts = Counts()
    observed(agent, [{"k": "a"}, {"k": "b"}], counts)
    assert (counts.admitted, counts.emitted) == (2, 2)
    assert [answer[0] for answer in counts.answers] == ["list/0/0:late", "list/1/0:late"]
    assert counts.records == []
    assert counts.began_later == []


def test_attempts_in_a_context_of_an_observer_are_shown_to_it() -> None:
    def act(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(ctx.key))

    counts = Counts()
    counts.context_of = lambda task: contextvars.copy_context() if task.run.id == "list/1" else None
    agent = Agent("A").add_action("act", [EventType.InputEvent], act)
    assert observed(agent, [{"k": "a"}, {"k": "b"}], counts) == ["a", "b"]
    assert [answer[0] for answer in counts.answers] == ["list/1/0:act"]


def test_appends_to_the_journal_are_notes() -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        await ctx.durable_execute_async(abs, -1)

    notes = Notes()
    observed(Agent("A").add_action("act", [EventType.InputEvent], act), [{"k": "a"}], notes)
    appends = [note for note in notes.notes if isinstance(note, JournalSeen)]
    assert sum(append.records for append in appends) >= 1
    assert all(0 < append.began_ns <= append.ended_ns for append in appends)


def test_what_stops_the_job_is_shown() -> None:
    def act(event: Event, ctx: RunnerContext) -> None:
        raise KeyError("stars")

    notes = Notes()
    agent = Agent("A").add_action("act", [EventType.InputEvent], act, retry=Retry(attempts=1), on_error="fail")
    with pytest.raises(JobFailed):
        observed(agent, [{"k": "a"}], notes)
    assert [type(note) for note in notes.notes if isinstance(note, FailJob)] == [FailJob]


def test_a_step_is_entered_and_left_in_the_context_of_its_call() -> None:
    seen: list[Any] = []

    def enter(task: Any, call: Any, calls: int) -> Any:
        seen.append(("enter", task.path, call.path, calls))
        return lambda: seen.append(("leave", call.path))

    async def act(event: Event, ctx: RunnerContext) -> None:
        await ctx.durable_execute_async(lambda: seen.append("call"), name="f")

    def in_thread(event: Event, ctx: RunnerContext) -> None:
        ctx.durable_execute(lambda: seen.append("call"), name="g")

    for action in (act, in_thread):
        notes = Notes()
        notes.enter_step = enter  # type: ignore[attr-defined]
        seen.clear()
        agent = Agent("A").add_action("act", [EventType.InputEvent], action, blocking=action is in_thread)
        observed(agent, [{"k": "a"}], notes)
        assert seen == [("enter", "0:act", ".0", 1), "call", ("leave", ".0")]


class Broken(Notes):
    """Raises wherever it is asked, and behind every turn."""

    def context_of(self, task: Any) -> Any:
        raise LookupError(task.path)

    def enter_step(self, task: Any, call: Any, calls: int) -> Any:
        if task.path.endswith("first"):
            raise LookupError(call.path)
        return {}.popitem

    def observe(self, turn: Turn, now_ms: int) -> None:
        raise ValueError("a bug of whoever looks")


class Light(Broken):
    """The same, where no observer needs answers."""

    needs_answers = False

    def measured(self, start: Any) -> Any:
        raise ValueError

    def choosing(self, context_of: Any, start: Any, see_start: Any) -> Any:
        raise ValueError


@pytest.mark.parametrize("broken", [Broken(), Light()], ids=["all answers", "no answers"])
def test_a_job_goes_on_whatever_its_observers_raise(broken: Notes, caplog: pytest.LogCaptureFixture) -> None:
    async def first(event: Event, ctx: RunnerContext) -> None:
        await ctx.durable_execute_async(abs, -1)  # type: ignore[arg-type]
        ctx.send_event(Event("next", {}))

    async def second(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(await ctx.durable_execute_async(abs, -2)))  # type: ignore[arg-type]

    def quick(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent("quick"))

    agent = Agent("A").add_action("first", [EventType.InputEvent], first).add_action("second", ["next"], second)
    agent.add_action("quick", [EventType.InputEvent], quick)
    assert sorted(observed(agent, [{"k": n} for n in range(3)], broken), key=str) == [2, 2, 2, *["quick"] * 3]
    (line,) = caplog.records  # the first at once; the others are counted in the next one, ten seconds later
    assert (line.name, line.levelname) == ("agentflow.engine", "WARNING")
    assert line.agentflow["failures"] == 1  # type: ignore[attr-defined]


def test_observers_behind_one_that_raises_are_told_and_failures_are_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [1]
    monkeypatch.setattr(observation.time, "monotonic_ns", lambda: now_s[0] * 10**9)

    async def turns() -> tuple[int, list[type]]:
        notes = Notes()
        both = observation.Observation([Broken(), notes], lambda task: None)
        for now_s[0] in range(1, 26):
            both.turn.notes.append(now_s[0])
            both.flush(0)
        return both.failures, notes.notes

    assert asyncio.run(turns()) == (25, list(range(1, 26)))
    assert [record.agentflow["failures"] for record in caplog.records] == [1, 11, 21]  # type: ignore[attr-defined]


class Listens(Notes):
    """An observer that wants reports of some tasks, and what was said."""

    def __init__(self, *, wants: bool) -> None:
        super().__init__()
        self._wants = wants

    def wants_reports(self, task: Any) -> bool:
        return self._wants and task.run.record.offset == 0

    def wants_content(self, task: Any) -> bool:
        return self.wants_reports(task)


def test_reports_are_made_where_an_observer_wants_them_and_carry_what_was_said_without_secrets() -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        async def ask() -> None:
            content = {"said": ["the key is s3cr3t-key", {"at": 1}]} if ctx.wants_content else None
            ctx.report_execution_succeeded("llm", "big", {"model": "m"}, content=content)

        ctx.resources._resources.secrets._remember("s3cr3t-key")
        seen.append((ctx.is_observed, ctx.wants_content))
        await ctx.durable_execute_async(ask, name="ask")
        ctx.report_execution_failed("tool", "look", None, ValueError("no s3cr3t-key"))

    agent = Agent("A").add_action("act", [EventType.InputEvent], act)
    seen: list[tuple[bool, bool]] = []
    notes = Listens(wants=False)
    observed(agent, [{"k": "a"}], notes)
    assert (seen, [note for note in notes.notes if type(note) is ExecutionReported]) == ([(False, False)], [])

    seen, notes = [], Listens(wants=True)
    observed(agent, [{"k": "a"}, {"k": "b"}], notes)
    assert seen == [(True, True), (False, False)], "it wants those of the first record"
    said, failed = (note for note in notes.notes if type(note) is ExecutionReported)
    assert (said.step, said.step_call, said.content) == (".0", 1, {"said": ["the key is ***", {"at": 1}]})
    assert b"said" not in said.metadata
    assert (failed.step, failed.step_call, failed.error) == ("", 0, "ValueError: no ***")

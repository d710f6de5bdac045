"""Traces of runs, as a collector gets them: one trace per run, right parents, links, and nothing of what was not sampled or went well."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agentflow import Agent, CancelEvent, Event, EventType, JobFailed, OutputEvent, Retry
from agentflow.connectors.collections import CollectionSink, CollectionSource
from agentflow.core.delta import Table
from agentflow.core.effects import EmitRecord
from agentflow.core.records import Record
from agentflow.core.trace_context import TraceIds, caller_of
from agentflow.environment.openers import signals_opener
from agentflow.environment.telemetry import Telemetry
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.job import Job
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.settings import JobSettings, OtlpSettings, RedactionSettings, RunSettings, TracingSettings
from agentflow.state.memory import MemoryKeyedState, MemoryStorage
from tests.otlp_receiver import Span, collector

CALLER = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class HeadedSource(CollectionSource):
    """Records with headers."""

    def __init__(self, values: Sequence[object], headers: tuple[tuple[str, bytes], ...]) -> None:
        super().__init__(values)
        self._headers = headers

    async def fetch(self, records_max: int) -> Any:
        records = await super().fetch(records_max)
        for record in records:
            record.headers = self._headers
        return records


class HeadedSink(CollectionSink):
    """Keeps the headers of outputs too."""

    def __init__(self) -> None:
        super().__init__()
        self.headers: list[dict[str, bytes]] = []

    def write(self, record: Any) -> None:
        super().write(record)
        if isinstance(record, EmitRecord):
            self.headers.append(dict(record.headers))


class World:
    """One job after the other on one state, and what a collector gets of them.

    Attributes:
        started: The job runs.
        begun: An action says that it has come so far.
    """

    started: asyncio.Event
    begun: asyncio.Event

    def __init__(
        self, *agents: Agent, ratio: float = 1.0, headers: tuple[tuple[str, bytes], ...] = (), **sections: Any
    ):
        self.storage = MemoryStorage()
        self.sink, self.dead = HeadedSink(), CollectionSink()
        self.spans: list[Span] = []
        self.bodies: list[bytes] = []
        self.stages = tuple(AgentStage(AgentPlan.from_agent(agent), "k") for agent in agents)
        self.headers = headers
        self.tracing = TracingSettings(enabled=True, sample_ratio=ratio)
        self.sections = sections

    def run(self, values: Sequence[object], meanwhile: Any = None) -> None:
        """Run to the end, or until ``meanwhile(job)`` has stopped it."""
        with collector() as seen:
            settings = JobSettings(tracing=self.tracing, otlp=OtlpSettings(endpoint=seen.endpoint), **self.sections)

            async def run() -> None:
                self.started, self.begun = asyncio.Event(), asyncio.Event()
                telemetry = Telemetry(settings)
                job = Job(
                    JobSpec(
                        settings,
                        self.stages,
                        lambda: HeadedSource(values, self.headers),
                        lambda: {"sink": self.sink, "dead-letter": self.dead},
                        lambda: MemoryKeyedState(self.storage),
                        observers=telemetry.observers(0),
                        on_end=telemetry.close,
                        open_signals=signals_opener(settings),
                    ),
                    on_event=lambda name, fields: self.started.set() if name == "started" else None,
                )
                running = asyncio.ensure_future(job.run())
                if meanwhile is not None:
                    await meanwhile(job)
                await running

            try:
                asyncio.run(run())
            finally:
                self.spans += seen.spans
                self.bodies += seen.bodies

    def one(self, name: str, **attributes: Any) -> Span:
        found = [
            span
            for span in self.spans
            if span.name == name and all(span.attributes[f"agentflow.{k}"] == v for k, v in attributes.items())
        ]
        assert len(found) == 1, (name, attributes, self.spans)
        return found[0]

    def check(self) -> None:
        """Every parent and every link is there, ids are unique, children are in their parent's trace."""
        by_id = {span.id: span for span in self.spans}
        assert len(by_id) == len(self.spans), "an id came twice"
        for span in self.spans:
            if span.parent and span.parent != CALLER[36:52].decode():
                assert by_id[span.parent].trace == span.trace, span
            for link in span.links:
                assert by_id[link.span].trace == link.trace == span.trace, span
            assert span.began_ns <= span.ended_ns


def names(spans: Sequence[Span]) -> list[str]:
    return sorted(span.name for span in spans)


def output(event: Event, ctx: Any) -> None:
    ctx.send_event(OutputEvent(ctx.key))


def simple(action: Any = output, **options: Any) -> Agent:
    return Agent("A").add_action("act", [EventType.InputEvent], action, **options)


def test_a_run_is_a_trace_of_its_attempts_and_steps():
    async def first(event, ctx):
        await ctx.durable_execute_async(abs, -1, name="charge")
        ctx.send_event(Event("next", {}))

    agent = Agent("A").add_action("first", [EventType.InputEvent], first).add_action("second", ["next"], output)
    world = World(agent)
    world.run([{"k": "a"}])
    world.check()
    run, one, two, step = (world.one(name) for name in ("run A", "action first", "action second", "step charge"))
    assert names(world.spans) == ["action first", "action second", "run A", "step charge"]
    assert (run.parent, one.parent, two.parent, step.parent) == ("", run.id, run.id, one.id)
    assert run.attributes == {
        "agentflow.agent.name": "A",
        "agentflow.run.id": "list/0",
        "agentflow.key.hash": run.attributes["agentflow.key.hash"],
    }
    assert one.attributes == {
        "agentflow.action.name": "first", "agentflow.task.path": "0:first", "agentflow.attempt": 1,
    }  # fmt: skip
    assert two.attributes["agentflow.task.path"] == "0:first/0:second"
    assert step.attributes == {
        "agentflow.step.name": "charge", "agentflow.step.path": ".0", "agentflow.step.call": 1,
    }  # fmt: skip
    assert (run.kind, one.kind, step.kind) == ("consumer", "internal", "internal")
    assert not any(span.is_error or span.links for span in world.spans)
    assert run.began_ns <= one.began_ns <= step.began_ns <= step.ended_ns <= one.ended_ns <= run.ended_ns
    assert abs(run.ended_ns - time.time_ns()) < 60 * 10**9
    assert run.resource["service.name"] == "agentflow"


def test_a_run_continues_the_trace_of_its_caller_and_its_output_that_of_the_run():
    world = World(simple(), headers=(("traceparent", CALLER), ("tracestate", b"v=1")), ratio=0.0)
    world.run([{"k": "a"}, {"k": "b"}])
    world.check()
    runs = [span for span in world.spans if span.name == "run A"]
    assert [(run.trace, run.parent) for run in runs] == [(CALLER[3:35].decode(), CALLER[36:52].decode())] * 2
    for headers, attempt in zip(world.sink.headers, [s for s in world.spans if s.name == "action act"], strict=True):
        assert headers == {
            "traceparent": f"00-{attempt.trace}-{attempt.id}-01".encode(),
            "tracestate": b"v=1",
        }


def test_a_caller_that_does_not_sample_is_obeyed():
    world = World(simple(), headers=(("traceparent", CALLER[:-2] + b"00"),), ratio=1.0)
    world.run([{"k": "a"}])
    assert world.spans == []
    (headers,) = world.sink.headers
    caller = caller_of(tuple(headers.items()))
    assert caller is not None
    assert (f"{caller.trace_id:032x}", caller.is_sampled) == (CALLER[3:35].decode(), False)


def test_chained_agents_are_one_trace():
    second = Agent("B").add_action("again", [EventType.InputEvent], output)
    world = World(Agent("A").add_action("act", [EventType.InputEvent], lambda event, ctx: ctx.send_event(
        OutputEvent({"k": ctx.key})
    )), second)  # fmt: skip
    world.run([{"k": "a"}])
    world.check()
    assert len({span.trace for span in world.spans}) == 1
    assert world.one("run B").parent == world.one("action act").id


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_the_share_of_traces_is_the_ratio(ratio):
    world = World(simple(), ratio=ratio)
    world.run([{"k": n} for n in range(400)])
    world.check()
    traces = {span.trace for span in world.spans}
    assert len(traces) == pytest.approx(400 * ratio, abs=10)
    assert len(world.spans) == 2 * len(traces)


# -- failures
def failing_twice(event: Event, ctx: Any) -> None:
    if ctx.attempt < 3:
        raise KeyError(ctx.key)
    output(event, ctx)


def test_retries_are_attempts_linked_to_the_one_before():
    world = World(simple(failing_twice, retry=Retry(attempts=3, initial="1ms")))
    world.run([{"k": "a"}])
    world.check()
    attempts = sorted(
        (s for s in world.spans if s.name == "action act"), key=lambda s: s.attributes["agentflow.attempt"]
    )
    assert [span.is_error for span in attempts] == [True, True, False]
    assert [[link.span for link in span.links] for span in attempts] == [[], [attempts[0].id], [attempts[1].id]]
    assert attempts[1].links[0].attributes == {"agentflow.link": "previous attempt"}
    assert attempts[0].attributes["error.type"] == "KeyError"
    assert attempts[0].status == "KeyError: 'a'"
    ((name, _, exception),) = attempts[0].events
    assert (name, exception["exception.type"], exception["exception.message"]) == ("exception", "KeyError", "'a'")
    assert "failing_twice" in exception["exception.stacktrace"]
    assert not world.one("run A").is_error


@pytest.mark.parametrize("is_async", [False, True])
def test_a_run_that_is_not_sampled_and_fails_is_exported_with_its_failed_attempts(*, is_async: bool):
    def fail(event, ctx):
        raise ValueError("no")

    async def fail_later(event, ctx):
        await asyncio.sleep(0.002)
        raise ValueError("no")

    action = fail_later if is_async else fail
    world = World(simple(action, retry=Retry(attempts=2, initial="1ms")), ratio=0.0)
    world.run([{"k": "a"}])
    world.check()
    run = world.one("run A", **{"run.outcome": "dead-letter"})
    one, two = world.one("action act", attempt=1), world.one("action act", attempt=2)
    assert run.is_error
    assert (one.parent, two.parent) == (run.id, run.id)
    assert [link.span for link in two.links] == [one.id]
    assert one.is_error
    assert one.attributes["error.type"] == "ValueError"
    if is_async:
        assert one.ended_ns - one.began_ns > 1_000_000


def test_a_run_that_is_not_sampled_and_recovers_is_not_exported():
    world = World(simple(failing_twice, retry=Retry(attempts=3, initial="1ms")), ratio=0.0)
    world.run([{"k": "a"}])
    assert world.spans == []


def test_a_skipped_task_shows_its_run():
    def fail(event, ctx):
        raise ValueError

    agent = simple(fail, retry=Retry(attempts=1), on_error="skip").add_action("more", [EventType.InputEvent], output)
    for ratio, expected in ((0.0, ["action act", "run A"]), (1.0, ["action act", "action more", "run A"])):
        world = World(agent, ratio=ratio)
        world.run([{"k": "a"}])
        world.check()
        assert names(world.spans) == expected
        assert world.one("action act").is_error
        assert not world.one("run A").is_error


def test_a_skipped_task_of_a_run_that_goes_on_shows_it_at_its_end():
    def fail(event, ctx):
        raise ValueError

    async def wait(event, ctx):
        await asyncio.sleep(0.02)

    agent = simple(fail, retry=Retry(attempts=1), on_error="skip").add_action("more", [EventType.InputEvent], wait)
    world = World(agent, ratio=0.0)
    world.run([{"k": "a"}])
    world.check()
    run = world.one("run A")
    assert run.ended_ns - run.began_ns > 15_000_000


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_what_stops_the_job_is_exported(ratio):
    def fail(event, ctx):
        raise ValueError

    world = World(simple(fail, retry=Retry(attempts=1), on_error="fail"), ratio=ratio)
    with pytest.raises(JobFailed):
        world.run([{"k": "a"}])
    world.check()
    assert names(world.spans) == ["action act", "run A"]
    assert world.one("run A", **{"run.outcome": "failed"}).is_error


def test_a_record_that_never_became_a_run_is_exported():
    world = World(simple(), ratio=0.0)
    world.run([{"no": "key"}])
    (span,) = world.spans
    assert (span.name, span.is_error, span.attributes["agentflow.run.outcome"]) == ("run A", True, "rejected")
    assert span.attributes["error.type"] == "MissingKey"


# -- steps
def test_a_failed_call_of_a_step_is_a_span_and_an_answer_of_the_journal_is_none():
    calls: list[int] = []

    def flaky() -> int:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("away")
        return 1

    async def act(event, ctx):
        await ctx.durable_execute_async(flaky, name="ask", retry=Retry(attempts=2, initial="1ms"))
        if ctx.attempt == 1:
            raise ValueError
        await ctx.durable_execute_async(abs, 1, name="more")

    world = World(simple(act, retry=Retry(attempts=2, initial="1ms")))
    world.run([{"k": "a"}])
    world.check()
    one, two = world.one("action act", attempt=1), world.one("action act", attempt=2)
    first, second = world.one("step ask", **{"step.call": 1}), world.one("step ask", **{"step.call": 2})
    assert (first.parent, second.parent, world.one("step more").parent) == (one.id, one.id, two.id)
    assert (first.is_error, first.attributes["error.type"], first.status) == (
        True, "ConnectionError", "ConnectionError: away",
    )  # fmt: skip
    assert not second.is_error


def test_a_run_that_sleeps_is_one_attempt_that_began_again():
    async def act(event, ctx):
        await ctx.durable_execute_async(abs, -1, name="before")
        await ctx.sleep("120ms")
        await ctx.durable_execute_async(abs, -1, name="after")

    world = World(simple(act), run=RunSettings(park_after_ms=10))
    world.run([{"k": "a"}])
    world.check()
    attempt = world.one("action act")
    before, after = world.one("step before"), world.one("step after")
    assert (before.parent, after.parent) == (attempt.id, attempt.id)
    assert after.began_ns - before.ended_ns > 100_000_000
    assert attempt.ended_ns - attempt.began_ns > 100_000_000
    ((event, at_ns, attributes),) = attempt.events
    assert (event, attributes) == ("agentflow.resumed", {"agentflow.steps.recorded": 2})
    assert before.ended_ns < at_ns <= after.began_ns
    assert [(link.span, link.attributes["agentflow.link"]) for link in attempt.links] == [
        (before.id, "last step before it began again")
    ]


def test_a_run_that_another_process_ends_keeps_its_trace():
    async def act(event, ctx):
        await ctx.durable_execute_async(abs, -1, name="before")
        world.begun.set()
        await ctx.wait_for("go")
        await ctx.durable_execute_async(abs, -1, name="after")
        output(event, ctx)

    async def stop(job: Job) -> None:
        await world.begun.wait()
        job.request_stop()

    async def go(job: Job) -> None:
        await world.started.wait()
        await job.signal("a", "go")

    world = World(simple(act), run=RunSettings(park_after_ms=10))
    world.run([{"k": "a"}], stop)
    assert names(world.spans) == ["step before"]
    world.run([{"k": "a"}], go)
    world.check()
    assert names(world.spans) == ["action act", "run A", "step after", "step before"]
    assert len({span.trace for span in world.spans}) == 1
    run = world.one("run A")
    assert run.began_ns < world.one("step before").began_ns
    (headers,) = world.sink.headers
    assert headers["traceparent"] == f"00-{run.trace}-{world.one('action act').id}-01".encode()


# -- cancelling
def test_a_cancelled_run_says_so():
    async def act(event, ctx):
        world.begun.set()
        await asyncio.Event().wait()

    async def cancel(job: Job) -> None:
        await world.begun.wait()
        await job.cancel("a")

    world = World(simple(act))
    world.run([{"k": "a"}], cancel)
    world.check()
    assert world.one("run A", **{"run.outcome": "cancelled"}).ended_ns
    assert world.one("action act", **{"action.outcome": "cancelled"}).ended_ns


def test_what_compensates_a_cancelled_run_is_in_its_trace():
    async def act(event, ctx):
        world.begun.set()
        await asyncio.Event().wait()

    def undo(event, ctx):
        pass

    async def cancel(job: Job) -> None:
        await world.begun.wait()
        await job.cancel("a")

    world = World(simple(act).add_action("undo", [EventType.CancelEvent], undo))
    world.run([{"k": "a"}], cancel)
    world.check()
    assert names(world.spans) == ["action act", "action undo", "run A"]
    assert world.one("run A").attributes["agentflow.run.outcome"] == "cancelled"
    assert EventType.CancelEvent == CancelEvent.EVENT_TYPE


# -- user code
@pytest.mark.parametrize("kind", ["sync", "async", "blocking", "step", "step in a thread"])
def test_spans_of_user_code_are_children_and_may_say_more(kind):
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("client")

    def call() -> int:
        with tracer.start_as_current_span("request"):
            pass
        current = otel.get_current_span()
        current.set_attribute("mine", 7)
        current.add_event("noted", {"n": 1})
        return 1

    def sync(event, ctx):
        call()

    async def later(event, ctx):
        await asyncio.sleep(0.001)
        call()

    async def step(event, ctx):
        await ctx.durable_execute_async(call, name="call")

    def blocking_step(event, ctx):
        ctx.durable_execute(call, name="call")

    action = {"sync": sync, "async": later, "blocking": sync, "step": step, "step in a thread": blocking_step}[kind]
    world = World(simple(action, blocking=kind in ("blocking", "step in a thread")))
    world.run([{"k": "a"}])
    world.check()
    around = world.one("step call" if kind.startswith("step") else "action act")
    (request,) = exporter.get_finished_spans()
    assert request.parent is not None
    assert (f"{request.context.trace_id:032x}", f"{request.parent.span_id:016x}") == (around.trace, around.id)
    assert around.attributes["mine"] == 7
    assert [(name, attributes) for name, _, attributes in around.events] == [("noted", {"n": 1})]


def test_secrets_that_user_code_adds_to_spans_are_never_sent():
    def add(event: Event, ctx: Any) -> None:
        span = otel.get_current_span()
        span.set_attribute("api_key", "SECRET attribute")
        span.set_attribute("iban", "SECRET field")
        span.set_attribute("url", "https://api.example/?api_key=SECRET-text&page=2")
        span.set_attribute("body", b"api_key=SECRET-bytes")
        span.set_attribute("arguments", ['{"api_key": "SECRET document"}', "token: SECRET-list"])
        span.set_attribute("nested", {"inner": {"password": "SECRET nested", "note": "password=SECRET-note"}})
        span.add_link(otel.SpanContext(1, 2, is_remote=False), {"api_key": "SECRET link", "kept": 1})
        span.add_event("api_key=SECRET-name", {"api_key": "SECRET event", "customer": '{"iban": "SECRET inside"}'})
        try:
            raise ValueError("api_key=SECRET-message")
        except ValueError as error:
            span.record_exception(error, {"session": "token=SECRET-session"})
        span.set_status(otel.StatusCode.ERROR, "api_key=SECRET-status")

    world = World(simple(add), redaction=RedactionSettings(fields=("iban",)))
    world.run([{"k": "a"}])
    assert not [body for body in world.bodies if b"SECRET" in body]
    span = world.one("action act")
    assert span.attributes["url"] == "https://api.example/?api_key=***&page=2"
    assert span.links[0].attributes == {"api_key": "***", "kept": 1}
    assert span.events[1][2]["exception.message"] == "api_key=***"
    assert (span.attributes["iban"], span.status) == ("***", "api_key=***")


def test_what_is_no_status_text_or_time_fails_nothing():
    def act(event: Event, ctx: Any) -> None:
        span = otel.get_current_span()
        span.set_status("no status")
        span.add_link(None)
        span.set_attributes(None)
        span.add_event("seconds", timestamp=time.time())
        span.add_event("before the epoch", timestamp=-1)
        span.set_status(otel.StatusCode.ERROR, ValueError("the exception itself"))
        ctx.send_event(OutputEvent(1))

    world = World(simple(act))
    world.run([{"k": "a"}])
    assert world.sink.values == [1]
    span = world.one("action act")
    assert (span.is_error, span.status) == (True, "the exception itself")
    assert [(name, began_ns > 10**18) for name, began_ns, _ in span.events] == [
        ("seconds", True),
        ("before the epoch", True),
    ]


def test_user_code_of_a_run_that_is_not_sampled_has_no_span():
    spans: list[Any] = []
    world = World(simple(lambda event, ctx: spans.append(otel.get_current_span())), ratio=0.0)
    world.run([{"k": "a"}])
    assert [span.is_recording() for span in spans] == [False]


def test_ids_are_those_that_anybody_can_derive():
    world = World(simple())
    world.run([{"k": "a"}])

    with_state = MemoryKeyedState(world.storage)
    (incarnation,) = (row.value for row in with_state.rows(Table.META) if row.name == "incarnation")
    with_state.close()
    trace = TraceIds(msgspec.msgpack.decode(incarnation), 1).run(Record("list", 0, 1, b""))
    assert world.one("run A").trace == f"{trace.trace_id:032x}"
    assert world.one("run A").id == f"{trace.span_id:016x}"

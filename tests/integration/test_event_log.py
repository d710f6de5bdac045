"""The event log of running jobs: which records there are, what they say, and that their ids are the same after a recovery."""

from __future__ import annotations

import asyncio
import itertools
import re
from datetime import UTC, datetime

import msgspec
import pytest

from agentflow import Agent, CancelEvent, Event, EventType, OutputEvent, Retry, RunnerContext, TimerEvent
from agentflow.api.codecs import CODECS
from agentflow.api.executions import ExecutionEntityTypes, ExecutionReporters
from agentflow.observability.event_log import EventLog, EventLogObserver
from agentflow.runtime.settings import EventFilterSettings, EventTypeSettings, RunSettings
from tests.event_log_world import World, brief, of_type

INPUT, OUTPUT = "_input_event", "_output_event"
STARTED, FINISHED, FAILED, REUSED = (f"_execution_{how}_event" for how in ("started", "finished", "failed", "reused"))
FIELDS = (
    "timestamp", "logLevel", "inputRunId", "businessKey", "agentName", "incarnation", "executionId", "parentExecutionId", "entityType", "entityName",
    "entityMetadata", "eventId", "eventType", "upstreamEventId", "upstreamActionName", "status", "problemCategory", "eventAttributes",
)  # fmt: skip


def two_hops() -> Agent:
    def first(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(Event("next", {"n": event.attributes["input"]["n"]}))
        ctx.send_event(Event("shop.unheard", {"by": "nobody"}))

    def second(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent({"key": ctx.key, "n": event.attributes["n"]}))

    return Agent("A").add_action("first", [EventType.InputEvent], first).add_action("second", ["next"], second)


def test_input_sent_and_output_events_are_records_with_ids_and_lineage(tmp_path):
    records = World(tmp_path, two_hops()).run([{"k": "a", "n": 1}])
    assert [re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record.pop("timestamp")) for record in records]
    (incarnation,) = {record.pop("incarnation") for record in records}
    assert re.fullmatch(r"[0-9a-f]{8}", incarnation)
    shared = {"logLevel": "STANDARD", "inputRunId": "list/0", "businessKey": "a", "agentName": "A"}
    assert records == [
        {**shared, "eventId": "list/0/0", "eventType": INPUT, "eventAttributes": {"input": {"k": "a", "n": 1}}},
        {
            **shared, "eventId": "list/0/0:first/0", "eventType": "next", "upstreamEventId": "list/0/0",
            "upstreamActionName": "first", "eventAttributes": {"n": 1},
        },
        {
            **shared, "eventId": "list/0/0:first/1", "eventType": "shop.unheard", "upstreamEventId": "list/0/0",
            "upstreamActionName": "first", "eventAttributes": {"by": "nobody"},
        },
        {
            **shared, "eventId": "list/0/0:first/0:second/0", "eventType": OUTPUT, "upstreamEventId": "list/0/0:first/0",
            "upstreamActionName": "second", "eventAttributes": {"output": {"key": "a", "n": 1}},
        },
    ]  # fmt: skip


@pytest.mark.parametrize("trace", [False, True])
def test_fields_stand_in_the_order_of_the_contract(tmp_path, trace):
    def act(event, ctx):
        ExecutionReporters.started(ctx, ExecutionEntityTypes.LLM, "m", {"model": "x"})
        ctx.send_event(OutputEvent(1))
        raise KeyError("stars")

    world = World(
        tmp_path, Agent("A").add_action("act", [EventType.InputEvent], act, retry=Retry(attempts=1)), trace=trace
    )
    for record in world.run([{"k": "a"}]):
        assert list(record) == [name for name in FIELDS if name in record]


def test_keys_keep_their_type_and_values_are_what_they_were(tmp_path):
    def act(event, ctx):
        ctx.send_event(OutputEvent(event.input))

    values = [
        {"k": 1, "v": None},
        {"k": "1", "v": [1.5, True, {"a": {"b": 'ü\n"q"\\'}}]},
        {"k": 'x"y', "v": {"": 0, "deep": [[1], []]}},
        {"k": 2.5, "v": "\u2028 </script>"},
    ]
    records = World(tmp_path, Agent("A").add_action("act", [EventType.InputEvent], act)).run(values * 3)
    assert [record["businessKey"] for record in of_type(records, INPUT)] == [value["k"] for value in values] * 3
    for event_type, name in ((INPUT, "input"), (OUTPUT, "output")):
        assert [record["eventAttributes"][name] for record in of_type(records, event_type)] == values * 3


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_lines_of_values_with_line_ends_between_their_tokens_are_whole(tmp_path, end):
    def act(event, ctx):
        ctx.send_event(OutputEvent(msgspec.Raw(b'{%b "a": 1}' % end)))

    world = World(tmp_path, Agent("A").add_action("act", [EventType.InputEvent], act))
    records = world.run([b'{"k": "a",%b "n": 1}' % end] * 3, codec=CODECS["json"])
    assert not any(b"\r" in path.read_bytes() for path in world.files())
    assert [record["eventAttributes"] for record in records] == [
        {"input": {"k": "a", "n": 1}},
        {"output": {"a": 1}},
    ] * 3


class Reversed:
    """A codec of one's own."""

    name = "reversed"

    def decode(self, value, type):  # noqa: A002 (the port's)
        return msgspec.json.decode(value[::-1])

    def encode(self, value):
        return msgspec.json.encode(value)[::-1]


@pytest.mark.parametrize(
    ("codec", "value", "shown"),
    [
        (CODECS["json"], {"k": "a", "b": 1}, {"k": "a", "b": 1}),
        (CODECS["msgpack"], {"k": "a", "b": b"\x00\xff"}, {"k": "a", "b": "AP8="}),
        (CODECS["msgpack"], {"k": "a", 5: None}, {"k": "a", "5": None}),
        (Reversed(), {"k": "a"}, {"k": "a"}),
        (CODECS["string"], 'text "q" \n', 'text "q" \n'),
        (CODECS["bytes"], b"\xff\x00", "/wA="),
    ],
)
def test_inputs_of_every_codec_are_shown_as_json(tmp_path, codec, value, shown):
    agent = Agent("A").add_action("act", [EventType.InputEvent], lambda event, ctx: None)
    records = World(tmp_path, agent).run([codec.encode(value)] * 3, key=lambda value: "k", codec=codec)
    assert [record["eventAttributes"] for record in records] == [{"input": shown}] * 3


def test_events_between_actions_are_shown_as_json(tmp_path):
    def act(event, ctx):
        ctx.send_event(Event("n", {"bytes": b"\x00\xff", "list": (1, 2), "none": None, "deep": {"a": [{"b": 1}]}}))

    records = World(tmp_path, Agent("A").add_action("act", [EventType.InputEvent], act)).run([{"k": "a"}] * 3)
    shown = {"bytes": "AP8=", "list": [1, 2], "none": None, "deep": {"a": [{"b": 1}]}}
    assert [record["eventAttributes"] for record in of_type(records, "n")] == [shown] * 3


def test_timers_and_what_they_begin_are_records(tmp_path):
    def act(event, ctx):
        ctx.set_timer("remind", at=datetime(2020, 1, 1, tzinfo=UTC), is_event_time=True, attributes={"n": 7})

    def remind(event, ctx):
        ctx.send_event(OutputEvent(event.attributes["n"]))

    agent = (
        Agent("A")
        .add_action("act", [EventType.InputEvent], act)
        .add_action("remind", [TimerEvent], remind)
        .add_action("also", [TimerEvent], lambda event, ctx: None)
    )
    _, timer, output = World(tmp_path, agent).run([{"k": "a"}])
    due_ms = timer["eventAttributes"]["due_ms"]
    assert timer["eventType"] == "_timer_event"
    assert timer["inputRunId"] == output["inputRunId"] == f"list/0/0:act@remind/{due_ms}"
    assert (timer["upstreamEventId"], timer["upstreamActionName"]) == ("list/0/0", "act")
    assert timer["eventAttributes"] == {"n": 7, "name": "remind", "due_ms": due_ms}
    assert output["upstreamEventId"] == timer["eventId"]


def test_outputs_before_a_wait_are_records_when_they_leave_and_only_then(tmp_path):
    async def act(event, ctx):
        ctx.send_event(OutputEvent("early"))
        ctx.send_event(Event("inner", {"when": "at the end"}))
        await ctx.sleep("30ms")
        ctx.send_event(OutputEvent("late"))

    records = World(tmp_path, Agent("A").add_action("act", [EventType.InputEvent], act)).run([{"k": "a"}])
    assert brief(records) == [
        ("list/0/0", INPUT),
        ("list/0/0:act/0", OUTPUT),
        ("list/0/0:act/1", "inner"),
        ("list/0/0:act/2", OUTPUT),
    ]
    assert records[1]["timestamp"] < records[2]["timestamp"]


def test_agents_of_a_chain_write_under_their_names(tmp_path):
    def one(event, ctx):
        ctx.send_event(OutputEvent({"k": "b", "n": event.input["n"] + 1}))

    def two(event, ctx):
        ctx.send_event(OutputEvent(event.input))

    agents = [Agent(name).add_action("act", [EventType.InputEvent], act) for name, act in (("One", one), ("Two", two))]
    records = World(tmp_path, *agents).run([{"k": "a", "n": 1}])
    assert [(record["agentName"], record["eventId"]) for record in records] == [
        ("One", "list/0/0"),
        ("One", "list/0/0:act/0"),
        ("Two", "list/0/0:act/0/0"),
        ("Two", "list/0/0:act/0/0:act/0"),
    ]
    assert records[3]["eventAttributes"] == {"output": {"k": "b", "n": 2}}


def test_cancellation_and_its_compensation_are_records(tmp_path):
    begun = asyncio.Event()

    async def act(event, ctx):
        begun.set()
        await asyncio.Event().wait()

    def undo(event, ctx):
        ctx.send_event(OutputEvent(event.reason))

    agent = Agent("A").add_action("act", [EventType.InputEvent], act).add_action("undo", [CancelEvent], undo)

    async def cancel(job):
        await begun.wait()
        await job.cancel("a", reason="enough")

    records = World(tmp_path, agent, trace=True).run([{"k": "a"}], act=cancel)
    (stopped,) = of_type(records, "_task_cancelled_event")
    assert (stopped["status"], stopped["problemCategory"], stopped["entityName"]) == ("cancelled", "cancelled", "act")
    (event,) = of_type(records, "_cancel_event")
    assert (event["eventId"], event["eventAttributes"]) == ("list/0/1", {"reason": "enough", "task": "0:act"})
    (output,) = of_type(records, OUTPUT)
    assert (output["eventId"], output["upstreamEventId"]) == ("list/0/1:undo/0", "list/0/1")


# -- failures
def failing(*, on_error: str | None = None, attempts: int = 2) -> Agent:
    def act(event, ctx):
        raise KeyError("stars")

    retry = Retry(attempts=attempts, initial="1ms", jitter=0)
    return Agent("A").add_action("act", [EventType.InputEvent], act, retry=retry, on_error=on_error)


def test_retries_and_the_dead_letter_are_records_without_trace_too(tmp_path):
    records = World(tmp_path, failing()).run([{"k": "a"}])
    retry, dead = records[1:]
    assert (retry["eventId"], retry["eventType"], retry["status"]) == (
        "list/0/0:act:retry#1",
        "_task_retry_event",
        "retrying",
    )
    assert retry["problemCategory"] == dead["problemCategory"] == "action_execution_failed"
    attributes = retry["eventAttributes"]
    assert (attributes["attempt"], attributes["nextAttempt"]) == (1, 2)
    assert attributes["error"] == {"type": "KeyError", "message": "'stars'"}
    assert attributes["nextAttemptAt"] > retry["timestamp"]
    assert (dead["eventId"], dead["status"]) == ("list/0:dead-letter", "dead-lettered")
    assert (dead["upstreamEventId"], dead["upstreamActionName"], dead["businessKey"]) == ("list/0/0", "act", "a")
    assert dead["eventAttributes"]["attempt"] == 2
    assert "executionId" not in dead


def test_a_skipped_task_and_a_failed_job_are_records(tmp_path):
    (_, skipped) = World(tmp_path / "1", failing(on_error="skip", attempts=1)).run([{"k": "a"}])
    assert (skipped["eventType"], skipped["status"]) == ("_task_skipped_event", "skipped")
    world = World(tmp_path / "2", failing(on_error="fail", attempts=1))
    (_, failed) = world.run([{"k": "a"}])
    assert (failed["eventType"], failed["status"], failed["inputRunId"]) == ("_job_failed_event", "failed", "list/0")
    assert world.told


def test_a_record_that_cannot_become_a_run_is_shown_with_its_reason(tmp_path):
    agent = Agent("A").add_action("act", [EventType.InputEvent], lambda event, ctx: None)
    records = World(tmp_path, agent).run([b'{"k": "a"}', b"{broken", b'{"other": 1}'], codec=CODECS["json"])
    assert brief(records) == [
        ("list/0/0", INPUT),
        ("list/1/0", INPUT),
        ("list/1:dead-letter", "_dead_letter_event"),
        ("list/2/0", INPUT),
        ("list/2:dead-letter", "_dead_letter_event"),
    ]
    assert records[1]["eventAttributes"] == {"input": "{broken"}
    assert [record["problemCategory"] for record in records if "problemCategory" in record] == ["input_rejected"] * 2
    assert records[4]["eventAttributes"]["error"]["type"] == "MissingKey"


# -- executions
def test_executions_of_actions_begin_and_end_with_their_attempt(tmp_path):
    calls = itertools.count(1)

    def act(event, ctx):
        if next(calls) == 1:
            raise ValueError("once")
        ctx.send_event(OutputEvent(1))

    agent = Agent("A").add_action("act", [EventType.InputEvent], act, retry=Retry(attempts=2, initial="1ms"))
    records = World(tmp_path, agent, trace=True).run([{"k": "a"}])
    retry = of_type(records, "_task_retry_event")
    assert [one["executionId"] for one in retry] == ["list/0/0:act#1"]
    records = [one for one in records if one not in retry]
    assert brief(records) == [
        ("list/0/0", INPUT),
        ("list/0/0:act#1:started", STARTED),
        ("list/0/0:act#1:failed", FAILED),
        ("list/0/0:act#2:started", STARTED),
        ("list/0/0:act/0", OUTPUT),
        ("list/0/0:act#2:finished", FINISHED),
    ]
    assert [record.get("executionId", "")[-2:] for record in records] == ["", "#1", "#1", "#2", "#2", "#2"]
    failed = records[2]
    assert (failed["entityType"], failed["entityName"], failed["status"]) == ("action", "act", "failed")
    assert failed["eventAttributes"]["error"] == {"type": "ValueError", "message": "once"}
    assert failed["eventAttributes"]["durationMs"] >= 0
    assert records[1]["timestamp"] <= failed["timestamp"]


def test_steps_are_executions_below_their_action(tmp_path):
    calls = itertools.count(1)

    def flaky():
        if next(calls) == 1:
            raise ConnectionError("away")
        return 5

    async def act(event, ctx):
        await ctx.durable_execute_async(flaky, retry=Retry(attempts=2, initial="1ms"))

    records = World(tmp_path, Agent("A").add_action("act", [EventType.InputEvent], act), trace=True).run([{"k": "a"}])
    steps = [record for record in records if record.get("entityType") == "step"]
    assert [(record["eventType"], record["eventId"]) for record in steps] == [
        (STARTED, "list/0/0:act.0:started#1.1"),
        (FAILED, "list/0/0:act.0:failed#1.1"),
        (STARTED, "list/0/0:act.0:started#1.2"),
        (FINISHED, "list/0/0:act.0:finished#1.2"),
    ]
    assert {record["parentExecutionId"] for record in steps} == {"list/0/0:act#1"}
    assert {record["executionId"] for record in steps} == {"list/0/0:act.0"}
    assert steps[1]["problemCategory"] == "step_call_failed"
    assert steps[1]["eventAttributes"]["error"] == "ConnectionError: away"
    assert steps[1]["eventAttributes"]["isFinal"] is False


@pytest.mark.parametrize("is_blocking", [False, True])
def test_reports_are_executions_below_the_step_or_action_that_made_them(tmp_path, is_blocking):
    def call(ctx):
        ExecutionReporters.started(ctx, "llm", "gpt", {"model": "gpt-x"})
        ExecutionReporters.failed(ctx, "llm", "gpt", None, ConnectionError("busy"))
        ExecutionReporters.started(ctx, "llm", "gpt", {"model": "gpt-y"})
        ExecutionReporters.succeeded(ctx, "llm", "gpt", {"tokens": 12})

    def body(event, ctx):
        for place in ("1", "2"):
            ExecutionReporters.started(ctx, "tool", "search", {"toolCallId": place, "api_key": "sk"})
        for place in ("2", "1"):
            ExecutionReporters.succeeded(ctx, "tool", "search", {"toolCallId": place})

    def blocking(event, ctx):
        ctx.durable_execute(lambda: call(ctx), name="ask")
        body(event, ctx)

    async def waiting(event, ctx):
        await ctx.durable_execute_async(lambda: call(ctx), name="ask")
        body(event, ctx)

    act = blocking if is_blocking else waiting
    records = World(tmp_path, Agent("A").add_action("act", [EventType.InputEvent], act), trace=True).run([{"k": "a"}])
    reports = [record for record in records if record.get("entityType") in ("llm", "tool")]
    attempt = "list/0/0:act#1"
    assert [(one["executionId"], one["status"], one["parentExecutionId"]) for one in reports] == [
        (f"{attempt}~llm:gpt~1", "started", "list/0/0:act.0"),
        (f"{attempt}~llm:gpt~1", "failed", "list/0/0:act.0"),
        (f"{attempt}~llm:gpt~2", "started", "list/0/0:act.0"),
        (f"{attempt}~llm:gpt~2", "success", "list/0/0:act.0"),
        (f"{attempt}~tool:search~1", "started", attempt),
        (f"{attempt}~tool:search~2", "started", attempt),
        (f"{attempt}~tool:search~2", "success", attempt),
        (f"{attempt}~tool:search~1", "success", attempt),
    ]
    assert [one["entityMetadata"] for one in reports[:4]] == [
        {"model": "gpt-x"}, {"model": "gpt-x"}, {"model": "gpt-y"}, {"tokens": 12},
    ]  # fmt: skip
    assert reports[4]["entityMetadata"] == {"toolCallId": "1", "api_key": "***"}
    assert reports[1]["problemCategory"] == "model_call_failed"


def test_reports_cost_nothing_and_fail_nothing_where_nobody_looks(tmp_path):
    def act(event, ctx):
        ExecutionReporters.started(ctx, "llm", "m", {"unencodable": object()})
        ExecutionReporters.started(None, "llm", "m")
        ExecutionReporters.failed(ctx, "llm", "m", {"unencodable": object()}, ValueError())
        ctx.send_event(OutputEvent(1))

    agent = Agent("A").add_action("act", [EventType.InputEvent], act)
    silent, traced = World(tmp_path / "1", agent, level="off"), World(tmp_path / "2", agent, trace=True)
    assert silent.run([{"k": "a"}]) == []
    (failed,) = of_type(traced.run([{"k": "a"}]), FAILED)
    assert failed["eventAttributes"]["error"] == "ValueError"
    assert "unencodable" in failed["entityMetadata"]
    assert silent.outputs == traced.outputs == [1]


def test_waits_are_steps_that_end_when_they_are_over(tmp_path):
    begun = asyncio.Event()

    async def act(event, ctx):
        begun.set()
        await ctx.sleep("20ms")
        await ctx.wait_for("approval")

    async def approve(job):
        await begun.wait()
        await job.signal("a", "approval", True)

    settings = {"settings": {"run": RunSettings(park_after_ms=5)}}
    agent = Agent("A").add_action("act", [EventType.InputEvent], act)
    records = World(tmp_path, agent, trace=True, **settings).run([{"k": "a"}], act=approve)
    waits = {(one["entityName"], one["status"]) for one in records if one.get("entityType") == "step"}
    assert waits == {
        (name, status) for name in ("ctx.sleep", "ctx.wait_for:approval") for status in ("started", "success")
    }


# -- what is written
def test_levels_are_those_of_the_nearest_type_above(tmp_path):
    def act(event, ctx):
        for name in ("shop", "shop.order", "shop.order.paid", "shopping"):
            ctx.send_event(Event(name, {"text": "x" * 30}))

    types = {"shop": "off", "shop.order": "verbose", "_input_event": "off"}
    options = {"type": {name: EventTypeSettings(level=level) for name, level in types.items()}}
    records = World(tmp_path, Agent("A").add_action("act", [EventType.InputEvent], act), **options).run([{"k": "a"}])
    assert [(one["eventType"], one["logLevel"]) for one in records] == [
        ("shop.order", "VERBOSE"),
        ("shop.order.paid", "VERBOSE"),
        ("shopping", "STANDARD"),
    ]


def test_one_type_may_be_written_where_all_others_are_not(tmp_path):
    records = World(tmp_path, two_hops(), level="off", type={OUTPUT: EventTypeSettings(level="standard")}).run(
        [{"k": "a", "n": 1}]
    )
    assert [one["eventType"] for one in records] == [OUTPUT]


@pytest.mark.parametrize("level", ["standard", "verbose"])
def test_large_values_are_cut_at_standard_and_not_at_verbose(tmp_path, level):
    def act(event, ctx):
        ctx.send_event(OutputEvent(event.input))

    value = {"k": "a", "text": "x" * 2_100, "list": list(range(30)), "a": {"b": {"c": {"d": {"e": 1}, "f": 2}}}}
    world = World(tmp_path, Agent("A").add_action("act", [EventType.InputEvent], act), level=level)
    shown = {
        "k": "a",
        "text": {"truncatedString": "x" * 2_000 + "...", "omittedChars": 100},
        "list": {"truncatedList": list(range(20)), "omittedElements": 10},
        "a": {"b": {"c": {"truncatedObject": {"f": 2}, "omittedFields": 1}}},
    }
    for record in world.run([value] * 3):
        (attribute,) = record["eventAttributes"].values()
        assert attribute == (shown if level == "standard" else value)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ({"types": ("_input*", "next")}, {}, {("a", INPUT), ("b", INPUT), ("a", "next"), ("b", "next")}),
        ({}, {"types": ("*event", "shop.*")}, {("a", "next"), ("b", "next")}),
        ({"keys": ("a*",)}, {"types": ("next", "shop.*")}, {("a", INPUT), ("a", OUTPUT)}),
        ({"actions": ("second",)}, {"keys": ("b",)}, {("a", INPUT), ("a", OUTPUT)}),
        ({}, {"actions": ("first", "second")}, {("a", INPUT), ("b", INPUT)}),
    ],
)
def test_filters_choose_by_type_key_and_action(tmp_path, include, exclude, expected):
    filters = {"include": EventFilterSettings(**include), "exclude": EventFilterSettings(**exclude)}
    records = World(tmp_path, two_hops(), **filters).run([{"k": "a", "n": 1}, {"k": "b", "n": 2}])
    assert {(one["businessKey"], one["eventType"]) for one in records} == expected


def test_a_run_is_sampled_whole_or_not_at_all_the_same_every_time(tmp_path):
    def one(event, ctx):
        ctx.send_event(OutputEvent(event.input))
        ctx.set_timer("t", at=datetime(2020, 1, 1, tzinfo=UTC), is_event_time=True)

    chain = [
        Agent("One")
        .add_action("act", [EventType.InputEvent], one)
        .add_action("late", [TimerEvent], lambda event, ctx: None),
        Agent("Two").add_action("act", [EventType.InputEvent], one),
    ]
    values = [{"k": n} for n in range(400)]
    first = World(tmp_path / "1", *chain, sampling=0.25).run(values)
    again = World(tmp_path / "2", *chain, sampling=0.25).run(values)
    by_run: dict[str, set[str]] = {}
    for record in first:
        by_run.setdefault("/".join(record["inputRunId"].split("/")[:2]), set()).add(record["eventType"])
    assert 60 < len(by_run) < 140
    assert set(map(frozenset, by_run.values())) == {frozenset({INPUT, OUTPUT, "_timer_event"})}
    assert set(by_run) == {"/".join(record["inputRunId"].split("/")[:2]) for record in again}


# -- recovery
def test_what_is_written_again_after_a_recovery_has_the_ids_it_had(tmp_path):
    is_second = False
    hangs = asyncio.Event()

    async def act(event, ctx):
        ctx.send_event(Event("note", {"n": 1}))
        await ctx.durable_execute_async(abs, -1)
        if is_second:
            ctx.send_event(OutputEvent("done"))
        else:
            hangs.set()
            await asyncio.Event().wait()

    async def stop(job):
        while not hangs.is_set():
            await job.checkpoint_now()
        job.request_stop()
        job.request_stop()

    world = World(tmp_path, Agent("A").add_action("act", [EventType.InputEvent], act), trace=True)
    before = world.run([{"k": "a"}], act=stop)
    is_second = True
    after = world.run([{"k": "a"}])[len(before) :]
    assert ("list/0/0", INPUT) in brief(before)
    assert ("list/0/0:act.0:finished#1.1", FINISHED) in brief(before)
    assert brief(after) == [
        ("list/0/0", INPUT),
        ("list/0/0:act#1:started", STARTED),
        ("list/0/0:act.0:reused#1", REUSED),
        ("list/0/0:act/0", "note"),
        ("list/0/0:act/1", OUTPUT),
        ("list/0/0:act#1:finished", FINISHED),
    ]


def test_nothing_is_written_and_nothing_is_opened_where_it_is_off(tmp_path):
    world = World(tmp_path, two_hops(), level="off")
    assert world.run([{"k": "a", "n": 1}]) == []
    assert not world.directory.exists()


def test_many_failures_of_one_turn_are_told_in_time(tmp_path):
    def act(event, ctx):
        raise ValueError("no")

    agent = Agent("A").add_action("act", [EventType.InputEvent], act, retry=Retry(attempts=3, initial="1ms"))
    values = [{"k": n} for n in range(3_000)]
    records = World(tmp_path, agent).run(values)
    assert len(of_type(records, "_dead_letter_event")) == 3_000
    assert len({record["eventId"] for record in of_type(records, "_task_retry_event")}) == 6_000
    assert {record["businessKey"] for record in of_type(records, "_dead_letter_event")} == set(range(3_000))


def test_sleeping_runs_are_not_kept_by_what_is_known_of_them(tmp_path, monkeypatch):
    async def act(event, ctx):
        await ctx.sleep("1h")

    async def stop(job):
        while job.status.records_in < 6_000 or job.status.checkpoint == 0:
            await job.checkpoint_now()
        job.request_stop()
        job.request_stop()

    agent = Agent("A").add_action("act", [EventType.InputEvent], act)
    world = World(tmp_path, agent, trace=True, settings={"run": RunSettings(park_after_ms=1)})
    seen: list[EventLogObserver] = []
    make = EventLog.observer
    monkeypatch.setattr(EventLog, "observer", lambda *arguments: seen.append(make(*arguments)) or seen[-1])
    world.run([{"k": n} for n in range(6_000)], act=stop)
    lines = seen[0]._executions
    assert 0 < len(lines._waits) <= 4_096
    assert not lines._begun

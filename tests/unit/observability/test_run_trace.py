"""A run's trace from records: what is below what, what became of it, and how it looks."""

from __future__ import annotations

import re

import msgspec
import pytest

from agentflow.cli.trace_html import html_page
from agentflow.cli.trace_views import call_words, duration_words, mermaid, node_parts, text_tree
from agentflow.observability.event_log_search import runs_of
from agentflow.observability.run_trace import TraceNode, run_trace

RUN = "orders/0/7"


def at(ms):
    return f"2026-08-05T10:00:00.{ms:03d}000Z"


def record(ms, event_id, kind, upstream=("", ""), run=RUN, **fields):
    found = {
        "timestamp": at(ms),
        "inputRunId": run,
        "businessKey": "k",
        "agentName": "A",
        "eventId": event_id,
        "eventType": kind,
    }
    found |= {"eventAttributes": {}, **fields}
    if upstream[0]:
        found |= {"upstreamEventId": upstream[0], "upstreamActionName": upstream[1]}
    return found


def execution(ms, how, of, name, kind="action", parent="", upstream=("", ""), run=RUN, **fields):
    status = {"started": "started", "finished": "success", "failed": "failed", "reused": "reused"}[how]
    named = {"executionId": of, "entityType": kind, "entityName": name, "status": status, "parentExecutionId": parent}
    attributes = fields.pop("attributes", {})
    suffix = f"{how}{attributes.get('call', '')}"
    return record(
        ms, f"{of}:{suffix}", f"_execution_{how}_event", upstream, run, **named, eventAttributes=attributes, **fields
    )


INPUT = f"{RUN}/0"
ACT = (INPUT, "act")
TASK = f"{RUN}/0:act"
FULL = [
    record(0, INPUT, "_input_event", eventAttributes={"input": {"n": 1}}),
    execution(1, "started", f"{TASK}#1", "act", upstream=ACT, attributes={"attempt": 1}),
    execution(
        3, "failed", f"{TASK}#1", "act", upstream=ACT, problemCategory="action_execution_failed",
        attributes={"attempt": 1, "durationMs": 2.0, "error": {"type": "KeyError", "message": "'stars'"}},
    ),
    record(
        3, f"{TASK}:retry#1", "_task_retry_event", ACT, status="retrying",
        eventAttributes={"attempt": 1, "nextAttempt": 2, "nextAttemptAt": at(10)},
    ),
    execution(10, "started", f"{TASK}#2", "act", upstream=ACT, attributes={"attempt": 2}),
    execution(11, "started", f"{TASK}.0", "shop.ask", "step", f"{TASK}#2", ACT, attributes={"call": 1}),
    execution(
        12, "started", f"{TASK}#2~llm:gpt~1", "gpt", "llm", f"{TASK}.0", ACT, entityMetadata={"model": "gpt-x"},
    ),
    execution(512, "finished", f"{TASK}#2~llm:gpt~1", "gpt", "llm", f"{TASK}.0", ACT, attributes={"durationMs": 500.0}),
    execution(513, "finished", f"{TASK}.0", "shop.ask", "step", f"{TASK}#2", ACT, attributes={"call": 1, "durationMs": 502.0}),
    execution(514, "reused", f"{TASK}.1", "shop.pay", "step", f"{TASK}#2", ACT),
    record(515, f"{TASK}/0", "next", ACT, eventAttributes={"text": "x" * 200}),
    record(515, f"{TASK}/1", "_output_event", ACT, eventAttributes={"output": {"done": True}}),
    execution(515, "finished", f"{TASK}#2", "act", upstream=ACT, attributes={"attempt": 2, "durationMs": 505.0}),
    execution(516, "started", f"{TASK}/0:then#1", "then", upstream=(f"{TASK}/0", "then"), attributes={"attempt": 1}),
]  # fmt: skip


def test_tree_of_a_run_has_everything_in_its_place():
    assert text_tree(run_trace(RUN, FULL)) == (
        'run orders/0/7  key "k"  agent A  2026-08-05T10:00:00.000000Z  516 ms  running\n'
        '└─ _input_event  {"input":{"n":1}}\n'
        "   └─ action act  ok  2 attempts  514 ms\n"
        "      ├─ attempt 1  failed  2 ms  KeyError: 'stars'  next at 2026-08-05T10:00:00.010000Z\n"
        "      ├─ attempt 2  ok  505 ms\n"
        "      ├─ step shop.ask  ok  502 ms\n"
        '      │  └─ llm gpt  ok  500 ms  {"model":"gpt-x"}\n'
        "      ├─ step shop.pay  replayed\n"
        f'      ├─ next  {{"text":"{"x" * 90}…\n'
        "      │  └─ action then  running\n"
        '      └─ _output_event  {"output":{"done":true}}'
    )


def test_without_executions_the_tree_has_events_and_the_actions_they_name():
    events = [one for one in FULL if "executionId" not in one and "status" not in one]
    assert text_tree(run_trace(RUN, events)).splitlines()[1:4] == [
        '└─ _input_event  {"input":{"n":1}}',
        "   └─ action act",
        f'      ├─ next  {{"text":"{"x" * 90}…',
    ]


def test_what_follows_from_a_run_is_below_it():
    timer_run, down_run = f"{TASK}@remind/5", f"{TASK}/1"
    records = [
        *FULL[:1],
        record(5, f"{TASK}/1", "_output_event", ACT),
        record(6, f"{down_run}/0", "_input_event", run=down_run, agentName="B"),
        record(7, f"{timer_run}/0", "_timer_event", ACT, run=timer_run),
    ]
    assert [line.lstrip("│ └├─") for line in text_tree(run_trace(RUN, records)).splitlines()[1:]] == [
        '_input_event  {"input":{"n":1}}',
        "action act",
        "_output_event",
        "_input_event",
        "_timer_event",
    ]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("_dead_letter_event", "dead-lettered"),
        ("_task_skipped_event", "skipped"),
        ("_task_cancelled_event", "cancelled"),
        ("_job_failed_event", "failed"),
    ],
)
def test_what_became_of_a_task_is_its_status_and_that_of_the_run(kind, status):
    error = {"attempt": 1, "error": {"type": "ValueError", "message": "no\nmore"}}
    trace = run_trace(RUN, [FULL[0], record(4, f"{RUN}:end", kind, ACT, status=status, eventAttributes=error)])
    (action,) = trace.roots[0].children
    assert (action.status, trace.status, action.error) == (status, status, "ValueError: no\nmore")
    assert "ValueError: no …" in text_tree(trace)


def test_a_record_that_became_no_run_carries_its_reason():
    dead = record(1, f"{RUN}:dead-letter", "_dead_letter_event", status="dead-lettered", upstreamEventId=INPUT)
    dead["eventAttributes"] = {"error": {"type": "DecodeError", "message": "broken"}}
    trace = run_trace(RUN, [FULL[0], dead])
    assert (trace.roots[0].status, trace.roots[0].error) == ("dead-lettered", "DecodeError: broken")


def test_records_in_any_order_and_without_what_they_refer_to_make_a_tree():
    trace = run_trace(RUN, [*reversed(FULL), execution(9, "started", "lost", "x", "llm", "nobody#1")])
    assert {node.id for node in trace.walk()} == {node.id for node in run_trace(RUN, FULL).walk()} | {"lost"}
    partly = run_trace(RUN, FULL[4:9])
    assert [node.kind for node in partly.walk()] == ["action", "step", "llm"]


def test_events_that_come_from_each_other_end():
    records = [record(1, "a", "n", ("b", "x")), record(2, "b", "n", ("a", "x"))]
    assert {node.id for node in run_trace(RUN, records).walk()} <= {"a", "b", "a:x", "b:x"}


def test_no_record_does_anything_to_a_terminal():
    evil = "\x1b]0;title\x07\x1b[31m"
    error = {"error": {"type": evil, "message": evil}}
    records = [
        record(1, "a", evil, ("", ""), businessKey=evil, eventAttributes={evil: evil}),
        record(2, "b", "_dead_letter_event", ("a", evil), status="dead-lettered", eventAttributes=error),
    ]
    assert all(line.isprintable() for line in text_tree(run_trace(RUN, records)).splitlines())


def test_json_is_the_tree():
    trace = msgspec.json.decode(msgspec.json.encode(run_trace(RUN, FULL)))
    assert (trace["run"], trace["key"], trace["status"], trace["durationMs"], trace["records"]) == (
        RUN,
        "k",
        "running",
        516.0,
        14,
    )
    (action,) = trace["roots"][0]["children"]
    assert [attempt["status"] for attempt in action["attempts"]] == ["failed", "success"]
    assert [child["kind"] for child in action["children"]] == ["step", "step", "event", "event"]


def test_mermaid_has_a_node_for_each_and_no_text_that_breaks_it():
    traces = [run_trace(RUN, [*FULL, record(9, 'x"]<b>', 'kind"]', ("", ""))])]
    lines = mermaid(traces).splitlines()
    assert lines[0] == "flowchart TD"
    assert sum(" --> " in line for line in lines) == len(list(traces[0].walk()))
    assert all(re.fullmatch(r'  r0(n\d+)?(\["[^"]*"\]|\(\["[^"]*"\]\))', line) for line in lines if '"' in line)
    assert any("class r0n1 ok" in line for line in lines)


def test_page_is_one_file_that_asks_nobody_for_anything_and_runs_nothing():
    evil = record(
        9, "evil", "</pre><script>alert(1)</script>", ("", ""), eventAttributes={"<img src=x onerror=y>": "'\"&"}
    )
    page = html_page([run_trace(RUN, [*FULL, evil])])
    assert not re.search(
        r"""<(script|img|link|iframe|object|base)|<[^>]*\s(src|href|on\w+)=|url\(|@import""", page, re.IGNORECASE
    )
    assert page.count('class="row"') == len(list(run_trace(RUN, [*FULL, evil]).walk()))
    bars = [tuple(map(float, found)) for found in re.findall(r"left:([\d.]+)%;width:([\d.]+)%", page)]
    assert bars
    assert all(0 <= left <= 100 and 0 < width <= 100.2 - left for left, width in bars)


@pytest.mark.parametrize(
    ("ms", "words"),
    [
        (None, ""),
        (0.0123, "0.0123 ms"),
        (12.34, "12.3 ms"),
        (999, "999 ms"),
        (1500, "1.5 s"),
        (61_000, "1 min 1 s"),
        (3_660_000, "1 h 1 min"),
    ],
)
def test_durations_have_the_unit_that_suits_them(ms, words):
    assert duration_words(ms) == words


def test_runs_of_a_key_are_in_the_order_in_which_they_began():
    runs = runs_of(
        [
            record(5, "b/0", "n", run="b"),
            record(1, "a/0", "n", run="a"),
            record(6, "b/1", "n", run="b", problemCategory="x"),
        ]
    )
    assert [(run.run, run.records, run.problems) for run in runs] == [("a", 1, 0), ("b", 2, 1)]


def test_calls_of_models_show_their_tokens_and_cost_and_tools_which_call_they_answer() -> None:
    model = {"model": "gpt-x", "provider": "openai", "input_tokens": 1200, "output_tokens": 80, "cached_tokens": 1000}
    node = TraceNode("llm", "big", "x", "success", attributes={**model, "cost": 0.00042, "attempt": 2})
    assert call_words(node) == "gpt-x, 1,200 → 80 tokens, 1,000 cached, cost 0.00042, call 2"
    assert "".join(text for text, _ in node_parts(node)) == f"llm big  ok  {call_words(node)}"
    assert call_words(TraceNode("llm", "big", "x", "failed", attributes={"model": "m", "provider": "p"})) == "m"
    assert call_words(TraceNode("llm", "big", "x", attributes={"provider": "p", "input_tokens": "many"})) == "p"
    assert call_words(TraceNode("tool", "look", "x", attributes={"toolCallId": "call_1", "duration_s": 1})) == "call_1"
    assert call_words(TraceNode("llm", "big", "x", attributes={"model": "of user code"})) == ""
    assert call_words(TraceNode("event", "next", "x", attributes={"model": "m", "provider": "p"})) == ""

"""What becomes of a report of a call: the span, its place, its id, its attributes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agentflow.api.encoding import encode_msgpack
from agentflow.api.executions import ModelCall
from agentflow.core.trace_context import step_span_id
from agentflow.observability import names
from agentflow.observability.call_spans import CallsOfAttempt, CallSpan, CallSpans, Capture, capture_of
from agentflow.observability.span_encoding import CLIENT, INTERNAL
from agentflow.runtime.observation import ExecutionReported

ATTEMPT = 77
FULL = ModelCall(
    model="gpt-x",
    provider="openai",
    server="api.example.com",
    port=443,
    attempt=3,
    limit_wait_s=0.25,
    options={
        "max_tokens": 100,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 7,
        "stop_sequences": ["END"],
        "frequency_penalty": 0.1,
        "presence_penalty": 0.2,
        "choice_count": 2,
        "reasoning_level": "low",
    },
    output="json",
    is_streamed=True,
    prompt="abc123",
    duration_s=1.5,
    first_token_s=0.5,
    response_model="gpt-x-1",
    response_id="resp_1",
    finish_reason="length",
    input_tokens=10,
    output_tokens=4,
    cached_tokens=3,
    cache_write_tokens=2,
    reasoning_tokens=1,
    cost=0.5,
)


def report(status: str, at_ns: int, metadata: Any = None, kind: str = "llm", name: str = "big", **fields: Any) -> Any:
    encoded = b"" if metadata is None else encode_msgpack(msgspec.to_builtins(metadata))
    return ExecutionReported(None, 1, status, kind, name, encoded, at_ns, **fields)  # type: ignore[arg-type]


def spans_of(
    *reports: Any, convention: Any = names.GEN_AI_1_41, capture: Capture = Capture.NO_CONTENT
) -> list[CallSpan]:
    made = CallSpans("Shop", convention, capture, dict)
    calls = CallsOfAttempt()
    found = [made.see(one, calls, ATTEMPT, 1_000) for one in reports]
    return [one for one in found if one is not None]


def test_a_call_that_was_answered_has_everything_that_was_reported_of_it():
    (span,) = spans_of(report("started", 5), report("success", 9, FULL, step=".0", step_call=1))
    assert (span.name, span.kind, span.error) == ("chat gpt-x", CLIENT, None)
    assert span.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-x",
        "gen_ai.agent.name": "Shop",
        "server.address": "api.example.com",
        "server.port": 443,
        "gen_ai.output.type": "json",
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 40,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stop_sequences": ["END"],
        "gen_ai.request.frequency_penalty": 0.1,
        "gen_ai.request.presence_penalty": 0.2,
        "gen_ai.request.choice.count": 2,
        "agentflow.resource.name": "big",
        "agentflow.prompt.digest": "abc123",
        "agentflow.call.attempt": 3,
        "agentflow.limit.wait_s": 0.25,
        "gen_ai.response.model": "gpt-x-1",
        "gen_ai.response.id": "resp_1",
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.response.time_to_first_chunk": 0.5,
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.cache_read.input_tokens": 3,
        "gen_ai.usage.cache_creation.input_tokens": 2,
        "gen_ai.usage.reasoning.output_tokens": 1,
        "agentflow.cost": 0.5,
    }


def test_the_latest_conventions_rename_what_they_rename():
    (span,) = spans_of(report("success", 9, FULL), convention=names.GEN_AI_LATEST)
    assert span.attributes["gen_ai.usage.cache_write.input_tokens"] == 2
    assert span.attributes["gen_ai.request.reasoning.level"] == "low"
    assert "gen_ai.usage.cache_creation.input_tokens" not in span.attributes


@pytest.mark.parametrize(
    ("variable", "convention"),
    [
        (None, names.GEN_AI_1_41),
        ("", names.GEN_AI_1_41),
        ("http/dup, database", names.GEN_AI_1_41),
        ("gen_ai_latest_experimental", names.GEN_AI_LATEST),
        ("http , gen_ai_latest_experimental ", names.GEN_AI_LATEST),
    ],
)
def test_the_variable_of_opentelemetry_chooses_the_names(variable, convention):
    assert names.gen_ai_convention(variable) is convention


@pytest.mark.parametrize(
    ("variable", "capture"),
    [
        (None, Capture.NO_CONTENT),
        ("true", Capture.NO_CONTENT),
        ("span_only", Capture.SPAN_ONLY),
        ("EVENT_ONLY", Capture.EVENT_ONLY),
        (" SPAN_AND_EVENT ", Capture.SPAN_AND_EVENT),
    ],
)
def test_content_is_captured_only_by_its_exact_name(variable, capture):
    assert capture_of(variable) is capture


def test_a_call_is_in_the_call_of_the_step_that_made_it_and_has_the_same_id_each_time():
    made = [
        spans_of(report("success", at, FULL, step="/a.0", step_call=call))[0] for at, call in ((5, 1), (9, 1), (9, 2))
    ]
    assert made[0].parent_id == step_span_id(ATTEMPT, "/a.0", 1)
    assert made[0].span_id == made[1].span_id
    assert made[2].parent_id == step_span_id(ATTEMPT, "/a.0", 2)
    assert made[2].span_id != made[0].span_id
    outside = spans_of(report("success", 5, FULL), report("success", 6, FULL), report("success", 6, FULL, name="small"))
    assert [span.parent_id for span in outside] == [ATTEMPT] * 3
    assert len({span.span_id for span in outside}) == 3


def test_an_end_belongs_to_the_oldest_begin_of_its_kind_and_place():
    first, second = {"toolCallId": "a", "toolType": "mcp"}, {"toolCallId": "b"}
    spans = spans_of(
        report("started", 1, first, "tool", "look"),
        report("started", 2, second, "tool", "look"),
        report("started", 3),
        report("success", 5, second, "tool", "look"),
        report("success", 6, first, "tool", "look"),
        report("success", 7, FULL),
        report("success", 8, FULL),
    )
    assert [(span.began_ns, span.ended_ns) for span in spans] == [(2, 5), (1, 6), (3, 7), (8, 8)]
    assert (spans[1].name, spans[1].kind) == ("execute_tool look", INTERNAL)
    assert spans[1].attributes["gen_ai.tool.type"] == "extension"
    assert "gen_ai.tool.type" not in spans[0].attributes


def test_a_call_that_failed_says_why_and_nothing_of_tokens():
    failed = report("failed", 5, ModelCall(model="m", provider="p"), error="RateLimited: 429: slowly")
    (span,) = spans_of(failed)
    assert span.error is not None
    assert (span.error.type, span.error.message) == ("RateLimited", "429: slowly")
    assert not any(name.startswith("gen_ai.usage") for name in span.attributes)


def test_reports_of_user_code_are_spans_of_what_can_be_read_of_them():
    strange = {"model": 5, "input_tokens": "many"}
    assert spans_of(report("started", 1, strange, "parser"), report("success", 2, strange, "parser")) == []
    (span,) = spans_of(report("success", 2, strange))
    assert (span.name, span.attributes["agentflow.resource.name"]) == ("chat", "big")


def test_attempts_sum_up_what_their_calls_used():
    made, calls = CallSpans("Shop", names.GEN_AI_1_41, Capture.NO_CONTENT, dict), CallsOfAttempt()
    assert calls.attributes() == {}
    for _ in range(2):
        made.see(report("success", 1, FULL), calls, ATTEMPT, 0)
    made.see(report("success", 1, {}, "tool", "look"), calls, ATTEMPT, 0)
    assert calls.attributes() == {
        "agentflow.usage.model_calls": 2,
        "agentflow.usage.input_tokens": 20,
        "agentflow.usage.output_tokens": 8,
        "agentflow.usage.cost": 1.0,
    }

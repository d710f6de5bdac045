"""What is counted of calls of models and tools, and under which names it is shown."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec

from agentflow.actions.traffic import Traffic
from agentflow.api.chat_models import BaseChatModelConnection
from agentflow.api.encoding import encode_msgpack
from agentflow.api.executions import ModelCall
from agentflow.core.inputs import StepCall
from agentflow.observability import names
from agentflow.observability.admin import resources_document
from agentflow.observability.call_metrics import OTHER, CallMeters, call_values, resource_metrics
from agentflow.runtime.observation import ExecutionReported, StepSeen
from agentflow.runtime.resources import ResourceHealth

TASK: Any = SimpleNamespace(action=SimpleNamespace(name="act"))
CALL = ModelCall(model="m", provider="p", duration_s=0.03, input_tokens=5, output_tokens=1, cost=0.25)


def meters(cardinality_max: int = 100) -> CallMeters:
    return CallMeters((1_000, 1_000_000), cardinality_max, {})


def report(
    of: CallMeters, call: Any, kind: str = "llm", name: str = "big", status: str = "success", error: str = ""
) -> None:
    metadata = encode_msgpack(msgspec.to_builtins(call))
    of.see_report(ExecutionReported(TASK, 1, status, kind, name, metadata, 0, error=error))


def shown(of: CallMeters, metric: names.MetricName, convention: Any = names.GEN_AI_1_41) -> list[tuple[Any, Any]]:
    return [(labels, value) for name, labels, value in call_values("A", of, convention) if name == metric]


def test_nothing_is_shown_of_an_agent_without_calls():
    assert list(call_values("A", meters(), names.GEN_AI_1_41)) == []


def test_begins_and_what_is_no_call_count_for_nothing():
    of = meters()
    report(of, CALL, status="started")
    report(of, {}, kind="parser")
    assert (of.models, of.tools) == ({}, {})


def test_each_duration_and_count_of_tokens_is_in_the_bucket_of_the_conventions():
    of = meters()
    for seconds, tokens in ((0.01, 1), (0.011, 4), (100.0, 5)):
        report(of, msgspec.structs.replace(CALL, duration_s=seconds, input_tokens=tokens))
    ((_, durations),) = shown(of, names.GEN_AI_1_41.duration)
    assert durations.bounds == names.GEN_AI_SECONDS
    assert (durations.counts[0], durations.counts[1], durations.counts[-1]) == (1, 1, 1)
    usage = {
        labels["gen_ai.token.type"]: value for labels, value in shown(of, names.GEN_AI_1_41.tokens_per_call["input"])
    }
    assert usage["input"].counts[:3] == [1, 1, 1]
    assert (names.GEN_AI_TOKENS[0], names.GEN_AI_TOKENS[-1], len(usage["input"].counts)) == (1, 67_108_864, 15)


def test_our_own_metrics_sum_over_what_the_conventions_tell_apart():
    of = meters()
    for model in ("m-1", "m-2"):
        report(of, msgspec.structs.replace(CALL, response_model=model, limit_wait_s=0.5))
    report(of, ModelCall(model="m", provider="p", attempt=2), status="failed", error="RateLimited: slowly")
    own = {"agent": "A", "action": "act", "resource": "big", "model": "m"}
    assert shown(of, names.LLM_CALLS) == [(own, 2), ({**own, "error.type": "RateLimited"}, 1)]
    assert shown(of, names.LLM_RETRIES) == [(own, 1)]
    assert shown(of, names.LLM_COST) == [(own, 0.5)]
    assert ({**own, "token.type": "input"}, 10) in shown(of, names.LLM_TOKENS)
    ((_, waits),) = shown(of, names.LIMITER_WAIT)
    assert (sum(waits.counts), waits.sum) == (3, 1.0)
    assert len(shown(of, names.GEN_AI_1_41.duration)) == 3
    assert len(shown(of, names.GEN_AI_1_41.tokens_per_call["input"])) == 4, "of answered calls, input and output"


def test_no_two_values_have_the_same_name_and_labels():
    of = meters()
    for model, error in (("a", ""), ("b", ""), ("a", "RateLimited: x"), ("b", "ModelUnavailable: x")):
        report(
            of,
            msgspec.structs.replace(CALL, response_model=model),
            status="failed" if error else "success",
            error=error,
        )
    for convention in (names.GEN_AI_1_41, names.GEN_AI_LATEST):
        slots = [(name.name, tuple(sorted(labels.items()))) for name, labels, _ in call_values("A", of, convention)]
        assert len(slots) == len(set(slots))


def test_tools_are_counted_by_error_with_their_durations():
    of = meters()
    report(of, {"toolCallId": "1", "duration_s": 0.0005}, "tool", "look")
    report(of, {"duration_s": "long"}, "tool", "look", status="failed", error="KeyError: x")
    assert [value for _, value in shown(of, names.TOOL_CALLS)] == [1, 1]
    ((labels, ok), (failed, _)) = shown(of, names.TOOL_DURATION)
    assert (labels, ok.counts) == ({"agent": "A", "action": "act", "tool": "look"}, [0, 1, 0])
    assert failed["error.type"] == "KeyError"


def test_too_many_models_are_counted_together_and_told():
    of = meters(cardinality_max=2)
    for number in range(5):
        report(of, msgspec.structs.replace(CALL, response_model=f"m-{number}"))
        report(of, {}, "tool", f"tool-{number}")
        of.see_saved(StepSeen(TASK, StepCall(".0", f"chat:{number}", b"", ""), 0, 0, calls=0))
    assert sum(meter.calls for meter in of.models.values()) == 5
    assert OTHER in {key.resource for key in of.models}
    assert (len(of.models), len(of.tools), len(of.saved)) == (3, 3, 3)
    assert set(of._overflows) == {"agentflow.llm.calls", "agentflow.tool.duration", "agentflow.llm.calls.saved"}


def test_only_steps_that_call_models_are_calls_that_were_saved():
    of = meters()
    for function in ("chat:big", "tool:look", "shop.charge"):
        of.see_saved(StepSeen(TASK, StepCall(".0", function, b"", ""), 0, 0, calls=0))
    assert shown(of, names.LLM_CALLS_SAVED) == [({"agent": "A", "action": "act", "resource": "big"}, 1)]


class Asked:
    def __init__(self) -> None:
        self.traffic = Traffic()

    def health(self) -> list[ResourceHealth]:
        return [
            ResourceHealth("a", "tool", "built"),
            ResourceHealth("a", "tool", "built"),
            ResourceHealth("b", "tool", "failed", "x"),
        ]


async def test_gates_and_resources_are_read_when_somebody_asks():
    asked = Asked()
    read = dict(resource_metrics(asked))
    assert read[names.GATE_ACTIVE]() == []
    connection, namesake, nameless = (BaseChatModelConnection() for _ in range(3))
    connection.__dict__["name"] = namesake.__dict__["name"] = "openai"
    gate = asked.traffic.gate(connection, 1, 60)
    asked.traffic.gate(namesake, 1, 60)
    admission = await gate.enter("m", "", "k", (), 0)
    assert read[names.GATE_ACTIVE]() == [(1, {"connection": "openai"})]
    gate.leave(admission, tokens=0, is_failed=True)
    assert read[names.CIRCUIT_OPEN]() == [(True, {"connection": "openai"})]
    (shown,) = resources_document(asked)["gates"]
    assert (shown["circuitOpen"], 50 < shown["retryAfterSeconds"] <= 60) == (True, True)
    waiting = asyncio.ensure_future(gate.enter("m", "", "k", (), 0))
    await asyncio.sleep(0)
    assert read[names.GATE_WAITING]() == [(1, {"connection": "openai"})]
    waiting.cancel()
    asked.traffic.gate(nameless, 1, 60)
    assert [labels["connection"] for _, labels in read[names.GATE_ACTIVE]()] == ["openai", "BaseChatModelConnection"]
    asked.traffic.close()
    assert read[names.RESOURCES]() == [
        (1, {"resource": "a", "type": "tool", "state": "built"}),
        (1, {"resource": "b", "type": "tool", "state": "failed"}),
    ]

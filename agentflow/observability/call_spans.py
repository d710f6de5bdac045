"""Spans of calls of models and tools, made from what actions report; names and attributes are OpenTelemetry's.

    step chat:assistant
    └── chat gpt-4o             one call of a model: retries are calls of their own
    step tool:find_orders
    └── execute_tool find_orders

What was said is no part of a span, unless ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` asks for it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from agentflow.api.executions import ExecutionEntityTypes, ExecutionStatus, ToolExecutionMetadataKeys
from agentflow.core.records import ErrorReport
from agentflow.core.trace_context import span_id_of, step_span_id
from agentflow.observability import names
from agentflow.observability.call_metrics import read_call
from agentflow.observability.names import GenAiConvention
from agentflow.observability.span_encoding import CLIENT, INTERNAL, SpanEvent
from agentflow.runtime.observation import ExecutionReported

_CALLS: Final = (ExecutionEntityTypes.LLM, ExecutionEntityTypes.TOOL)
_TOOL_TYPES: Final = {"function": "function", "agent": "function", "mcp": "extension", "model_built_in": "extension"}
Shown = Callable[[Mapping[str, Any]], dict[str, Any]]


class Capture(enum.Enum):
    """Where what was said to models and tools, and what they said, is to be seen."""

    NO_CONTENT = "NO_CONTENT"
    SPAN_ONLY = "SPAN_ONLY"
    """As attributes of the span."""
    EVENT_ONLY = "EVENT_ONLY"
    """As attributes of an event of the span."""
    SPAN_AND_EVENT = "SPAN_AND_EVENT"

    @property
    def is_in_span(self) -> bool:
        """Whether the span has it."""
        return self in (Capture.SPAN_ONLY, Capture.SPAN_AND_EVENT)

    @property
    def is_in_event(self) -> bool:
        """Whether an event has it."""
        return self in (Capture.EVENT_ONLY, Capture.SPAN_AND_EVENT)


def capture_of(variable: str | None) -> Capture:
    """Return what ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` says; what is not known captures nothing."""
    name = (variable or "").strip().upper()
    return Capture[name] if name in Capture.__members__ else Capture.NO_CONTENT


class CallsOfAttempt(msgspec.Struct, eq=False):
    """The calls of one attempt.

    Attributes:
        begun: Calls that have begun: when, by what their end is known by, the oldest first.
        counts: (span that they are in, type, name) → calls that have ended.
        models: Calls of models that ended.
        input_tokens, output_tokens, cost: Of all of them.
    """

    begun: dict[tuple[int, str, str, str], list[int]] = {}
    counts: dict[tuple[int, str, str], int] = {}
    models: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0

    def attributes(self) -> dict[str, Any]:
        """Return what the attempt's span says of them."""
        if not self.models:
            return {}
        used = {
            names.USAGE_CALLS: self.models,
            names.USAGE_INPUT: self.input_tokens,
            names.USAGE_OUTPUT: self.output_tokens,
        }
        return {**used, names.USAGE_COST: self.cost} if self.cost else used


class CallSpan(msgspec.Struct, frozen=True):
    """A call that has ended, as a span. Times are those of `agentflow.runtime.observation.monotonic_ns`."""

    name: str
    span_id: int
    parent_id: int
    began_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    events: list[SpanEvent]
    error: ErrorReport | None
    kind: int


class CallSpans:
    """Makes spans of the reports of one agent.

    Args:
        agent: Its name.
        convention: What attributes are called.
        capture: Where what was said is to be seen.
        shown: Returns attributes without secrets.
    """

    def __init__(self, agent: str, convention: GenAiConvention, capture: Capture, shown: Shown) -> None:
        self._agent = agent
        self._convention = convention
        self._capture = capture
        self._shown = shown

    def see(self, note: ExecutionReported, calls: CallsOfAttempt, attempt_id: int, epoch_ns: int) -> CallSpan | None:
        """Take a report; return the span of a call that has ended.

        Args:
            note: The report.
            calls: Of its attempt.
            attempt_id: Span of the attempt.
            epoch_ns: When the clock of reports was at zero.
        """
        if note.entity_type not in _CALLS:
            return None
        parent_id = step_span_id(attempt_id, note.step, note.step_call) if note.step else attempt_id
        known: dict[str, Any] = msgspec.msgpack.decode(note.metadata) if note.metadata else {}
        call_id = str(known.get(ToolExecutionMetadataKeys.TOOL_CALL_ID, ""))
        slot = (parent_id, note.entity_type, note.entity_name, call_id)
        if note.status == ExecutionStatus.STARTED:
            calls.begun.setdefault(slot, []).append(note.at_ns)
            return None
        waiting = calls.begun.get(slot)
        began_ns = waiting.pop(0) if waiting else note.at_ns
        if waiting is not None and not waiting:
            del calls.begun[slot]
        counted = slot[:3]
        calls.counts[counted] = count = calls.counts.get(counted, 0) + 1
        is_model = note.entity_type == ExecutionEntityTypes.LLM
        name, attributes = self._model(note, calls) if is_model else self._tool(note.entity_name, known, call_id)
        events = []
        if note.content:
            content = self._content(note.content)
            if self._capture.is_in_span:
                attributes.update(content)
            if self._capture.is_in_event:
                operation = {names.GEN_AI_OPERATION: attributes[names.GEN_AI_OPERATION]}
                events.append(SpanEvent(names.GEN_AI_DETAILS, note.at_ns + epoch_ns, {**operation, **content}))
        error = None
        if note.status == ExecutionStatus.FAILED:
            kind, _, message = note.error.partition(": ")
            error = ErrorReport(kind, message)
        return CallSpan(
            name,
            span_id_of(parent_id, f"{note.entity_type}:{note.entity_name}#{count}"),
            parent_id,
            began_ns,
            note.at_ns,
            attributes,
            events,
            error,
            CLIENT if is_model else INTERNAL,
        )

    def _model(self, note: ExecutionReported, calls: CallsOfAttempt) -> tuple[str, dict[str, Any]]:
        call, convention = read_call(note.metadata), self._convention
        calls.models += 1
        calls.input_tokens += call.input_tokens
        calls.output_tokens += call.output_tokens
        calls.cost += call.cost or 0.0
        is_answered = note.status == ExecutionStatus.SUCCESS
        options = {
            attribute: call.options[name] for name, attribute in convention.options.items() if name in call.options
        }
        found = {
            names.GEN_AI_OPERATION: names.CHAT,
            names.GEN_AI_PROVIDER: call.provider,
            names.GEN_AI_REQUEST_MODEL: call.model,
            names.GEN_AI_AGENT: self._agent,
            names.SERVER_ADDRESS: call.server,
            names.SERVER_PORT: call.port if call.server else None,
            names.GEN_AI_OUTPUT_TYPE: call.output,
            names.GEN_AI_STREAM: call.is_streamed or None,
            **(self._shown(options) if options else {}),
            names.RESOURCE_NAME: note.entity_name,
            names.PROMPT_DIGEST: call.prompt,
            names.CALL_ATTEMPT: call.attempt,
            names.LIMIT_WAIT: call.limit_wait_s or None,
            names.GEN_AI_RESPONSE_MODEL: call.response_model,
            names.GEN_AI_RESPONSE_ID: call.response_id,
            names.GEN_AI_FINISH_REASONS: [call.finish_reason] if call.finish_reason else None,
            names.GEN_AI_FIRST_CHUNK: call.first_token_s,
            names.GEN_AI_INPUT_TOKENS: call.input_tokens if is_answered else None,
            names.GEN_AI_OUTPUT_TOKENS: call.output_tokens if is_answered else None,
            names.GEN_AI_CACHE_READ: call.cached_tokens or None,
            convention.cache_write: call.cache_write_tokens or None,
            names.GEN_AI_REASONING: call.reasoning_tokens or None,
            names.CALL_COST: call.cost,
        }
        attributes = {name: value for name, value in found.items() if value is not None and value != ""}
        return f"{names.CHAT} {call.model}".rstrip(), attributes

    def _tool(self, tool: str, known: Mapping[str, Any], call_id: str) -> tuple[str, dict[str, Any]]:
        kind = _TOOL_TYPES.get(str(known.get(ToolExecutionMetadataKeys.TOOL_TYPE, "")))
        attributes = {
            names.GEN_AI_OPERATION: names.EXECUTE_TOOL,
            names.GEN_AI_TOOL_NAME: tool,
            names.GEN_AI_AGENT: self._agent,
            **({names.GEN_AI_TOOL_ID: call_id} if call_id else {}),
            **({names.GEN_AI_TOOL_TYPE: kind} if kind else {}),
        }
        return f"{names.EXECUTE_TOOL} {tool}", attributes

    def _content(self, content: Mapping[str, Any]) -> dict[str, str]:
        """Return what was said as attributes, without secrets: texts as they are, all else as JSON."""
        shown = self._shown({names.GEN_AI_CONTENT[name]: value for name, value in content.items()})
        return {
            name: value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()
            for name, value in shown.items()
        }

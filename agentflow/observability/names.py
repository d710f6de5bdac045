"""Every name that metrics and spans carry, in one place.

Units are UCUM. Prometheus shows ``agentflow.records.in`` as ``agentflow_records_in_total``, and writes units out:
``agentflow.checkpoint.duration`` in ``s`` is ``agentflow_checkpoint_duration_seconds``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

import msgspec


class MetricKind(enum.Enum):
    """What a metric is."""

    COUNTER = "counter"
    """A sum that only grows, since the process began."""
    UP_DOWN_COUNTER = "up-down counter"
    """A sum that may fall."""
    GAUGE = "gauge"
    """A value of now."""
    HISTOGRAM = "histogram"
    """How many values lay below each bound, since the process began."""


class MetricName(msgspec.Struct, frozen=True):
    """One metric.

    Attributes:
        name: Its name.
        kind: What it is.
        unit: UCUM unit; in braces: what is counted.
        description: One sentence.
        flink: What Flink Agents calls it; empty: it has none.
    """

    name: str
    kind: MetricKind
    unit: str
    description: str
    flink: str = ""


_COUNTER, _GAUGE, _HISTOGRAM = MetricKind.COUNTER, MetricKind.GAUGE, MetricKind.HISTOGRAM

RECORDS_IN = MetricName(
    "agentflow.records.in", _COUNTER, "{record}", "Records read, rejected ones included; again after a restart."
)
RECORDS_OUT = MetricName(
    "agentflow.records.out", _COUNTER, "{record}", "Outputs given to the sink; again after a restart."
)
DEAD_LETTERS = MetricName(
    "agentflow.dead_letters", _COUNTER, "{record}", "Records given to the dead-letter sink; again after a restart."
)
RESTARTS = MetricName("agentflow.restarts", _COUNTER, "{restart}", "Restarts of subtasks.")
REBALANCES = MetricName("agentflow.rebalances", _COUNTER, "{rebalance}", "Assignments by the group.")
ABORTS = MetricName("agentflow.transaction.aborts", _COUNTER, "{transaction}", "Transactions that were aborted.")

EVENTS = MetricName(
    "agentflow.events",
    _COUNTER,
    "{event}",
    "Inputs that were admitted, events that actions sent, and outputs.",
    "numOfEventProcessed",
)
EVENT_RATE = MetricName(
    "agentflow.events.rate", _GAUGE, "{event}/s", "Events per second of the last minute.", "numOfEventProcessedPerSec"
)
ACTIONS = MetricName(
    "agentflow.action.attempts",
    _COUNTER,
    "{attempt}",
    "Attempts of actions that ended.",
    "numOfActionsExecuted, action.<name>.numOfActionsExecuted",
)
ACTION_RATE = MetricName(
    "agentflow.action.rate",
    _GAUGE,
    "{attempt}/s",
    "Attempts per second of the last minute.",
    "numOfActionsExecutedPerSec, action.<name>.numOfActionsExecutedPerSec",
)
ACTION_DURATION = MetricName("agentflow.action.duration", _HISTOGRAM, "s", "How long attempts took, waits included.")
ACTION_FAILURES = MetricName("agentflow.action.failures", _COUNTER, "{attempt}", "Attempts that failed, by error.")
ACTION_RETRIES = MetricName("agentflow.action.retries", _COUNTER, "{attempt}", "Attempts that another one follows.")
ACTION_SKIPS = MetricName("agentflow.action.skips", _COUNTER, "{task}", "Tasks that their policy dropped.")
ACTION_CANCELLATIONS = MetricName(
    "agentflow.action.cancellations", _COUNTER, "{attempt}", "Attempts that were stopped."
)

STEP_DURATION = MetricName("agentflow.step.duration", _HISTOGRAM, "s", "How long calls of steps took, by error.")
STEP_RETRIES = MetricName("agentflow.step.retries", _COUNTER, "{call}", "Calls of steps that another one follows.")
STEPS_CALLED = MetricName("agentflow.steps.called", _COUNTER, "{call}", "Calls of steps.")
STEPS_REPLAYED = MetricName(
    "agentflow.steps.replayed",
    _COUNTER,
    "{step}",
    "Steps that the journal answered: calls that were not paid for twice.",
)
JOURNAL_RECORDS = MetricName("agentflow.journal.records", _COUNTER, "{record}", "Records that became durable.")
JOURNAL_DURATION = MetricName(
    "agentflow.journal.append.duration", _HISTOGRAM, "s", "How long it took until the records of a group were durable."
)
JOURNAL_GROUP = MetricName("agentflow.journal.append.records", _HISTOGRAM, "{record}", "Records that shared an append.")

RUNS_IN_FLIGHT = MetricName("agentflow.runs.in_flight", _GAUGE, "{run}", "Unfinished runs.")
RUNS_PENDING = MetricName("agentflow.runs.pending", _GAUGE, "{run}", "Inputs that wait behind a busy key.")
RUNS_PARKED = MetricName("agentflow.runs.parked", _GAUGE, "{run}", "Runs that wait for a retry, and for nothing else.")
RUNS_SLEEPING = MetricName("agentflow.runs.sleeping", _GAUGE, "{run}", "Runs that sleep, or wait for a signal.")
MAILBOX_DEPTH = MetricName(
    "agentflow.mailbox.depth", _GAUGE, "{record}", "Records that were read and not admitted yet."
)
SOURCE_PAUSED = MetricName("agentflow.source.paused", _GAUGE, "1", "1 while a limit lets nothing more be read.")
LAG = MetricName("agentflow.lag", _GAUGE, "{record}", "Records of a partition that are not read yet.")
CHECKPOINT_ID = MetricName("agentflow.checkpoint.id", _GAUGE, "1", "Number of the last completed checkpoint.")
CHECKPOINT_DURATION = MetricName("agentflow.checkpoint.duration", _GAUGE, "s", "How long the last one took.")
CHECKPOINT_SIZE = MetricName("agentflow.checkpoint.size", _GAUGE, "By", "Bytes of state in the last one.")
CHECKPOINT_AGE = MetricName("agentflow.checkpoint.age", _GAUGE, "s", "Time since the last one.")
RESTORE_DURATION = MetricName(
    "agentflow.restore.duration", _GAUGE, "s", "How long the last start took to restore state."
)
STATE_SIZE = MetricName("agentflow.keyed_state.size", _GAUGE, "By", "Bytes of keyed state, by part.")
LOOP_LAG = MetricName("agentflow.loop.lag", _GAUGE, "s", "How late the event loop's turns come.")
METRIC_OVERFLOWS = MetricName(
    "agentflow.metrics.overflows",
    _COUNTER,
    "{metric}",
    "Metrics with more sets of attributes than metrics.cardinality-max.",
)

REQUESTS = MetricName(
    "agentflow.requests",
    _COUNTER,
    "{request}",
    "Requests of callers that were answered, by outcome: completed, failed.",
)
REQUESTS_OPEN = MetricName("agentflow.requests.open", _GAUGE, "{request}", "Requests that are not answered.")
REQUESTS_WAITING = MetricName(
    "agentflow.requests.waiting", _GAUGE, "{request}", "Callers that wait until there is room for their request."
)
EVENT_LOG_RECORDS = MetricName(
    "agentflow.event_log.records",
    _COUNTER,
    "{record}",
    "Records of the event log by target and outcome: written, dropped (no room in the buffer), failed (refused).",
)
EVENT_LOG_TRUNCATIONS = MetricName(
    "agentflow.event_log.truncations", _COUNTER, "{value}", "Values of which the event log left something out."
)
LISTENER_FAILURES = MetricName(
    "agentflow.event_log.listener.failures", _COUNTER, "{call}", "Calls of event listeners that raised."
)
STREAM_CHUNKS = MetricName(
    "agentflow.stream.chunks",
    _COUNTER,
    "{chunk}",
    "Chunks of streams for the topic by outcome: written, dropped (no room in the buffer), failed (refused).",
)
SPANS_DROPPED = MetricName(
    "agentflow.spans.dropped",
    _COUNTER,
    "{span}",
    "Spans that found the exporter's queue full (its collector is slow, or away), or that cannot be encoded.",
)

LLM_CALLS = MetricName("agentflow.llm.calls", _COUNTER, "{call}", "Calls of models that ended, by error.")
LLM_RETRIES = MetricName(
    "agentflow.llm.retries",
    _COUNTER,
    "{call}",
    "Those that were made again, after one that failed.",
    "action.<name>.model.<connection>.retryCount",
)
LLM_CALLS_SAVED = MetricName(
    "agentflow.llm.calls.saved", _COUNTER, "{call}", "Calls that the journal answered instead of the model."
)
LLM_TOKENS = MetricName(
    "agentflow.llm.tokens",
    _COUNTER,
    "{token}",
    "Tokens by `token.type`: input, output; cached (of the input), reasoning (of the output).",
    "action.<name>.model.<model>.promptTokens, action.<name>.model.<model>.completionTokens",
)
LLM_COST = MetricName("agentflow.llm.cost", _COUNTER, "{price}", "What calls cost, by the price table `chat.prices`.")
LIMITER_WAIT = MetricName(
    "agentflow.limiter.wait.duration", _HISTOGRAM, "s", "How long calls of models waited for limits of rates."
)
TOOL_CALLS = MetricName("agentflow.tool.calls", _COUNTER, "{call}", "Calls of tools that ended, by error.")
TOOL_DURATION = MetricName("agentflow.tool.duration", _HISTOGRAM, "s", "How long calls of tools took, by error.")
GATE_ACTIVE = MetricName("agentflow.gate.active", _GAUGE, "{call}", "Calls of a connection that are on their way.")
GATE_WAITING = MetricName("agentflow.gate.waiting", _GAUGE, "{call}", "Calls that wait for limits of rates.")
CIRCUIT_OPEN = MetricName(
    "agentflow.gate.circuit.open", _GAUGE, "1", "1 while calls are kept from a connection that has failed."
)
RESOURCES = MetricName(
    "agentflow.resources", _GAUGE, "1", "1 for each resource that was asked for; its `state` says how it is doing."
)

METRICS = tuple(one for one in list(globals().values()) if isinstance(one, MetricName))
"""All of them, in the order of the documentation."""
USER_PREFIX = "agentflow.user."
"""Of the names of metrics that actions keep."""

# -- spans
RUN_SPAN, ACTION_SPAN, STEP_SPAN = "run", "action", "step"
"""Spans are named by these and by what it is: ``run ReviewAgent``, ``action score``, ``step shop.charge``; calls of models and tools
as OpenTelemetry says: ``chat gpt-4o``, ``execute_tool find_orders``."""
AGENT_NAME = "agentflow.agent.name"
RUN_ID = "agentflow.run.id"
KEY_HASH = "agentflow.key.hash"
"""The key itself may be a person's; the hash is the same for every run of the key."""
RUN_OUTCOME = "agentflow.run.outcome"
"""Of a run that did not complete: one of these."""
DEAD_LETTER, FAILED, CANCELLED = "dead-letter", "failed", "cancelled"
REJECTED = "rejected"
"""The record never became a run."""
ACTION_NAME = "agentflow.action.name"
ACTION_OUTCOME = "agentflow.action.outcome"
"""cancelled; of an attempt that answered it is the span's status."""
TASK_PATH = "agentflow.task.path"
ATTEMPT = "agentflow.attempt"
STEP_NAME = "agentflow.step.name"
STEP_PATH = "agentflow.step.path"
STEP_CALL = "agentflow.step.call"
"""Number of the call of the step: above 1 it is called again after an error."""
ERROR_TYPE = "error.type"
RESUMED = "agentflow.resumed"
"""Event of an attempt that began again: its process had died, or it had slept. Its steps so far are answered, and are no spans."""
STEPS_RECORDED = "agentflow.steps.recorded"
LINK = "agentflow.link"
"""Of a link: what it leads to."""
PREVIOUS_ATTEMPT, LAST_STEP = "previous attempt", "last step before it began again"
RESOURCE_NAME = "agentflow.resource.name"
PROMPT_DIGEST = "agentflow.prompt.digest"
CALL_ATTEMPT = "agentflow.call.attempt"
LIMIT_WAIT = "agentflow.limit.wait_s"
CALL_COST = "agentflow.cost"
USAGE_CALLS, USAGE_COST = "agentflow.usage.model_calls", "agentflow.usage.cost"
USAGE_INPUT, USAGE_OUTPUT = "agentflow.usage.input_tokens", "agentflow.usage.output_tokens"
"""Of an attempt: the sum over its calls of models. Not ``gen_ai.usage.…``: backends would count twice."""

# -- OpenTelemetry's semantic conventions for generative AI
CHAT, EXECUTE_TOOL, INVOKE_AGENT = "chat", "execute_tool", "invoke_agent"
GEN_AI_OPERATION, GEN_AI_PROVIDER, GEN_AI_AGENT = "gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.agent.name"
GEN_AI_REQUEST_MODEL, GEN_AI_RESPONSE_MODEL = "gen_ai.request.model", "gen_ai.response.model"
GEN_AI_RESPONSE_ID, GEN_AI_FINISH_REASONS = "gen_ai.response.id", "gen_ai.response.finish_reasons"
GEN_AI_OUTPUT_TYPE, GEN_AI_STREAM = "gen_ai.output.type", "gen_ai.request.stream"
GEN_AI_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
GEN_AI_INPUT_TOKENS, GEN_AI_OUTPUT_TOKENS = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
GEN_AI_CACHE_READ, GEN_AI_REASONING = "gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.reasoning.output_tokens"
GEN_AI_TOKEN_TYPE = "gen_ai.token.type"  # noqa: S105 (no password)
GEN_AI_TOOL_NAME, GEN_AI_TOOL_TYPE, GEN_AI_TOOL_ID = "gen_ai.tool.name", "gen_ai.tool.type", "gen_ai.tool.call.id"
SERVER_ADDRESS, SERVER_PORT = "server.address", "server.port"
GEN_AI_DETAILS = "gen_ai.client.inference.operation.details"
"""Event that carries what was said."""
GEN_AI_CONTENT: Final = {
    "system_instructions": "gen_ai.system_instructions",
    "input_messages": "gen_ai.input.messages",
    "output_messages": "gen_ai.output.messages",
    "tool_definitions": "gen_ai.tool.definitions",
    "arguments": "gen_ai.tool.call.arguments",
    "result": "gen_ai.tool.call.result",
}
"""What was said, by its name in a report (`agentflow.actions.call_reports`)."""
_OPTIONS: Final = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "seed": "gen_ai.request.seed",
    "stop_sequences": "gen_ai.request.stop_sequences",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "choice_count": "gen_ai.request.choice.count",
}
GEN_AI_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
GEN_AI_TOKENS = tuple(4**power for power in range(14))
"""Upper bounds of the buckets of durations and of tokens, as the conventions say."""


class GenAiConvention(msgspec.Struct, frozen=True):
    """What differs between versions of the conventions.

    Attributes:
        duration: How long calls of models took.
        first_chunk: How long they took to the first piece of the answer.
        tokens_per_call: Type of tokens (input, output) → how many a call has used; one metric, or one for each.
        tokens: Type → how many were used in total; empty: the conventions have no such metric.
        cache_write: Attribute of tokens that were written to the provider's cache.
        options: Name of an option in reports → its attribute.
    """

    duration: MetricName
    first_chunk: MetricName
    tokens_per_call: Mapping[str, MetricName]
    tokens: Mapping[str, MetricName]
    cache_write: str
    options: Mapping[str, str]


def _seconds_of(name: str, description: str) -> MetricName:
    return MetricName(name, _HISTOGRAM, "s", description)


def _tokens_of(name: str, description: str, kind: MetricKind = _HISTOGRAM) -> MetricName:
    return MetricName(name, kind, "{token}", description)


_TOKEN_USAGE = _tokens_of("gen_ai.client.token.usage", "Number of input and output tokens used.")
_LATEST = "gen_ai.client.inference."
GEN_AI_1_41 = GenAiConvention(
    _seconds_of("gen_ai.client.operation.duration", "GenAI operation duration."),
    _seconds_of("gen_ai.client.operation.time_to_first_chunk", "Time to receive the first chunk."),
    {"input": _TOKEN_USAGE, "output": _TOKEN_USAGE},
    {},
    "gen_ai.usage.cache_creation.input_tokens",
    _OPTIONS,
)
"""Version 1.41.1, the last one in OpenTelemetry's own repository: what tools read today."""
GEN_AI_LATEST = GenAiConvention(
    _seconds_of(f"{_LATEST}duration", "GenAI inference duration."),
    _seconds_of(f"{_LATEST}time_to_first_chunk", "Time to receive the first chunk."),
    {
        "input": _tokens_of(f"{_LATEST}operation.input_tokens", "Input tokens of an operation."),
        "output": _tokens_of(f"{_LATEST}operation.output_tokens", "Output tokens of an operation."),
    },
    {
        "input": _tokens_of(f"{_LATEST}usage.input_tokens", "Input tokens, cached ones included.", _COUNTER),
        "output": _tokens_of(f"{_LATEST}usage.output_tokens", "Output tokens, reasoning included.", _COUNTER),
        "cached": _tokens_of(f"{_LATEST}usage.cache_read.input_tokens", "Tokens read from a cache.", _COUNTER),
        "cache_write": _tokens_of(f"{_LATEST}usage.cache_write.input_tokens", "Tokens written to a cache.", _COUNTER),
        "reasoning": _tokens_of(f"{_LATEST}usage.reasoning.output_tokens", "Tokens of reasoning.", _COUNTER),
    },
    "gen_ai.usage.cache_write.input_tokens",
    {**_OPTIONS, "reasoning_level": "gen_ai.request.reasoning.level"},
)
"""The repository of the conventions for generative AI, which renames; nothing of it is stable yet."""


def gen_ai_convention(opt_in: str | None) -> GenAiConvention:
    """Return the convention that ``OTEL_SEMCONV_STABILITY_OPT_IN`` asks for: a list of names, with commas."""
    names = {name.strip() for name in (opt_in or "").split(",")}
    return GEN_AI_LATEST if "gen_ai_latest_experimental" in names else GEN_AI_1_41

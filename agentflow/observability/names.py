"""Every name that metrics and spans carry, in one place.

Units are UCUM. Prometheus shows ``agentflow.records.in`` as ``agentflow_records_in_total``, and writes units out:
``agentflow.checkpoint.duration`` in ``s`` is ``agentflow_checkpoint_duration_seconds``.
"""

from __future__ import annotations

import enum

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

RECORDS_IN = MetricName("agentflow.records.in", _COUNTER, "{record}", "Records read, rejected ones included.")
RECORDS_OUT = MetricName("agentflow.records.out", _COUNTER, "{record}", "Outputs given to the sink.")
DEAD_LETTERS = MetricName("agentflow.dead_letters", _COUNTER, "{record}", "Records given to the dead-letter sink.")
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

METRICS = tuple(one for one in list(globals().values()) if isinstance(one, MetricName))
"""All of them, in the order of the documentation."""
USER_PREFIX = "agentflow.user."
"""Of the names of metrics that actions keep."""

# -- spans
RUN_SPAN, ACTION_SPAN, STEP_SPAN = "run", "action", "step"
"""Spans are named by these and by what it is: ``run ReviewAgent``, ``action score``, ``step shop.charge``."""
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

"""The event log as a part of a job's telemetry: its targets are chosen here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from agentflow.plan.plan import AgentPlan
from agentflow.runtime.ports import Observer, RecordTarget
from agentflow.runtime.settings import JobSettings

if TYPE_CHECKING:
    from agentflow.observability.event_log import EventLog

EventListener = Callable[[dict[str, Any]], object]
"""Called with each record of the event log, redacted, in a thread of its own, in order."""


class EventLogPart:
    """Makes the observers that write the event log."""

    def __init__(self, event_log: EventLog) -> None:
        self.event_log = event_log

    def observer(self, plan: AgentPlan, subtask: int, index: int, incarnation: str) -> Observer:  # noqa: ARG002 (one signature)
        """Return what writes of an agent."""
        return self.event_log.observer(plan.name, subtask, incarnation)

    async def close(self) -> None:
        """Write what is left."""
        await self.event_log.close()


def event_log_part(settings: JobSettings, listeners: Sequence[EventListener] = ()) -> EventLogPart | None:
    """Return the event log that a job's settings ask for, or its listeners need; None: none.

    Raises:
        ConfigError: The rules of redaction cannot be read.
        NotConfigured: A target needs an extra that is not installed.
    """
    log = settings.event_log
    if not log.is_on and not listeners:
        return None
    from agentflow.observability.event_log import EventLog
    from agentflow.runtime.redaction import Redaction

    targets = [_target(name, settings) for name in dict.fromkeys(log.target)] if log.is_on else []
    return EventLogPart(EventLog(log, Redaction(settings.redaction), targets, listeners))


def _target(name: str, settings: JobSettings) -> RecordTarget:
    log = settings.event_log
    if name == "kafka":
        from agentflow.connectors.kafka.event_log import KafkaEventLog

        return KafkaEventLog(settings.kafka, settings.topics, log.kafka.topic or f"{settings.job}-event-log")
    if name == "file":
        from agentflow.observability.event_log_files import LogFiles

        return LogFiles(settings.job, log)
    from agentflow.observability.event_log_targets import OtelLogs, StdoutLines

    return StdoutLines() if name == "stdout" else OtelLogs(settings.job, settings.otlp.endpoint)

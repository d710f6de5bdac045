"""The event log as a part of a job's telemetry: its targets are chosen here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentflow.plan.plan import AgentPlan
from agentflow.runtime.ports import Observer, RecordTarget
from agentflow.runtime.settings import JobSettings

if TYPE_CHECKING:
    from agentflow.observability.event_log import EventLog


class EventLogPart:
    """Makes the observers that write the event log."""

    def __init__(self, event_log: EventLog) -> None:
        self.event_log = event_log

    def observer(self, plan: AgentPlan, subtask: int, index: int, incarnation: str) -> Observer:  # noqa: ARG002 (one signature)
        """Return what writes of an agent."""
        return self.event_log.observer(plan.name, subtask)

    async def close(self) -> None:
        """Write what is left."""
        await self.event_log.close()


def event_log_part(settings: JobSettings) -> EventLogPart | None:
    """Return the event log that a job's settings ask for; None: none.

    Raises:
        ConfigError: The rules of redaction cannot be read.
    """
    if all(
        level in (None, "off")
        for level in (settings.event_log.level, *(one.level for one in settings.event_log.type.values()))
    ):
        return None
    from agentflow.observability.event_log import EventLog
    from agentflow.runtime.redaction import Redaction

    return EventLogPart(EventLog(settings.event_log, Redaction(settings.redaction), _targets(settings)))


def _targets(settings: JobSettings) -> list[RecordTarget]:
    from agentflow.observability.event_log_files import LogFiles

    return [LogFiles(settings.job, settings.event_log)]

"""What looks at a job: event log, metrics, traces, as its settings say. One per process; subtasks come and go under it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from agentflow.environment.event_log import EventListener, EventLogPart, event_log_part
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.ports import Observer
from agentflow.runtime.settings import JobSettings

Observers = Callable[[AgentPlan, int, str], Sequence[Observer]]
"""Makes the observers of an agent: its plan, its place in the chain, the incarnation of the job's state."""


class Part(Protocol):
    """One way to look at a job."""

    def observer(self, plan: AgentPlan, subtask: int, index: int, incarnation: str) -> Observer | None:
        """Return what looks at an agent in a life of its subtask; None: nothing."""
        ...

    async def close(self) -> None:
        """Write what is left, and give everything back."""
        ...


class Telemetry:
    """The parts that a job's settings ask for; made on the loop. A job without any costs nothing.

    Args:
        settings: The job's settings.
        listeners: Functions that are called with each record of the event log.
    """

    def __init__(self, settings: JobSettings, listeners: Sequence[EventListener] = ()) -> None:
        self._parts: list[Part] = _parts(settings, listeners)

    def observers(self, subtask: int) -> Observers:
        """Return what makes the observers of a subtask's agents."""
        parts = self._parts

        def make(plan: AgentPlan, index: int, incarnation: str) -> list[Observer]:
            made = [part.observer(plan, subtask, index, incarnation) for part in parts]
            return [observer for observer in made if observer is not None]

        return make

    @property
    def event_log(self) -> EventLogPart | None:
        """The event log; None: there is none."""
        return next((part for part in self._parts if isinstance(part, EventLogPart)), None)

    async def close(self) -> None:
        """Close the parts, last one first."""
        for part in reversed(self._parts):
            await part.close()


def _parts(settings: JobSettings, listeners: Sequence[EventListener]) -> list[Part]:
    parts: list[Part] = []
    if (event_log := event_log_part(settings, listeners)) is not None:
        parts.append(event_log)
    return parts

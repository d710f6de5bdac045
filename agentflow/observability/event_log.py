"""The event log: a record for each event of a run, and for what becomes of its tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agentflow.core.effects import TakeSnapshot
from agentflow.observability.event_log_buffer import BufferedTarget, Chunk, TargetCounts, Tell
from agentflow.observability.event_log_executions import ExecutionLines
from agentflow.observability.event_log_levels import EventLogLevel, Selection
from agentflow.observability.event_log_lines import Entry, EventLines, Rules
from agentflow.observability.event_log_targets import EventListener, Listeners
from agentflow.observability.event_log_values import Truncation
from agentflow.observability.logs import log_event
from agentflow.runtime.ports import RecordTarget
from agentflow.runtime.redaction import Redaction
from agentflow.runtime.settings import EventLogSettings

if TYPE_CHECKING:
    from agentflow.runtime.observation import Turn


_TOLD_EVERY_MS = 10_000


class EventLogObserver:
    """Writes what happens to one operator.

    Attributes:
        wants_progress: Whether it wants to know soon what has begun.
        wants_times: Whether it wants to know when attempts have begun and ended.
        failures: Turns of which nothing could be written; a bug of ours, and no reason to stop a job.
    """

    def __init__(
        self, agent: str, incarnation: str, subtask: int, rules: Rules, targets: Sequence[BufferedTarget], tell: Tell
    ) -> None:
        self.wants_progress = self.wants_times = rules.has_trace
        self._subtask = subtask
        self._targets = targets
        self._has_trace = rules.has_trace
        self._lines = EventLines(agent, incarnation, rules)
        self._executions = ExecutionLines(agent, rules, self._lines)
        self._tell = tell
        self.failures = 0
        self._told_next_ms = 0

    def wants_reports(self, task: object) -> bool:  # noqa: ARG002 (the signature)
        """Whether executions are told."""
        return self._has_trace

    def observe(self, turn: Turn, now_ms: int) -> None:
        """Write the records of a turn."""
        lines = self._lines
        try:
            lines.begin(turn, now_ms)
            if self._has_trace:
                others: Sequence[Entry] = turn.answers
                lines.add_records(turn.records, ())
            else:
                others = lines.add_answers(lines.add_records(turn.records, turn.answers))
            if others or turn.notes or turn.left or turn.started or turn.steps:
                self._executions.add(turn, others)
        except Exception as error:  # noqa: BLE001 (an edge: the job goes on, whatever telemetry does)
            lines.take()
            self.failures += 1
            if now_ms >= self._told_next_ms:
                self._told_next_ms = now_ms + _TOLD_EVERY_MS
                fields = {"error": f"{type(error).__name__}: {error}", "turns_lost": self.failures}
                self._tell("event log failed", fields)
            return
        if lines.records:
            chunk = Chunk(self._subtask, *lines.take())
            for target in self._targets:
                target.add(chunk)
        for note in turn.notes:
            if type(note) is TakeSnapshot:
                for target in self._targets:
                    target.flush()


class EventLog:
    """The event log of a process; operators come and go under it.

    Attributes:
        listeners: Functions of the user; None: there are none.

    Args:
        settings: What is written. Where everything is off, listeners are told at level standard.
        redaction: What must not be seen.
        targets: Where to.
        listeners: Called with each record.
        tell: Told of records that are lost, and of listeners that fail.
    """

    def __init__(
        self,
        settings: EventLogSettings,
        redaction: Redaction,
        targets: Sequence[RecordTarget],
        listeners: Sequence[EventListener] = (),
        tell: Tell | None = None,
    ) -> None:
        self._tell = tell or _tell_in_log
        self.listeners = Listeners(listeners, self._tell) if listeners else None
        interval_s = settings.flush_interval_ms / 1000
        every: list[RecordTarget] = [*targets, *([self.listeners] if self.listeners is not None else [])]
        self._targets = [BufferedTarget(one, settings.buffer_bytes, interval_s, self._tell) for one in every]
        default = EventLogLevel(settings.level if settings.is_on else "standard")
        self._truncation = Truncation(settings.standard)
        self._rules = Rules(Selection(settings, default), redaction, self._truncation, settings.trace.enabled)

    @property
    def counts(self) -> Mapping[str, TargetCounts]:
        """What became of the records, by target."""
        return {target.name: target.counts for target in self._targets}

    def record_counts(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Iterate over these counts with their attributes, for metrics; from any thread."""
        for target, counts in self.counts.items():
            for outcome in counts.__struct_fields__:
                yield getattr(counts, outcome), {"target": target, "outcome": outcome}

    def listener_failures(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Iterate over how often event listeners have raised; from any thread."""
        if self.listeners is not None:
            for name, failures in list(self.listeners.failures.items()):
                yield failures, {"listener": name}

    @property
    def truncated(self) -> int:
        """Values of which something was left out."""
        return self._truncation.omissions

    def observer(self, agent: str, subtask: int, incarnation: str) -> EventLogObserver:
        """Return what observes an operator; ``incarnation`` is that of the job's state."""
        return EventLogObserver(agent, incarnation, subtask, self._rules, self._targets, self._tell)

    async def close(self) -> None:
        """Give the targets what is left."""
        await asyncio.gather(*(asyncio.to_thread(target.close) for target in self._targets))


def _tell_in_log(what: str, fields: dict[str, Any]) -> None:
    log_event(what, "warning", **fields)

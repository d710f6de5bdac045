"""What the tests of the event log share: a job whose event log is read back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agentflow import Agent
from agentflow.api.codecs import Codec
from agentflow.connectors.collections import CollectionSink, CollectionSource
from agentflow.environment.openers import signals_opener
from agentflow.environment.telemetry import Telemetry
from agentflow.errors import JobFailed
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.job import Job
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.settings import (
    EventLogSettings,
    EventTraceSettings,
    JobSettings,
    RedactionSettings,
)
from agentflow.state.memory import MemoryKeyedState, MemoryStorage


class EncodedSource(CollectionSource):
    """Values as they are: bytes in a codec."""

    def __init__(self, values: Sequence[bytes], codec: Codec) -> None:
        super().__init__(())
        self._values = list(values)
        self.codec = codec


class World:
    """A job that runs once or more over the same state, and its event log."""

    def __init__(self, directory: Path, *agents: Agent, trace: bool = False, **options: Any) -> None:
        redaction = options.pop("redaction", RedactionSettings())
        rest = options.pop("settings", {})
        options = {"level": "standard", "flush_interval_ms": 5, **options}
        log = EventLogSettings(dir=str(directory / "logs"), trace=EventTraceSettings(enabled=trace), **options)
        self.directory = directory / "logs"
        self.settings = JobSettings(job="test", event_log=log, redaction=redaction, **rest)
        self.agents = agents
        self.storage = MemoryStorage()
        self.outputs: list[Any] = []
        self.dead: list[Any] = []
        self.told: list[str] = []

    def run(
        self,
        values: Sequence[Any],
        *,
        key: str = "k",
        act: Callable[[Job], Any] | None = None,
        dead_letters: bool = True,
        codec: Codec | None = None,
    ) -> list[dict[str, Any]]:
        """Run the job over values to its end, and return the records of the event log so far."""

        async def run() -> None:
            telemetry = Telemetry(self.settings)
            sink, dead = CollectionSink(), CollectionSink()
            source = CollectionSource(values) if codec is None else EncodedSource(values, codec)
            stages = tuple(
                AgentStage(AgentPlan.from_agent(agent), key if not place else "k")
                for place, agent in enumerate(self.agents)
            )
            spec = JobSpec(
                self.settings,
                stages,
                lambda: source,
                lambda: {"sink": sink, "dead-letter": dead} if dead_letters else {"sink": sink},
                lambda: MemoryKeyedState(self.storage),
                open_signals=signals_opener(self.settings),
                observers=telemetry.observers(0),
                on_end=telemetry.close,
            )
            started = asyncio.Event()
            job = Job(spec, on_event=lambda name, fields: started.set())
            running = asyncio.ensure_future(job.run())
            if act is not None:
                await started.wait()
                await act(job)
            try:
                await running
            except JobFailed as error:
                self.told.append(str(error))
            self.outputs, self.dead = sink.values, dead.values

        asyncio.run(run())
        return self.records()

    def lines(self) -> list[bytes]:
        """Return the lines of all files, in order."""
        return [line for path in self.files() for line in path.read_bytes().splitlines()]

    def files(self) -> list[Path]:
        """Return the files, in order."""
        return sorted(self.directory.glob("*")) if self.directory.exists() else []

    def records(self) -> list[dict[str, Any]]:
        """Return the records, in order."""
        return [msgspec.json.decode(line) for line in self.lines()]


def of_type(records: Sequence[Mapping[str, Any]], event_type: str) -> list[Mapping[str, Any]]:
    """Return the records of a type."""
    return [record for record in records if record["eventType"] == event_type]


def brief(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return (event id, type) of records."""
    return [(record["eventId"], record["eventType"]) for record in records]

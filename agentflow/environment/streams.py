"""Jobs in code: an environment, a source, a key, agents, a sink.

```
env = AgentsExecutionEnvironment.get_execution_environment()
results = env.from_list([...]).key_by("product_id").apply(ReviewAgent()).to_list()
env.execute()
```
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agentflow.api.agent import Agent
from agentflow.api.options import Configuration
from agentflow.connectors.collections import CollectionSink, CollectionSource
from agentflow.environment.openers import new_event_loop, signals_opener, state_opener
from agentflow.environment.telemetry import Telemetry
from agentflow.errors import PlanError
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.codecs import KeyBy
from agentflow.runtime.collection import rare_collections
from agentflow.runtime.job import AgentStage, Job, JobSpec, JobStatus
from agentflow.runtime.ports import Sink, Source
from agentflow.runtime.settings import JobSettings


class AgentsExecutionEnvironment:
    """Builds one job and runs it.

    Args:
        settings: Settings of the job; by default state is in memory.
        config: Options for the agents (`ctx.config`).
    """

    def __init__(self, settings: JobSettings | None = None, config: Mapping[str, Any] | None = None) -> None:
        self.settings = settings or JobSettings()
        self.config = Configuration(config)
        self._stream: RecordStream | None = None

    @classmethod
    def get_execution_environment(
        cls, settings: JobSettings | None = None, *, config: Mapping[str, Any] | None = None
    ) -> AgentsExecutionEnvironment:
        """Return an embedded environment."""
        return cls(settings, config)

    def from_list(self, values: Iterable[object]) -> RecordStream:
        """Read values from a collection; they are encoded now, so later changes of them change nothing."""
        source = CollectionSource(values)
        return self.from_source(lambda: source)

    def from_source(self, source: Source | Callable[[], Source]) -> RecordStream:
        """Read from a source, or from what a function makes at each start."""
        if self._stream is not None:
            msg = "an environment runs one job, and this one has a source already; make another environment"
            raise RuntimeError(msg)
        self._stream = RecordStream(self, source if callable(source) else lambda: source)
        return self._stream

    def job(self) -> Job:
        """Return the job that was built, for a running event loop: ``await env.job().run()``.

        Raises:
            PlanError: With everything that is missing or wrong.
        """
        problems = []
        stream = self._stream
        if stream is None:
            raise PlanError(["the job has no source: call from_list or from_source"])
        if not stream.stages:
            problems.append("the job has no agent: call .key_by(...).apply(agent)")
        if stream.open_sink is None:
            problems.append("the job has no sink: call .to_list() or .to_sink(sink)")
        if problems or stream.open_sink is None:
            raise PlanError(problems)
        open_sink, open_dead = stream.open_sink, stream.open_dead_letter

        def open_sinks() -> Mapping[str, Sink]:
            return {"sink": open_sink()} if open_dead is None else {"sink": open_sink(), "dead-letter": open_dead()}

        telemetry = Telemetry(self.settings)
        job = Job(
            JobSpec(
                self.settings,
                tuple(stream.stages),
                stream.open_source,
                open_sinks,
                state_opener(self.settings),
                open_signals=signals_opener(self.settings),
                observers=telemetry.observers(0),
                metrics=telemetry.registry,
                on_end=telemetry.close,
            )
        )
        telemetry.watch(job)
        return job

    def execute(self) -> JobStatus:
        """Run the job to the end of its input and return its totals; not inside a running event loop.

        Raises:
            AgentflowError: The job failed.
        """

        async def run() -> JobStatus:
            return await self.job().run()

        with rare_collections(), asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(run())


class RecordStream:
    """The job as it is built: source, then key and agent, perhaps again, then sink. Every method returns it for chaining."""

    def __init__(self, environment: AgentsExecutionEnvironment, open_source: Callable[[], Source]) -> None:
        self._environment = environment
        self._key_by: KeyBy | None = None
        self.open_source = open_source
        self.stages: list[AgentStage] = []
        self.open_sink: Callable[[], Sink] | None = None
        self.open_dead_letter: Callable[[], Sink] | None = None

    def key_by(self, key: KeyBy) -> RecordStream:
        """Group what follows by a field of the value (dots for nested ones) or by a function of the decoded value."""
        self._key_by = key
        return self

    def apply(self, agent: Agent) -> RecordStream:
        """Run an agent over each key. A second agent gets the outputs of the first; without a new `key_by` the same key rule.

        Raises:
            PlanError: The agent cannot be compiled, or there is no key.
        """
        if self._key_by is None:
            raise PlanError(
                [f"agent '{agent.name}' needs a key: call .key_by('field') or .key_by(function) before apply"]
            )
        self.stages.append(AgentStage(AgentPlan.from_agent(agent, self._environment.config), self._key_by))
        return self

    def to_list(self) -> list[Any]:
        """Collect outputs in a list, which is filled while `execute` runs, checkpoint by checkpoint."""
        sink = CollectionSink()
        self.open_sink = lambda: sink
        return sink.values

    def to_sink(self, sink: Sink | Callable[[], Sink]) -> RecordStream:
        """Give outputs to a sink, or to what a function makes at each start."""
        self.open_sink = sink if callable(sink) else lambda: sink
        return self

    def dead_letters_to(self, sink: Sink | Callable[[], Sink]) -> RecordStream:
        """Give records whose run failed to a sink."""
        self.open_dead_letter = sink if callable(sink) else lambda: sink
        return self

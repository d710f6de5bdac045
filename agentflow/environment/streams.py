"""Jobs in code: an environment, a source, a key, agents, a sink.

```
env = AgentsExecutionEnvironment.get_execution_environment()
results = env.from_list([...]).key_by("product_id").apply(ReviewAgent()).to_list()
env.execute()
```
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

from agentflow.api.agent import Agent
from agentflow.api.options import Configuration
from agentflow.api.outputs import OutputRecord
from agentflow.api.resources import ResourceDescriptor, ResourceType
from agentflow.api.tools import as_resource
from agentflow.connectors.collections import CollectionSink, CollectionSource
from agentflow.connectors.function_sink import FunctionSink
from agentflow.connectors.function_source import FunctionSource
from agentflow.environment.event_log import EventListener
from agentflow.environment.openers import new_event_loop, signals_opener, state_opener
from agentflow.environment.savepoints import savepoint_writer
from agentflow.environment.telemetry import Telemetry
from agentflow.errors import PlanError
from agentflow.plan.plan import AgentPlan
from agentflow.plan.problems import nearest
from agentflow.runtime.codecs import KeyBy
from agentflow.runtime.collection import rare_collections
from agentflow.runtime.job import Job
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.job_status import JobStatus
from agentflow.runtime.ports import Sink, Source
from agentflow.runtime.settings import JobSettings

if TYPE_CHECKING:
    from agentflow.connectors.tables import TableResult


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
        self._listeners: list[EventListener] = []
        self.resources: list[tuple[str, ResourceType, Any]] = []
        self._yaml_agents: dict[str, Agent] = {}

    @classmethod
    def get_execution_environment(
        cls, settings: JobSettings | None = None, *, config: Mapping[str, Any] | None = None
    ) -> AgentsExecutionEnvironment:
        """Return an embedded environment."""
        return cls(settings, config)

    def add_resource(
        self, name: str, resource_type: ResourceType, instance: ResourceDescriptor | object
    ) -> AgentsExecutionEnvironment:
        """Add a resource for all agents of this environment that have none of this name and type. Returns this environment."""
        self.resources.append((name, resource_type, as_resource(name, resource_type, instance)))
        return self

    def load_yaml(self, paths: str | PathLike[str] | Sequence[str | PathLike[str]]) -> AgentsExecutionEnvironment:
        """Take in YAML documents: their agents by name, for `apply`, and what they share, as `add_resource` does. Returns this environment.

        Keys of a job beside the agents (``source``, ``sink``, …) are passed over.

        Raises:
            JobFileError: With all problems, each with its line.
        """
        from agentflow.environment.yaml_agents import load_agents  # YAML, which jobs in code need not have

        files = [paths] if isinstance(paths, (str, PathLike)) else paths
        known = {(kind, name) for name, kind, _ in self.resources}
        loaded = load_agents(*files, resources=self.resources)
        twice = [f"agent '{name}'" for name in loaded.agents if name in self._yaml_agents]
        twice += [f"{kind} '{name}'" for name, kind, _ in loaded.resources if (kind, name) in known]
        if twice:
            raise PlanError([f"{', '.join(map(str, files))}: there is the {one} already" for one in twice])
        self._yaml_agents |= loaded.agents
        self.resources += loaded.resources
        return self

    def agent(self, name: str) -> Agent:
        """Return an agent of the documents that were loaded.

        Raises:
            PlanError: There is none of that name.
        """
        if name not in self._yaml_agents:
            near = nearest(name, self._yaml_agents)
            known = ", ".join(self._yaml_agents)
            hint = f"did you mean '{near}'?" if near else f"there are: {known}" if known else "call load_yaml first"
            raise PlanError([f"no YAML agent is called '{name}': {hint}"])
        return self._yaml_agents[name]

    def from_list(self, values: Iterable[object]) -> RecordStream:
        """Read values from a collection; they are encoded now, so later changes of them change nothing."""
        source = CollectionSource(values)
        return self.from_source(lambda: source)

    def from_http(self, host: str = "127.0.0.1", port: int = 8080, path: str = "/records") -> RecordStream:
        """Take records by POST, each answered when it is durable (extra ``http``); the job runs until it is stopped."""
        from agentflow.connectors.http_source import HttpSource

        return self.from_source(HttpSource(host, port, path))

    def from_table(self, table: object) -> RecordStream:
        """Read the rows of a table: `pyarrow.Table`, `RecordBatch`, `RecordBatchReader`, or what has the Arrow stream interface.

        DataFrames of pandas and polars and relations of DuckDB do. It is not copied where that can be avoided: leave it as it is until the
        job has ended. What can be read once only (a reader) is read into memory now, so that the job can go back in it; where the job's
        guarantee is ``none``, it is read batch by batch.

        Raises:
            NotConfigured: The package pyarrow is missing: ``pip install 'agentflow[arrow]'``.
            TypeError: It is no table.
        """
        from agentflow.connectors.tables import TableSource  # 0.1 s that jobs without tables do not pay

        source = TableSource(table, is_streamed=self.settings.guarantee == "none")
        return self.from_source(lambda: source)

    def from_async_iterable(
        self, values: AsyncIterable[Any] | Callable[..., Any], *, name: str = "python"
    ) -> RecordStream:
        """Read what an async iterable yields, or a function that returns one, such as an async generator function.

        A function with a parameter ``position`` yields values with positions, ``yield value, position``, and is called with the last one
        of the last checkpoint, None at first: such a job can be exactly-once. Anything else cannot be read twice: ``guarantee="none"``.

        Args:
            values: The iterable or function.
            name: Name of the source in positions and run ids.

        Raises:
            TypeError: It is neither.
        """
        source = FunctionSource(values, name=name)
        return self.from_source(lambda: source)

    def from_source(self, source: Source | Callable[[], Source]) -> RecordStream:
        """Read from a source, or from what a function makes at each start."""
        if self._stream is not None:
            msg = "an environment runs one job, and this one has a source already; make another environment"
            raise RuntimeError(msg)
        self._stream = RecordStream(self, source if callable(source) else lambda: source)
        return self._stream

    def add_event_listener(self, listener: EventListener) -> AgentsExecutionEnvironment:
        """Call a function with each record of the event log: a dict, redacted, its own to change. Returns this environment.

        It is called in a thread beside the job, in order; what it raises is counted and logged. Where the event log is off
        (`event-log.level`), listeners are told at level standard, and nothing is written.

        Raises:
            TypeError: It is no function, or a coroutine function.
        """
        from agentflow.observability.event_log_targets import check_listener

        check_listener(listener)
        self._listeners.append(listener)
        return self

    def job(self) -> Job:
        """Return the job that was built, for a running event loop: ``await env.job().run()``.

        Raises:
            PlanError: With everything that is missing or wrong.
        """
        problems = []
        stream = self._stream
        if stream is None:
            raise PlanError(["the job has no source: call from_list, from_table or from_source"])
        if not stream.stages:
            problems.append("the job has no agent: call .key_by(...).apply(agent)")
        if stream.open_sink is None:
            problems.append("the job has no sink: call .to_list(), .to_table() or .to_sink(sink)")
        if problems or stream.open_sink is None:
            raise PlanError(problems)
        open_sink, open_dead = stream.open_sink, stream.open_dead_letter

        def open_sinks() -> Mapping[str, Sink]:
            return {"sink": open_sink()} if open_dead is None else {"sink": open_sink(), "dead-letter": open_dead()}

        telemetry = Telemetry(self.settings, self._listeners)
        job = Job(
            JobSpec(
                self.settings,
                tuple(stream.stages),
                stream.open_source,
                open_sinks,
                state_opener(self.settings),
                open_signals=signals_opener(self.settings),
                write_savepoint=savepoint_writer(self.settings),
                observers=telemetry.observers(0),
                metrics=telemetry.registry,
                on_end=telemetry.close,
                stream_outlet=telemetry.stream_outlet,
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

    def apply(self, agent: Agent | str) -> RecordStream:
        """Run an agent over each key; a text is the name of one that `AgentsExecutionEnvironment.load_yaml` has loaded. A second agent gets the outputs of the first; without a new `key_by` the same key rule.

        Raises:
            PlanError: The agent cannot be compiled, or there is no key.
        """
        if isinstance(agent, str):
            agent = self._environment.agent(agent)
        if self._key_by is None:
            raise PlanError(
                [f"agent '{agent.name}' needs a key: call .key_by('field') or .key_by(function) before apply"]
            )
        self.stages.append(
            AgentStage(AgentPlan.from_agent(agent, self._environment.config, self._environment.resources), self._key_by)
        )
        return self

    def to_list(self) -> list[Any]:
        """Collect outputs in a list, which is filled while `execute` runs, checkpoint by checkpoint."""
        sink = CollectionSink()
        self.open_sink = lambda: sink
        return sink.values

    def to_table(self, schema: Mapping[str, str] | Any = None) -> TableResult:  # noqa: ANN401 (or a `pyarrow.Schema`)
        """Collect outputs in a table: ``.table`` of what is returned is a `pyarrow.Table`; polars, pandas and DuckDB take the result itself.

        Args:
            schema: The columns: name → type (``"int64"``, ``"list<string>"``: `connectors.column_types`), or a `pyarrow.Schema`. None: the
                fields that the outputs have, with types that fit all of them.

        Raises:
            NotConfigured: The package pyarrow is missing: ``pip install 'agentflow[arrow]'``.
            ValueError: A type of ``schema`` is none.
        """
        from agentflow.connectors.tables import TableSink

        sink = TableSink(schema)
        self.open_sink = lambda: sink
        return sink.result

    def to_sink(self, sink: Sink | Callable[[], Sink]) -> RecordStream:
        """Give outputs to a sink, or to what a function makes at each start."""
        self.open_sink = sink if callable(sink) else lambda: sink
        return self

    def to_function(
        self,
        function: Callable[[list[OutputRecord]], Any],
        *,
        idempotent: bool = False,
        buffer_max: str = "64MiB",
    ) -> RecordStream:
        """Give the outputs of each checkpoint to a function, again and again until it returns: at least once.

        Args:
            function: Synchronous ones run in a thread; those with ``async def`` are awaited.
            idempotent: The same outputs again change nothing (`OutputRecord.id` is the same): such a job can be exactly-once. Or decorate
                the function with `agentflow.idempotent`.
            buffer_max: Size of the outputs that wait for it, at which nothing more is read.

        Raises:
            TypeError: It takes no list of outputs.
        """
        self.open_sink = partial(FunctionSink, function, idempotent=idempotent, buffer_max=buffer_max)
        self.open_sink()  # what is wrong with it is told here
        return self

    def dead_letters_to(self, sink: Sink | Callable[[], Sink]) -> RecordStream:
        """Give records whose run failed to a sink."""
        self.open_dead_letter = sink if callable(sink) else lambda: sink
        return self

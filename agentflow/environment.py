"""Composition root for code: an environment, a source, a key, agents, a sink.

```
env = AgentsExecutionEnvironment.get_execution_environment()
results = env.from_list([...]).key_by("product_id").apply(ReviewAgent()).to_list()
env.execute()
```
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from agentflow.api.agent import Agent
from agentflow.api.codecs import JSON, Codec
from agentflow.api.options import Configuration
from agentflow.connectors.collections import CollectionSink, CollectionSource
from agentflow.errors import PlanError, StateLocked, StateUnavailable
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.codecs import RECORD_KEY, KeyBy, output_encoder
from agentflow.runtime.collection import rare_collections
from agentflow.runtime.job import AgentStage, Job, JobSpec, JobStatus
from agentflow.runtime.ports import KeyedState, Signals, Sink, Source
from agentflow.runtime.settings import JobSettings
from agentflow.runtime.worker import Worker

if TYPE_CHECKING:
    from agentflow.connectors.kafka.group import KafkaGroup, PartitionSource, Reading
    from agentflow.connectors.kafka.partitioners import Partitioner
    from agentflow.connectors.kafka.producer import SubtaskProducer
    from agentflow.state.rocksdb import RocksDBKeyedState


def state_opener(settings: JobSettings) -> Callable[[], KeyedState]:
    """Return what opens the job's keyed state: RocksDB in ``state.dir``, or memory that lives as long as the process."""
    directory = settings.state.dir
    if directory is not None:

        def open_rocksdb() -> KeyedState:
            from agentflow.state.rocksdb import RocksDBKeyedState  # 20 ms that memory jobs do not pay

            journal = settings.journal
            return RocksDBKeyedState.open(
                f"{directory}/subtask-0",
                job=settings.job,
                free_min_bytes=settings.state.free_min_bytes,
                journal_sync_interval_ms=journal.sync_interval_ms if journal.sync == "interval" else None,
            )

        return open_rocksdb
    from agentflow.state.memory import MemoryKeyedState, MemoryStorage

    storage = MemoryStorage()  # survives restarts of the subtask within this process
    return lambda: MemoryKeyedState(storage)


def signals_opener(settings: JobSettings) -> Callable[[], Signals]:
    """Return what opens the signals of an embedded job: beside its state."""
    from agentflow.connectors.signal_spool import SignalList, SignalSpool

    directory = settings.state.dir
    if directory is not None:
        return lambda: SignalSpool(f"{directory}/signals")
    in_memory = SignalList()  # survives restarts of the subtask within this process
    return lambda: in_memory


def new_event_loop(*, is_uvloop_wanted: bool = True) -> asyncio.AbstractEventLoop:
    """Return a uvloop event loop, or asyncio's own where uvloop is not wanted or not to be had on this platform."""
    if is_uvloop_wanted:
        try:
            import uvloop  # not on every platform
        except ImportError:
            return asyncio.new_event_loop()
        return uvloop.new_event_loop()
    return asyncio.new_event_loop()


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

        return Job(
            JobSpec(
                self.settings,
                tuple(stream.stages),
                stream.open_source,
                open_sinks,
                state_opener(self.settings),
                open_signals=signals_opener(self.settings),
            )
        )

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


_GOLDEN_RATIO = 0.618034


class KafkaJob:
    """A job from Kafka to Kafka: what a worker of it is made of.

    Args:
        settings: Settings; ``state.dir`` has to be set.
        stages: The chain of agents. Where the first one has another key than the record's, records go through a repartition
            topic.
        reading: Input topics and how they are read.
        output: Output topic.
        dead_letters: Dead-letter topic; None: a record that fails for good stops the job.
        output_codec: Codec of outputs; None becomes a record without a value.
        watch_dead_letters: Put around the dead-letter sink; for logs.

    Attributes:
        facts: What the brokers say of the topics, when a worker was made.
        partitioner: The one in use, when a worker was made.
    """

    def __init__(
        self,
        settings: JobSettings,
        stages: Sequence[AgentStage],
        reading: Reading,
        output: str,
        dead_letters: str | None = None,
        output_codec: Codec = JSON,
        watch_dead_letters: Callable[[Sink], Sink] = lambda sink: sink,
    ) -> None:
        self.watch_dead_letters = watch_dead_letters
        from agentflow.connectors.kafka.partitioners import murmur2
        from agentflow.connectors.kafka.topics import JobTopics, TopicFacts

        self.settings = settings
        self.stages = tuple(stages)
        self.output_codec = output_codec
        self.is_rekeyed = self.stages[0].key_by != RECORD_KEY
        repartition = (f"{settings.job}-repartition",) if self.is_rekeyed else ()
        changelog, journal = f"{settings.job}-changelog", f"{settings.job}-journal"
        signals = settings.signals.topic
        self.topics = JobTopics(reading.topics, output, changelog, journal, dead_letters, repartition, signals)
        self.reading = msgspec.structs.replace(reading, topics=(*reading.topics, *repartition), signals=signals)
        self.facts = TopicFacts(0, {})
        self.partitioner: Partitioner = murmur2

    async def worker(self, on_event: Callable[[str, dict[str, Any]], None] | None = None) -> Worker:
        """Check and create topics, and return a worker that has not joined yet.

        Raises:
            ConfigError: Topics are missing or wrong, or the input is spread by another partitioner.
            SourceError: No broker answers.
        """
        from agentflow.connectors.kafka.group import KafkaGroup
        from agentflow.connectors.kafka.placement import find_partitioner
        from agentflow.connectors.kafka.topics import prepare_topics

        settings = self.settings
        self.facts = await prepare_topics(settings.kafka, settings.topics, self.topics, settings.checkpoint.interval_ms)
        self.partitioner = await find_partitioner(
            settings.kafka, self.topics.inputs, self.facts.subtasks, is_checked=not self.is_rekeyed
        )
        tell = on_event or (lambda name, fields: None)  # noqa: ARG005

        def new_group() -> KafkaGroup:
            return KafkaGroup(
                settings.kafka, settings.job, self.reading, self.facts.subtasks, self.topics.repartition, tell
            )

        return Worker(new_group, lambda group, number: _KafkaSubtask(self, group, number, tell), settings.restart, tell)


class _KafkaSubtask:
    """One subtask of a `KafkaJob`: its ports, made anew for each life of its job."""

    def __init__(
        self, kafka: KafkaJob, group: KafkaGroup, number: int, on_event: Callable[[str, dict[str, Any]], None]
    ) -> None:
        self._kafka = kafka
        self._group = group
        self._number = number
        self._producer: SubtaskProducer | None = None
        self._source: PartitionSource | None = None
        spec = JobSpec(
            kafka.settings,
            kafka.stages,
            self._open_source,
            self._open_sinks,
            self._open_state,
            output_encoder(kafka.output_codec),
            has_tombstones=True,
            first_interval_share=1 - number * _GOLDEN_RATIO % 1,  # spread evenly, however many subtasks there are
            open_signals=lambda: None if self._source is None else self._source.signals,
            rekeyed_source=f"{kafka.topics.repartition[0]}/{number}" if kafka.is_rekeyed else None,
        )
        self.job = Job(spec, on_event=lambda name, fields: on_event(name, {"subtask": number, **fields}))

    async def keep(self) -> None:
        """Prove that nobody owned the subtask meanwhile, and read on."""
        if self._source is not None:
            await self._source.keep()

    async def release(self) -> None:
        """Forget the source; its job has closed everything."""
        self._group.forget(self._number)

    def _open_source(self) -> Source:
        from agentflow.connectors.kafka.plain_producer import PlainProducer
        from agentflow.connectors.kafka.producer import BATCH_BYTES, SubtaskProducer

        kafka, settings = self._kafka, self._kafka.settings
        batch_bytes = min(BATCH_BYTES, *kafka.facts.message_max.values())
        plain = PlainProducer(settings.kafka, batch_bytes) if settings.guarantee != "exactly-once" else None
        self._producer = SubtaskProducer(
            settings.kafka, settings.job, self._number, kafka.topics.changelog, batch_bytes, plain
        )
        self._source = self._group.source(self._number, self._producer)
        return self._source

    def _open_sinks(self) -> Mapping[str, Sink]:
        from agentflow.connectors.kafka.sinks import KafkaDeadLetters, KafkaRepartition, KafkaSink

        kafka, producer, topics = self._kafka, self._producer, self._kafka.topics
        assert producer is not None
        outputs, partitioner = producer.outputs or producer, kafka.partitioner
        message_max = kafka.facts.message_max[topics.output]
        sinks: dict[str, Sink] = {"sink": KafkaSink(outputs, topics.output, partitioner, message_max)}
        if topics.dead_letters is not None:
            dead_letters = KafkaDeadLetters(outputs, topics.dead_letters, partitioner)
            sinks["dead-letter"] = kafka.watch_dead_letters(dead_letters)
        for topic in topics.repartition:
            sinks["repartition"] = KafkaRepartition(producer, topic, partitioner)
        return sinks

    async def _open_state(self) -> KeyedState:
        from agentflow.connectors.kafka.connection import Consumer, client_options
        from agentflow.state.kafka_changelog import open_changelog_state
        from agentflow.state.kafka_journal import KafkaJournal

        assert self._producer is not None
        kafka = self._kafka
        client = client_options(kafka.settings.kafka)
        journal = KafkaJournal(self._producer, kafka.topics.journal, self._number, client, Consumer)
        return await open_changelog_state(
            self._open_copy,
            self._producer,
            kafka.topics.changelog,
            self._number,
            client,
            kafka.facts.delete_retention_ms,
            Consumer,
            journal,
        )

    def _open_copy(self, is_reset: bool) -> RocksDBKeyedState:  # noqa: FBT001 (a callback)
        from agentflow.state.rocksdb import RocksDBKeyedState

        settings = self._kafka.settings
        directory = f"{settings.state.dir}/subtask-{self._number}"
        if is_reset:
            shutil.rmtree(directory)
        try:
            return RocksDBKeyedState.open(
                directory,
                job=settings.job,
                free_min_bytes=settings.state.free_min_bytes,
            )
        except StateLocked as error:
            # Another worker on this machine had the subtask and is about to close it.
            raise StateUnavailable(error.what, where=error.where, fix=error.fix) from error

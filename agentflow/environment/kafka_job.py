"""Jobs from Kafka to Kafka: what a worker is made of."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from agentflow.api.codecs import JSON, Codec
from agentflow.api.metrics import MetricRegistry
from agentflow.environment.event_log import EventListener
from agentflow.environment.telemetry import Observers
from agentflow.errors import StateLocked, StateUnavailable
from agentflow.runtime.codecs import RECORD_KEY
from agentflow.runtime.job import Job
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.ports import KeyedState, Sink, Source, StreamOutlet
from agentflow.runtime.resources import Resources
from agentflow.runtime.settings import JobSettings
from agentflow.runtime.worker import Worker

if TYPE_CHECKING:
    from agentflow.connectors.kafka.group import KafkaGroup, PartitionSource, Reading
    from agentflow.connectors.kafka.placement import Placement
    from agentflow.connectors.kafka.producer import SubtaskProducer
    from agentflow.connectors.kafka.topics import JobTopics
    from agentflow.state.rocksdb import RocksDBKeyedState

_GOLDEN_RATIO = 0.618034


def topics_of(
    settings: JobSettings, reading: Reading, output: str, dead_letters: str | None, *, is_rekeyed: bool
) -> JobTopics:
    """Return the topics of a job: those that it is given, and its own, which are named after it."""
    from agentflow.connectors.kafka.topics import JobTopics

    job = settings.job
    repartition = (f"{job}-repartition",) if is_rekeyed else ()
    return JobTopics(
        reading.topics, output, f"{job}-changelog", f"{job}-journal", dead_letters, repartition, settings.signals.topic
    )


async def find_placement(
    settings: JobSettings,
    inputs: Sequence[str],
    count: int,
    *,
    is_rekeyed: bool,
    has_changelog: bool = True,
    is_stored_enough: bool = False,
) -> Placement:
    """Return how a job spreads keys over its subtasks: what its checkpoints say; else what is configured, or the input shows.

    Args:
        settings: Settings of the job.
        inputs: Its input topics, which exist.
        count: Number of its subtasks.
        is_rekeyed: Whether its key is not the record's.
        has_changelog: Whether its changelog topic exists.
        is_stored_enough: Whether the input need not agree with what checkpoints say.

    Raises:
        ConfigError: The configuration, the checkpoints, and the input do not agree.
        SourceError: No broker answers.
        StateUnavailable: The changelog cannot be read.
    """
    from agentflow.connectors.kafka.connection import Consumer, client_options
    from agentflow.connectors.kafka.placement import Placement, sample_input
    from agentflow.connectors.kafka.sinks import kafka_key
    from agentflow.state.kafka_placement import StoredPlacement, read_placement

    changelog = f"{settings.job}-changelog"
    stored = StoredPlacement()
    if has_changelog:
        stored = await read_placement(changelog, count, client_options(settings.kafka), Consumer)
    placement = Placement(settings.kafka, count, is_rekeyed=is_rekeyed, stored=stored.partitioners)
    placement.look_at_rows([(changelog, number, offset, kafka_key(key)) for number, offset, key in stored.rows])
    if placement.is_watched and not (stored.partitioners and is_stored_enough):
        placement.look(await sample_input(settings.kafka, inputs, count))
    return placement


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
        observers: Makes, for a subtask, what looks at its agents.
        event_listeners: Called with each record of the event log.
        metrics: What the agents' own metrics are kept in.
        stream_outlet: Takes what actions say while they work; None: nobody does.
        resources: What the agents of all subtasks share: models, tools; whoever runs the worker closes them at its end.
        facts: What the brokers say of the topics, when a worker was made.
        placement: How keys are spread over subtasks, when a worker was made.
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
        self.event_listeners: Sequence[EventListener] = ()
        self.observers: Callable[[int], Observers] = lambda subtask: lambda plan, index, incarnation: ()  # noqa: ARG005
        self.metrics = MetricRegistry()
        self.stream_outlet: StreamOutlet | None = None
        self.resources = Resources()
        from agentflow.connectors.kafka.placement import Placement
        from agentflow.connectors.kafka.topics import TopicFacts

        self.settings = settings
        self.stages = tuple(stages)
        self.output_codec = output_codec
        self.is_rekeyed = self.stages[0].key_by != RECORD_KEY
        self.topics = topics_of(settings, reading, output, dead_letters, is_rekeyed=self.is_rekeyed)
        self.reading = msgspec.structs.replace(
            reading, topics=(*reading.topics, *self.topics.repartition), signals=self.topics.signals
        )
        self.facts = TopicFacts(0, {})
        self.placement = Placement(settings.kafka, 0, is_rekeyed=self.is_rekeyed)

    async def worker(self, on_event: Callable[[str, dict[str, Any]], None] | None = None) -> Worker:
        """Check and create topics, and return a worker that has not joined yet.

        Raises:
            ConfigError: Topics are missing or wrong, or the input or the job's state is spread by another partitioner.
            SourceError: No broker answers.
            StateUnavailable: The changelog cannot be read.
        """
        from agentflow.connectors.kafka.group import KafkaGroup
        from agentflow.connectors.kafka.topics import prepare_topics

        settings = self.settings
        self.facts = await prepare_topics(settings.kafka, settings.topics, self.topics, settings.checkpoint.interval_ms)
        self.placement = placement = await find_placement(
            settings, self.topics.inputs, self.facts.subtasks, is_rekeyed=self.is_rekeyed
        )
        tell = on_event or (lambda name, fields: None)  # noqa: ARG005

        def new_group() -> KafkaGroup:
            return KafkaGroup(
                settings.kafka,
                settings.job,
                self.reading,
                self.facts.subtasks,
                self.topics.repartition,
                tell,
                placement if placement.is_watched else None,
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
            kafka.output_codec,
            has_tombstones=True,
            first_interval_share=1 - number * _GOLDEN_RATIO % 1,  # spread evenly, however many subtasks there are
            open_signals=lambda: None if self._source is None else self._source.signals,
            observers=kafka.observers(number),
            metrics=kafka.metrics,
            stream_outlet=kafka.stream_outlet,
            resources=kafka.resources,
            subtask=number,
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
        outputs, placement = producer.outputs or producer, kafka.placement
        message_max = kafka.facts.message_max[topics.output]
        sinks: dict[str, Sink] = {"sink": KafkaSink(outputs, topics.output, placement, message_max)}
        if topics.dead_letters is not None:
            dead_letters = KafkaDeadLetters(outputs, topics.dead_letters, placement)
            sinks["dead-letter"] = kafka.watch_dead_letters(dead_letters)
        for topic in topics.repartition:
            sinks["repartition"] = KafkaRepartition(producer, topic, placement)
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
            kafka.placement,
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

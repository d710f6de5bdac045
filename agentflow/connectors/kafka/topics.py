"""Topics of a job: what must be there, what is created, all problems at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import msgspec
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from agentflow.connectors.kafka.connection import client_options, security_problems, unreachable
from agentflow.errors import ConfigError
from agentflow.runtime.settings import KafkaSettings, TopicSettings

REPLICAS = 3
"""Of topics that are created, where there are so many brokers."""
_DELETE_RETENTION_MS = 86_400_000  # Kafka's default
_MESSAGE_MAX = 1_048_588  # Kafka's default
_CHANGELOG_LEAST = 640 * 2**10  # a part of a large value, and what is around it
_OFFSETS_RETENTION_MIN = 60  # of the broker's offsets.retention.minutes: group offsets tell a deleted changelog


class JobTopics(msgspec.Struct, frozen=True):
    """Topics of a job.

    Attributes:
        inputs: They have equal partition counts, which make the subtasks.
        output: Outputs.
        changelog: Keyed state; as many partitions as there are subtasks.
        journal: Durable steps; the same.
        dead_letters: Records that failed; None: there are none, the job stops.
        repartition: Between a source and an operator with another key, by name; as many partitions as there are subtasks.
        signals: Signals to runs; None: the job reads none. As many partitions as there are subtasks.
    """

    inputs: tuple[str, ...]
    output: str
    changelog: str
    journal: str
    dead_letters: str | None = None
    repartition: tuple[str, ...] = ()
    signals: str | None = None

    @property
    def every(self) -> tuple[str, ...]:
        """All of them, each once."""
        written = (self.output, *([self.dead_letters] if self.dead_letters is not None else []))
        signals = () if self.signals is None else (self.signals,)
        return tuple(dict.fromkeys((*self.inputs, *written, *self.repartition, self.changelog, self.journal, *signals)))

    @property
    def roles(self) -> dict[str, str]:
        """The job's own topics, with what they are for."""
        roles = {self.changelog: "changelog", self.journal: "journal"} | dict.fromkeys(self.repartition, "repartition")
        return roles if self.signals is None else roles | {self.signals: "signals"}


class TopicFacts(msgspec.Struct, frozen=True):
    """What the brokers say of a job's topics.

    Attributes:
        subtasks: Their number.
        message_max: Topic → its max.message.bytes.
        delete_retention_ms: How long the changelog keeps deletions.
        transaction_timeout_max_ms: How long a transaction may be open at most.
    """

    subtasks: int
    message_max: dict[str, int]
    delete_retention_ms: int = 86_400_000
    transaction_timeout_max_ms: int = 60_000


class TopicProblem(msgspec.Struct, frozen=True):
    """What stands between a job and its topics.

    Attributes:
        what: What is wrong.
        fix: What to do about it.
    """

    what: str
    fix: str

    @property
    def told(self) -> str:
        """As an error says it."""
        return f"{self.what}\nhelp: {self.fix}"


class TopicReport(msgspec.Struct, frozen=True):
    """What was found, with nothing created.

    Attributes:
        problems: What a worker would refuse to start with.
        facts: What it would start with.
        partitions: Topic → how many it has, of those that exist.
        missing: Those that a worker would create.
        configs: Topic → its settings, of those that may be read.
        hidden: Topics that exist and whose settings may not be read.
        replicas: Topic → (fewest replicas of a partition, fewest that are in sync).
        brokers: How many there are.
    """

    problems: tuple[TopicProblem, ...]
    facts: TopicFacts
    partitions: dict[str, int]
    missing: tuple[str, ...]
    configs: dict[str, dict[str, str]]
    hidden: tuple[str, ...]
    replicas: dict[str, tuple[int, int]]
    brokers: int


_PROPAGATION_S, _ASKED_AGAIN_S = 10.0, 0.05
_HEADERS_BYTES = 64 * 2**10  # room for the reason of a dead letter, and for what a batch has around its records
# Only segments that are full are compacted, or deleted: small ones bound what a restore reads. Their index, for which the broker
# maps a file in advance, needs 12 bytes for every 4 KiB of them.
_SMALL_SEGMENTS = {"segment.bytes": str(128 * 2**20), "segment.index.bytes": str(2**20)}
_KEPT = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
_CONFIGS = {
    "changelog": {"cleanup.policy": "compact"} | _SMALL_SEGMENTS,
    # What is consumed is deleted by its reader, never by age: as Kafka Streams does.
    "repartition": _KEPT | _SMALL_SEGMENTS,
    # Cut behind checkpoints. Compaction would lose records of aborted transactions.
    "journal": _KEPT | _SMALL_SEGMENTS,
    "signals": {"cleanup.policy": "delete"},
}


async def prepare_topics(
    settings: KafkaSettings, creation: TopicSettings, topics: JobTopics, checkpoint_interval_ms: int
) -> TopicFacts:
    """Check the topics of a job, and create what may be created.

    Raises:
        ConfigError: With every problem: inputs that are missing or have unequal partition counts, outputs that are missing and
            may not be created, internal topics with other settings or partition counts, limits of the brokers; or what the
            brokers say of topics that they do not create.
        SourceError: No broker answers.
    """
    async with _started_admin(settings) as admin:
        report = await _Inspection(admin, settings, creation, topics).run(checkpoint_interval_ms)
        if not report.problems and report.missing:
            refused = await _create(admin, creation, topics, report, is_rehearsal=False)
            report = await _Inspection(admin, settings, creation, topics).run(checkpoint_interval_ms)
            report = msgspec.structs.replace(report, problems=(*refused, *report.problems))
    if report.problems:
        raise ConfigError([problem.told for problem in report.problems])
    return report.facts


async def ensure_topic(settings: KafkaSettings, creation: TopicSettings, topic: str) -> None:
    """Create a topic that is no part of the job's work, if it is missing and may be created.

    Raises:
        ConfigError: ``kafka.security`` contradicts itself.
        SourceError: No broker answers.
    """
    async with _started_admin(settings) as admin:
        if creation.create and topic not in await known_topics(admin, [topic]):
            brokers = len((await admin.describe_cluster())["brokers"])
            replicas = creation.replication_factor or min(REPLICAS, brokers)
            with contextlib.suppress(TopicAlreadyExistsError):
                await admin.create_topics([NewTopic(topic, creation.partitions or 1, replicas)])


async def inspect_topics(
    settings: KafkaSettings, creation: TopicSettings, topics: JobTopics, checkpoint_interval_ms: int
) -> TopicReport:
    """Check the topics of a job as a worker does when it starts, and create nothing.

    Raises:
        ConfigError: ``kafka.security`` contradicts itself.
        SourceError: No broker answers.
    """
    async with _started_admin(settings) as admin:
        return await _Inspection(admin, settings, creation, topics).run(checkpoint_interval_ms)


async def refused_topics(
    settings: KafkaSettings, creation: TopicSettings, topics: JobTopics, report: TopicReport
) -> list[TopicProblem]:
    """Ask the brokers whether they would create what is missing, and return why they would not; nothing is created.

    Raises:
        SourceError: No broker answers.
    """
    async with _started_admin(settings) as admin:
        return await _create(admin, creation, topics, report, is_rehearsal=True)


@contextlib.asynccontextmanager
async def _started_admin(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    if problems := security_problems(settings.security):
        raise ConfigError(problems)
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await admin.start()
        yield admin
    except KafkaError as error:
        raise unreachable(settings, error) from error
    finally:
        await admin.close()


async def partition_counts(settings: KafkaSettings, topics: Sequence[str]) -> dict[str, int]:
    """Return the number of partitions of those topics that exist.

    Raises:
        SourceError: No broker answers.
    """
    async with _started_admin(settings) as admin:
        return await known_topics(admin, topics)


async def known_topics(admin: AIOKafkaAdminClient, topics: Iterable[str]) -> dict[str, int]:
    """Return the number of partitions of those topics that exist, asked of a started client."""
    return {topic["topic"]: len(topic["partitions"]) for topic in await _described(admin, topics)}


async def _described(admin: AIOKafkaAdminClient, topics: Iterable[str]) -> Sequence[dict[str, Any]]:
    """Describe those topics that exist. A broker may know that one was created, and not yet of which partitions: it is asked again."""
    topics, deadline = set(topics), time.monotonic() + _PROPAGATION_S
    while True:
        known = sorted(topics & set(await admin.list_topics()))
        found = await admin.describe_topics(known) if known else ()
        if all(topic["partitions"] for topic in found) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(_ASKED_AGAIN_S)


class _Inspection:
    def __init__(
        self, admin: AIOKafkaAdminClient, settings: KafkaSettings, creation: TopicSettings, topics: JobTopics
    ) -> None:
        self._admin = admin
        self._settings = settings
        self._creation = creation
        self._topics = topics
        self._known: dict[str, int] = {}
        self._replicas: dict[str, tuple[int, int]] = {}
        self._configs: dict[str, dict[str, str]] = {}
        self._hidden: list[str] = []
        self._problems: list[TopicProblem] = []
        self._transaction_timeout_max_ms = 0

    async def run(self, checkpoint_interval_ms: int) -> TopicReport:
        await self._look()
        subtasks = self._subtasks()
        self._check_internal(subtasks)
        self._check_sizes()
        brokers = await self._check_broker(checkpoint_interval_ms)
        retention = self._configs.get(self._topics.changelog, {}).get("delete.retention.ms", _DELETE_RETENTION_MS)
        message_max = {topic: self._message_max(topic) for topic in self._topics.every}
        return TopicReport(
            tuple(self._problems),
            TopicFacts(subtasks, message_max, int(retention), self._transaction_timeout_max_ms),
            self._known,
            tuple(topic for topic in self._topics.every if topic not in self._known),
            self._configs,
            tuple(self._hidden),
            self._replicas,
            brokers,
        )

    def _add(self, what: str, fix: str) -> None:
        self._problems.append(TopicProblem(what, fix))

    async def _look(self) -> None:
        for topic in await _described(self._admin, self._topics.every):
            name, partitions = topic["topic"], topic["partitions"]
            self._known[name] = len(partitions)
            self._replicas[name] = (
                min((len(partition["replicas"]) for partition in partitions), default=0),
                min((len(partition["isr"]) for partition in partitions), default=0),
            )
        if not self._known:
            return
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in self._known]
        for answer in await self._admin.describe_configs(resources):
            for code, _, _, name, entries, *_ in answer.resources:
                if code:
                    self._hidden.append(name)
                else:
                    self._configs[name] = {entry[0]: str(entry[1]) for entry in entries}

    def _message_max(self, topic: str) -> int:
        return int(self._configs.get(topic, {}).get("max.message.bytes", _MESSAGE_MAX))

    def _subtasks(self) -> int:
        """Return the number of subtasks: partitions of the inputs, which have to have as many each."""
        inputs, creation = self._topics.inputs, self._creation
        counts = {topic: self._known[topic] for topic in inputs if topic in self._known}
        is_creating = creation.create and creation.partitions is not None
        for topic in inputs:
            if topic not in self._known and not is_creating:
                self._add(
                    f"input topic '{topic}' does not exist{_or_hidden(self._settings)}",
                    "create it, or correct source.topics; topics.partitions: N lets a worker create it with N partitions",
                )
        if is_creating:
            counts |= dict.fromkeys((topic for topic in inputs if topic not in counts), creation.partitions or 0)
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"'{topic}' has {count}" for topic, count in counts.items())
            self._add(
                f"input topics have unequal partition counts ({shown}): records of one key would meet in no subtask",
                "give them as many partitions each, or read them by jobs of their own",
            )
        for topic in self._topics.every:
            if topic not in inputs and topic not in self._known and not creation.create:
                self._add(
                    f"topic '{topic}' does not exist, and topics.create is false",
                    "create it (settings: docs/operating-kafka.md), or let a worker do it: topics.create: true",
                )
        return next(iter(counts.values()), 0)

    def _check_internal(self, subtasks: int) -> None:
        topics = self._topics
        for topic, role in topics.roles.items():
            count = self._known.get(topic)
            if count is None:
                continue
            if subtasks and count != subtasks:
                self._add(
                    f"{role} topic '{topic}' has {count} partitions, the inputs have {subtasks}: after a change of the "
                    "partition count keys lie elsewhere",
                    "start a job of another name",
                )
            if topic in self._hidden:
                self._add(
                    f"the settings of {role} topic '{topic}' may not be read: whether it keeps what it has to, nobody knows",
                    f"give this client the right to describe the configuration of topics (DescribeConfigs on '{topic}')",
                )
                continue
            policy = self._configs.get(topic, {}).get("cleanup.policy")
            wanted = _CONFIGS[role]["cleanup.policy"]
            if policy != wanted:
                self._add(
                    f"{role} topic '{topic}' has cleanup.policy={policy}, it has to be {wanted}: it would lose "
                    + ("state" if role == "changelog" else "records"),
                    f"set cleanup.policy={wanted} on it; or delete it if the job has never run, and let a worker create it",
                )

    def _check_sizes(self) -> None:
        """What is read has to fit where it goes whole, and state where it is kept."""
        topics = self._topics
        read_max = max((self._message_max(topic) for topic in topics.inputs), default=_MESSAGE_MAX)
        dead = topics.dead_letters
        for topic, least in [
            *[(topic, read_max) for topic in topics.repartition],
            *([(dead, read_max)] if dead is not None else []),
            (topics.changelog, _CHANGELOG_LEAST),
            (topics.journal, _CHANGELOG_LEAST),
        ]:
            if topic in self._known and self._message_max(topic) < least:
                self._add(
                    f"topic '{topic}' has max.message.bytes={self._message_max(topic)}, it has to be at least {least}: "
                    "what has to go there whole would not fit",
                    f"set max.message.bytes={least} on it",
                )

    async def _check_broker(self, checkpoint_interval_ms: int) -> int:
        brokers = (await self._admin.describe_cluster())["brokers"]
        (answer,) = await self._admin.describe_configs(
            [ConfigResource(ConfigResourceType.BROKER, str(brokers[0]["node_id"]))]
        )
        found = {entry[0]: str(entry[1]) for resource in answer.resources for entry in resource[4]}
        limit_ms = self._transaction_timeout_max_ms = int(found.get("transaction.max.timeout.ms") or 2**31 - 1)
        if self._settings.transaction_timeout_ms > limit_ms:
            self._add(
                f"kafka.transaction-timeout ({self._settings.transaction_timeout_ms} ms) is above the brokers' "
                f"transaction.max.timeout.ms ({limit_ms} ms)",
                "lower the one, or raise the other",
            )
        least_ms, most_ms = (
            int(found.get(f"group.{name}.session.timeout.ms") or default)
            for name, default in (("min", 0), ("max", 2**31))
        )
        if not least_ms <= self._settings.session_timeout_ms <= most_ms:
            self._add(
                f"kafka.session-timeout ({self._settings.session_timeout_ms} ms) is not between the brokers' "
                f"group.min.session.timeout.ms ({least_ms} ms) and group.max.session.timeout.ms ({most_ms} ms)",
                "set kafka.session-timeout to a time between them",
            )
        retention = int(found.get("offsets.retention.minutes") or _OFFSETS_RETENTION_MIN)
        if retention * 60_000 < max(_OFFSETS_RETENTION_MIN * 60_000, checkpoint_interval_ms * 2):
            self._add(
                f"the brokers forget group offsets after {retention} minutes (offsets.retention.minutes): a deleted changelog "
                "could not be told from a new job",
                f"set offsets.retention.minutes to at least {_OFFSETS_RETENTION_MIN} on the brokers",
            )
        return len(brokers)


async def _create(
    admin: AIOKafkaAdminClient, creation: TopicSettings, topics: JobTopics, report: TopicReport, *, is_rehearsal: bool
) -> list[TopicProblem]:
    """Create what is missing, or ask whether that would go; return what the brokers refuse, and why."""
    replicas = creation.replication_factor
    if replicas is None:
        replicas = min(REPLICAS, report.brokers)
    read_max = max((report.facts.message_max[topic] for topic in topics.inputs), default=_MESSAGE_MAX)
    refused: dict[str, list[str]] = {}
    for topic in report.missing:
        config = dict(_CONFIGS.get(topics.roles.get(topic, ""), {}))
        if topic == topics.dead_letters or topic in topics.repartition:
            config["max.message.bytes"] = str(read_max + _HEADERS_BYTES)
        wanted = NewTopic(topic, report.facts.subtasks, replicas, topic_configs=config)
        answer = await admin.create_topics([wanted], validate_only=is_rehearsal)
        for name, code, *text in answer.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:  # another worker of the job was faster
                reason = f"{error.__name__}: {text[0]}" if text and text[0] else error.__name__
                refused.setdefault(reason, []).append(f"'{name}'")
    return [
        TopicProblem(
            f"the brokers do not create {'topic' if len(names) == 1 else 'topics'} {', '.join(names)} "
            f"({report.facts.subtasks} partitions, {replicas} replicas): {reason}",
            "give this client the right to create them, set topics.replication-factor, or create them yourself "
            "(settings: docs/operating-kafka.md)",
        )
        for reason, names in refused.items()
    ]


def _or_hidden(settings: KafkaSettings) -> str:
    return "" if settings.security.protocol == "plaintext" else ", or this client may not see it"

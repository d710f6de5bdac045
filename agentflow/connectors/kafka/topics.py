"""Topics of a job: what must be there, what is created, all problems at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError

from agentflow.connectors.kafka.connection import client_options, security_problems, unreachable
from agentflow.errors import ConfigError
from agentflow.runtime.settings import KafkaSettings, TopicSettings

_REPLICAS = 3
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
            may not be created, internal topics with other settings or partition counts, limits of the brokers.
        SourceError: No broker answers.
    """
    if problems := security_problems(settings.security):
        raise ConfigError(problems)
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await admin.start()
        preparation = _Preparation(admin, settings, creation, topics)
        return await preparation.run(checkpoint_interval_ms)
    except KafkaError as error:
        raise unreachable(settings, error) from error
    finally:
        await admin.close()


async def partition_counts(settings: KafkaSettings, topics: Sequence[str]) -> dict[str, int]:
    """Return the number of partitions of those topics that exist.

    Raises:
        SourceError: No broker answers.
    """
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await admin.start()
        return await known_topics(admin, topics)
    except KafkaError as error:
        raise unreachable(settings, error) from error
    finally:
        await admin.close()


async def known_topics(admin: AIOKafkaAdminClient, topics: Iterable[str]) -> dict[str, int]:
    """Return the number of partitions of those topics that exist, asked of a started client."""
    known = sorted(set(topics) & set(await admin.list_topics()))
    described = await admin.describe_topics(known) if known else ()
    return {topic["topic"]: len(topic["partitions"]) for topic in described}


class _Preparation:
    def __init__(
        self, admin: AIOKafkaAdminClient, settings: KafkaSettings, creation: TopicSettings, topics: JobTopics
    ) -> None:
        self._admin = admin
        self._settings = settings
        self._creation = creation
        self._topics = topics
        self._known: dict[str, int] = {}
        self._configs: dict[str, dict[str, str]] = {}
        self._problems: list[str] = []
        self._transaction_timeout_max_ms = 0

    async def run(self, checkpoint_interval_ms: int) -> TopicFacts:
        await self._look()
        subtasks = self._subtasks()
        self._check_internal(subtasks)
        self._check_sizes()
        await self._check_broker(checkpoint_interval_ms)
        if self._problems:
            raise ConfigError(self._problems)
        if await self._create_missing(subtasks):
            await self._look()
        retention = self._configs.get(self._topics.changelog, {}).get("delete.retention.ms", _DELETE_RETENTION_MS)
        message_max = {topic: self._message_max(topic) for topic in self._topics.every}
        return TopicFacts(subtasks, message_max, int(retention), self._transaction_timeout_max_ms)

    async def _look(self) -> None:
        known = await known_topics(self._admin, self._topics.every)
        self._known |= known
        if known:
            resources = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in known]
            for answer in await self._admin.describe_configs(resources):
                for resource in answer.resources:
                    self._configs[resource[3]] = {entry[0]: str(entry[1]) for entry in resource[4]}

    def _message_max(self, topic: str) -> int:
        return int(self._configs.get(topic, {}).get("max.message.bytes", _MESSAGE_MAX))

    def _subtasks(self) -> int:
        """Return the number of subtasks: partitions of the inputs, which have to have as many each."""
        inputs, creation = self._topics.inputs, self._creation
        counts = {topic: self._known[topic] for topic in inputs if topic in self._known}
        is_creating = creation.create and creation.partitions is not None
        for topic in inputs:
            if topic not in self._known and not is_creating:
                self._problems.append(
                    f"input topic '{topic}' does not exist{_or_hidden(self._settings)} "
                    "(topics.partitions: N creates it with N partitions)"
                )
        if is_creating:
            counts |= dict.fromkeys((topic for topic in inputs if topic not in counts), creation.partitions or 0)
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"'{topic}' has {count}" for topic, count in counts.items())
            self._problems.append(
                f"input topics have unequal partition counts ({shown}): records of one key would meet in no subtask"
            )
        for topic in self._topics.every:
            if topic not in inputs and topic not in self._known and not creation.create:
                self._problems.append(f"topic '{topic}' does not exist, and topics.create is false")
        return next(iter(counts.values()), 0)

    def _check_internal(self, subtasks: int) -> None:
        topics = self._topics
        for topic, role in topics.roles.items():
            count = self._known.get(topic)
            if count is None:
                continue
            if subtasks and count != subtasks:
                self._problems.append(
                    f"{role} topic '{topic}' has {count} partitions, the inputs have {subtasks}: after a change of the "
                    "partition count keys lie elsewhere; start a job of another name"
                )
            policy = self._configs.get(topic, {}).get("cleanup.policy")
            wanted = _CONFIGS[role]["cleanup.policy"]
            if policy != wanted:
                self._problems.append(
                    f"{role} topic '{topic}' has cleanup.policy={policy}, it has to be {wanted}: it would lose "
                    + ("state" if role == "changelog" else "records")
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
                self._problems.append(
                    f"topic '{topic}' has max.message.bytes={self._message_max(topic)}, it has to be at least {least}: "
                    "what has to go there whole would not fit"
                )

    async def _check_broker(self, checkpoint_interval_ms: int) -> None:
        brokers = (await self._admin.describe_cluster())["brokers"]
        (answer,) = await self._admin.describe_configs(
            [ConfigResource(ConfigResourceType.BROKER, str(brokers[0]["node_id"]))]
        )
        found = {entry[0]: str(entry[1]) for resource in answer.resources for entry in resource[4]}
        limit_ms = self._transaction_timeout_max_ms = int(found.get("transaction.max.timeout.ms") or 2**31 - 1)
        if self._settings.transaction_timeout_ms > limit_ms:
            self._problems.append(
                f"kafka.transaction-timeout ({self._settings.transaction_timeout_ms} ms) is above the brokers' "
                f"transaction.max.timeout.ms ({limit_ms} ms)"
            )
        least_ms, most_ms = (
            int(found.get(f"group.{name}.session.timeout.ms") or default)
            for name, default in (("min", 0), ("max", 2**31))
        )
        if not least_ms <= self._settings.session_timeout_ms <= most_ms:
            self._problems.append(
                f"kafka.session-timeout ({self._settings.session_timeout_ms} ms) is not between the brokers' "
                f"group.min.session.timeout.ms ({least_ms} ms) and group.max.session.timeout.ms ({most_ms} ms)"
            )
        retention = int(found.get("offsets.retention.minutes") or _OFFSETS_RETENTION_MIN)
        if retention * 60_000 < max(_OFFSETS_RETENTION_MIN * 60_000, checkpoint_interval_ms * 2):
            self._problems.append(
                f"the brokers forget group offsets after {retention} minutes (offsets.retention.minutes): a deleted changelog "
                f"could not be told from a new job; at least {_OFFSETS_RETENTION_MIN} is needed"
            )

    async def _create_missing(self, subtasks: int) -> bool:
        """Create topics that do not exist; whether there were any."""
        topics, known = self._topics, self._known
        roles = topics.roles
        replicas = self._creation.replication_factor
        if replicas is None:
            replicas = min(_REPLICAS, len((await self._admin.describe_cluster())["brokers"]))
        read_max = max((self._message_max(topic) for topic in topics.inputs), default=_MESSAGE_MAX)
        wanted = topics.every
        missing = [topic for topic in wanted if topic not in known]
        for topic in missing:
            config = dict(_CONFIGS.get(roles.get(topic, ""), {}))
            if topic == topics.dead_letters or topic in topics.repartition:
                config["max.message.bytes"] = str(read_max + _HEADERS_BYTES)
            try:
                await self._admin.create_topics([NewTopic(topic, subtasks, replicas, topic_configs=config)])
            except TopicAlreadyExistsError:
                continue  # another worker of the job was faster
        return bool(missing)


def _or_hidden(settings: KafkaSettings) -> str:
    return "" if settings.security.protocol == "plaintext" else ", or this client may not see it"

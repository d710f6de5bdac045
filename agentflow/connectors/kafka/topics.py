"""Topics of a job: what must be there, what is created, all problems at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError

from agentflow.connectors.kafka.connection import client_options, unreachable
from agentflow.errors import ConfigError
from agentflow.runtime.settings import KafkaSettings

_REPLICAS = 3
_CHANGELOG_CONFIG = {"cleanup.policy": "compact"}


async def prepare_topics(settings: KafkaSettings, inputs: Sequence[str], outputs: Sequence[str], changelog: str) -> int:
    """Check the topics of a job and create what may be created; return the number of subtasks.

    Raises:
        ConfigError: With every problem: inputs that are missing or have unequal partition counts, outputs that are missing and
            may not be created, a changelog that is not compacted or has another partition count.
        SourceError: No broker answers.
    """
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await admin.start()
        return await _prepare(admin, settings, inputs, outputs, changelog)
    except KafkaError as error:
        raise unreachable(settings, error) from error
    finally:
        await admin.close()


async def _prepare(
    admin: AIOKafkaAdminClient, settings: KafkaSettings, inputs: Sequence[str], outputs: Sequence[str], changelog: str
) -> int:
    known = await _partition_counts(admin)
    problems = [f"input topic '{topic}' does not exist" for topic in inputs if topic not in known]
    counts = {topic: known[topic] for topic in inputs if topic in known}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"'{topic}' has {count}" for topic, count in counts.items())
        problems.append(
            f"input topics have unequal partition counts ({shown}): records of one key would meet in no subtask"
        )
    subtasks = next(iter(counts.values()), 0)
    missing = [topic for topic in outputs if topic not in known]
    if missing and not settings.create_topics:
        problems += [f"output topic '{topic}' does not exist, and kafka.create-topics is false" for topic in missing]
    if changelog in known:
        problems += await _changelog_problems(admin, changelog, known[changelog], subtasks)
    elif not settings.create_topics:
        problems.append(f"changelog topic '{changelog}' does not exist, and kafka.create-topics is false")
    if problems:
        raise ConfigError(problems)
    await _create(admin, settings, dict.fromkeys(missing, subtasks), {})
    if changelog not in known:
        await _create(admin, settings, {changelog: subtasks}, _CHANGELOG_CONFIG)
    return subtasks


async def _partition_counts(admin: AIOKafkaAdminClient) -> dict[str, int]:
    topics = await admin.list_topics()
    described = await admin.describe_topics(topics)
    return {topic["topic"]: len(topic["partitions"]) for topic in described}


async def _changelog_problems(admin: AIOKafkaAdminClient, changelog: str, count: int, subtasks: int) -> list[str]:
    problems = []
    if subtasks and count != subtasks:
        problems.append(
            f"changelog topic '{changelog}' has {count} partitions, the inputs have {subtasks}: after a change of the partition "
            "count keys lie elsewhere; start a job of another name"
        )
    (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, changelog)])
    policy = _config_value(answer, "cleanup.policy")
    if policy != "compact":
        problems.append(
            f"changelog topic '{changelog}' has cleanup.policy={policy}, it has to be compact: it would lose state"
        )
    return problems


def _config_value(answer: Any, name: str) -> str | None:  # noqa: ANN401 (aiokafka's types)
    for resource in answer.resources:
        for entry in resource[4]:
            if entry[0] == name:
                return str(entry[1])
    return None


async def _create(
    admin: AIOKafkaAdminClient, settings: KafkaSettings, topics: Mapping[str, int], config: Mapping[str, str]
) -> None:
    replicas = settings.replication_factor
    if replicas is None:
        replicas = min(_REPLICAS, len((await admin.describe_cluster())["brokers"]))
    for topic, partitions in topics.items():
        try:
            await admin.create_topics([NewTopic(topic, partitions, replicas, topic_configs=dict(config))])
        except TopicAlreadyExistsError:
            continue  # another worker of the job was faster

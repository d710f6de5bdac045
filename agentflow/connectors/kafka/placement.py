"""Which partitioner spreads the input: looked up in some of its records.

A job whose outputs, or whose neighbours, spread keys by another rule than those who feed it has the records of one key in
two subtasks, each with half of its memory. So it is looked at, not believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from agentflow.connectors.kafka.connection import Consumer, client_options, unreachable
from agentflow.connectors.kafka.partitioners import PARTITIONERS, Partitioner
from agentflow.errors import ConfigError
from agentflow.runtime.settings import KafkaSettings

_RECORDS = 20  # per partition, the latest ones: what is written now counts
_PARTITIONS_MAX = 16
_WAIT_MS = 1_000

Sample = tuple[str, int, int, bytes]
"""Topic, partition, offset, key."""


async def find_partitioner(
    settings: KafkaSettings, topics: Sequence[str], count: int, *, is_checked: bool
) -> Partitioner:
    """Return the configured partitioner, or, for ``auto``, the one that the input agrees with (murmur2 if it is empty).

    Args:
        settings: Brokers and partitioner.
        topics: Input topics.
        count: Partitions of each.
        is_checked: Whether a disagreement is an error (not where records are repartitioned anyway).

    Raises:
        ConfigError: The input is spread by another rule.
        SourceError: No broker answers.
    """
    is_auto = settings.partitioner == "auto"
    samples: list[Sample] = []
    if settings.partitioner_check and count > 1 and (is_auto or is_checked):
        samples = await _samples(settings, topics, count)
    candidates = list(PARTITIONERS) if is_auto else [settings.partitioner]
    for name in candidates:
        if all(PARTITIONERS[name](key, count) == partition for _, partition, _, key in samples):
            return PARTITIONERS[name]
    if not is_checked:
        return PARTITIONERS["murmur2"]
    raise ConfigError([_disagreement(settings.partitioner, samples, count)])


def _disagreement(configured: str, samples: Sequence[Sample], count: int) -> str:
    name = "murmur2" if configured == "auto" else configured
    topic, partition, offset, key = next(
        sample for sample in samples if PARTITIONERS[name](sample[3], count) != sample[1]
    )
    would = PARTITIONERS[name](key, count)
    fitting = [
        other
        for other, place in PARTITIONERS.items()
        if all(place(key, count) == partition for _, partition, _, key in samples)
    ]
    fix = (
        f"set kafka.partitioner: {fitting[0]}, which agrees with all {len(samples)} records that were looked at"
        if fitting
        else "let every producer of the input use one partitioner; or, if each key has its one partition all the same, set "
        "kafka.partitioner-check: false and kafka.partitioner"
    )
    return (
        f"record {topic}/{partition}@{offset} with key {key!r} would be in partition {would} by {name} "
        f"(kafka.partitioner: {configured}): keys would be split over subtasks; {fix}"
    )


async def _samples(settings: KafkaSettings, topics: Sequence[str], count: int) -> list[Sample]:
    consumer = Consumer(**client_options(settings), enable_auto_commit=False, auto_offset_reset="none")
    try:
        await consumer.start()
        partitions = [
            TopicPartition(topic, number) for topic in topics for number in range(min(count, _PARTITIONS_MAX))
        ]
        consumer.assign(partitions)
        begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        wanted = [one for one in partitions if ends[one] > begins[one]]
        for one in wanted:
            consumer.seek(one, max(begins[one], ends[one] - _RECORDS))
        found = []
        for one in wanted:
            fetched: dict[Any, list[Any]] = await consumer.getmany(one, timeout_ms=_WAIT_MS, max_records=_RECORDS)
            found += [(one.topic, one.partition, r.offset, r.key) for r in fetched.get(one, ()) if r.key]
        return found
    except KafkaError as error:
        raise unreachable(settings, error) from error
    finally:
        await consumer.stop()

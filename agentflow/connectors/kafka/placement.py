"""How the keys of a job are spread over its subtasks: decided once, stored with each checkpoint, never another one afterwards.

A job with a key of its own writes its repartition topic itself. So how others spread the input means nothing, and nothing is looked at:
what is configured holds, and ``auto`` is murmur2.

In a job with the record's key, the input decides: the records of one key are where its producers put them, and outputs and signals
have to be where they are. So it is looked at, not believed: some records when the job starts, and the first ones that come of each
partition. An input that is empty, or fits several rules, decides nothing yet: checkpoints name no rule so long, and ``auto`` is
murmur2 until a record shows another one. Whatever was placed meanwhile has the same place by each rule that is still possible.

Rejected: to look at the input at each start and store nothing. It is empty at one start and not at the next, so that one key had two
places, each with half of its memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from agentflow.connectors.kafka.connection import Consumer, client_options, unreachable
from agentflow.connectors.kafka.partitioners import PARTITIONERS
from agentflow.errors import ConfigError
from agentflow.runtime.settings import KafkaSettings

LOOKED_AT = 20
"""Records per partition: the latest ones when the job starts, because what is written now counts; and the first ones that come."""
_PARTITIONS_MAX = 16
_WAIT_MS = 1_000

Sample = tuple[str, int, int, bytes]
"""Topic, partition, offset, key."""


class Placement:
    """The partitioner of a job's keys.

    Args:
        settings: What is configured.
        count: Number of subtasks.
        is_rekeyed: Whether the job's key is not the record's.
        stored: Names that checkpoints of the job say.

    Attributes:
        name: Name of the partitioner in use.
        is_settled: Whether it is known for sure; else no record has come yet that fits it and no other one.
        is_watched: Whether the input is to be looked at.

    Raises:
        ConfigError: Checkpoints say another one than is configured.
    """

    def __init__(self, settings: KafkaSettings, count: int, *, is_rekeyed: bool, stored: Sequence[str] = ()) -> None:
        is_auto = self._is_auto = settings.partitioner == "auto"
        self.is_watched = settings.partitioner_check and count > 1 and not is_rekeyed
        self.is_settled = not self.is_watched
        self._settings = settings
        self._count = count
        self._is_rekeyed = is_rekeyed
        # The input may have an order of its own; what goes out has the one that is configured then, and may get another.
        self._is_free = not is_rekeyed and not settings.partitioner_check and not is_auto
        self._is_stored = False
        self._use([*stored, "murmur2"][0] if is_auto else settings.partitioner)
        for name in stored:
            self.meet(name)

    def __call__(self, key: bytes, partitions: int) -> int:
        """Return the partition of a key."""
        return self._partitioner(key, partitions)

    @property
    def stored_name(self) -> str:
        """What a checkpoint says of it: its name, where that is known for sure."""
        return self.name if self.is_settled else ""

    def meet(self, name: str) -> None:
        """Learn what a stored checkpoint says.

        Raises:
            ConfigError: It is another rule than the one in use.
        """
        if self._is_free:
            return
        if name != self.name and (self.is_settled or not self._is_auto):
            raise ConfigError([self._other(name)])
        self._settle(name)
        self._is_stored = True

    def look(self, samples: Sequence[Sample]) -> None:
        """Learn where records are.

        Raises:
            ConfigError: The rule in use, or where none is settled each that is known, would put one elsewhere.
        """
        fitting = [name for name in PARTITIONERS if self._fits(name, samples)]
        is_open = self._is_auto and not self.is_settled
        if not fitting or (not is_open and self.name not in fitting):
            raise ConfigError([self._disagreement(samples)])
        if not self.is_settled and len(fitting) == 1:
            self._settle(fitting[0])

    def look_at_rows(self, samples: Sequence[Sample]) -> None:
        """Learn where state is whose checkpoints do not name a rule.

        Raises:
            ConfigError: It is not where the configured rule, or any, would have put it.
        """
        if not self._settings.partitioner_check or not samples:
            return
        if self._is_rekeyed and self._is_auto:
            # Other versions took, at their first start, the rule that their input fitted.
            self._settle(next((name for name in PARTITIONERS if self._fits(name, samples)), self.name))
        self.look(samples)

    def _settle(self, name: str) -> None:
        self._use(name)
        self.is_settled = True

    def _use(self, name: str) -> None:
        self.name = name
        self._partitioner = PARTITIONERS[name]

    def _fits(self, name: str, samples: Iterable[Sample]) -> bool:
        place = PARTITIONERS[name]
        return all(place(key, self._count) == partition for _, partition, _, key in samples)

    def _other(self, stored: str) -> str:
        configured = f"kafka.partitioner: {self._settings.partitioner}"
        fix = f"set kafka.partitioner: {stored}, or auto, which takes what is stored"
        if self._is_auto:
            configured += f", which is {self.name} here"
            fix = "start the worker again; it takes what is stored"
        return (
            f"checkpoints of the job say that its keys are placed by {stored}, and the job has {configured}: keys would be split "
            f"over subtasks\nhelp: {fix}; or start a job of another name, which begins with empty state"
        )

    def _disagreement(self, samples: Sequence[Sample]) -> str:
        topic, partition, offset, key = next(one for one in samples if not self._fits(self.name, [one]))
        would = PARTITIONERS[self.name](key, self._count)
        return (
            f"record {topic}/{partition}@{offset} with key {key!r} would be in partition {would} by {self.name} "
            f"({self._reason}): keys would be split over subtasks; {self._fix(samples)}"
        )

    @property
    def _reason(self) -> str:
        configured = f"kafka.partitioner: {self._settings.partitioner}"
        return f"{configured}; the job's checkpoints say {self.name}" if self._is_stored else configured

    def _fix(self, samples: Sequence[Sample]) -> str:
        own = "if each key has its one partition all the same, set kafka.partitioner-check: false and kafka.partitioner"
        if self._is_stored:
            return (
                f"let every producer of the input use {self.name}, as when the job's memory began; or start a job of another name, "
                f"which begins with empty state; or, {own}"
            )
        fitting = next((name for name in PARTITIONERS if self._fits(name, samples)), None)
        if fitting is not None and not self._is_auto:
            return f"set kafka.partitioner: {fitting}, which agrees with all {len(samples)} records that were looked at"
        if self._is_rekeyed:
            return (
                "the memory of keys is split already: start a job of another name, which begins with empty state; or go on with what "
                "lies where kafka.partitioner says: set it, and kafka.partitioner-check: false"
            )
        return f"let every producer of the input use one partitioner; or, {own}"


async def sample_input(settings: KafkaSettings, topics: Sequence[str], count: int) -> list[Sample]:
    """Return the places of some keys: those of the latest records of input topics.

    Args:
        settings: Where the brokers are.
        topics: Input topics.
        count: Partitions of each.

    Raises:
        SourceError: No broker answers.
    """
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
            consumer.seek(one, max(begins[one], ends[one] - LOOKED_AT))
        found = []
        for one in wanted:
            fetched: dict[Any, list[Any]] = await consumer.getmany(one, timeout_ms=_WAIT_MS, max_records=LOOKED_AT)
            found += [(one.topic, one.partition, r.offset, r.key) for r in fetched.get(one, ()) if r.key]
        return found
    except KafkaError as error:
        raise unreachable(settings, error) from error
    finally:
        await consumer.stop()

"""A real broker for tests, and topics written and read by plain clients."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.errors import NotLeaderForPartitionError

ROOT = Path(__file__).resolve().parents[1]


class NoBroker(Exception):
    """No broker is to be had; its text is why."""


def start_broker() -> str:
    """Return the bootstrap servers of a broker, started if need be.

    Raises:
        NoBroker: There is none.
    """
    given = os.environ.get("AGENTFLOW_TEST_KAFKA")
    if given:
        return given
    started = subprocess.run([ROOT / "scripts" / "kafka", "start"], capture_output=True, text=True, check=False)
    if started.returncode != 0:
        raise NoBroker(started.stderr.removeprefix("error: ").partition("\n")[0])
    return started.stdout.strip().splitlines()[-1]


class Topics:
    """Topics of one broker; every call is a client of its own."""

    def __init__(self, brokers: str) -> None:
        self.brokers = brokers

    def create(self, name: str, partitions: int, replicas: int = 1, **config: str) -> None:
        async def create() -> None:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.brokers)
            await admin.start()
            await admin.create_topics([NewTopic(name, partitions, replicas, topic_configs=config)])
            await admin.close()

        asyncio.run(create())

    def delete_before(self, topic: str, partition: int, offset: int) -> None:
        async def delete() -> None:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.brokers)
            await admin.start()
            await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before_offset=offset)})
            await admin.close()

        asyncio.run(delete())

    def configure(self, topic: str, config: dict[str, str]) -> None:
        async def configure() -> None:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.brokers)
            await admin.start()
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, config)])
            await admin.close()

        asyncio.run(configure())

    def has_committed(self, group: str, topic: str, offset: int) -> bool:
        """Whether a group has committed so far in partition 0."""

        async def committed() -> bool:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.brokers)
            await admin.start()
            found = await admin.list_consumer_group_offsets(group)
            await admin.close()
            return any(one.topic == topic and at.offset >= offset for one, at in found.items())

        return asyncio.run(committed())

    def delete(self, name: str) -> None:
        async def delete() -> None:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.brokers)
            await admin.start()
            await admin.delete_topics([name])
            while name in await admin.list_topics():
                pass  # the broker forgets it a little later
            await admin.close()

        asyncio.run(delete())

    def write(
        self, topic: str, records: Iterable[tuple[str | None, Any]], *, request_bytes_max: int = 2**20, **fields: Any
    ) -> None:
        """Write (key, value) records; bytes go as they are, other values as JSON. The client chooses the partitions."""

        async def write() -> None:
            producer = AIOKafkaProducer(
                bootstrap_servers=self.brokers, linger_ms=5, max_batch_size=2**18, max_request_size=request_bytes_max
            )
            await producer.start()
            sent = [
                await producer.send(
                    topic,
                    value if isinstance(value, bytes) or value is None else json.dumps(value).encode(),
                    key=None if key is None else key.encode(),
                    **fields,
                )
                for key, value in records
            ]
            await asyncio.gather(*sent)
            await producer.stop()

        asyncio.run(write())

    def read(self, topic: str, *, isolation: str = "read_committed") -> list[ConsumerRecord]:
        """Return every record of a topic, partition after partition."""

        async def read() -> list[ConsumerRecord]:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self.brokers,
                isolation_level=isolation,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                max_partition_fetch_bytes=2**23,
            )
            await consumer.start()
            try:
                await consumer._client.force_metadata_update()
                partitions = [TopicPartition(topic, n) for n in sorted(consumer.partitions_for_topic(topic) or ())]
                consumer.assign(partitions)
                ends = await self._ends(consumer, partitions)
                for partition in partitions:
                    consumer.seek(partition, 0)
                found: dict[TopicPartition, list[ConsumerRecord]] = {partition: [] for partition in partitions}
                while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
                    for partition, records in (await consumer.getmany(timeout_ms=20)).items():
                        found[partition] += records
                return [record for partition in partitions for record in found[partition]]
            finally:
                await consumer.stop()

        return asyncio.run(read())

    @staticmethod
    async def _ends(consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        while True:
            try:
                return await consumer.end_offsets(partitions)
            except NotLeaderForPartitionError:
                continue  # the topic was made just now

    def values(self, topic: str) -> list[Any]:
        """Return every committed value, decoded."""
        return [json.loads(record.value) for record in self.read(topic)]


def check_history(outputs: Iterable[dict[str, Any]], ids: Iterable[int]) -> str:
    """Say what is wrong with outputs ``{"k": key, "n": count, "id": input}``: lost, doubled, out of order; empty when nothing."""
    counts: dict[str, int] = {}
    missing = dict.fromkeys(ids)
    for output in outputs:
        counts[output["k"]] = counts.get(output["k"], 0) + 1
        if output["n"] != counts[output["k"]]:
            return f"key {output['k']}: count {output['n']} stands at place {counts[output['k']]}"
        if output["id"] not in missing:
            return f"input {output['id']} came twice"
        del missing[output["id"]]
    return f"{len(missing)} inputs have no output, first {next(iter(missing))}" if missing else ""

"""What the client of a real broker does when it ends."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import TopicPartition

from agentflow.connectors.kafka.connection import Consumer

pytestmark = pytest.mark.kafka


async def waiting_consumer(brokers):
    """A consumer with a fetch that waits after an error, as while a broker is away."""
    consumer = Consumer(bootstrap_servers=brokers)
    await consumer.start()
    consumer.assign([TopicPartition("no-such-topic", 0)])
    fetch = asyncio.ensure_future(asyncio.sleep(60))
    await asyncio.sleep(0)
    consumer._fetcher._pending_tasks.add(fetch)
    return consumer


async def test_end_of_a_consumer_does_not_look_like_the_cancellation_of_who_ends_it(kafka):
    consumer = await waiting_consumer(kafka)
    await consumer.stop()
    assert consumer._client._conns == {}


async def test_cancellation_of_who_ends_a_consumer_is_not_lost(kafka):
    consumer = await waiting_consumer(kafka)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await consumer.stop()

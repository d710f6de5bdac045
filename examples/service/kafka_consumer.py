"""A background worker in a service that has its own Kafka consumer: records go to an engine, answers to the service's own producer.

    KAFKA=localhost:9092 STATE_DIR=./state python -m examples.service.kafka_consumer questions answers

A record's position is its request id, and offsets are committed behind the answers. So a crash anywhere gives the engine some records
again, and each of them the answer that it had: no run happens twice, and no model is asked twice. Only answers may be produced again,
word for word, because this producer is the service's own; a job that needs each of them once is one for `agentflow worker`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord

from agentflow import Engine, RunFailed
from examples.service.support_agent import SupportAgent


async def answer(engine: Engine, producer: AIOKafkaProducer, topic: str, record: ConsumerRecord) -> None:
    """Answer a record."""
    position = f"{record.topic}/{record.partition}/{record.offset}"
    try:
        outputs = await engine.submit(record.key.decode(), json.loads(record.value), request_id=position)
    except RunFailed as error:
        outputs = [{"error": error.what}]
    await producer.send_and_wait(topic, json.dumps(outputs[-1]).encode(), key=record.key)


async def read(engine: Engine, consumer: AIOKafkaConsumer, producer: AIOKafkaProducer, answers: str) -> None:
    """Answer batch by batch: all keys of one at the same time, the records of a key in their order."""
    while True:
        batches = await consumer.getmany(timeout_ms=100)
        await asyncio.gather(
            *(answer(engine, producer, answers, record) for records in batches.values() for record in records)
        )
        if batches:
            await consumer.commit()


async def work(brokers: str, state_dir: str, questions: str, answers: str) -> None:
    """Work until the process is told to stop."""
    consumer = AIOKafkaConsumer(
        questions, bootstrap_servers=brokers, group_id="support", enable_auto_commit=False, auto_offset_reset="earliest"
    )
    producer = AIOKafkaProducer(bootstrap_servers=brokers)
    async with Engine(SupportAgent(), state_dir=state_dir) as engine, consumer, producer:
        reading = asyncio.ensure_future(read(engine, consumer, producer, answers))
        for number in (signal.SIGINT, signal.SIGTERM):  # the service's own: the engine installs none
            asyncio.get_running_loop().add_signal_handler(number, reading.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await reading


if __name__ == "__main__":
    broker, directory = os.environ.get("KAFKA", "localhost:9092"), os.environ.get("STATE_DIR", "./state/support")
    asyncio.run(work(broker, directory, sys.argv[1], sys.argv[2]))

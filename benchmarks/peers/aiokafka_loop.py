"""A loop by hand on aiokafka: `aiokafka_loop.py BROKERS JOB DIRECTORY ACTION INTERVAL_S`. A crash loses its counts."""

import asyncio
import json
import sys
import time
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer


async def main() -> None:
    brokers, job, _, action, interval_s = sys.argv[1:]
    consumer = AIOKafkaConsumer(
        f"{job}-in",
        bootstrap_servers=brokers,
        group_id=job,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=4 * 2**20,
    )
    producer = AIOKafkaProducer(bootstrap_servers=brokers, linger_ms=5, max_batch_size=2**18, acks="all")
    await consumer.start()
    await producer.start()
    counts: dict[str, int] = {}
    sent: list[asyncio.Future[Any]] = []
    committed = time.monotonic()
    while True:
        for records in (await consumer.getmany(timeout_ms=100)).values():
            for record in records:
                value = json.loads(record.value)
                if action == "stateful":
                    counts[value["user"]] = count = counts.get(value["user"], 0) + 1
                    value = {"user": value["user"], "count": count}
                sent.append(await producer.send(f"{job}-out", json.dumps(value).encode(), key=record.key))
        if time.monotonic() - committed > float(interval_s):
            await asyncio.gather(*sent)
            sent.clear()
            await consumer.commit()
            committed = time.monotonic()


if __name__ == "__main__":
    asyncio.run(main())

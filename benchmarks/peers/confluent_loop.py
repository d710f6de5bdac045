"""A loop by hand on confluent-kafka: `confluent_loop.py BROKERS JOB DIRECTORY ACTION INTERVAL_S`. A crash loses its counts."""

import json
import sys
import time

from confluent_kafka import Consumer, Producer


def main() -> None:
    brokers, job, _, action, interval_s = sys.argv[1:]
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": job,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    producer = Producer(
        {
            "bootstrap.servers": brokers,
            "linger.ms": 5,
            "queue.buffering.max.messages": 1_000_000,
            "partitioner": "murmur2_random",
        }
    )
    consumer.subscribe([f"{job}-in"])
    counts: dict[str, int] = {}
    committed = time.monotonic()
    while True:
        for record in consumer.consume(10_000, 0.1):
            value = json.loads(record.value() or b"null")
            if action == "stateful":
                counts[value["user"]] = count = counts.get(value["user"], 0) + 1
                value = {"user": value["user"], "count": count}
            while True:
                try:
                    producer.produce(f"{job}-out", json.dumps(value).encode(), key=record.key())
                    break
                except BufferError:
                    producer.poll(0.1)
        producer.poll(0)
        if time.monotonic() - committed > float(interval_s):
            producer.flush()
            consumer.commit()
            committed = time.monotonic()


if __name__ == "__main__":
    main()

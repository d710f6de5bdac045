"""The transactional producer of a subtask, against a real broker."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest

from agentflow.connectors.kafka.producer import BATCH_BYTES, SubtaskProducer
from agentflow.errors import SinkError
from agentflow.runtime.settings import KafkaSettings
from tests.kafka_topics import Topics

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(60)]


@pytest.fixture
def make(kafka):
    """Make producers of one subtask of a job of its own."""
    job = f"p{uuid.uuid4().hex[:8]}"
    topics = Topics(kafka)
    for topic in (f"{job}-out", f"{job}-changelog"):
        topics.create(topic, 1)

    def make() -> SubtaskProducer:
        return SubtaskProducer(KafkaSettings(brokers=kafka), job, 0, f"{job}-changelog")

    def visible(count: int) -> list[bytes]:
        """Return what readers see, when there is so much: a commit shows a moment after its answer."""
        deadline = time.monotonic() + 20
        while len(values := [record.value for record in topics.read(f"{job}-out")]) < count:
            assert time.monotonic() < deadline, values
        return values

    make.visible = visible
    make.append = lambda producer, value: producer.append(f"{job}-out", 0, b"k", value, [], 1)
    return make


def test_proof_of_ownership_commits_no_output_that_comes_meanwhile(make):
    async def scenario():
        producer = make()
        await producer.start()
        proving = asyncio.ensure_future(producer.prove_ownership())
        await asyncio.sleep(0)
        for _ in range(3):  # full batches leave at once, as soon as nobody else talks to the producer
            make.append(producer, b"x" * BATCH_BYTES)
        await proving
        await producer.close()

    asyncio.run(scenario())
    assert make.visible(0) == []


def test_output_is_visible_behind_the_commit_of_its_epoch_and_that_of_the_next_one_is_not(make):
    async def scenario():
        producer = make()
        await producer.start()
        make.append(producer, b"1")
        producer.barrier()
        make.append(producer, b"2")
        await producer.flush()
        await producer.append_changelog([(b"c", b"")])
        await producer.commit(1, {})
        await producer.close()

    asyncio.run(scenario())
    assert make.visible(1) == [b"1"]


def test_fenced_owner_proves_nothing_and_commits_nothing(make):
    async def scenario():
        old, new = make(), make()
        await old.start()
        make.append(old, b"old")
        old.barrier()
        await old.flush()
        await new.start()
        with pytest.raises(SinkError):
            await old.prove_ownership()
        with pytest.raises(SinkError):
            await old.commit(1, {})
        await old.close()
        make.append(new, b"new")
        new.barrier()
        await new.flush()
        await new.append_changelog([(b"c", b"")])
        await new.commit(1, {})
        await new.close()

    asyncio.run(scenario())
    assert make.visible(1) == [b"new"]

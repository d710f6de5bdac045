"""Streams in a topic: keyed as the job is, at most once, and never waited for."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import msgspec
import pytest

from agentflow import (
    AgentsExecutionEnvironment,
    ChunkKind,
    Engine,
    Event,
    JobSettings,
    OutputEvent,
    ResourceType,
    RunnerContext,
    StreamChunk,
)
from agentflow.connectors.kafka.stream_topic import KafkaStreamTopic
from agentflow.environment.settings import settings_of
from agentflow.runtime.codecs import encoded_key
from agentflow.runtime.settings import KafkaSettings, TopicSettings
from agentflow.testing import ScriptedChatModel
from tests.engines import agent_of, until
from tests.kafka_place import Place
from tests.kafka_topics import Topics


async def act(event: Event, ctx: RunnerContext) -> None:
    answer = await ctx.chat("m", "hi", stream=ctx.stream("answer"))
    ctx.send_event(OutputEvent(answer.content))


def new_agent() -> Any:
    return agent_of(act).add_resource(
        "m", ResourceType.CHAT_MODEL, ScriptedChatModel(rules=[{"when": "", "reply": "one two"}])
    )


def chunk(offset: int, text: str = "x") -> StreamChunk:
    return StreamChunk(stream="s", run="r", step="t", attempt=1, offset=offset, kind=ChunkKind.TEXT, text=text)


def settings(kafka: str, topic: str) -> JobSettings:
    return settings_of({"kafka.brokers": kafka, "streams.kafka.topic": topic})[0]


def found(kafka: str, topic: str) -> dict[bytes, list[StreamChunk]]:
    """Chunks by record key."""
    chunks: dict[bytes, list[StreamChunk]] = {}
    for record in Topics(kafka).read(topic):
        chunks.setdefault(record.key, []).append(msgspec.json.decode(record.value, type=StreamChunk))
    return chunks


@pytest.mark.kafka
async def test_what_an_engine_streams_is_in_the_topic_by_key(kafka: str) -> None:
    topic = f"tokens-{uuid.uuid4().hex[:8]}"
    async with Engine(new_agent(), in_memory=True, config=settings(kafka, topic)) as engine:
        read = [[one async for one in engine.stream(key, 1, tokens=True)] for key in ("ann", 7)]
    chunks = await asyncio.to_thread(found, kafka, topic)
    assert chunks == {b"ann": read[0][:-1], b"7": read[1][:-1]}
    assert [one.kind for one in chunks[b"ann"]] == [ChunkKind.TEXT, ChunkKind.TEXT, ChunkKind.END]


@pytest.mark.kafka
async def test_of_a_job_every_step_begins_with_a_reset_since_it_may_have_spoken_before(kafka: str) -> None:
    topic = f"tokens-{uuid.uuid4().hex[:8]}"
    environment = AgentsExecutionEnvironment.get_execution_environment(settings(kafka, topic))
    environment.from_list([{"k": "ann"}]).key_by("k").apply(new_agent()).to_list()
    await environment.job().run()
    chunks = await asyncio.to_thread(found, kafka, topic)
    assert [(one.offset, one.text or str(one.kind)) for one in chunks[b"ann"]] == [
        (1, "reset"), (2, "one "), (3, "two"), (4, "end"),
    ]  # fmt: skip


@pytest.mark.kafka
@pytest.mark.timeout(120)
def test_a_worker_streams_into_the_topic_of_its_job_file(tmp_path: Any, kafka: str) -> None:
    place = Place(tmp_path, kafka)
    (place.path / "agents.py").write_text(AGENTS)
    job, topic = place.path / "job.yaml", f"{place.job}-tokens"
    job.write_text(job.read_text() + f"streams.kafka.topic: {topic}\n")
    place.topics.create(place.source, 2)
    place.write(20, keys=5)
    with place.worker() as worker:
        place.wait_for(place.sink, 20, worker)
        place.wait_for(topic, 40, worker)
    chunks = found(kafka, topic)
    assert len(chunks) == 5
    assert sorted(one.value for of_key in chunks.values() for one in of_key if one.kind == ChunkKind.VALUE) == list(
        range(20)
    )


AGENTS = """\
from agentflow import Agent, EventType, OutputEvent, action


class Count(Agent):
    @staticmethod
    @action(EventType.InputEvent)
    def act(event, ctx):
        ctx.stream().write(event.input["id"])
        ctx.send_event(OutputEvent(event.input))
"""


async def test_brokers_that_are_away_hold_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    away = settings("127.0.0.1:1", "tokens")
    async with Engine(new_agent(), in_memory=True, config=away) as engine:
        assert [one async for one in engine.stream("k", 1)] == ["one two"]
    assert "chunks of streams are lost" in caplog.text


async def test_what_there_is_no_room_for_is_dropped_the_oldest_first_and_counted() -> None:
    outlet = KafkaStreamTopic(KafkaSettings(brokers="127.0.0.1:1"), TopicSettings(), "tokens", 1_500)
    for offset in range(10):
        outlet.write(encoded_key("k"), chunk(offset))
    waiting = [msgspec.json.decode(value)["offset"] for _, value in outlet._waiting]
    assert waiting == list(range(10 - len(waiting), 10))
    assert 0 < len(waiting) < 10
    assert outlet.dropped == 10 - len(waiting)
    await outlet.close()
    assert [count for count, _ in outlet.counts()] == [0, 10, 0], "nothing was on its way"


@pytest.mark.kafka
async def test_chunks_that_the_brokers_have_are_counted(kafka: str) -> None:
    outlet = KafkaStreamTopic(KafkaSettings(brokers=kafka), TopicSettings(), f"tokens-{uuid.uuid4().hex[:8]}", 10_000)
    outlet.write(encoded_key("k"), chunk(1))
    await until(lambda: outlet.written == 1)
    outlet.write(encoded_key("k"), chunk(2))
    await outlet.close()
    assert {attributes["outcome"]: count for count, attributes in outlet.counts()} == {
        "written": 2, "dropped": 0, "failed": 0,
    }  # fmt: skip

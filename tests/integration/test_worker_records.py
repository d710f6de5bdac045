"""What a worker makes of records: values, keys, headers, sizes, event time; and where it stops rather than guess."""

from __future__ import annotations

import asyncio
import json
import shutil

import msgspec
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from agentflow.connectors.kafka.partitioners import crc32
from tests.kafka_place import Place

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

AGENTS = """\
import msgspec
from agentflow import Agent, EventType, InputEvent, OutputEvent, RunnerContext, TimerEvent, action


class Reversed:
    name = "reversed"

    def decode(self, value, type):
        if value == b"broken":
            raise KeyError("no such thing")
        return value[::-1].decode()

    def encode(self, value):
        return value.encode()[::-1]


class Echo(Agent):
    @action(EventType.InputEvent)
    def echo(event: InputEvent, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(event.input))


class Traced(Agent):
    @action(EventType.InputEvent)
    def trace(event: InputEvent, ctx: RunnerContext) -> None:
        seen = {name: value.decode() for name, value in ctx.headers}
        ctx.send_event(OutputEvent(seen))
        ctx.send_event(OutputEvent(seen, headers={"own": "ä", "traceparent": b"00-b"}))


class Sized(Agent):
    @action(EventType.InputEvent)
    def size(event: InputEvent, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent("x" * event.input))


class Counted(Agent):
    @action(EventType.InputEvent)
    def count(event: InputEvent, ctx: RunnerContext) -> None:
        n = ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)
        ctx.send_event(OutputEvent({"key": ctx.key, "n": n, "id": event.input["id"]}))


class Hourly(Agent):
    @action(EventType.InputEvent)
    def note(event: InputEvent, ctx: RunnerContext) -> None:
        ctx.set_timer("end", after="1h", is_event_time=True)

    @action(EventType.TimerEvent)
    def end(event: TimerEvent, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent({"key": ctx.key, "due": event.due_ms}))
"""


@pytest.fixture
def place(tmp_path, kafka):
    made = Place(tmp_path, kafka)
    (tmp_path / "agents.py").write_text(AGENTS)
    return made


def settings(*pairs):
    return [part for pair in pairs for part in ("--set", pair)]


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        ("json", b'{"a":[1,null,"\xc3\xa4"]}'),
        ("msgpack", msgspec.msgpack.encode({"a": b"\x00\xff"})),
        ("string", "ä\n".encode()),
        ("bytes", b"\x00\xff\xfe"),
        ("agents:Reversed", b"olleh"),
    ],
)
def test_values_come_and_go_in_their_codec_and_tombstones_stay_tombstones(place, codec, value):
    place.topics.create(place.source, 1)
    place.topics.write(place.source, [("k", value), ("k", None)])
    arguments = settings("agent=agents:Echo", f"source.value={codec}", f"sink.value={codec}")
    with place.worker(*arguments) as worker:
        records = place.wait_for_records(place.sink, 2, worker)
    assert [(record.key, record.value) for record in records] == [(b"k", value), (b"k", None)]


def test_what_cannot_be_decoded_is_a_dead_letter_with_its_own_bytes_and_the_partition_goes_on(place):
    place.topics.create(place.source, 1)
    values = [b"olleh", b"broken", None, b"dlrow"]
    place.topics.write(place.source, [("k", value) for value in values], headers=[("h", b"\xff")])
    arguments = settings("agent=agents:Echo", "source.value=agents:Reversed", "sink.value=string")
    with place.worker(*arguments) as worker:
        records = place.wait_for_records(place.sink, 3, worker)
        dead = place.wait_for_records(place.dead, 1, worker)
    assert [record.value for record in records] == [b"hello", None, b"world"]
    (letter,) = dead
    headers = dict(letter.headers)
    assert (letter.key, letter.value, letter.headers[0]) == (b"k", b"broken", ("h", b"\xff"))
    assert headers["agentflow-error-type"] == b"DecodeError"
    assert headers["agentflow-error-message"] == b"KeyError: 'no such thing'"
    assert headers["agentflow-source-position"] == f"{place.source}/0/1".encode()
    assert "dead letter" in worker.log.read_text()


@pytest.mark.parametrize("key_by", ["record.key", "user"])
def test_headers_reach_the_agent_and_the_trace_goes_through(place, key_by):
    place.topics.create(place.source, 1)
    sent = [("traceparent", b"00-a"), ("other", b"x")]
    place.topics.write(place.source, [("k", {"user": 1})], headers=sent)
    with place.worker(*settings("agent=agents:Traced", f"key-by={key_by}")) as worker:
        plain, own = place.wait_for_records(place.sink, 2, worker)
    assert json.loads(plain.value) == {"traceparent": "00-a", "other": "x"}
    assert plain.headers == (("traceparent", b"00-a"),)
    assert own.headers == (("own", "ä".encode()), ("traceparent", b"00-b"))


def test_record_above_record_max_and_output_above_the_topic_go_to_the_dead_letters(place):
    place.topics.create(place.source, 1, **{"max.message.bytes": "6000000"})
    large = json.dumps("y" * 5_000_000).encode()
    place.topics.write(place.source, [("k", 10), ("k", large), ("k", 2_000_000), ("k", 20)], request_bytes_max=2**24)
    with place.worker(*settings("agent=agents:Sized")) as worker:
        outputs = place.wait_for_records(place.sink, 2, worker)
        first, second = place.wait_for_records(place.dead, 2, worker)
    assert [len(json.loads(record.value)) for record in outputs] == [10, 20]
    assert (first.value, dict(first.headers)["agentflow-error-type"]) == (large, b"RecordTooLarge")
    assert (second.value, dict(second.headers)["agentflow-error-type"]) == (b"2000000", b"RecordTooLarge")
    assert b"max.message.bytes" in dict(second.headers)["agentflow-error-message"]


@pytest.mark.parametrize("key_by", ["user.id", "agents:key_of"])
def test_job_with_another_key_goes_through_a_repartition_topic_exactly_once(place, key_by):
    (place.path / "agents.py").write_text(AGENTS + "\n\ndef key_of(value):\n    return value['user']['id']\n")
    place.topics.create(place.source, 4)
    users = [1, "1", 2.5, "ä", True]
    records = [(f"k{n % 7}", {"id": n, "user": {"id": users[n % 5]}}) for n in range(500)]
    place.topics.write(place.source, [*records, ("k0", {"id": -1})], headers=[("h", b"1")])
    arguments = settings("agent=agents:Counted", f"key-by={key_by}")
    with place.worker(*arguments, sends=9) as worker:
        place.wait_for(place.sink, 500, worker)
        (dead,) = place.wait_for_records(place.dead, 1, worker)
    assert (dead.key, json.loads(dead.value), dead.headers[0]) == (b"k0", {"id": -1}, ("h", b"1"))
    shutil.rmtree(place.path / "state")
    more = [(f"k{n % 7}", {"id": n, "user": {"id": users[n % 5]}}) for n in range(500, 700)]
    place.topics.write(place.source, more)
    with place.worker(*arguments) as worker:
        values = place.wait_for(place.sink, 700, worker)
    by_key = {}
    for value in values:
        by_key.setdefault(repr(value["key"]), []).append(value["n"])
    assert by_key == {repr(user): list(range(1, 141)) for user in users}
    assert sorted(value["id"] for value in values) == list(range(700))


def test_dead_letter_from_behind_a_repartition_topic_is_the_record_as_it_came(place):
    place.topics.create(place.source, 1)
    place.topics.write(place.source, [("k", {"user": 7})], headers=[("h", b"1")])
    with place.worker(*settings("agent=agents:Counted", "key-by=user")) as worker:
        (dead,) = place.wait_for_records(place.dead, 1, worker)
    headers = dict(dead.headers)
    assert (dead.key, json.loads(dead.value), headers["agentflow-key"]) == (b"k", {"user": 7}, b"7")
    assert headers["agentflow-source-position"] == f"{place.source}/0/0".encode()
    assert [name for name in headers if name in ("agentflow-origin", "agentflow-original-key")] == []


def test_at_least_once_shows_outputs_before_the_checkpoint_and_counts_exactly(place):
    place.topics.create(place.source, 2)
    place.topics.write(place.source, [(f"k{n % 5}", {"id": n}) for n in range(100)])
    arguments = settings("agent=agents:Counted", "guarantee=at-least-once", "checkpoint.interval=20s")
    with place.worker(*arguments) as worker:
        place.wait_for(place.sink, 100, worker)
    place.topics.write(place.source, [(f"k{n % 5}", {"id": n}) for n in range(100, 105)])
    with place.worker(*arguments) as worker:
        values = place.wait_for(place.sink, 105, worker)
    assert sorted(value["n"] for value in values if value["id"] >= 100) == [21] * 5


@pytest.mark.parametrize(("reset", "expected"), [("earliest", {6, 7, 8, 9}), ("latest", set())])
def test_offset_that_is_gone_is_passed_over_only_where_the_job_says_so(place, reset, expected):
    place.topics.create(place.source, 1)
    place.topics.write(place.source, [("k", {"id": n}) for n in range(3)])
    with place.worker(*settings("agent=agents:Counted")) as worker:
        place.wait_for(place.sink, 3, worker)
    place.topics.write(place.source, [("k", {"id": n}) for n in range(3, 10)])
    place.topics.delete_before(place.source, 0, 6)
    failed = place.run(*settings("agent=agents:Counted", "restart.strategy=none"))
    assert (failed.returncode, f"error: offset 3 of '{place.source}/0' does not exist" in failed.stderr) == (1, True)
    with place.worker(*settings("agent=agents:Counted", f"source.on-offset-reset={reset}")) as worker:
        while "offset reset" not in worker.log.read_text():
            assert worker.poll() is None, worker.log.read_text()
        place.topics.write(place.source, [("k", {"id": 99})])
        values = place.wait_for(place.sink, 4 + len(expected), worker)
    assert {value["id"] for value in values} == {0, 1, 2, 99} | expected


def test_partitioner_is_found_in_the_input_and_a_wrong_one_is_an_error(place):
    place.topics.create(place.source, 4)
    keys = [f"k{n}" for n in range(40)]
    for key in keys:
        place.topics.write(place.source, [(key, {"id": key})], partition=crc32(key.encode(), 4))
    failed = place.run(*settings("agent=agents:Counted", "kafka.partitioner=murmur2"))
    assert failed.returncode == 2
    assert "by murmur2" in failed.stderr
    assert "set kafka.partitioner: crc32, which agrees with all 40 records" in failed.stderr
    with place.worker(*settings("agent=agents:Counted")) as worker:
        place.wait_for(place.sink, 40, worker)
    assert all(record.partition == crc32(record.key, 4) for record in place.topics.read(place.sink))


def test_new_partitions_stop_the_job_and_say_what_to_do(place):
    place.topics.create(place.source, 2)
    place.topics.write(place.source, [("k", {"id": 1})])

    async def add_partitions() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=place.topics.brokers)
        await admin.start()
        await admin.create_partitions({place.source: NewPartitions(3)})
        await admin.close()

    with place.worker(*settings("agent=agents:Counted")) as worker:
        place.wait_for(place.sink, 1, worker)
        asyncio.run(add_partitions())
        assert worker.wait(30) == 1
        told = worker.log.read_text()
        assert f"topic '{place.source}' has 3 partitions now, and had 2" in told
        assert "start a job of another name" in told
        worker.is_expected_to_end = True
    again = place.run(*settings("agent=agents:Counted"))
    assert again.returncode == 2
    assert f"changelog topic '{place.job}-changelog' has 2 partitions, the inputs have 3" in again.stderr


def test_idle_topic_does_not_hold_the_watermark_and_a_quiet_one_does_without_the_setting(place):
    other = f"{place.job}-quiet"
    for topic in (place.source, other):
        place.topics.create(topic, 1)
    hour = 3_600_000
    for number in range(3):
        place.topics.write(place.source, [("k", number)], timestamp_ms=hour * (1 + 2 * number))
    arguments = settings(
        "agent=agents:Hourly", f"source.topics=[{place.source}, {other}]", "event-time.watermarks=ascending"
    )
    with place.worker(*arguments) as worker:
        while not place.topics.has_committed(place.job, place.source, 3):
            assert worker.poll() is None, worker.log.read_text()
    assert place.topics.values(place.sink) == []
    with place.worker(*arguments, *settings("source.idle-timeout=300ms")) as worker:
        place.topics.write(place.source, [("other", 9)], timestamp_ms=hour * 9)
        (value,) = place.wait_for(place.sink, 1, worker)
    assert value == {"key": "k", "due": hour * 6}

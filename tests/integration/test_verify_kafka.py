"""`agentflow verify` of Kafka jobs: a worker beside the job, over topics of its own, which are gone behind it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from confluent_kafka.admin import AclOperation, AdminClient, ResourcePatternType, ResourceType

from tests.integration.test_doctor_kafka import BOB, agentflow, allow, as_user, cluster
from tests.kafka_place import ROOT, Place
from tests.secure_broker import SecureBroker

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

SLOW = """\
import asyncio
from pathlib import Path

from agentflow import Agent, EventType, InputEvent, RunnerContext, action


class Slow(Agent):
    @action(EventType.InputEvent)
    async def wait(event: InputEvent, ctx: RunnerContext) -> None:
        Path("began").write_text("")
        await asyncio.Event().wait()


class Waiting(Agent):
    @action(EventType.InputEvent)
    async def wait(event: InputEvent, ctx: RunnerContext) -> None:
        await ctx.wait_for("approval")
"""

OPENED = """\
from pathlib import Path

from agentflow import Agent, EventType, OutputEvent, Resource, ResourceType, action


class Held(Resource):
    @classmethod
    def resource_type(cls):
        return ResourceType.TOOL

    async def close(self):
        Path("closed").write_text("")


class Opening(Agent):
    def __init__(self):
        super().__init__()
        self.add_resource("held", ResourceType.TOOL, Held())

    @action(EventType.InputEvent)
    async def open(event, ctx):
        await ctx.get_resource("held", ResourceType.TOOL)
        ctx.send_event(OutputEvent({"n": 1}))
"""


@pytest.fixture
def place(tmp_path, kafka):
    made = Place(tmp_path, kafka)
    (tmp_path / "slow.py").write_text(SLOW)
    return made


def verify(place, *arguments, status=0):
    done = agentflow(place, "verify", "job.yaml", "--json", *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout)


def rehearsals(place):
    """Topics and groups of rehearsals of the job that are there."""
    topics, groups = asyncio.run(cluster(place.topics.brokers))
    return [name for name in (*topics, *(group for group, _ in groups)) if name.startswith(f"{place.job}-verify-")]


def test_the_first_record_comes_out_again_and_all_that_was_made_for_it_is_gone(place):
    place.topics.create(place.source, 2)
    place.write(10)
    seen = verify(place, "--records", "3")
    assert (seen["result"], seen["origin"]) == ("ok", f"kafka {place.source}")
    assert [output["n"] for output in seen["outputs"]] == [1, 1, 1] or len(seen["outputs"]) == 3
    assert all(record["record"].startswith(f"{place.source}/") for record in seen["records"])
    assert {one["record"] for one in seen["actions"]} == {record["record"] for record in seen["records"]}
    assert [stage["name"] for stage in seen["stages"]] == [
        "read",
        "key",
        "topics",
        "started",
        "written",
        "run",
        "checkpoint",
        "end to end",
        "removed",
    ]
    assert "the brokers' clock is " in seen["stages"][4]["what"]
    assert rehearsals(place) == []
    assert not (place.path / "state").exists()


def test_a_running_job_does_not_notice(place):
    place.topics.create(place.source, 2)
    place.write(50)
    with place.worker() as worker:
        place.wait_for(place.sink, 50, worker)
        before = json.loads(agentflow(place, "group", "describe", "job.yaml", "--json").stdout)
        verify(place)
        after = json.loads(agentflow(place, "group", "describe", "job.yaml", "--json").stdout)
        log = worker.log.read_text()
        assert len(place.topics.read(place.sink)) == 50
    assert before == after
    assert "restarts" not in log
    assert log.count("subtasks assigned") == 1


def test_what_the_agent_has_opened_is_closed(place):
    (place.path / "opened.py").write_text(OPENED)
    place.topics.create(place.source, 1)
    place.write(1)
    verify(place, "--records", "1", "--set", "agent=opened:Opening")
    assert (place.path / "closed").exists()


def test_keys_from_values_go_through_a_repartition_topic_there_too(place):
    place.topics.create(place.source, 1)
    place.write(2)
    seen = verify(place, "--records", "2", "--set", "key-by=id")
    assert sorted(output["k"] for output in seen["outputs"]) == [0, 1]
    assert {one["record"] for one in seen["actions"]} == {f"{place.source}/0/0", f"{place.source}/0/1"}
    assert rehearsals(place) == []


def test_a_value_in_the_codec_of_the_source_with_a_key_of_its_own(place):
    place.topics.create(place.source, 1)
    codecs = (
        "--set",
        f"source={{kafka: {{topics: {place.source}, value: msgpack}}}}",
        "--set",
        f"sink={{kafka: {{topic: {place.sink}, value: msgpack}}}}",
    )
    seen = verify(place, *codecs, "--value", '{"id": 7}', "--key", "joe", "--set", "guarantee=at-least-once")
    assert seen["outputs"] == [{"k": "joe", "n": 1, "id": 7}]
    assert seen["records"] == [{"record": "verify/0", "key": "joe"}]


def test_dead_letters_are_a_failure_with_their_reason(place):
    place.topics.create(place.source, 1)
    seen = verify(place, "--value", '{"id": 1, "bad": true}', status=3)
    assert [(one["action"], one["attempt"], one["error"]) for one in seen["actions"]] == [
        ("count", 1, "ValueError: bad on purpose"),
        ("count", 2, "ValueError: bad on purpose"),
    ]
    assert seen["dead_letters"][0]["record"] == "verify/0"
    assert rehearsals(place) == []


def test_a_job_without_input_gets_a_made_up_value_and_needs_no_topic_of_its_own(place):
    seen = verify(place, status=3)  # the agent of this job wants a field that nobody told of
    assert seen["origin"] == "a made-up value"
    assert "KeyError: 'id'" in seen["problem"]
    assert place.source not in asyncio.run(cluster(place.topics.brokers))[0]


def test_a_run_that_waits_and_an_action_that_does_not_end(place):
    waiting = verify(place, "--value", "{}", "--set", "agent=slow:Waiting")
    assert (waiting["result"], waiting["waits"][0]["what"]) == ("waiting", "signal 'approval'")
    slow = verify(place, "--value", "{}", "--set", "agent=slow:Slow", "--timeout", "2s", status=3)
    assert slow["problem"] == "action 'wait' did not end within 2 s"
    assert rehearsals(place) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_rehearsal_removes_its_topics_and_its_group(place, number):
    command = [sys.executable, "-m", "agentflow", "verify", "job.yaml", "--value", "{}", "--set", "agent=slow:Slow"]
    with subprocess.Popen(
        command,
        cwd=place.path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not (place.path / "began").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
        assert rehearsals(place)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
        told = process.stderr.read()
    assert f"interrupted by {number.name}" in told
    assert "left behind" not in told
    assert rehearsals(place) == []


def test_brokers_that_are_not_there_are_a_failure_that_names_doctor(place):
    seen = verify(place, "--set", "kafka.brokers=127.0.0.1:1", status=3)
    assert "no Kafka broker answers" in seen["problem"]
    assert seen["fix"]


def test_topics_of_a_killed_rehearsal_are_noted_by_doctor(place):
    place.topics.create(place.source, 1)
    place.topics.create(f"{place.job}-verify-0123abcd-in", 1)
    done = agentflow(place, "doctor", "job.yaml", "--json")
    (row,) = [row for row in json.loads(done.stdout) if row["check"] == "rehearsals"]
    assert (row["result"], f"{place.job}-verify-0123abcd-in" in row["found"]) == ("note", True)


# -- a user who may make topics, and not delete them
@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    made = SecureBroker(tmp_path_factory.mktemp("secure"))
    made.start()
    yield made
    made.stop()


def test_what_cannot_be_removed_is_told_and_is_a_failure(tmp_path, broker):
    place = Place(tmp_path, broker.address)
    place.topics.create(place.source, 1)
    every, flags = ResourcePatternType.PREFIXED, as_user(broker, 3, **BOB)
    refused = verify(place, "--value", '{"id": 1}', *flags, status=3)
    assert f"the brokers do not create topic '{place.job}-verify-" in refused["problem"]
    assert f"topics that begin with '{place.job}-verify-'" in refused["fix"]
    assert refused["left_behind"] == []
    for operation in (AclOperation.READ, AclOperation.WRITE, AclOperation.CREATE, AclOperation.DESCRIBE_CONFIGS):
        allow(broker, operation, ResourceType.TOPIC, place.job, every)
    allow(broker, AclOperation.READ, ResourceType.GROUP, place.job, every)
    allow(broker, AclOperation.WRITE, ResourceType.TRANSACTIONAL_ID, place.job, every)
    seen = verify(place, "--value", '{"id": 1}', *flags, status=3)
    assert seen["outputs"] == [{"k": "verify", "n": 1, "id": 1}]
    assert (seen["result"], seen["problem"]) == ("failed", None)
    left = [one for one in seen["left_behind"] if one.startswith("topic ")]
    assert sorted(name.split()[1] for name in left) == sorted(
        name for name in asyncio.run(topics_of(broker)) if name.startswith(f"{place.job}-verify-")
    )
    assert len(left) == 5
    assert any("TopicAuthorizationFailedError" in one for one in left)
    assert "kafka-topics.sh --delete" in seen["fix"]
    admin = AdminClient({"bootstrap.servers": broker.address})
    for future in admin.delete_topics([one.split()[1] for one in left]).values():
        future.result()


async def topics_of(broker):
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await admin.start()
    try:
        return await admin.list_topics()
    finally:
        await admin.close()

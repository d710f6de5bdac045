"""`agentflow doctor` of Kafka jobs against a real broker: what it finds there, and that it changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tests.kafka_place import ROOT, Place
from tests.secure_broker import Authority, SecureBroker

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]


@pytest.fixture
def place(tmp_path, kafka):
    return Place(tmp_path, kafka)


def agentflow(place, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-m", "agentflow", *arguments],
        cwd=place.path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def doctor(place, *arguments, status=0):
    """Run the command and return the findings of each check."""
    done = agentflow(place, "doctor", "job.yaml", "--json", *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    found = {}
    for row in json.loads(done.stdout):
        found.setdefault(row["check"], []).append(row)
    return found


def texts(found, check):
    return [row["found"] for row in found[check]]


def outcomes(found, check):
    return [row["result"] for row in found[check]]


async def cluster(brokers):
    """Topics and groups."""
    admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
    await admin.start()
    try:
        return sorted(await admin.list_topics()), sorted(await admin.list_consumer_groups())
    finally:
        await admin.close()


def test_a_job_whose_input_is_there_is_ready_and_nothing_is_made(place):
    place.topics.create(place.source, 3)
    place.write(50)
    before = asyncio.run(cluster(place.topics.brokers))
    found = doctor(place)
    for check in ("client", "brokers", "topics", "topic creation", "rights", "group", "changelog", "partitioner"):
        assert outcomes(found, check) == ["ok"], (check, found[check])
    assert "3 subtasks" in texts(found, "topics")[0]
    assert f"'{place.job}-changelog'" in texts(found, "topics")[0]
    assert texts(found, "changelog") == ["the job has not run yet"]
    assert texts(found, "topic settings")[0].startswith("one broker: what it loses is lost")
    after = asyncio.run(cluster(place.topics.brokers))
    assert [name for name in after[0] if place.job in name] == [name for name in before[0] if place.job in name]
    assert [name for name, _ in after[1] if place.job in name] == []
    assert not (place.path / "state").exists()


def test_problems_of_topics_are_those_of_a_worker_each_with_its_fix(place):
    place.topics.create(f"{place.job}-a", 2)
    place.topics.create(f"{place.job}-b", 3)
    place.topics.create(f"{place.job}-changelog", 2)
    inputs = f"[{place.job}-a, {place.job}-b, {place.source}]"
    settings = ("--set", f"source={{kafka: {{topics: {inputs}}}}}", "--set", "topics.create=false")
    found = doctor(place, *settings, status=3)
    worker = agentflow(place, "worker", "job.yaml", *settings)
    assert len(found["topics"]) >= 5
    for row in found["topics"]:
        assert f"error: {row['found']}\nhelp: {row['fix']}\n" in worker.stderr
    assert outcomes(found, "rights") == ["ok"]
    assert texts(found, "group") == ["'topics' has to be well first"]


def test_topics_that_the_brokers_would_not_make_are_told_with_their_reason(place):
    place.topics.create(place.source, 1)
    found = doctor(place, "--set", "topics.replication-factor=3", status=3)
    (refused,) = texts(found, "topic creation")
    assert refused.startswith(f"the brokers do not create topics '{place.sink}', '{place.dead}'")
    assert "InvalidReplicationFactorError" in refused
    worker = agentflow(place, "worker", "job.yaml", "--set", "topics.replication-factor=3")
    assert (worker.returncode, f"error: {refused}" in worker.stderr) == (2, True)


def test_a_running_job_is_noted_with_its_workers_and_its_state(place):
    place.topics.create(place.source, 2)
    place.write(100)
    with place.worker() as worker:
        place.wait_for(place.sink, 100, worker)
        found = doctor(place)
    assert texts(found, "group") == ["the job is running: members 1, group Stable, lag 0"]
    assert f"process {worker.pid} (" in texts(found, "owner")[0]
    assert outcomes(found, "changelog") == ["ok"]
    assert "2 of 2 subtasks have checkpoints" in texts(found, "changelog")[0]
    assert outcomes(found, "contents") == ["ok"]


def test_members_of_another_program_in_the_jobs_group_are_an_error(place):
    place.topics.create(place.source, 1)

    async def beside():
        consumer = AIOKafkaConsumer(place.source, bootstrap_servers=place.topics.brokers, group_id=place.job)
        await consumer.start()
        try:
            return await asyncio.to_thread(doctor, place, status=3)
        finally:
            await consumer.stop()

    found = asyncio.run(beside())
    assert "members of another program (assignor 'roundrobin')" in texts(found, "group")[0]


def test_a_changelog_that_was_made_anew_is_an_error_for_the_group_and_for_the_copy(place):
    place.topics.create(place.source, 1)
    place.write(20)
    with place.worker() as worker:
        place.wait_for(place.sink, 20, worker)
    place.topics.delete(f"{place.job}-changelog")
    found = doctor(place, status=3)
    assert any("the changelog knows nothing of it" in text for text in texts(found, "changelog"))
    place.topics.create(f"{place.job}-changelog", 1, **{"cleanup.policy": "compact"})
    found = doctor(place, status=3)
    assert any(
        "the state of subtask 0 on this machine is at changelog offset" in text for text in texts(found, "changelog")
    )
    assert any("the changelog knows nothing of it" in text for text in texts(found, "changelog"))


def test_a_changelog_without_its_beginning_is_an_error_unless_a_copy_has_it(place):
    place.topics.create(place.source, 1)
    place.write(20)
    with place.worker() as worker:
        place.wait_for(place.sink, 20, worker)
    place.topics.configure(f"{place.job}-changelog", {"cleanup.policy": "compact,delete"})
    place.topics.delete_before(f"{place.job}-changelog", 0, 2)
    place.topics.configure(f"{place.job}-changelog", {"cleanup.policy": "compact"})
    assert outcomes(doctor(place), "changelog") == ["ok"]
    shutil.rmtree(place.path / "state")
    found = doctor(place, status=3)
    assert texts(found, "changelog") == [f"{place.job}-changelog/0 begins at offset 2; what was before is gone"]


def test_records_that_retention_took_before_they_were_read_are_an_error(place):
    place.topics.create(place.source, 1)
    place.write(20)
    with place.worker() as worker:
        place.wait_for(place.sink, 20, worker)
    place.write(20, start=20)
    place.topics.delete_before(place.source, 0, 30)
    found = doctor(place, status=3)
    assert texts(found, "changelog") == [
        f"{place.source}/0: the next record (20) is gone, the first one that is kept is 30"
    ]
    assert "on-offset-reset: earliest" in found["changelog"][0]["fix"]
    relaxed = ("--set", f"source={{kafka: {{topics: {place.source}, on-offset-reset: earliest}}}}")
    assert outcomes(doctor(place, *relaxed), "changelog") == ["ok"]


def test_an_input_that_was_made_anew_is_an_error(place):
    place.topics.create(place.source, 1)
    place.write(20)
    with place.worker() as worker:
        place.wait_for(place.sink, 20, worker)
    place.topics.delete(place.source)
    place.topics.create(place.source, 1)
    found = doctor(place, status=3)
    assert texts(found, "changelog") == [f"{place.source}/0 ends at offset 0, and the job has read up to 20"]


def test_keys_that_lie_elsewhere_are_an_error_with_the_partitioner_that_fits(place):
    place.topics.create(place.source, 4)
    place.topics.write(place.source, [("k0", {"id": 0})], partition=3)
    place.topics.write(place.source, [("k0", {"id": 1})], partition=2)
    found = doctor(place, status=3)
    assert "keys would be split over subtasks" in texts(found, "partitioner")[0]
    assert outcomes(doctor(place, "--set", "kafka.partitioner-check=false"), "partitioner") == ["skipped"]


def test_records_from_the_future_and_topics_that_forget_are_warnings(place):
    place.topics.create(place.source, 1, **{"retention.ms": "3600000"})
    place.topics.create(f"{place.job}-journal", 1, **{"retention.ms": "1000"})
    later_ms = (time.time_ns() // 1_000_000) + 600_000
    place.topics.write(place.source, [("k", {"id": 1})], timestamp_ms=later_ms)
    found = doctor(place)
    assert outcomes(found, "record times") == ["warning"]
    assert f"{place.source}/0@0 by " in texts(found, "record times")[0]
    settings = "\n".join(texts(found, "topic settings"))
    assert f"input topic '{place.source}' keeps records for 1 h" in settings
    assert f"journal topic '{place.job}-journal' forgets (retention.ms=1000" in settings
    assert agentflow(place, "doctor", "job.yaml", "--strict").returncode == 3


def test_one_broker_of_two_that_is_away_is_a_warning(place):
    place.topics.create(place.source, 1)
    found = doctor(place, "--set", f"kafka.brokers='{place.topics.brokers},127.0.0.1:1'")
    assert outcomes(found, "brokers") == ["ok", "warning"]
    assert texts(found, "brokers")[1].endswith("; the others answer")


# -- a broker with rights
@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    made = SecureBroker(tmp_path_factory.mktemp("secure"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def guarded(tmp_path, broker):
    made = Place(tmp_path, broker.address)
    made.topics.create(made.source, 1)
    made.write(5)
    return made


def as_user(broker, offset, **security):
    pairs = {f"kafka.security.{name.replace('_', '-')}": value for name, value in security.items()}
    pairs["kafka.brokers"] = f"127.0.0.1:{broker.port + offset}"
    return [part for name, value in pairs.items() for part in ("--set", f"{name}={json.dumps(str(value))}")]


BOB = {"protocol": "sasl-plaintext", "mechanism": "PLAIN", "username": "bob", "password": "bob"}


def allow(broker, operation, kind, name, pattern=ResourcePatternType.LITERAL):
    binding = AclBinding(kind, name, pattern, "User:bob", "*", operation, AclPermissionType.ALLOW)
    admin = AdminClient({"bootstrap.servers": broker.address})
    for future in admin.create_acls([binding]).values():
        future.result()


def test_rights_that_are_missing_are_told_one_by_one_and_those_that_are_there_are_not(guarded, broker):
    place = guarded
    with place.worker() as worker:  # as a super user: so that all topics exist
        place.wait_for(place.sink, 5, worker)
    place.topics.create(f"{place.job}-other", 1)
    flags = as_user(broker, 3, **BOB)
    found = doctor(place, *flags, "--set", "topics.create=false", status=3)
    assert "does not exist, or this client may not see it" in texts(found, "topics")[0]
    assert f"ACL: READ on topic {place.source}" in {row["fix"] for row in found["rights"]}
    every = ResourcePatternType.PREFIXED
    allow(broker, AclOperation.DESCRIBE, ResourceType.TOPIC, place.job, every)
    found = doctor(place, *flags, status=3)
    assert any("the settings of changelog topic" in text for text in texts(found, "topics"))
    allow(broker, AclOperation.DESCRIBE_CONFIGS, ResourceType.TOPIC, place.job, every)
    found = doctor(place, *flags, status=3)
    assert outcomes(found, "topics") == ["ok"]
    missing = {row["found"]: row["fix"] for row in found["rights"]}
    read = [place.source, f"{place.job}-changelog", f"{place.job}-journal"]
    assert {fix for text, fix in missing.items() if " read topic " in text} == {
        f"ACL: READ on topic {topic}" for topic in read
    }
    assert f"ACL: WRITE on the transactional ids that begin with {place.job}-" in missing.values()
    assert f"ACL: READ on group {place.job}" in missing.values()
    assert f"ACL: DELETE on topic {place.job}-journal" in missing.values()
    allow(broker, AclOperation.WRITE, ResourceType.TRANSACTIONAL_ID, place.job, every)
    allow(broker, AclOperation.READ, ResourceType.GROUP, place.job)
    allow(broker, AclOperation.READ, ResourceType.TOPIC, place.job, every)
    allow(broker, AclOperation.DELETE, ResourceType.TOPIC, f"{place.job}-journal")
    found = doctor(place, *flags, status=3)
    assert {row["fix"] for row in found["rights"]} == {
        f"ACL: WRITE on topic {topic}"
        for topic in (place.sink, place.dead, f"{place.job}-changelog", f"{place.job}-journal")
    }
    allow(broker, AclOperation.WRITE, ResourceType.TOPIC, place.job, every)
    found = doctor(place, *flags)
    assert outcomes(found, "rights") == ["ok"]
    assert outcomes(found, "group") == ["ok"]
    with place.worker(*flags) as worker:  # what doctor says is enough, is enough
        place.write(5, start=5)
        place.wait_for(place.sink, 10, worker)


def test_asking_for_rights_changes_nothing_and_fences_nobody(guarded, broker):
    place = guarded
    flags = as_user(broker, 0)
    with place.worker() as worker:
        place.wait_for(place.sink, 5, worker)
        ends = [record.offset for record in place.topics.read(f"{place.job}-changelog", isolation="read_uncommitted")]
        found = doctor(place, *flags)
        assert outcomes(found, "rights") == ["ok"]
        again = [record.offset for record in place.topics.read(f"{place.job}-changelog", isolation="read_uncommitted")]
        place.write(5, start=5)
        place.wait_for(place.sink, 10, worker)
        log = worker.log.read_text()
    assert ends == again
    assert "restarts" not in log


def test_wrong_credentials_certificates_and_protocols_are_told_apart_and_without_the_secret(guarded, broker, tmp_path):
    place = guarded
    wrong = {"protocol": "sasl-plaintext", "mechanism": "PLAIN", "username": "alice", "password": "wr0ng"}
    done = agentflow(place, "doctor", "job.yaml", *as_user(broker, 3, **wrong))
    assert done.returncode == 3
    assert "the credentials are refused: " in done.stdout
    assert "Authentication failed" in done.stdout
    assert "wr0ng" not in done.stdout + done.stderr
    other = Authority(tmp_path / "other")
    distrusted = doctor(place, *as_user(broker, 4, protocol="sasl-ssl", mechanism="PLAIN", username="bob", password="bob", ca_file=other.certificate), status=3)  # fmt: skip
    assert "its certificate is not trusted" in texts(distrusted, "brokers")[0]
    plain = doctor(place, *as_user(broker, 4), status=3)
    assert "closed without an answer" in texts(plain, "brokers")[0]
    assert "is this the listener for plaintext" in plain["brokers"][0]["fix"]
    no_file = doctor(place, *as_user(broker, 4, protocol="ssl", ca_file=tmp_path / "none.pem"), status=3)
    assert "the certificates cannot be used" in texts(no_file, "client")[0]


def test_an_address_that_brokers_advertise_and_that_cannot_be_reached_is_an_error(guarded, broker):
    found = doctor(guarded, *as_user(broker, 5), status=3)
    assert outcomes(found, "brokers") == ["ok", "error"]
    assert texts(found, "brokers")[1].startswith(
        "the brokers call one of them 127.0.0.1:1, and from here: no connection"
    )
    assert "advertised.listeners" in found["brokers"][1]["fix"]

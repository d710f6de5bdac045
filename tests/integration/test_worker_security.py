"""SASL and TLS against a real broker: every mechanism runs a job, and what is not allowed is told without the secret."""

from __future__ import annotations

import asyncio
import base64
import json
import time

import pytest
import uvloop
from aiokafka import TopicPartition
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from agentflow.connectors.kafka.connection import Consumer, client_options
from agentflow.runtime.settings import KafkaSettings, SecuritySettings
from tests.kafka_place import Place
from tests.secure_broker import SECRET, Authority, SecureBroker

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    made = SecureBroker(tmp_path_factory.mktemp("secure"))
    made.start()
    admin = AdminClient({"bootstrap.servers": made.address})
    changes = [
        UserScramCredentialUpsertion("alice", ScramCredentialInfo(mechanism, 4096), SECRET.encode())
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512)
    ]
    for change in changes:
        for future in admin.alter_user_scram_credentials([change]).values():
            future.result()
    yield made
    made.stop()


@pytest.fixture
def place(tmp_path, broker):
    made = Place(tmp_path, broker.address)
    made.topics.create(made.source, 1)
    made.write(10)
    return made


def unsecured_token(user):
    """Return a JWT without a signature, which the test's broker takes."""
    parts = [{"alg": "none"}, {"sub": user, "iat": time.time() - 10, "exp": time.time() + 3600}]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


def arguments(broker, offset, **security):
    pairs = {f"kafka.security.{name.replace('_', '-')}": value for name, value in security.items()}
    pairs["kafka.brokers"] = f"127.0.0.1:{broker.port + offset}"
    return [part for name, value in pairs.items() for part in ("--set", f"{name}={json.dumps(str(value))}")]


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"])
@pytest.mark.parametrize("protocol", ["sasl-plaintext", "sasl-ssl"])
def test_job_runs_with_every_mechanism(place, broker, protocol, mechanism, monkeypatch):
    security = {"protocol": protocol, "mechanism": mechanism}
    if protocol == "sasl-ssl":
        security["ca_file"] = broker.ca
    if mechanism == "OAUTHBEARER":
        (place.path / "token").write_text(unsecured_token("alice") + "\n")
        security["token_file"] = place.path / "token"
    else:
        monkeypatch.setenv("KAFKA_PASSWORD", SECRET)
        security |= {"username": "alice", "password": "${env:KAFKA_PASSWORD}"}
    with place.worker(*arguments(broker, 3 if protocol == "sasl-plaintext" else 4, **security)) as worker:
        place.wait_for(place.sink, 10, worker)
        assert SECRET not in worker.log.read_text()


def test_consumer_stops_over_tls_while_the_broker_holds_its_fetch(place, broker):
    security = SecuritySettings(
        protocol="sasl-ssl", mechanism="PLAIN", username="alice", password=SECRET, ca_file=str(broker.ca)
    )
    settings = KafkaSettings(brokers=f"127.0.0.1:{broker.port + 4}", security=security)

    async def read_and_stop():
        consumer = Consumer(**client_options(settings), fetch_max_wait_ms=25_000)
        await consumer.start()
        partition = TopicPartition(place.source, 0)
        consumer.assign([partition])
        await consumer.seek_to_end(partition)
        await consumer.getmany(timeout_ms=300)
        async with asyncio.timeout(10):
            await consumer.stop()

    asyncio.run(read_and_stop())
    uvloop.run(read_and_stop())


def test_job_runs_with_a_client_certificate(place, broker):
    security = {"protocol": "ssl", "ca_file": broker.ca, "certificate_file": broker.certificate, "key_file": broker.key}
    with place.worker(*arguments(broker, 2, **security)) as worker:
        place.wait_for(place.sink, 10, worker)


def test_wrong_password_is_told_without_it(place, broker):
    security = {"protocol": "sasl-plaintext", "mechanism": "PLAIN", "username": "alice", "password": "wr0ng"}
    done = place.run(*arguments(broker, 3, **security))
    assert done.returncode == 1
    assert "error: no Kafka broker answers" in done.stderr
    assert "accepts the credentials of kafka.security" in done.stderr
    assert "Authentication failed: Invalid username or password" in done.stderr
    assert "wr0ng" not in done.stderr


def test_user_without_rights_is_told_what_is_missing(place, broker):
    security = {"protocol": "sasl-plaintext", "mechanism": "PLAIN", "username": "bob", "password": "bob"}
    done = place.run(*arguments(broker, 3, **security))
    assert done.returncode == 2
    assert f"error: input topic '{place.source}' does not exist, or this client may not see it" in done.stderr


def test_certificate_of_another_authority_and_a_missing_file_are_told(place, broker, tmp_path):
    other = Authority(tmp_path / "other")
    security = {"protocol": "sasl-ssl", "mechanism": "PLAIN", "username": "alice", "password": SECRET}
    done = place.run(*arguments(broker, 4, ca_file=other.certificate, **security))
    assert done.returncode == 1
    assert "certificate" in done.stderr.lower()
    done = place.run(*arguments(broker, 4, ca_file=tmp_path / "none.pem", **security))
    assert done.returncode == 2
    assert "error: kafka.security: the certificates cannot be used" in done.stderr


def test_password_in_a_line_with_a_problem_is_not_shown(place, broker):
    text = (place.path / "job.yaml").read_text()
    line = "kafka.security: {protocol: sasl-ssl, mechanism: PLANE, username: alice, password: hunter2}\n"
    (place.path / "job.yaml").write_text(text + line)
    done = place.run()
    assert done.returncode == 2
    assert "mechanism: PLANE" in done.stderr
    assert "hunter2" not in done.stderr

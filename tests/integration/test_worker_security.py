"""SASL and TLS against a real broker: every mechanism runs a job, and what is not allowed is told without the secret."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time

import pytest
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from tests.kafka_place import Place
from tests.own_broker import OwnBroker, free_ports

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]
SECRET = "alice's s3cret, with {every}: thing"
_VALIDATOR = "oauthbearer.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler"
_LOGIN = "org.apache.kafka.common.security"


class Authority:
    """A certificate authority made by the command `openssl`, and certificates that it signed."""

    def __init__(self, path):
        if shutil.which("openssl") is None:
            pytest.skip("no certificates: they need the command openssl")
        self._path = path
        path.mkdir()
        self.certificate = path / "ca.pem"
        self._run(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca"
        )

    def issue(self, name):
        """Return the files of a private key (PKCS #8) and its certificate, for this machine's loopback address."""
        (self._path / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        request = ("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        self._run(*request, "-subj", f"/CN={name}")
        signed = ("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        self._run(*signed, "-out", f"{name}.pem", "-days", "2", "-extfile", "names")
        return self._path / f"{name}.key", self._path / f"{name}.pem"

    def _run(self, *arguments):
        subprocess.run(["openssl", *arguments], cwd=self._path, check=True, capture_output=True)


class SecureBroker(OwnBroker):
    """Listeners: plain, TLS with client certificates (+2), SASL (+3), SASL over TLS (+4)."""

    def __init__(self, path):
        port = free_ports(5)
        authority = Authority(path / "certificates")
        self.ca = authority.certificate
        self.key, self.certificate = authority.issue("worker")
        key, certificate = authority.issue("server")
        (path / "server.pem").write_bytes(key.read_bytes() + certificate.read_bytes())
        listeners = {"PLAINTEXT": 0, "CONTROLLER": 1, "SSL": 2, "SASL": 3, "SASLTLS": 4}
        properties = [
            "listeners=" + ",".join(f"{name}://127.0.0.1:{port + offset}" for name, offset in listeners.items()),
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL:SASL_PLAINTEXT,SASLTLS:SASL_SSL",
            "ssl.keystore.type=PEM",
            f"ssl.keystore.location={path / 'server.pem'}",
            "ssl.truststore.type=PEM",
            f"ssl.truststore.location={self.ca}",
            "listener.name.ssl.ssl.client.auth=required",
            "ssl.principal.mapping.rules=RULE:^.*$/worker/",
            "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users=User:ANONYMOUS;User:worker;User:alice",
        ]
        for name in ("sasl", "sasltls"):
            prefix = f"listener.name.{name}"
            users = f'user_alice="{SECRET}" user_bob="bob"'
            properties += [
                f"{prefix}.plain.sasl.jaas.config={_LOGIN}.plain.PlainLoginModule required {users};",
                f"{prefix}.scram-sha-256.sasl.jaas.config={_LOGIN}.scram.ScramLoginModule required;",
                f"{prefix}.scram-sha-512.sasl.jaas.config={_LOGIN}.scram.ScramLoginModule required;",
                f"{prefix}.oauthbearer.sasl.jaas.config={_LOGIN}.oauthbearer.OAuthBearerLoginModule required;",
                f"{prefix}.oauthbearer.sasl.server.callback.handler.class={_LOGIN}.{_VALIDATOR}",
            ]
        super().__init__(path, properties, port)


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

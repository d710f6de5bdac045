"""A broker with TLS and SASL, whose users have rights or have none, and the certificates for it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.own_broker import OwnBroker, free_ports

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
    """Listeners: plain, TLS with client certificates (+2), SASL (+3), SASL over TLS (+4), and one that is advertised wrongly (+5)."""

    def __init__(self, path):
        port = free_ports(6)
        authority = Authority(path / "certificates")
        self.ca = authority.certificate
        self.key, self.certificate = authority.issue("worker")
        key, certificate = authority.issue("server")
        (path / "server.pem").write_bytes(key.read_bytes() + certificate.read_bytes())
        listeners = {"PLAINTEXT": 0, "CONTROLLER": 1, "SSL": 2, "SASL": 3, "SASLTLS": 4, "WRONG": 5}
        advertised = {name: port + offset for name, offset in listeners.items()} | {"WRONG": 1}
        properties = [
            "listeners=" + ",".join(f"{name}://127.0.0.1:{port + offset}" for name, offset in listeners.items()),
            "advertised.listeners="
            + ",".join(f"{name}://127.0.0.1:{one}" for name, one in advertised.items() if name != "CONTROLLER"),
            "listener.security.protocol.map=WRONG:PLAINTEXT,PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL:SASL_PLAINTEXT,SASLTLS:SASL_SSL",
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

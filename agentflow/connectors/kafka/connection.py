"""Where the brokers are, and what aiokafka's errors mean for a job."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalOperation,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
from aiokafka.helpers import create_ssl_context

from agentflow.errors import AgentflowError, ConfigError, SinkError, SinkForbidden, SourceUnavailable
from agentflow.runtime.settings import KafkaSettings, SecuritySettings

_FORBIDDEN = (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)


REQUEST_BYTES_MAX = 2**30
"""What a record may have is checked against its topic, when it is made."""
KAFKA_ERRORS = (KafkaError, IllegalOperation, asyncio.InvalidStateError, AssertionError)
"""What aiokafka is known to raise."""


class Consumer(AIOKafkaConsumer):  # type: ignore[misc]
    """aiokafka's consumer, with a `stop` that ends.

    Its own cancels fetches that wait after an error and lets that cancellation out, as if the caller had been cancelled; its
    connections stay open then. Over TLS it waits for the broker's close_notify, which comes behind the fetch that the broker
    holds, or, with uvloop now and then, not before ``ssl_shutdown_timeout``, 30 s. Whoever stops wants no more of the fetch.
    """

    def __init__(self, *topics: str, **options: object) -> None:
        super().__init__(*topics, **options)
        self._close_client = self._client.close
        self._client.close = self._disconnect

    async def _disconnect(self) -> None:
        for connection in self._client._conns.values():  # noqa: SLF001 (aiokafka can only close them)
            if connection.connected():
                connection._writer.transport.abort()  # noqa: SLF001 (the same)
        await self._close_client()

    async def stop(self) -> None:
        """Leave the group and disconnect."""
        try:
            await super().stop()
        except asyncio.CancelledError:
            await self._client.close()
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Return the arguments that every aiokafka client of a job has."""
    return {
        "bootstrap_servers": settings.brokers,
        "retry_backoff_ms": 10,
        "request_timeout_ms": 30_000,
        **_security_options(settings.security),
    }


def _security_options(security: SecuritySettings) -> dict[str, Any]:
    protocol = security.protocol.upper().replace("-", "_")
    if protocol == "PLAINTEXT":
        return {}
    options: dict[str, Any] = {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        try:
            context = create_ssl_context(
                cafile=security.ca_file or None,
                certfile=security.certificate_file or None,
                keyfile=security.key_file or None,
                password=security.key_password or None,
            )
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(
                [f"kafka.security: the certificates cannot be used: {error} ({_files(security)})"]
            ) from error
        if not security.check_hostname:
            context.check_hostname = False
        options["ssl_context"] = context
    if protocol.startswith("SASL"):
        options["sasl_mechanism"] = security.mechanism
        if security.mechanism == "OAUTHBEARER":
            options["sasl_oauth_token_provider"] = _TokenFile(security.token_file or "")
        else:
            options |= {"sasl_plain_username": security.username, "sasl_plain_password": security.password}
    return options


def _files(security: SecuritySettings) -> str:
    named = {"ca-file": security.ca_file, "certificate-file": security.certificate_file, "key-file": security.key_file}
    return ", ".join(f"{name}: {path}" for name, path in named.items() if path)


class _TokenFile(AbstractTokenProvider):  # type: ignore[misc]
    """Reads the token for each connection, because whoever writes the file renews it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = Path(path)

    async def token(self) -> str:
        try:
            return self._path.read_text().strip()  # a small local file
        except OSError as error:
            raise AuthenticationFailedError(f"kafka.security.token-file: {error}") from error


def security_problems(security: SecuritySettings) -> list[str]:
    """Return what contradicts itself in ``kafka.security``."""
    problems = []
    is_sasl, is_tls = security.protocol.startswith("sasl"), security.protocol.endswith("ssl")
    if is_sasl and security.mechanism is None:
        problems.append(f"kafka.security.mechanism is missing: protocol {security.protocol} needs one")
    if not is_sasl and security.mechanism is not None:
        problems.append(f"kafka.security.mechanism has no use with protocol {security.protocol}: take sasl-ssl")
    if is_sasl and security.mechanism == "OAUTHBEARER":
        if not security.token_file:
            problems.append("kafka.security.token-file is missing: mechanism OAUTHBEARER needs it")
    elif is_sasl and security.mechanism is not None and not (security.username and security.password):
        problems.append(f"kafka.security needs username and password: mechanism {security.mechanism} sends them")
    if not is_tls and _files(security):
        problems.append(f"kafka.security has files of TLS ({_files(security)}), but protocol {security.protocol}")
    if bool(security.certificate_file) != bool(security.key_file):
        problems.append("kafka.security.certificate-file and key-file belong together")
    return problems


def broken(error: Exception, doing: str, where: dict[str, object]) -> AgentflowError:
    """Return the job's error for one of aiokafka; a restart answers all that it may cure."""
    what = f"{doing}: {type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, _FORBIDDEN):
        return SinkForbidden(
            what,
            where=where,
            expected="a topic that exists, the right to use it, and records below its message.max.bytes",
            fix="look at the topic, its settings, and the rights of this client",
        )
    return SinkError(what, where=where, fix="the subtask goes on from its last completed checkpoint")


def _spoken(security: SecuritySettings) -> str:
    if security.protocol == "plaintext":
        return "speaks plaintext"
    return f"speaks {security.protocol} and accepts the credentials of kafka.security (its log line above says what it does not)"


def unreachable(settings: KafkaSettings, error: KafkaError) -> SourceUnavailable:
    """Return the error of a cluster that does not answer."""
    return SourceUnavailable(
        f"no Kafka broker answers: {error}" if isinstance(error, KafkaConnectionError) else f"Kafka: {error!r}",
        where={"brokers": settings.brokers},
        expected=f"a running broker (kafka.brokers) that {_spoken(settings.security)}",
        fix="start it, or correct kafka.brokers or kafka.security; for tests: scripts/kafka start",
    )

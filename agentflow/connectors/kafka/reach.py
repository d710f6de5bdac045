"""Which brokers can be reached from here: each of those that are configured, and each that they name.

A client asks one of `kafka.brokers` who the others are, and then talks to them at the addresses that they advertise. So a first
answer proves little, and one wrong address of three is noticed on the day when the other two are down.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from typing import Any

import msgspec
from aiokafka.conn import AIOKafkaConnection, collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.admin import ApiVersionRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.record import memory_records

from agentflow.connectors.kafka.connection import client_options
from agentflow.runtime.settings import KafkaSettings

_REFUSED = (AuthenticationFailedError, IllegalSaslStateError, SaslAuthenticationFailed, UnsupportedSaslMechanismError)
_JOIN_GROUP = 11
_NEEDED = {
    22: "InitProducerId",
    24: "AddPartitionsToTxn",
    25: "AddOffsetsToTxn",
    26: "EndTxn",
    28: "TxnOffsetCommit",
    21: "DeleteRecords",
    32: "DescribeConfigs",
}
_STATIC_MEMBERSHIP = 5  # version of JoinGroup
# Fetch version → the first release that had it: brokers do not say what they are.
_RELEASES = (
    (18, "4.1"),
    (17, "3.9"),
    (16, "3.7"),
    (15, "3.5"),
    (13, "3.1"),
    (12, "2.7"),
    (11, "2.3"),
    (8, "2.0"),
    (5, "0.11"),
)


class Contact(msgspec.Struct, frozen=True):
    """What became of a connection to one address.

    Attributes:
        address: ``host:port``.
        error: What went wrong; empty: it answers, and accepts the credentials.
        fix: What to do about it.
        apis: What it can do: number of a request → its highest version.
        brokers: Addresses that it names, in the order of their node ids.
    """

    address: str
    error: str = ""
    fix: str = ""
    apis: dict[int, int] = {}
    brokers: tuple[tuple[str, int], ...] = ()

    @property
    def release(self) -> str:
        """The oldest release of Apache Kafka that speaks like this."""
        fetch = self.apis.get(1, 0)
        return next((f"Kafka {release} or newer" for version, release in _RELEASES if fetch >= version), "before 0.11")

    def lacks(self, *, is_static_member: bool) -> list[str]:
        """Return what a job needs and this broker does not have."""
        missing = [name for number, name in _NEEDED.items() if number not in self.apis]
        if is_static_member and self.apis.get(_JOIN_GROUP, 0) < _STATIC_MEMBERSHIP:
            missing.append("static membership (kafka.instance-id; Kafka 2.3)")
        return missing


def bootstrap_addresses(settings: KafkaSettings) -> list[tuple[str, int]]:
    """Return the configured addresses as (host, port).

    Raises:
        ValueError: One of them is none.
    """
    return [(host, port) for host, port, _ in collect_hosts(settings.brokers, randomize=False)]


def has_extensions() -> bool:
    """Whether aiokafka reads and writes batches by its compiled code; it falls back to a slow one without a word."""
    return memory_records.MemoryRecords is not getattr(memory_records, "_MemoryRecordsPy", None)


async def contact(settings: KafkaSettings, host: str, port: int, timeout_s: float) -> Contact:
    """Connect to one address as a job does, ask what it can do and who the brokers are, and hang up.

    Args:
        settings: Security.
        host: Its host.
        port: Its port.
        timeout_s: Longest time of each of the two steps: a connection, and an answer.

    Raises:
        ConfigError: The certificates of ``kafka.security`` cannot be used.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    options = client_options(settings)
    for name in ("bootstrap_servers", "retry_backoff_ms", "request_timeout_ms"):
        del options[name]
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            await writer.wait_closed()
    except TimeoutError:
        return Contact(
            address,
            f"no connection within {timeout_s:g} s",
            "look at the network and its firewalls, and at kafka.brokers",
        )
    except socket.gaierror as error:
        return Contact(
            address,
            f"the name is not known: {error.strerror}",
            "correct kafka.brokers, or the name service of this machine",
        )
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        return Contact(
            address,
            f"no connection: {reason}",
            "start the broker, or correct kafka.brokers; for tests: scripts/kafka start",
        )
    try:
        async with asyncio.timeout(timeout_s):
            connection = await create_conn(host, port, request_timeout_ms=int(timeout_s * 1000), **options)
            try:
                return await _asked(connection, address)
            finally:
                connection.close()
    except (KafkaError, OSError, TimeoutError, EOFError) as error:
        return Contact(address, *_reason(error, settings, timeout_s))


async def _asked(connection: AIOKafkaConnection, address: str) -> Contact:
    versions = await connection.send(ApiVersionRequest())
    metadata: dict[str, Any] = (await connection.send(MetadataRequest([]))).to_object()
    brokers = sorted(metadata["brokers"], key=lambda broker: broker["node_id"])
    return Contact(
        address,
        apis={number: most for number, _, most in versions.api_versions},
        brokers=tuple((broker["host"], broker["port"]) for broker in brokers),
    )


def _reason(error: BaseException, settings: KafkaSettings, timeout_s: float) -> tuple[str, str]:
    """Return what went wrong behind an accepted connection, and what to do about it."""
    protocol = settings.security.protocol
    hint = f"is this the listener for {protocol} (kafka.security.protocol), and does the broker work?"
    if isinstance(error, TimeoutError):
        return f"the connection is accepted, and nothing answers within {timeout_s:g} s", hint
    cause = error.__cause__ or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        what = f"its certificate is not trusted: {cause.verify_message or cause}"
        return (
            what,
            "name the authority that signed it: kafka.security.ca-file; and the broker by a name of its certificate",
        )
    if isinstance(cause, ssl.SSLError):
        what = f"no TLS: {cause.reason or cause}"
        return what, f"correct kafka.security.protocol (now: {protocol}), the port, or the client certificate"
    if isinstance(cause, _REFUSED):
        what = str(cause).partition("]")[2].strip() or type(cause).__name__
        return (
            f"the credentials are refused: {what}",
            "correct kafka.security: mechanism, username, password, token-file",
        )
    return f"the connection is accepted, and closed without an answer ({type(cause).__name__})", hint

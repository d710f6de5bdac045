"""Where the brokers are, and what aiokafka's errors mean for a job."""

from __future__ import annotations

from typing import Any

from aiokafka.errors import (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)

from agentflow.errors import AgentflowError, SinkError, SinkForbidden, SourceError
from agentflow.runtime.settings import KafkaSettings

_FORBIDDEN = (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Return the arguments that every aiokafka client of a job has."""
    return {"bootstrap_servers": settings.brokers, "retry_backoff_ms": 10, "request_timeout_ms": 30_000}


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


def unreachable(settings: KafkaSettings, error: KafkaError) -> SourceError:
    """Return the error of a cluster that does not answer at start."""
    return SourceError(
        f"no Kafka broker answers: {error}" if isinstance(error, KafkaConnectionError) else f"Kafka: {error!r}",
        where={"brokers": settings.brokers},
        expected="a running broker (kafka.brokers)",
        fix="start it, or correct kafka.brokers; for tests: scripts/kafka start",
    )

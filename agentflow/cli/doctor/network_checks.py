"""The port that the job listens on, and the collector that its telemetry goes to."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

import msgspec

from agentflow.cli.doctor.findings import Finding, Subject, error, ok, skipped, warning

_DEFAULT = "http://localhost:4318"
_BASE = "OTEL_EXPORTER_OTLP_ENDPOINT"
_GRPC_PORT = 4317
_ANSWER_S = 3.0


class Endpoint(msgspec.Struct, frozen=True):
    """Where one kind of telemetry is posted to.

    Attributes:
        signal: traces, metrics or logs.
        url: Its whole URL.
        origin: What names it: a variable, or a key of the job file.
    """

    signal: str
    url: str
    origin: str


def otlp_endpoints(subject: Subject) -> list[Endpoint]:
    """Return where the job's telemetry goes by OTLP over HTTP."""
    settings, variables = subject.job.settings, subject.variables
    signals = {
        "traces": settings.tracing.enabled,
        "metrics": settings.metrics.otlp,
        "logs": settings.event_log.is_on and "otel" in settings.event_log.target,
    }
    found = []
    for signal in (signal for signal, is_pushed in signals.items() if is_pushed):
        own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"
        if settings.otlp.endpoint is None and variables.get(own):
            found.append(Endpoint(signal, variables[own], own))
            continue
        origin = _BASE if settings.otlp.endpoint is None and variables.get(_BASE) else "otlp.endpoint"
        base = settings.otlp.endpoint or variables.get(_BASE) or _DEFAULT
        found.append(Endpoint(signal, f"{base.rstrip('/')}/v1/{signal}", origin))
    return found


def telemetry(subject: Subject) -> Sequence[Finding]:
    """Post an empty message to each endpoint: a collector takes it, and keeps nothing."""
    endpoints = otlp_endpoints(subject)
    if not endpoints:
        return [skipped("the job pushes nothing (tracing.enabled, metrics.otlp, event-log.target: otel)")]
    headers = _headers(subject.variables.get("OTEL_EXPORTER_OTLP_HEADERS", ""))
    return [_asked(endpoint, headers) for endpoint in endpoints]


def _headers(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if "=" in part]
    return {unquote(name.strip()): unquote(value.strip()) for name, _, value in pairs}


def _asked(endpoint: Endpoint, headers: dict[str, str]) -> Finding:
    parts = urlsplit(endpoint.url)
    shown = f"{endpoint.signal}: {endpoint.url} ({endpoint.origin})"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return warning(f"{shown} is no URL", "http://host:4318", f"correct {endpoint.origin}")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=_ANSWER_S)
    try:
        connection.request("POST", parts.path or "/", b"", {"Content-Type": "application/x-protobuf", **headers})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as failure:
        return warning(
            f"{shown}: {_reason(failure)}",
            "a collector that answers: what it does not take is lost",
            _fix(endpoint, parts.port),
        )
    finally:
        connection.close()
    if 200 <= status < 300:
        return ok(shown)
    if status in (401, 403):
        return warning(f"{shown}: HTTP {status}", "credentials that it accepts", "correct OTEL_EXPORTER_OTLP_HEADERS")
    return warning(
        f"{shown}: HTTP {status}",
        "HTTP 200 for an empty message",
        f"correct the path of {endpoint.origin}; a collector has /v1/{endpoint.signal}",
    )


def _reason(failure: Exception) -> str:
    if isinstance(failure, TimeoutError):
        return f"no answer within {_ANSWER_S:g} s"
    if isinstance(failure, ssl.SSLError):
        return f"no TLS: {failure.reason or failure}"
    if isinstance(failure, http.client.HTTPException):
        return f"this is no HTTP ({type(failure).__name__})"
    return str(getattr(failure, "strerror", None) or failure)


def _fix(endpoint: Endpoint, port: int | None) -> str:
    if port == _GRPC_PORT:
        return f"{_GRPC_PORT} is the port of gRPC; this is sent over HTTP: take 4318"
    return f"start the collector, or correct {endpoint.origin}"


def admin_port(subject: Subject) -> Sequence[Finding]:
    """Look whether the port of health and metrics is free."""
    admin = subject.job.settings.admin
    if admin.port is None:
        return [skipped("the job serves no health and metrics (admin.port is not set)")]
    if admin.port == 0:
        return [ok(f"{admin.host}: any free port")]
    try:
        addresses = socket.getaddrinfo(admin.host, admin.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        with socket.socket(addresses[0][0], socket.SOCK_STREAM) as listening:
            listening.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as the server does: a port in TIME_WAIT is free
            listening.bind(addresses[0][4])
            listening.listen(1)
    except (OSError, OverflowError) as failure:
        found = f"{admin.host}:{admin.port} cannot be listened on: {getattr(failure, 'strerror', None) or failure}"
        if _is_agentflow(admin.port):
            expected, fix = (
                "a free port, when the job is to be started",
                "stop the job that listens there, unless it is this one",
            )
            return [warning(f"{found}; a job of agentflow answers there", expected, fix)]
        fix = "stop what listens there (ss -ltnp), or set admin.host, or admin.port"
        return [error(found, "an address of this machine, and a port that nobody has", fix)]
    return [ok(f"{admin.host}:{admin.port} is free")]


def _is_agentflow(port: int) -> bool:
    """Whether the health of a job is served there: most likely this one runs."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/agentflow")
        return b"/livez, /readyz, " in connection.getresponse().read(100)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

"""What metrics and traces share of OpenTelemetry's SDK: who they are from, and where they go."""

from __future__ import annotations

import os
import socket
from typing import Literal

from opentelemetry.sdk.resources import Resource

_DEFAULT_ENDPOINT = "http://localhost:4318"


def resource_of(job: str) -> Resource:
    """Return who metrics and spans are from: a service named as the job, unless OpenTelemetry's variables name another one."""
    named = Resource.create()  # with what OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say
    attributes: dict[str, str] = {"agentflow.job": job, "service.instance.id": f"{socket.gethostname()}:{os.getpid()}"}
    if str(named.attributes.get("service.name", "")).startswith("unknown_service"):
        attributes["service.name"] = job
    return named.merge(Resource(attributes))


def endpoint_of(base: str | None, signal: Literal["metrics", "traces"]) -> str:
    """Return where a signal goes: below the base URL of the settings, else as OpenTelemetry's variables say, else to this machine."""
    if base is None:
        own = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
        if own:
            return own
        base = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or _DEFAULT_ENDPOINT
    return f"{base.rstrip('/')}/v1/{signal}"

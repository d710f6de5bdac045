"""Who metrics and traces are from, as OpenTelemetry's SDK says it."""

from __future__ import annotations

import os
import socket

from opentelemetry.sdk.resources import Resource


def resource_of(job: str) -> Resource:
    """Return who metrics and spans are from: a service named as the job, unless OpenTelemetry's variables name another one."""
    named = Resource.create()  # with what OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say
    attributes: dict[str, str] = {"agentflow.job": job, "service.instance.id": f"{socket.gethostname()}:{os.getpid()}"}
    if str(named.attributes.get("service.name", "")).startswith("unknown_service"):
        attributes["service.name"] = job
    return named.merge(Resource(attributes))

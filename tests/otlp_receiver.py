"""A collector of OpenTelemetry logs: listens on a port of this machine, decodes OTLP, and keeps what it gets."""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest


class Received:
    """What came in.

    Attributes:
        url: Where to post.
        requests: Decoded requests, in order.
        status: What the next requests are answered with.
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[ExportLogsServiceRequest] = []
        self.raw: list[bytes] = []
        self.status = 200

    @property
    def records(self) -> list[tuple[dict[str, Any], Any]]:
        """Return (resource attributes, log record) of every record."""
        return [
            (plain_attributes(resource.resource.attributes), record)
            for request in self.requests
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]


def plain(value: Any) -> Any:
    """Return an OTLP value as Python has it."""
    kind = value.WhichOneof("value")
    if kind == "kvlist_value":
        return plain_attributes(value.kvlist_value.values)
    if kind == "array_value":
        return [plain(one) for one in value.array_value.values]
    return None if kind is None else getattr(value, kind)


def plain_attributes(attributes: Any) -> dict[str, Any]:
    """Return OTLP attributes as a dict."""
    return {one.key: plain(one.value) for one in attributes}


@contextlib.contextmanager
def collector() -> Iterator[Received]:
    """Run a collector."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if received.status == 200:
                received.raw.append(body)
                received.requests.append(ExportLogsServiceRequest.FromString(body))
            self.send_response(received.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 (its signature)
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    received.url = f"http://127.0.0.1:{server.server_address[1]}/v1/logs"
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

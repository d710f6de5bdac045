"""A collector: a real HTTP server that takes OTLP in protobuf, and shows what it got."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")


class Link(NamedTuple):
    trace: str
    span: str
    attributes: dict[str, Any]


class Span(NamedTuple):
    """One span as it came."""

    name: str
    trace: str
    id: str
    parent: str
    kind: str
    began_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    links: list[Link]
    events: list[tuple[str, int, dict[str, Any]]]
    is_error: bool
    status: str
    resource: dict[str, Any]


class Collector:
    """What the server got.

    Attributes:
        spans: In order of arrival.
        metrics: Name → (attributes, protobuf data point) of the last push.
        pushes: Requests with metrics.
        records: (attributes of the resource, protobuf log record), in order of arrival.
        bodies: Every request that was taken, as it came.
        headers: Of the last request.
        status: What it answers.
        refused: Requests that were not answered by 200.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.metrics: dict[str, list[tuple[dict[str, Any], Any]]] = {}
        self.resource: dict[str, Any] = {}
        self.records: list[tuple[dict[str, Any], Any]] = []
        self.bodies: list[bytes] = []
        self.pushes = self.refused = 0
        self.headers: dict[str, str] = {}
        self.status = 200
        self.endpoint = ""
        self._changed = threading.Condition()

    def refuse(self) -> None:
        with self._changed:
            self.refused += 1
            self._changed.notify_all()

    def take(self, path: str, body: bytes) -> None:
        with self._changed:
            self.bodies.append(body)
            if path == "/v1/traces":
                self.spans += spans_of(ExportTraceServiceRequest.FromString(body))
            elif path == "/v1/metrics":
                self._take_metrics(ExportMetricsServiceRequest.FromString(body))
            elif path == "/v1/logs":
                self.records += records_of(ExportLogsServiceRequest.FromString(body))
            else:
                raise AssertionError(path)
            self._changed.notify_all()

    def _take_metrics(self, request: ExportMetricsServiceRequest) -> None:
        self.pushes += 1
        self.metrics = {}
        for of_resource in request.resource_metrics:
            self.resource = attributes_of(of_resource.resource.attributes)
            for scope in of_resource.scope_metrics:
                for metric in scope.metrics:
                    points = getattr(metric, metric.WhichOneof("data")).data_points
                    assert metric.name not in self.metrics, "a metric comes once"
                    self.metrics[metric.name] = [(attributes_of(point.attributes), point) for point in points]

    def value(self, name: str, **attributes: Any) -> Any:
        """Return the one number of a metric with these attributes."""
        (found,) = [
            point for own, point in self.metrics.get(name, []) if all(own.get(k) == v for k, v in attributes.items())
        ]
        return found.as_int or found.as_double

    def wait(self, is_there: Callable[[], Any], seconds: float = 20) -> None:
        """Wait until something has come."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not is_there():
                left = deadline - time.monotonic()
                assert left > 0, "it did not come"
                self._changed.wait(left)

    def by_name(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


def plain(value: Any) -> Any:
    """Return an OTLP value as Python has it."""
    kind = value.WhichOneof("value")
    if kind == "kvlist_value":
        return attributes_of(value.kvlist_value.values)
    if kind == "array_value":
        return [plain(one) for one in value.array_value.values]
    return None if kind is None else getattr(value, kind)


def attributes_of(pairs: Any) -> dict[str, Any]:
    return {pair.key: plain(pair.value) for pair in pairs}


def records_of(request: ExportLogsServiceRequest) -> Iterator[tuple[dict[str, Any], Any]]:
    for of_resource in request.resource_logs:
        resource = attributes_of(of_resource.resource.attributes)
        for scope in of_resource.scope_logs:
            for record in scope.log_records:
                yield resource, record


def spans_of(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for of_resource in request.resource_spans:
        resource = attributes_of(of_resource.resource.attributes)
        for scope in of_resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    KINDS[span.kind],
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    attributes_of(span.attributes),
                    [Link(one.trace_id.hex(), one.span_id.hex(), attributes_of(one.attributes)) for one in span.links],
                    [(one.name, one.time_unix_nano, attributes_of(one.attributes)) for one in span.events],
                    span.status.code == 2,
                    span.status.message,
                    resource,
                )


@contextlib.contextmanager
def collector(port: int = 0) -> Iterator[Collector]:
    """Listen on a port of this machine."""
    seen = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            decompress = {"gzip": gzip.decompress, "deflate": zlib.decompress}.get(self.headers.get("Content-Encoding"))
            body = body if decompress is None else decompress(body)
            seen.headers = dict(self.headers)
            if seen.status == 200:
                seen.take(self.path, body)
            else:
                seen.refuse()
            self.send_response(seen.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Silence."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    seen.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

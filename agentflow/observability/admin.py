"""Health and metrics of a process over HTTP: ``/livez``, ``/readyz``, ``/resources``, ``/metrics``.

The server runs in a thread of its own, because it has to answer when the event loop does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from agentflow.errors import ConfigError
from agentflow.observability.call_metrics import WatchedResources, gate_figures
from agentflow.observability.exporting import Reachability, reason_of
from agentflow.observability.logs import log_event

_TURN_S = 0.1
_STALLED_S = 10.0  # above it the loop is taken for dead: user code that blocks it that long blocks heartbeats too


class LoopWatch:
    """Measures how late the turns of the running event loop come."""

    def __init__(self) -> None:
        self._turned = time.monotonic()
        self._lag_s = 0.0
        self._task = asyncio.ensure_future(self._turn())

    async def _turn(self) -> None:
        while True:
            await asyncio.sleep(_TURN_S)
            now = time.monotonic()
            self._lag_s = max(now - self._turned - _TURN_S, 0.0)
            self._turned = now

    def lag_s(self) -> float:
        """Return the lag of the last turn, or of the one that is overdue; from any thread."""
        return max(self._lag_s, time.monotonic() - self._turned - _TURN_S)

    def is_alive(self) -> bool:
        """Whether the loop turns; from any thread."""
        return self.lag_s() < _STALLED_S

    async def close(self) -> None:
        """Stop measuring."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


class _Server(ThreadingHTTPServer):
    """Says in the log what ends a connection early, instead of on standard error."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002 (its signature)
        """Tell of a client that has gone at level debug: probes and scrapers do that every day."""
        error = sys.exception()
        level = "debug" if isinstance(error, OSError) else "warning"
        host, port = client_address[:2]
        log_event("a connection of the admin server broke", level, client=f"{host}:{port}", reason=repr(error))


class AdminServer:
    """Listens from construction to `close`.

    Args:
        host: Address to listen on.
        port: Port; 0: any free one, see `address`.
        is_alive: Whether the process works; else a supervisor should kill it.
        is_ready: Whether it takes part: None, or why not.
        metrics: Returns Prometheus text.
        resources: Returns what the process's agents have asked for; None: nothing yet. One that failed leaves the process ready: it
            harms only those who ask for it, and whoever asks next tries again.

    Raises:
        ConfigError: The port cannot be had.
    """

    def __init__(
        self,
        host: str,
        port: int,
        is_alive: Callable[[], bool],
        is_ready: Callable[[], str | None],
        metrics: Callable[[], bytes],
        resources: Callable[[], WatchedResources | None] = lambda: None,
    ) -> None:
        soundness = Reachability("some answers", f"{host}:{port}")

        def answer(path: str) -> tuple[int, str, bytes]:
            if path == "/livez":
                return (200, "text/plain", b"ok\n") if is_alive() else (503, "text/plain", b"the event loop stands\n")
            if path == "/readyz":
                reason = is_ready()
                lines = "\n".join(["ok" if reason is None else reason, *_troubles(resources())])
                return 200 if reason is None else 503, "text/plain; charset=utf-8", f"{lines}\n".encode()
            if path == "/resources":
                return 200, "application/json", msgspec.json.encode(resources_document(resources()))
            if path == "/metrics":
                return 200, "text/plain; version=0.0.4; charset=utf-8", metrics()
            return 404, "text/plain", b"/livez, /readyz, /resources, /metrics\n"

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 5

            def do_GET(self) -> None:
                try:
                    status, kind, body = answer(self.path.partition("?")[0])
                except Exception as error:  # noqa: BLE001 (an edge: whatever it is, somebody waits for an answer)
                    soundness.tell(is_sent=False, reason=reason_of(error))
                    status, kind, body = 500, "text/plain", b"this cannot be answered; the log says why\n"
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 (its signature)
                """Probes come every few seconds; nobody wants a line for each."""

        try:
            self._server = _Server((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError([f"admin.port: {host}:{port} cannot be listened on: {error}"]) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="agentflow-admin", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where it listens, ``host:port``."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def resources_document(resources: WatchedResources | None) -> dict[str, Any]:
    """Return how resources are doing, and the gates that calls of models pass; from any thread."""
    if resources is None:
        return {"resources": [], "gates": []}
    return {
        "resources": [
            {"name": one.name, "type": one.type, "state": one.state, **({"error": one.error} if one.error else {})}
            for one in resources.health()
        ],
        "gates": [
            {
                "connection": name,
                "active": gate.active,
                "waiting": gate.waiting,
                "circuitOpen": gate.is_open_circuit,
                "retryAfterSeconds": round(gate.retry_after_s, 3),
            }
            for name, gate in gate_figures(resources).items()
        ],
    }


def _troubles(resources: WatchedResources | None) -> list[str]:
    """Return a line for each resource that failed, and for each connection that calls are kept from."""
    document = resources_document(resources)
    failed = [one for one in document["resources"] if one["state"] == "failed"]
    lines = [" ".join(f"{one['type']} '{one['name']}' failed: {one.get('error', '')}".split()) for one in failed]
    return [
        *lines,
        *(f"connection '{one['connection']}': circuit open" for one in document["gates"] if one["circuitOpen"]),
    ]

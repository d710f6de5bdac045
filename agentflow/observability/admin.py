"""Health and metrics of a process over HTTP: ``/livez``, ``/readyz``, ``/metrics``.

The server runs in a thread of its own, because it has to answer when the event loop does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from agentflow.errors import ConfigError
from agentflow.observability.exporting import Reachability, reason_of

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


class AdminServer:
    """Listens from construction to `close`.

    Args:
        host: Address to listen on.
        port: Port; 0: any free one, see `address`.
        is_alive: Whether the process works; else a supervisor should kill it.
        is_ready: Whether it takes part: None, or why not.
        metrics: Returns Prometheus text.

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
    ) -> None:
        soundness = Reachability("some answers", f"{host}:{port}")

        def answer(path: str) -> tuple[int, str, bytes]:
            if path == "/livez":
                return (200, "text/plain", b"ok\n") if is_alive() else (503, "text/plain", b"the event loop stands\n")
            if path == "/readyz":
                reason = is_ready()
                return (200, "text/plain", b"ok\n") if reason is None else (503, "text/plain", f"{reason}\n".encode())
            if path == "/metrics":
                return 200, "text/plain; version=0.0.4; charset=utf-8", metrics()
            return 404, "text/plain", b"/livez, /readyz, /metrics\n"

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
            self._server = ThreadingHTTPServer((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError([f"admin.port: {host}:{port} cannot be listened on: {error}"]) from error
        self._server.daemon_threads = True
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

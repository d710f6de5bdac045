"""A service that is paid: a real HTTP server that answers every call with a receipt of its own, and counts."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

CALLS_PER_RUN = 5

AGENT = """
import http.client
import json
import os
import threading
from agentflow import Agent, EventType, InputEvent, OutputEvent, RunnerContext, action

connections = threading.local()


class Payments(Agent):
    @action(EventType.InputEvent)
    async def pay(event: InputEvent, ctx: RunnerContext) -> None:
        def call(run: str, seen: list[str]) -> str:
            if not hasattr(connections, "server"):
                connections.server = http.client.HTTPConnection("127.0.0.1", int(os.environ["PAYMENTS_PORT"]), timeout=20)
            headers = {"Idempotency-Key": ctx.idempotency_key}
            connections.server.request("POST", "/", json.dumps([run, seen]), headers)
            return connections.server.getresponse().read().decode()

        seen: list[str] = []
        for _ in range(3):
            seen.append(await ctx.durable_execute_async(call, ctx.run_id, seen))
        seen += await ctx.gather(*(ctx.durable_execute_async(call, ctx.run_id, [*seen, branch]) for branch in "ab"))
        number = ctx.short_term_memory.update("runs", lambda runs: (runs or 0) + 1)
        ctx.send_event(OutputEvent({"k": ctx.key, "number": number, "seen": seen}))
"""


class Payments:
    """What the server knows of its callers.

    Attributes:
        calls: Idempotency key → calls.
        receipts: Receipt → idempotency key.
        seen: Idempotency keys whose receipt came back: the caller has seen it.
        violations: What must not happen.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.receipts: dict[str, str] = {}
        self.seen: dict[str, str] = {}
        self.violations: list[str] = []
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """How many calls were made."""
        return sum(self.calls.copy().values())

    def take(self, key: str, seen: list[str]) -> str:
        with self._lock:
            if key in self.seen:
                self.violations.append(f"{key} is called again, and its receipt was seen")
            for receipt in seen:
                self.see(receipt)
            self.calls[key] += 1
            receipt = f"{key}/{self.calls[key]}"
            self.receipts[receipt] = key
            return receipt

    def see(self, receipt: str) -> None:
        if receipt in self.receipts:
            key = self.receipts[receipt]
            if self.seen.setdefault(key, receipt) != receipt:
                self.violations.append(f"{key} shows {receipt}, and showed {self.seen[key]}")


@contextlib.contextmanager
def serve_payments() -> Iterator[tuple[Payments, int]]:
    """A running server and its port."""
    service = Payments()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            _, seen = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = service.take(self.headers["Idempotency-Key"], seen).encode()
            try:
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
            except OSError:  # the caller was killed: it was called all the same
                self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *arguments: Any) -> None:
            """Callers are killed; that is the test."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield service, server.server_port
    server.shutdown()
    server.server_close()


def check(service: Payments, outputs: Sequence[dict[str, Any]], runs: int) -> None:
    """Check that every run is there once, in order per key, and that what it saw of a call is all that was ever seen of it."""
    for output in outputs:
        for receipt in output["seen"]:
            service.see(receipt)
    assert service.violations == []
    assert len(outputs) == runs
    assert len(service.calls) == runs * CALLS_PER_RUN, "a call in doubt has the same key on every attempt"
    receipts = {receipt for output in outputs for receipt in output["seen"]}
    assert len(receipts) == runs * CALLS_PER_RUN, "the server's own deduplication counts each once"
    numbers: dict[str, list[int]] = {}
    for output in outputs:
        numbers.setdefault(output["k"], []).append(output["number"])
    assert all(found == list(range(1, len(found) + 1)) for found in numbers.values())

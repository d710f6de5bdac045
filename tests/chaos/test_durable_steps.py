"""SIGKILL under runs that pay: a real HTTP server counts the calls, and no call whose outcome was seen is made again.

In CI 900 runs and 8 kills; more of both with ``STEPS_CHAOS_RUNS`` and ``STEPS_CHAOS_KILLS``.
"""

from __future__ import annotations

import http.server
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RUNS = int(os.environ.get("STEPS_CHAOS_RUNS", "900"))
KILLS = int(os.environ.get("STEPS_CHAOS_KILLS", "8"))
CALLS_PER_RUN = 5
IN_FLIGHT_MAX = 32  # threads that call
SEED = 20261121

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
    """A server that answers every call with a receipt of its own, and counts.

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


@pytest.fixture
def payments() -> Iterator[tuple[Payments, int]]:
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


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_what_has_been_paid_for_is_never_paid_twice(payments: tuple[Payments, int], tmp_path: Path) -> None:
    service, port = payments
    (tmp_path / "payments_agent.py").write_text(AGENT)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"k": "k{n % (RUNS // 3)}", "n": {n}}}\n' for n in range(RUNS)))
    (tmp_path / "job.yaml").write_text(
        "job: payments\nagent: payments_agent:Payments\nsource: {jsonl: {path: in.jsonl}}\nkey-by: k\n"
        "sink: {jsonl: {path: out}}\ncheckpoint: {interval: 200ms}\nstate: {dir: state}\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "PAYMENTS_PORT": str(port)}
    luck, kills = random.Random(SEED), 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-m", "agentflow", "run", "job.yaml"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        before, deadline = sum(service.calls.values()), time.monotonic() + 60
        wanted = RUNS * CALLS_PER_RUN * luck.uniform(0.2, 1.0) / KILLS
        if kills < KILLS:  # in the middle of its calls, after a random number of them
            while (
                sum(service.calls.values()) - before < wanted and process.poll() is None and time.monotonic() < deadline
            ):
                time.sleep(luck.uniform(0.001, 0.01))
        if kills < KILLS and process.poll() is None:
            process.kill()
            process.communicate()
            kills += 1
            continue
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said.decode()
        break
    outputs = [
        json.loads(line) for part in sorted((tmp_path / "out").glob("part-*")) for line in part.read_text().splitlines()
    ]
    for output in outputs:
        for receipt in output["seen"]:
            service.see(receipt)
    assert service.violations == []
    assert kills == KILLS
    assert len(outputs) == RUNS
    assert len(service.calls) == RUNS * CALLS_PER_RUN, "a call in doubt has the same key on every attempt"
    receipts = {receipt for output in outputs for receipt in output["seen"]}
    assert len(receipts) == RUNS * CALLS_PER_RUN, "the server's own deduplication counts each once"
    numbers: dict[str, list[int]] = {}
    for output in outputs:
        numbers.setdefault(output["k"], []).append(output["number"])
    assert all(found == list(range(1, len(found) + 1)) for found in numbers.values())
    again = sum(service.calls.values()) - len(service.calls)
    assert again < kills * IN_FLIGHT_MAX, f"{again} calls were made again behind {kills} kills"

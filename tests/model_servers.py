"""The model server as a process of its own, for tests: it outlives an engine that is killed, and keeps the oracle."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 30


class ModelServerProcess:
    """A model server in another process.

    Args:
        arguments: Of ``python -m agentflow.testing.model_server``.

    Attributes:
        url: Where it listens.
    """

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "agentflow.testing.model_server", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url, f"the model server has ended: {self._process.wait(DEADLINE_S)}"

    def requests(self) -> list[dict[str, Any]]:
        """Return all requests, see `ModelRequest.to_json`."""
        return self._call("GET", "requests")

    def counts(self) -> dict[str, Any]:
        """Return the counters, see `ModelServer.counts`."""
        return self._call("GET", "counts")

    def reset(self) -> None:
        """Forget all requests, and begin a list of replies again."""
        self._call("POST", "reset")

    def _call(self, method: str, name: str) -> Any:
        asked = urllib.request.Request(f"{self.url}/_server/{name}", method=method)
        with urllib.request.urlopen(asked, timeout=DEADLINE_S) as answer:
            return json.loads(answer.read() or b"null")

    def stop(self) -> int:
        """Stop it with SIGTERM and return its exit status."""
        self._process.terminate()
        status = self._process.wait(DEADLINE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return status


@contextlib.contextmanager
def model_server(*arguments: str) -> Iterator[ModelServerProcess]:
    """Run a model server; it is stopped in the end."""
    server = ModelServerProcess(*arguments)
    try:
        yield server
    finally:
        server.stop()

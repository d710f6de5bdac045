"""Real processes that serve HTTP, for tests: started, waited for, killed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 30


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Service:
    """A process that listens on a port.

    Args:
        command: Arguments of the Python interpreter.
        port: The port.
        directory: Where it runs, and its output goes.
        environment: Variables beside the inherited ones.
    """

    def __init__(self, command: list[str], port: int, directory: Path, environment: dict[str, str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, *command]
        self._port = port
        self._directory = directory
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """What all its lives have written."""
        return (self._directory / "service.log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it listens."""
        with (self._directory / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=self._directory, env=self._environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + DEADLINE_S
        while not self._listens():
            assert self.process.poll() is None, f"the service has ended:\n{self.log}"
            assert time.monotonic() < deadline, f"the service does not listen:\n{self.log}"

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=0.1):
            return True
        time.sleep(0.02)
        return False

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Stop it with SIGTERM and return its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(DEADLINE_S)


@contextlib.contextmanager
def running(command: list[str], port: int, directory: Path, **environment: str) -> Iterator[Service]:
    """Run a service; it is killed in the end if it still runs."""
    service = Service(command, port, directory, environment)
    service.start()
    try:
        yield service
    finally:
        assert service.process is not None
        service.process.kill()
        service.process.wait()


def fastapi_command(port: int) -> list[str]:
    """Return the arguments that run the FastAPI example."""
    return ["-m", "uvicorn", "examples.service.fastapi_service:app", "--port", str(port), "--log-level", "warning"]

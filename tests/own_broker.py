"""A Kafka broker of one test module, which may be killed, or set up in its own way."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def free_ports(count: int) -> int:
    """Return the first of ``count`` ports in a row that are free now."""
    for first in range(21_000 + os.getpid() % 500 * 20, 40_000, 20):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for port, one in enumerate(sockets, first):
                one.bind(("127.0.0.1", port))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
        return first
    raise AssertionError("no free ports")


class OwnBroker:
    """A cluster of one node beside the shared one.

    Args:
        path: Its directory.
        properties: More server properties.
        port: Of its plain listener; the controller has the next one.
    """

    def __init__(self, path: Path, properties: Sequence[str] = (), port: int | None = None) -> None:
        if os.environ.get("AGENTFLOW_TEST_KAFKA_ONLY") or not shutil.which("java"):
            pytest.skip("no Kafka broker of one's own: it needs Java 17 and Maven")
        self.path = path
        self.port = free_ports(2) if port is None else port
        self.address = f"127.0.0.1:{self.port}"
        (path / "more.properties").write_text("".join(f"{line}\n" for line in properties))

    def script(self, *arguments: str) -> None:
        environment = os.environ | {"AGENTFLOW_KAFKA_HOME": str(self.path), "AGENTFLOW_KAFKA_PORT": str(self.port)}
        done = subprocess.run(
            [ROOT / "scripts" / "kafka", *arguments], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode == 2 and "not installed" in done.stderr:
            pytest.skip("no Kafka broker of one's own: it needs Java 17 and Maven")
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start it, also after `kill` or `stop`, and wait until it answers."""
        self.script("start", "--properties", str(self.path / "more.properties"))

    def stop(self) -> None:
        """Stop it cleanly."""
        self.script("stop")

    def signal(self, number: signal.Signals) -> None:
        """Send its process a signal."""
        pid = int((self.path / "node-1" / "pid").read_text())
        os.kill(pid, number)
        while number == signal.SIGKILL and _is_there(pid):
            pass


def _is_there(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"

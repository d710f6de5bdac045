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


def free_ports(count: int, nodes: int = 1) -> int:
    """Return a port that is free now, with the ``count - 1`` behind it, and the same for more nodes, which are 100 apart."""
    for first in range(21_000 + os.getpid() % 500 * 20, 40_000, 20):
        ports = [first + 100 * node + one for node in range(nodes) for one in range(count)]
        sockets = [socket.socket() for _ in ports]
        try:
            for port, one in zip(ports, sockets, strict=True):
                one.bind(("127.0.0.1", port))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
        return first
    raise AssertionError("no free ports")


class OwnBroker:
    """A cluster beside the shared one.

    Args:
        path: Its directory.
        properties: More server properties.
        port: Of its plain listener; the controller has the next one.
        nodes: 1 or 3.
    """

    def __init__(self, path: Path, properties: Sequence[str] = (), port: int | None = None, nodes: int = 1) -> None:
        if os.environ.get("AGENTFLOW_TEST_KAFKA_ONLY") or not shutil.which("java"):
            pytest.skip("no Kafka broker of one's own: it needs Java 17 and Maven")
        self.path = path
        self.nodes = nodes
        self.port = free_ports(2, nodes) if port is None else port
        self.address = ",".join(f"127.0.0.1:{self.port + 100 * node}" for node in range(nodes))
        (path / "more.properties").write_text("".join(f"{line}\n" for line in properties))

    def script(self, *arguments: str) -> None:
        environment = os.environ | {
            "AGENTFLOW_TEST_KAFKA_HOME": str(self.path),
            "AGENTFLOW_TEST_KAFKA_PORT": str(self.port),
        }
        done = subprocess.run(
            [ROOT / "scripts" / "kafka", *arguments], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode == 2 and "not installed" in done.stderr:
            pytest.skip("no Kafka broker of one's own: it needs Java 17 and Maven")
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start the nodes that do not run, also after `kill` or `stop`, and wait until they answer."""
        self.script("start", "--nodes", str(self.nodes), "--properties", str(self.path / "more.properties"))

    def stop(self) -> None:
        """Stop it cleanly."""
        self.script("stop")

    def signal(self, number: signal.Signals, node: int = 1) -> None:
        """Send the process of a node a signal."""
        pid = int((self.path / f"node-{node}" / "pid").read_text())
        os.kill(pid, number)
        while number == signal.SIGKILL and _is_there(pid):
            pass


def _is_there(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"

"""What all tests share: hypothesis profiles, a state directory, and a loud word about what did not run."""

from __future__ import annotations

import logging
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

from agentflow.runtime.logs import take_lines

if TYPE_CHECKING:
    from agentflow import Engine
    from tests.s3_server import S3Server

KAFKA = Path(__file__).resolve().parents[1] / "scripts" / "kafka"
WAS_BROKER_RUNNING = pytest.StashKey[bool]()

# The default is what CI runs, here and there the same; HYPOTHESIS_PROFILE=dev is for a short loop while writing.
settings.register_profile(
    "ci", max_examples=200, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("dev", max_examples=25, deadline=None, print_blob=True)
# Tests read log lines as people do; what is written where no terminal is has tests of its own.
os.environ.setdefault("AGENTFLOW_LOG_FORMAT", "console")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A state directory of this test alone; it does not exist yet."""
    return tmp_path / "state"


@pytest.fixture
def out_dir(tmp_path: Path) -> Path:
    """A sink's directory of this test alone; it does not exist yet."""
    return tmp_path / "out"


@pytest.fixture(params=["memory", "disk"])
def new_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Engine]:
    """Makes engines: in memory, or all on one state directory."""
    from agentflow import Engine  # what it needs, most tests do not

    def make(agent: Any, **options: Any) -> Engine:
        if request.param == "memory":
            return Engine(agent, in_memory=True, **options)
        return Engine(agent, state_dir=str(tmp_path / "state"), **options)

    return make


@pytest.fixture(autouse=True)
def _logs_as_in_a_new_process() -> Iterator[None]:
    """Give log lines back to the host when a test has run a command inside of this process, which takes them."""
    yield
    if structlog.is_configured():
        take_lines(None)
        structlog.reset_defaults()
        logging.getLogger("agentflow").setLevel(logging.NOTSET)
        root = logging.getLogger()
        root.setLevel(logging.WARNING)
        root.handlers[:] = [handler for handler in root.handlers if handler.__class__.__module__.startswith("_pytest")]


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return why a test was skipped, without the prefix."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one block what was skipped and why; nothing when everything ran."""
    reasons = Counter(skip_reason(report) for report in terminalreporter.stats.get("skipped", []))
    if not reasons:
        return
    terminalreporter.section(f"NOT RUN: {reasons.total()} skipped", sep="!", yellow=True, bold=True)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:5d}  {reason}", yellow=True)


def _is_broker_running() -> bool:
    return subprocess.run([KAFKA, "status"], capture_output=True, check=False).returncode == 0


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember whether a broker ran before the tests."""
    if not hasattr(session.config, "workerinput"):
        session.config.stash[WAS_BROKER_RUNNING] = _is_broker_running()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Stop a broker that the tests have started."""
    if not hasattr(session.config, "workerinput") and not session.config.stash[WAS_BROKER_RUNNING]:
        subprocess.run([KAFKA, "stop"], capture_output=True, check=False)


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[S3Server]:
    from tests.s3_server import S3Server  # a second that most tests do not pay

    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(_s3_server: S3Server) -> S3Server:
    """A server that speaks S3, shared by the tests of a process; a bucket is a test's own."""
    _s3_server.requests.clear()
    return _s3_server


@pytest.fixture(scope="session")
def kafka() -> str:
    """Bootstrap servers of a real Apache Kafka, shared by all test processes."""
    from tests.kafka_topics import NoBroker, start_broker

    try:
        brokers = start_broker()
    except NoBroker as none:
        pytest.skip(f"no Kafka broker ({none}): it needs Java 17 and Maven, or AGENTFLOW_TEST_KAFKA=host:port")
    return brokers

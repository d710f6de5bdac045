"""A project of a test's own for the commands before deployment: a job file, agents, and checks made one by one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from agentflow.cli.doctor.findings import Finding, Subject
from agentflow.cli.doctor.job_checks import read_subject

ROOT = Path(__file__).resolve().parents[1]
NOBODY = 65_534

AGENTS = """\
import msgspec

from agentflow import Agent, Event, EventType, InputEvent, OutputEvent, Retry, RunnerContext, action


class Review(msgspec.Struct):
    product: str
    stars: int


class Count(Agent):
    @action(EventType.InputEvent, input=Review, retry=Retry(attempts=2, initial="1ms"))
    def count(event: InputEvent[Review], ctx: RunnerContext) -> None:
        count = ctx.short_term_memory.update("count", lambda n: (n or 0) + 1)
        if event.input.stars < 0:
            raise ValueError("stars below zero")
        ctx.send_event(Event("counted", {"count": count}))

    @action("counted")
    def tell(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent({"product": ctx.key, "count": event.attributes["count"]}))
"""

JOB = """\
job: reviews
agent: agents:Count
key-by: product
source: {jsonl: {path: in.jsonl}}
sink: {jsonl: {path: out/}}
dead-letter: {jsonl: {path: dead/}}
state.dir: state/
"""

KAFKA_JOB = """\
job: reviews
agent: agents:Count
source: {kafka: {topics: reviews}}
sink: {kafka: {topic: alerts}}
state.dir: state/
kafka.brokers: "127.0.0.1:1"
"""


class Project:
    """Files of a job in a directory of its own, which is the current one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "agents.py").write_text(AGENTS)
        (path / "job.yaml").write_text(JOB)
        (path / "kafka.yaml").write_text(KAFKA_JOB)
        (path / "in.jsonl").write_text('{"product": "p", "stars": 3}\n{"product": "q", "stars": 4}\n')

    def subject(self, *settings: str, job: str = "job.yaml", **variables: str) -> Subject:
        """Return what checks look at."""
        return read_subject(job, None, settings, variables)

    def agentflow(
        self, *arguments: str, flags: Sequence[str] = (), blocked: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a process; ``blocked`` is a package that it cannot import."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("AGENTFLOW_", "OTEL_"))
        }
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **variables}
        if blocked:
            (self.path / "blocking").mkdir(exist_ok=True)
            (self.path / "blocking" / "sitecustomize.py").write_text(_BLOCKING.format(blocked=blocked))
            environment["PYTHONPATH"] = f"{self.path / 'blocking'}{os.pathsep}{ROOT}"
        return subprocess.run(
            [sys.executable, *flags, "-m", "agentflow", *arguments],
            cwd=self.path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
            stdin=subprocess.DEVNULL,
        )

    def run(self, *arguments: str) -> None:
        """Run the job to the end of its input."""
        done = self.agentflow("run", "job.yaml", *arguments)
        assert done.returncode == 0, done.stderr


_BLOCKING = """\
import sys


class Blocking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "{blocked}":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None


sys.meta_path.insert(0, Blocking())
"""


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Be a user who may do little: root may write everywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@contextlib.contextmanager
def locked_by_a_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold the lock of a file, with its number in it, as the owner of a state directory does."""
    code = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
        "print(os.getpid(), file=f, flush=True); print('locked', flush=True); sys.stdin.read()"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def results(findings: Sequence[Finding]) -> list[str]:
    """Return how the findings of a check are to be taken."""
    return [finding.result.value for finding in findings]

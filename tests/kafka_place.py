"""A Kafka job of a test's own: topics, an agent, a job file, workers as processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from tests.kafka_topics import Topics

ROOT = Path(__file__).resolve().parents[1]

AGENTS = """\
from agentflow import Agent, EventType, InputEvent, OutputEvent, Retry, RunnerContext, action


class Count(Agent):
    @action(EventType.InputEvent, retry=Retry(attempts=2, initial="1ms"))
    async def count(event: InputEvent, ctx: RunnerContext) -> None:
        count = ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)
        if event.input.get("bad"):
            raise ValueError("bad on purpose")
        if event.input.get("large"):
            ctx.short_term_memory.set("large", "x" * event.input["large"])
        if event.input.get("show"):
            ctx.send_event(OutputEvent(len(ctx.short_term_memory.get("large"))))
            return
        ctx.send_event(OutputEvent({"k": ctx.key, "n": count, "id": event.input["id"]}))
"""


class Place:
    """A job of its own: topics, job file, state."""

    def __init__(self, path, brokers):
        self.path = path
        self.topics = Topics(brokers)
        self.job = f"t{uuid.uuid4().hex[:12]}"
        self.source, self.sink, self.dead = f"{self.job}-in", f"{self.job}-out", f"{self.job}-dead"
        (path / "agents.py").write_text(AGENTS)
        (path / "job.yaml").write_text(
            f"job: {self.job}\nagent: agents:Count\nkey-by: record.key\n"
            f"source: {{kafka: {{topics: {self.source}}}}}\nsink: {{kafka: {{topic: {self.sink}}}}}\n"
            f"dead-letter: {{kafka: {{topic: {self.dead}}}}}\n"
            f'checkpoint: {{interval: 100ms}}\nkafka: {{brokers: "{brokers}", session-timeout: 6s, heartbeat-interval: 500ms}}\n'
            "state: {dir: state}\nrestart: {delay: 100ms}\n"
        )

    def write(self, count, *, keys=5, start=0):
        self.topics.write(self.source, [(f"k{n % keys}", {"id": n}) for n in range(start, start + count)])

    @contextlib.contextmanager
    def worker(self, *arguments, sends=signal.SIGTERM):
        """A running worker; at the end it gets a signal."""
        command = [sys.executable, "-m", "agentflow", "worker", "job.yaml", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        log = self.path / f"log-{uuid.uuid4().hex}"
        with log.open("wb") as out:
            process = subprocess.Popen(command, cwd=self.path, env=environment, stdout=out, stderr=out)
            process.log = log
            try:
                yield process
                if process.poll() is not None and getattr(process, "is_expected_to_end", False):
                    return
                assert process.poll() is None, log.read_text()
                process.send_signal(sends)
                assert process.wait(30) == (143 if sends == signal.SIGTERM else -9), log.read_text()
            finally:
                process.kill()
                process.wait()

    def wait_for(self, topic, count, process):
        """Wait until a topic has so many committed records; return their values."""
        deadline = time.monotonic() + 60
        while len(values := self.topics.values(topic)) < count:
            assert process.poll() is None, process.log.read_text()
            assert time.monotonic() < deadline, f"{len(values)} of {count}:\n{process.log.read_text()}"
        return values

    def wait_for_records(self, topic, count, process):
        """As `wait_for`, for records that are not JSON."""
        deadline = time.monotonic() + 60
        while len(records := self.topics.read(topic)) < count:
            assert process.poll() is None, process.log.read_text()
            assert time.monotonic() < deadline, process.log.read_text()
        return records

    def run(self, *arguments):
        command = [sys.executable, "-m", "agentflow", "worker", "job.yaml", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, cwd=self.path, env=environment, capture_output=True, text=True, check=False, timeout=60
        )

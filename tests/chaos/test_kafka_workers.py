"""One to three workers of one job, and their broker, killed, stopped, frozen and thawed at random moments under load.

What a plain `read_committed` consumer sees at the end is what an undisturbed sequential run would have written: every input once,
in the order of its key, with the counts of the keys' memory. `KAFKA_CHAOS_S=1200` makes it a long run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import pytest

from tests.kafka_topics import Topics, check_history
from tests.own_broker import OwnBroker

pytestmark = [pytest.mark.kafka, pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(3_600)]
ROOT = Path(__file__).resolve().parents[2]
SEED = 20_261_121
DISTURBED_S = float(os.environ.get("KAFKA_CHAOS_S", "30"))
WORKERS = 3
RECORDS_PER_S = 1_000
KEYS = 200

AGENT = """\
import asyncio

from agentflow import Agent, EventType, InputEvent, OutputEvent, RunnerContext, action


class Count(Agent):
    @action(EventType.InputEvent)
    async def count(event: InputEvent, ctx: RunnerContext) -> None:
        count = ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)
        await asyncio.sleep(0.04)
        ctx.send_event(OutputEvent({"k": ctx.key, "n": count, "id": event.input["id"]}))
"""


class Group:
    """The workers, each with a state directory of its own."""

    def __init__(self, path: Path, broker: OwnBroker) -> None:
        self.path = path
        self.broker = broker
        self.log = (path / "log").open("wb")
        self.workers = [self.start(number) for number in range(WORKERS)]
        self.deaths: list[int] = []
        self.seen: Counter[str] = Counter()

    def start(self, number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "agentflow", "worker", "job.yaml", "--set", f"state.dir=state-{number}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=self.path, env=environment, stdout=self.log, stderr=self.log)

    def disturb(self, luck: random.Random) -> None:
        self.revive()
        number = luck.randrange(len(self.workers))
        worker = self.workers[number]
        what = luck.choice(
            ["kill", "kill", "stop cleanly", "freeze", "lose the disk", "kill the broker", "stop the broker", "scale"]
        )
        self.seen[what] += 1
        if what == "freeze":
            worker.send_signal(signal.SIGSTOP)
            threading.Event().wait(luck.choice([0.5, 3, 15]))  # longer than the session: others take over meanwhile
            worker.send_signal(signal.SIGCONT)
            return
        if "broker" in what:
            self.broker.stop() if what == "stop the broker" else self.broker.signal(signal.SIGKILL)
            self.broker.start()
            return
        if what == "scale":
            self.scale(luck.choice([1, 2, 3]))
            return
        worker.send_signal(signal.SIGTERM if what == "stop cleanly" else signal.SIGKILL)
        worker.wait(60)
        if what == "lose the disk":
            subprocess.run(["rm", "-rf", self.path / f"state-{number}"], check=True)
        self.workers[number] = self.start(number)

    def revive(self) -> None:
        """Start again who ended by himself: a worker that finds no broker when it starts says so, and gives up."""
        for number, worker in enumerate(self.workers):
            if worker.poll() is not None:
                self.deaths.append(worker.returncode)
                self.workers[number] = self.start(number)

    def scale(self, count: int) -> None:
        """Start workers, or stop the last ones cleanly."""
        while len(self.workers) < count:
            self.workers.append(self.start(len(self.workers)))
        gone, self.workers = self.workers[count:], self.workers[:count]
        for worker in gone:
            worker.terminate()
        for worker in gone:
            if worker.wait(60) not in (143, -signal.SIGTERM):  # the latter: it had not begun yet
                self.deaths.append(worker.returncode)

    def stop(self) -> list[int]:
        for worker in self.workers:
            worker.terminate()
        return [worker.wait(60) for worker in self.workers]


def test_disturbed_workers_write_what_an_undisturbed_one_would(tmp_path: Path) -> None:
    luck = random.Random(SEED)
    (tmp_path / "broker").mkdir()
    broker = OwnBroker(tmp_path / "broker")
    broker.start()
    try:
        run_disturbed(tmp_path, broker, luck)
    finally:
        broker.stop()


def run_disturbed(tmp_path: Path, broker: OwnBroker, luck: random.Random) -> None:
    topics, job = Topics(broker.address), f"chaos{uuid.uuid4().hex[:8]}"
    topics.create(f"{job}-in", 6)
    records = int(DISTURBED_S * RECORDS_PER_S)
    topics.write(f"{job}-in", [(f"k{n % KEYS}", {"id": n}) for n in range(records)])
    (tmp_path / "agents.py").write_text(AGENT)
    (tmp_path / "job.yaml").write_text(
        f"job: {job}\nagent: agents:Count\nkey-by: record.key\nrun: {{in-flight-max: 10}}\n"
        f"source: {{kafka: {{topics: {job}-in}}}}\nsink: {{kafka: {{topic: {job}-out}}}}\n"
        f"checkpoint: {{interval: 150ms}}\nstate: {{dir: state}}\nrestart: {{delay: 200ms}}\n"
        f'kafka: {{brokers: "{broker.address}", session-timeout: 6s, heartbeat-interval: 500ms, transaction-timeout: 20s}}\n'
    )
    group = Group(tmp_path, broker)
    try:
        end = time.monotonic() + DISTURBED_S
        while time.monotonic() < end:
            threading.Event().wait(luck.uniform(0.2, 3))
            group.disturb(luck)
        group.revive()
        deadline = time.monotonic() + 120
        while len(topics.read(f"{job}-out")) < records:
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-20_000:]
            assert all(worker.poll() is None for worker in group.workers), (tmp_path / "log").read_text()[-20_000:]
        count, statuses = len(group.workers), group.stop()
    finally:
        for worker in group.workers:
            worker.kill()
            worker.wait()
        group.log.close()
    assert check_history(topics.values(f"{job}-out"), range(records)) == "", f"{dict(group.seen)}"
    log = f"{records:,} records, {dict(group.seen)}, deaths {group.deaths}\n" + (tmp_path / "log").read_text()
    assert set(group.deaths) <= {1}, log[-20_000:]
    assert len(group.deaths) <= log.count("error: no Kafka broker answers"), log[-20_000:]
    assert statuses == [143] * count

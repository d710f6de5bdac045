"""Durable steps from Kafka to Kafka: the journal is a topic, and the next owner has nothing but Kafka."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.kafka_place import ROOT, Place
from tests.payments import AGENT, CALLS_PER_RUN, check, serve_payments

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]
RUNS = 240


@pytest.fixture
def place(tmp_path, kafka):
    place = Place(tmp_path, kafka)
    (tmp_path / "payments_agent.py").write_text(AGENT)
    job = (tmp_path / "job.yaml").read_text().replace("agents:Count", "payments_agent:Payments")
    (tmp_path / "job.yaml").write_text(job)
    return place


def test_a_worker_that_has_only_kafka_pays_nothing_twice(place, monkeypatch):
    place.topics.create(place.source, 2)
    place.topics.write(place.source, [(f"k{n % 80}", {"n": n}) for n in range(RUNS)])
    with serve_payments() as (service, port):
        monkeypatch.setenv("PAYMENTS_PORT", str(port))
        for life in range(1, 5):
            with place.worker(sends=signal.SIGKILL) as worker:
                deadline = time.monotonic() + 60
                while service.total < RUNS * CALLS_PER_RUN * life // 6:
                    assert worker.poll() is None, worker.log.read_text()
                    assert time.monotonic() < deadline, worker.log.read_text()
                    time.sleep(0.002)
            shutil.rmtree(place.path / "state")
        with place.worker() as worker:
            values = place.wait_for(place.sink, RUNS, worker)
        check(service, values, RUNS)


APPROVALS = """\
from agentflow import Agent, EventType, OutputEvent, action


class Approvals(Agent):
    @action(EventType.InputEvent)
    async def ask(event, ctx):
        ctx.send_event(OutputEvent({"asked": ctx.key}))
        answer = await ctx.wait_for("approval", timeout="1h")
        ctx.send_event(OutputEvent({"k": ctx.key, "answer": answer}))
"""


@pytest.mark.parametrize("key_by", ["record.key", "order"])
def test_runs_wait_for_signals_that_come_by_a_topic_whoever_owns_them(tmp_path, kafka, key_by):
    place = Place(tmp_path, kafka)
    (tmp_path / "approvals.py").write_text(APPROVALS)
    job = (tmp_path / "job.yaml").read_text().replace("agents:Count", "approvals:Approvals")
    job = job.replace("key-by: record.key", f"key-by: {key_by}")
    signals = f"signals: {{topic: {place.job}-signals}}\nrun: {{park-after: 200ms}}\n"
    (tmp_path / "job.yaml").write_text(job + signals)
    place.topics.create(place.source, 3)
    keys = [f"k{n}" for n in range(12)]
    place.topics.write(
        place.source, [(f"{n}" if key_by == "order" else key, {"order": key}) for n, key in enumerate(keys)]
    )

    def agentflow(*arguments):
        command = [sys.executable, "-m", "agentflow", *arguments]
        return subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    with place.worker(sends=signal.SIGKILL) as worker:
        place.wait_for(place.sink, len(keys), worker)
        waiting = json.loads(agentflow("inbox", "job.yaml", "--json"))
        assert sorted(wait["key"] for wait in waiting) == sorted(keys)
        agentflow("signal", "job.yaml", "k0", "approval", '"first"')
        place.wait_for(place.sink, len(keys) + 1, worker)
    shutil.rmtree(place.path / "state")
    agentflow("signal", "job.yaml", "k1", "approval", '"while nobody was there"')
    with place.worker() as worker:
        place.wait_for(place.sink, len(keys) + 2, worker)
        for key in keys[2:]:
            agentflow("signal", "job.yaml", key, "approval", '"last"')
        values = place.wait_for(place.sink, 2 * len(keys), worker)
    answers = {value["k"]: value["answer"] for value in values if "k" in value}
    assert answers == dict.fromkeys(keys, "last") | {"k0": "first", "k1": "while nobody was there"}
    assert sorted(value["asked"] for value in values if "asked" in value) == sorted(keys)


PAYING = """\
from pathlib import Path

from agentflow import Agent, EventType, OutputEvent, Retry, action


class Paying(Agent):
    @action(EventType.InputEvent, retry=Retry(attempts=1))
    def act(event, ctx):
        def pay(order):
            with open("keys", "a") as keys:
                keys.write(f"{order} {ctx.idempotency_key}\\n")

        ctx.durable_execute(pay, event.input["order"])
        if not Path("mended").exists():
            raise ValueError("not yet")
        ctx.send_event(OutputEvent(event.input["order"]))
"""


@pytest.mark.parametrize("key_by", ["record.key", "order"])
def test_a_record_that_is_sent_back_has_the_idempotency_keys_of_its_first_run(tmp_path, kafka, key_by):
    place = Place(tmp_path, kafka)
    (tmp_path / "paying.py").write_text(PAYING)
    job = (tmp_path / "job.yaml").read_text().replace("agents:Count", "paying:Paying")
    (tmp_path / "job.yaml").write_text(job.replace("key-by: record.key", f"key-by: {key_by}"))
    place.topics.create(place.source, 2)
    place.topics.write(place.source, [(f"k{n}", {"order": f"o-{n}"}) for n in range(3)])
    with place.worker() as worker:
        deadline = time.monotonic() + 60
        while len(place.topics.read(place.dead)) < 3:
            assert time.monotonic() < deadline, worker.log.read_text()
            assert worker.poll() is None, worker.log.read_text()
    (tmp_path / "mended").touch()
    command = [sys.executable, "-m", "agentflow", "dlq", "redrive", "job.yaml", "--all"]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    with place.worker() as worker:
        assert sorted(place.wait_for(place.sink, 3, worker)) == ["o-0", "o-1", "o-2"]
    calls = [line.split() for line in (tmp_path / "keys").read_text().splitlines()]
    assert len(calls) == 6
    assert len({key for _, key in calls}) == 3, "the other side knows them"

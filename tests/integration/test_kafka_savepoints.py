"""Savepoints of Kafka jobs: from the changelog alone, restored as jobs of another name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid

import pytest

from tests.kafka_place import ROOT, Place
from tests.kafka_topics import check_history

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

AGENTS = """\
import asyncio

from agentflow import Agent, EventType, InputEvent, OutputEvent, RunnerContext, action


class Count(Agent):
    @action(EventType.InputEvent)
    async def count(event: InputEvent, ctx: RunnerContext) -> None:
        count = ctx.short_term_memory.update("n", lambda n: (n or 0) + 1)
        if "large" in event.input:
            ctx.short_term_memory.set("large", "x" * event.input["large"])
        answer = None
        await asyncio.sleep(event.input.get("slow", 0))
        if event.input.get("asks"):
            def draft() -> str:
                with open("../drafts", "a") as file:
                    file.write(f"{ctx.key}\\n")
                return f"draft for {ctx.key}"

            made = await ctx.durable_execute_async(draft)
            answer = made, await ctx.wait_for("approval", timeout="1h")
        large = len(ctx.short_term_memory.get("large") or "")
        ctx.send_event(
            OutputEvent({"k": str(ctx.key), "n": count, "id": event.input["id"], "answer": answer, "large": large})
        )
"""


@pytest.fixture
def place(tmp_path, kafka):
    path = tmp_path / "original"
    path.mkdir()
    place = Place(path, kafka)
    (path / "agents.py").write_text(AGENTS)
    job = (path / "job.yaml").read_text().replace("session-timeout: 6s", "session-timeout: 6s, transaction-timeout: 5s")
    job += f"signals: {{topic: {place.job}-signals}}\nrun: {{park-after: 50ms}}\n"
    (path / "job.yaml").write_text(job)
    return place


def copy_of(place, name="copy", **changes):
    """A job of another name over the same input, in a directory of its own."""
    copy = Place.__new__(Place)
    copy.path, copy.topics = place.path.parent / name, place.topics
    copy.job = f"t{uuid.uuid4().hex[:12]}"
    copy.source, copy.sink, copy.dead = place.source, f"{copy.job}-out", f"{copy.job}-dead"
    text = (place.path / "job.yaml").read_text()
    changes = {f"job: {place.job}\n": f"job: {copy.job}\n", place.sink: copy.sink, place.dead: copy.dead} | changes
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    copy.path.mkdir()
    (copy.path / "job.yaml").write_text(text)
    (copy.path / "agents.py").write_text(AGENTS)
    return copy


def command(place, *arguments, status=0):
    """Run a command in a directory; return what it prints as JSON, or its errors."""
    done = subprocess.run(
        [sys.executable, "-m", "agentflow", *arguments, "--json"],
        cwd=place.path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout) if status in (0, 3) else done.stderr


def create(place, **options):
    return command(place, "savepoint", "create", "job.yaml", "../backups", **options)


def restore(place, savepoint, **options):
    return command(place, "savepoint", "restore", savepoint["savepoint"], "job.yaml", **options)


def wait_for_no_members(place):
    """Wait until the group has forgotten a worker that was killed."""
    deadline = time.monotonic() + 60
    while command(place, "group", "describe", "job.yaml")["state"] != "Empty":
        assert time.monotonic() < deadline


def counts_in(place, savepoint):
    """Return key → outputs that it has made, as a savepoint says."""
    command(place, "state", "export", savepoint["savepoint"], "--to", "memory.jsonl")
    lines = [json.loads(line) for line in (place.path / "memory.jsonl").read_text().splitlines()]
    return {str(line["key"]): line["value"] for line in lines if line["path"] == "n"}


def test_the_workers_of_a_restored_job_go_on_where_the_savepoint_is(place):
    place.topics.create(place.source, 3)
    place.write(200, keys=20)
    with place.worker() as worker:
        before = place.wait_for(place.sink, 200, worker)
    savepoint = create(place)
    assert [subtask["subtask"] for subtask in savepoint["subtasks"]] == [0, 1, 2]
    assert [subtask["partitioner"] for subtask in savepoint["subtasks"]] == ["murmur2"] * 3
    assert sum(counts_in(place, savepoint).values()) == 200
    assert command(place, "savepoint", "verify", savepoint["savepoint"])["damage"] == []
    keys = command(place, "state", "list", savepoint["savepoint"])["keys"]
    assert sorted(key["key"] for key in keys) == sorted(f"k{n}" for n in range(20))
    place.write(200, keys=20, start=200)
    copy = copy_of(place)
    assert restore(copy, savepoint)["restored-to"] == f"topic {copy.job}-changelog"
    assert "never overwrites" in restore(copy, savepoint, status=1)
    assert "keys are placed by murmur2" in copy.run("--set", "kafka.partitioner=crc32").stderr
    with copy.worker() as worker:
        after = copy.wait_for(copy.sink, 200, worker)
    with place.worker() as worker:
        original = place.wait_for(place.sink, 400, worker)

    def order(value):
        return value["k"], value["n"]

    assert sorted([*before, *after], key=order) == sorted(original, key=order)


def test_a_savepoint_of_running_workers_is_one_moment_of_each_subtask(place):
    place.topics.create(place.source, 2)
    place.topics.write(place.source, [(f"k{n % 25}", {"id": n, "slow": 0.05}) for n in range(3000)])
    with place.worker() as worker:
        place.wait_for(place.sink, 100, worker)
        savepoint = create(place)
        assert worker.poll() is None
        place.wait_for(place.sink, 3000, worker)
    counts = counts_in(place, savepoint)
    assert 100 <= sum(counts.values()) < 3000, "it was taken in the middle"
    assert not any("/journal/" in file["name"] for file in savepoint["files"])
    copy = copy_of(place)
    restore(copy, savepoint)
    with copy.worker() as worker:
        after = copy.wait_for(copy.sink, 3000 - sum(counts.values()), worker)
    before = [value for value in place.topics.values(place.sink) if value["n"] <= counts.get(value["k"], 0)]
    assert len(before) + len(after) == 3000
    assert check_history([*before, *after], range(3000)) == ""


def test_a_killed_job_moves_with_its_unfinished_runs_and_pays_nothing_twice(place):
    place.topics.create(place.source, 2)
    place.write(20, keys=20)
    place.topics.write(place.source, [(f"k{n}", {"id": 20 + n, "asks": n < 8, "large": 700_000}) for n in range(20)])
    job = (place.path / "job.yaml").read_text().replace("interval: 100ms", "interval: 2s")
    (place.path / "job.yaml").write_text(job)
    drafts = place.path.parent / "drafts"
    with place.worker(sends=signal.SIGKILL) as worker:
        deadline = time.monotonic() + 60
        while not drafts.exists() or len(drafts.read_text().splitlines()) < 8:
            assert worker.poll() is None, worker.log.read_text()
            assert time.monotonic() < deadline
        place.wait_for(place.sink, 20, worker)
        command(place, "signal", "job.yaml", "k0", "approval", '"early"')
    wait_for_no_members(place)
    savepoint = create(place)
    assert command(place, "savepoint", "verify", savepoint["savepoint"])["damage"] == []
    for number in range(1, 8):
        command(place, "signal", "job.yaml", f"k{number}", "approval", str(number))
    copy = copy_of(place)
    restore(copy, savepoint)
    done = {value["id"] for value in place.topics.values(place.sink)}
    with copy.worker() as worker:
        after = copy.wait_for(copy.sink, 40 - len(done), worker)
    assert sorted([*done, *(value["id"] for value in after)]) == list(range(40))
    answers = {value["k"]: value["answer"][1] for value in after if value["answer"]}
    assert answers == {"k0": "early"} | {f"k{number}": number for number in range(1, 8)}
    assert all(value["large"] == 700_000 for value in after if value["id"] >= 20)
    assert sorted(drafts.read_text().splitlines()) == [f"k{number}" for number in range(8)]


def test_what_is_on_its_way_between_subtasks_moves_too(place):
    """With a key of their own records go through a repartition topic; some are in it when the worker dies."""
    place.topics.create(place.source, 2)
    (place.path / "job.yaml").write_text(
        (place.path / "job.yaml").read_text().replace("key-by: record.key", "key-by: shop")
    )
    place.topics.write(place.source, [(f"r{n}", {"id": n, "shop": n % 30, "slow": 0.1}) for n in range(1000)])
    with place.worker("--set", "run.in-flight-max=4", sends=signal.SIGKILL) as worker:
        place.wait_for(place.sink, 50, worker)
        assert "stop the workers" in create(place, status=1)
    wait_for_no_members(place)
    savepoint = create(place)
    pending = [file for file in savepoint["files"] if file["name"].endswith("/pending/repartition.records")]
    assert len(pending) == 2
    assert sum(file["size"] for file in pending) > 0
    done = place.topics.values(place.sink)
    copy = copy_of(place)
    wrong = copy_of(place, "wrong", **{"key-by: shop": "key-by: record.key"})
    assert "the same key-by" in restore(wrong, savepoint, status=1)
    restore(copy, savepoint)
    with copy.worker() as worker:
        after = copy.wait_for(copy.sink, 1000 - len(done), worker)
    assert len(done) + len(after) == 1000
    assert check_history([*done, *after], range(1000)) == ""


def test_a_restore_that_does_not_fit_is_refused_and_leaves_nothing(place, tmp_path):
    place.topics.create(place.source, 2)
    place.write(20)
    assert "there is no topic" in create(place, status=1)
    with place.worker() as worker:
        place.wait_for(place.sink, 20, worker)
        savepoint = create(place)
        assert "has workers" in restore(place, savepoint, status=1) or "never overwrites" in restore(
            place, savepoint, status=1
        )
    assert "never overwrites" in restore(place, savepoint, status=1)
    other = f"{place.job}-other"
    place.topics.create(other, 3)
    copy = copy_of(place, **{f"topics: {place.source}": f"topics: {other}", f"{place.job}-signals": f"{other}-signals"})
    assert "2 subtasks, the input topics have 3 partitions" in restore(copy, savepoint, status=1)
    embedded = tmp_path / "embedded"
    embedded.mkdir()
    assert "of a Kafka job" in command(
        place, "savepoint", "restore", savepoint["savepoint"], str(embedded / "state"), status=1
    )
    table = next(file for file in savepoint["files"] if file["name"].endswith(".sst"))
    damaged = tmp_path / "backups" / savepoint["savepoint"].rpartition("/")[2] / table["name"]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    third = copy_of(place, "third")
    assert "files of the savepoint are damaged" in restore(third, savepoint, status=1)
    assert f"{third.job}-changelog" not in command_topics(place)


def command_topics(place):
    """Names of all topics."""
    import asyncio

    from aiokafka.admin import AIOKafkaAdminClient

    async def names():
        admin = AIOKafkaAdminClient(bootstrap_servers=place.topics.brokers)
        await admin.start()
        try:
            return await admin.list_topics()
        finally:
            await admin.close()

    return asyncio.run(names())

"""Kafka to Kafka: workers and peers as processes of their own, the broker on the same machine.

A rate counts what a `read_committed` reader sees: outputs behind the first ones, over the time from the first ones to the last.
So every contender is measured by the same clock, start-up and the first commit are left out, and the last commit is in.
Every output is read back: their number, and that the counts of each key come once and in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from agentflow.connectors.kafka.connection import Consumer
from agentflow.connectors.kafka.partitioners import murmur2
from agentflow.connectors.kafka.producer import SubtaskProducer
from agentflow.core.delta import Table
from agentflow.runtime.settings import KafkaSettings
from agentflow.state.changelog_records import checkpoint_record, records_of
from agentflow.state.kafka_changelog import open_changelog_state
from agentflow.state.layout import storage_key
from agentflow.state.rocksdb import RocksDBKeyedState
from benchmarks.workloads import record

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 180
SUBTASKS = 64
QUIET_S = 2.5
"""Without a new output for so long, behind the expected number, a run is over."""
PEERS = {"quix": "quixstreams", "aiokafka-loop": "aiokafka", "confluent-loop": "confluent_kafka"}


class Absent(ImportError):
    """A peer is not installed."""


class Run(msgspec.Struct, frozen=True):
    """What one run came to.

    Attributes:
        rate: Outputs per second.
        cpu_s: Seconds of processor per 100,000 records, all processes of the contender.
        rss_mib: Largest resident set of one of its processes.
    """

    rate: float
    cpu_s: float
    rss_mib: float


class Place:
    """Topics of one run, and clients of them."""

    def __init__(self, partitions: int) -> None:
        self.brokers = _brokers()
        self.job = f"bench-{uuid.uuid4().hex[:8]}"
        self.partitions = partitions
        self._places: dict[bytes, int] = {}

    async def create(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.brokers)
        await admin.start()
        await admin.create_topics([NewTopic(f"{self.job}-{name}", self.partitions, 1) for name in ("in", "out")])
        await admin.close()

    async def load(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.brokers, max_batch_size=2**18)
        await producer.start()
        batches = [producer.create_batch() for _ in range(self.partitions)]
        sent = []
        for key, value in records:
            place = self.place(key)
            if batches[place].append(timestamp=None, key=key, value=value) is None:
                sent.append(await producer.send_batch(batches[place], f"{self.job}-in", partition=place))
                batches[place] = producer.create_batch()
                batches[place].append(timestamp=None, key=key, value=value)
        for place, batch in enumerate(batches):
            if batch.record_count():
                sent.append(await producer.send_batch(batch, f"{self.job}-in", partition=place))
        await asyncio.gather(*sent)
        await producer.stop()

    def place(self, key: bytes) -> int:
        """Return the partition of a key."""
        if key not in self._places:
            self._places[key] = murmur2(key, self.partitions)
        return self._places[key]

    @contextlib.asynccontextmanager
    async def reader(self) -> Any:
        """A `read_committed` reader of the outputs."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.brokers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            max_partition_fetch_bytes=2**23,
        )
        await consumer.start()
        consumer.assign([TopicPartition(f"{self.job}-out", number) for number in range(self.partitions)])
        try:
            yield consumer
        finally:
            await consumer.stop()

    @staticmethod
    async def ends(consumer: AIOKafkaConsumer) -> int:
        """Return the sum of the ends of the output's partitions, as far as they are committed."""
        return sum((await consumer.end_offsets(list(consumer.assignment()))).values())

    async def values(self) -> list[Any]:
        """Return every committed output, partition after partition."""
        async with self.reader() as consumer:
            partitions = sorted(consumer.assignment())
            ends = await consumer.end_offsets(partitions)
            for partition in partitions:
                consumer.seek(partition, 0)
            values: list[Any] = []
            while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
                for fetched in (await consumer.getmany(timeout_ms=20)).values():
                    values += [msgspec.json.decode(one.value) for one in fetched]
            return values


def _brokers() -> str:
    """Return a broker's address: that of AGENTFLOW_TEST_KAFKA, or of the project's own script."""
    given = os.environ.get("AGENTFLOW_TEST_KAFKA")
    if given:
        return given
    started = subprocess.run([ROOT / "scripts" / "kafka", "start"], stdout=subprocess.PIPE, text=True, check=True)
    return started.stdout.strip().splitlines()[-1]


@contextlib.contextmanager
def _process(command: list[str], directory: str, log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    err = None if log is None else log.open("wb")
    process = subprocess.Popen(command, cwd=directory, env=environment, stdout=subprocess.DEVNULL, stderr=err)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _worker(
    place: Place,
    directory: str,
    action: str,
    interval_ms: int = 1_000,
    guarantee: str = "exactly-once",
    processes: int = 1,
    in_flight: int = 10_000,
    **kafka: str,
) -> list[str]:
    """Write a job file and return the command of a worker."""
    extra = "".join(f", {name.replace('_', '-')}: {value}" for name, value in kafka.items())
    (Path(directory) / "job.yaml").write_text(
        f"job: {place.job}\nagent: benchmarks.kafka_agents:{action.upper()}\n"
        f"source: {{kafka: {{topics: {place.job}-in}}}}\nsink: {{kafka: {{topic: {place.job}-out}}}}\n"
        f"guarantee: {guarantee}\ncheckpoint: {{interval: {interval_ms}ms}}\nstate: {{dir: state}}\n"
        f"kafka: {{brokers: '{place.brokers}'{extra}}}\nlog: {{level: warning}}\nrun: {{in-flight-max: {in_flight}}}\n"
    )
    several = ["--processes", str(processes)] if processes > 1 else []
    return [sys.executable, "-m", "agentflow", "worker", "job.yaml", *several]


def _records(keys: int, count: int) -> Iterable[tuple[bytes, bytes]]:
    made = (record("in", n, keys) for n in range(count))
    return ((b"u%05d" % (one.offset % keys), one.value or b"") for one in made)


async def _measure(contender: str, action: str, keys: int, records: int, place: Place, **options: Any) -> Run:
    await place.create()
    await place.load(_records(keys, records))
    interval_ms = options.pop("interval_ms", 1_000)
    with tempfile.TemporaryDirectory() as directory:
        if contender == "agentflow":
            command = _worker(place, directory, action, interval_ms, **options)
        else:
            module = f"benchmarks.peers.{contender.replace('-', '_')}"
            arguments = [place.brokers, place.job, directory, action, str(interval_ms / 1000)]
            command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with _process(command, directory) as process:
            rate = await _rate(place, records, process)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    _check(await place.values(), records, keys, is_counting=action == "stateful")
    return Run(rate, cpu_s / records * 100_000, after.ru_maxrss / 1024)


async def _rate(place: Place, records: int, process: subprocess.Popen[bytes]) -> float:
    """Watch the outputs become visible."""
    deadline = time.monotonic() + DEADLINE_S
    first = last = 0.0
    first_count = count = 0
    async with place.reader() as consumer:
        while not (count >= records and time.monotonic() - last > QUIET_S):
            await asyncio.sleep(0.005)
            found, now = await place.ends(consumer), time.monotonic()
            if found != count:
                first, first_count = (now, found) if not first else (first, first_count)
                count, last = found, now
            assert process.poll() is None, "the contender ended"
            assert now < deadline, f"{count} of {records} outputs after {DEADLINE_S} s"
    return (count - first_count) / (last - first)


def _check(values: list[Any], records: int, keys: int, *, is_counting: bool) -> None:
    assert len(values) == records, f"{len(values)} outputs of {records} records"
    if is_counting:
        counts: dict[str, int] = {}
        for value in values:
            assert value["count"] == counts.get(value["user"], 0) + 1, f"{value}: out of order, lost or doubled"
            counts[value["user"]] = value["count"]
        assert len(counts) == min(keys, records)
    else:
        ids = [value if isinstance(value, int) else value["id"] for value in values]
        assert len(set(ids)) == records, "an output came twice"


def run(contender: str, action: str, keys: int, records: int, partitions: int = 4, **options: Any) -> Run:
    """Run a contender over topics of its own.

    Raises:
        Absent: It is not installed.
    """
    if contender in PEERS and importlib.util.find_spec(PEERS[contender]) is None:
        raise Absent(f"{PEERS[contender]} is not installed: pip install 'agentflow[benchmarks]'")
    return asyncio.run(_measure(contender, action, keys, records, Place(partitions), **options))


# -- how long until …
def _timed(scenario: Callable[[Place, str], Any], partitions: int = 4) -> float:
    async def timed() -> float:
        place = Place(partitions)
        await place.create()
        with tempfile.TemporaryDirectory() as directory:
            return float(await scenario(place, directory))

    return asyncio.run(timed())


async def _until_more(place: Place, consumer: AIOKafkaConsumer, count: int) -> int:
    """Wait for more outputs than ``count``; return how many there are."""
    deadline = time.monotonic() + DEADLINE_S
    while (found := await place.ends(consumer)) <= count:
        assert time.monotonic() < deadline, "no output"
        await asyncio.sleep(0.002)
    return found


def start_ms(factor: float) -> float:  # noqa: ARG001 (one size)
    """Measure from process start to the first committed output of a topic with one record."""

    async def scenario(place: Place, directory: str) -> float:
        await place.load(_records(1, 1))
        async with place.reader() as consumer:
            began = time.monotonic()
            with _process(_worker(place, directory, "stateful", 100), directory):
                await _until_more(place, consumer, 0)
                return (time.monotonic() - began) * 1000

    return _timed(scenario, 1)


def step_ms(factor: float) -> float:  # noqa: ARG001 (one size)
    """Measure the median of a durable step, one at a time, with the journal in Kafka."""

    async def scenario(place: Place, directory: str) -> float:
        await place.load(_records(1, 1))
        async with place.reader() as consumer:
            with _process(_worker(place, directory, "step_times"), directory):
                await _until_more(place, consumer, 0)
        (value,) = await place.values()
        return float(value["ms"])

    return _timed(scenario, 1)


def restart_ms(factor: float) -> float:
    """Measure from the restart of a killed static member to its first new output."""

    async def scenario(place: Place, directory: str) -> float:
        await place.load(_records(1_000, int(1_000_000 * factor)))
        command = _worker(place, directory, "stateful", 1_000, instance_id="w0")
        async with place.reader() as consumer:
            with _process(command, directory) as first:
                await _until_more(place, consumer, 0)
                first.kill()
                first.wait()
            count, began = await place.ends(consumer), time.monotonic()
            with _process(command, directory):
                await _until_more(
                    place, consumer, count + place.partitions
                )  # the marks of a settled transaction count too
                return (time.monotonic() - began) * 1000

    return _timed(scenario)


def takeover_ms(factor: float) -> float:
    """Measure from the death of a worker to the first output of its partitions by another, without the session timeout."""
    session_ms = 6_000

    async def scenario(place: Place, directory: str) -> float:
        await place.load(_records(1_000, int(2_000_000 * factor)))
        commands = []
        for name in ("a", "b"):
            (Path(directory) / name).mkdir()
            here = str(Path(directory) / name)
            commands.append((_worker(place, here, "async", 1_000, session_timeout=f"{session_ms}ms"), here))
        async with place.reader() as consumer:
            with _process(*commands[0]), _process(*commands[1]) as second:
                deadline = time.monotonic() + DEADLINE_S
                ends: dict[TopicPartition, int] = {}
                while not ends or min(ends.values()) < 100:
                    ends = await consumer.end_offsets(list(consumer.assignment()))
                    assert time.monotonic() < deadline, ends
                await asyncio.sleep(3)
                second.kill()
                began = time.monotonic()
                await asyncio.sleep(1.5)  # what was committed before is visible
                ends = await consumer.end_offsets(list(consumer.assignment()))
                while any(now < ends[one] + 10 for one, now in (await consumer.end_offsets(list(ends))).items()):
                    assert time.monotonic() < deadline, ends
                    await asyncio.sleep(0.005)
                return (time.monotonic() - began) * 1000 - session_ms

    return _timed(scenario)


def rolling_restart_ms(factor: float) -> float:  # noqa: ARG001 (one size)
    """Measure the longest time without a new output of a partition while three workers are restarted one after another.

    3,000 records/s over six partitions, 100 ms checkpoints, static members.
    """
    return _timed(_rolling_restart_ms, 6)


async def _rolling_restart_ms(place: Place, directory: str) -> float:
    changed: dict[TopicPartition, float] = {}
    gaps = [0.0]

    async def watch(consumer: AIOKafkaConsumer) -> None:
        ends: dict[TopicPartition, int] = {}
        while True:
            found, now = await consumer.end_offsets(list(consumer.assignment())), time.monotonic()
            for partition, end in found.items():
                if end != ends.get(partition):
                    gaps.append(now - changed.get(partition, now))
                    changed[partition] = now
            ends = found
            await asyncio.sleep(0.005)

    async with place.reader() as consumer, AIOKafkaProducer(bootstrap_servers=place.brokers) as producer:
        with contextlib.ExitStack() as all_workers:
            workers = []
            for name in ("a", "b", "c"):
                here = Path(directory) / name
                here.mkdir()
                command = _worker(place, str(here), "stateful", 100, instance_id=name, session_timeout="10s")
                workers.append(
                    (all_workers.enter_context(contextlib.ExitStack()), [*command, "--log-level", "info"], here)
                )
                workers[-1][0].enter_context(_process(workers[-1][1], str(here), here / "log"))
            background = [
                asyncio.ensure_future(_write_steadily(place, producer, 3_000)),
                asyncio.ensure_future(watch(consumer)),
            ]
            await _until_more(place, consumer, 15_000)
            gaps.clear()
            for worker, command, here in workers:
                await asyncio.to_thread(worker.close)
                worker.enter_context(_process(command, str(here), here / "log"))
                await _started(here, place.partitions // len(workers))
                await asyncio.sleep(1)
            for task in background:
                task.cancel()
            await asyncio.wait(background)
            gaps += [time.monotonic() - at for at in changed.values()]  # what has not gone on is a gap too
    return max(gaps) * 1000


async def _write_steadily(place: Place, producer: AIOKafkaProducer, rate: int) -> None:
    step = rate // 100
    for first in itertools.count(0, step):
        for number in range(first, first + step):
            key = b"u%05d" % (number % 1_000)
            await producer.send(f"{place.job}-in", b'{"id":%d}' % number, key, partition=place.place(key))
        await asyncio.sleep(0.01)


def restore_ms(factor: float) -> float:
    """Measure the restore of a subtask with 1,000,000 entries of 100 bytes from nothing but its changelog."""

    async def scenario(place: Place, directory: str) -> float:
        changelog, entries = f"{place.job}-out", int(1_000_000 * factor)

        def producer() -> SubtaskProducer:
            return SubtaskProducer(KafkaSettings(brokers=place.brokers), place.job, 0, changelog)

        writer = producer()
        await writer.start()
        for first in range(0, entries, 10_000):
            rows = [
                (int(Table.MEMORY), storage_key(0, b"k%08d" % number, "value"), b"x" * 100)
                for number in range(first, min(entries, first + 10_000))
            ]
            await writer.append_changelog(records_of(rows))
        await writer.append_changelog([checkpoint_record(1, {})])
        await writer.commit(1, {})
        await writer.close()
        owner, began = producer(), time.monotonic()
        client = {"bootstrap_servers": place.brokers}
        state = await open_changelog_state(
            lambda _: RocksDBKeyedState.open(f"{directory}/state", job=place.job),
            owner,
            changelog,
            0,
            client,
            2**62,
            Consumer,
        )
        took_ms = (time.monotonic() - began) * 1000
        assert state.get(0, b"k%08d" % (entries - 1), "value") == b"x" * 100
        state.close()
        await owner.close()
        return took_ms

    return _timed(scenario, 1)


def latency_ms(percentile: float, factor: float) -> float:
    """Measure end-to-end latency at 10,000 records/s: from `send` to a `read_committed` reader, 100 ms checkpoints."""

    async def scenario(place: Place, directory: str) -> float:
        with _process(_worker(place, directory, "trivial", 100), directory):
            return await _latency(place, percentile, seconds=max(3, int(20 * factor)))

    return _timed(scenario)


async def _latency(place: Place, percentile: float, seconds: int, step: int = 100) -> float:
    total = seconds * 10_000
    latencies: list[float] = []
    producer = AIOKafkaProducer(bootstrap_servers=place.brokers, max_batch_size=2**18)
    await producer.start()

    async def write() -> None:
        began = time.monotonic()
        for first in range(0, total, step):
            await asyncio.sleep(max(0, began + first / 10_000 - time.monotonic()))
            batches = [producer.create_batch() for _ in range(place.partitions)]
            for number in range(first, first + step):
                key = b"u%05d" % (number % 1_000)
                value = b'{"id":%d,"at":%.6f}' % (number, time.monotonic())
                batches[place.place(key)].append(timestamp=None, key=key, value=value)
            for partition, batch in enumerate(batches):
                if batch.record_count():
                    await producer.send_batch(batch, f"{place.job}-in", partition=partition)

    async with place.reader() as consumer:
        for partition in consumer.assignment():
            consumer.seek(partition, 0)
        writing = asyncio.ensure_future(write())
        deadline = time.monotonic() + seconds + 60
        while len(latencies) < total:
            assert time.monotonic() < deadline, f"{len(latencies)} of {total}"
            for fetched in (await consumer.getmany(timeout_ms=10)).values():
                now = time.monotonic()
                latencies += [now - msgspec.json.decode(one.value)["at"] for one in fetched]
        await writing
    await producer.stop()
    warm = sorted(latencies[total // 4 :])  # the first ones waited for the worker to start
    return warm[min(len(warm) - 1, int(len(warm) * percentile))] * 1000


# -- many subtasks in one worker
def idle_subtask_mib(factor: float) -> float:  # noqa: ARG001 (one size)
    """Measure the memory of one of 64 idle subtasks in one worker; none of them makes a transaction."""
    resident = {partitions: _timed(_idle_mib, partitions) for partitions in (1, SUBTASKS)}
    return (resident[SUBTASKS] - resident[1]) / (SUBTASKS - 1)


async def _idle_mib(place: Place, directory: str) -> float:
    with _process(
        [*_worker(place, directory, "stateful"), "--log-level", "info"], directory, Path(directory) / "log"
    ) as worker:
        await _started(Path(directory), place.partitions)
        changelog = [TopicPartition(f"{place.job}-changelog", number) for number in range(place.partitions)]
        async with place.reader() as consumer:
            await asyncio.sleep(2)  # the first checkpoint of a new job names its incarnation
            before = await consumer.end_offsets(changelog)
            await asyncio.sleep(3)
            assert await consumer.end_offsets(changelog) == before, "an idle subtask made a transaction"
        return _resident_mib(worker.pid)


def busy_subtasks_ms(factor: float) -> float:
    """Measure the longest checkpoint of 64 subtasks, each of which has records in every epoch: 10,000 records/s in all.

    The first four seconds do not count: in them the brokers make the files of 192 new partitions and 64 producers.
    """

    async def scenario(place: Place, directory: str) -> float:
        command = [*_worker(place, directory, "trivial"), "--log-level", "info", "--set", "admin.port=0"]
        with _process(command, directory, Path(directory) / "log"):
            await _started(Path(directory), place.partitions)
            address = re.findall(r"address=\S+:(\d+)", (Path(directory) / "log").read_text())[0]
            writing = asyncio.ensure_future(_latency(place, 0.99, seconds=max(8, int(20 * factor)), step=1_000))
            await asyncio.sleep(4)
            longest = 0.0
            while not writing.done():
                text = await asyncio.to_thread(_fetch, f"http://127.0.0.1:{address}/metrics")
                shown = re.findall(r"^agentflow_checkpoint_duration_seconds\S* (\S+)$", text, re.MULTILINE)
                assert len(shown) == SUBTASKS
                longest = max([longest, *map(float, shown)])
                await asyncio.sleep(0.5)
            await writing
            return longest * 1000

    return _timed(scenario, SUBTASKS)


def _fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


async def _started(directory: Path, subtasks: int) -> None:
    """Wait until a worker has started so many subtasks."""
    deadline = time.monotonic() + DEADLINE_S
    while (directory / "log").read_text().count("subtask started") < subtasks:
        assert time.monotonic() < deadline, (directory / "log").read_text()
        await asyncio.sleep(0.1)


def _resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024

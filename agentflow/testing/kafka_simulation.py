"""A seeded world of Kafka workers: the real worker, group, producer and changelog over a simulated cluster.

`simulate_kafka(seed)` draws an agent, a script and partitions, and lets one to three workers of the job live in one loop of virtual
time, through what the seed has for them: a worker is killed, with or without its disk; a worker is cut off and comes back as a
zombie; a worker stops; workers join; requests are lost, carried out unanswered, or carried out late. At the end everybody gets
through again, and what a `read_committed` reader sees is judged against the sequential run.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from agentflow.api.memory_codec import stamp_of
from agentflow.connectors.kafka.group import KafkaGroup, PartitionSource, Reading
from agentflow.connectors.kafka.partitioners import murmur2
from agentflow.connectors.kafka.producer import SubtaskProducer
from agentflow.connectors.kafka.simulated_clients import SimulatedConsumer, SimulatedProducer
from agentflow.connectors.kafka.simulated_cluster import Link, SimulatedCluster
from agentflow.connectors.kafka.sinks import REASON_PREFIX, KafkaDeadLetters, KafkaSink
from agentflow.core.delta import StoredRow, Table
from agentflow.core.records import Record
from agentflow.errors import AgentflowError, StateLocked, StateUnavailable
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.job import Job
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.ports import Sink, Source
from agentflow.runtime.settings import CheckpointSettings, KafkaSettings
from agentflow.runtime.worker import Worker
from agentflow.state.changelog_records import ChangelogReplay, Row
from agentflow.state.kafka_changelog import ChangelogKeyedState, open_changelog_state
from agentflow.state.kafka_journal import KafkaJournal
from agentflow.state.layout import encode_name, key_prefix, split_storage_key, storage_key
from agentflow.state.memory import MemoryStorage
from agentflow.testing.faults import Fuse
from agentflow.testing.judgement import Outcome, judge
from agentflow.testing.lives import end_tasks
from agentflow.testing.paid_service import PaidService
from agentflow.testing.program import Op
from agentflow.testing.simulation import Scenario, SimulationReport
from agentflow.testing.virtual_time import VirtualClock, VirtualTimeLoop

JOB = "simulation"
INPUT, OUTPUT, DEAD, CHANGELOG, JOURNAL = "in", "out", "dead", f"{JOB}-changelog", f"{JOB}-journal"
WORKERS_MAX = 3
DISTURBANCES_MAX = 10
QUIET_S_MAX = 600
"""Virtual seconds after the last disturbance in which the job has to be done."""


class CopyStorage:
    """The disk of one subtask's copy of the changelog: survives the process that wrote it."""

    def __init__(self) -> None:
        self.tables: dict[Table, dict[bytes, bytes]] = {table: {} for table in Table}
        self.checkpoint = 0
        self.position: int | None = None
        self.is_open = False


class SimulatedCopy:
    """`ChangelogCopy` on a `CopyStorage`; a killed process writes nothing more."""

    changelog_applied_ms = 2**62  # never too old
    sizes: Mapping[str, int] = {}

    def __init__(self, storage: CopyStorage, link: Link) -> None:
        if link.is_dead:
            raise StateUnavailable("the process is gone")
        if storage.is_open:
            raise StateLocked("the copy is in use")
        storage.is_open = True
        self._storage = storage
        self._link = link
        self._is_closed = False

    @property
    def checkpoint(self) -> int:
        """See `ChangelogCopy`."""
        return self._storage.checkpoint

    @property
    def changelog_position(self) -> int | None:
        """See `ChangelogCopy`."""
        return self._storage.position

    def get(self, operator: int, key: bytes, path: str) -> bytes | None:
        """See `KeyedState`."""
        return self._storage.tables[Table.MEMORY].get(key_prefix(operator, key) + encode_name(path))

    def scan(self, operator: int, key: bytes, prefix: str) -> list[tuple[str, bytes]]:
        """See `KeyedState`."""
        start = key_prefix(operator, key) + encode_name(prefix)
        rows = sorted(self._storage.tables[Table.MEMORY].items())
        return [(split_storage_key(row)[2], value) for row, value in rows if row.startswith(start)]

    def find(self, table: Table, operator: int, key: bytes, name: str) -> bytes | None:
        """See `KeyedState`."""
        return self._storage.tables[table].get(storage_key(operator, key, name))

    def rows(self, table: Table) -> Iterable[StoredRow]:
        """See `KeyedState`."""
        return [StoredRow(*split_storage_key(row), value) for row, value in sorted(self._storage.tables[table].items())]

    def apply_changes(self, rows: Iterable[Row]) -> None:
        """See `ChangelogCopy`."""
        if self._link.is_dead or self._is_closed:
            raise StateUnavailable("the process is gone")
        for table, row, value in rows:
            if value is None:
                self._storage.tables[Table(table)].pop(row, None)
            else:
                self._storage.tables[Table(table)][row] = value

    def note_changelog(self, checkpoint: int, position: int, now_ms: int) -> None:  # noqa: ARG002 (never too old)
        """See `ChangelogCopy`."""
        if self._link.is_dead or self._is_closed:
            raise StateUnavailable("the process is gone")
        self._storage.checkpoint, self._storage.position = checkpoint, position

    async def sweep(self, table: Table, unused_since_ms: int, fresh_ms: int) -> int:  # noqa: ARG002 (all at once)
        """See `KeyedState`."""
        rows = self._storage.tables[table]
        old = [row for row, value in rows.items() if (stamp_of(value) or 2**62) <= unused_since_ms]
        for row in old:
            del rows[row]
        return len(old)

    def close(self) -> None:
        """Release the storage."""
        if not self._is_closed:
            self._is_closed = True
            self._storage.is_open = False


class _Process:
    """One worker process, or what is left of it."""

    def __init__(self, world: _KafkaWorld, number: int, disk: dict[int, CopyStorage]) -> None:
        self.disk = disk
        self.link = Link(random.Random(f"{world.scenario.seed}/{number}"), world.fault_rate, world.delay_s_max)  # noqa: S311
        self.was_cut = False
        self._world = world
        self._consumer: SimulatedConsumer | None = None
        self._luck = random.Random(f"{world.scenario.seed}/{number}/reads")  # noqa: S311
        settings = world.scenario.settings
        service = world.service.called_by(self)
        self.plans = [
            AgentPlan.from_agent(program.agent(f"agent{number}", service))
            for number, program in enumerate(world.scenario.programs)
        ]

        def new_group() -> KafkaGroup:
            return KafkaGroup(settings.kafka, JOB, Reading((INPUT,)), world.partitions, new_consumer=self._new_consumer)

        self.worker = Worker(new_group, lambda group, subtask: _Subtask(world, self, group, subtask), settings.restart)
        self.main = asyncio.ensure_future(self._run())

    @property
    def is_gone(self) -> bool:
        """See `Caller`."""
        return self.link.is_dead

    @property
    def may_repeat(self) -> bool:
        """See `Caller`."""
        return self.was_cut

    def _new_consumer(self, **options: Any) -> SimulatedConsumer:  # noqa: ANN401 (options of aiokafka)
        self._consumer = SimulatedConsumer(self._world.cluster, self.link, self._luck, **options)
        return self._consumer

    def new_reader(self, **options: Any) -> SimulatedConsumer:  # noqa: ANN401 (options of aiokafka)
        """Make a consumer of no group."""
        return SimulatedConsumer(self._world.cluster, self.link, self._luck, **options)

    async def _run(self) -> None:
        try:
            await self.worker.run()
        except AgentflowError as error:
            # One that gets no answer for long ends, and whoever supervises it starts it again.
            if not self.link.is_dead and not self.link.faults and not self.was_cut:
                self._world.complaints.append(f"a worker failed: {error!r} {error}; cause {error.__cause__!r}")

    def kill(self) -> None:
        """End it at once; what its tasks still do has no effect."""
        self.link.kill()
        for storage in self.disk.values():
            storage.is_open = False
        self.main.cancel()
        if self._consumer is not None and (group := self._world.cluster.groups.get(JOB)) is not None:
            group.rebalance()

    async def cut(self, seconds: float) -> None:
        """Cut it off for a while: the others take over, and then it is back as a zombie."""
        self.was_cut = True
        self.link.cut()
        group = self._world.cluster.groups.get(JOB)
        if group is not None:
            group.rebalance()
        await asyncio.sleep(seconds)
        self.link.heal()
        if group is not None and self._consumer is not None and not self.link.is_dead and not self.main.done():
            group.rejoin(self._consumer)


class _Subtask:
    """The subtask of a process; as the one of `agentflow.environment`, over simulated ports."""

    def __init__(self, world: _KafkaWorld, process: _Process, group: KafkaGroup, number: int) -> None:
        self._world = world
        self._group = group
        self._process = process
        self._number = number
        self._producer: SubtaskProducer | None = None
        self._source: PartitionSource | None = None
        stages = [AgentStage(plan, "k") for plan in process.plans]
        spec = JobSpec(
            world.scenario.settings, stages, self._open_source, self._open_sinks, self._open_state, has_tombstones=True
        )
        self.job = Job(spec, clock=VirtualClock(asyncio.get_running_loop()))

    async def keep(self) -> None:
        """See `OwnedSubtask`."""
        if self._source is not None:
            await self._source.keep()

    async def release(self) -> None:
        """See `OwnedSubtask`."""
        self._group.forget(self._number)

    def _open_source(self) -> Source:
        cluster, link = self._world.cluster, self._process.link

        def new_producer(**options: Any) -> SimulatedProducer:  # noqa: ANN401 (options of aiokafka)
            return SimulatedProducer(cluster, link, **options)

        settings = self._world.scenario.settings.kafka
        self._producer = SubtaskProducer(
            settings, JOB, self._number, CHANGELOG, self._world.batch_bytes, new_producer=new_producer
        )
        self._source = self._group.source(self._number, self._producer)
        return self._source

    def _open_sinks(self) -> Mapping[str, Sink]:
        assert self._producer is not None
        return {
            "sink": KafkaSink(self._producer, OUTPUT, murmur2, 2**20),
            "dead-letter": KafkaDeadLetters(self._producer, DEAD, murmur2),
        }

    async def _open_state(self) -> ChangelogKeyedState:
        assert self._producer is not None
        reader = self._process.new_reader
        journal = KafkaJournal(self._producer, JOURNAL, self._number, {}, reader)
        return await open_changelog_state(
            self._open_copy, self._producer, CHANGELOG, self._number, {}, 2**62, reader, journal
        )

    def _open_copy(self, is_reset: bool) -> SimulatedCopy:  # noqa: FBT001 (a callback)
        assert not is_reset, "no copy is ever too old here"
        storage = self._process.disk.setdefault(self._number, CopyStorage())
        try:
            return SimulatedCopy(storage, self._process.link)
        except StateLocked as error:
            raise StateUnavailable(error.what) from error


class _KafkaWorld:
    """One scenario."""

    def __init__(self, seed: int, records_max: int) -> None:
        luck = self._luck = random.Random(f"{seed}/kafka")  # noqa: S311 (the seed of a simulation)
        self.scenario = scenario = Scenario(seed, records_max, may_have_timers=False, waits=(Op.SLEEP,))
        self.service = PaidService(f"{seed}/service", Fuse())
        self.partitions = 2
        self.fault_rate = luck.choice([0.0, 0.0, 0.01, 0.05])
        self.delay_s_max = luck.choice([0.003, 0.03])
        self.batch_bytes = luck.choice([200, 2_000, 2**18])
        settings = scenario.settings
        kafka = KafkaSettings(
            transaction_timeout_ms=luck.choice([int(100_000 * self.delay_s_max), 60_000]), session_timeout_ms=1_000
        )
        checkpoint = CheckpointSettings(
            interval_ms=max(10, settings.checkpoint.interval_ms)
        )  # it takes several requests
        self.scenario.settings = msgspec.structs.replace(settings, job=JOB, kafka=kafka, checkpoint=checkpoint)
        self.scenario.records = _one_by_one(scenario.records)
        topics = dict.fromkeys((INPUT, OUTPUT, DEAD, CHANGELOG, JOURNAL), self.partitions)
        self.cluster = SimulatedCluster(topics, lambda: luck.choice([0.0, luck.uniform(0, self.delay_s_max)]))
        self.complaints: list[str] = []
        self.lives = 0
        self.events: list[str] = []
        self._processes: list[_Process] = []
        self._disturbing: set[asyncio.Task[None]] = set()

    def run(self) -> SimulationReport:
        loop = VirtualTimeLoop()
        loop.set_exception_handler(self._complain)
        try:
            outcome = loop.run_until_complete(self._run())
        finally:
            end_tasks(loop)
            loop.close()
        violations = (*self.complaints, *self.service.violations, *judge(outcome, self.scenario.expected))
        faults = sum(process.link.faults for process in self._processes)
        trace = (*self.events, f"{faults} lost requests or answers")
        visible = len(outcome.outputs["sink"])
        return SimulationReport(self.scenario.seed, violations, self.lives, faults, visible, trace)

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # noqa: ARG002 (asyncio)
        self.complaints.append(f"asyncio: {context}")

    async def _run(self) -> Outcome:
        luck = self._luck
        unwritten = list(self.scenario.records)
        for _ in range(luck.randint(1, WORKERS_MAX)):
            self._start({})
        for _ in range(luck.randint(0, DISTURBANCES_MAX)):
            for _ in range(luck.randint(0, 8)):
                if unwritten:
                    self._write(unwritten.pop(0))
            await asyncio.sleep(luck.choice([luck.uniform(0, 0.05), luck.uniform(0, 0.05), luck.uniform(0, 1)]))
            self._disturb()
        for record in unwritten:
            self._write(record)
        await self._calm_down()
        await self._wait_until_done()
        for process in self._processes:
            process.worker.request_stop()
        running = [process.main for process in self._processes if not process.main.done()]
        if running:
            await asyncio.wait(running, timeout=QUIET_S_MAX)
        return self._outcome()

    def _write(self, record: Record) -> None:
        partition = int(record.source.rpartition("/")[2])
        (where,) = [one for one in self.cluster.logs if one.topic == INPUT and one.partition == partition]
        self.cluster.append(where, [(b"key", record.value, (), None)])

    def _start(self, disk: dict[int, CopyStorage]) -> None:
        self.lives += 1
        self._processes.append(_Process(self, self.lives, disk))

    def _disturb(self) -> None:
        luck = self._luck
        alive = [process for process in self._processes if not process.link.is_dead and not process.main.done()]
        what = luck.choice(
            ["kill", "kill", "lose disk", "cut", "cut", "stop", "join", "rebalance", "rebalance", "rebalance"]
        )
        self.events.append(what)
        if what == "join" or not alive:
            if len(alive) < WORKERS_MAX:
                self._start({})
            return
        process = luck.choice(alive)
        if what in ("kill", "lose disk"):
            process.kill()
            self._start(process.disk if what == "kill" else {})
        elif what == "cut":
            task = asyncio.ensure_future(process.cut(luck.choice([0.01, 0.3, 3.0])))
            self._disturbing.add(task)
            task.add_done_callback(self._disturbing.discard)
        elif what == "stop":
            process.worker.request_stop()
            self._start({})
        elif (group := self.cluster.groups.get(JOB)) is not None:
            group.rebalance()

    async def _calm_down(self) -> None:
        """Let everybody through, and have one worker that lives."""
        if self._disturbing:
            await asyncio.wait(self._disturbing)
        for process in self._processes:
            process.link.fault_rate = 0
        await asyncio.sleep(1)
        if all(process.main.done() or process.link.is_dead for process in self._processes):
            self._start({})

    async def _wait_until_done(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + QUIET_S_MAX
        while not self._is_done():
            if loop.time() > deadline:
                self.complaints.append(f"not done {QUIET_S_MAX} virtual seconds after the last disturbance")
                return
            if all(process.main.done() or process.link.is_dead for process in self._processes):
                self._start({})
            await asyncio.sleep(1)

    def _is_done(self) -> bool:
        for one, log in self.cluster.logs.items():
            if one.topic == INPUT and self.cluster.offsets.get((JOB, one), (0, ""))[0] < len(log):
                return False
        return not self._storage().table(Table.RUNS)

    def _storage(self) -> MemoryStorage:
        """Return what the committed changelogs hold."""
        storage = MemoryStorage()
        for one in self.cluster.logs:
            if one.topic == CHANGELOG:
                records = ((record.key, record.value) for record in self.cluster.committed(one))
                for table, row, value in ChangelogReplay().rows(records):
                    storage.write((Table(table), *split_storage_key(row), value))
        return storage

    def _outcome(self) -> Outcome:
        outputs = [record.value or b"null" for record in self.cluster.values(OUTPUT)]
        letters = [
            msgspec.json.encode({name.removeprefix(REASON_PREFIX): value.decode() for name, value in record.headers})
            for record in self.cluster.values(DEAD)
        ]
        return Outcome(self._storage(), {"sink": outputs, "dead-letter": letters})


def _one_by_one(records: Iterable[Record]) -> list[Record]:
    """Return records with the offsets of Kafka: one after the other in each partition."""
    ends: dict[str, int] = {}
    placed = []
    for record in records:
        offset = ends.get(record.source, 0)
        placed.append(msgspec.structs.replace(record, offset=offset, next_offset=offset + 1, timestamp_ms=None))
        ends[record.source] = offset + 1
    return placed


def simulate_kafka(seed: int, *, records_max: int = 30) -> SimulationReport:
    """Run one seeded world of Kafka workers to the end of its input.

    Args:
        seed: Decides everything; the same seed runs the same way.
        records_max: Longest script.
    """
    return _KafkaWorld(seed, records_max).run()

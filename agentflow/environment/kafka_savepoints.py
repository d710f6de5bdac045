"""Savepoints of Kafka jobs: taken from the changelog alone, and written as a job of another name.

What is in one, and why that is enough: `agentflow.state.kafka_savepoints`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agentflow.core.delta import JOURNAL_NAME, Table
from agentflow.environment.savepoints import storage_beside
from agentflow.errors import StateCorrupted, StateMismatch, StateUnavailable
from agentflow.runtime.savepoints import facts_of

if TYPE_CHECKING:
    from agentflow.environment.kafka_job import KafkaJob
    from agentflow.runtime.settings import JobSettings
    from agentflow.state.kafka_savepoints import ChangelogReader, PendingRecord, RestoredSubtask
    from agentflow.state.rocksdb import RocksDBKeyedState
    from agentflow.state.savepoint_format import SubtaskSavepoint
    from agentflow.state.savepoints import Progress, Savepoint

_NO_WORKERS = ("Empty", "Dead")
_ATTEMPTS = 5


async def create_kafka_savepoint(
    settings: JobSettings, target: str, *, is_rekeyed: bool, progress: Progress
) -> Savepoint:
    """Take a savepoint of a Kafka job; its workers may go on, unless it has a repartition topic.

    Args:
        settings: Settings of the job.
        target: Directory that holds savepoints, or will.
        is_rekeyed: Whether records go through a repartition topic.
        progress: Told of what is read and written.

    Raises:
        ConfigError: The target cannot be one, or is within the state directory.
        StateUnavailable: The job has never run; or it is rekeyed and has workers.
        StateError: Something cannot be read or written.
    """
    from agentflow.state.savepoints import write_savepoint

    job, storage = settings.job, storage_beside(settings.state.dir, target, settings.object_store)
    counts, has_workers = await _look(settings)
    changelog, repartition = f"{job}-changelog", f"{job}-repartition"
    if changelog not in counts:
        raise StateUnavailable(
            f"there is no topic '{changelog}'",
            where={"brokers": settings.kafka.brokers},
            expected="the changelog of a job that has run",
            fix="look at the name of the job, and at kafka.brokers",
        )
    if is_rekeyed and has_workers:
        raise StateUnavailable(
            "records are on their way between subtasks",
            where={"topic": repartition},
            expected="no workers while the savepoint is taken: key-by is not the record's own key",
            fix="stop the workers (SIGTERM), take the savepoint, and start them again",
        )
    place = _made(target)
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=place) as scratch:
        reading = _Reading(settings, Path(scratch), is_rekeyed=is_rekeyed, has_workers=has_workers, progress=progress)
        await reading.run(counts[changelog])
        if not any(subtask.checkpoint for subtask in reading.subtasks):
            raise StateUnavailable(
                "the job has no completed checkpoint",
                where={"topic": changelog},
                expected="a job that has run for a checkpoint.interval",
                fix="let it run, then take the savepoint",
            )
        return await asyncio.to_thread(
            write_savepoint,
            storage,
            reading.files,
            job=job,
            kind="kafka",
            subtasks=reading.subtasks,
            ttl_ms=settings.state.ttl_ms,
            progress=progress,
        )


def _made(target: str) -> Path | None:
    """Make the directory that a target names, and return it: what is read first lies on its disk; None: it names none."""
    from agentflow.state.directory import make_directory
    from agentflow.state.savepoint_storage import storage_error

    if "://" in target:
        return None
    path = Path(target).absolute()
    try:
        make_directory(path)
    except OSError as error:
        raise storage_error(error, "writing a savepoint", path) from error
    return path


async def _look(settings: JobSettings) -> tuple[dict[str, int], bool]:
    """Return the partition counts of the job's own topics that exist, and whether its group has members."""
    from agentflow.connectors.kafka.describe import describe_group
    from agentflow.connectors.kafka.topics import partition_counts

    job = settings.job
    counts = await partition_counts(settings.kafka, [f"{job}-changelog", f"{job}-journal", f"{job}-repartition"])
    group = await describe_group(settings.kafka, job, tuple(counts))
    return counts, group.state not in _NO_WORKERS


class _Reading:
    """Reads the subtasks of a job into directories.

    Attributes:
        subtasks: Facts of each.
        files: Their files.
    """

    def __init__(
        self, settings: JobSettings, scratch: Path, *, is_rekeyed: bool, has_workers: bool, progress: Progress
    ) -> None:
        from agentflow.connectors.kafka.connection import client_options

        self._settings = settings
        self._client = client_options(settings.kafka)
        self._scratch = scratch
        self._is_rekeyed = is_rekeyed
        self._has_workers = has_workers
        self._progress = progress
        self.subtasks: list[SubtaskSavepoint] = []
        self.files: dict[str, Path] = {}

    async def run(self, count: int) -> None:
        """Read so many subtasks."""
        from agentflow.connectors.kafka.connection import KAFKA_ERRORS, Consumer
        from agentflow.state.kafka_savepoints import ChangelogReader, unreadable

        reader = ChangelogReader(self._client, Consumer)
        try:
            await reader.start()
            for number in range(count):
                await self._read(reader, number)
        except KAFKA_ERRORS as error:
            raise unreadable(error, "reading the changelog", f"{self._settings.job}-changelog") from error
        finally:
            await reader.stop()

    async def _read(self, reader: ChangelogReader, number: int) -> None:
        from agentflow.state.kafka_savepoints import PENDING_FILE
        from agentflow.state.rocksdb import RocksDBKeyedState
        from agentflow.state.savepoint_format import SubtaskSavepoint

        name, job = f"subtask-{number}", self._settings.job
        export = self._scratch / name / "export"
        wait_s = 2 * self._settings.kafka.transaction_timeout_ms / 1000
        if self._is_rekeyed:  # what is sent to other subtasks, and that it is sent, has to be seen both or not at all
            await reader.settled_end(f"{job}-changelog", number, wait_s)
        with contextlib.closing(
            RocksDBKeyedState.open(self._scratch / name / "state", job=job, free_min_bytes=0)
        ) as state:
            partitioner = await self._copy(reader, number, state)
            facts = facts_of(state)
            await asyncio.to_thread(export.mkdir)
            await state.link(export)
        self.subtasks.append(SubtaskSavepoint(**msgspec.structs.asdict(facts), subtask=number, partitioner=partitioner))
        if self._is_rekeyed:
            topic = f"{job}-repartition"
            path = export / PENDING_FILE
            path.parent.mkdir(parents=True)
            with path.open("wb") as file:
                position = facts.positions.get(f"{topic}/{number}", 0)
                await reader.copy_pending(topic, number, position, file, wait_s)
        for path in sorted(export.rglob("*")):
            if path.is_file():
                self.files[f"{name}/{path.relative_to(export).as_posix()}"] = path

    async def _copy(self, reader: ChangelogReader, number: int, state: RocksDBKeyedState) -> str:
        """Copy a subtask's changelog; where nobody works on, what the journal has behind it too. Return how keys are spread."""
        topic = f"{self._settings.job}-changelog"

        def tell(position: int, end: int) -> None:
            self._progress(f"reading {topic}/{number}, {position:,} of {end:,}", 0, 0)

        end, partitioner = await reader.copy(topic, number, state, tell)
        if self._has_workers or not state.checkpoint:
            return partitioner
        for _ in range(_ATTEMPTS):
            records = await self._journal_records(number, state)
            behind = await reader.end(topic, number)
            if behind == end:
                if records:
                    await state.journal.append(records)
                return partitioner
            end, newer = await reader.copy(topic, number, state, tell)  # somebody works on after all
            partitioner = newer or partitioner
        raise StateUnavailable(
            "the changelog grows while it is read, and the job has no workers",
            where={"topic": topic, "partition": number},
            expected="nobody but the workers of the job's group writes it",
            fix="find who does; then try again",
        )

    async def _journal_records(self, number: int, state: RocksDBKeyedState) -> list[tuple[int, bytes]]:
        from agentflow.connectors.kafka.connection import Consumer
        from agentflow.state.kafka_journal import KafkaJournal

        position = 0
        for row in state.rows(Table.META):
            if row.name == JOURNAL_NAME:
                position = msgspec.msgpack.decode(row.value, type=int)
        topic = f"{self._settings.job}-journal"
        records, _ = await KafkaJournal(None, topic, number, self._client, Consumer).read(position)
        return records


# -- restoring one
async def restore_kafka_savepoint(savepoint: Savepoint, kafka: KafkaJob, progress: Progress) -> None:
    """Write a savepoint as the changelog of a job that has none, so that its workers start from it.

    Args:
        savepoint: Of a Kafka job.
        kafka: The new job.
        progress: Told of what is read and written.

    Raises:
        StateMismatch: The job exists already, has other partitions, or is no Kafka job in the savepoint.
        StateCorrupted: Something of the savepoint is damaged.
        StateError: Something cannot be read or written; there is no job then.
    """
    from agentflow.connectors.kafka.connection import Consumer, client_options
    from agentflow.connectors.kafka.topics import prepare_topics
    from agentflow.state.kafka_savepoints import ChangelogWriter, refuse_records

    settings, topics, manifest = kafka.settings, kafka.topics, savepoint.manifest
    _refuse(savepoint, kafka)
    await asyncio.to_thread(_check, savepoint, progress)
    facts = await prepare_topics(settings.kafka, settings.topics, topics, settings.checkpoint.interval_ms)
    if facts.subtasks != len(manifest.subtasks):
        raise StateMismatch(
            f"the savepoint has {len(manifest.subtasks)} subtasks, the input topics have {facts.subtasks} partitions",
            where={"savepoint": savepoint.place, "topics": ", ".join(topics.inputs)},
            expected="as many partitions: the memory of a key lies where its records are",
            fix="restore it into a job whose input topics have that many",
        )
    _, has_workers = await _look(settings)
    if has_workers:
        raise StateMismatch(
            "the job has workers already",
            where={"group": settings.job},
            expected="a job of a name that was never used",
            fix="stop the workers and give the job another name",
        )
    client, count = client_options(settings.kafka), facts.subtasks
    await refuse_records([(topics.changelog, count)], client, Consumer, is_committed=True)
    others = [(topic, count) for topic in (topics.journal, *topics.repartition)]
    await refuse_records(others, client, Consumer, is_committed=False)
    old = f"{manifest.job}-repartition"
    writer = ChangelogWriter(
        client,
        settings.job,
        facts.transaction_timeout_max_ms,
        min(facts.message_max[topic] for topic in (topics.changelog, topics.journal, *topics.repartition)),
        topics.changelog,
        topics.journal,
        (old, topics.repartition[0]) if topics.repartition else None,
        lambda records: progress(f"writing {topics.changelog}, record {records:,}", 0, 0),
    )
    with tempfile.TemporaryDirectory(prefix="agentflow-savepoint-") as scratch:
        await writer.write(_subtasks(savepoint, Path(scratch)))


def _refuse(savepoint: Savepoint, kafka: KafkaJob) -> None:
    from agentflow.state.kafka_savepoints import PENDING_FILE

    manifest = savepoint.manifest
    if manifest.kind != "kafka":
        raise StateMismatch(
            "the savepoint is of an embedded job, this job reads Kafka",
            where={"savepoint": savepoint.place},
            expected="a savepoint of a Kafka job: positions of files mean nothing here",
            fix="restore it into an embedded job (agentflow run)",
        )
    has_pending = any(file.name.endswith(PENDING_FILE) and file.size for file in manifest.files)
    if has_pending and not kafka.is_rekeyed:
        raise StateMismatch(
            "the savepoint has records on their way between subtasks, and this job has no repartition topic",
            where={"savepoint": savepoint.place},
            expected="the same key-by as in the job that it is of",
            fix="let that job process what it has read, then take another savepoint; or keep key-by",
        )
    state_dir = kafka.settings.state.dir
    found = [] if state_dir is None else sorted(Path(state_dir).glob("subtask-*"))
    if found:
        raise StateMismatch(
            "there is state of the job on this machine already, and a savepoint never overwrites any",
            where={"found": str(found[0])},
            expected="a state.dir that no job has used: it is filled from the changelog",
            fix="name another directory (--set state.dir=…), or move that one away",
        )


def _check(savepoint: Savepoint, progress: Progress) -> None:
    from agentflow.state.savepoints import check_files

    damage = check_files(savepoint, progress)
    if damage:
        raise StateCorrupted(
            f"{len(damage)} files of the savepoint are damaged, first {damage[0].file}: {damage[0].problem}",
            where={"savepoint": savepoint.place},
            expected="files as agentflow wrote them",
            fix="take another savepoint; agentflow savepoint verify shows all that is damaged",
        )


def _subtasks(savepoint: Savepoint, scratch: Path) -> Iterator[RestoredSubtask]:
    """Open one subtask after the other."""
    from agentflow.state.kafka_savepoints import RestoredSubtask
    from agentflow.state.rocksdb_rows import StateView
    from agentflow.state.savepoints import fetch_subtask

    for subtask in savepoint.manifest.subtasks:
        directory = scratch / f"subtask-{subtask.subtask}"
        fetch_subtask(savepoint, subtask.subtask, directory, is_checked=True)
        with contextlib.closing(StateView(directory)) as view:
            pending = functools.partial(_pending, savepoint, subtask.subtask)
            yield RestoredSubtask(
                subtask.subtask, subtask.checkpoint, view.rows, view.journal, pending, subtask.partitioner
            )


def _pending(savepoint: Savepoint, subtask: int) -> Iterator[PendingRecord]:
    from agentflow.state.kafka_savepoints import PENDING_FILE, pending_records
    from agentflow.state.savepoints import checked_chunks

    name = f"subtask-{subtask}/{PENDING_FILE}"
    for file in savepoint.manifest.files:
        if file.name == name:
            yield from pending_records(checked_chunks(savepoint, file))

"""Savepoints of embedded jobs: taken of a running job and of a stopped one, restored, checked.

What is in one, and why that is enough: `agentflow.runtime.savepoints`.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agentflow.errors import ConfigError, StateError, StateLocked, StateMismatch, StateUnavailable
from agentflow.runtime.checkpoints import EmbeddedCheckpoints
from agentflow.runtime.savepoints import Export, WriteSavepoint, facts_of

if TYPE_CHECKING:
    from agentflow.runtime.ports import Sink
    from agentflow.runtime.settings import JobSettings, ObjectStoreSettings
    from agentflow.state.exports import WantedExport
    from agentflow.state.rocksdb import RocksDBKeyedState
    from agentflow.state.savepoint_storage import SavepointStorage
    from agentflow.state.savepoints import Findings, Progress, Savepoint

SUBTASK = "subtask-0"
SIGNALS = "signals"
ANSWER_S = 60.0
"""How long a running job is waited for."""

_LOOK_S = 0.02
_ROWS_PER_TELL = 20_000
_OWNER_S = 1.0  # so often it is looked whether the job has stopped


class EmbeddedState(msgspec.Struct, frozen=True):
    """The state of an embedded job.

    Attributes:
        directory: ``state.dir``.
        job: Name of the job.
        ttl_ms: Time to live of its short-term memory.
    """

    directory: Path
    job: str
    ttl_ms: int | None = None

    @property
    def subtask(self) -> Path:
        """The directory of its only subtask."""
        return self.directory / SUBTASK

    @classmethod
    def of(cls, settings: JobSettings) -> EmbeddedState | None:
        """Return the state of a job; None: it is in memory."""
        if settings.state.dir is None:
            return None
        return cls(Path(settings.state.dir), settings.job, settings.state.ttl_ms)

    @classmethod
    def at(cls, directory: Path) -> EmbeddedState:
        """Return the state in a directory, of whatever job it is.

        Raises:
            StateUnavailable: There is none.
        """
        from agentflow.state.directory import stored_job

        return cls(directory, stored_job(directory / SUBTASK))


def storage_of(target: str, store: ObjectStoreSettings | None = None) -> SavepointStorage:
    """Return the storage that a target names: a directory, or the URL of a prefix of an object store.

    Args:
        target: The path or URL.
        store: How object stores are reached; None: as the variables of their vendors say.

    Raises:
        ConfigError: It cannot be one.
        NotConfigured: The package obstore is missing.
    """
    if not target:
        raise ConfigError(["savepoints are kept in directories and object stores: name one, the text is empty"])
    if "://" in target:
        from agentflow.environment.savepoint_objects import ObjectStorage

        try:
            return ObjectStorage(target, store)
        except ValueError as error:
            raise ConfigError([f"savepoints are kept in directories and object stores: {error}"]) from error
    from agentflow.state.savepoint_storage import DirectoryStorage

    return DirectoryStorage(Path(target))


def savepoint_at(place: str, store: ObjectStoreSettings | None = None) -> Savepoint:
    """Return the savepoint that a path or URL names.

    Args:
        place: Path or URL.
        store: As in `storage_of`.

    Raises:
        ConfigError: There is none.
        StateError: It cannot be read.
    """
    from agentflow.state.savepoints import load_savepoint

    if not place:
        raise ConfigError(["a savepoint is a directory, or a prefix of an object store: name one, the text is empty"])
    if Path(place).is_file():
        raise ConfigError(
            [f"{place} is no savepoint: it is a file\nhelp: name the directory, which has a manifest.json"]
        )
    path = place.rstrip("/")
    parent, name = os.path.split(path if "://" in path else os.path.normpath(path))
    return load_savepoint(storage_of(parent or ".", store), name)


# -- taking one
def savepoint_writer(settings: JobSettings) -> WriteSavepoint | None:
    """Return what writes the savepoints of a running job; None where its state is in memory."""
    place = EmbeddedState.of(settings)
    if place is None:
        return None

    async def write(export: Export, target: str) -> str:
        return (await _take(place, storage_beside(place.directory, target, settings.object_store), export)).place

    return write


async def create_savepoint(
    place: EmbeddedState,
    target: str,
    *,
    store: ObjectStoreSettings | None = None,
    open_sinks: Callable[[], Mapping[str, Sink]] | None = None,
    answer_s: float = ANSWER_S,
    progress: Progress | None = None,
) -> Savepoint:
    """Take a savepoint of a job that runs in another process, or of one that is stopped.

    Args:
        place: Its state.
        target: Directory that holds savepoints, or will; or a URL.
        store: As in `storage_of`.
        open_sinks: Makes the job's sinks: a checkpoint that is decided and not completed publishes its outputs first.
        answer_s: How long a running job may take to answer.
        progress: Told of bytes copied.

    Raises:
        ConfigError: The target cannot be one, or is within the state directory.
        StateUnavailable: There is no state, or the job does not answer.
        StateError: Something cannot be read or written.
    """
    from agentflow.state.directory import stored_job

    storage = storage_beside(place.directory, target, store)
    stored = stored_job(place.subtask)
    if stored != place.job:
        raise StateMismatch(
            "the state directory belongs to another job",
            where={"directory": str(place.directory), "its job": repr(stored), "this job": repr(place.job)},
            expected="the directory of this job",
            fix="look at state.dir of the job file",
        )

    async def export(request: str) -> None:
        deadline_s = time.monotonic() + answer_s
        is_asked = False
        while not await _export_stopped(place, request, open_sinks):
            if progress is not None:
                progress("waiting for the running job", 0, 0)
            if not is_asked:
                await _ask(place, request)
                is_asked = True
            if await _is_answered(place, request, deadline_s):
                return

    return await _take(place, storage, export, progress)


def storage_beside(state_dir: str | Path | None, target: str, store: ObjectStoreSettings | None) -> SavepointStorage:
    """Return the storage that a target names for the savepoints of a job; one within its state directory would be lost with that.

    Raises:
        ConfigError: It cannot be one, or is within ``state_dir``.
        NotConfigured: The package obstore is missing.
    """
    storage = storage_of(target, store)
    if (
        state_dir is not None
        and "://" not in target
        and Path(target).resolve().is_relative_to(Path(state_dir).resolve())
    ):
        problem = f"{target} is within the state directory {state_dir} of the job: a savepoint there is lost with it"
        raise ConfigError([f"{problem}\nhelp: name a directory elsewhere, at best on another disk"])
    return storage


async def _take(
    place: EmbeddedState, storage: SavepointStorage, export: Export, progress: Progress | None = None
) -> Savepoint:
    from agentflow.state.exports import WantedExport

    wanted = await asyncio.to_thread(WantedExport, place.subtask)
    try:
        await export(wanted.request)
        return await asyncio.to_thread(_write, place, storage, wanted, progress)
    finally:
        await asyncio.to_thread(wanted.close)


def _write(
    place: EmbeddedState, storage: SavepointStorage, wanted: WantedExport, progress: Progress | None
) -> Savepoint:
    from agentflow.state.savepoint_format import SubtaskSavepoint
    from agentflow.state.savepoints import silent, write_savepoint

    facts = wanted.facts()
    return write_savepoint(
        storage,
        {f"{SUBTASK}/{name}": path for name, path in wanted.files().items()},
        job=place.job,
        kind="embedded",
        subtasks=[SubtaskSavepoint(**msgspec.structs.asdict(facts), subtask=0)],
        ttl_ms=place.ttl_ms,
        progress=progress or silent,
    )


async def _ask(place: EmbeddedState, request: str) -> None:
    """Send the request by the way of signals: it stands behind all that were sent before it."""
    from agentflow.connectors.signal_spool import SignalSpool
    from agentflow.runtime.signals import encode_export

    await SignalSpool(place.directory / SIGNALS).append(encode_export(request))


async def _is_answered(place: EmbeddedState, request: str, deadline_s: float) -> bool:
    """Wait for a moment; whether the job has answered.

    Raises:
        StateUnavailable: It had time enough.
    """
    from agentflow.state.exports import place_of

    look_at_owner_s = time.monotonic() + _OWNER_S
    while (now_s := time.monotonic()) < look_at_owner_s:
        if place_of(place.subtask, request) is None:
            return True
        if now_s > deadline_s:
            raise StateUnavailable(
                "the running job does not hand its state out",
                where={"directory": str(place.directory), "job": place.job},
                expected="a job that completes checkpoints and reads its signals",
                fix="look at its log; or stop it, and take the savepoint then",
            )
        await asyncio.sleep(_LOOK_S)
    return False


async def _export_stopped(
    place: EmbeddedState, request: str, open_sinks: Callable[[], Mapping[str, Sink]] | None
) -> bool:
    """Hand out the state of a job that does not run; False: it runs."""
    from agentflow.state.rocksdb import RocksDBKeyedState

    try:
        state = RocksDBKeyedState.open(
            place.subtask,
            job=place.job,
            free_min_bytes=0,
            beside=(place.directory / SIGNALS,),
            is_momentary=True,
        )
    except StateLocked:
        return False
    try:
        if state.changelog_position is not None:
            raise StateMismatch(
                "the state is a copy of the changelog of a Kafka job",
                where={"directory": str(place.directory), "job": place.job},
                expected="the state of an embedded job",
                fix="name the job file instead: the savepoint is taken from the changelog",
            )
        await _complete_decided(state, open_sinks)
        await state.export(request, facts_of(state), has_journal=True)
    finally:
        state.close()
    return True


async def _complete_decided(state: RocksDBKeyedState, open_sinks: Callable[[], Mapping[str, Sink]] | None) -> None:
    """Do what the job would do first: complete a checkpoint that is decided, and let its outputs be seen."""
    prepared = state.prepared
    if prepared is None:
        return
    has_files = any(staged.names for staged in prepared.staged.values())
    if any(staged.outputs for staged in prepared.staged.values()) or (has_files and open_sinks is None):
        raise StateUnavailable(
            f"checkpoint {prepared.checkpoint} is decided, and its outputs are not written yet",
            where={"job": "stopped in the middle of a checkpoint"},
            expected="outputs in the sinks of the job before its state goes elsewhere",
            fix="start the job, which writes them first; then take the savepoint",
        )
    sinks = open_sinks() if has_files and open_sinks is not None else {}
    try:
        await EmbeddedCheckpoints(state, sinks).recover()
    finally:
        for sink in sinks.values():
            await sink.close()


# -- using one
def restore_savepoint(savepoint: Savepoint, place: EmbeddedState, progress: Progress | None = None) -> None:
    """Make the state of a savepoint the state of an embedded job that has none; another name is fine.

    Raises:
        StateMismatch: There is state already, or it is of a Kafka job.
        StateError: Something is damaged, or cannot be read or written.
    """
    from agentflow.state.savepoint_restore import restore_embedded
    from agentflow.state.savepoints import silent

    restore_embedded(savepoint, place.directory, place.job, beside=(SIGNALS,), progress=progress or silent)


def verify_savepoint(savepoint: Savepoint, progress: Progress | None = None) -> Findings:
    """Read every file and every row of a savepoint, and say what is damaged."""
    from agentflow.state.savepoints import Findings, check_files, silent

    progress = progress or silent
    found = Findings(len(savepoint.manifest.files), 0, check_files(savepoint, progress))
    for subtask in savepoint.manifest.subtasks:
        with tempfile.TemporaryDirectory(prefix="agentflow-savepoint-") as scratch:
            _check_rows(savepoint, subtask.subtask, Path(scratch), found, progress)
    return found


def _check_rows(savepoint: Savepoint, subtask: int, scratch: Path, found: Findings, progress: Progress) -> None:
    from agentflow.core.delta import Table
    from agentflow.runtime.row_check import record_problem, row_problem
    from agentflow.state.rocksdb_rows import StateView
    from agentflow.state.savepoints import Damage, fetch_subtask

    place = f"subtask-{subtask}"
    try:
        fetch_subtask(savepoint, subtask, scratch, is_checked=True)  # what is damaged is told already
        view = StateView(scratch)
    except StateError as error:
        found.damage.append(Damage(place, error.what))
        return
    try:
        for _, record in view.journal:
            found.rows += 1
            if problem := record_problem(record):
                found.damage.append(Damage(f"{place}/journal", problem))
        for table in Table:
            name = f"{place}/{table.name.lower()}"
            try:
                for row in view.rows(table):
                    found.rows += 1
                    if problem := row_problem(table, row):
                        found.damage.append(Damage(f"{name} key {row.key.hex()} name {row.name!r}", problem))
                    if found.rows % _ROWS_PER_TELL == 0:
                        progress(f"reading {name}, row {found.rows:,}", 0, 0)
            except StateError as error:
                found.damage.append(Damage(name, error.what))
    finally:
        view.close()

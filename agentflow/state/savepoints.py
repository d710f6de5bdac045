"""Savepoints: written to a storage, listed, looked at, checked.

Writing, in this order:

1. every file, each whole and durable: one that an older savepoint of the job has is shared (`SavepointStorage.share`), known by where it
   was copied from without reading it, or else by its content;
2. the manifest, last and in one step.

A crash before 2 leaves a folder without a manifest, which is no savepoint and never read; a new attempt has a folder of its own. After
an error (a full disk) what was written is deleted again. Deleting begins with the manifest: what is half deleted is no savepoint either.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from agentflow.errors import ConfigError, StateCorrupted, StateError, StateVersionTooNew
from agentflow.state.directory import FORMAT as STATE_FORMAT
from agentflow.state.directory import written_by
from agentflow.state.savepoint_format import (
    MANIFEST_FILE,
    Manifest,
    SavepointFile,
    SubtaskSavepoint,
    decode_manifest,
    encode_manifest,
)
from agentflow.state.savepoint_storage import CHUNK_BYTES, SavepointStorage, storage_error

Progress = Callable[[str, int, int], None]
"""Told of (what is done, how much of it, how much there is), in bytes; often."""


def silent(doing: str, done: int, total: int) -> None:
    """Be told, and say nothing."""


class Savepoint(msgspec.Struct, frozen=True):
    """A savepoint in a storage.

    Attributes:
        storage: Where it is.
        name: Its folder.
        manifest: What it holds.
    """

    storage: SavepointStorage
    name: str
    manifest: Manifest

    @property
    def place(self) -> str:
        """Where it is, for people and for commands."""
        return f"{self.storage.place.rstrip('/')}/{self.name}"


class ListedSavepoint(msgspec.Struct, frozen=True):
    """A folder of a storage.

    Attributes:
        name: The folder.
        manifest: Of a savepoint; None where there is none that can be read.
        problem: Why it cannot; empty where it can.
    """

    name: str
    manifest: Manifest | None
    problem: str = ""


class Damage(msgspec.Struct, frozen=True):
    """Something of a savepoint that is not as it was written.

    Attributes:
        file: The file, or the table.
        problem: What is wrong with it.
    """

    file: str
    problem: str


class Findings(msgspec.Struct):
    """What a check of a savepoint found.

    Attributes:
        files: Number of files that were read.
        rows: Number of rows and records that were read.
        damage: What is not as it was written.
    """

    files: int
    rows: int
    damage: list[Damage]


def list_savepoints(storage: SavepointStorage) -> list[ListedSavepoint]:
    """Return the folders that are savepoints, or began to be, oldest first."""
    listed = []
    for name in storage.folders():
        if name.startswith("."):
            continue
        content = storage.read(f"{name}/{MANIFEST_FILE}")
        if content is None:
            listed.append(ListedSavepoint(name, None, f"no {MANIFEST_FILE}: it was never finished, or is no savepoint"))
            continue
        try:
            listed.append(ListedSavepoint(name, decode_manifest(content, f"{storage.place}/{name}")))
        except (StateCorrupted, StateVersionTooNew) as error:
            listed.append(ListedSavepoint(name, None, error.what))
    return sorted(listed, key=_age)


def _age(listed: ListedSavepoint) -> tuple[datetime, str]:
    created_at = datetime.min.replace(tzinfo=UTC) if listed.manifest is None else listed.manifest.created_at
    return created_at, listed.name


def load_savepoint(storage: SavepointStorage, name: str) -> Savepoint:
    """Read the manifest of a savepoint.

    Raises:
        ConfigError: There is none.
        StateVersionTooNew: A newer agentflow wrote it.
        StateCorrupted: Its manifest is damaged.
    """
    place = f"{storage.place.rstrip('/')}/{name}"
    content = storage.read(f"{name}/{MANIFEST_FILE}")
    if content is None:
        is_folder = name in storage.folders()
        why = (
            f"it has no {MANIFEST_FILE}: it was never finished, or holds savepoints itself"
            if is_folder
            else "there is nothing"
        )
        where = place if is_folder else storage.place
        raise ConfigError([f"{place} is no savepoint: {why}\nhelp: agentflow savepoint list {where}"])
    manifest = decode_manifest(content, place)
    if manifest.state_format > STATE_FORMAT:
        raise StateVersionTooNew(
            f"the state of the savepoint has format {manifest.state_format}, written by {manifest.created_by}",
            where={"savepoint": place},
            expected=f"format {STATE_FORMAT} or older",
            fix="run the newer agentflow",
        )
    return Savepoint(storage, name, manifest)


def delete_savepoint(savepoint: Savepoint) -> None:
    """Delete a savepoint; others have everything they need.

    Raises:
        StateError: It cannot be deleted.
    """
    savepoint.storage.delete(savepoint.name, MANIFEST_FILE)


def prune_savepoints(storage: SavepointStorage, keep: int) -> list[str]:
    """Delete all savepoints of each job but the newest ``keep``; return what was deleted. What is unfinished is left alone.

    Raises:
        StateError: One of them cannot be deleted.
    """
    by_job: dict[str, list[Savepoint]] = {}
    for listed in list_savepoints(storage):
        if listed.manifest is not None:
            savepoint = Savepoint(storage, listed.name, listed.manifest)
            by_job.setdefault(listed.manifest.job, []).append(savepoint)
    pruned = [savepoint for savepoints in by_job.values() for savepoint in savepoints[:-keep]]
    for savepoint in pruned:
        delete_savepoint(savepoint)
    return [savepoint.place for savepoint in pruned]


def write_savepoint(
    storage: SavepointStorage,
    files: Mapping[str, Path],
    *,
    job: str,
    kind: Literal["embedded", "kafka"],
    subtasks: Sequence[SubtaskSavepoint],
    ttl_ms: int | None,
    progress: Progress = silent,
) -> Savepoint:
    """Write a savepoint; see the module's docstring. Blocks.

    Args:
        storage: Where it goes.
        files: The files by the names that they get.
        job: Name of the job.
        kind: What the job runs on.
        subtasks: Facts of its subtasks.
        ttl_ms: Time to live of its short-term memory.
        progress: Told of bytes written, or found to be there already.

    Raises:
        StateError: Something cannot be read or written; no savepoint is left.
    """
    now = datetime.now(UTC)
    checkpoint = max((subtask.checkpoint for subtask in subtasks), default=0)
    name = f"{job}-{checkpoint:010d}-{now:%Y%m%dT%H%M%S%f}Z"
    copying = _Copying(storage, name, job, progress)
    try:
        copied_files = copying.copy_all(files)
        manifest = Manifest(
            state_format=STATE_FORMAT,
            job=job,
            kind=kind,
            created_by=written_by(),
            created_at=now,
            ttl_ms=ttl_ms,
            subtasks=list(subtasks),
            files=copied_files,
            copied=copying.copied,
        )
        storage.write(f"{name}/{MANIFEST_FILE}", [encode_manifest(manifest)])
    except Exception:
        with contextlib.suppress(StateError):
            storage.delete(name, MANIFEST_FILE)
        raise
    return Savepoint(storage, name, manifest)


class _Copying:
    """Copies the files of one savepoint, but for those that the job's newest savepoints have."""

    def __init__(self, storage: SavepointStorage, name: str, job: str, progress: Progress) -> None:
        self._storage = storage
        self._name = name
        self._total = self._done = 0
        self.copied = 0
        self._progress = progress
        self._by_origin: dict[tuple[str, int], tuple[str, SavepointFile]] = {}
        self._by_content: dict[tuple[str, int], tuple[str, SavepointFile]] = {}
        for listed in list_savepoints(storage):  # newest last, and that one counts
            if listed.manifest is not None and listed.manifest.job == job:
                for file in listed.manifest.files:
                    known = f"{listed.name}/{file.name}", file
                    self._by_content[file.sha256, file.size] = known
                    if file.origin:
                        self._by_origin[file.origin, file.size] = known
        self._sizes = {size for _, size in self._by_content}

    def copy_all(self, files: Mapping[str, Path]) -> list[SavepointFile]:
        """Copy files, or share them; return what the manifest says of them."""
        try:
            self._total = sum(path.stat().st_size for path in files.values())
        except OSError as error:
            raise storage_error(error, "reading the state", Path(error.filename)) from error
        return [self._copy(path, name) for name, path in files.items()]

    def _copy(self, path: Path, name: str) -> SavepointFile:
        try:
            size, origin = _origin_of(path)
            known = self._by_origin.get((origin, size))
            if known is not None and self._storage.share(f"{self._name}/{name}", known[0]):
                self._advance(size)
                return SavepointFile(name, size, known[1].sha256, origin)
            if size in self._sizes:  # perhaps the same content, of a state that was restored or rebuilt
                checksum = _checksum(path)
                known = self._by_content.get((checksum, size))
                if known is not None and self._storage.share(f"{self._name}/{name}", known[0]):
                    self._advance(size)
                    return SavepointFile(name, size, checksum, origin)
            digest = hashlib.sha256()
            self._storage.write(f"{self._name}/{name}", self._read(path, digest))
        except OSError as error:
            raise storage_error(error, "reading the state", path) from error
        return SavepointFile(name, size, digest.hexdigest(), origin)

    def _read(self, path: Path, digest: hashlib._Hash) -> Iterator[bytes]:
        for chunk in _chunks(path):
            digest.update(chunk)
            yield chunk
            self.copied += len(chunk)
            self._advance(len(chunk))

    def _advance(self, size: int) -> None:
        self._done += size
        self._progress("copying the state", self._done, self._total)


def _origin_of(path: Path) -> tuple[int, str]:
    found = path.stat()
    return found.st_size, f"{found.st_dev:x}:{found.st_ino:x}:{found.st_mtime_ns:x}"


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _checksum(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked_chunks(savepoint: Savepoint, file: SavepointFile) -> Iterator[bytes]:
    """Yield the content of a file; at its end, see that it is what was written.

    Raises:
        StateCorrupted: It is not.
        StateError: It cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    for chunk in savepoint.storage.chunks(f"{savepoint.name}/{file.name}"):
        digest.update(chunk)
        size += len(chunk)
        yield chunk
    _refuse_changed(savepoint, file, size, digest)


def _refuse_changed(savepoint: Savepoint, file: SavepointFile, size: int, digest: hashlib._Hash) -> None:
    problem = ""
    if size != file.size:
        problem = f"it has {size} bytes instead of {file.size}"
    elif digest.hexdigest() != file.sha256:
        problem = "checksum mismatch"
    if problem:
        raise StateCorrupted(
            f"a file of the savepoint is damaged: {problem}",
            where={"savepoint": savepoint.place, "file": file.name},
            expected="the file as agentflow wrote it",
            fix="take another savepoint; agentflow savepoint verify shows all that is damaged",
        )


def check_files(savepoint: Savepoint, progress: Progress = silent) -> list[Damage]:
    """Read every file of a savepoint and return what is damaged."""
    found: list[Damage] = []
    done = 0
    for file in savepoint.manifest.files:
        begun = done
        try:
            for chunk in checked_chunks(savepoint, file):
                done += len(chunk)
                progress("checking files", done, savepoint.manifest.size)
        except StateError as error:
            found.append(Damage(file.name, error.what))
        done = begun + file.size
    return found


def fetch_subtask(savepoint: Savepoint, subtask: int, directory: Path, *, is_checked: bool) -> None:
    """Lay the state of a subtask out in a new directory, to be looked at: opening it in its place would change it.

    Only what RocksDB never changes is linked.

    Args:
        savepoint: Where it is from.
        subtask: Its number.
        directory: Where it goes.
        is_checked: All files have been checked already. Else they are now: RocksDB, which only looks, passes a file that it cannot open
            over, and shows state without its rows.

    Raises:
        StateCorrupted: A file is missing, or damaged.
        StateError: Something cannot be read or written.
    """
    prefix = f"subtask-{subtask}/"
    for file in savepoint.manifest.files:
        if file.name.startswith(prefix):
            path = directory / file.name.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".sst":
                savepoint.storage.fetch(f"{savepoint.name}/{file.name}", path)
            else:
                with path.open("wb") as copy:
                    copy.writelines(savepoint.storage.chunks(f"{savepoint.name}/{file.name}"))
            if not is_checked:
                _check_fetched(savepoint, file, path)


def _check_fetched(savepoint: Savepoint, file: SavepointFile, path: Path) -> None:
    try:
        with path.open("rb", buffering=0) as content:
            digest = hashlib.file_digest(content, "sha256")
            size = os.fstat(content.fileno()).st_size
    except OSError as error:
        raise storage_error(error, "reading a savepoint", path) from error
    _refuse_changed(savepoint, file, size, digest)

"""A savepoint becomes the state directory of an embedded job.

1. everything that could be refused is looked at;
2. documents beside the state (signals on their way) are written where the job reads them;
3. files are written to ``<state.dir>/.restoring-…``, each one checked against its checksum and synced;
4. the directory gets its name: from now on there is state.

A crash before 4 leaves no state; the next attempt begins anew and deletes what this one left.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agentflow.errors import StateCorrupted, StateMismatch
from agentflow.state.directory import make_directory, sync_directory, write_format
from agentflow.state.savepoint_storage import storage_error, write_durably
from agentflow.state.savepoints import Progress, Savepoint, checked_chunks, silent

SUBTASK_DIRECTORY: Final = "subtask-0"
_PREFIX = f"{SUBTASK_DIRECTORY}/"
_RESTORING = ".restoring-"
_OF_THE_STATE = ("rocksdb", "journal")  # other folders lie beside it


def restore_embedded(
    savepoint: Savepoint, state_dir: Path, job: str, *, beside: Sequence[str] = (), progress: Progress = silent
) -> None:
    """Write the state of a savepoint into a state directory that has none. Blocks.

    Args:
        savepoint: Of an embedded job.
        state_dir: ``state.dir`` of the job.
        job: Name of the job; another one than before is fine.
        beside: Names of the directories beside the state that belong to it.
        progress: Told of bytes written.

    Raises:
        StateMismatch: There is state already, or the savepoint is of another kind of job.
        StateCorrupted: A file is damaged.
        StateError: Something cannot be read or written; there is no state then.
    """
    if savepoint.manifest.kind != "embedded":
        raise StateMismatch(
            "the savepoint is of a Kafka job, this job is embedded",
            where={"savepoint": savepoint.place},
            expected="a savepoint of an embedded job: positions of Kafka topics mean nothing here",
            fix="restore it into a Kafka job (source: {kafka: …})",
        )
    _refuse_existing(savepoint, state_dir, beside)
    try:
        make_directory(state_dir.absolute())
        for left in state_dir.glob(f"{_RESTORING}*"):
            shutil.rmtree(left)
        draft = state_dir / f"{_RESTORING}{uuid.uuid4().hex}"
        draft.mkdir()
        try:
            _write_files(savepoint, state_dir, draft, progress)
            write_format(draft, job, is_ready=True)
            draft.rename(state_dir / SUBTASK_DIRECTORY)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_directory(state_dir)
    except OSError as error:
        raise storage_error(error, "restoring a savepoint", state_dir) from error


def _refuse_existing(savepoint: Savepoint, state_dir: Path, beside: Sequence[str]) -> None:
    own = {file.name.removeprefix(_PREFIX) for file in savepoint.manifest.files}
    existing = state_dir / SUBTASK_DIRECTORY
    found = [existing] if existing.exists() and (not existing.is_dir() or any(existing.iterdir())) else []
    for name in beside:
        found += [path for path in (state_dir / name).glob("*.json") if f"{name}/{path.name}" not in own]
    if found:
        raise StateMismatch(
            "there is state already, and a savepoint never overwrites any",
            where={"found": str(found[0])},
            expected="a directory that no job has used",
            fix="name another directory (--set state.dir=…), or move that one away",
        )
    if existing.is_dir():
        existing.rmdir()


def _write_files(savepoint: Savepoint, state_dir: Path, draft: Path, progress: Progress) -> None:
    done, total = 0, savepoint.manifest.size
    folders = {draft}
    for file in savepoint.manifest.files:
        path = _path_of(file.name, state_dir, draft, savepoint.place)
        make_directory(path.parent.absolute())
        folders.add(path.parent)
        if path.is_relative_to(draft):
            write_durably(path, checked_chunks(savepoint, file))
        else:
            _write_beside(path, b"".join(checked_chunks(savepoint, file)))
        done += file.size
        progress("restoring", done, total)
    for folder in folders:
        sync_directory(folder)


def _path_of(name: str, state_dir: Path, draft: Path, place: str) -> Path:
    parts = name.removeprefix(_PREFIX).split("/")
    if not name.startswith(_PREFIX) or len(parts) != 2 or any(part in ("", ".", "..") for part in parts):
        raise StateCorrupted(
            f"the manifest names a file that no state has: {name!r}",
            where={"savepoint": place},
            expected=f"files below {_PREFIX}",
            fix="take another savepoint",
        )
    return (draft if parts[0] in _OF_THE_STATE else state_dir).joinpath(*parts)


def _write_beside(path: Path, content: bytes) -> None:
    """Write a document; the same one may be there from an attempt that was interrupted."""
    if path.exists():
        if path.read_bytes() != content:
            raise StateMismatch(
                "there is state already, and a savepoint never overwrites any",
                where={"found": str(path)},
                expected="a directory that no job has used",
                fix="name another directory (--set state.dir=…)",
            )
        return
    draft = path.with_suffix(".new")
    write_durably(draft, [content])
    draft.rename(path)

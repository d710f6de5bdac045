"""Exports: the files of one completed checkpoint, handed out beside the state to somebody who copies them.

    <state>/exports/<request>/            made by who wants it, who holds a lock on it as long as it is wanted
    <state>/exports/<request>/rocksdb/    linked by the owner of the state: the keyed state
    <state>/exports/<request>/journal/    the journal of a job that was stopped, where it has one
    <state>/exports/<request>/signals/    what lies in a directory beside the state, under that directory's name
    <state>/exports/<request>/answer.json written last by the owner: facts about the state, or what went wrong

Why not by the owner alone: copying takes as long as it takes, into a place that the owner need not know; linking takes some ms. And who
waits may give up at any time: then the directory is gone, and the owner finds nobody to answer.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self

import msgspec

from agentflow.errors import StateError, StateUnavailable
from agentflow.runtime.ports import StateFacts

EXPORTS_DIRECTORY: Final = "exports"
_ANSWER_FILE = "answer.json"
_REQUEST = re.compile(r"[0-9a-f]{32}")


class _Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    facts: StateFacts | None = None
    what: str = ""
    where: dict[str, str] = {}
    fix: str = ""


class WantedExport:
    """An export that somebody waits for, until `close` or the end of a ``with`` block.

    Args:
        state: The state directory of the subtask.

    Attributes:
        request: Its id, to be told to the owner of the state.
        path: Where the files are.
    """

    def __init__(self, state: Path) -> None:
        self.request = uuid.uuid4().hex
        self.path = state / EXPORTS_DIRECTORY / self.request
        try:
            with _guarded(state) as exports:
                _sweep(exports)
                self.path.mkdir()
                self._lock = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:
            raise _unusable(state, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    @property
    def is_answered(self) -> bool:
        """Whether the owner has answered."""
        return (self.path / _ANSWER_FILE).exists()

    def facts(self) -> StateFacts:
        """Return what the owner says of the state.

        Raises:
            StateUnavailable: It could not hand the state out, or never did.
        """
        try:
            answer = msgspec.json.decode((self.path / _ANSWER_FILE).read_bytes(), type=_Answer)
        except FileNotFoundError:
            answer = _Answer(what="the job ended before it handed its state out", fix="take the savepoint again")
        if answer.facts is None:
            raise StateUnavailable(answer.what, where=dict(answer.where), fix=answer.fix)
        if not answer.facts.checkpoint:
            raise StateUnavailable(
                "the job has no completed checkpoint",
                where={"directory": str(self.path.parents[1])},
                expected="a job that has run for a checkpoint.interval",
                fix="let it run, then take the savepoint",
            )
        return answer.facts

    def files(self) -> dict[str, Path]:
        """Return the files by their names, which have slashes."""
        return {
            found.relative_to(self.path).as_posix(): found
            for found in sorted(self.path.rglob("*"))
            if found.is_file() and found.name != _ANSWER_FILE
        }


def place_of(state: Path, request: str) -> Path | None:
    """Return where the owner of the state puts what ``request`` asks for; None: nobody waits for it (any more)."""
    path = state / EXPORTS_DIRECTORY / request
    if not _REQUEST.fullmatch(request) or not path.is_dir() or (path / _ANSWER_FILE).exists():
        return None
    return path


def answer(path: Path, found: StateFacts | StateError) -> None:
    """Tell who waits that everything is there, or what went wrong; nobody is told where nobody waits any more."""
    if isinstance(found, StateError):
        told = _Answer(None, found.what, {name: str(value) for name, value in found.where.items()}, found.fix)
    else:
        told = _Answer(found)
    draft = path / f"{_ANSWER_FILE}.new"
    with contextlib.suppress(OSError):  # given up meanwhile
        draft.write_bytes(msgspec.json.encode(told))
        draft.rename(path / _ANSWER_FILE)


def link_beside(path: Path, directories: Sequence[Path]) -> None:
    """Link the documents of directories beside the state, which are only ever added to, in the order of their names.

    Seen twice: a listing may miss one name and have a later one, both of which came meanwhile.
    """
    for directory in directories:
        if not directory.is_dir():
            continue
        last = max(_documents(directory), default="")
        target = path / directory.name
        target.mkdir()
        for name in _documents(directory):
            if name <= last:
                (target / name).hardlink_to(directory / name)


def _documents(directory: Path) -> list[str]:
    return sorted(found.name for found in directory.iterdir() if found.suffix == ".json")


def sweep_exports(state: Path) -> None:
    """Delete exports whose process has died: their files hold disk space that the state has given up."""
    if (state / EXPORTS_DIRECTORY).is_dir():
        with contextlib.suppress(OSError), _guarded(state) as exports:
            _sweep(exports)


@contextlib.contextmanager
def _guarded(state: Path) -> Iterator[Path]:
    """Hold the lock under which exports are made and swept: one that is being made is not locked for a moment."""
    exports = state / EXPORTS_DIRECTORY
    exports.mkdir(exist_ok=True)
    guard = os.open(exports, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield exports
    finally:
        os.close(guard)


def _sweep(exports: Path) -> None:
    for path in exports.iterdir():
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass  # somebody waits for it
        finally:
            os.close(lock)


def _unusable(state: Path, error: OSError) -> StateUnavailable:
    return StateUnavailable(
        f"the state cannot be handed out: {error.strerror or error}",
        where={"directory": str(state)},
        expected="a state directory that this user may write into: the files are linked beside it",
        fix="run the command as the user of the job",
    )

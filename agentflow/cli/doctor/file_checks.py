"""Input files, and the directories that outputs and dead letters go to."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from agentflow.cli.doctor import places
from agentflow.cli.doctor.findings import Finding, Subject, error, note, ok, skipped, warning
from agentflow.cli.doctor.state_checks import no_state, subtask_paths
from agentflow.cli.job_file import FileSink, FileSource, HttpSource
from agentflow.connectors.stores import is_url
from agentflow.core.delta import POSITIONS_NAME, Table, decode_positions
from agentflow.errors import StateError

_PART = re.compile(r"part-(\d{5})-(\d{10})\.\w+")


def input_files(subject: Subject) -> Sequence[Finding]:
    """Open the input as the job would, at the positions of its state, and close it again; nothing is read."""
    source = subject.job.composition.source
    if isinstance(source, HttpSource):
        return _port(source)
    if not isinstance(source, FileSource):
        return [skipped(f"{source.described} is no file")]
    positions = {} if no_state(subject) else _positions(subject)
    asyncio.run(_open(subject, positions))  # its errors say what is wrong and what to do
    read_on = f", {len(positions)} of them read before" if positions else ""
    return [ok(f"{source.described}: can be read{read_on}")]


def _port(source: HttpSource) -> Sequence[Finding]:
    """See whether the port of an HTTP source is free."""
    place = f"{source.host}:{source.port}"
    with socket.socket(socket.AF_INET6 if ":" in source.host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((source.host, source.port))
        except OSError as failure:
            found = f"{place} cannot be listened on: {failure.strerror or failure}"
            return [
                warning(found, "a free port", "name another one in source.http.port, unless this job has it, running")
            ]
    return [ok(f"{source.described}: the port is free")]


async def _open(subject: Subject, positions: Mapping[str, int]) -> None:
    from agentflow.cli.connections import source_opener

    opened = source_opener(subject.job.composition.source, subject.job.settings, {})()
    try:
        await opened.open(positions)
    finally:
        await opened.close()


def _positions(subject: Subject) -> Mapping[str, int]:
    """Return where the job would read on; nothing where its state cannot be read, which is told elsewhere."""
    from agentflow.state.rocksdb_rows import StateView

    for path in subtask_paths(subject):
        try:
            view = StateView(path)
        except StateError:
            continue
        rows = {row.name: row.value for row in view.rows(Table.META)}
        view.close()
        if POSITIONS_NAME in rows:
            return decode_positions(rows[POSITIONS_NAME])
    return {}


def sink(subject: Subject) -> Sequence[Finding]:
    """Look at the place of outputs."""
    return _directory(subject, subject.job.composition.sink, "sink")


def dead_letters(subject: Subject) -> Sequence[Finding]:
    """Look at the place of dead letters."""
    dead = subject.job.composition.dead_letter
    if dead is None:
        return [
            note(
                "there is none: a record whose run fails for good stops the job", "dead-letter: {jsonl: {path: dead/}}"
            )
        ]
    return _directory(subject, dead, "dead-letter")


def _directory(subject: Subject, part: object, role: str) -> Sequence[Finding]:
    if not isinstance(part, FileSink):
        return [skipped(f"{getattr(part, 'described', role)} is no directory")]
    if is_url(part.path):
        return _objects(subject, part.path, role)
    path = Path(part.path)
    existing = places.nearest_existing(path)
    if not existing.is_dir():
        fix = f"name a directory in {role}: one file per checkpoint is written into it"
        return [error(f"{existing} is no directory", "a directory, or nothing", fix)]
    if not places.is_writable(existing):
        found = f"{existing} may not be written: {places.described_mode(existing)}"
        fix = f"give user {places.user()} the right to write there, or name another directory in {role}"
        return [error(found, f"a directory that user {places.user()} may write", fix)]
    if existing != path.absolute():
        return [ok(f"{path} will be created in {existing}")]
    owners = [owner for lock in sorted(path.glob(".lock-*")) if (owner := places.lock_owner(lock)) is not None]
    if owners:
        # The text of a sink's lock says nothing of its owner, who may be this very job, running.
        found = f"{path}: a job that runs writes there"
        return [
            warning(
                found, "one job per directory", f"stop it, unless it is this job; or name another directory in {role}"
            )
        ]
    return _foreign(subject, path, role) or [ok(f"{path}: can be written, {_count(path)} files of outputs")]


def _objects(subject: Subject, url: str, role: str) -> Sequence[Finding]:
    """List a prefix of an object store: whether it may be written is not asked, because that would write."""
    from agentflow.connectors.object_store import ObjectStore

    store = ObjectStore(url, subject.job.settings.object_store)
    try:
        count = len(store.find())
    except OSError as failure:
        return [
            error(f"{url}: {failure.strerror or failure}", "a bucket that this user may list and write", store.advice)
        ]
    return [ok(f"{role} {url}: can be listed, {count} objects")]


def _count(path: Path) -> int:
    return sum(1 for entry in path.iterdir() if _PART.fullmatch(entry.name))


def _foreign(subject: Subject, path: Path, role: str) -> list[Finding]:
    """Look for outputs with numbers of checkpoints that are still to come: the job would refuse to write over them."""
    checkpoint = 0
    if not no_state(subject):
        from agentflow.state.rocksdb_rows import StateView

        for subtask in subtask_paths(subject):
            try:
                view = StateView(subtask)
            except StateError:
                continue
            checkpoint = max(checkpoint, view.checkpoint)
            view.close()
    later = sorted(
        entry.name for entry in path.iterdir() if (m := _PART.fullmatch(entry.name)) and int(m[2]) > checkpoint
    )
    if not later:
        return []
    at = f"is at checkpoint {checkpoint}" if checkpoint else "has no state yet"
    return [
        error(
            f"{path} has outputs of later checkpoints ({later[0]}{', …' if len(later) > 1 else ''}), and the job {at}",
            "a directory without outputs of another job, or of state that was removed: they are never written over",
            f"name an empty directory in {role}, put the state back that belongs to these outputs, or take them away",
        )
    ]

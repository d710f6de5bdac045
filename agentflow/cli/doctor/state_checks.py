"""The state directory: who owns it, what it holds, whether its disk is good enough."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Sequence
from pathlib import Path

from agentflow.cli.doctor import places
from agentflow.cli.doctor.findings import Finding, Subject, error, error_of, note, ok, skipped, warning
from agentflow.cli.doctor.places import size_text
from agentflow.cli.job_file import KafkaSource
from agentflow.errors import StateError

_SYNCS = 50
_SYNCS_S = 3.0
_SLOW_SYNC_S = 0.010  # the usual one
_STALLED_SYNC_S = 0.050  # the slowest of some fifty
_OTHER_FILES = 128  # sockets, logs, modules, outputs
_WRONG_DISKS = {
    "nfs": "locks and syncs of RocksDB go over the network: a stall of the server stops the job, and locks may be lost",
    "cifs": "it neither syncs nor locks as RocksDB needs it",
    "smb": "it neither syncs nor locks as RocksDB needs it",
    "9p": "it neither syncs nor locks as RocksDB needs it",
    "fuse": "what a sync promises there depends on a program; many promise nothing",
    "overlay": "it is the container's own layer: the state is gone with the container",
    "tmpfs": "it is memory: the state is gone with the machine, and a sync means nothing",
    "ramfs": "it is memory: the state is gone with the machine, and nothing bounds it",
}
_LOCAL = "a local disk (ext4, xfs, zfs), which survives the process and the machine"


def state_path(subject: Subject) -> Path:
    """Return the job's state directory."""
    directory = subject.job.settings.state.dir
    assert directory is not None, "a check of state in memory"
    return Path(directory)


def subtask_paths(subject: Subject) -> list[Path]:
    """Return the directories of subtasks that are there."""
    return sorted(path for path in state_path(subject).glob("subtask-*") if path.is_dir())


def no_state(subject: Subject) -> str:
    """Say why there is no state directory to look at; empty: there is one."""
    if subject.job_file is None:
        return "the job file has problems"
    return "" if subject.job.settings.state.dir is not None else "state is in memory (state.dir is not set)"


def no_state_yet(subject: Subject) -> str:
    """Say why there is nothing in it."""
    return no_state(subject) or ("" if subtask_paths(subject) else "the job has no state yet")


def directory(subject: Subject) -> Sequence[Finding]:
    """Look whether the directory can be used, or made."""
    path, fix = (
        state_path(subject),
        f"give user {places.user()} the right to write there, or set state.dir to another place",
    )
    existing = places.nearest_existing(path)
    if not existing.is_dir():
        return [
            error(
                f"{existing} is no directory",
                "a directory, or nothing",
                "set state.dir to another place, or move it away",
            )
        ]
    if not places.is_writable(existing):
        found = f"{existing} may not be written: {places.described_mode(existing)}"
        return [error(found, f"a directory that user {places.user()} may write", fix)]
    if existing != path.absolute():
        return [ok(f"{path} will be created in {existing}")]
    findings: list[Finding] = []
    for inner in (path, *subtask_paths(subject)):
        mode = inner.stat()
        if not places.is_writable(inner):
            found = f"{inner} may not be written: {places.described_mode(inner)}"
            findings.append(error(found, f"a directory that user {places.user()} may write", fix))
        elif mode.st_mode & stat.S_IWOTH:
            found = f"{inner} can be written by every user of this machine: {places.described_mode(inner)}"
            findings.append(warning(found, "a directory of the job alone", f"chmod o-w {inner}"))
        elif mode.st_uid != os.geteuid():
            found = f"{inner}: {places.described_mode(inner)}; this user is {places.user()}"
            findings.append(note(found, "run doctor as the user of the job, else this tells little"))
    return findings or [ok(f"{path}: {places.described_mode(path)}")]


def owner(subject: Subject) -> Sequence[Finding]:
    """Look who has it open."""
    from agentflow.state.directory import LOCK_FILE

    owners: dict[str, list[str]] = {}
    for path in subtask_paths(subject):
        found = places.lock_owner(path / LOCK_FILE)
        if found is not None:
            owners.setdefault(found, []).append(path.name)
    if not owners:
        return [ok("nobody has it open")]
    shown = "; ".join(f"{who}: {', '.join(names)}" for who, names in owners.items())
    if isinstance(subject.job.composition.source, KafkaSource):
        return [note(f"open: {shown}; another worker of the job takes other subtasks")]
    return [
        warning(
            f"open: {shown}",
            "nobody, when the job is to be started: a second one is refused",
            "stop that process, unless it is the job, and you only wanted to look at it",
        )
    ]


def contents(subject: Subject) -> Sequence[Finding]:
    """Look whose state it is, of which format, and whether it can be read."""
    from agentflow.state.directory import ROCKSDB_DIRECTORY, read_format
    from agentflow.state.rocksdb_rows import StateView

    checkpoints, findings = [], []
    for path in subtask_paths(subject):
        try:
            is_ready = read_format(path, subject.job.settings.job)
            if is_ready is None or not (path / ROCKSDB_DIRECTORY).is_dir():
                continue
            view = StateView(path)
            checkpoints.append(f"{path.name} at checkpoint {view.checkpoint}")
            view.close()
        except StateError as failure:
            findings.append(error_of(failure))
        except OSError as failure:
            found = f"{path} cannot be read: {failure.strerror or failure}"
            findings.append(error(found, "files that this user may read", f"look at the owner of the files in {path}"))
    if findings:
        return findings
    shown = ", ".join(checkpoints[:4]) + (f" and {len(checkpoints) - 4} more" if len(checkpoints) > 4 else "")
    return [ok(f"job '{subject.job.settings.job}': {shown}" if checkpoints else "created, and nothing in it yet")]


def free_space(subject: Subject) -> Sequence[Finding]:
    """Look at free space, against what checkpoints want and what the state takes."""
    path, least = state_path(subject), subject.job.settings.state.free_min_bytes
    free, used = places.free_bytes(places.nearest_existing(path)), places.size_of(path)
    found = f"{size_text(free)} free, the state takes {size_text(used)}"
    if free < least:
        fix = "free space, or enlarge the disk; or lower state.free-min"
        return [error(found, f"at least state.free-min ({size_text(least)}): below it checkpoints are refused", fix)]
    if free < least + used:
        expected = (
            f"room for the state once more above state.free-min ({size_text(least)}): compaction writes files anew"
        )
        return [warning(found, expected, "free space, or enlarge the disk")]
    return [ok(found)]


def disk(subject: Subject) -> Sequence[Finding]:
    """Look what kind of file system it is on, and whether files can be linked there."""
    path = places.nearest_existing(state_path(subject))
    found = places.file_system(path)
    findings: list[Finding] = []
    if found is None:
        findings.append(skipped("this system does not tell what file system a directory is on"))
    else:
        reason = next((text for kind, text in _WRONG_DISKS.items() if found.kind.startswith(kind)), "")
        shown = f"{found.kind}, mounted at {found.mount}"
        fix = "set state.dir to a local disk; in a container, to a volume"
        findings.append(warning(f"{shown}: {reason}", _LOCAL, fix) if reason else ok(shown))
    if not places.can_link(path):
        fix = "set state.dir to a file system that has hard links"
        findings.append(
            warning(f"{path}: files cannot be linked", "hard links: savepoints of a running job are made of them", fix)
        )
    return findings


def sync_speed(subject: Subject) -> Sequence[Finding]:
    """Measure what durability costs: each checkpoint waits for a sync, and each durable step."""
    path = places.nearest_existing(state_path(subject))
    times = places.sync_times(path, _SYNCS, _SYNCS_S)
    middle, high = times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)]
    found = f"p50 {middle * 1000:.2g} ms, p99 {high * 1000:.2g} ms, of {len(times)} syncs of {len(places.SYNCED)} bytes in {path}"
    if middle > _SLOW_SYNC_S or high > _STALLED_SYNC_S:
        return [
            warning(
                found,
                f"p50 below {_SLOW_SYNC_S * 1000:g} ms, p99 below {_STALLED_SYNC_S * 1000:g} ms: checkpoints and durable steps wait",
                "take a faster disk for state.dir, or one of its own; journal.sync: interval lets steps not wait",
            )
        ]
    return [ok(found)]


def open_files(subject: Subject) -> Sequence[Finding]:
    """Look at the limit of open files, against what the databases of all subtasks may have open."""
    from agentflow.state.rocksdb_store import OPEN_FILES_MAX

    if isinstance(subject.job.composition.source, KafkaSource):
        subtasks = subject.report.facts.subtasks if subject.report is not None else len(subtask_paths(subject)) or 1
        databases, of = subtasks, f"all {subtasks} subtasks in one worker"
    else:
        databases, of = 2, "the state and its journal"
    needed = databases * OPEN_FILES_MAX + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        limit = "any number of" if soft == resource.RLIM_INFINITY else f"{soft:,}"
        return [ok(f"{limit} open files are allowed; {of} need at most {needed:,}")]
    is_enough = hard == resource.RLIM_INFINITY or hard >= needed
    fix = (
        f"ulimit -n {needed}"
        if is_enough
        else f"raise the hard limit too (now {hard}): LimitNOFILE={needed} in a systemd unit"
    )
    return [warning(f"{soft:,} open files are allowed", f"{needed:,}: {of}, {OPEN_FILES_MAX} each", fix)]

"""Commands that take savepoints of jobs, look at them, and restore them: `savepoint create|list|inspect|verify|restore|delete|prune`."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentflow.cli.kafka_commands import load, print_table
from agentflow.cli.output import EXIT_DONE, EXIT_PROBLEMS_FOUND, print_json
from agentflow.cli.progress import ProgressBar
from agentflow.errors import ConfigError, StateCorrupted

if TYPE_CHECKING:
    from agentflow.cli.job_file import JobFile
    from agentflow.environment.savepoints import EmbeddedState
    from agentflow.runtime.ports import Sink
    from agentflow.state.savepoint_format import Manifest
    from agentflow.state.savepoint_storage import SavepointStorage
    from agentflow.state.savepoints import Savepoint


def create(chosen: argparse.Namespace) -> int:
    """Take a savepoint of a job, running or not, and print where it is."""
    began_s = time.monotonic()
    with ProgressBar() as progress:
        savepoint = _create(chosen, progress)
    if chosen.json:
        print_json(_fields(savepoint.place, savepoint.manifest))
        return EXIT_DONE
    print(f"savepoint {savepoint.place}")
    for name, value in _summary(savepoint.manifest).items():
        print(f"  {name:<11} {value}")
    print(f"  {'took':<11} {time.monotonic() - began_s:.1f}s")
    return EXIT_DONE


def _create(chosen: argparse.Namespace, progress: ProgressBar) -> Savepoint:
    from agentflow.cli.job_file import KafkaSource
    from agentflow.environment.savepoints import EmbeddedState, create_savepoint
    from agentflow.runtime.codecs import RECORD_KEY

    job_file = None if Path(chosen.config).is_dir() else load(chosen)
    target = _target(chosen.target, job_file, chosen.config)
    if job_file is not None and isinstance(job_file.composition.source, KafkaSource):
        from agentflow.environment.kafka_savepoints import create_kafka_savepoint

        is_rekeyed = job_file.composition.key_by != RECORD_KEY
        return asyncio.run(create_kafka_savepoint(job_file.settings, target, is_rekeyed=is_rekeyed, progress=progress))
    if job_file is None:
        place, open_sinks = EmbeddedState.at(Path(chosen.config)), None
    else:
        place, open_sinks = embedded_state(job_file), _sinks_opener(job_file)
    creating = create_savepoint(
        place,
        target,
        store=None if job_file is None else job_file.settings.object_store,
        open_sinks=open_sinks,
        answer_s=chosen.timeout / 1000,
        progress=progress,
    )
    return asyncio.run(creating)


def _target(named: str | None, job_file: JobFile | None, job: str) -> str:
    target = named
    if target is None and job_file is not None:
        target = job_file.settings.savepoint.dir
    if target is None:
        raise ConfigError([f"{job}: no target is named, and the job file has no savepoint.dir"])
    return target


def _sinks_opener(job_file: JobFile) -> Callable[[], Mapping[str, Sink]]:
    from agentflow.cli.connections import open_sink
    from agentflow.cli.job_file import PythonSink
    from agentflow.cli.loading import load_program

    composition, settings = job_file.composition, job_file.settings
    named = {"sink": composition.sink, "dead-letter": composition.dead_letter}

    def open_sinks() -> Mapping[str, Sink]:
        is_own = any(isinstance(sink, PythonSink) for sink in named.values())
        connectors = load_program(job_file).connectors if is_own else {}
        return {role: open_sink(role, sink, settings, connectors) for role, sink in named.items() if sink is not None}

    return open_sinks


def embedded_state(job_file: JobFile) -> EmbeddedState:
    """Return the state of an embedded job.

    Raises:
        ConfigError: It is in memory.
    """
    from agentflow.environment.savepoints import EmbeddedState

    place = EmbeddedState.of(job_file.settings)
    if place is None:
        raise ConfigError(
            [f"{job_file.path}: the job's state is in memory, where nobody else can see it: set state.dir"]
        )
    return place


def list_all(chosen: argparse.Namespace) -> int:
    """Print the savepoints of a directory, or those of a job, oldest first."""
    from agentflow.state.savepoints import list_savepoints

    storage = _storage(chosen)
    listed = list_savepoints(storage)
    root = storage.place.rstrip("/")
    if chosen.json:
        print_json(
            [
                {"savepoint": f"{root}/{one.name}", "problem": one.problem}
                if one.manifest is None
                else _fields(f"{root}/{one.name}", one.manifest, has_files=False)
                for one in listed
            ]
        )
        return EXIT_DONE
    rows: list[list[object]] = []
    for one in listed:
        name, manifest = f"{root}/{one.name}", one.manifest
        if manifest is None:
            rows.append([name, "-", "-", "-", "-", "-", one.problem])
        else:
            created = f"{manifest.created_at:%Y-%m-%d %H:%M:%S}"
            sizes = _size(manifest.size), _size(manifest.copied)
            rows.append([name, manifest.job, manifest.checkpoint, created, *sizes, "-"])
    print_table(["SAVEPOINT", "JOB", "CHECKPOINT", "CREATED", "SIZE", "NEW", "PROBLEM"], rows)
    return EXIT_DONE


def _storage(chosen: argparse.Namespace) -> SavepointStorage:
    """Return the storage that a command line names, itself or by a job file."""
    from agentflow.cli.config_file import names_job_file
    from agentflow.environment.savepoints import storage_of

    named: str = chosen.config
    if not names_job_file(named):
        if "://" not in named and not Path(named).is_dir():
            raise ConfigError(
                [f"{named}: there is no such directory\nhelp: name one that holds savepoints, or a job file"]
            )
        return storage_of(named)
    job_file = load(chosen)
    return storage_of(_target(None, job_file, named), job_file.settings.object_store)


def inspect(chosen: argparse.Namespace) -> int:
    """Print what the manifest of a savepoint says."""
    from agentflow.environment.savepoints import savepoint_at

    savepoint = savepoint_at(chosen.savepoint)
    manifest = savepoint.manifest
    if chosen.json:
        print_json(_fields(savepoint.place, manifest))
        return EXIT_DONE
    print(f"savepoint {savepoint.place}")
    for name, value in _summary(manifest).items():
        print(f"  {name:<11} {value}")
    for subtask in manifest.subtasks:
        print(f"subtask {subtask.subtask}  checkpoint {subtask.checkpoint}")
        for number, plan_hash in enumerate(subtask.plan_hashes):
            print(f"  agent {number}     plan {plan_hash}")
        for label, position in subtask.positions.items():
            print(f"  goes on at  {label} {position}")
    return EXIT_DONE


def verify(chosen: argparse.Namespace) -> int:
    """Read a savepoint to its last row and say what is damaged; exit status 3 when something is."""
    import msgspec

    from agentflow.environment.savepoints import savepoint_at, verify_savepoint
    from agentflow.state.savepoint_format import MANIFEST_FILE
    from agentflow.state.savepoints import Damage, Findings

    place = chosen.savepoint
    try:
        savepoint = savepoint_at(place)
    except StateCorrupted as error:  # of the manifest, which says what else there is to read
        found = Findings(1, 0, [Damage(MANIFEST_FILE, error.what)])
    else:
        place = savepoint.place
        with ProgressBar() as progress:
            found = verify_savepoint(savepoint, progress)
    if chosen.json:
        print_json({"savepoint": place, **msgspec.to_builtins(found)})
    else:
        damaged = f"{len(found.damage)} damaged:" if found.damage else "nothing is damaged"
        print(f"{found.files} files, {found.rows} rows: {damaged}")
        for one in found.damage:
            print(f"  {one.file}: {one.problem}")
    return EXIT_PROBLEMS_FOUND if found.damage else EXIT_DONE


def delete(chosen: argparse.Namespace) -> int:
    """Delete savepoints; others have everything they need."""
    from agentflow.environment.savepoints import savepoint_at
    from agentflow.state.savepoints import delete_savepoint

    savepoints = [savepoint_at(place) for place in chosen.savepoints]
    for savepoint in savepoints:
        delete_savepoint(savepoint)
    _print_deleted([savepoint.place for savepoint in savepoints], is_json=chosen.json)
    return EXIT_DONE


def prune(chosen: argparse.Namespace) -> int:
    """Delete all savepoints of each job but the newest ones."""
    from agentflow.state.savepoints import prune_savepoints

    _print_deleted(prune_savepoints(_storage(chosen), chosen.keep), is_json=chosen.json)
    return EXIT_DONE


def _print_deleted(places: list[str], *, is_json: bool) -> None:
    if is_json:
        print_json({"deleted": places})
    else:
        print(f"{len(places)} savepoints deleted")
        for place in places:
            print(f"  {place}")


def restore(chosen: argparse.Namespace) -> int:
    """Make a savepoint the state of a job that has none, and say where that goes on."""
    from agentflow.cli.config_file import names_job_file
    from agentflow.cli.job_file import KafkaSource
    from agentflow.environment.savepoints import EmbeddedState, restore_savepoint, savepoint_at

    if not names_job_file(chosen.config):
        note = ""
        savepoint = savepoint_at(chosen.savepoint)
        place = EmbeddedState(Path(chosen.config), chosen.name or savepoint.manifest.job)
    elif chosen.name is not None:
        raise ConfigError(["--name goes with a state directory; a job file has the name of its job in it"])
    else:
        job_file = load(chosen)
        savepoint = savepoint_at(chosen.savepoint, job_file.settings.object_store)
        note = _plan_note(savepoint.manifest, job_file)
        if isinstance(job_file.composition.source, KafkaSource):
            return _restore_kafka(savepoint, job_file, note, is_json=chosen.json)
        place = embedded_state(job_file)
    with ProgressBar() as progress:
        restore_savepoint(savepoint, place, progress)
    _print_restored(savepoint, place.job, str(place.directory), note, is_json=chosen.json)
    return EXIT_DONE


def _restore_kafka(savepoint: Savepoint, job_file: JobFile, note: str, *, is_json: bool) -> int:
    from agentflow.cli.worker import kafka_job
    from agentflow.environment.kafka_savepoints import restore_kafka_savepoint

    kafka = kafka_job(job_file)
    with ProgressBar() as progress:
        asyncio.run(restore_kafka_savepoint(savepoint, kafka, progress))
    _print_restored(savepoint, kafka.settings.job, f"topic {kafka.topics.changelog}", note, is_json=is_json)
    return EXIT_DONE


def _plan_note(manifest: Manifest, job_file: JobFile) -> str:
    """Return what it means when the agent is not the one that wrote the state; empty when it is."""
    from agentflow.cli.loading import load_program
    from agentflow.plan.plan import AgentPlan

    plan = AgentPlan.from_agent(load_program(job_file).agent, job_file.config)
    others = {one for subtask in manifest.subtasks for one in subtask.plan_hashes} - {plan.plan_hash}
    if not others:
        return ""
    return (
        f"the agent has changed (plan {plan.plan_hash}, the state is of {', '.join(sorted(others))}): memory is as it was, "
        "unfinished runs go on with the new code, and the job refuses to start if they would diverge (agentflow runs check)"
    )


def _print_restored(savepoint: Savepoint, job: str, place: str, note: str, *, is_json: bool) -> None:
    manifest = savepoint.manifest
    positions = {label: at for subtask in manifest.subtasks for label, at in subtask.positions.items()}
    if is_json:
        print_json(
            {
                "savepoint": savepoint.place,
                "job": job,
                "restored-to": place,
                "checkpoint": manifest.checkpoint,
                "positions": positions,
                "note": note or None,
            }
        )
        return
    renamed = "" if job == manifest.job else f" (was '{manifest.job}')"
    print(f"job '{job}'{renamed} restored to {place}, checkpoint {manifest.checkpoint}, {_size(manifest.size)}")
    for label, position in positions.items():
        print(f"  goes on at {label} {position}")
    if note:
        print(f"note: {note}")


def _summary(manifest: Manifest) -> dict[str, object]:
    return {
        "job": manifest.job,
        "kind": manifest.kind,
        "checkpoint": manifest.checkpoint,
        "subtasks": len(manifest.subtasks),
        "created": f"{manifest.created_at:%Y-%m-%d %H:%M:%S} UTC by {manifest.created_by}",
        "size": f"{_size(manifest.size)} in {len(manifest.files)} files, {_size(manifest.copied)} of it new",
    }


def _fields(place: str, manifest: Manifest, *, has_files: bool = True) -> dict[str, Any]:
    import msgspec

    fields: dict[str, Any] = {"savepoint": place, **msgspec.to_builtins(manifest)}
    fields |= {"size": manifest.size, "checkpoint": manifest.checkpoint}
    if not has_files:
        fields["files"] = len(manifest.files)
    return fields


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"

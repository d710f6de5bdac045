"""Reading a job file: YAML, profile, environment and flags in; a typed `JobFile` out, or all problems at once."""

from __future__ import annotations

import os
from collections.abc import Mapping as Variables
from collections.abc import Sequence
from pathlib import Path as FilePath

import msgspec

from agentflow.cli.agent_file import completed, split
from agentflow.cli.assembly import Assembly
from agentflow.cli.checks import check_job
from agentflow.cli.job_file import JobFile
from agentflow.cli.keys import PROFILES, KeyTable, key_table
from agentflow.cli.layers import PROFILE_VARIABLE, Flattener, Layer, environment_layer, flag_layer, overlay
from agentflow.cli.references import has_reference
from agentflow.cli.values import key_value
from agentflow.plan.agent_documents import AgentDocument
from agentflow.plan.file_problems import Place, ProblemList
from agentflow.plan.problems import nearest
from agentflow.plan.yaml_source import Mapping, Scalar, Value, read_yaml

_SUFFIXES = (".yaml", ".yml", ".json")


def names_job_file(text: str) -> bool:
    """Whether a command line names a job file, which need not be there, and no directory."""
    path = FilePath(text)
    return path.is_file() or (path.suffix.lower() in _SUFFIXES and not path.is_dir())


def load_job_file(
    path: str,
    *,
    profile: str | None = None,
    settings: Sequence[str] = (),
    variables: Variables[str, str] | None = None,
) -> JobFile:
    """Read a job file with what is laid over it. Nothing that it names is opened or imported.

    Args:
        path: The file, as it is named in messages.
        profile: Profile to lay over it; None: the variable AGENTFLOW_PROFILE, or none.
        settings: ``key=value`` flags, the strongest layer; of two for one key the later one counts.
        variables: Environment; None: that of the process.

    Raises:
        JobFileError: With all problems.
    """
    problems = ProblemList()
    variables = os.environ if variables is None else variables
    layer, document = read_layers(path, problems, profile=profile, settings=settings, variables=variables)
    job_file = Assembly(path, layer, key_table(), variables, problems).build()
    job_file = msgspec.structs.replace(job_file, document=document)
    check_job(job_file, problems)
    problems.raise_all()
    return job_file


def read_layers(
    path: str,
    problems: ProblemList,
    *,
    profile: str | None,
    settings: Sequence[str],
    variables: Variables[str, str],
) -> tuple[Layer, AgentDocument | None]:
    """Return what is set, as it is written: file, profile, environment and flags laid over each other; and the agents of the file.

    Args:
        path: The file.
        problems: Takes what is wrong with single keys.
        profile: As in `load_job_file`.
        settings: As in `load_job_file`.
        variables: Environment.

    Raises:
        JobFileError: The file cannot be read, or is no YAML mapping.
    """
    text = _read_text(path, problems)
    document = read_yaml(text, path, problems) if text is not None else None
    problems.raise_all()
    root = _root(document, path, problems)
    problems.raise_all()
    assert root is not None, "no problem, but no file"
    table = key_table()
    job, agents = split(root, path, problems)

    chosen = profile if profile is not None else variables.get(PROFILE_VARIABLE) or None
    layer = _file_layers(job, path, chosen, table, problems)
    layer = overlay(layer, environment_layer(variables, layer, table, problems), table)
    layer = overlay(layer, flag_layer(settings, table, problems), table)
    return completed(layer, agents, path, problems), agents


def _read_text(path: str, problems: ProblemList) -> str | None:
    place = Place(path)
    try:
        raw = FilePath(path).read_bytes()
    except FileNotFoundError:
        near = _near_file(path)
        problems.add("there is no such file", place, help=f"did you mean '{near}'?" if near else "")
        return None
    except IsADirectoryError:
        problems.add("this is a directory, not a job file", place)
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        problems.add(f"the file cannot be read: {reason.lower()}", place)
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problems.add(f"byte 0x{raw[error.start]:02x} is not UTF-8", Place(path, line), help="save the file as UTF-8")
        return None


def _near_file(path: str) -> str | None:
    folder = FilePath(path).parent
    try:
        names = [entry.name for entry in folder.iterdir() if entry.suffix in {".yaml", ".yml"}]
    except OSError:
        return None
    near = nearest(FilePath(path).name, names)
    return str(folder / near) if near else None


def _root(document: Value | None, path: str, problems: ProblemList) -> Mapping | None:
    hint = "it needs agent, key-by, source and sink, or agents: agentflow schema --describe"
    if document is None or (isinstance(document, Scalar) and document.value is None):
        problems.add("the file is empty", Place(path), help=hint)
        return None
    if not isinstance(document, Mapping):
        what = "a text" if isinstance(document, Scalar) else "a list"
        problems.add(f"a job file is a mapping of keys, not {what}", document.place, help=hint)
        return None
    return document


def _file_layers(root: Mapping, path: str, chosen: str | None, table: KeyTable, problems: ProblemList) -> Layer:
    """Return the file with its chosen profile; the other profiles are checked as far as that needs no reference."""
    flattener = Flattener(table, problems)
    own = [entry for entry in root.entries if entry[0].split(".")[0] != PROFILES]
    layer = flattener.flatten(Mapping(own, root.place))
    profiles = _profiles(root, problems)
    for name, mapping in profiles.items():
        profile_layer = flattener.flatten(mapping)
        if name == chosen:
            layer = overlay(layer, profile_layer, table)
            continue
        for key_path, entry in profile_layer.items():
            key = table.find(key_path)
            if key is not None and entry.value is not None and not has_reference(entry.value):
                key_value(key, entry.value, problems)
    if chosen is not None and chosen not in profiles:
        near = nearest(chosen, profiles)
        known = f"the file has: {', '.join(profiles)}" if profiles else "the file has no 'profile:' section"
        problems.add(f"there is no profile '{chosen}'", Place(path), note=f"did you mean '{near}'?" if near else known)
    return layer


def _profiles(root: Mapping, problems: ProblemList) -> dict[str, Mapping]:
    """Return the profiles by name; ``profile.prod: {…}`` and deeper dotted keys are taken apart."""
    found: dict[str, Mapping] = {}
    seen: dict[str, Place] = {}

    def add(name: str, place: Place, value: Value) -> None:
        name, dot, rest = name.partition(".")
        if dot:
            value = Mapping([(rest, place, value)], place)
        elif name in seen:
            problems.add(
                f"profile '{name}' is there twice, first in line {seen[name].line}",
                place,
                note="remove one of them",
                related=seen[name] if seen[name].line != place.line else None,
            )
            return
        else:
            seen[name] = place
        if isinstance(value, Scalar) and value.value is None:
            value = Mapping([], place)
        if not isinstance(value, Mapping):
            problems.add(f"profile '{name}' is not a section", value.place, note="the keys to lay over the file")
            return
        found.setdefault(name, Mapping([], place)).entries.extend(value.entries)

    for name, place, value in root.entries:
        first, dot, rest = name.partition(".")
        if first != PROFILES:
            continue
        if dot:
            add(rest, place, value)
        elif isinstance(value, Mapping):
            for profile, profile_place, inner in value.entries:
                add(profile, profile_place, inner)
        elif not (isinstance(value, Scalar) and value.value is None):
            problems.add(
                "'profile' is a section of profiles, not a value",
                value.place,
                note="profile: {prod: {checkpoint.interval: 5s}}, chosen by --profile prod",
            )
    return found

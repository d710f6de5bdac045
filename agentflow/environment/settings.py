"""Settings from plain values: the keys of a job file, nested or dotted, in code.

settings_of({"checkpoint.interval": "5s", "run": {"in-flight-max": 500}, "config": {"shop.threshold": 3}})
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, get_type_hints

import msgspec

from agentflow.api.durations import duration_ms, size_bytes
from agentflow.errors import ConfigError
from agentflow.plan.problems import nearest
from agentflow.runtime.settings import JobSettings, key_name

_AGENTS = "config"  # the section of which agents decide the keys


def settings_of(values: Mapping[str, Any]) -> tuple[JobSettings, dict[str, Any]]:
    """Return the settings, and the options for agents (the section ``config``).

    Args:
        values: By key, as in a job file: nested and dotted keys are the same thing; durations and sizes carry a unit
            (``"5s"``, ``"64MiB"``), a duration may be a timedelta.

    Raises:
        ConfigError: With every key that is unknown or has a wrong value.
    """
    if not isinstance(values, Mapping):
        raise ConfigError([f"settings are a mapping of keys to values, not {type(values).__name__}"])
    problems: list[str] = []
    options: dict[str, Any] = {}
    changes: dict[tuple[str, ...], Any] = {}
    for name, value in _flat("", values):
        if name.partition(".")[0] == _AGENTS:
            options[name.partition(".")[2]] = value
            continue
        found = _field_of(name)
        if found is None:
            near = nearest(name, list(_known()))
            problems.append(f"unknown key '{name}'" + (f": did you mean '{near}'?" if near else ""))
            continue
        fields, hint = found
        try:
            changes[fields] = _converted(fields[-1], value, hint)
        except (msgspec.ValidationError, ValueError, TypeError, OverflowError) as error:
            problems.append(f"{name}: {value!r} is no value for it: {str(error).partition(' - at ')[0]}")
    if problems:
        raise ConfigError(problems)
    settings = JobSettings()
    for fields, value in changes.items():
        settings = _with(settings, fields, value)
    return settings, options


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping) and _field_of(full) is None:
            yield from _flat(f"{full}.", value)
        else:
            yield full, value


def _known() -> Iterator[str]:
    pending: list[tuple[str, type]] = [("", JobSettings)]
    while pending:
        prefix, struct = pending.pop()
        for field in msgspec.structs.fields(struct):
            name = f"{prefix}{key_name(field.name)}"
            if _is_section(field.type):
                pending.append((f"{name}.", field.type))
            else:
                yield name


def _is_section(kind: Any) -> bool:  # noqa: ANN401 (a type hint)
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _field_of(name: str) -> tuple[tuple[str, ...], Any] | None:
    """Return the names of the struct fields that lead to a key, and the type of its value; None: there is no such key."""
    struct: type = JobSettings
    fields: list[str] = []
    parts = name.replace("_", "-").split(".")
    for place, part in enumerate(parts):
        field = next((field for field in msgspec.structs.fields(struct) if key_name(field.name) == part), None)
        if field is None:
            return None
        fields.append(field.name)
        if not _is_section(field.type):
            is_last = place == len(parts) - 1
            return (tuple(fields), get_type_hints(struct, include_extras=True)[field.name]) if is_last else None
        struct = field.type
    return None


def _converted(field: str, value: Any, hint: Any) -> Any:  # noqa: ANN401 (any value, a type hint)
    if value is not None and field.endswith("_ms"):
        if not isinstance(value, str | timedelta):
            msg = 'a duration has a unit, such as "5s"'
            raise TypeError(msg)
        value = duration_ms(value)
    elif field.endswith("_bytes") and isinstance(value, str):
        value = size_bytes(value)
    return msgspec.convert(value, hint)


def _with(section: Any, fields: tuple[str, ...], value: Any) -> Any:  # noqa: ANN401 (any section)
    """Return a section with one value in it."""
    first, *rest = fields
    inner = _with(getattr(section, first), tuple(rest), value) if rest else value
    return msgspec.structs.replace(section, **{first: inner})


def engine_settings(settings: JobSettings, state_dir: str | None, *, in_memory: bool) -> JobSettings:
    """Return the settings of an engine: it knows where state is, and refuses what is too much.

    Raises:
        ConfigError: State is nowhere, or in two places.
    """
    directory = state_dir if state_dir is not None else settings.state.dir
    if in_memory and directory is not None:
        raise ConfigError(["in_memory=True and a state directory exclude each other: state is in one of both"])
    if not in_memory and directory is None:
        raise ConfigError(
            ["an engine has to know where state is: state_dir='…' (survives the process), or in_memory=True (does not)"]
        )
    return msgspec.structs.replace(
        settings, state=msgspec.structs.replace(settings.state, dir=directory), on_overflow="dead-letter"
    )

"""The job file, described: as a JSON schema for editors, and as text for people."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from agentflow.cli.keys import FREE, PROFILES, Key, KeyTable, Kind, Path, Section, key_table
from agentflow.plan.agent_specs import document_schema

_REFERENCE = {"type": "string", "pattern": r"\$\{(env|file):"}
_DURATION = r"^\s*\d+(\.\d+)?\s*(ms|s|m|min|h|d)\s*$"
_SIZE = r"^\s*\d+(\.\d+)?\s*(B|KiB|MiB|GiB|KB|MB|GB)\s*$"


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a job file, which may hold agents, or of agents alone (draft 2020-12).

    Dotted keys are known at the top of the file.
    """
    agents = document_schema()
    table = key_table()
    keys = _properties(table, ())
    for path, key in table.keys.items():
        if len(path) > 1:
            keys[key.name] = _value_schema(key)
    patterns: dict[str, Any] = {rf"^{re.escape('.'.join(path))}\.": {} for path in table.free}
    for section in table.open_sections:
        patterns |= _leaf_patterns(section, section.path)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "agentflow job file, agent file",
        "type": "object",
        "properties": {
            **{name: {"$ref": f"#/$defs/keys/properties/{name}"} for name in keys},  # a profile has the same
            **agents["properties"],
            PROFILES: {
                "description": "Keys to lay over the file, by name of the profile; chosen by --profile NAME.",
                "type": "object",
                "additionalProperties": {"$ref": "#/$defs/keys"},
            },
        },
        "patternProperties": {**patterns, rf"^{PROFILES}\.": {}},
        "additionalProperties": False,
        "anyOf": [
            {"required": [name for name in table.sections[()].children if _is_required(table, (name,))]},
            *({"required": [name]} for name in agents["properties"]),
        ],
        "$defs": {
            "reference": _REFERENCE,
            "keys": {
                "type": "object",
                "properties": keys,
                "patternProperties": patterns,
                "additionalProperties": False,
            },
            **agents["$defs"],
            **{".".join(section.path): _named_schema(section) for section in table.open_sections},
        },
    }


def _is_required(table: KeyTable, path: Path) -> bool:
    return table.keys[path].is_required if path in table.keys else table.sections[path].is_required


def _properties(table: KeyTable, path: Path) -> dict[str, Any]:
    return {
        name: _value_schema(table.keys[*path, name])
        if (*path, name) in table.keys
        else _section_schema(table, table.sections[*path, name])
        for name in table.sections[path].children
    }


def _section_schema(table: KeyTable, section: Section) -> dict[str, Any]:
    if section.path in table.free:
        return {"description": section.description, "type": ["object", "null"]}
    if section.leaves:
        return _named_schema(section) | {"description": section.description}
    schema: dict[str, Any] = {
        "type": ["object", "null"],
        "properties": _properties(table, section.path),
        "additionalProperties": False,
    }
    below = [
        table.sections[*section.path, name] for name in section.children if (*section.path, name) in table.sections
    ]
    if patterns := {name: one for open_ in below for name, one in _leaf_patterns(open_, open_.path[-1:]).items()}:
        schema["patternProperties"] = patterns
    if section.is_choice:
        schema["maxProperties"] = 1
    if section.description:
        schema["description"] = section.description
    return schema


def _leaf_patterns(section: Section, prefix: Path) -> dict[str, Any]:
    """Return the schemas of the keys of an open section, by patterns of their dotted names behind ``prefix``."""
    before = re.escape(".".join(prefix))
    return {rf"^{before}\..+\.{re.escape(name)}$": _value_schema(key) for name, key in section.leaves.items()}


def _named_schema(section: Section) -> dict[str, Any]:
    """Return the schema of a mapping below an open section: names, dotted or nested, and behind them its keys."""
    own = {name: _value_schema(key) for name, key in section.leaves.items()}
    dotted = {rf"\.{re.escape(name)}$": one for name, one in own.items()}
    inner = {"$ref": f"#/$defs/{'.'.join(section.path)}"}
    return {
        "type": ["object", "null"],
        "properties": {name: {"anyOf": [one, inner]} for name, one in own.items()},
        "patternProperties": dotted,
        "additionalProperties": inner,
    }


def _value_schema(key: Key) -> dict[str, Any]:
    shape_of: dict[Kind, dict[str, Any]] = {
        Kind.TEXT: {"type": "string"},
        Kind.DURATION: {"type": "string", "pattern": _DURATION, "examples": ["5s"]},
        Kind.SIZE: {"type": "string", "pattern": _SIZE, "examples": ["64MiB"]},
        Kind.COUNT: {"type": "integer"},
        Kind.NUMBER: {"type": "number"},
        Kind.FLAG: {"type": "boolean"},
        Kind.CHOICE: {"enum": [*key.choices, *([None] if key.is_optional else [])]},
        Kind.COLUMNS: {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1},
        Kind.TEXTS: _texts_schema(key),
    }
    value = shape_of[key.kind]
    if key.pattern:
        value["pattern"] = key.pattern
    if key.kind in (Kind.COUNT, Kind.NUMBER):
        limits = {"minimum": key.least, "maximum": key.most}
        value |= {name: limit for name, limit in limits.items() if limit is not None}
    shapes = [value, {"$ref": "#/$defs/reference"}]
    if key.is_optional:
        shapes.append({"type": "null"})
    schema: dict[str, Any] = {"description": key.description, "anyOf": shapes}
    if not key.is_required:
        is_text = key.kind in (Kind.DURATION, Kind.SIZE) and key.default is not None
        default = list(key.default) if isinstance(key.default, tuple) else key.default
        schema["default"] = key.default_text if is_text else default
    return schema


def _texts_schema(key: Key) -> dict[str, Any]:
    if key.choices:
        one: dict[str, Any] = {"enum": list(key.choices)}
        return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}
    least = {} if key.default == () or key.is_verbatim else {"minItems": 1}
    return {"type": ["string", "array"], "items": {"type": "string"}, **least}


class KeyDescription(msgspec.Struct, frozen=True, rename="kebab"):
    """One key, for people and for ``--json``."""

    key: str
    type: str
    default: str | None
    is_required: bool
    description: str
    variable: str


def describe(name: str) -> list[KeyDescription] | None:
    """Return the keys of a section, or one key; all for an empty name; None when there is no such key."""
    table = key_table()
    path = tuple(name.split(".")) if name else ()
    if path not in table.sections:
        key = table.find(path)
        return None if key is None else [_described(key)]
    return [_described(key) for key in table.every if key.path[: len(path)] == path]


def _described(key: Key) -> KeyDescription:
    return KeyDescription(
        key.name,
        key.type_text,
        None if key.is_required else key.default_text,
        key.is_required and (len(key.path) == 1),
        key.description,
        key.variable,
    )


def describe_text(name: str) -> str:
    """Return the description of a section as text; ``name`` is known."""
    table = key_table()
    path = tuple(name.split(".")) if name else ()
    section = table.sections.get(path)
    lines: list[str] = []
    if section is not None and section.description:
        lines.append(f"{name}: {section.description}")
    if section is not None and section.is_choice:
        lines.append(f"one of: {', '.join(section.children)}")
        lines += [f"  {kind:<8} {table.sections[*path, kind].description}" for kind in section.children]
    for described in describe(name) or []:
        default = "required" if described.default is None else f"default {described.default}"
        lines += [
            *([""] if lines else []),
            described.key,
            f"  {described.type}  ({default})",
            f"  {described.description}",
            f"  {described.variable}",
        ]
    for free_path in table.free:
        if path and free_path[: len(path)] == path and free_path != path:
            lines += ["", ".".join(free_path), f"  {table.sections[free_path].description}"]
    if not name:
        free = table.sections[FREE,]
        lines += ["", FREE, f"  {free.description}", "", PROFILES]
        lines.append(
            "  Keys to lay over the file, by name of the profile; chosen by --profile NAME or AGENTFLOW_PROFILE."
        )
    return "\n".join(lines) + "\n"

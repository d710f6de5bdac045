"""Which JSON schemas providers refuse to hold a model to: an answer by such a one is asked for by the prompt.

Each function returns what is wrong with a schema, to be read behind "and"; empty: nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

_BY_NAME: Final = ("properties", "$defs")
_LISTS: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE: Final = ("items", "additionalProperties")
_SAYS_KIND: Final = frozenset({"type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf"})


def root_problem(schema: Mapping[str, Any]) -> str:
    """Say whether a schema is of anything but an object, as OpenAI wants it."""
    if schema.get("type") == "object" and "anyOf" not in schema:
        return ""
    return "its provider answers with objects only: give the type a field for what is asked for"


def closed_problem(schema: Mapping[str, Any]) -> str:
    """Say whether a schema has maps, values of any kind, or a type that holds itself, none of which Claude is held to."""
    for one in _schemas(schema):
        if one.get("additionalProperties") or ("object" in _types(one) and "properties" not in one):
            return "its provider takes no maps: give the type fields, or a list of keys and values"
        if _SAYS_KIND.isdisjoint(one):
            return "its provider takes no values of any kind: say which type they have"
    return recursion_problem(schema)


def recursion_problem(schema: Mapping[str, Any]) -> str:
    """Say whether a schema has a type that holds itself."""
    definitions = schema.get("$defs", {})
    inner = {name: _references(definition) for name, definition in definitions.items()}
    root = {name: value for name, value in schema.items() if name != "$defs"}
    reached = {"": _references(root), **inner}
    for name, references in reached.items():
        seen: set[str] = set()
        ahead = list(references)
        while ahead:
            if (other := ahead.pop()) == name:
                return "its provider follows no type that holds itself"
            if other not in seen:
                seen.add(other)
                ahead += reached.get(other, ())
    return ""


def _references(schema: Mapping[str, Any]) -> set[str]:
    """Return the definitions that a schema refers to; empty: itself, the whole."""
    references = (one["$ref"] for one in _schemas(schema) if "$ref" in one)
    return {reference.removeprefix("#").removeprefix("/$defs/") for reference in references}


def _types(schema: Mapping[str, Any]) -> tuple[str, ...]:
    types = schema.get("type", ())
    return (types,) if isinstance(types, str) else tuple(types)


def _schemas(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Give a schema and all within it."""
    yield schema
    inner = [one for name in _BY_NAME for one in schema.get(name, {}).values()]
    inner += [one for name in _LISTS for one in schema.get(name, ())]
    inner += [schema[name] for name in _SINGLE if name in schema]
    for one in inner:
        if isinstance(one, Mapping):
            yield from _schemas(one)

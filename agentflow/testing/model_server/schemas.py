"""What providers say to a schema of an answer that they do not take; None: they take it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from agentflow.testing.model_server.script import HttpError


def openai_refusal(asked: Mapping[str, Any], param: str) -> HttpError | None:
    """Return what OpenAI says: the root is an object, and a strict schema names all properties and allows no others."""
    schema, begin = asked["schema"], f"Invalid schema for {param} '{asked['name']}'"
    if schema.get("type") != "object":
        kind = schema.get("type") or "None"
        return HttpError(
            400, message=f"{begin}: schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{kind}\"'."
        )
    if "anyOf" in schema:
        return HttpError(400, message=f"{begin}: schema must not have 'anyOf' at the top level.")
    for one in _objects(schema, ()) if asked.get("strict") else ():
        if one.get("additionalProperties") is not False:
            what = "'additionalProperties' is required to be supplied and to be false."
        elif set(one.get("required", ())) != set(one.get("properties", ())):
            what = "'required' is required to be supplied and to be an array including every key in properties."
        else:
            continue
        return HttpError(400, message=f"{begin}: In context=(), {what}")
    return None


def claude_refusal(schema: Mapping[str, Any], param: str) -> HttpError | None:
    """Return what Anthropic and Bedrock say: all objects are closed, and none holds itself."""
    root = {name: one for name, one in schema.items() if name != "$defs"}
    try:
        for one in _expanded(root, schema.get("$defs", {}), ()):
            if one.get("additionalProperties") is not False:
                what = "For 'object' type, 'additionalProperties' must be explicitly set to false"
                return HttpError(400, message=f"{param}: {what}")
    except RecursionError as error:
        return HttpError(400, message=f"{param}: {error}")
    return None


def _objects(schema: object, within: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    """Give the objects of a schema and of its definitions."""
    if isinstance(schema, list):
        for one in schema:
            yield from _objects(one, within)
    elif isinstance(schema, Mapping):
        is_by_name = bool(within) and within[-1] in {"properties", "$defs"}
        if not is_by_name and schema.get("type") == "object":
            yield schema
        for name, one in schema.items():
            yield from _objects(one, () if is_by_name else (name,))


def _expanded(schema: object, definitions: Mapping[str, Any], within: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    """Give the objects of a schema, following references.

    Raises:
        RecursionError: One leads to itself.
    """
    yield from _objects(schema, ())
    for name in _references(schema):
        if name in within or name == "#":
            raise RecursionError(f"Circular reference detected in schema definitions: {' -> '.join([*within, name])}")
        yield from _expanded(definitions[name.removeprefix("#/$defs/")], definitions, (*within, name))


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, list):
        for one in schema:
            yield from _references(one)
    elif isinstance(schema, Mapping):
        if isinstance(reference := schema.get("$ref"), str):
            yield reference
        for one in schema.values():
            yield from _references(one)

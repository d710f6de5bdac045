"""Types of structured output: their JSON schema, and values of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import msgspec


def schema_of(output: Any) -> dict[str, Any]:  # noqa: ANN401 (a type, or a schema)
    """Return the JSON schema of a type; a schema is returned as it is.

    Raises:
        TypeError: The type has none.
        ValueError: The schema is none: no answer could be checked by it.
    """
    if isinstance(output, OutputSchema):
        output = output.output_schema
    if isinstance(output, Mapping):
        schema = dict(output)
        _check_schema(msgspec.json.encode(schema, order="sorted"))
        return schema
    if (own := getattr(output, "model_json_schema", None)) is not None:
        return _inlined(own())
    try:
        return _inlined(lifted(msgspec.json.schema(output, schema_hook=foreign_schema)))
    except TypeError as error:
        raise TypeError(f"{output!r} is no type of an output: {error}") from None


def as_type(value: Any, output: Any) -> Any:  # noqa: ANN401 (plain values; a type; a value of it)
    """Return plain values as a type; as they are where ``output`` is a schema.

    Raises:
        ValueError: They do not fit; the text says where.
    """
    if isinstance(output, OutputSchema):
        output = output.output_schema
    if isinstance(output, Mapping):
        import jsonschema  # as large as the rest of an agent's module

        problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(output).iter_errors(value))
        if problem is not None:
            raise ValueError(f"{problem.message} at {problem.json_path}")
        return value
    if hasattr(output, "model_validate"):
        return validated(output, value)
    return msgspec.convert(value, output, strict=False, dec_hook=validated)


def foreign_schema(kind: type) -> dict[str, Any]:
    """Return the schema of a pydantic model; msgspec calls it for types that it does not know.

    Raises:
        TypeError: It is no pydantic model.
    """
    if (own := getattr(kind, "model_json_schema", None)) is not None:
        schema: dict[str, Any] = own()
        return schema
    raise TypeError(
        f"{kind.__qualname__} has no JSON schema; take plain types, a pydantic model, msgspec Struct or dataclass"
    )


def validated(kind: type, value: Any) -> Any:  # noqa: ANN401 (plain values; a declared type)
    """Return plain values as a pydantic model; msgspec calls it for types that it does not know.

    Raises:
        ValueError: They do not fit; the text says where, and why, and no more: a model reads it.
        TypeError: It is no pydantic model.
    """
    validate = getattr(kind, "model_validate", None)
    if validate is None:
        raise TypeError(f"a {kind.__qualname__} cannot be made of plain values")
    try:
        return validate(value)
    except ValueError as error:
        if (problems := getattr(error, "errors", None)) is None:
            raise
        texts = [": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in problems()]
        raise ValueError("; ".join(texts)) from None


def lifted(schema: dict[str, Any]) -> dict[str, Any]:
    """Move the definitions of nested schemas to the top, where their references look for them.

    Raises:
        TypeError: Two definitions have one name.
    """
    found: dict[str, Any] = schema.setdefault("$defs", {})

    def lift(value: Any, *, is_top: bool = False) -> None:  # noqa: ANN401 (JSON)
        if isinstance(value, dict):
            if not is_top and "$defs" in value and ("type" in value or "$ref" in value):  # else it is a field's name
                for name, definition in value.pop("$defs").items():
                    if found.setdefault(name, definition) != definition:
                        raise TypeError(f"two types are named {name}; give one of them another name")
            for inner in list(value.values()):
                lift(inner)
        elif isinstance(value, list):
            for inner in value:
                lift(inner)

    lift(schema, is_top=True)
    if not found:
        del schema["$defs"]
    return schema


@functools.lru_cache(maxsize=256)
def _check_schema(encoded: bytes) -> None:
    """Check a schema before it is paid for: what is wrong with it would show only when an answer is checked by it.

    Raises:
        ValueError: It is none.
    """
    import jsonschema  # as large as the rest of an agent's module

    kind = jsonschema.Draft202012Validator
    try:
        kind.check_schema(msgspec.json.decode(encoded), kind.FORMAT_CHECKER)
    except jsonschema.SchemaError as error:
        raise ValueError(f"the output schema is no JSON schema: {error.message} at {error.json_path}") from None


class OutputSchema(msgspec.Struct, frozen=True):
    """An output's type or JSON schema, as Flink Agents wraps it."""

    output_schema: Any


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Put the top definition in the place of the reference to it: providers want an object there."""
    name = schema.get("$ref", "").removeprefix("#/$defs/")
    definitions = schema.get("$defs", {})
    if name not in definitions:
        return schema
    top = dict(definitions[name])
    rest = {
        other: value for other, value in definitions.items() if other != name or f"#/$defs/{name}" in str(definitions)
    }
    return {**top, "$defs": rest} if rest else top

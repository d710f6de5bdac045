"""Types of structured output: their JSON schema, and values of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


def schema_of(output: Any) -> dict[str, Any]:  # noqa: ANN401 (a type, or a schema)
    """Return the JSON schema of a type; a schema is returned as it is.

    Raises:
        TypeError: The type has none.
    """
    if isinstance(output, OutputSchema):
        output = output.output_schema
    if isinstance(output, Mapping):
        return dict(output)
    if (own := getattr(output, "model_json_schema", None)) is not None:
        schema: dict[str, Any] = own()
        return schema
    try:
        return _inlined(msgspec.json.schema(output))
    except TypeError as error:
        raise TypeError(
            f"{output!r} is no type of an output: {error}; take a pydantic model, msgspec Struct or dataclass"
        ) from None


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
    if (validate := getattr(output, "model_validate", None)) is not None:
        return validate(value)
    return msgspec.convert(value, output, strict=False)


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

"""What a function takes, as a model is told it: a JSON schema of its type hints and docstring; and back: arguments of a model."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from agentflow.errors import ToolArgumentsInvalid

_REF = "#/$defs/{name}"


class ToolArguments:
    """The arguments of a function that a model gives.

    Args:
        function: The function.
        hidden: Parameters that the model neither sees nor sets.

    Attributes:
        description: What the docstring says of the function.
        schema: JSON schema of an object with the arguments.

    Raises:
        TypeError: A parameter cannot be described, or ``hidden`` names none.
    """

    def __init__(self, function: Callable[..., Any], hidden: frozenset[str] = frozenset()) -> None:
        import docstring_parser  # what has no tools does not pay for it

        parameters = inspect.signature(function).parameters
        if unknown := sorted(hidden - set(parameters)):
            raise ValueError(f"tool '{function.__name__}' has no parameter {', '.join(map(repr, unknown))} to inject")
        docstring = docstring_parser.parse(inspect.getdoc(function) or "")
        parts = (docstring.short_description, docstring.long_description)
        self.description = "\n\n".join(part for part in parts if part)
        said = {param.arg_name: param.description or "" for param in docstring.params}
        hints = typing.get_type_hints(function, include_extras=True)
        fields: list[tuple[str, Any, Any]] = []
        defaults: dict[str, Any] = {}
        for name, parameter in parameters.items():
            if name in hidden:
                continue
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise TypeError(
                    f"tool '{function.__name__}': a model cannot give parameter '{parameter}'; tools have named parameters"
                )
            hint = _described(hints.get(name, Any), said.get(name, ""))
            if parameter.default is parameter.empty:
                fields.append((name, hint, msgspec.NODEFAULT))
            else:
                fields.append((name, typing.Union[hint, msgspec.UnsetType], msgspec.UNSET))  # noqa: UP007 (of what Annotated made)
                defaults[name] = parameter.default
        self._hidden = hidden
        self._struct = msgspec.defstruct(
            f"{function.__name__}_arguments", fields, kw_only=True, forbid_unknown_fields=True
        )
        self.schema = _schema(self._struct, defaults)

    def read(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments that a model's arguments mean; what it says about hidden ones is ignored.

        Raises:
            ToolArgumentsInvalid: They do not fit.
        """
        given = {name: value for name, value in arguments.items() if name not in self._hidden}
        try:
            read = msgspec.convert(given, self._struct, strict=False, dec_hook=_validated)
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            raise ToolArgumentsInvalid(tool, str(error)) from None
        named = ((name, getattr(read, name)) for name in self._struct.__struct_fields__)
        return {name: value for name, value in named if value is not msgspec.UNSET}


def _described(hint: Any, description: str) -> Any:  # noqa: ANN401 (a type)
    """Return a type with its description: the docstring's, or what `Annotated` has."""
    if typing.get_origin(hint) is Annotated:
        inner, *extras = typing.get_args(hint)
        for extra in extras:
            text = extra if isinstance(extra, str) else getattr(extra, "description", None)
            description = text or description
        kept = [extra for extra in extras if isinstance(extra, msgspec.Meta)]
        hint = Annotated[(inner, *kept)] if kept else inner
    return Annotated[hint, msgspec.Meta(description=description)] if description else hint


def _schema(struct: type[msgspec.Struct], defaults: dict[str, Any]) -> dict[str, Any]:
    (reference,), components = msgspec.json.schema_components((struct,), schema_hook=_foreign_schema, ref_template=_REF)
    schema = components.pop(struct.__name__)
    assert reference["$ref"], "a Struct is a component"
    schema.pop("title", None)
    schema.setdefault("required", [])
    for name, default in defaults.items():
        if default is None or type(default) in (bool, int, float, str, list, dict):
            schema["properties"][name].setdefault("default", default)
    if components:
        schema["$defs"] = components
    return _lifted(schema)


def _foreign_schema(kind: type) -> dict[str, Any]:
    """Return the schema of a pydantic model."""
    if (own := getattr(kind, "model_json_schema", None)) is not None:
        schema: dict[str, Any] = own()
        return schema
    raise NotImplementedError


def _lifted(schema: dict[str, Any]) -> dict[str, Any]:
    """Move the definitions of nested schemas to the top, where their references look for them."""
    found: dict[str, Any] = schema.setdefault("$defs", {})

    def lift(value: Any, *, is_top: bool = False) -> None:  # noqa: ANN401 (JSON)
        if isinstance(value, dict):
            if not is_top and "$defs" in value and "type" in value:
                found.update(value.pop("$defs"))
            for inner in list(value.values()):
                lift(inner)
        elif isinstance(value, list):
            for inner in value:
                lift(inner)

    lift(schema, is_top=True)
    if not found:
        del schema["$defs"]
    return schema


def _validated(kind: type, value: Any) -> Any:  # noqa: ANN401 (a declared type)
    if (validate := getattr(kind, "model_validate", None)) is not None:
        return validate(value)
    raise TypeError(f"a {kind.__qualname__} cannot be made of what a model says")

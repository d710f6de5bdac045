"""What a function takes, as a model is told it: a JSON schema of its type hints and docstring; and back: arguments of a model."""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from agentflow.api.output_schemas import foreign_schema, lifted, validated
from agentflow.errors import ToolArgumentsInvalid

_REF = "#/$defs/{name}"
_LIMITS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern")


class ToolArguments:
    """The arguments of a function that a model gives.

    Args:
        function: The function.
        hidden: Parameters that the model neither sees nor sets.

    Attributes:
        description: What the docstring says of the function.
        schema: JSON schema of an object with the arguments.

    Raises:
        TypeError: A parameter cannot be described.
        ValueError: ``hidden`` names none.
    """

    def __init__(self, function: Callable[..., Any], hidden: frozenset[str] = frozenset()) -> None:
        import docstring_parser  # what has no tools does not pay for it

        if not hasattr(function, "__name__"):
            raise TypeError(f"{function!r} is no function; a tool is one, with a name and type hints")
        parameters = inspect.signature(function).parameters
        if unknown := sorted(hidden - set(parameters)):
            raise ValueError(f"tool '{function.__name__}' has no parameter {', '.join(map(repr, unknown))} to inject")
        docstring = docstring_parser.parse(inspect.getdoc(function) or "")
        self.description = (docstring.description or "").strip()
        said = {param.arg_name: param.description or "" for param in docstring.params}
        hints = _hints(function, hidden)
        fields: list[tuple[str, Any, Any]] = []
        defaults: dict[str, Any] = {}
        for name, parameter in parameters.items():
            if name in hidden:
                continue
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise TypeError(
                    f"tool '{function.__name__}': a model cannot give parameter '{parameter}'; tools have named parameters"
                )
            if name == "self" and not fields:
                raise TypeError(f"tool '{function.__name__}' takes self; write @staticmethod above it, without self")
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
        try:
            self.schema = _schema(self._struct, defaults)
        except TypeError as error:
            raise TypeError(f"tool '{function.__name__}': {error}; or inject the argument") from None

    def read(self, tool: str, arguments: dict[str, Any] | str) -> dict[str, Any]:
        """Return the keyword arguments that a model's arguments mean; what it says about hidden ones is ignored.

        Raises:
            ToolArgumentsInvalid: They do not fit, or are no JSON object.
        """
        if not isinstance(arguments, dict):
            raise ToolArgumentsInvalid(tool, "they are no JSON object")
        given = {name: value for name, value in arguments.items() if name not in self._hidden}
        try:
            read = msgspec.convert(given, self._struct, strict=False, dec_hook=validated)
        except (msgspec.ValidationError, ValueError, TypeError) as error:
            raise ToolArgumentsInvalid(tool, str(error)) from None
        named = ((name, getattr(read, name)) for name in self._struct.__struct_fields__)
        return {name: value for name, value in named if value is not msgspec.UNSET}


def _hints(function: Callable[..., Any], hidden: frozenset[str]) -> dict[str, Any]:
    """Return the types of what a model gives: others may be names that only type checkers see."""
    written = inspect.get_annotations(inspect.unwrap(function))
    seen = {name: hint for name, hint in written.items() if name not in hidden and name != "return"}
    names = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__=seen), names, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"tool '{function.__name__}': {error}; types of its parameters are names of its module, also at run time"
        ) from None


def _described(hint: Any, description: str) -> Any:  # noqa: ANN401 (a type)
    """Return a type with its description: the docstring's, or what `Annotated` has, and with its limits, whoever's they are."""
    if typing.get_origin(hint) is Annotated:
        inner, *extras = typing.get_args(hint)
        kept = []
        for extra in extras:
            text = extra if isinstance(extra, str) else getattr(extra, "description", None)
            description = text or description
            if isinstance(extra, msgspec.Meta):
                kept.append(extra)
            elif limits := _limits(extra):
                kept.append(msgspec.Meta(**limits))
        hint = Annotated[(inner, *kept)] if kept else inner
    return Annotated[hint, msgspec.Meta(description=description)] if description else hint


def _limits(extra: object) -> dict[str, Any]:
    """Return the limits in a pydantic ``Field``, or in one of the `annotated_types` that it is made of."""
    found = {}
    for part in (extra, *(getattr(extra, "metadata", None) or ())):
        for name in _LIMITS:
            if (limit := getattr(part, name, None)) is not None:
                found[name] = limit
    return found


def _schema(struct: type[msgspec.Struct], defaults: dict[str, Any]) -> dict[str, Any]:
    (reference,), components = msgspec.json.schema_components((struct,), schema_hook=foreign_schema, ref_template=_REF)
    schema = components.pop(reference["$ref"].removeprefix(_REF.format(name="")))  # a Struct is a component
    schema.pop("title", None)
    schema.setdefault("required", [])
    for name, declared in defaults.items():
        default = declared.value if isinstance(declared, enum.Enum) else declared
        if default is None or type(default) in (bool, int, float, str, list, dict):
            schema["properties"][name].setdefault("default", default)
    if components:
        schema["$defs"] = components
    return lifted(schema)

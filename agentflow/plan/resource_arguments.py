"""Arguments of resources, by the hints of their class: read where a resource is built, checked where a file gives them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import msgspec

from agentflow.api.resources import Resource


def hints_of(found: type[Resource]) -> dict[str, Any]:
    """Return the types of a class's arguments; none where one of them is imported for type checkers only."""
    try:
        return typing.get_type_hints(found)
    except NameError:
        return {}


def read_argument(hints: Mapping[str, Any], name: str, value: Any) -> Any:  # noqa: ANN401 (JSON, and what it stands for)
    """Return an argument as its class wants it.

    Raises:
        msgspec.ValidationError: It does not fit.
    """
    try:
        return msgspec.convert(value, hints.get(name, Any), strict=False, dec_hook=_as_it_is)
    except msgspec.ValidationError:
        raise
    except TypeError:  # a type that msgspec does not know: whatever it is
        return value


def missing_arguments(found: type[Resource], given: Mapping[str, Any]) -> list[str]:
    """Return the names of arguments that a class needs, and that are not given."""
    return [
        field.name
        for field in dataclasses.fields(found)  # type: ignore[arg-type]
        if field.init
        and field.name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]


def has_own_constructor(found: type[Resource]) -> bool:
    """Whether a class reads its arguments itself."""
    return found.__init__.__code__.co_filename != "<string>"


def _as_it_is(kind: type, value: Any) -> Any:  # noqa: ANN401, ARG001 (a type that msgspec leaves to us)
    return value

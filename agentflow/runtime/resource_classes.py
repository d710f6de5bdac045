"""From a descriptor to a resource: its class, by name, and its arguments, checked.

Names come from agents and job files, never from stored data. A package offers its classes by entry points: group
``agentflow.chat_model_connection`` (and so on, as `ResourceType` has them), name → class.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import msgspec

from agentflow.api.resources import Resource, ResourceDescriptor, ResourceType
from agentflow.errors import ConfigError
from agentflow.plan.problems import nearest
from agentflow.plan.resource_arguments import has_own_constructor, hints_of, missing_arguments, read_argument
from agentflow.runtime.secrets import Secrets


def class_of(name: str, kind: ResourceType, place: str) -> type[Resource]:
    """Return the class that a descriptor names.

    Raises:
        ConfigError: There is none, or it is no resource.
    """
    if "." not in name:
        offered = {point.name: point for point in importlib.metadata.entry_points(group=f"agentflow.{kind}")}
        alias = name.replace("-", "_")
        if alias not in offered:
            near = nearest(alias, list(offered))
            known = f"did you mean '{near}'?" if near else f"known are: {', '.join(offered)}"
            raise ConfigError([f"{place}: there is no {kind} class '{name}'; {known}; or write package.module.Class"])
        try:
            return _checked(offered[alias].load(), name, place)
        except (ImportError, AttributeError) as error:
            raise ConfigError([f"{place}: class '{name}' cannot be imported: {error}"]) from error
    module_name, _, class_name = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except ImportError as error:
        raise ConfigError([f"{place}: class '{name}' cannot be imported: {error}"]) from error
    if found is None:
        raise ConfigError([f"{place}: module '{module_name}' has no class '{class_name}'"])
    return _checked(found, name, place)


def build(
    name: str, kind: ResourceType, descriptor: ResourceDescriptor, secrets: Secrets, config: Mapping[str, Any]
) -> Resource:
    """Return a resource of a descriptor, with its references resolved; it is not open.

    Args:
        name: Its name.
        kind: Its kind.
        descriptor: Its class and arguments.
        secrets: Resolves references.
        config: The job's options for its agents: ``<ClassName>.<argument>`` is the default of an argument.

    Raises:
        ConfigError: The class cannot be found, does not take the arguments, or a reference leads nowhere.
    """
    place = f"resource '{name}' ({kind})"
    found = class_of(descriptor.clazz, kind, place)
    prefix = f"{found.__name__}."
    defaults = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
    arguments = secrets.resolve({**defaults, **descriptor.arguments}, place=place)
    fields = {field.name: field for field in dataclasses.fields(found) if field.init}  # type: ignore[arg-type]
    if has_own_constructor(found):
        return _made(found, arguments, place, secrets)
    problems = [_unknown(place, argument, fields) for argument in arguments if argument not in fields]
    if missing := missing_arguments(found, arguments):
        problems.append(f"{place}: {found.__name__} needs {', '.join(map(repr, missing))}")
    hints = hints_of(found)
    converted = {}
    for argument, value in arguments.items():
        try:
            converted[argument] = read_argument(hints, argument, value)
        except msgspec.ValidationError as error:
            problems.append(f"{place}: argument '{argument}': {secrets.scrub(str(error))}")
    if problems:
        raise ConfigError(problems)
    return _made(found, converted, place, secrets)


def _made(found: type[Resource], arguments: dict[str, Any], place: str, secrets: Secrets) -> Resource:
    try:
        return found(**arguments)
    except (TypeError, ValueError) as error:  # it may say what it was given
        raise ConfigError([f"{place}: {found.__name__} cannot be made: {secrets.scrub(str(error))}"]) from None


def _checked(found: Any, name: str, place: str) -> type[Resource]:  # noqa: ANN401 (whatever a name names)
    if not (isinstance(found, type) and issubclass(found, Resource)):
        raise ConfigError(
            [f"{place}: '{name}' is no class of resources: it has to be a subclass of agentflow.Resource"]
        )
    return found


def _unknown(place: str, argument: str, fields: dict[str, Any]) -> str:
    near = nearest(argument, list(fields))
    return f"{place}: unknown argument '{argument}'" + (
        f"; did you mean '{near}'?" if near else f"; it takes: {', '.join(fields)}"
    )

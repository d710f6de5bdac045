"""Resources of a plan: descriptors and instances in their stored form. Nothing is built or opened here."""

from __future__ import annotations

from typing import Any

import msgspec

from agentflow.api.references import without_secrets
from agentflow.api.resources import ResourceDescriptor, ResourceType
from agentflow.plan.payloads import json_problem, reference
from agentflow.plan.problems import ProblemList, nearest

_RENAMED = "give one of the agents another name, ReActAgent(name='…'): its chat model is named after it"
_EXPECTED = "a ResourceDescriptor, a msgspec Struct, an object with model_dump_json(), or a JSON value"


class StoredInstance(msgspec.Struct, frozen=True):
    """An instance read back from a stored plan: its class by name, and its JSON; it is shown and compared, not used."""

    clazz: str
    value: msgspec.Raw


class PlannedResource(msgspec.Struct, frozen=True, eq=False):
    """One resource of a plan.

    Attributes:
        name: Unique per type.
        type: Kind of resource.
        instance: As it was added; a `StoredInstance` in a plan that was read back.
        stored: Its JSON; None where only the instance's own ``model_dump_json`` knows it.
    """

    name: str
    type: ResourceType
    instance: Any
    stored: msgspec.Raw | None

    @property
    def key(self) -> tuple[str, ResourceType, int]:
        """What it is known by in a worker: agents that share it have it from one declaration."""
        return self.name, self.type, id(self.instance)

    @property
    def clazz(self) -> str:
        """Class of the resource, for people."""
        if isinstance(self.instance, (ResourceDescriptor, StoredInstance)):
            return self.instance.clazz
        return reference(type(self.instance))

    def to_raw(self) -> msgspec.Raw:
        """Return the JSON of the resource; calls ``model_dump_json`` of an instance that has it."""
        if self.stored is not None:
            return self.stored
        dumped = msgspec.json.decode(str(self.instance.model_dump_json()))
        return _raw({"class": self.clazz, "value": dumped})


def read_resource(name: str, resource_type: ResourceType, stored: msgspec.Raw) -> PlannedResource:
    """Read a resource of a stored plan; its class is not imported.

    Raises:
        msgspec.ValidationError: It is not of the stored form.
    """
    entry = msgspec.json.decode(stored, type=_Stored)
    instance: Any
    if entry.descriptor is not None:
        instance = ResourceDescriptor(entry.descriptor.clazz, entry.descriptor.arguments)
    elif entry.clazz is not None:
        instance = StoredInstance(entry.clazz, entry.value)
    else:
        raise msgspec.ValidationError(f"resource '{name}' has neither a descriptor nor a class")
    return PlannedResource(name, resource_type, instance, msgspec.Raw(bytes(stored)))


class _Descriptor(msgspec.Struct):
    clazz: str = msgspec.field(name="class")
    arguments: dict[str, Any] = {}


class _Stored(msgspec.Struct):
    descriptor: _Descriptor | None = None
    clazz: str | None = msgspec.field(name="class", default=None)
    value: msgspec.Raw = msgspec.Raw(b"null")


def plan_resources(declared: list[tuple[str, ResourceType, Any]], problems: ProblemList) -> tuple[PlannedResource, ...]:
    """Check the resources of an agent; what cannot be used becomes a problem."""
    planned: list[PlannedResource] = []
    seen: set[tuple[str, str]] = set()
    for name, resource_type, instance in declared:
        place = f"resource {name!r}"
        if not isinstance(name, str) or not name.strip():
            problems.add(f"its name is {name!r}", place=place, expected="a text that is not blank")
        if not isinstance(resource_type, ResourceType):
            near = nearest(str(resource_type), [kind.value for kind in ResourceType])
            problems.add(
                f"its type is {resource_type!r}",
                place=place,
                expected=f"a ResourceType: {', '.join(kind.name for kind in ResourceType)}",
                fix=f"did you mean ResourceType.{ResourceType(near).name}?" if near else "",
            )
            continue
        if (str(resource_type), str(name)) in seen:
            problems.add(
                f"there are two resources of type {resource_type} with this name",
                place=place,
                fix=_RENAMED if str(name).endswith(".chat_model") else "give one of them another name",
            )
        seen.add((str(resource_type), str(name)))
        if instance is None or (resource_type is ResourceType.PROMPT and isinstance(instance, str)):
            is_prompt = resource_type is ResourceType.PROMPT
            problems.add(
                f"it is {instance!r}",
                place=place,
                expected="a Prompt" if is_prompt else "a ResourceDescriptor, or an instance",
                fix="Prompt.from_text('…')" if is_prompt else "let its function return one",
            )
            continue
        if is_dumping(instance):
            planned.append(PlannedResource(name, resource_type, instance, None))
            continue
        stored = _stored(instance, place, problems)
        if stored is not None:
            planned.append(PlannedResource(name, resource_type, instance, stored))
    return tuple(planned)


def is_dumping(instance: object) -> bool:
    """Whether an instance writes its own JSON, as pydantic models do; it is not asked to while a plan is made."""
    return not isinstance(instance, type) and callable(getattr(type(instance), "model_dump_json", None))


def _stored(instance: Any, place: str, problems: ProblemList) -> msgspec.Raw | None:  # noqa: ANN401 (any resource)
    if isinstance(instance, ResourceDescriptor):
        return _stored_descriptor(instance, place, problems)
    try:
        value = _instance_json(instance)
    except (TypeError, ValueError, RecursionError) as error:
        problems.add(
            f"{type(instance).__name__} cannot be stored with the plan: {error}",
            place=place,
            expected=_EXPECTED,
            fix="add a ResourceDescriptor('package.module.Class', {…}), which is built where the agent runs",
        )
        return None
    return _raw({"class": reference(type(instance)), "value": msgspec.Raw(value)})


def _stored_descriptor(descriptor: ResourceDescriptor, place: str, problems: ProblemList) -> msgspec.Raw | None:
    is_usable = True
    parts = descriptor.clazz.split(".") if isinstance(descriptor.clazz, str) else []
    if not parts or not all(part.replace("-", "_").isidentifier() for part in parts):
        problems.add(
            f"its class is {descriptor.clazz!r}", place=place, expected="'package.module.Class', or a registered name"
        )
        is_usable = False
    wrong = json_problem(descriptor.arguments)
    if wrong is not None or not isinstance(descriptor.arguments, dict):
        problems.add(
            f"its arguments are not JSON: {wrong or 'they are no dict'}",
            place=place,
            expected="a dict of None, bool, int, float, str, list, dict",
        )
        is_usable = False
    if not is_usable:
        return None
    arguments = {name: without_secrets(name, value) for name, value in descriptor.arguments.items()}
    return _raw({"descriptor": {"class": descriptor.clazz, "arguments": arguments}})


def _instance_json(instance: object) -> bytes:
    wrong = None if isinstance(instance, msgspec.Struct) else json_problem(instance)
    if wrong is not None:
        raise TypeError(wrong)
    return msgspec.json.encode(instance, order="sorted")


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value, order="sorted"))

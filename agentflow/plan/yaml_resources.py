"""Resources of YAML documents: descriptors, prompts and tools, each checked; and the names by which they refer to each other."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

import msgspec

from agentflow.api.chat_messages import ChatMessage
from agentflow.api.chat_models import BaseChatModelSetup
from agentflow.api.failure import Retry
from agentflow.api.prompts import Prompt
from agentflow.api.references import is_secret_name, meant_reference
from agentflow.api.resources import RESOURCE_MARK, Resource, ResourceDescriptor, ResourceMark, ResourceType
from agentflow.api.steps import reconcile
from agentflow.api.tools import FunctionTool, Tool
from agentflow.errors import ConfigError, NotConfigured
from agentflow.plan.agent_documents import AgentDocument, Entry, NameOf
from agentflow.plan.agent_specs import SECTIONS, ToolSpec
from agentflow.plan.file_problems import Place, ProblemList
from agentflow.plan.named_objects import attribute_of, find_function, import_module
from agentflow.plan.problems import nearest
from agentflow.plan.resource_arguments import has_own_constructor, hints_of, missing_arguments, read_argument

Lists = Mapping[str, Sequence[Entry | NameOf]]
"""The lists of an agent."""
_OPEN_REFERENCE = "${"  # a name that is known when the resource is built


class Scope:
    """What has a name.

    Attributes:
        shared: Entries for all agents, by list and name.
    """

    def __init__(self, known: Collection[tuple[ResourceType, str]], problems: ProblemList) -> None:
        self.shared: dict[tuple[str, str], Entry] = {}
        self.known = frozenset(known)
        self._problems = problems

    def check(self, label: str, section: str, name: str, place: Place, own: Lists) -> bool:
        """Report a name that nothing has; return whether something has it."""
        kind = SECTIONS[section].type
        names = [one for of, one in self.shared if of == section] + [one for of, one in self.known if of == kind]
        names += [one.name for one in own.get(section, ()) if isinstance(one, Entry)]
        if name in names or _OPEN_REFERENCE in name or (section in ("tools", "prompts") and self._has_servers(own)):
            return True
        near = nearest(name, names)
        note = f"there are: {', '.join(names)}" if names else f"add it to {section}"
        if near is not None:
            note = f"did you mean '{near}'?"
        elif section == "prompts" and label.startswith("agent"):
            note += ", or write  prompt: {text: …}"
        self._problems.add(f"{label}: there is no {SECTIONS[section].noun} '{name}'", place, note=note)
        return False

    def _has_servers(self, own: Lists) -> bool:
        """Whether there are MCP servers, whose tools and prompts have names that only they know."""
        return (
            "mcp_servers" in own
            or any(section == "mcp_servers" for section, _ in self.shared)
            or any(kind is ResourceType.MCP_SERVER for kind, _ in self.known)
        )


class ResourceBuilder:
    """Makes resources of entries."""

    def __init__(self, scope: Scope, problems: ProblemList) -> None:
        self._scope = scope
        self._problems = problems

    def instance(self, section: str, entry: Entry, document: AgentDocument, own: Lists) -> Any:  # noqa: ANN401 (a resource)
        """Return the resource of an entry, or its descriptor; None, and problems, when it cannot be one."""
        if section == "prompts":
            return self.prompt(entry, document)
        if section == "tools":
            return self._tool(entry)
        if section == "chat_model_setups":
            self._check_setup(entry, own)
        return self._descriptor(section, entry, own)

    def _check_setup(self, entry: Entry, own: Lists) -> None:
        spec = entry.spec
        lists = {"tools": ("tools", spec.tools), "fallback_models": ("chat_model_setups", spec.fallback_models)}
        self._scope.check(entry.label, "chat_model_connections", spec.connection, entry.at("connection"), own)
        if spec.prompt is not None:
            self._scope.check(entry.label, "prompts", spec.prompt, entry.at("prompt"), own)
        if entry.name in spec.fallback_models:
            self._problems.add(f"{entry.label} falls back to itself", entry.at("fallback_models"), note="name others")
        for key, (section, names) in lists.items():
            for index, name in enumerate(names):
                self._scope.check(entry.label, section, name, entry.at(f"{key}[{index}]", key), own)

    def _descriptor(self, section: str, entry: Entry, own: Lists) -> ResourceDescriptor | None:
        written = entry.spec.clazz
        if written is None:
            connections = [one for one in own.get("chat_model_connections", ()) if isinstance(one, Entry)]
            connections += [one for (of, _), one in self._scope.shared.items() if of == "chat_model_connections"]
            written = next((one.spec.clazz for one in connections if one.name == entry.spec.connection), None)
            if written is None and (ResourceType.CHAT_MODEL_CONNECTION, entry.spec.connection) not in self._scope.known:
                return None  # there is no such connection, which is told
            if written is None:
                what = f"{entry.label} has no 'class'"
                self._problems.add(what, entry.place, note="package.module.Class, or a short name, such as openai")
                return None
            if "." in written:  # a connection of one's own: its models have no arguments of their own
                written = f"{BaseChatModelSetup.__module__}.{BaseChatModelSetup.__qualname__}"
        name = written if "." in written else written.replace("-", "_")
        full_name = self._full_name(section, name, entry)
        if full_name is None:
            return None
        found = self._class(section, full_name, entry)
        if found is not None:
            self._check_arguments(found, entry)
        return ResourceDescriptor(name, entry.arguments)

    def _full_name(self, section: str, name: str, entry: Entry) -> str | None:
        """Return the dotted name of a class that a package has registered under a short one."""
        if "." in name:
            return name
        registered = {point.name: point.value for point in entry_points(group=f"agentflow.{SECTIONS[section].type}")}
        if name in registered:
            return registered[name].replace(":", ".")
        near = nearest(name, registered)
        known = f", or one of {', '.join(sorted(registered))}" if registered else ""
        note = f"did you mean '{near}'?" if near else f"package.module.Class{known}"
        self._problems.add(f"{entry.label}: there is no class '{name}'", entry.at("class"), note=note)
        return None

    def _class(self, section: str, name: str, entry: Entry) -> type[Resource] | None:
        """Import a class; None, and a problem, when it is none of this kind of resources."""
        kind = SECTIONS[section].type
        module_name, _, class_name = name.rpartition(".")
        reference, role, place = f"{module_name}:{class_name}", f"{entry.label}: class '{name}'", entry.at("class")
        module = import_module(reference, role, place, self._problems)
        if module is None:
            return None
        classes = [
            one for one, value in vars(module).items() if isinstance(value, type) and issubclass(value, Resource)
        ]
        count = len(self._problems.found)
        found = attribute_of(module, reference, role, classes, place, self._problems)
        if len(self._problems.found) > count:
            return None
        if not isinstance(found, type) or not issubclass(found, Resource) or found.resource_type() is not kind:
            self._problems.add(f"{role} is no {kind} resource", place, note=f"a class whose resource_type() is {kind}")
            return None
        return found

    def _check_arguments(self, clazz: type[Resource], entry: Entry) -> None:
        count = len(self._problems.found)
        for name, value in entry.arguments.items():
            if (meant := meant_reference(name, value)) is not None:
                what = f"{entry.label}: '{name}' is {value}, which nothing replaces"
                self._problems.add(what, entry.keys[name], note=f"write {meant}")
        parameters = inspect.signature(clazz).parameters.values()
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return
        names = [parameter.name for parameter in parameters]
        for name in entry.arguments:
            if name not in names:
                near = nearest(name, names)
                note = f"did you mean '{near}'?" if near else f"it has: {', '.join(names)}"
                self._problems.add(f"{entry.label}: {clazz.__name__} has no '{name}'", entry.keys[name], note=note)
        if has_own_constructor(clazz):
            return
        arguments = self._values(clazz, entry)
        if arguments is not None and len(self._problems.found) == count and clazz.__module__.startswith("agentflow."):
            self._try(clazz, arguments, entry)

    def _values(self, clazz: type[Resource], entry: Entry) -> dict[str, Any] | None:
        """Return the arguments as the class wants them; None: some, which it may look at, are known only where it is built."""
        hints, is_known, arguments = hints_of(clazz), True, {}
        for name, value in entry.arguments.items():
            if _OPEN_REFERENCE in str(value):  # it has its value where the resource is built
                is_known = is_known and (is_secret_name(name) or name == "auth")
                arguments[name] = value
                continue
            try:
                arguments[name] = read_argument(hints, name, value)
            except msgspec.ValidationError as error:
                self._problems.add(f"{entry.label}: '{name}' does not fit", entry.keys[name], note=str(error))
        return arguments if is_known else None

    def _try(self, clazz: type[Resource], arguments: dict[str, Any], entry: Entry) -> None:
        """Make a resource for once: what it refuses is a problem."""
        if missing := missing_arguments(clazz, arguments):
            self._problems.add(f"{entry.label}: {clazz.__name__} needs {', '.join(map(repr, missing))}", entry.place)
            return
        try:
            clazz(**arguments)
        except (ValueError, NotConfigured, ConfigError) as error:
            place = entry.keys.get(str(error).partition(":")[0], entry.place)
            self._problems.add(f"{entry.label}: {error}", place)

    def prompt(self, entry: Entry, document: AgentDocument) -> Prompt | None:
        """Return a prompt; None, and a problem, when it has no text, or its file has none."""
        spec = entry.spec
        given = [key for key in ("text", "messages", "path") if getattr(spec, key) is not None]
        if len(given) != 1:
            what = f"{entry.label} has {' and '.join(given) or 'no text'}"
            self._problems.add(what, entry.at(*given[1:]), note="one of text, messages and path")
            return None
        if spec.path is None:
            messages = [ChatMessage(message.role, message.content) for message in spec.messages or ()]
            return Prompt(text=spec.text, messages=messages)
        prompt = Prompt.from_file(str(document.folder / spec.path))
        try:
            _ = prompt.digest  # reads it
        except NotConfigured as error:
            self._problems.add(f"{entry.label}: {error.what}", entry.at("path"), note=f"looked for {prompt.path}")
            return None
        return prompt

    def _tool(self, entry: Entry) -> FunctionTool | None:
        spec: ToolSpec = entry.spec
        function = function_of(spec.function, entry, "function", self._problems)
        policy: dict[str, Any] = {
            key: getattr(spec, key)
            for key in ("timeout", "idempotent", "requires_approval", "approval_timeout", "result_max")
            if key in entry.places
        }
        if spec.retry is not None:
            policy["retry"] = Retry(**msgspec.structs.asdict(spec.retry))
        if spec.reconciler is not None:
            reconciler = function_of(spec.reconciler, entry, "reconciler", self._problems)
            policy["reconciler"] = None if reconciler is None else reconcile(reconciler)
        if function is None:
            return None
        injected: dict[str, Any] = {name: msgspec.structs.asdict(one) for name, one in spec.injected_args.items()}
        try:
            mark = getattr(function, RESOURCE_MARK, None)
            if isinstance(mark, ResourceMark) and mark.type is ResourceType.TOOL:
                decorated: FunctionTool = mark.make(function)  # the document has the last word
                policy = {**msgspec.structs.asdict(decorated.policy), **policy}
                injected = {**decorated.injected_args, **injected}
            return Tool.from_callable(function, injected_args=injected, name=entry.name, **policy)
        except (TypeError, ValueError) as error:
            self._problems.add(f"{entry.label}: {error}", entry.at("function"))
            return None


def function_of(reference: str, entry: Entry, key: str, problems: ProblemList) -> Callable[..., Any] | None:
    """Return the function that an entry names; None, and a problem, when there is none."""
    role = f"{entry.label}: {key} '{reference}'"
    return find_function(reference, role, "a function is wanted", entry.at(key), problems)

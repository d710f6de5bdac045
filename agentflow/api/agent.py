"""`Agent`: a named set of actions and resources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal, Self

from agentflow.api.decorators import ACTION_MARK, ActionDeclaration, trigger_text
from agentflow.api.events import Event
from agentflow.api.failure import OnError, Retry
from agentflow.api.resources import RESOURCE_MARK, ResourceDescriptor, ResourceMark, ResourceType
from agentflow.api.tools import as_resource


class Agent:
    """Subclass it and decorate functions with `@action`, or make one and call `add_action`.

    Decorated functions of base classes are inherited; a subclass replaces an action by defining the same name, and
    removes it by setting the name to None. Actions are declared in this order: base classes first, then the class itself
    from top to bottom, then `add_action` calls.
    """

    errors: Sequence[type[Exception]] = ()
    """Error classes of steps. A recorded error is raised again as its own class if it is here, or Python's own."""

    on_new_input: Literal["queue", "reject", "interrupt"] = "queue"
    """What an input does whose key has a run already: wait behind it; go to the dead letters; or cancel it (`CancelEvent`), and all
    that wait before it."""

    def __init__(self, name: str | None = None) -> None:
        self._name = name
        self._added: list[tuple[str, ActionDeclaration, Callable[..., Any]]] = []
        self._resources: list[tuple[str, ResourceType, Any]] = []

    @property
    def name(self) -> str:
        """Name in messages, plans and metrics: as given, or the class name."""
        return getattr(self, "_name", None) or type(self).__name__

    @property
    def actions(self) -> list[tuple[str, ActionDeclaration, Callable[..., Any]]]:
        """All declarations in order: (name, declaration, function). Names may repeat here; the plan reports that."""
        found: dict[str, tuple[ActionDeclaration, Callable[..., Any]]] = {}
        for cls in reversed(type(self).__mro__):
            for name, member in vars(cls).items():
                function = member.__func__ if isinstance(member, staticmethod) else member
                declaration = getattr(function, ACTION_MARK, None)
                if declaration is not None:
                    found[name] = (declaration, function)
                elif name in found:
                    del found[name]
        declared = [(name, declaration, function) for name, (declaration, function) in found.items()]
        return declared + list(getattr(self, "_added", ()))

    @property
    def resources(self) -> list[tuple[str, ResourceType, Any]]:
        """All resources: (name, type, descriptor or instance); decorated ones first, then those of `add_resource`.

        Decorated functions are inherited and replaced as actions are; each is called to get the resource that it describes.
        """
        found: dict[str, tuple[ResourceMark, Callable[..., Any]]] = {}
        for cls in reversed(type(self).__mro__):
            for name, member in vars(cls).items():
                function = member.__func__ if isinstance(member, staticmethod) else member
                mark = getattr(function, RESOURCE_MARK, None)
                if isinstance(mark, ResourceMark):
                    found[name] = (mark, function)
                elif name in found:
                    del found[name]
        declared = [(mark.name or name, mark.type, mark.make(function)) for name, (mark, function) in found.items()]
        return [*declared, *getattr(self, "_resources", ())]

    def add_action(
        self,
        name: str,
        trigger_conditions: str | type[Event] | Sequence[str | type[Event]],
        func: Callable[..., Any],
        *,
        input: Any = None,  # noqa: A002, ANN401 (a type, or a generic alias)
        blocking: bool = False,
        parallel: bool = False,
        retry: Retry | None = None,
        on_error: OnError | str | None = None,
        timeout: timedelta | str | None = None,
        **config: Any,  # noqa: ANN401 (user values)
    ) -> Self:
        """Add an action; the options are those of `@action`, other keywords become its `ctx.action_config`."""
        if isinstance(trigger_conditions, str | type):
            trigger_conditions = [trigger_conditions]
        declaration = ActionDeclaration(
            trigger_conditions=tuple(trigger_text(condition) for condition in trigger_conditions),
            input=input,
            blocking=blocking,
            parallel=parallel,
            retry=retry,
            on_error=on_error,
            timeout=timeout,
            config=config,
        )
        if "_added" not in self.__dict__:  # a subclass need not call super().__init__()
            self._added = []
        self._added.append((name, declaration, func))
        return self

    def add_resource(self, name: str, resource_type: ResourceType, instance: ResourceDescriptor | object) -> Self:
        """Add a resource: a descriptor, or an instance that serialises itself; a function is a tool."""
        if "_resources" not in self.__dict__:
            self._resources = []
        self._resources.append((name, resource_type, as_resource(name, resource_type, instance)))
        return self

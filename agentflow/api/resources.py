"""Resources of an agent: connections, models, tools, prompts, MCP servers.

A `ResourceDescriptor` names a class and its arguments; it is data, part of the plan, and may hold references to secrets
(``${env:NAME}``, ``${file:PATH}``), which are resolved where the resource is built, on first use. Each resource is built once per
worker process and shared by all subtasks; `Resource.open` runs once, before its first use, `Resource.close` when the worker ends.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections.abc import Awaitable, Callable, Generator
from typing import Any, ClassVar, Protocol, Self, TypeVar, dataclass_transform

import msgspec

from agentflow.api.references import without_secrets
from agentflow.errors import NotConfigured

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
ResourceT = TypeVar("ResourceT", bound="Resource")

RESOURCE_MARK = "__agentflow_resource__"


class ResourceType(enum.StrEnum):
    """Kinds of resources."""

    CHAT_MODEL = "chat_model"
    CHAT_MODEL_CONNECTION = "chat_model_connection"
    TOOL = "tool"
    EMBEDDING_MODEL = "embedding_model"
    EMBEDDING_MODEL_CONNECTION = "embedding_model_connection"
    VECTOR_STORE = "vector_store"
    PROMPT = "prompt"
    MCP_SERVER = "mcp_server"
    SKILLS = "skills"


@dataclasses.dataclass(frozen=True, init=False)
class ResourceDescriptor:
    """Names a resource class and its arguments; built lazily by the runtime, never at plan time.

    Args:
        clazz: The class: itself, as ``"package.module.Class"``, or by the name that a package has registered it under, such as
            ``"openai"`` (entry point group ``agentflow.chat_model_connection``, as the kind of resource says).
        target_module: The module of the class, instead of ``clazz``; as in Flink Agents.
        target_clazz: Its name there.
        arguments: Arguments of the class; JSON values, and members of enums and structs, such as `Budget`, which stand for theirs. Texts
            may hold ``${env:NAME}`` and ``${file:PATH}``.
        kwargs: More of them.
    """

    clazz: str
    arguments: dict[str, Any]

    def __init__(
        self,
        clazz: str | type = "",
        arguments: dict[str, Any] | None = None,
        *,
        target_module: str = "",
        target_clazz: str = "",
        **kwargs: Any,  # noqa: ANN401 (arguments)
    ) -> None:
        if bool(clazz) == bool(target_clazz) or bool(target_module) != bool(target_clazz):
            raise TypeError("ResourceDescriptor: give clazz, or target_module and target_clazz")
        name = f"{clazz.__module__}.{clazz.__qualname__}" if isinstance(clazz, type) else clazz
        object.__setattr__(self, "clazz", name or f"{target_module}.{target_clazz}")
        given = {**arguments, **kwargs} if isinstance(arguments, dict) else arguments or kwargs
        object.__setattr__(self, "arguments", _plain(given))


def _plain(value: Any) -> Any:  # noqa: ANN401 (arguments)
    """Return arguments as JSON has them; what has no such form stays, and the plan says so."""
    if isinstance(value, enum.StrEnum):
        return value.value
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


class ResourceContext(Protocol):
    """What a resource sees of the others; set before `Resource.open`."""

    def get_resource(self, name: str, type: ResourceType) -> Any:  # noqa: A002, ANN401 (as in Flink Agents)
        """Return another resource of the same agent.

        Raises:
            NotConfigured: There is none.
        """
        ...

    def opened(self, resource: ResourceT) -> Awaitable[ResourceT]:
        """Return ``resource`` when it is open; the first one who asks opens it."""
        ...

    def in_thread(self, call: Callable[[], Any]) -> Awaitable[Any]:
        """Return what a function returns that may block."""
        ...


@dataclass_transform(kw_only_default=True, field_specifiers=(dataclasses.field,))
class Resource:
    """Base of resources. Annotated attributes of a subclass are the arguments of its descriptor, as in a dataclass.

    ``await`` it to have it open: the first one who does opens it, at most once per worker.
    """

    context: ClassVar[ResourceContext | None] = None
    """The agent's other resources; set on the instance when the runtime builds it."""

    name: ClassVar[str] = ""
    """Its name in the agent; set on the instance."""

    def __init_subclass__(cls, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init_subclass__(**kwargs)
        for field, hint in inspect.get_annotations(cls).items():
            default = cls.__dict__.get(field)
            if isinstance(default, (list, dict, set)) and "ClassVar" not in str(hint):
                # a default of its own for each, as pydantic has it
                setattr(cls, field, dataclasses.field(default_factory=default.copy))
        dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)

    @classmethod
    def resource_type(cls) -> ResourceType:
        """Return what kind of resource it is."""
        raise NotImplementedError(f"{cls.__qualname__}.resource_type()")

    async def open(self) -> None:
        """Acquire what it needs: clients, sessions. Called once, before its first use."""

    async def close(self) -> None:
        """Let it go. Called once, when the worker ends, if it was opened."""

    def get_resource(self, name: str, type: ResourceType) -> Any:  # noqa: A002, ANN401 (as in Flink Agents)
        """Return another resource of the agent.

        Raises:
            NotConfigured: There is none, or this resource was not built by an engine.
        """
        if self.context is None:
            raise NotConfigured(
                f"{self!r} asks for resource '{name}' ({type}), and belongs to no engine",
                fix="add it to an agent, and get it by ctx.get_resource(name, type)",
            )
        return self.context.get_resource(name, type)

    def __await__(self) -> Generator[Any, None, Self]:
        return (self._open_alone() if self.context is None else self.context.opened(self)).__await__()

    async def _open_alone(self) -> Self:
        if "_is_open" not in self.__dict__:
            self.__dict__["_is_open"] = True
            try:
                await self.open()
            except BaseException:
                del self.__dict__["_is_open"]  # the next one who asks tries again
                raise
        return self

    def model_dump_json(self) -> str:
        """Return its arguments as JSON, for a stored plan: without secrets."""
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        fields = {name: without_secrets(name, getattr(self, name)) for name in names}
        return msgspec.json.encode(fields, enc_hook=repr, order="sorted").decode()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})" if self.name else f"{type(self).__name__}()"


class ResourceMark(msgspec.Struct, frozen=True):
    """What a decorator leaves on a function of an agent: that it makes a resource, named as the function.

    Attributes:
        type: Kind of resource.
        make: Returns the resource (or its descriptor), given the function.
        name: Its name; None: that of the function.
    """

    type: ResourceType
    make: Callable[[Callable[..., Any]], Any]
    name: str | None = None


def _marks(kind: ResourceType) -> Callable[[FunctionT], FunctionT]:
    def mark(function: FunctionT) -> FunctionT:
        target = function.__func__ if isinstance(function, staticmethod) else function
        setattr(target, RESOURCE_MARK, ResourceMark(kind, lambda declared: declared()))
        return function

    mark.__name__ = mark.__qualname__ = kind.value
    mark.__doc__ = f"Mark a function of an agent, without parameters, that returns its {kind.value.replace('_', ' ')}; named as the function."
    return mark


chat_model_connection = _marks(ResourceType.CHAT_MODEL_CONNECTION)
chat_model_setup = _marks(ResourceType.CHAT_MODEL)
prompt = _marks(ResourceType.PROMPT)
mcp_server = _marks(ResourceType.MCP_SERVER)

"""Tools: what a model may call. A function becomes one by its type hints and its docstring.

    @tool(injected_args={"tenant": InjectedArg.from_short_term_memory("tenant")}, timeout="10s")
    async def find_orders(customer: str, tenant: str, limit: int = 10) -> list[dict]: ...

Injected arguments are hidden from the model; what it says about them is ignored. Each call is a durable step.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, overload

import msgspec

from agentflow.api.durations import duration_ms
from agentflow.api.failure import Retry
from agentflow.api.resources import RESOURCE_MARK, FunctionT, Resource, ResourceDescriptor, ResourceMark, ResourceType
from agentflow.api.steps import OnInDoubt, Reconcile
from agentflow.api.tool_schemas import ToolArguments
from agentflow.errors import ToolArgumentsInvalid


class ToolType(enum.StrEnum):
    """Where a tool comes from."""

    MODEL_BUILT_IN = "model_built_in"
    FUNCTION = "function"
    AGENT = "agent"
    MCP = "mcp"


class ToolMetadata(msgspec.Struct, frozen=True):
    """What a model is told of a tool.

    Attributes:
        name: Its name.
        description: What it does.
        args_schema: JSON schema of its arguments, an object.
    """

    name: str
    description: str = ""
    args_schema: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "object", "properties": {}})


class ToolParameterSource(enum.StrEnum):
    """Where an injected argument comes from."""

    CONFIG = "config"
    SENSORY_MEMORY = "sensory_memory"
    SHORT_TERM_MEMORY = "short_term_memory"
    IDEMPOTENCY_KEY = "idempotency_key"


class InjectedArg(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An argument of a tool that the model neither sees nor sets.

    Attributes:
        source: Where it comes from.
        key: Key of the configuration, or path in memory; empty: the argument's name.
    """

    source: ToolParameterSource = ToolParameterSource.SENSORY_MEMORY
    key: str = ""

    @classmethod
    def from_config(cls, key: str) -> InjectedArg:
        """Take it from ``ctx.config``."""
        return cls(ToolParameterSource.CONFIG, key)

    @classmethod
    def from_idempotency_key(cls) -> InjectedArg:
        """Take the key of the call: the same on every attempt, also after a crash; for a service that knows what it has done."""
        return cls(ToolParameterSource.IDEMPOTENCY_KEY)

    @classmethod
    def from_sensory_memory(cls, key: str) -> InjectedArg:
        """Take it from the memory of the run."""
        return cls(ToolParameterSource.SENSORY_MEMORY, key)

    @classmethod
    def from_short_term_memory(cls, key: str) -> InjectedArg:
        """Take it from the memory of the key."""
        return cls(ToolParameterSource.SHORT_TERM_MEMORY, key)


class ToolPolicy(msgspec.Struct, frozen=True):
    """How calls of a tool are made.

    Attributes:
        timeout: Longest call; None: `tool.timeout` of the configuration (5 min).
        retry: What follows a call that raises; None: the model is told.
        idempotent: Whether a call that may have happened (the process died meanwhile) can be made again. If not, and there is no
            ``reconciler``, the model is told that nobody knows.
        reconciler: What says whether such a call has happened: `reconcile(function)`; the function is asked with a `StepIntent` whose
            ``kwargs`` are what the model has given, and says `Done` with the tool's result, or a `Verdict`.
        requires_approval: A person has to approve each call: ``agentflow inbox approve|deny``.
        approval_timeout: How long that may take; then it is denied. None: no end.
        result_max: Most characters of a result that the model is given; None: `tool.result-max` (64,000).
    """

    timeout: timedelta | str | None = None
    retry: Retry | None = None
    idempotent: bool = True
    reconciler: OnInDoubt | None = None
    requires_approval: bool = False
    approval_timeout: timedelta | str | None = None
    result_max: int | None = None

    def __post_init__(self) -> None:
        """Check what would be wrong only when a model calls the tool, who alone would be told."""
        for name in ("timeout", "approval_timeout"):
            if (given := getattr(self, name)) is not None:
                try:
                    duration_ms(given)
                except ValueError as error:
                    raise ValueError(f"{name} of a tool: {error}") from None
        if not isinstance(self.retry, Retry | None):
            raise TypeError(f"retry of a tool is a Retry, not {self.retry!r}: Retry(attempts=3)")
        if not isinstance(self.reconciler, Reconcile | None) and self.reconciler not in ("retry", "fail"):
            raise TypeError(f"reconciler of a tool is reconcile(function), not {self.reconciler!r}")
        for name in ("idempotent", "requires_approval"):
            if not isinstance(given := getattr(self, name), bool):
                raise TypeError(f"{name} of a tool is True or False, not {given!r}")
        if self.result_max is not None and (type(self.result_max) is not int or self.result_max < 1):
            raise ValueError(f"result_max of a tool is a number of characters, at least 1, not {self.result_max!r}")

    @property
    def on_in_doubt(self) -> OnInDoubt:
        """What to do about a call that is in doubt."""
        return self.reconciler or ("retry" if self.idempotent else "fail")


class Tool(Resource):
    """What a model may call.

    Attributes:
        metadata: What the model is told of it.
        policy: How it is called.
    """

    metadata: ToolMetadata
    policy: ToolPolicy = ToolPolicy()

    def __post_init__(self) -> None:
        self.__dict__["name"] = self.metadata.name  # until it is a resource: connections of one's own ask for it

    @classmethod
    def resource_type(cls) -> ResourceType:
        """Return what kind of resource it is."""
        return ResourceType.TOOL

    @classmethod
    def tool_type(cls) -> ToolType:
        """Return where it comes from."""
        return ToolType.MODEL_BUILT_IN

    @classmethod
    def from_callable(
        cls,
        func: Callable[..., Any],
        *,
        injected_args: Mapping[str, InjectedArg | Mapping[str, str]] | None = None,
        name: str | None = None,
        **policy: Any,  # noqa: ANN401 (fields of ToolPolicy)
    ) -> FunctionTool:
        """Return a tool that calls ``func``; ``policy`` are fields of `ToolPolicy`.

        Raises:
            TypeError: Its parameters cannot be described.
            ValueError: An injected argument is none of them.
        """
        injected = {arg: _injected(source) for arg, source in (injected_args or {}).items()}
        arguments = ToolArguments(func, frozenset(injected))
        metadata = ToolMetadata(name or func.__name__, arguments.description, arguments.schema)
        made = FunctionTool(metadata=metadata, policy=ToolPolicy(**policy), function=func, injected_args=injected)
        made.__dict__["arguments"] = arguments  # which it would read again
        return made

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Tool:
        """Return the tool that a function is: as ``@tool`` says, or by its hints and docstring alone."""
        mark = getattr(function, RESOURCE_MARK, None)
        made: Tool = mark.make(function) if isinstance(mark, ResourceMark) else cls.from_callable(function)
        return made

    @property
    def resources(self) -> Sequence[tuple[str, ResourceType, Any]]:
        """Resources that an agent needs beside it."""
        return ()

    def call(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (a tool's own)
        """Call the tool; its result, or an awaitable of it. A plain function is called in a thread."""
        raise NotImplementedError(f"{type(self).__qualname__}.call()")

    def bind(
        self,
        arguments: dict[str, Any],
        injected: dict[str, Any],
        *,
        meta: dict[str, Any] | None = None,  # noqa: ARG002 (for subclasses)
    ) -> Callable[[], Any]:
        """Return the call with what a model says, and what it cannot say.

        Args:
            arguments: What the model says.
            injected: What it cannot say.
            meta: What goes along with the call where its protocol has a place for it (MCP).

        Raises:
            ToolArgumentsInvalid: What the model says does not fit.
        """
        if not isinstance(arguments, dict):  # the model's own text, where it is no JSON object
            raise ToolArgumentsInvalid(self.metadata.name, "they are no JSON object")
        return functools.partial(self.call, **{**arguments, **injected})


class FunctionTool(Tool):
    """A tool that is a function; made by `Tool.from_callable` and ``@tool``.

    Attributes:
        function: The function, plain (it runs in a thread) or `async def`.
        injected_args: Arguments that the model neither sees nor sets.
    """

    function: Callable[..., Any]
    injected_args: dict[str, InjectedArg] = {}

    @functools.cached_property
    def arguments(self) -> ToolArguments:
        """What the model gives."""
        return ToolArguments(self.function, frozenset(self.injected_args))

    @classmethod
    def tool_type(cls) -> ToolType:
        """Return where it comes from."""
        return ToolType.FUNCTION

    def call(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (a tool's own)
        """Call the function."""
        return self.function(*args, **kwargs)

    def bind(
        self,
        arguments: dict[str, Any],
        injected: dict[str, Any],
        *,
        meta: dict[str, Any] | None = None,  # noqa: ARG002 (functions have no place for it)
    ) -> Callable[[], Any]:
        """Return the call of the function with what a model says, as the parameters' types, and what it cannot say.

        Raises:
            ToolArgumentsInvalid: What the model says does not fit.
        """
        return functools.partial(self.function, **{**self.arguments.read(self.metadata.name, arguments), **injected})

    def model_dump_json(self) -> str:
        """Return what the model is told of it, for a stored plan; the function is the agent's."""
        return msgspec.json.encode(self.metadata, order="sorted").decode()


def as_resource(name: str, kind: ResourceType, instance: object) -> object:
    """Return what is added as a resource: of a function that is to be a tool, the tool."""
    is_function = kind is ResourceType.TOOL and not isinstance(instance, (Resource, ResourceDescriptor))
    return Tool.from_callable(instance, name=name) if is_function and callable(instance) else instance


def _injected(source: InjectedArg | Mapping[str, str]) -> InjectedArg:
    return source if isinstance(source, InjectedArg) else msgspec.convert(dict(source), InjectedArg)


@overload
def tool(function: FunctionT, /) -> FunctionT: ...
@overload
def tool(
    *,
    injected_args: Mapping[str, InjectedArg | Mapping[str, str]] | None = None,
    name: str | None = None,
    timeout: timedelta | str | None = None,
    retry: Retry | None = None,
    idempotent: bool = True,
    reconciler: OnInDoubt | None = None,
    requires_approval: bool = False,
    approval_timeout: timedelta | str | None = None,
    result_max: int | None = None,
) -> Callable[[FunctionT], FunctionT]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    injected_args: Mapping[str, InjectedArg | Mapping[str, str]] | None = None,
    name: str | None = None,
    **policy: Any,
) -> Any:
    """Mark a function of an agent as a tool, named as the function; bare, or with the options of `ToolPolicy`."""

    def make(declared: Callable[..., Any]) -> FunctionTool:
        return Tool.from_callable(declared, injected_args=injected_args, name=name, **policy)

    def mark(declared: FunctionT) -> FunctionT:
        target = declared.__func__ if isinstance(declared, staticmethod) else declared
        setattr(target, RESOURCE_MARK, ResourceMark(ResourceType.TOOL, make, name))
        return declared

    ToolPolicy(**policy)  # what is wrong with it is told here, and not only when its agent is compiled
    return mark if function is None else mark(function)

"""Which tools a model may call: those that its setup names, or has; of an agent, or of an MCP server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from agentflow.actions.server_offers import ServerOffers
from agentflow.api.chat_models import BaseChatModelSetup
from agentflow.api.resources import RESOURCE_MARK, ResourceMark, ResourceType
from agentflow.api.runner_context import RunnerContext
from agentflow.api.tools import FunctionTool, Tool, ToolPolicy
from agentflow.errors import ConfigError, NotConfigured

_RENAMED: Final = (
    "expected: each has a name of its own\nhelp: Tool.from_callable(function, name='…'), or leave one of them out"
)


async def tools_of(ctx: RunnerContext, setup: BaseChatModelSetup, more: Sequence[Any] = ()) -> list[Tool]:
    """Return the tools that a model may call, each name once.

    A name is that of a tool of the agent, of a tool that one of its MCP servers offers now, or of such a server: all of its tools. Of two
    tools with one name it is the first: a server cannot put one of its own in the place of one that is there. Servers are asked in the
    order of their declaration, as far as that is needed.

    Args:
        ctx: Context of the task.
        setup: The chat model.
        more: Tools, functions and names that a request adds.

    Raises:
        NotConfigured: There is no tool of some name.
        ToolServerUnavailable, ToolFailed: A server that is named does not answer, or one that has to be the one with a tool.
    """
    found: dict[str, Tool] = {}
    offers = ServerOffers(ctx.resources)
    for wanted in (*setup.tools, *more):
        for tool in await _meant(ctx, offers, wanted):
            found.setdefault(tool.metadata.name, tool)
    return list(found.values())


def check_tools(ctx: RunnerContext, setup: BaseChatModelSetup, more: Sequence[Any]) -> None:
    """Refuse two tools of the agent's own code with one name: one of them would never be called.

    No server is asked: what one offers never takes the place of a tool that is there.

    Raises:
        ConfigError: There are two.
    """
    given: dict[str, Any] = {}
    for wanted in (*setup.tools, *more):
        one = wanted
        if isinstance(wanted, str):
            if wanted not in ctx.resources.names(ResourceType.TOOL):
                continue
            one = ctx.resources.get_resource(wanted, ResourceType.TOOL)
        name = _name_of(one)
        other = given.setdefault(name, one)
        if other is not one and not _is_same(_tool_of(other), _tool_of(one)):
            raise ConfigError(
                [
                    f"chat model '{setup.name}' would have two tools called '{name}': {_shown(other)} and {_shown(one)}\n{_RENAMED}"
                ]
            )


def _tool_of(wanted: Any) -> Tool:  # noqa: ANN401 (a function or a tool)
    return wanted if isinstance(wanted, Tool) else Tool.of(wanted)


def _name_of(wanted: Any) -> str:  # noqa: ANN401 (as above)
    """Return the name of a tool; a function is not read for it, as it is on each call of its model."""
    if isinstance(wanted, Tool):
        return wanted.metadata.name
    mark = getattr(wanted, RESOURCE_MARK, None)
    own = mark.name if isinstance(mark, ResourceMark) else None
    return str(own or getattr(wanted, "__name__", wanted))


def _is_same(one: Tool, other: Tool) -> bool:
    """Whether it makes no difference which of two tools is called."""
    if not isinstance(one, FunctionTool) or not isinstance(other, FunctionTool):
        return one is other
    return (one.function, one.policy, one.injected_args) == (other.function, other.policy, other.injected_args)


def _shown(wanted: Any) -> str:  # noqa: ANN401 (as above)
    function = wanted.function if isinstance(wanted, FunctionTool) else wanted
    where = f"{function.__module__}.{function.__qualname__}" if hasattr(function, "__qualname__") else repr(function)
    return f"Tool({where})" if isinstance(wanted, FunctionTool) else where


def declared_tool(ctx: RunnerContext, setup: BaseChatModelSetup, more: Sequence[Any], name: str) -> Tool | None:
    """Return the tool of the agent that a model wants to call; None: it may not, or it is none of the agent's own."""
    for wanted in (*setup.tools, *more):
        if isinstance(wanted, str):
            is_declared = wanted == name and wanted in ctx.resources.names(ResourceType.TOOL)
            tool = ctx.resources.get_resource(wanted, ResourceType.TOOL) if is_declared else None
        else:
            tool = _tool_of(wanted)
        if tool is not None and tool.metadata.name == name:
            found: Tool = tool
            return found
    return None


def remote_policy(ctx: RunnerContext, setup: BaseChatModelSetup, more: Sequence[Any], name: str) -> ToolPolicy:
    """Return how a tool that may be that of an MCP server is called, as the server's configuration says.

    No server is asked: what the policy decides has to be the same in a replay.
    """
    wanted = [one for one in (*setup.tools, *more) if isinstance(one, str)]
    for server in ctx.resources.names(ResourceType.MCP_SERVER):
        if name in wanted or server in wanted:
            policy_of = getattr(ctx.resources.get_resource(server, ResourceType.MCP_SERVER), "policy_of", None)
            policy: ToolPolicy | None = None if policy_of is None else policy_of(name)
            if policy is not None:
                return policy
    return ToolPolicy()


async def find_tool(ctx: RunnerContext, setup: BaseChatModelSetup, more: Sequence[Any], name: str) -> Tool | None:
    """Return the tool that a model wants to call; None: it may not, or there is none.

    Only those servers are asked that may have it: what becomes of others does not harm the call.
    """
    offers = ServerOffers(ctx.resources)
    served = ctx.resources.names(ResourceType.TOOL), ctx.resources.names(ResourceType.MCP_SERVER)
    for wanted in (*setup.tools, *more):
        if isinstance(wanted, str) and wanted != name and not any(wanted in names for names in served):
            continue  # a tool of a server, of another name
        for tool in await _meant(ctx, offers, wanted):
            if tool.metadata.name == name:
                return tool
    return None


async def _meant(ctx: RunnerContext, offers: ServerOffers, wanted: Any) -> Sequence[Tool]:  # noqa: ANN401 (a name, a function, a tool)
    """Return what is meant by a tool of a chat model, or of a request."""
    if isinstance(wanted, str):
        return await _named(ctx, offers, wanted)
    return [_tool_of(wanted)]


async def _named(ctx: RunnerContext, offers: ServerOffers, name: str) -> Sequence[Tool]:
    resources = ctx.resources
    if name in resources.names(ResourceType.TOOL):
        return [resources.get_resource(name, ResourceType.TOOL)]
    servers = resources.names(ResourceType.MCP_SERVER)
    if name in servers:
        tools: Sequence[Tool] = await (await resources.get_resource(name, ResourceType.MCP_SERVER)).list_tools()
        return tools
    tool = await offers.tool(name)
    if tool is None:
        raise NotConfigured(
            f"there is no tool '{name}'",
            expected=f"one of: {', '.join(resources.names(ResourceType.TOOL)) or 'none is declared'}"
            + (f", or a tool of {', '.join(servers)}" if servers else ""),
            fix="declare it with @tool, add_resource(name, ResourceType.TOOL, function), or an MCP server",
        )
    return [tool]

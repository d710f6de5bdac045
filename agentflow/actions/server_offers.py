"""What the MCP servers of an agent offer: a name means the first server, in the order of declaration, that has it.

That must not depend on which of them answers at the moment: one that does not, and had it before or is said to have it by its
configuration, is the one that is meant. Any other is passed over, and is the cause where nobody has the name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from agentflow.api.chat_messages import ChatMessage
from agentflow.api.resources import ResourceType
from agentflow.api.tools import Tool
from agentflow.errors import ActionError, NotConfigured, ToolFailed, ToolServerUnavailable

_NO_ANSWER = (ToolServerUnavailable, ToolFailed, NotConfigured)


class Resources(Protocol):
    """What an agent has."""

    def get_resource(self, name: str, type: ResourceType) -> Any:  # noqa: A002, ANN401 (as in Flink Agents)
        """Return a resource."""
        ...

    def names(self, type: ResourceType) -> Sequence[str]:  # noqa: A002 (as above)
        """Return the names of the resources of a kind, in the order of their declaration."""
        ...


class ServerOffers:
    """Asks the MCP servers of an agent; those that do not answer are asked once.

    Args:
        resources: What the agent has.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._failures: dict[tuple[str, str], ActionError | NotConfigured] = {}

    async def tool(self, name: str) -> Tool | None:
        """Return the tool of a name; None: no server has it.

        Raises:
            ToolServerUnavailable, ToolFailed, NotConfigured: The server that has it does not answer; or one that may have it does not, and
                no other one has it.
        """
        found = await self._find("tools", name)
        return None if found is None else found[2]

    async def prompt(self, name: str, arguments: Mapping[str, Any]) -> tuple[list[ChatMessage], str] | None:
        """Return the messages of the prompt of a name, and where it is from; None: no server has it.

        Raises:
            ToolServerUnavailable, ToolFailed, NotConfigured: As `tool`.
            MissingPromptVariable: It cannot do without an argument that is not given.
        """
        found = await self._find("prompts", name)
        if found is None:
            return None
        place, server, _ = found
        return await server.get_prompt(name, **arguments), f"{place}/{name}"

    async def _find(self, kind: str, name: str) -> tuple[str, Any, Any] | None:
        """Return the server that has a name, by its own name and itself, and what that is there."""
        failure: ActionError | NotConfigured | None = None
        for place in self._resources.names(ResourceType.MCP_SERVER):
            server = self._resources.get_resource(place, ResourceType.MCP_SERVER)
            offers = getattr(server, "offers", None)
            if offers is not None and offers(kind, name) is False:
                continue
            try:
                listed = await self._listed(kind, place, server)
            except _NO_ANSWER as error:
                if offers is not None and offers(kind, name):
                    raise
                failure = failure or error
                continue
            for one in listed:
                if name == (one.metadata.name if kind == "tools" else one.name):
                    return place, server, one
        if isinstance(failure, ToolServerUnavailable):
            why = f"{failure.why}; no other server has '{name}' among its {kind}"
            raise ToolServerUnavailable(failure.server, why) from None
        if failure is not None:
            raise failure
        return None

    async def _listed(self, kind: str, place: str, server: Any) -> Sequence[Any]:  # noqa: ANN401 (a class of the user's own too)
        if (known := self._failures.get((kind, place))) is not None:
            raise known
        try:
            await server
            listed: Sequence[Any] = await (server.list_tools() if kind == "tools" else server.list_prompts())
        except _NO_ANSWER as error:
            self._failures[kind, place] = error
            raise
        return listed

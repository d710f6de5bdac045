"""Names by which resources of an agent mean one another: each has to lead to one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agentflow.api.resources import ResourceDescriptor, ResourceType
from agentflow.plan.planned_resources import PlannedResource
from agentflow.plan.problems import ProblemList, nearest

_LINKS = (
    ("connection", ResourceType.CHAT_MODEL_CONNECTION, False),
    ("fallback_models", ResourceType.CHAT_MODEL, False),
    ("prompt", ResourceType.PROMPT, True),
    ("tools", ResourceType.TOOL, True),
)
"""Argument of a chat model, what it names, whether an MCP server may have it: what servers offer is known when they are asked."""


def check_links(resources: Sequence[PlannedResource], problems: ProblemList) -> None:
    """Check the names that descriptors of chat models have as arguments; what leads nowhere becomes a problem."""
    names: dict[ResourceType, list[str]] = {}
    for resource in resources:
        names.setdefault(resource.type, []).append(resource.name)
    servers = names.get(ResourceType.MCP_SERVER, [])
    for resource in resources:
        if resource.type is not ResourceType.CHAT_MODEL or not isinstance(resource.instance, ResourceDescriptor):
            continue
        for argument, kind, is_offered in _LINKS:
            known = names.get(kind, [])
            for name in _named(resource.instance.arguments.get(argument)):
                if name in known or (is_offered and servers):
                    continue
                near = nearest(name, known)
                problems.add(
                    f"its {argument} names '{name}', and the agent has no {kind} of this name",
                    place=f"resource '{resource.name}'",
                    expected=f"one of: {', '.join(known)}" if known else f"a resource of type {kind}",
                    fix=f"did you mean '{near}'?" if near else "add it to the agent, or to its environment",
                )


def _named(value: object) -> Iterator[str]:
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, list):
        yield from (one for one in value if isinstance(one, str))

"""Resources of a worker process: built once, opened on first use, shared by all subtasks, closed at the end.

planned ── get_resource ──► built ── await, first ──► opening ──► open ── close ──► closed
                                                         └─ failed: the next one who asks tries again
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from agentflow.actions.traffic import Traffic
from agentflow.api.encoding import text_of
from agentflow.api.resources import Resource, ResourceDescriptor, ResourceType
from agentflow.errors import NotConfigured
from agentflow.plan.plan import AgentPlan
from agentflow.plan.planned_resources import PlannedResource
from agentflow.plan.problems import nearest
from agentflow.runtime.resource_classes import build
from agentflow.runtime.secrets import Secrets, StreamScrubber

_CLOSE_S = 10.0  # for one resource: it holds the end of the job up

ResourceT = TypeVar("ResourceT", bound=Resource)


class ResourceHealth(msgspec.Struct, frozen=True):
    """How a resource is doing.

    Attributes:
        name: Its name.
        type: Its kind.
        state: ``built``, ``opening``, ``open``, ``failed`` or ``closed``.
        error: Why it could not be opened; empty: nothing is wrong.
    """

    name: str
    type: str
    state: str
    error: str = ""


class _Entry:
    """One resource that was built, and how its opening goes."""

    def __init__(self, resource: Any) -> None:  # noqa: ANN401 (an instance may be anything)
        self.resource = resource
        self.opening: asyncio.Task[None] | None = None
        self.is_closed = False

    @property
    def state(self) -> str:
        """Where it is in its life."""
        if self.is_closed:
            return "closed"
        if self.opening is None:
            return "built"
        if not self.opening.done():
            return "opening"
        return "failed" if self.opening.cancelled() or self.opening.exception() is not None else "open"


class Resources:
    """All resources of a worker process.

    Attributes:
        secrets: What references have led to.
        traffic: Rates and failures of calls of models, for the whole process.
    """

    def __init__(self) -> None:
        self.secrets = Secrets()
        self.traffic = Traffic()
        self._entries: dict[tuple[str, ResourceType, int], _Entry] = {}
        self._by_resource: dict[int, _Entry] = {}
        self._keys: dict[int, Any] = {}  # what was declared, kept so that its id stays its own

    def of(self, plan: AgentPlan) -> AgentResources:
        """Return the resources that an agent sees."""
        return AgentResources(self, plan)

    def built(self, planned: PlannedResource, context: AgentResources) -> Any:  # noqa: ANN401 (a resource)
        """Return a resource; it is built when it is asked for first.

        Raises:
            ConfigError: It cannot be built.
        """
        entry = self._entries.get(planned.key)
        if entry is None:
            made = planned.instance
            if isinstance(made, ResourceDescriptor):
                made = build(planned.name, planned.type, made, self.secrets, context.config)
            entry = self._by_resource.get(id(made)) or _Entry(made)  # an instance may have several names
            self._entries[planned.key] = entry
            self._keys[id(planned.instance)] = planned.instance
            if isinstance(made, Resource) and id(made) not in self._by_resource:
                made.__dict__["name"], made.__dict__["context"] = planned.name, context
                self._by_resource[id(made)] = entry
                self.secrets.remember(made.__dict__)
        return entry.resource

    async def opened(self, resource: ResourceT) -> ResourceT:
        """Return a resource when it is open; the first one who asks opens it."""
        entry = self._by_resource.get(id(resource))
        if entry is None:
            entry = self._by_resource[id(resource)] = _Entry(resource)
            self._keys[id(resource)] = resource
        if entry.state in ("built", "failed"):
            # Not in the context of the step that happens to ask first: what it begins, such as a session's task, lives on.
            entry.opening = asyncio.create_task(
                resource.open(), name=f"open {resource!r}", context=contextvars.Context()
            )
        elif entry.is_closed:
            raise NotConfigured(f"{resource!r} is closed: the worker has ended")
        assert entry.opening is not None, "it is opening, or open"
        if not entry.opening.done():
            await asyncio.shield(entry.opening)
        entry.opening.result()
        return resource

    def health(self) -> list[ResourceHealth]:
        """Return how the resources are doing that were asked for; from any thread."""
        found = []
        for (name, kind, _), entry in list(self._entries.items()):
            error = ""
            opening = entry.opening
            if opening is not None and opening.done() and not opening.cancelled() and (failure := opening.exception()):
                error = self.secrets.scrub(text_of(failure))
            found.append(ResourceHealth(name, str(kind), entry.state, error))
        return found

    async def close(self) -> None:
        """Close what was opened, the last one first; an error of one does not keep the others open."""
        for entry in reversed(list(self._by_resource.values())):
            opening, is_open = entry.opening, entry.state == "open"
            entry.is_closed = True
            if opening is not None and not opening.done():
                opening.cancel()
                await asyncio.wait([opening])
            if is_open:
                with contextlib.suppress(Exception):  # whatever goes wrong with one, the others are closed
                    await asyncio.wait_for(entry.resource.close(), _CLOSE_S)
        self.traffic.close()


class AgentResources:
    """The resources that one agent sees; see `agentflow.api.resources.ResourceContext`.

    Attributes:
        config: The job's options for its agents.
        listens: Types of events that actions of the agent name.
        traffic: Rates and failures of calls of models, for the whole process.
    """

    def __init__(self, resources: Resources, plan: AgentPlan) -> None:
        self._resources = resources
        self._agent = plan.name
        self._planned = {(planned.type, planned.name): planned for planned in plan.resources}
        self._names: dict[ResourceType, tuple[str, ...]] = {}
        for planned in plan.resources:
            self._names[planned.type] = (*self._names.get(planned.type, ()), planned.name)
        self.config = plan.config.to_dict()
        resources.secrets.remember(self.config)
        self.listens = frozenset(plan.actions_by_event)
        self.traffic = resources.traffic

    def get_resource(self, name: str, type: ResourceType) -> Any:  # noqa: A002, ANN401 (as in Flink Agents)
        """Return a resource of the agent.

        Raises:
            NotConfigured: There is none.
            ConfigError: It cannot be built.
        """
        planned = self._planned.get((type, name))
        if planned is None:
            known = self.names(type)
            near = nearest(name, known)
            raise NotConfigured(
                f"agent '{self._agent}' has no {type} '{name}'",
                expected=f"one of: {', '.join(known)}" if known else f"a resource of type {type}",
                fix=f"did you mean '{near}'?" if near else "add it with add_resource, a decorator, or in YAML",
            )
        return self._resources.built(planned, self)

    def names(self, type: ResourceType) -> Sequence[str]:  # noqa: A002 (as above)
        """Return the names of the agent's resources of a kind, in the order of their declaration."""
        return self._names.get(type, ())

    async def opened(self, resource: ResourceT) -> ResourceT:
        """Return a resource when it is open; the first one who asks opens it."""
        return await self._resources.opened(resource)

    async def in_thread(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401 (what it returns)
        """Return what a function returns that may block."""
        return await asyncio.to_thread(call)

    @property
    def has_secrets(self) -> bool:
        """Whether any resource of the process was built with secrets, or the configuration of an agent has some."""
        return self._resources.secrets.has_any

    def scrub(self, text: str) -> str:
        """Return a text without the secrets that resources were built with, or the configuration has."""
        return self._resources.secrets.scrub(text)

    def stream_scrubber(self) -> StreamScrubber:
        """Return what takes the secrets out of a text that comes in pieces."""
        return StreamScrubber(self._resources.secrets)

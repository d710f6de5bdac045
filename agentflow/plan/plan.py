"""`AgentPlan`: an agent, compiled. Immutable but for the counters of its conditions; shared by all operators of a process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentflow.api.agent import Agent
from agentflow.api.options import Configuration
from agentflow.errors import ConditionError
from agentflow.plan.action import Action, ActionKind, ConditionFailure
from agentflow.plan.compilation import CompiledAgent, Declared, compile_agent
from agentflow.plan.conditions import Condition
from agentflow.plan.planned_resources import PlannedResource
from agentflow.plan.reach import check_reach

__all__ = ["Action", "ActionKind", "AgentPlan", "ConditionFailure"]


class AgentPlan:
    """What the engine runs.

    Attributes:
        name: The agent's name.
        actions: In declaration order.
        actions_by_event: Event type → the actions that name it, in declaration order. All matching there is when
            `has_conditions` is False.
        action_by_name: The same actions by name.
        resources: In the order of `add_resource`.
        config: Options of the job for this agent.
        errors: Classes that recorded errors of steps come back as, beside Python's own.
        on_new_input: What an input does whose key has a run: ``queue``, ``reject`` or ``interrupt``.
        has_conditions: Some action has a CEL condition, so `match` must be asked.
    """

    def __init__(self, parts: CompiledAgent) -> None:
        self.name: str = parts.name
        self.actions: tuple[Action, ...] = parts.actions
        self.resources: tuple[PlannedResource, ...] = parts.resources
        self.config: Configuration = parts.config
        self.errors: tuple[type[Exception], ...] = parts.errors
        self.on_new_input: str = parts.on_new_input
        self.action_by_name: dict[str, Action] = {action.name: action for action in self.actions}
        by_event: dict[str, list[Action]] = {}
        for action in self.actions:
            for event_type in action.trigger_types:
                by_event.setdefault(event_type, []).append(action)
        self.actions_by_event: dict[str, tuple[Action, ...]] = {name: tuple(found) for name, found in by_event.items()}
        self._conditional: tuple[tuple[Action, tuple[Condition, ...]], ...] = tuple(
            (action, parts.conditions[action.name]) for action in self.actions if action.conditions
        )
        self.has_conditions: bool = bool(self._conditional)

    @classmethod
    def from_agent(
        cls,
        agent: Agent,
        config: Configuration | Mapping[str, Any] | None = None,
        resources: Sequence[Declared] = (),
    ) -> AgentPlan:
        """Compile an agent. No code of the agent runs but the functions that describe its resources.

        Args:
            agent: The agent.
            config: Options of the job for its agents.
            resources: Of the environment, as (name, type, descriptor or instance), for what the agent has not itself.

        Raises:
            PlanError: With all problems.
        """
        return cls(compile_agent(agent, config, resources))

    def check_reach(self) -> None:
        """Check that an input triggers something, as a job does when it is made.

        Raises:
            PlanError: It triggers nothing.
        """
        check_reach(self.name, self.actions, dict(self._conditional))

    def match(self, event_type: str, attributes: Callable[[], dict[str, Any]]) -> list[Action | ConditionFailure]:
        """Return what an event triggers: actions that name its type, then actions by condition; each at most once.

        Several conditions of an action are alternatives: one that is true matches, also when another one failed.

        Args:
            event_type: The event's type.
            attributes: Decodes its attributes; called at most once, and only when a condition reads some.

        Ordering:
            Declaration order within each of the two groups.
        """
        exact = self.actions_by_event.get(event_type, ())
        matches: list[Action | ConditionFailure] = list(exact)
        given: dict[str, Any] | None = None
        for action, conditions in self._conditional:
            if action in exact:
                continue
            failure: ConditionFailure | None = None
            for condition in conditions:
                if condition.only_type is not None and condition.only_type != event_type:
                    continue
                if given is None and condition.has_reads:
                    given = attributes()
                try:
                    is_true = condition.is_true(event_type, given or {})
                except ConditionError as error:
                    failure = failure or ConditionFailure(action, error.what)
                    continue
                if is_true:
                    matches.append(action)
                    failure = None
                    break
            if failure is not None:
                matches.append(failure)
        return matches

    @property
    def missing_count(self) -> int:
        """How many evaluations of conditions found an attribute missing, since the plan was made."""
        return sum(condition.missing_count for _, conditions in self._conditional for condition in conditions)

    @functools.cached_property
    def plan_hash(self) -> str:
        """Digest of names, triggers and policies: equal hashes route and retry events in the same way."""
        from agentflow.plan.stored_plan import hash_plan

        return hash_plan(self)

    def to_json(self) -> bytes:
        """Return the plan as versioned JSON; equal plans give equal bytes.

        Raises:
            PlanError: An action is a lambda, a nested function, a partial or an object, which has no name to be found by.
        """
        from agentflow.plan.stored_plan import write_plan

        return write_plan(self)

    @classmethod
    def from_json(cls, data: bytes, agent: Agent | None = None, resources: Sequence[Declared] = ()) -> AgentPlan:
        """Read a stored plan. Nothing that it names is imported.

        Args:
            data: From `to_json`.
            agent: Gives the functions and input types. Without it the plan can be shown and compared; its actions raise
                PlanError when they are called.
            resources: Of the agent's environment, as in `from_agent`.

        Raises:
            PlanError: Not a plan, of a newer version, or ``agent`` does not have its actions or resources.
        """
        from agentflow.plan.stored_plan import read_plan

        return cls(read_plan(data, agent, resources))

    def to_text(self) -> str:
        """Return a listing for people: actions, triggers, policies, resources, configuration."""
        from agentflow.plan.rendering import render_text

        return render_text(self)

    def to_mermaid(self) -> str:
        """Return the event graph as Mermaid text; what an action sends is found in its source, where there is one."""
        from agentflow.plan.rendering import render_mermaid

        return render_mermaid(self)

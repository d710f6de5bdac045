"""Whether an input triggers anything: every event of a run follows from it, so else nothing ever would run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentflow.api.events import EventType
from agentflow.plan.action import Action
from agentflow.plan.condition_text import EVENT_TYPES
from agentflow.plan.conditions import Condition
from agentflow.plan.problems import ProblemList, nearest

_FIRST = EventType.InputEvent
_OURS = "agentflow.actions."


def check_reach(agent: str, actions: Sequence[Action], conditions: Mapping[Action, Sequence[Condition]]) -> None:
    """Refuse an agent whose inputs trigger nothing.

    Args:
        agent: Its name.
        actions: Its actions, the built-in ones included.
        conditions: Those of actions that have any.

    Raises:
        PlanError: No action names the input event, or has a condition that it can meet.
    """
    if any(_FIRST in action.trigger_types for action in actions) or any(
        condition.can_match(_FIRST) for several in conditions.values() for condition in several
    ):
        return
    from agentflow.plan.agent_specs import EVENT_ALIASES  # only for an agent with a problem

    own = [action for action in actions if not action.function.__module__.startswith(_OURS)]
    written = [f"{action.name} ({', '.join((*action.trigger_types, *action.conditions))})" for action in own]
    names = [name for action in own for name in action.trigger_types if name[0] != "_"]
    near = next((near for name in names if (near := nearest(name, EVENT_ALIASES))), None)
    constants = {name: constant for constant, name in EVENT_TYPES.items()}
    problems = ProblemList(agent)
    problems.add(
        f"no action listens to the input event: every input would be dropped; actions: {', '.join(written) or 'none of its own'}",
        expected="one action at least with the trigger EventType.InputEvent ('input' in YAML), or a condition that it can meet",
        fix=f"did you mean '{near}' (EventType.{constants[EVENT_ALIASES[near]]})?" if near else "",
    )
    problems.raise_all()

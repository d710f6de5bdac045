"""Agent → actions: checks every declaration and reports all problems at once. No user code runs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from agentflow.api.agent import Agent
from agentflow.api.decorators import ActionDeclaration
from agentflow.api.durations import duration_ms
from agentflow.api.events import EventType
from agentflow.api.failure import DEFAULT_RETRY, OnError, Retry
from agentflow.api.options import Configuration
from agentflow.api.resources import ResourceType
from agentflow.api.tools import Tool, as_resource
from agentflow.plan.action import Action, ActionKind
from agentflow.plan.conditions import Condition
from agentflow.plan.functions import check_function, kind_of
from agentflow.plan.payloads import input_type_problem, json_problem, reference
from agentflow.plan.planned_resources import PlannedResource, plan_resources
from agentflow.plan.problems import ProblemList, nearest
from agentflow.plan.resource_links import check_links
from agentflow.plan.triggers import Triggers

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")  # a name is part of task paths: no '/', no ':', no space


_ON_NEW_INPUT = ("queue", "reject", "interrupt")


class CompiledAgent(msgspec.Struct, frozen=True):
    """What a plan is made of."""

    name: str
    actions: tuple[Action, ...]
    conditions: dict[str, tuple[Condition, ...]]
    resources: tuple[PlannedResource, ...]
    config: Configuration
    errors: tuple[type[Exception], ...] = ()
    on_new_input: str = "queue"


Declared = tuple[str, ResourceType, Any]
"""A resource as it is declared: name, type, descriptor or instance."""

_OF_MODELS = (ResourceType.CHAT_MODEL, ResourceType.TOOL, ResourceType.MCP_SERVER)


def compile_agent(
    agent: Agent, config: Configuration | Mapping[str, Any] | None, shared: Sequence[Declared] = ()
) -> CompiledAgent:
    """Check and compile ``agent``.

    Args:
        agent: The agent.
        config: Options of the job for its agents.
        shared: Resources of the environment; the agent's own ones of the same type and name take their place.

    Raises:
        PlanError: With all problems.
    """
    if not isinstance(agent, Agent):
        problems = ProblemList(getattr(agent, "__name__", repr(agent)))
        if isinstance(agent, type) and issubclass(agent, Agent):
            problems.add("this is the class", expected="an instance", fix=f"{agent.__name__}()")
        else:
            problems.add(f"{agent!r} is of type {type(agent).__name__}", expected="an instance of Agent")
        problems.raise_all()
    name = agent.name
    problems = ProblemList(name)
    if not isinstance(name, str) or not name.strip():
        problems.add(f"the agent's name is {name!r}", expected="a text that is not blank", fix="Agent(name='reviews')")
    if agent.on_new_input not in _ON_NEW_INPUT:
        problems.add(f"on_new_input={agent.on_new_input!r}", expected=f"one of: {', '.join(_ON_NEW_INPUT)}")
    resources = _resources(agent, shared, problems)
    declared = agent.actions
    has_models = any(resource.type in _OF_MODELS for resource in resources) or _awaits_models(declared)
    if has_models:
        declared += _built_in({name for name, _, _ in declared})
    if not declared:
        problems.add(
            "it has no actions", expected="at least one", fix="decorate a function with @action, or call add_action"
        )
    check_names([action for action, _, _ in declared], problems)
    actions, conditions = [], {}
    for index, (action_name, declaration, function) in enumerate(declared):
        action, compiled = compile_action(action_name, index, declaration, function, problems)
        if action is not None:
            actions.append(action)
            conditions[action.name] = compiled
    configuration = _configuration(config, problems)
    if has_models:
        _check_keys(configuration, problems)
    problems.raise_all()
    return CompiledAgent(
        name, tuple(actions), conditions, resources, configuration, tuple(agent.errors), agent.on_new_input
    )


def _resources(agent: Agent, shared: Sequence[Declared], problems: ProblemList) -> tuple[PlannedResource, ...]:
    try:
        own = agent.resources
    except (TypeError, ValueError) as error:  # a function that cannot be a tool, or that makes no resource
        problems.add(
            str(error),
            expected="tools with named parameters whose types a JSON schema can tell; other resources: functions without parameters",
        )
        return ()
    own += [needed for _, _, made in own if isinstance(made, Tool) for needed in made.resources]
    names = {(kind, name) for name, kind, _ in own}
    others = [(name, kind, as_resource(name, kind, made)) for name, kind, made in shared if (kind, name) not in names]
    planned = plan_resources(others + own, problems)
    check_links(planned, problems)
    return planned


def _awaits_models(declared: Sequence[tuple[str, ActionDeclaration, Callable[..., Any]]]) -> bool:
    """Whether actions await answers that none of them gives: requests of an agent without models are to fail, not to get lost."""
    listens = [condition for _, declaration, _ in declared for condition in declaration.trigger_conditions]
    return EventType.ChatResponseEvent in listens and EventType.ChatRequestEvent not in listens


def _built_in(names: set[str]) -> list[tuple[str, ActionDeclaration, Callable[..., Any]]]:
    """Return the actions that serve models and tools, but those in whose place the agent has its own."""
    from agentflow.actions.built_in import BUILT_IN_ACTIONS  # agents without models do not pay for it

    return [action for action in BUILT_IN_ACTIONS if action[0] not in names]


def _configuration(config: Configuration | Mapping[str, Any] | None, problems: ProblemList) -> Configuration:
    configuration = config if isinstance(config, Configuration) else Configuration(config)
    for key, value in configuration.to_dict().items():
        wrong = json_problem(value)
        if wrong is not None:
            problems.add(f"config key '{key}' is not JSON: {wrong}", expected="None, bool, int, float, str, list, dict")
    return configuration


def _check_keys(configuration: Configuration, problems: ProblemList) -> None:
    """Report keys of chat models and tools that are none: a limit that is misspelt would not hold."""
    from agentflow.actions.policies import unknown_keys  # as the built-in actions

    for key, known in unknown_keys(configuration):
        near = nearest(key, known)
        problems.add(
            f"config key '{key}' is unknown; those below 'chat.' and 'tool.' belong to chat models and tools",
            expected=f"one of: {', '.join(known)}",
            fix=f"did you mean '{near}'?" if near else "give an option of your own another beginning",
        )


def check_names(names: list[Any], problems: ProblemList) -> None:
    """Report names that no action can have, and those that two have."""
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            problems.add(
                f"{name!r} cannot be an action's name",
                place=f"action {name!r}",
                expected="a letter or '_', then letters, digits, '_', '.' or '-'",
            )
        elif name in seen:
            problems.add(
                "there are two actions with this name",
                place=f"action '{name}'",
                expected="names that are unique in the agent, decorated and added actions together",
                fix="rename one of them; to replace a decorated action, define it again in a subclass",
            )
        else:
            seen.add(name)


def compile_action(
    name: str, index: int, declaration: ActionDeclaration, function: Callable[..., Any], problems: ProblemList
) -> tuple[Action | None, tuple[Condition, ...]]:
    """Check one declaration; return the action with its conditions, or None and problems."""
    place = f"action {name!r}"
    found_before = len(problems.texts)
    triggers = Triggers()
    triggers.read(declaration.trigger_conditions, place, problems)
    is_function = check_function(function, place, problems)
    kind = kind_of(function, is_blocking=bool(declaration.blocking)) if is_function else None
    if declaration.blocking and kind is ActionKind.ASYNC:
        problems.add(
            "it is an 'async def' with blocking=True",
            place=place,
            expected="blocking=True for a 'def' that has to run in a thread",
            fix="remove blocking=True, or make it a 'def'",
        )
    timeout_ms = _timeout_ms(declaration.timeout, kind, place, problems)
    on_error = _on_error(declaration.on_error, place, problems)
    retry = _retry(declaration.retry, place, problems)
    _check_input(declaration.input, triggers, place, problems)
    wrong = json_problem(declaration.config)
    if wrong is not None:
        problems.add(
            f"its configuration is not JSON: {wrong}",
            place=place,
            expected="None, bool, int, float, str, list, dict",
            fix="hand over values, and make objects of them inside the action",
        )
    if len(problems.texts) > found_before or kind is None:
        return None, ()
    action = Action(
        name=name,
        index=index,
        function=function,
        kind=kind,
        input_type=declaration.input,
        trigger_types=tuple(triggers.types),
        conditions=tuple(condition.source for condition in triggers.conditions),
        is_parallel=bool(declaration.parallel),
        retry=retry,
        on_error=on_error,
        timeout_ms=timeout_ms,
        config=dict(declaration.config),
    )
    return action, tuple(triggers.conditions)


def _retry(retry: Any, place: str, problems: ProblemList) -> Retry:  # noqa: ANN401 (unchecked)
    if retry is None:
        return DEFAULT_RETRY
    if not isinstance(retry, Retry):
        fix = f"retry=Retry(attempts={retry})" if type(retry) is int and retry > 0 else "from agentflow import Retry"
        what = f"retry={retry!r} is of type {type(retry).__name__}"
        problems.add(what, place=place, expected="Retry(attempts=…)", fix=fix)
        return Retry()
    if type(retry.attempts) is not int or not math.isfinite(retry.multiplier):
        problems.add(
            f"{retry!r} cannot be counted with",
            place=place,
            expected="attempts as a whole number, multiplier as a finite one",
        )
    return retry


def _timeout_ms(timeout: Any, kind: ActionKind | None, place: str, problems: ProblemList) -> int | None:  # noqa: ANN401 (unchecked)
    if timeout is None:
        return None
    if kind is ActionKind.SYNC:
        problems.add(
            f"timeout={timeout!r} on a 'def' that runs on the loop, where nothing can stop it",
            place=place,
            expected="a timeout on an 'async def', or with blocking=True",
            fix="add blocking=True, make it 'async def', or remove the timeout",
        )
    try:
        ms = duration_ms(timeout)
    except (ValueError, OverflowError) as error:
        problems.add(
            f"timeout: {error}", place=place, expected="a timedelta, or a text with a unit", fix="timeout='30s'"
        )
        return None
    if ms == 0:
        problems.add(
            f"timeout={timeout!r} is below one millisecond", place=place, expected="at least '1ms'; None: no timeout"
        )
    return ms


def _on_error(value: Any, place: str, problems: ProblemList) -> OnError | None:  # noqa: ANN401 (unchecked)
    if value is None:
        return None
    known = [member.value for member in OnError]
    if isinstance(value, str) and value in known:
        return OnError(value)
    near = nearest(value.replace("_", "-"), known) if isinstance(value, str) else None
    problems.add(
        f"on_error={value!r} is unknown",
        place=place,
        expected=f"one of {', '.join(map(repr, known))}",
        fix=f"did you mean {near!r}?" if near else "",
    )
    return None


def _check_input(input_type: Any, triggers: Triggers, place: str, problems: ProblemList) -> None:  # noqa: ANN401 (a type)
    if input_type is None:
        return
    wrong = input_type_problem(input_type)
    if wrong is not None:
        problems.add(
            f"input={reference(input_type)}: {wrong}",
            place=place,
            expected="a msgspec Struct, dataclass, TypedDict or pydantic model, or built-in types of them",
        )
    if EventType.InputEvent not in triggers.types and not triggers.conditions:
        problems.add(
            "it has input=, but does not listen to the input event",
            place=place,
            expected="EventType.InputEvent among its triggers, or a condition that it can meet",
            fix="remove input=, or add EventType.InputEvent",
        )

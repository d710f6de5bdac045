"""The stored form of a plan: JSON, versioned, with functions and types by name only.

Version 1. Reading never imports what the text names: functions come from an agent that the caller has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

import msgspec

from agentflow.api.agent import Agent
from agentflow.api.durations import duration_ms
from agentflow.api.failure import OnError, Retry
from agentflow.api.options import Configuration
from agentflow.api.references import without_secrets
from agentflow.api.resources import ResourceType
from agentflow.errors import PlanError
from agentflow.plan.action import Action, ActionKind
from agentflow.plan.compilation import CompiledAgent, Declared, compile_agent
from agentflow.plan.condition_text import ConditionTextError
from agentflow.plan.conditions import Condition
from agentflow.plan.payloads import reference
from agentflow.plan.planned_resources import read_resource
from agentflow.plan.problems import ProblemList

if TYPE_CHECKING:
    from agentflow.plan.plan import AgentPlan

VERSION: Final = 1


class _StoredRetry(msgspec.Struct):
    attempts: int
    initial_ms: int
    multiplier: float
    wait_max_ms: int
    jitter: float


class _StoredAction(msgspec.Struct, omit_defaults=True):
    name: str
    function: str
    kind: ActionKind
    retry: _StoredRetry
    input: str | None = None
    triggers: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    parallel: bool = False
    on_error: OnError | None = None
    timeout_ms: int | None = None
    config: dict[str, Any] = {}


class _StoredResource(msgspec.Struct):
    name: str
    type: ResourceType
    resource: msgspec.Raw


class _StoredPlan(msgspec.Struct):
    version: Literal[1]
    agent: str
    actions: tuple[_StoredAction, ...]
    resources: tuple[_StoredResource, ...]
    config: dict[str, Any]


class _Version(msgspec.Struct):
    version: int


class StoredFunction(msgspec.Struct, frozen=True):
    """Stands for the function of an action that was read without its agent."""

    reference: str

    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Refuse to run.

        Raises:
            PlanError: Always.
        """
        raise PlanError([f"function '{self.reference}' is known by name only; help: AgentPlan.from_json(data, agent)"])


class StoredType(msgspec.Struct, frozen=True):
    """Stands for the input type of an action that was read without its agent."""

    reference: str


def hash_plan(plan: AgentPlan) -> str:
    """Return the digest of names, triggers and policies (SHA-256, hexadecimal)."""
    parts = [
        (a.name, a.trigger_types, a.conditions, a.is_parallel, _retry(a.retry), a.on_error, a.timeout_ms)
        for a in plan.actions
    ]
    return hashlib.sha256(msgspec.json.encode((VERSION, plan.name, parts))).hexdigest()


def write_plan(plan: AgentPlan) -> bytes:
    """Return the stored form.

    Raises:
        PlanError: A function or a type cannot be named.
    """
    problems = ProblemList(plan.name)
    actions = tuple(_write_action(action, problems) for action in plan.actions)
    problems.raise_all()
    resources = tuple(_StoredResource(r.name, r.type, r.to_raw()) for r in plan.resources)
    stored = _StoredPlan(VERSION, plan.name, actions, resources, without_secrets("", plan.config.to_dict()))
    return msgspec.json.encode(stored, order="sorted")


def read_plan(data: bytes, agent: Agent | None, shared: Sequence[Declared] = ()) -> CompiledAgent:
    """Read the stored form; functions, types and resources come from ``agent``, and resources from its environment: ``shared``.

    Raises:
        PlanError: Not a plan, newer, or not of this agent.
    """
    try:
        version = msgspec.json.decode(data, type=_Version).version
        if version > VERSION:
            raise PlanError(
                [
                    f"the stored plan has version {version}; this agentflow reads up to {VERSION}\n  help: upgrade agentflow"
                ]
            )
        stored = msgspec.json.decode(data, type=_StoredPlan)
        resources = tuple(read_resource(r.name, r.type, r.resource) for r in stored.resources)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PlanError([f"this is no stored plan: {error}\n  expected: what AgentPlan.to_json wrote"]) from error
    problems = ProblemList(stored.agent)
    config = Configuration(stored.config)
    compiled = compile_agent(agent, config, shared) if agent is not None else None
    known = {action.name: action for action in compiled.actions} if compiled is not None else None
    actions, conditions = [], {}
    for index, entry in enumerate(stored.actions):
        if entry.name in conditions:
            problems.add("the stored plan has two actions with this name", place=f"action '{entry.name}'")
            continue
        actions.append(_read_action(entry, index, known, problems))
        conditions[entry.name] = _read_conditions(entry, problems)
    if compiled is not None:
        originals = {(r.type, r.name): r for r in compiled.resources}
        for one in resources:
            if (one.type, one.name) not in originals:  # it would be built of a class that stored data names
                problems.add(
                    f"the stored plan has this {one.type}, the agent has not",
                    place=f"resource '{one.name}'",
                    fix="if its environment has it: AgentPlan.from_json(data, agent, resources=env.resources)",
                )
        resources = tuple(originals.get((r.type, r.name), r) for r in resources)
    problems.raise_all()
    return CompiledAgent(stored.agent, tuple(actions), conditions, resources, config)


def _retry(retry: Retry) -> _StoredRetry:
    initial_ms, wait_max_ms = duration_ms(retry.initial), duration_ms(retry.wait_max)
    return _StoredRetry(retry.attempts, initial_ms, float(retry.multiplier), wait_max_ms, float(retry.jitter))


def _write_action(action: Action, problems: ProblemList) -> _StoredAction:
    function = action.function.reference if isinstance(action.function, StoredFunction) else reference(action.function)
    is_named = isinstance(getattr(action.function, "__qualname__", None), str) and "<" not in function
    if not is_named and not isinstance(action.function, StoredFunction):
        problems.add(
            f"its function {action.function!r} has no name by which it can be found again",
            place=f"action '{action.name}'",
            expected="a function of a module or of a class of a module",
            fix="move it out of the function that makes it; lambdas, partials and callable objects cannot be stored",
        )
    input_type = (
        action.input_type.reference if isinstance(action.input_type, StoredType) else _type_name(action.input_type)
    )
    return _StoredAction(
        name=action.name,
        function=function,
        kind=action.kind,
        retry=_retry(action.retry),
        input=input_type,
        triggers=action.trigger_types,
        conditions=action.conditions,
        parallel=action.is_parallel,
        on_error=action.on_error,
        timeout_ms=action.timeout_ms,
        config=action.config,
    )


def _type_name(input_type: Any) -> str | None:  # noqa: ANN401 (a type)
    return None if input_type is None else reference(input_type)


def _read_action(entry: _StoredAction, index: int, known: dict[str, Action] | None, problems: ProblemList) -> Action:
    function: Callable[..., Any] = StoredFunction(entry.function)
    input_type: Any = None if entry.input is None else StoredType(entry.input)
    if known is not None:
        original = known.get(entry.name)
        found = None if original is None else (reference(original.function), _type_name(original.input_type))
        if original is None or found != (entry.function, entry.input):
            problems.add(
                f"the stored plan has {entry.function} (input {entry.input}), the agent has "
                + ("no such action" if found is None else f"{found[0]} (input {found[1]})"),
                place=f"action '{entry.name}'",
                fix="compile the agent anew: AgentPlan.from_agent(agent)",
            )
        else:
            function, input_type = original.function, original.input_type
    retry = entry.retry
    return Action(
        name=entry.name,
        index=index,
        function=function,
        kind=entry.kind,
        input_type=input_type,
        trigger_types=entry.triggers,
        conditions=entry.conditions,
        is_parallel=entry.parallel,
        retry=Retry(retry.attempts, f"{retry.initial_ms}ms", retry.multiplier, f"{retry.wait_max_ms}ms", retry.jitter),
        on_error=entry.on_error,
        timeout_ms=entry.timeout_ms,
        config=entry.config,
    )


def _read_conditions(entry: _StoredAction, problems: ProblemList) -> tuple[Condition, ...]:
    conditions = []
    for source in entry.conditions:
        try:
            conditions.append(Condition(source))
        except ConditionTextError as error:
            problems.add(f"condition {source!r} cannot be used: {error}", place=f"action '{entry.name}'")
    return tuple(conditions)

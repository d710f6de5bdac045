"""Every problem of an agent: reported with its place, what is wrong, what is expected and how to fix it; all at once."""

from __future__ import annotations

import dataclasses
import functools
import math
from datetime import timedelta
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest

from agentflow.api.agent import Agent
from agentflow.api.decorators import action
from agentflow.api.events import Event, EventType, InputEvent
from agentflow.api.failure import OnError, Retry
from agentflow.api.options import Configuration
from agentflow.api.resources import ResourceDescriptor, ResourceType
from agentflow.errors import PlanError
from agentflow.plan.plan import ActionKind, AgentPlan
from agentflow.runtime.job_spec import AgentStage


def _act(event, ctx):
    """Do nothing."""


async def _act_async(event, ctx):
    """Do nothing."""


def _problems(agent, config=None):
    with pytest.raises(PlanError) as caught:
        AgentPlan.from_agent(agent, config)
    return list(caught.value.problems)


def _only_problem(function=_act, triggers=("t",), name="act", **options):
    problems = _problems(Agent("shop").add_action(name, triggers, function, **options))
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"agent 'shop', action {name!r}: ")
    return problems[0]


def _planned(function=_act, triggers=(InputEvent,), **options):
    return AgentPlan.from_agent(Agent("shop").add_action("act", triggers, function, **options)).actions[0]


def _unreached(agent):
    plan = AgentPlan.from_agent(agent)  # which may be made, to look at it, or to test its actions
    with pytest.raises(PlanError) as caught:
        AgentStage(plan, "k")
    return caught.value.problems


# -- the agent as a whole
def test_agent_without_actions_is_refused():
    (problem,) = _problems(Agent("shop"))
    assert problem.splitlines() == [
        "agent 'shop': it has no actions",
        "  expected: at least one",
        "  help: decorate a function with @action, or call add_action",
    ]


@pytest.mark.parametrize(
    "triggers",
    [["order"], [EventType.TimerEvent], ["type == 'order' && x == 1"], ["order", "type == 'a' || type == 'b'"]],
)
def test_agent_that_no_input_can_trigger_is_refused_where_a_job_is_made_of_it(triggers):
    (problem,) = _unreached(Agent("shop").add_action("act", triggers, _act))
    assert problem.splitlines() == [
        (
            "agent 'shop': no action listens to the input event: every input would be dropped; "
            f"actions: act ({', '.join(triggers)})"
        ),
        (
            "  expected: one action at least with the trigger EventType.InputEvent ('input' in YAML), or a condition that it "
            "can meet"
        ),
    ]


@pytest.mark.parametrize("near", ["inputs", "inptu", "Input"])
def test_trigger_like_the_input_event_is_named_where_nothing_listens_to_it(near):
    (problem,) = _unreached(Agent("shop").add_action("act", [near], _act))
    assert problem.splitlines()[-1] == "  help: did you mean 'input' (EventType.InputEvent)?"


@pytest.mark.parametrize(
    "condition", ["true", "x == 1", "type != 'order'", "type == EventType.InputEvent && x == 1", "1 / 0 == 1"]
)
def test_condition_that_an_input_can_meet_is_enough(condition):
    agent = Agent("shop").add_action("act", ["order"], _act).add_action("begin", [condition], _act)
    assert len(AgentStage(AgentPlan.from_agent(agent), "k").plan.actions) == 2


def test_agent_class_instead_of_an_instance_is_refused():
    class Shop(Agent):
        pass

    (problem,) = _problems(Shop)
    assert "this is the class" in problem
    assert "help: Shop()" in problem


def test_what_is_no_agent_is_refused():
    (problem,) = _problems("shop")
    assert "expected: an instance of Agent" in problem


def test_blank_agent_name_is_refused():
    (problem,) = _problems(Agent("  ").add_action("act", ["t"], _act))
    assert "the agent's name is '  '" in problem


def test_all_problems_are_reported_at_once():
    agent = Agent("shop")
    agent.add_action("one", [], _act, on_error="nope")
    agent.add_action("two", ["_x", "a b"], lambda event: None, timeout="5")
    agent.add_resource("r", ResourceType.VECTOR_STORE, object())
    problems = _problems(agent, {"k": object()})
    assert len(problems) == 8
    assert [problem.split(":")[0] for problem in problems] == [
        "agent 'shop', resource 'r'",
        *["agent 'shop', action 'one'"] * 2,
        *["agent 'shop', action 'two'"] * 4,
        "agent 'shop'",
    ]


@pytest.mark.parametrize("name", ["a b", "a/b", "a:b", "", "1st", 5])
def test_action_name_that_cannot_be_part_of_a_task_path_is_refused(name):
    assert "cannot be an action's name" in _only_problem(name=name)


def test_action_added_twice_is_refused():
    (problem,) = _problems(Agent("shop").add_action("act", ["t"], _act).add_action("act", ["u"], _act))
    assert "there are two actions with this name" in problem


def test_action_decorated_and_added_is_refused():
    class Shop(Agent):
        @action("t")
        def act(event, ctx):  # noqa: N805 (an action takes no self)
            pass

    (problem,) = _problems(Shop().add_action("act", ["u"], _act))
    assert "agent 'Shop', action 'act': there are two actions with this name" in problem


# -- triggers
def test_action_without_trigger_is_refused():
    assert "it has no trigger" in _only_problem(triggers=())


@pytest.mark.parametrize("trigger", ["", "  ", "\n", Event])
def test_blank_trigger_is_refused(trigger):
    assert "is blank" in _only_problem(triggers=[trigger])


@pytest.mark.parametrize("trigger", [5, None, b"t", int])
def test_trigger_that_is_no_text_is_refused(trigger):
    assert f"trigger {trigger!r} is of type {type(trigger).__name__}" in _only_problem(triggers=[trigger])


def test_misspelt_engine_type_is_refused_with_the_nearest():
    problem = _only_problem(triggers=["_input_evnt"])
    assert "trigger '_input_evnt' is unknown" in problem
    assert "help: did you mean '_input_event' (EventType.InputEvent)?" in problem


def test_name_in_the_engine_namespace_is_refused_without_a_guess():
    problem = _only_problem(triggers=["_zzz"])
    assert "types that start with '_' belong to the engine" in problem
    assert "help" not in problem


@pytest.mark.parametrize(
    ("trigger", "constant"),
    [
        ("InputEvent", "InputEvent"),
        ("EventType.InputEvent", "InputEvent"),
        ("input_event", "InputEvent"),
        ("TimerEvent", "TimerEvent"),
        ("EventType.TimerEvnt", "TimerEvent"),
        ("OutputEvent", "OutputEvent"),
    ],
)
def test_name_of_a_constant_instead_of_the_constant_is_refused(trigger, constant):
    assert f"did you mean EventType.{constant}?" in _only_problem(triggers=[trigger])


def test_output_event_as_a_trigger_is_refused():
    assert "never fires" in _only_problem(triggers=[EventType.OutputEvent])


def test_condition_that_does_not_parse_is_refused_with_its_place():
    problem = _only_problem(triggers=["type == 'a' &&& x"])
    assert "condition \"type == 'a' &&& x\" cannot be used: it is not CEL" in problem
    assert "1:15" in problem
    assert "\n  | type == 'a' &&& x\n  | ..............^" in problem


def test_condition_that_is_too_long_is_refused_and_cut_in_the_message():
    problem = _only_problem(triggers=["x == '" + "y" * 9000 + "'"])
    assert "9,007 characters; at most 8,192" in problem
    assert len(problem) < 1000


def test_condition_that_is_too_deep_is_refused():
    assert "nested 40 deep; at most 32" in _only_problem(triggers=["(" * 40 + "1" + ")" * 40])


def test_built_in_types_classes_and_repeated_triggers_are_accepted():
    class Scored(Event):
        EVENT_TYPE = "scored"

    planned = _planned(triggers=[InputEvent, Scored, "scored", " other ", EventType.TimerEvent, "a == 1", "a == 1"])
    assert planned.trigger_types == ("_input_event", "scored", "other", "_timer_event")
    assert planned.conditions == ("a == 1",)


# -- functions
def _generator(event, ctx):
    yield


async def _async_generator(event, ctx):
    yield


class _Callable:
    def __call__(self, event, ctx):
        pass


class _AsyncCallable:
    async def __call__(self, event, ctx):
        pass


class _CallableWithoutContext:
    def __call__(self, event):
        pass


class _Service:
    def act(self, event, ctx):
        pass


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda event: None, "(event); it is called with exactly two"),
        (lambda: None, "its parameters are (); it is called with exactly two"),
        (lambda event, ctx, more: None, "(event, ctx, more); it is called with exactly two"),
        (lambda *, event, ctx: None, "nothing is passed as event, ctx"),
        (lambda event, ctx, *, key: None, "nothing is passed as key"),
        (lambda event, **options: None, "it is called with exactly two"),
        (_Service.act, "an action is no method, nothing is passed as 'self'"),
        (lambda self, event: None, "nothing is passed as 'self'"),
        (functools.partial(_act, None), "it is called with exactly two"),
        (_CallableWithoutContext(), "it is called with exactly two"),
        (_generator, "it is a generator"),
        (_async_generator, "it is a generator"),
        (functools.partial(_generator), "it is a generator"),
        (_Callable, "_Callable is a class"),
        (classmethod(_act), "of type classmethod, which cannot be called"),
        (5, "of type int, which cannot be called"),
        (None, "of type NoneType, which cannot be called"),
        (min, "does not tell its parameters"),
    ],
)
def test_function_that_cannot_be_an_action_is_refused(function, said):
    problem = _only_problem(function)
    assert said in problem
    assert "expected: a function (event, ctx) -> None, def or async def" in problem


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (_act, ActionKind.SYNC),
        (lambda event, ctx: None, ActionKind.SYNC),
        (lambda *both: None, ActionKind.SYNC),
        (lambda event, ctx, more=1, *, key=2: None, ActionKind.SYNC),
        (_act_async, ActionKind.ASYNC),
        (functools.partial(_act_async), ActionKind.ASYNC),
        (functools.partial(functools.partial(_act)), ActionKind.SYNC),
        (_Callable(), ActionKind.SYNC),
        (_AsyncCallable(), ActionKind.ASYNC),
        (_Service().act, ActionKind.SYNC),
    ],
)
def test_kind_follows_the_function(function, kind):
    planned = _planned(function)
    assert planned.kind is kind
    assert planned.function is function or planned.function == function


def test_blocking_function_is_blocking():
    assert _planned(blocking=True, timeout="2s").kind is ActionKind.BLOCKING


def test_blocking_async_function_is_refused():
    assert "it is an 'async def' with blocking=True" in _only_problem(_act_async, blocking=True)


# -- policies
def test_timeout_of_a_function_on_the_loop_is_refused():
    assert "where nothing can stop it" in _only_problem(timeout="5s")


@pytest.mark.parametrize("timeout", ["5", "five", 5, True, timedelta(seconds=-1), "9" * 400 + "s"])
def test_invalid_timeout_is_refused(timeout):
    assert "timeout: " in _only_problem(_act_async, timeout=timeout)


@pytest.mark.parametrize("timeout", ["0s", "0.1ms", timedelta(0)])
def test_timeout_of_nothing_is_refused(timeout):
    assert "below one millisecond" in _only_problem(_act_async, timeout=timeout)


@pytest.mark.parametrize("timeout", ["1.5s", timedelta(milliseconds=1500)])
def test_timeout_is_planned_in_milliseconds(timeout):
    assert _planned(_act_async, timeout=timeout).timeout_ms == 1500


@pytest.mark.parametrize(
    ("value", "near"),
    [("ded-letter", "dead-letter"), ("dead_letter", "dead-letter"), ("Skip", "skip"), ("qqq", None), (5, None)],
)
def test_unknown_on_error_is_refused_with_the_nearest(value, near):
    problem = _only_problem(on_error=value)
    assert f"on_error={value!r} is unknown\n  expected: one of 'dead-letter', 'skip', 'fail'" in problem
    assert (f"did you mean {near!r}?" in problem) == (near is not None)


@pytest.mark.parametrize(("given", "planned"), [("skip", OnError.SKIP), (OnError.FAIL, OnError.FAIL), (None, None)])
def test_on_error_is_planned_as_its_member(given, planned):
    assert _planned(on_error=given).on_error is planned


@pytest.mark.parametrize(
    ("value", "fix"), [(3, "retry=Retry(attempts=3)"), ("3", "import Retry"), (True, "import Retry")]
)
def test_retry_of_another_type_is_refused(value, fix):
    problem = _only_problem(retry=value)
    assert f"retry={value!r} is of type {type(value).__name__}" in problem
    assert fix in problem


@pytest.mark.parametrize("retry", [Retry(attempts=2.5), Retry(multiplier=math.inf)])
def test_retry_that_cannot_be_counted_with_is_refused(retry):
    assert "cannot be counted with" in _only_problem(retry=retry)


def test_action_without_retry_gets_the_default():
    assert _planned().retry == Retry()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "object at 'k' is no JSON value"),
        ({"a": [1, {2: 3}]}, "key 2 at 'k.a[1]' is a int, not a str"),
        (math.nan, "nan at 'k' has no JSON form"),
        ([b"x"], "bytes at 'k[0]' is no JSON value"),
        ("\ud800", "half of a surrogate pair"),
    ],
)
def test_action_config_that_is_not_json_is_refused(value, said):
    assert said in _only_problem(k=value)


def test_action_config_that_contains_itself_is_refused():
    endless: list[Any] = []
    endless.append(endless)
    assert "nested more than 100 deep" in _only_problem(k=endless)


def test_job_config_that_is_not_json_is_refused():
    (problem,) = _problems(Agent("shop").add_action("act", ["t"], _act), Configuration({"a": {"b": object()}}))
    assert "agent 'shop': config key 'a.b' is not JSON: object is no JSON value" in problem


# -- input types
class _Struct(msgspec.Struct):
    stars: int
    below: list[_Struct] = []


@dataclasses.dataclass
class _Data:
    stars: int


class _Typed(TypedDict):
    stars: int


class _Model(pydantic.BaseModel):
    stars: int


class _Foreign:
    pass


class _HoldsForeign(msgspec.Struct):
    parts: dict[str, list[_Foreign]]


class _HoldsModel(msgspec.Struct):
    model: _Model | None


class _Unresolvable(msgspec.Struct):
    x: Nowhere  # noqa: F821 (the law is about such a name)


@pytest.mark.parametrize(
    "input_type", [_Struct, _Data, _Typed, _Model, dict[str, int], list[_Struct], int, _Struct | None]
)
def test_input_type_that_can_be_decoded_is_accepted(input_type):
    assert _planned(triggers=[InputEvent], input=input_type).input_type == input_type


@pytest.mark.parametrize(
    ("input_type", "said"),
    [
        (_Foreign, "_Foreign is none of the types that can be decoded"),
        (_HoldsForeign, "_Foreign is none of the types"),
        (_HoldsModel, "the pydantic model _Model cannot be part of another type"),
        (_Unresolvable, "name 'Nowhere' is not defined"),
        (_Struct | _Data, "more than one dict-like type"),
        (5, "Type '5' is not supported"),
        (_Struct(1), "is not supported"),
    ],
)
def test_input_type_that_cannot_be_decoded_is_refused(input_type, said):
    problem = _only_problem(triggers=[InputEvent], input=input_type)
    assert said in problem
    assert "expected: a msgspec Struct" in problem


def test_input_type_of_an_action_that_never_sees_an_input_is_refused():
    assert "does not listen to the input event" in _only_problem(triggers=["t"], input=_Struct)


def test_input_type_with_a_condition_is_accepted():
    assert _planned(triggers=["input.stars < 3"], input=_Struct).input_type is _Struct


# -- resources
def _with_resource(*arguments):
    return Agent("shop").add_action("act", [InputEvent], _act).add_resource(*arguments)


@pytest.mark.parametrize(
    "instance",
    [
        ResourceDescriptor("a.B"),
        ResourceDescriptor("a.b.C", {"x": [1, None]}),
        _Struct(5),
        _Model(stars=5),
        "text",
        {"a": 1},
    ],
)
def test_resource_that_can_be_stored_is_accepted(instance):
    (planned,) = AgentPlan.from_agent(_with_resource("r", ResourceType.TOOL, instance)).resources
    assert (planned.name, planned.type) == ("r", ResourceType.TOOL)
    assert planned.instance is instance


@pytest.mark.parametrize(
    ("resource", "said"),
    [
        (("r", ResourceType.TOOL, object()), "object cannot be stored with the plan"),
        (("r", ResourceType.SKILLS, _Model), "cannot be stored with the plan"),
        (("r", ResourceType.TOOL, _HoldsForeign({"a": [_Foreign()]})), "_HoldsForeign cannot be stored with the plan"),
        (("r", ResourceType.TOOL, ResourceDescriptor("No dots")), "its class is 'No dots'"),
        (("r", ResourceType.TOOL, ResourceDescriptor("a.b c")), "its class is 'a.b c'"),
        (
            ("r", ResourceType.TOOL, ResourceDescriptor("a.B", {"x": object()})),
            "its arguments are not JSON: object at 'x'",
        ),
        (("r", "toool", "x"), "its type is 'toool'"),
        (("r", None, "x"), "its type is None"),
        ((" ", ResourceType.TOOL, "x"), "its name is ' '"),
        (("r", ResourceType.TOOL, None), "it is None"),
        (("r", ResourceType.PROMPT, "a text"), "expected: a Prompt\n  help: Prompt.from_text('…')"),
    ],
)
def test_resource_that_cannot_be_planned_is_refused(resource, said):
    (problem,) = _problems(_with_resource(*resource))
    assert problem.startswith(f"agent 'shop', resource {resource[0]!r}: ")
    assert said in problem


def test_unknown_resource_type_is_refused_with_the_nearest():
    (problem,) = _problems(_with_resource("r", "toool", "x"))
    assert "did you mean ResourceType.TOOL?" in problem


def test_two_resources_of_one_type_and_name_are_refused():
    agent = _with_resource("r", ResourceType.TOOL, 1).add_resource("r", ResourceType.TOOL, 2)
    (problem,) = _problems(agent)
    assert "there are two resources of type tool with this name" in problem


def test_resources_of_different_types_may_share_a_name():
    agent = _with_resource("r", ResourceType.TOOL, 1).add_resource("r", ResourceType.PROMPT, 2)
    assert [resource.type for resource in AgentPlan.from_agent(agent).resources] == [
        ResourceType.TOOL,
        ResourceType.PROMPT,
    ]


class _Noisy:
    def __call__(self, event, ctx):
        raise AssertionError("called")

    def model_dump_json(self):
        raise AssertionError("called")


def test_no_user_code_runs_while_a_plan_is_made():
    agent = Agent("shop").add_action("act", ["t", "x == 1"], _Noisy())
    agent.add_resource("r", ResourceType.VECTOR_STORE, _Noisy())
    assert AgentPlan.from_agent(agent).action_by_name["act"].index == 0

"""Laws of stored plans and of matching, over generated agents."""

from __future__ import annotations

from datetime import timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agentflow.api.agent import Agent
from agentflow.api.events import EventType
from agentflow.api.failure import OnError, Retry
from agentflow.api.resources import ResourceDescriptor, ResourceType
from agentflow.plan.condition_text import ConditionTextError
from agentflow.plan.conditions import Condition
from agentflow.plan.plan import AgentPlan


class Payload(msgspec.Struct):
    n: int


def act(event, ctx):
    """Do nothing."""


async def act_async(event, ctx):
    """Do nothing."""


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
TYPES = st.sampled_from([EventType.InputEvent, EventType.TimerEvent, "a", "b", "c.d/e:f-g"])
CONDITIONS = st.sampled_from(
    ["x == 1", "type == 'a' && y > 2", "has(attributes.x)", "x > y", "'x' in attributes", "type != 'b'", "true"]
)
DURATIONS = st.integers(1, 10**9).map(lambda ms: timedelta(milliseconds=ms)) | st.sampled_from(["5s", "1.5m", "2h"])
RETRIES = st.builds(
    Retry,
    attempts=st.integers(1, 100),
    initial=DURATIONS,
    multiplier=st.floats(1, 10) | st.integers(1, 10),
    wait_max=DURATIONS,
    jitter=st.floats(0, 1),
)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "parallel": st.booleans(),
        "retry": RETRIES,
        "on_error": st.sampled_from([*OnError, "skip"]),
        "limit": JSON,
    },
)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,8}", fullmatch=True)

VALUE = JSON.filter(lambda value: value is not None and not isinstance(value, str))  # which no prompt is


@st.composite
def agents(draw):
    agent = Agent(draw(st.text(min_size=1).filter(str.strip)))
    for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        triggers = draw(st.lists(TYPES | CONDITIONS, min_size=1, max_size=4))
        if not agent.actions:  # something has to listen to inputs
            triggers.append(EventType.InputEvent)
        options = draw(OPTIONS)
        function = draw(st.sampled_from([act, act_async]))
        if function is act_async:
            options["timeout"] = draw(st.none() | DURATIONS)
        else:
            options["blocking"] = draw(st.booleans())
        if EventType.InputEvent in triggers:
            options["input"] = draw(st.sampled_from([None, Payload, list[int]]))
        agent.add_action(name, triggers, function, **options)
    names = st.tuples(st.text(min_size=1).filter(str.strip), st.sampled_from(list(ResourceType)))
    for name, kind in draw(st.lists(names, max_size=3, unique=True)):
        arguments = st.dictionaries(st.text(), JSON, max_size=2)
        descriptor = st.builds(ResourceDescriptor, st.just("shop.Tool"), arguments)
        agent.add_resource(name, kind, draw(descriptor | VALUE | st.builds(Payload, st.integers(0, 9))))
    return agent


@given(agents(), st.dictionaries(st.text(), JSON, max_size=3))
def test_plan_read_back_and_written_again_is_byte_equal(agent, config):
    plan = AgentPlan.from_agent(agent, config)
    stored = plan.to_json()
    shown = AgentPlan.from_json(stored)
    assert shown.to_json() == stored
    assert (shown.plan_hash, shown.to_text()) == (plan.plan_hash, plan.to_text())
    runnable = AgentPlan.from_json(stored, agent)
    assert runnable.to_json() == stored
    assert [a.function for a in runnable.actions] == [a.function for a in plan.actions]


@given(agents(), TYPES, st.dictionaries(st.sampled_from("xy"), st.integers(0, 3) | st.text(max_size=1) | st.none()))
def test_match_is_exact_types_then_conditions_each_once_in_declaration_order(agent, event_type, attributes):
    plan = AgentPlan.from_agent(agent)
    calls = []
    matches = plan.match(event_type, lambda: calls.append(1) or attributes)
    actions = [getattr(match, "action", match) for match in matches]
    exact = list(plan.actions_by_event.get(event_type, ()))
    by_condition = actions[len(exact) :]
    assert actions[: len(exact)] == exact
    assert exact == [a for a in plan.actions if event_type in a.trigger_types]
    assert [a.index for a in by_condition] == sorted(a.index for a in by_condition)
    assert len(set(actions)) == len(actions)
    assert all(a.conditions for a in by_condition)
    assert len(calls) <= 1
    if not plan.has_conditions:
        assert matches == exact


NAMES_READ = st.sampled_from(
    [
        "a",
        "b",
        "x",
        "attributes.a",
        "attributes.a.b",
        "attributes['a']",
        "a.b",
        "b.a.x",
        "attributes.x",
        "attributes.type",
    ]
)
LITERALS = st.sampled_from(["1", "2.5", "true", "false", "null", "'s'", "[1, 2]", "type", "EventType.InputEvent"])
SHAPES = [
    "{0} == {1}",
    "{0}<{1}",
    "{0} && {1}",
    "{0} || {1}",
    "{0} in {1}",
    "{0} + {1}",
    "({0}) ? {1} : {0}",
    "!({0})",
    "({0})",
    "type == 's' && {0}",
    "({0}).size() > 1",
    "size({0}) == 1",
    "{0}.exists(x, x == {1})",
    "a.all(b, {0} && b != {1})",
    "has(attributes.a.b) && {0}",
    "has(b.a) == {0}",
    "{0} // {1}\n",
    "[{0}, {1}]",
    "{{'k': {0}}}.k == {1}",
]
TEXTS = st.recursive(
    NAMES_READ | LITERALS,
    lambda inner: st.builds(str.format, st.sampled_from(SHAPES), inner, inner),
    max_leaves=6,
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from([2.0, 2.5, "s", ""]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abx"), inner, max_size=2),
    max_leaves=4,
)


@given(TEXTS, st.sampled_from(["s", "t"]), st.dictionaries(st.sampled_from("abx"), VALUES))
def test_reading_less_of_the_event_never_changes_what_a_condition_says(source, event_type, attributes):
    """The pruned evaluation equals the library's own on the author's text, with attributes as bare names."""
    import cel

    try:
        condition = Condition(source)
    except ConditionTextError:
        return

    def outcome(evaluate):
        try:
            return evaluate()
        except KeyError:
            return "missing"
        except Exception:  # noqa: BLE001 (whatever the library says is a failure)
            return "failed"

    def by_library():
        everything = {**attributes, "type": event_type, "attributes": attributes}
        everything["EventType"] = {"InputEvent": EventType.InputEvent}
        return cel.compile(source).execute(everything)

    expected = outcome(by_library)
    if condition.only_type not in {None, event_type}:
        assert expected is not True
        return
    missing_before = condition.missing_count
    got = outcome(lambda: condition.is_true(event_type, attributes))
    if condition.missing_count > missing_before:
        assert expected in {"missing", "failed"}  # an undefined bare name is a failure to the library, missing here
    elif expected is True or expected is False:
        assert got is expected
    else:
        assert got == "failed"

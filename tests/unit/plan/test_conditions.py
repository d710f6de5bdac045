"""Triggers and CEL conditions: what matches, in which order, what counts as missing, what as a failure."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import pytest

from agentflow.api.agent import Agent
from agentflow.api.events import EventType
from agentflow.plan.condition_text import ConditionTextError, pick, read_condition
from agentflow.plan.conditions import Condition
from agentflow.plan.plan import AgentPlan, ConditionFailure
from agentflow.plan.triggers import is_event_type


def _act(event, ctx):
    """Do nothing; what is tested is when it would be called."""


def _plan(*triggers):
    agent = Agent("a")
    for number, conditions in enumerate(triggers):
        agent.add_action(f"on{number}", [conditions] if isinstance(conditions, str) else conditions, _act)
    agent.add_action("begin", [EventType.InputEvent], _act)  # an agent that no input can trigger is no plan
    return AgentPlan.from_agent(agent)


def _matched(plan, event_type, attributes):
    matches = plan.match(event_type, lambda: attributes)
    return [f"failed {m.action.name}" if isinstance(m, ConditionFailure) else m.name for m in matches]


ATTRIBUTES = {
    "average": 2,
    "ratio": 2.0,
    "stars": 5.0,
    "text": "a good product",
    "tags": ["new", "red"],
    "rows": [{"n": 1}, {"n": 7}],
    "none": None,
    "yes": True,
    "raw": b"x",
    "when": datetime(2024, 5, 1, tzinfo=UTC),
    "huge": 2**70,
    "nested": {"deep": {"value": 3}, "list": [1, 2, 3]},
    "type": "own",
    "id": "i-7",
}

MATCHES = [
    "type == 'scored'",
    "'scored' == type",
    "type != EventType.InputEvent",
    "type in ['scored', 'other']",
    "type.startsWith('sco')",
    "attributes.average < 2.5",
    "attributes.ratio < 2.5",
    "attributes.ratio == 2",
    "attributes.stars == 5",
    "attributes.average == 2.0",
    "attributes.stars in [1, 5]",
    "attributes.huge > 9223372036854775807",
    "average < 2.5",
    "average < stars",
    "attributes.average < 2.5 && type == 'scored'",
    "type == 'other' || average == 2",
    "false && true || true",  # && binds more tightly than ||
    "!(type == 'other') && average + 1 * 2 == 4",
    "average > 3 ? false : true",
    "has(attributes.average)",
    "has(attributes.none)",
    "!has(attributes.nothing)",
    "!has(nested.nothing)",
    "has(nested.deep.value) && nested.deep.value == 3",
    "nested['deep']['value'] == 3",
    "'red' in attributes.tags",
    "'average' in attributes",
    "tags[0] == 'new'",
    "size(tags) == 2 && tags.size() == 2",
    "rows.exists(row, row.n > 5)",
    "rows.all(row, row.n > 0)",
    "rows.exists_one(row, row.n == 7)",
    "rows.map(row, row.n) == [1, 7]",
    "rows.filter(row, row.n > average).size() == 1",
    "text.contains('good') && text.endsWith('product')",
    "text.matches('^a .* product$')",
    "none == null",
    "yes",
    "yes == true",
    "yes != 1",
    "raw == b'x'",
    "when > timestamp('2024-01-01T00:00:00Z')",
    "when.getFullYear() == 2024",
    "type(average) == int && type(text) == string",
    "double(average) + 0.5 == 2.5",
    "attributes.type == 'own'",
    "attributes.id == 'i-7'",
    "text == 'a' || text != \"it's // no comment\"  // a comment",
    "text != r'\\' && text != '''a 'b' c'''",
    "true",
    "nothing == 1 || average == 2",  # true || error is true
]

NO_MATCH = [
    "type == 'Scored'",
    "type == EventType.InputEvent",
    "type == EventType.InputEvent && text > 5",
    "attributes.average > 2",
    "text == 5",
    "text == null",
    "has(attributes.nothing)",
    "has(attributes.nothing) && attributes.nothing > 1",
    "nothing == 1 && average == 3",  # error && false is false
    "text > 5 && false",
    "false",
]

MISSING = [
    "attributes.nothing == 1",
    "nothing == 1",
    "nothing",
    "attributes['nothing'] == 1",
    "nested.nothing > 1",
    "has(nothing.below)",
    "attributes.nothing == null",
    "rows.all(row, row.absent > 1)",
]

FAILURES = [
    "text > 5",
    "none > 1",
    "yes < 2",
    "average + 0.5 > 1.0",
    "average / 0 == 1",
    "tags[7] == 'x'",
    "text.n == 1",
    "text.matches('(')",
    "int(text) == 1",
    "average.startsWith('a')",
    "9223372036854775807 + average > 0",
    "average",
    "none",
    "text",
    "type",
    "tags + ['x']",
]


@pytest.mark.parametrize("source", MATCHES)
def test_condition_matches(source):
    plan = _plan([source if not is_event_type(source) else f"attributes.{source}"])
    assert _matched(plan, "scored", ATTRIBUTES) == ["on0"]
    assert plan.missing_count == 0


@pytest.mark.parametrize("source", NO_MATCH)
def test_condition_that_is_false_does_not_match(source):
    plan = _plan([source])
    assert _matched(plan, "scored", ATTRIBUTES) == []
    assert plan.missing_count == 0


@pytest.mark.parametrize("source", MISSING)
def test_missing_attribute_is_no_match_and_is_counted(source):
    condition = Condition(source)
    assert condition.is_true("scored", ATTRIBUTES) is False
    assert condition.is_true("scored", ATTRIBUTES) is False
    assert condition.missing_count == 2


def test_plan_counts_missing_attributes_of_all_conditions():
    plan = _plan("a == 1", "b == 1")
    assert _matched(plan, "t", {"a": 1}) == ["on0"]
    assert _matched(plan, "t", {}) == []
    assert plan.missing_count == 3


@pytest.mark.parametrize("source", FAILURES)
def test_evaluation_error_stands_in_the_place_of_the_action(source):
    text = source if not is_event_type(source) else f"{source} ? true : 1" if source == "yes" else f"({source})"
    plan = _plan("true", text, "true")
    matches = plan.match("scored", lambda: ATTRIBUTES)
    assert [type(m).__name__ for m in matches] == ["Action", "ConditionFailure", "Action"]
    assert matches[1].action is plan.action_by_name["on1"]
    assert repr(text) in matches[1].message
    assert plan.missing_count == 0


def test_exact_types_come_first_then_conditions_each_in_declaration_order():
    plan = _plan("true", "t", ["x == 1", "other"], "t", "type == 't'")
    assert _matched(plan, "t", {"x": 1}) == ["on1", "on3", "on0", "on2", "on4"]
    assert _matched(plan, "other", {"x": 1}) == ["on2", "on0"]


def test_action_matches_at_most_once_per_event():
    plan = _plan(["t", "t", "true", "type == 't'", "u"])
    assert _matched(plan, "t", {}) == ["on0"]
    assert plan.actions_by_event["t"] == plan.actions_by_event["u"] == plan.actions[:1]


def test_true_condition_wins_over_a_failed_one_of_the_same_action():
    assert _matched(_plan(["x > 'a'", "x == 1"]), "t", {"x": 1}) == ["on0"]
    assert _matched(_plan(["x == 1", "x > 'a'"]), "t", {"x": 1}) == ["on0"]
    assert _matched(_plan(["x > 'a'", "x == 2", "x < 'a'"]), "t", {"x": 1}) == ["failed on0"]


def test_attributes_are_decoded_at_most_once():
    calls = []
    plan = _plan("x == 1", "y == 1", "x == 2")
    plan.match("t", lambda: calls.append(1) or {"x": 1, "y": 1})
    assert calls == [1]


@pytest.mark.parametrize(
    "condition", ["type == 'other' && x == 1", "type != 't'", "EventType.InputEvent == type && x == 1"]
)
def test_attributes_are_not_decoded_for_conditions_that_do_not_need_them(condition):
    assert _plan(condition).match("t", lambda: pytest.fail("decoded")) == []


def test_action_that_matched_by_type_does_not_evaluate_its_conditions():
    plan = _plan(["t", "x > 'a'"])
    assert plan.match("t", lambda: pytest.fail("decoded")) == [plan.actions[0]]


def test_error_of_the_decoder_is_not_taken_for_a_missing_attribute():
    def broken():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        _plan("x == 1").match("t", broken)


@pytest.mark.parametrize(
    ("source", "only_type"),
    [
        ("type == 's'", "s"),
        ("type == 's' && x == 1", "s"),
        ('"s" == type && (x == 1 || y == 1)', "s"),
        ("type == EventType.InputEvent && x == 1", EventType.InputEvent),
        ("type == 's' || x == 1", None),
        ("type == 's' && x == 1 || y == 1", None),
        ("type == 's' && x ? y : z", None),
        ("type == 's' == true", None),
        ("x == 1 && type == 's'", None),
        ("type != 's'", None),
        ("attributes.type == 's'", None),
        (r"type == '\x73'", None),
    ],
)
def test_only_type_is_claimed_only_when_no_other_type_can_match(source, only_type):
    assert Condition(source).only_type == only_type


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("type == 's'", {}),
        ("a.b == 1 && attributes.a.c.d == 2", {"a": {"b": None, "c": {"d": None}}}),
        ("a.b == 1 && a == 2", {"a": None}),
        ("a == 1 && a.b == 2", {"a": None}),
        ("a.size() > b['c']", {"a": None, "b": None}),
        ("a.l.exists(x, x.k == y.k)", {"a": {"l": None}, "y": {"k": None}}),
        ("a.exists(x, x == 1) && x == 1", {"a": None, "x": None}),
        ("'a' in attributes", None),
        ("attributes['a'] == b", None),
    ],
)
def test_condition_reads_only_the_attributes_it_names(source, reads):
    assert read_condition(source).reads == reads


def test_picking_keeps_what_is_read_and_nothing_else():
    values = {"a": {"b": 1, "c": 2}, "l": [1], "n": 5}
    assert pick(values, {"a": {"b": None}, "n": {"x": None}, "gone": None}) == {"a": {"b": 1}, "n": 5}
    assert pick(values, None) == values


@pytest.mark.parametrize(
    ("text", "is_type"),
    [
        ("scored", True),
        ("_input_event", True),
        ("shop.scored:v1/eu-west", True),
        ("a.b", True),
        ("a-b", True),
        ("true", False),
        ("false", False),
        ("attributes.urgent", False),
        ("1st", False),
        ("-a", False),
        ("a b", False),
        ("größe", False),
        ("a==b", False),
        ("a\n", False),
    ],
)
def test_trigger_is_a_type_exactly_when_it_is_a_plain_name(text, is_type):
    assert is_event_type(text) is is_type


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("a <", "it is not CEL"),
        ("a ==\n== b", "2:1"),
        ("'open", "it is not CEL"),
        ("frobnicate(a)", "frobnicate()"),
        ("a.lowerAscii() == 'x'", "lowerAscii()"),
        ("EventType.InputEvnt == type", "'EventType.InputEvent'"),
        ("EventType == type", "'EventType' is not an event type"),
        ("id == 'x'", "'attributes.id'"),
        ("1 < .a", "'.a': a name cannot start with a dot"),
        ("a.map(type, 1) == [1]", "'type' cannot be the variable of 'map'"),
        ("x" * 8193, "8,193 characters; at most 8,192"),
        ("(" * 33 + "1" + ")" * 33, "nested 33 deep; at most 32"),
        ("[(" * 16 + "{1:2}" + ")]" * 16 + " == 1", "nested 33 deep"),
    ],
)
def test_unusable_condition_says_why(source, said):
    with pytest.raises(ConditionTextError) as caught:
        Condition(source)
    assert said in str(caught.value)


def test_conditions_at_the_limits_are_accepted():
    assert Condition("(" * 32 + "true" + ")" * 32).is_true("t", {})
    text = "true || '" + "(" * 8182 + "'"
    assert len(text) == 8192
    assert Condition(text).is_true("t", {})


def test_type_only_agent_never_imports_the_cel_library():
    code = (
        "import sys\n"
        "from agentflow.api.agent import Agent\n"
        "from agentflow.plan.plan import AgentPlan\n"
        "agent = Agent('a').add_action('x', ['_input_event'], lambda event, ctx: None)\n"
        "AgentPlan.from_agent(agent)\n"
        "assert 'cel' not in sys.modules\n"
        "AgentPlan.from_agent(agent.add_action('y', ['a == 1'], lambda event, ctx: None))\n"
        "assert 'cel' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_missing_cel_library_is_a_problem_that_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cel", None)
    with pytest.raises(ConditionTextError, match="common-expression-language"):
        Condition("a == 1")

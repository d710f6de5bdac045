"""Which schemas providers refuse to hold a model to."""

from __future__ import annotations

import enum
from typing import Any, Literal

import msgspec
import pydantic
import pytest

from agentflow.api.output_schemas import schema_of
from agentflow.integrations.native_schemas import closed_problem, recursion_problem, root_problem


class Colour(enum.Enum):
    RED = "red"


class Closed(msgspec.Struct):
    n: int
    colours: list[Colour] = []
    inner: Point | None = None


class Point(msgspec.Struct):
    x: float


class Tree(msgspec.Struct):
    inner: list[Tree] = []


class Chain(pydantic.BaseModel):
    next: Link | None = None


class Link(pydantic.BaseModel):
    chain: Chain


class Counts(msgspec.Struct):
    by_word: dict[str, int]


class Loose(msgspec.Struct):
    of: list[dict]


class Anything(msgspec.Struct):
    n: Any


@pytest.mark.parametrize("output", [list[int], Colour, Literal["a", "b"], int | str, Closed | None, int])
def test_openai_answers_with_objects_only(output):
    assert root_problem(schema_of(output))


@pytest.mark.parametrize("output", [Closed, Tree, Counts, Chain, dict[str, int]])
def test_openai_takes_all_objects(output):
    assert root_problem(schema_of(output)) == ""


@pytest.mark.parametrize("output", [dict[str, int], dict, Counts, Loose, Anything, list[dict[str, str]], Tree, Chain])
def test_claude_is_held_to_no_maps_and_to_nothing_that_holds_itself(output):
    assert closed_problem(schema_of(output))


@pytest.mark.parametrize("output", [Closed, list[Closed], Colour, Literal["a"], int | str, tuple[int, str]])
def test_claude_takes_closed_types_at_any_root(output):
    assert closed_problem(schema_of(output)) == ""


@pytest.mark.parametrize(("output", "holds_itself"), [(Tree, True), (Chain, True), (list[Tree], True), (Closed, False)])
def test_type_that_holds_itself_is_found_at_any_distance(output, holds_itself):
    assert bool(recursion_problem(schema_of(output))) is holds_itself


def test_reference_to_the_whole_holds_itself():
    assert recursion_problem({"type": "object", "properties": {"inner": {"$ref": "#"}}})

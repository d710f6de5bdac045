"""Types of structured output: what a provider is given, and what becomes of the answer."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, TypedDict

import jsonschema
import msgspec
import pydantic
import pytest

from agentflow.api.output_schemas import OutputSchema, as_type, schema_of


class Review(msgspec.Struct):
    stars: Annotated[int, msgspec.Meta(ge=1, le=5)]
    mood: Literal["good", "bad"] = "good"


class Reviews(msgspec.Struct):
    reviews: list[Review]
    best: Review | None = None


class Thread(msgspec.Struct):
    text: str
    answers: list[Thread] = []


@dataclasses.dataclass
class Answer:
    text: str


class Span(TypedDict):
    first: int


class Model(pydantic.BaseModel):
    n: int


class Tree(pydantic.BaseModel):
    name: str
    children: list[Tree] = []


class Mixed(msgspec.Struct):
    model: Model
    trees: list[Tree]


REVIEW = {
    "title": "Review",
    "type": "object",
    "properties": {
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "mood": {"enum": ["bad", "good"], "default": "good"},
    },
    "required": ["stars"],
}


@pytest.mark.parametrize(
    ("output", "value", "made"),
    [
        (Review, {"stars": 2}, Review(2)),
        (Reviews, {"reviews": [{"stars": 1, "mood": "bad"}]}, Reviews([Review(1, "bad")])),
        (Thread, {"text": "a", "answers": [{"text": "b"}]}, Thread("a", [Thread("b")])),
        (Answer, {"text": "a"}, Answer("a")),
        (Span, {"first": 1}, {"first": 1}),
        (Model, {"n": 1}, Model(n=1)),
        (Tree, {"name": "a", "children": [{"name": "b"}]}, Tree(name="a", children=[Tree(name="b")])),
        (Mixed, {"model": {"n": 1}, "trees": [{"name": "a"}]}, Mixed(Model(n=1), [Tree(name="a")])),
        (OutputSchema(Model), {"n": 1}, Model(n=1)),
    ],
)
def test_a_schema_is_an_object_at_its_top_that_takes_values_of_the_type(output, value, made):
    schema = schema_of(output)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["type"] == "object"
    jsonschema.validate(value, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({}, schema)
    assert as_type(value, output) == made


def test_a_schema_without_nested_types_has_no_definitions():
    assert schema_of(Review) == REVIEW
    assert schema_of(Reviews)["$defs"] == {"Review": REVIEW}
    assert set(schema_of(Thread)["$defs"]) == {"Thread"}


def test_a_schema_is_returned_as_it_is():
    assert schema_of(REVIEW) == REVIEW
    assert schema_of(OutputSchema(REVIEW)) == REVIEW
    assert as_type({"stars": 2}, REVIEW) == {"stars": 2}


def test_lists_of_types_have_a_schema_too():
    assert schema_of(list[Model])["type"] == "array"
    assert as_type([{"n": 1}], list[Model]) == [Model(n=1)]
    assert as_type([{"stars": "3"}], list[Review]) == [Review(3)]


@pytest.mark.parametrize("output", [object, "Review", 5, list[object]])
def test_what_has_no_schema_is_told(output):
    with pytest.raises(TypeError, match="is no type of an output: "):
        schema_of(output)


def test_the_way_out_is_told_too():
    with pytest.raises(
        TypeError, match="object has no JSON schema; take plain types, a pydantic model, msgspec Struct"
    ):
        schema_of(object)


@pytest.mark.parametrize(
    ("value", "output", "why"),
    [
        ({"stars": 9}, Review, "Expected `int` <= 5 - at `$.stars`"),
        ({"reviews": [{}]}, Reviews, "Object missing required field `stars` - at `$.reviews[0]`"),
        ([], Review, "Expected `object`, got `array`"),
        ({"first": "x"}, Span, "Expected `int`, got `str` - at `$.first`"),
        ({"stars": 9}, REVIEW, "9 is greater than the maximum of 5 at $.stars"),
        ({}, OutputSchema(REVIEW), "'stars' is a required property at $"),
        ({"n": "x"}, Model, "n: Input should be a valid integer, unable to parse string as an integer"),
        (
            {"name": "a", "children": [{}, 3]},
            Tree,
            "children.0.name: Field required; children.1: Input should be a valid",
        ),
        ({"model": {}, "trees": []}, Mixed, "n: Field required - at `$.model`"),
    ],
)
def test_an_answer_that_does_not_fit_is_a_value_error_that_a_model_can_read(value, output, why):
    with pytest.raises(ValueError) as caught:
        as_type(value, output)
    assert str(caught.value).startswith(why)
    assert "pydantic.dev" not in str(caught.value)


def test_a_validator_of_the_users_speaks_for_itself():
    class Even(pydantic.BaseModel):
        n: int

        @pydantic.field_validator("n")
        @classmethod
        def check(cls, n: int) -> int:
            if n % 2:
                raise ValueError("odd")
            return n

    assert as_type({"n": 2}, Even).n == 2
    with pytest.raises(ValueError, match=r"^n: Value error, odd$"):
        as_type({"n": 1}, Even)

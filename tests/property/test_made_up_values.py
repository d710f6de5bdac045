"""A value that is made up from a type can be decoded into it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from typing import Annotated, Literal, NamedTuple, NotRequired, TypedDict

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from agentflow.api.codecs import JSON, MSGPACK
from agentflow.cli.verify.examples import example_of
from agentflow.cli.verify.type_schemas import schema_of
from agentflow.runtime.codecs import input_decoder


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Tagged(msgspec.Struct, tag="tagged"):
    number: int


class Other(msgspec.Struct, tag="other"):
    text: str


class Listed(msgspec.Struct, array_like=True, tag=3):
    number: int
    text: str
    optional: int = 1


@dataclasses.dataclass
class Plain:
    when: dt.datetime
    at: dt.time


class Named(NamedTuple):
    number: int
    text: str


class Typed(TypedDict):
    number: int
    text: NotRequired[str]


class Tree(msgspec.Struct):
    name: str
    left: Tree | None
    leaves: list[Tree]


bounds = st.integers(-1000, 1000)


@st.composite
def whole_numbers(draw):
    low, width = draw(bounds), draw(st.integers(0, 50))
    names = draw(st.sampled_from([(), ("ge",), ("gt",), ("le",), ("lt",), ("ge", "le"), ("gt", "le"), ("ge", "lt")]))
    # Between two exclusive bounds there has to be a number.
    high = low + width + 1
    return Annotated[int, Meta(**{name: low if name[0] == "g" else high for name in names})]


@st.composite
def numbers(draw):
    low, width = draw(bounds), draw(st.integers(1, 50))
    names = draw(st.sampled_from([(), ("ge",), ("gt",), ("le",), ("lt",), ("gt", "lt"), ("ge", "le")]))
    return Annotated[float, Meta(**{name: low if name[0] == "g" else low + width for name in names})]


@st.composite
def texts(draw):
    least = draw(st.integers(0, 12))
    return Annotated[str, Meta(min_length=least, max_length=least + draw(st.integers(0, 12)))]


plain = st.sampled_from(
    [
        bool, int, float, str, bytes, Color, Literal["x", "y"], Literal[3], dt.datetime, dt.date, dt.time,
        dt.timedelta, uuid.UUID, decimal.Decimal, Tagged, Tagged | Other, Tree, Listed, Plain, Named, Typed, dict, list, type(None),
        Annotated[int, Meta(multiple_of=7)],
    ]
)  # fmt: skip
types = st.recursive(
    st.one_of(plain, whole_numbers(), numbers(), texts()),
    lambda inner: st.one_of(
        inner.map(lambda one: list[one]),
        st.builds(lambda one, least: Annotated[list[one], Meta(min_length=least)], inner, st.integers(0, 3)),
        inner.map(lambda one: dict[str, one]),
        st.builds(lambda one, other: tuple[one, other], inner, inner),
        inner.map(lambda one: one if one is type(None) else one | None),
        st.lists(inner, max_size=4).map(
            lambda fields: msgspec.defstruct("Made", [(f"f{n}", kind) for n, kind in enumerate(fields)])
        ),
    ),
    max_leaves=6,
)


@given(kind=types)
def test_a_made_up_value_can_be_decoded(kind):
    value = example_of(schema_of(kind))
    msgspec.json.decode(JSON.encode(value), type=kind)


@given(kind=st.lists(st.one_of(whole_numbers(), numbers(), texts()), max_size=4))
def test_it_can_in_the_other_codec_too(kind):
    made = msgspec.defstruct("Made", [(f"f{n}", one) for n, one in enumerate(kind)])
    input_decoder(MSGPACK, made)(MSGPACK.encode(example_of(schema_of(made))))


class Model(pydantic.BaseModel):
    number: int = pydantic.Field(gt=3, le=9)
    share: float = pydantic.Field(gt=0, lt=1)
    text: str = pydantic.Field(min_length=4, max_length=5)
    color: Color
    when: dt.datetime
    inner: Inner | None
    many: list[Inner] = pydantic.Field(min_length=2)
    optional: str = "left out"


class Inner(pydantic.BaseModel):
    name: str


Model.model_rebuild()


def test_models_of_pydantic_are_made_up_too():
    value = example_of(Model.model_json_schema())
    assert "optional" not in value
    assert input_decoder(JSON, Model)(JSON.encode(value)).number > 3


def test_a_property_that_is_wanted_is_there_although_it_may_be_left_out():
    made = msgspec.defstruct("Made", [("text", str), ("key", int | None, None)])
    assert example_of(schema_of(made), ["key"]) == {"text": "verify", "key": 1}


class Endless(msgspec.Struct):
    again: Endless


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Annotated[str, Meta(pattern="^[0-9]{7}$")], r"has to match \^\[0-9\]"),
        (Endless, "nested without end"),
        (Annotated[int, Meta(gt=3, lt=4)], "has bounds that leave no number"),
    ],
)
def test_what_cannot_be_made_up_is_told(kind, reason):
    with pytest.raises(Exception, match=reason):
        example_of(schema_of(kind))

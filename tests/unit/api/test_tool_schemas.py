"""What a model is told of a function's arguments, and what becomes of what it says."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import functools
import pathlib
import re
import uuid
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Optional, TypedDict

import annotated_types
import jsonschema
import msgspec
import pydantic
import pytest

from agentflow.api.tool_schemas import ToolArguments
from agentflow.errors import ToolArgumentsInvalid

if TYPE_CHECKING:
    from somewhere import Client, Result  # as linters have it: there for type checkers only


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.StrEnum):
    S = "s"
    L = "l"


class Item(msgspec.Struct):
    """What is ordered."""

    sku: str
    number: int = 1


@dataclasses.dataclass
class Address:
    city: str
    lines: list[str] = dataclasses.field(default_factory=list)


class Span(TypedDict, total=False):
    first: int


class Point(NamedTuple):
    x: float
    y: float


class Inner(pydantic.BaseModel):
    n: int = pydantic.Field(ge=0, description="how many")


class Outer(pydantic.BaseModel):
    inner: Inner
    more: list[Inner] = []


class Node(pydantic.BaseModel):
    name: str
    children: list[Node] = []


class Holder(msgspec.Struct):
    outer: Outer


def schema(function):
    found = ToolArguments(function).schema
    jsonschema.Draft202012Validator.check_schema(found)
    assert (found["type"], found["additionalProperties"]) == ("object", False)
    return found


def properties(function):
    return schema(function)["properties"]


def read(function, **arguments):
    return ToolArguments(function).read("f", arguments)


def refused(function, arguments):
    with pytest.raises(ToolArgumentsInvalid) as caught:
        ToolArguments(function).read("f", arguments)
    return caught.value.why


# -- types
def test_plain_types_are_those_of_json():
    def f(a: int, b: str, c: float, d: bool, e: None, g: list[str], h: dict[str, int], i: list, j: dict, k: Any, m): ...

    assert properties(f) == {
        "a": {"type": "integer"},
        "b": {"type": "string"},
        "c": {"type": "number"},
        "d": {"type": "boolean"},
        "e": {"type": "null"},
        "g": {"type": "array", "items": {"type": "string"}},
        "h": {"type": "object", "additionalProperties": {"type": "integer"}},
        "i": {"type": "array"},
        "j": {"type": "object"},
        "k": {},
        "m": {},
    }
    assert schema(f)["required"] == list("abcdeghijkm")


def test_optional_types_may_be_null():
    def f(a: Optional[int], b: str | None = None): ...  # noqa: UP045 (as people write it)

    either = [{"type": "integer"}, {"type": "null"}]
    assert properties(f) == {
        "a": {"anyOf": either},
        "b": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    }
    assert schema(f)["required"] == ["a"]
    assert read(f, a=None) == {"a": None}


def test_literals_and_enums_name_what_there_is():
    def f(a: Literal["x", "y"], b: Color, c: Size = Size.S): ...

    found = schema(f)
    assert found["properties"]["a"] == {"enum": ["x", "y"]}
    assert found["properties"]["c"] == {"$ref": "#/$defs/Size", "default": "s"}
    assert found["$defs"]["Color"]["enum"] == ["blue", "red"]
    assert read(f, a="x", b="red", c="l") == {"a": "x", "b": Color.RED, "c": Size.L}
    assert refused(f, {"a": "x", "b": "green"}) == "Invalid enum value 'green' - at `$.b`"


def test_dates_and_ids_are_texts_for_the_model_and_values_for_the_function():
    def f(at: dt.date, order: uuid.UUID): ...

    assert {name: value["type"] for name, value in properties(f).items()} == {"at": "string", "order": "string"}
    order = uuid.UUID(int=7)
    assert read(f, at="2024-05-01", order=str(order)) == {"at": dt.date(2024, 5, 1), "order": order}


def test_structs_dataclasses_and_typed_dicts_are_objects():
    def f(item: Item, address: Address, span: Span, items: list[Item], point: Point): ...

    found = schema(f)
    assert found["properties"]["items"] == {"type": "array", "items": {"$ref": "#/$defs/Item"}}
    assert set(found["$defs"]) == {"Item", "Address", "Span", "Point"}
    assert found["$defs"]["Item"]["required"] == ["sku"]
    assert read(
        f,
        item={"sku": "a"},
        address={"city": "Bonn"},
        span={"first": 1},
        items=[{"sku": "b", "number": "2"}],
        point=[1, 2],
    ) == {
        "item": Item("a"),
        "address": Address("Bonn"),
        "span": {"first": 1},
        "items": [Item("b", 2)],
        "point": Point(1, 2),
    }
    assert "missing required field `city` - at `$.address`" in refused(f, {"item": {"sku": "a"}, "address": {}})


def test_definitions_of_pydantic_models_are_where_references_look_for_them():
    def f(outer: Outer, node: Node, many: list[Outer], holder: Holder, maybe: Outer | None = None): ...

    found = schema(f)
    assert set(found["$defs"]) == {"Inner", "Node", "Holder"}
    assert "$defs" not in str(found["properties"]).replace("#/$defs/", "")
    outer = {"inner": {"n": 1}, "more": [{"n": 2}]}
    arguments = {
        "outer": outer,
        "node": {"name": "a", "children": [{"name": "b"}]},
        "many": [outer],
        "holder": {"outer": outer},
    }
    jsonschema.validate(arguments, found)
    with pytest.raises(jsonschema.ValidationError, match="-1 is less than the minimum"):
        jsonschema.validate({**arguments, "outer": {"inner": {"n": -1}}}, found)
    made = Outer(inner=Inner(n=1), more=[Inner(n=2)])
    assert read(f, **arguments) == {
        "outer": made,
        "node": Node(name="a", children=[Node(name="b")]),
        "many": [made],
        "holder": Holder(made),
    }


def test_two_types_of_one_name_are_told():
    other = pydantic.create_model("Inner", text=(str, ...))
    outer = pydantic.create_model("Other", inner=(other, ...))

    def f(a, b): ...

    f.__annotations__ = {"a": Outer, "b": outer}
    with pytest.raises(TypeError, match="tool 'f': two types are named Inner"):
        ToolArguments(f)


def test_a_parameter_may_be_named_as_parts_of_schemas_are():
    def f(type: str, properties: dict[str, int], required: bool = False): ...  # noqa: A002

    assert set(properties_of := properties(f)) == {"type", "properties", "required"}
    assert properties_of["type"] == {"type": "string"}
    assert read(f, type="x", properties={}) == {"type": "x", "properties": {}}


# -- descriptions and limits
def google(a: int, b: str = "x"):
    """Find things.

    In many
    places.

    Args:
        a: The a.
        b (str): The b, which has
            two lines.

    Returns:
        Nothing.
    """


def numpy(a: int, b: str = "x"):
    """Find things.

    In many
    places.

    Parameters
    ----------
    a : int
        The a.
    b : str, optional
        The b, which has
        two lines.

    Returns
    -------
    None
        Nothing.
    """


def rest(a: int, b: str = "x"):
    """Find things.

    In many
    places.

    :param a: The a.
    :param b: The b, which has
        two lines.
    :returns: Nothing.
    """


@pytest.mark.parametrize("function", [google, numpy, rest])
def test_docstrings_of_every_style_describe_the_tool_and_its_arguments(function):
    arguments = ToolArguments(function)
    assert arguments.description == "Find things.\n\nIn many\nplaces."
    assert arguments.schema["properties"] == {
        "a": {"type": "integer", "description": "The a."},
        "b": {"type": "string", "description": "The b, which has\ntwo lines.", "default": "x"},
    }


def test_without_a_docstring_there_is_no_description():
    assert ToolArguments(lambda: None).description == ""


def test_annotations_describe_and_limit_an_argument():
    def f(
        text: Annotated[str, "what to say"],
        meta: Annotated[int, msgspec.Meta(ge=1, description="of msgspec")],
        field: Annotated[int, pydantic.Field(ge=1, le=9, description="of pydantic")],
        bare: Annotated[str, annotated_types.MinLen(2)],
        unknown: Annotated[str, object()] = "x",
        both: Annotated[int, pydantic.Field(lt=3)] = 2,
    ):
        """Say.

        Args:
            text: What the docstring says does not count.
            both: Of the docstring.
        """

    assert properties(f) == {
        "text": {"type": "string", "description": "what to say"},
        "meta": {"type": "integer", "minimum": 1, "description": "of msgspec"},
        "field": {"type": "integer", "minimum": 1, "maximum": 9, "description": "of pydantic"},
        "bare": {"type": "string", "minLength": 2},
        "unknown": {"type": "string", "default": "x"},
        "both": {"type": "integer", "exclusiveMaximum": 3, "description": "Of the docstring.", "default": 2},
    }
    assert refused(f, {"text": "", "meta": 1, "field": 10, "bare": "ab"}) == "Expected `int` <= 9 - at `$.field`"


# -- defaults
def test_an_argument_that_a_model_leaves_out_has_the_functions_default():
    marker = object()

    def f(a: int = 3, b: list[str] = ["x"], c: Item = Item("s"), d: Any = marker, e: Color = Color.RED): ...  # noqa: B006, B008

    assert schema(f)["required"] == []
    defaults = {name: value.get("default", "none") for name, value in properties(f).items()}
    assert defaults == {"a": 3, "b": ["x"], "c": "none", "d": "none", "e": "red"}
    assert read(f) == {}
    assert read(f, a=4) == {"a": 4}


def test_keyword_only_parameters_are_arguments():
    def f(a: int, *, limit: int = 10): ...

    assert schema(f)["required"] == ["a"]
    assert read(f, a=1, limit=2) == {"a": 1, "limit": 2}


# -- functions that are no tools
def test_parameters_that_a_model_cannot_name_are_refused():
    def many(*args: int): ...
    def keywords(**options: int): ...
    def positional(a: int, /): ...

    for function, parameter in ((many, "*args"), (keywords, "**options"), (positional, "a")):
        with pytest.raises(TypeError, match=rf"a model cannot give parameter '{re.escape(parameter)}: 'int''"):
            ToolArguments(function)


def test_a_method_is_told_to_be_static():
    class Agent:
        def find(self, a: int): ...

    with pytest.raises(TypeError, match="tool 'find' takes self; write @staticmethod above it"):
        ToolArguments(Agent.find)
    assert list(properties(Agent().find)) == ["a"]


def test_what_has_no_name_is_no_tool():
    with pytest.raises(TypeError, match="is no function; a tool is one, with a name and type hints"):
        ToolArguments(functools.partial(google, a=1))


def test_a_wrapped_function_is_described_as_what_it_wraps():
    @functools.cache
    def cached(a: int = 3):
        """Find."""

    assert ToolArguments(cached).description == "Find."
    assert properties(cached) == {"a": {"type": "integer", "default": 3}}


def test_types_without_a_schema_are_told_with_the_fix():
    def f(path: pathlib.Path): ...

    with pytest.raises(TypeError, match=r"tool 'f': Path has no JSON schema; take plain types.*or inject the argument"):
        ToolArguments(f)


def test_types_that_only_type_checkers_see_are_told_where_a_model_gives_them():
    def f(client: Client): ...

    with pytest.raises(TypeError, match="tool 'f': name 'Client' is not defined; types of its parameters are names"):
        ToolArguments(f)


# -- injected arguments
def test_injected_arguments_are_hidden_and_not_to_be_overridden():
    def f(a: int, tenant: str, client: Client) -> Result:  # neither type is there at run time
        """Find.

        Args:
            a: The a.
            tenant: Nobody's business.
        """

    arguments = ToolArguments(f, frozenset({"tenant", "client"}))
    assert arguments.schema["properties"] == {"a": {"type": "integer", "description": "The a."}}
    assert arguments.schema["required"] == ["a"]
    assert "business" not in str(arguments.schema) + arguments.description
    assert arguments.read("f", {"a": 1, "tenant": "evil", "client": None}) == {"a": 1}


def test_what_is_injected_has_to_be_a_parameter():
    with pytest.raises(ValueError, match="tool 'google' has no parameter 'tenant', 'user' to inject"):
        ToolArguments(google, frozenset({"user", "tenant", "a"}))


# -- what a model says
def test_numbers_in_quotes_are_numbers():
    def f(a: int, b: float, c: bool): ...

    assert read(f, a="5", b="1.5", c="true") == {"a": 5, "b": 1.5, "c": True}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "Object missing required field `item`"),
        ({"item": {"sku": 5}}, "Expected `str`, got `int` - at `$.item.sku`"),
        ({"item": {"sku": "a"}, "limits": [1, "x"]}, "Expected `int`, got `str` - at `$.limits[1]`"),
        ({"item": {"sku": "a"}, "limit": 1}, "Object contains unknown field `limit`"),
        (
            {"item": {"sku": "a"}, "outer": {"inner": {"n": "many"}}},
            "inner.n: Input should be a valid integer, unable to parse string as an integer - at `$.outer`",
        ),
        ({"item": {"sku": "a"}, "outer": 3}, "Input should be a valid dictionary or instance of Outer - at `$.outer`"),
        ('{"item": {"sku": ', "they are no JSON object"),
    ],
)
def test_a_model_is_told_where_it_is_wrong_and_why(arguments, why):
    def f(item: Item, limits: list[int] = [], outer: Outer | None = None): ...  # noqa: B006

    assert refused(f, arguments) == why


def test_the_error_names_the_tool():
    with pytest.raises(ToolArgumentsInvalid, match="the arguments for tool 'finder' are wrong: Object missing"):
        ToolArguments(google).read("finder", {})

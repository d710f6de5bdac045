"""Resources: arguments, opening, and how agents declare them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import msgspec
import pytest

from agentflow import Agent, Budget, ErrorHandlingStrategy, RateLimit, ResourceDescriptor, ResourceType
from agentflow.actions.policies import chat_policy
from agentflow.api.options import Configuration
from agentflow.api.prompts import Prompt
from agentflow.api.resources import (
    Resource,
    chat_model_connection,
    chat_model_setup,
    mcp_server,
    prompt,
)
from agentflow.api.tools import FunctionTool, tool
from agentflow.errors import NotConfigured
from agentflow.runtime.resource_classes import build
from agentflow.runtime.secrets import Secrets


class Place(Resource):
    address: str
    api_key: str = ""
    tags: list[str] = []
    headers: dict[str, str] = {}
    known: ClassVar[list[str]] = ["all"]

    opened = 0
    error: ClassVar[Exception | None] = None

    @classmethod
    def resource_type(cls):
        return ResourceType.CHAT_MODEL_CONNECTION

    async def open(self):
        self.opened += 1
        if self.error is not None:
            raise self.error


class Far(Place):
    timeout: float = 1.0
    address: str = "far"


class Neighbours:
    """Stands where the runtime's resources of an agent do."""

    def __init__(self, resources=None):
        self._resources = resources or {}
        self.asked = []

    def get_resource(self, name, type):  # noqa: A002
        return self._resources[name, type]

    async def opened(self, resource):
        self.asked.append(resource)
        return resource


# -- arguments
def test_annotated_attributes_are_keyword_arguments():
    place = Place(address="here", tags=["a"])
    assert (place.address, place.api_key, place.tags) == ("here", "", ["a"])
    with pytest.raises(TypeError, match="address"):
        Place()
    with pytest.raises(TypeError, match="unknown"):
        Place(address="here", unknown=1)
    with pytest.raises(TypeError, match="positional"):
        Place("here")


def test_a_subclass_adds_arguments_and_gives_others_a_default():
    assert (Far().address, Far().timeout, Far(address="near").address) == ("far", 1.0, "near")
    assert [field.name for field in dataclasses.fields(Far)] == ["address", "api_key", "tags", "headers", "timeout"]


def test_each_resource_has_defaults_of_its_own():
    one, other = Far(), Far()
    one.tags.append("x")
    one.headers["x"] = "y"
    assert (other.tags, other.headers, Far().tags) == ([], {}, [])


def test_what_belongs_to_the_class_is_no_argument():
    assert Far().known is Place.known
    with pytest.raises(TypeError, match="known"):
        Far(known=[])


def test_a_resource_shows_its_name_and_no_argument():
    place = Place(address="here", api_key="s3cret")
    assert repr(place) == "Place()"
    place.name = "mine"
    assert repr(place) == "Place('mine')"


def test_a_resource_is_itself_only():
    assert Far() != Far()
    assert len({Far(), Far()}) == 2


def test_the_arguments_are_json_for_a_stored_plan():
    assert msgspec.json.decode(Far(tags=["a"]).model_dump_json()) == {
        "address": "far", "api_key": "", "headers": {}, "tags": ["a"], "timeout": 1.0,
    }  # fmt: skip


# -- opening
async def test_awaiting_a_resource_opens_it_once():
    place = Far()
    assert await place is place
    assert await place is place
    assert place.opened == 1


async def test_a_resource_that_could_not_be_opened_is_opened_by_the_next_one_who_asks():
    place = Far()
    place.error = OSError("no route")
    with pytest.raises(OSError, match="no route"):
        await place
    place.error = None
    await place
    assert place.opened == 2


async def test_a_resource_of_an_engine_is_opened_by_it():
    place = Far()
    place.context = Neighbours()
    assert await place is place
    assert (place.context.asked, place.opened) == ([place], 0)


def test_a_resource_finds_its_neighbours_in_an_engine_only():
    place, neighbour = Far(), Far()
    with pytest.raises(NotConfigured, match=r"Far\(\) asks for resource 'n' \(prompt\), and belongs to no engine"):
        place.get_resource("n", ResourceType.PROMPT)
    place.context = Neighbours({("n", ResourceType.PROMPT): neighbour})
    assert place.get_resource("n", ResourceType.PROMPT) is neighbour
    assert Resource.context is None


# -- descriptors
def test_a_descriptor_names_a_class_and_its_arguments():
    by_class = ResourceDescriptor(Far, api_key="${env:KEY}")
    assert (by_class.clazz, by_class.arguments) == (f"{__name__}.Far", {"api_key": "${env:KEY}"})
    assert ResourceDescriptor("openai", {"a": 1}, b=2).arguments == {"a": 1, "b": 2}
    assert ResourceDescriptor("openai").arguments == {}


# -- agents
class Support(Agent):
    @staticmethod
    @chat_model_connection
    def place():
        return ResourceDescriptor(Far)

    @chat_model_setup
    @staticmethod
    def model():
        return ResourceDescriptor("setup", connection="place")

    @prompt
    def greeting():
        return Prompt.from_text("hello")

    @mcp_server
    def files():
        return ResourceDescriptor("mcp")

    @tool
    @staticmethod
    def find(text: str) -> str:
        """Find something."""
        return text

    @staticmethod
    @tool(name="send-mail", timeout="5s", requires_approval=True)
    async def send(to: str) -> None: ...


class Sales(Support):
    files = None

    @prompt
    def greeting():
        return Prompt.from_text("welcome")

    @staticmethod
    @tool
    def price(sku: str) -> float: ...


def resources(agent):
    return {name: (kind, resource) for name, kind, resource in agent.resources}


def test_a_descriptor_takes_enums_and_structs_as_the_values_that_they_stand_for():
    descriptor = ResourceDescriptor(
        "openai",
        {"limits": [RateLimit(per="connection", concurrency=2)]},
        error_handling_strategy=ErrorHandlingStrategy.FALLBACK,
        budgets=[Budget(per="day", calls=3)],
    )
    plain = {
        "limits": [{"per": "connection", "concurrency": 2, "requests-per-minute": None, "tokens-per-minute": None}],
        "error_handling_strategy": "fallback",
        "budgets": [{"per": "day", "calls": 3, "tokens": None, "money": None, "turns": None}],
    }
    assert descriptor.arguments == plain
    assert {type(value) for value in descriptor.arguments.values()} == {list, str}
    setup = build("model", ResourceType.CHAT_MODEL, descriptor, Secrets(), {})
    assert chat_policy(setup, Configuration()).budgets == (Budget(per="day", calls=3),)


def test_decorated_functions_declare_resources_named_as_they_are():
    found = resources(Support())
    assert {name: kind for name, (kind, _) in found.items()} == {
        "place": ResourceType.CHAT_MODEL_CONNECTION,
        "model": ResourceType.CHAT_MODEL,
        "greeting": ResourceType.PROMPT,
        "files": ResourceType.MCP_SERVER,
        "find": ResourceType.TOOL,
        "send-mail": ResourceType.TOOL,
    }
    assert found["model"][1] == ResourceDescriptor("setup", connection="place")
    assert found["find"][1].metadata.description == "Find something."


def test_resources_are_inherited_replaced_and_removed_as_actions_are():
    found = resources(Sales())
    assert set(found) == {"place", "model", "greeting", "find", "send-mail", "price"}
    assert found["greeting"][1].format_string() == "welcome"
    assert resources(Support())["greeting"][1].format_string() == "hello"


def test_a_tool_has_the_name_that_a_model_is_told():
    sent = resources(Support())["send-mail"][1]
    assert isinstance(sent, FunctionTool)
    assert sent.metadata.name == "send-mail"
    assert (sent.policy.timeout, sent.policy.requires_approval) == ("5s", True)


def test_added_resources_come_behind_declared_ones_and_functions_become_tools():
    def weather(city: str) -> str: ...

    agent = Support().add_resource("weather", ResourceType.TOOL, weather)
    agent.add_resource("other", ResourceType.PROMPT, Prompt.from_text("x"))
    assert [name for name, _, _ in agent.resources][-2:] == ["weather", "other"]
    made = resources(agent)["weather"][1]
    assert (type(made), made.metadata.name) == (FunctionTool, "weather")
    assert "weather" not in resources(Support())


def test_decorated_functions_can_still_be_called():
    assert Support.find("a") == "a"
    assert Support.greeting().format_string() == "hello"


def test_a_descriptor_names_its_class_in_one_of_two_ways():
    descriptor = ResourceDescriptor(target_module="shop.models", target_clazz="Own", model="m")
    assert descriptor == ResourceDescriptor("shop.models.Own", {"model": "m"})
    for wrong in ({}, {"target_clazz": "Own"}, {"target_module": "shop"}, {"clazz": "a.B", "target_module": "shop"}):
        with pytest.raises(TypeError, match="give clazz, or target_module and target_clazz"):
            ResourceDescriptor(**wrong)

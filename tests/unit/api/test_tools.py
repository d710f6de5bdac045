"""Tools: how functions become them, and how they are called with what a model says."""

from __future__ import annotations

import inspect

import msgspec
import pytest

from agentflow import Agent, ResourceType, Retry, reconcile
from agentflow.api.tools import (
    FunctionTool,
    InjectedArg,
    Tool,
    ToolMetadata,
    ToolParameterSource,
    ToolPolicy,
    ToolType,
    tool,
)
from agentflow.errors import ToolArgumentsInvalid


def find(text: str, tenant: str, limit: int = 10) -> list[str]:
    """Find orders.

    Args:
        text: What to look for.
    """
    return [text, tenant, limit]


async def find_later(text: str, tenant: str = "nobody") -> list[str]:
    return [text, tenant]


class Echo(Tool):
    def call(self, **kwargs):
        return kwargs


# -- made of functions
def test_a_function_is_described_by_its_name_hints_and_docstring():
    made = Tool.from_callable(find, injected_args={"tenant": InjectedArg.from_config("tenant")})
    assert made.metadata.name == "find"
    assert made.metadata.description == "Find orders."
    assert made.metadata.args_schema["properties"] == {
        "text": {"type": "string", "description": "What to look for."},
        "limit": {"type": "integer", "default": 10},
    }
    assert (made.tool_type(), made.resource_type()) == (ToolType.FUNCTION, ResourceType.TOOL)
    assert made.call("a", "b", limit=1) == ["a", "b", 1]


def test_a_tool_may_have_another_name_than_its_function():
    assert Tool.from_callable(find, name="find-orders").metadata.name == "find-orders"


def test_sources_of_injected_arguments_may_be_plain_values():
    made = Tool.from_callable(find, injected_args={"tenant": {"source": "short_term_memory", "key": "t"}})
    assert made.injected_args == {"tenant": InjectedArg.from_short_term_memory("t")}
    with pytest.raises(ValueError, match="unknown field `path`"):
        Tool.from_callable(find, injected_args={"tenant": {"source": "config", "path": "t"}})
    with pytest.raises(ValueError, match="Invalid enum value 'disk'"):
        Tool.from_callable(find, injected_args={"tenant": {"source": "disk", "key": "t"}})


@pytest.mark.parametrize(
    ("made", "source"),
    [
        (InjectedArg.from_config("k"), ToolParameterSource.CONFIG),
        (InjectedArg.from_sensory_memory("k"), ToolParameterSource.SENSORY_MEMORY),
        (InjectedArg.from_short_term_memory("k"), ToolParameterSource.SHORT_TERM_MEMORY),
        (InjectedArg(key="k"), ToolParameterSource.SENSORY_MEMORY),
    ],
)
def test_injected_arguments_say_where_they_come_from(made, source):
    assert made == InjectedArg(source, "k")


def test_what_is_injected_has_to_be_a_parameter():
    with pytest.raises(ValueError, match="tool 'find' has no parameter 'user' to inject"):
        Tool.from_callable(find, injected_args={"user": InjectedArg.from_config("user")})


def test_policies_are_fields_of_one():
    made = Tool.from_callable(find, timeout="5s", retry=Retry(attempts=2), requires_approval=True, result_max=10)
    assert made.policy == ToolPolicy(timeout="5s", retry=Retry(attempts=2), requires_approval=True, result_max=10)
    with pytest.raises(TypeError, match="timeuot"):
        Tool.from_callable(find, timeuot="5s")


@pytest.mark.parametrize(
    ("policy", "kind", "told"),
    [
        ({"timeout": "soon"}, ValueError, "timeout of a tool: 'soon' is not a duration"),
        ({"timeout": 5}, ValueError, "timeout of a tool: 5 is not a duration"),
        ({"approval_timeout": "soon"}, ValueError, "approval_timeout of a tool"),
        ({"result_max": -5}, ValueError, "result_max of a tool is a number of characters, at least 1, not -5"),
        ({"result_max": 0}, ValueError, "result_max"),
        ({"result_max": "many"}, ValueError, "result_max"),
        ({"retry": 3}, TypeError, "retry of a tool is a Retry, not 3"),
        ({"idempotent": "no"}, TypeError, "idempotent of a tool is True or False"),
        ({"requires_approval": 1}, TypeError, "requires_approval of a tool is True or False"),
        ({"reconciler": find}, TypeError, r"reconciler of a tool is reconcile\(function\)"),
    ],
)
def test_a_policy_that_cannot_work_is_refused_where_the_tool_is_declared(policy, kind, told):
    with pytest.raises(kind, match=told):
        Tool.from_callable(find, **policy)
    with pytest.raises(kind, match=told):
        tool(**policy)


def test_a_call_in_doubt_is_made_again_unless_the_policy_says_otherwise():
    by_asking = reconcile(lambda intent: None)
    assert ToolPolicy().on_in_doubt == "retry"
    assert ToolPolicy(idempotent=False).on_in_doubt == "fail"
    assert ToolPolicy(idempotent=False, reconciler=by_asking).on_in_doubt is by_asking


# -- calls
def test_what_a_model_says_has_the_types_of_the_parameters():
    made = Tool.from_callable(find)
    assert made.bind({"text": "a", "tenant": "t", "limit": "3"}, {})() == ["a", "t", 3]


def test_a_model_cannot_override_what_is_injected():
    made = Tool.from_callable(find, injected_args={"tenant": InjectedArg.from_config("tenant")})
    call = made.bind({"text": "a", "tenant": "evil"}, {"tenant": "acme"})
    assert call() == ["a", "acme", 10]


def test_an_injected_argument_that_is_not_there_has_the_functions_default():
    made = Tool.from_callable(find_later, injected_args={"tenant": InjectedArg.from_config("tenant")})
    assert made.bind({"text": "a", "tenant": "evil"}, {}).keywords == {"text": "a"}


async def test_the_call_of_a_coroutine_function_is_awaited():
    call = Tool.from_callable(find_later).bind({"text": "a"}, {})
    assert inspect.iscoroutinefunction(call.func)
    assert await call() == ["a", "nobody"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"text": 5, "tenant": "t"}, "Expected `str`, got `int` - at `$.text`"),
        ({"text": "a"}, "Object missing required field `tenant`"),
        ('{"text": ', "they are no JSON object"),
    ],
)
def test_wrong_arguments_are_told_before_the_function_is_called(arguments, why):
    with pytest.raises(ToolArgumentsInvalid) as caught:
        Tool.from_callable(find, name="finder").bind(arguments, {})
    assert str(caught.value) == f"the arguments for tool 'finder' are wrong: {why}"
    assert (caught.value.tool, caught.value.why) == ("finder", why)


def test_a_tool_of_another_kind_gets_what_the_model_says_and_what_it_cannot_say():
    echo = Echo(metadata=ToolMetadata("echo"))
    assert echo.bind({"a": 1, "b": 2}, {"b": 3})() == {"a": 1, "b": 3}
    with pytest.raises(ToolArgumentsInvalid, match="tool 'echo' are wrong: they are no JSON object"):
        echo.bind("{", {})
    assert (echo.tool_type(), ToolMetadata("a").args_schema) == (
        ToolType.MODEL_BUILT_IN,
        {"type": "object", "properties": {}},
    )
    with pytest.raises(NotImplementedError, match=r"Tool\.call"):
        Tool(metadata=ToolMetadata("a")).call()


def test_a_function_tool_made_by_hand_reads_arguments_too():
    made = FunctionTool(metadata=ToolMetadata("f"), function=find, injected_args={"tenant": InjectedArg(key="t")})
    assert made.bind({"text": "a", "limit": "2"}, {"tenant": "t"})() == ["a", "t", 2]


def test_a_stored_plan_has_what_the_model_is_told():
    made = Tool.from_callable(find_later)
    assert msgspec.json.decode(made.model_dump_json()) == msgspec.to_builtins(made.metadata)


# -- the decorator
class Shop(Agent):
    @tool
    @staticmethod
    def bare(text: str) -> str:
        """Bare."""
        return text

    @staticmethod
    @tool(injected_args={"tenant": InjectedArg.from_config("tenant")}, name="find", idempotent=False, timeout="1s")
    def with_options(text: str, tenant: str) -> str:
        return text + tenant


def test_the_decorator_leaves_the_function_as_it_is_and_its_agent_has_a_tool():
    assert (Shop.bare("a"), Shop.with_options("a", "b")) == ("a", "ab")
    bare, other = (resource for _, _, resource in Shop().resources)
    assert (bare.metadata.name, bare.metadata.description, bare.policy) == ("bare", "Bare.", ToolPolicy())
    assert (other.metadata.name, other.policy) == ("find", ToolPolicy(timeout="1s", idempotent=False))
    assert list(other.metadata.args_schema["properties"]) == ["text"]
    assert other.bind({"text": "a"}, {"tenant": "b"})() == "ab"


def test_a_tool_that_cannot_be_described_is_told_when_the_agent_is_looked_at():
    class Wrong(Agent):
        @tool
        def find(self, text: str): ...

    with pytest.raises(TypeError, match="tool 'find' takes self; write @staticmethod"):
        Wrong().resources  # noqa: B018


def test_description_of_two_lines_stays_one_paragraph():
    def order(item: str) -> None:
        """Order an item
        from the shop.

        More of it.
        """

    assert Tool.from_callable(order).metadata.description == "Order an item\nfrom the shop.\n\nMore of it."

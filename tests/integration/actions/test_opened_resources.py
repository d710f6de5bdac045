"""Resources of a process: opened when they are asked for, once, by whoever comes first; closed at the end; found by name."""

from __future__ import annotations

import asyncio
import importlib.metadata
import sys
from typing import Any, ClassVar

import pytest

from agentflow import Agent, Engine, Event, EventType, OutputEvent, RunFailed, RunnerContext
from agentflow.api.budgets import RateLimit
from agentflow.api.chat_messages import ChatMessage
from agentflow.api.chat_models import BaseChatModelConnection, BaseChatModelSetup
from agentflow.api.resources import Resource, ResourceDescriptor, ResourceType
from agentflow.errors import ConfigError
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.resource_classes import build
from agentflow.runtime.resources import Resources
from agentflow.runtime.secrets import Secrets
from agentflow.runtime.step_runner import current_step
from tests.engines import ONCE, agent_of
from tests.model_agents import asking


class Spoken(BaseChatModelConnection):
    """A connection of a user's own, as in Flink Agents: it overrides `chat`, and has something to open."""

    log: ClassVar[list[str]] = []
    fails: ClassVar[int] = 0

    greeting: str = "hi"
    api_key: str = ""
    size: int = 1

    async def open(self) -> None:
        await asyncio.sleep(0)
        if Spoken.fails:
            Spoken.fails -= 1
            Spoken.log.append("failed")
            raise OSError("nobody is there")
        Spoken.log.append("open")

    async def close(self) -> None:
        Spoken.log.append("close")

    async def chat(self, messages: Any, tools: Any = None, output_schema: Any = None, **kwargs: Any) -> ChatMessage:
        assert Spoken.log[-1] == "open"
        return ChatMessage("assistant", f"{self.greeting} {messages[-1].text}")


class Setup(BaseChatModelSetup):
    """A model of it."""


class Broken(Resource):
    """Cannot be closed."""

    async def close(self) -> None:
        raise ValueError("never")

    @classmethod
    def resource_type(cls) -> ResourceType:
        return ResourceType.VECTOR_STORE


NAME = f"{__name__}.Spoken"


@pytest.fixture(autouse=True)
def _nothing_was_opened() -> None:
    Spoken.log.clear()
    Spoken.fails = 0


def shared() -> list[Any]:
    return [
        ("spoken", ResourceType.CHAT_MODEL_CONNECTION, ResourceDescriptor(Spoken)),
        ("m", ResourceType.CHAT_MODEL, ResourceDescriptor(Setup, connection="spoken", retry_wait_interval="1ms")),
    ]


async def test_connection_is_opened_on_first_use_once_for_all_agents_and_closed_at_the_end() -> None:
    async with Engine([asking("A"), asking("B")], in_memory=True, resources=shared()) as engine:
        assert Spoken.log == []
        asked = [engine.submit(f"k{n}", "you", agent="AB"[n % 2]) for n in range(20)]
        assert {said[0]["text"] for said in await asyncio.gather(*asked)} == {"hi you"}
        assert Spoken.log == ["open"]
    assert Spoken.log == ["open", "close"]


async def test_connection_that_nobody_used_is_neither_opened_nor_closed() -> None:
    async with Engine(asking("A"), in_memory=True, resources=shared()):
        pass
    assert Spoken.log == []


async def test_connection_that_could_not_be_opened_is_tried_again_as_a_failed_call_is() -> None:
    Spoken.fails = 2
    async with Engine(asking("A"), in_memory=True, resources=shared()) as engine:
        (said,) = await engine.submit("k", "you")
        assert (said["text"], said["retries"]) == ("hi you", 2)
    assert Spoken.log == ["failed", "failed", "open", "close"]


async def test_health_says_how_each_resource_is_doing() -> None:
    resources, plan = Resources(), AgentPlan.from_agent(_agent(*shared()))
    of_agent = resources.of(plan)

    def states() -> dict[str, tuple[str, str]]:
        return {one.name: (one.state, one.error) for one in resources.health()}

    assert states() == {}
    spoken = of_agent.get_resource("spoken", ResourceType.CHAT_MODEL_CONNECTION)
    assert states() == {"spoken": ("built", "")}
    Spoken.fails = 1
    with pytest.raises(OSError, match="nobody"):
        await spoken
    assert states() == {"spoken": ("failed", "nobody is there")}
    opening = asyncio.ensure_future(of_agent.opened(spoken))
    await asyncio.sleep(0)
    assert states() == {"spoken": ("opening", "")}
    await opening
    assert states() == {"spoken": ("open", "")}
    await resources.close()
    assert states() == {"spoken": ("closed", "")}


async def test_resource_that_cannot_be_closed_keeps_no_other_open() -> None:
    resources = Resources()
    agent = _agent(*shared(), ("broken", ResourceType.VECTOR_STORE, ResourceDescriptor(Broken)))
    of_agent = resources.of(AgentPlan.from_agent(agent))
    await of_agent.get_resource("spoken", ResourceType.CHAT_MODEL_CONNECTION)
    await of_agent.get_resource("broken", ResourceType.VECTOR_STORE)
    await resources.close()
    assert Spoken.log == ["open", "close"]


async def test_one_who_gives_up_does_not_keep_the_others_from_an_open_resource() -> None:
    resources = Resources()
    of_agent = resources.of(AgentPlan.from_agent(_agent(*shared())))
    spoken = of_agent.get_resource("spoken", ResourceType.CHAT_MODEL_CONNECTION)
    first, second = (asyncio.ensure_future(of_agent.opened(spoken)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second is spoken
    assert Spoken.log == ["open"]
    await resources.close()


async def test_instance_with_two_names_is_opened_once() -> None:
    spoken = Spoken()
    resources = Resources()
    named = [(name, ResourceType.CHAT_MODEL_CONNECTION, spoken) for name in ("one", "other")]
    of_agent = resources.of(AgentPlan.from_agent(_agent(*named)))
    for name in ("one", "other"):
        assert await of_agent.get_resource(name, ResourceType.CHAT_MODEL_CONNECTION) is spoken
    await resources.close()
    assert Spoken.log == ["open", "close"]


async def test_resource_of_an_actions_own_is_opened_by_await() -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        spoken = await ctx.get_resource("spoken", ResourceType.CHAT_MODEL_CONNECTION)
        ctx.send_event(OutputEvent(spoken.greeting))

    async with Engine(agent_of(act, retry=ONCE), in_memory=True, resources=shared()) as engine:
        assert await engine.submit("k", 1) == ["hi"]


@pytest.mark.parametrize(
    ("name", "says"),
    [("spokn", "did you mean 'spoken'"), ("other", "one of: spoken")],
)
async def test_resource_that_is_not_there_is_named_with_the_nearest(name: str, says: str) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        await ctx.get_resource(name, ResourceType.CHAT_MODEL_CONNECTION)

    async with Engine(agent_of(act, retry=ONCE), in_memory=True, resources=shared()) as engine:
        with pytest.raises(RunFailed, match=says):
            await engine.submit("k", 1)


def _agent(*resources: Any) -> Agent:
    agent = asking()
    for resource in resources:
        agent.add_resource(*resource)
    return agent


def _built(clazz: str, **arguments: Any) -> Any:
    secrets = Secrets({"SET": "value-of-set"})
    return build("r", ResourceType.CHAT_MODEL_CONNECTION, ResourceDescriptor(clazz, arguments), secrets, {})


@pytest.mark.parametrize(
    ("clazz", "arguments", "says"),
    [
        (NAME, {"greting": "x"}, "unknown argument 'greting'; did you mean 'greeting'"),
        (NAME, {"zzz": "x"}, "it takes: greeting, api_key, size"),
        (NAME, {"size": "many"}, "argument 'size'"),
        (NAME, {"api_key": "${env:UNSET}"}, "environment variable UNSET of 'api_key' is not set"),
        (NAME, {"api_key": "${file:/nowhere/at/all}"}, "the file '/nowhere/at/all' of 'api_key' cannot be read"),
        (NAME, {"api_key": "${vault:x}"}, "is no reference"),
        (NAME, {"api_key": "$KEY_OF_IT"}, "'$KEY_OF_IT' of 'api_key' is no reference: write ${env:KEY_OF_IT}"),
        ("no.such.module.Class", {}, "cannot be imported"),
        (f"{__name__}.Nothing", {}, "has no class 'Nothing'"),
        (f"{__name__}.NAME", {}, "is no class of resources"),
        ("builtins.dict", {}, "is no class of resources"),
        ("unregistered", {}, "there is no chat_model_connection class 'unregistered'"),
    ],
)
def test_what_is_wrong_with_a_descriptor_is_said_with_its_place(clazz: str, arguments: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _built(clazz, **arguments)
    (problem,) = caught.value.problems
    assert "resource 'r' (chat_model_connection)" in problem
    assert says in problem


def test_arguments_are_converted_and_references_resolved() -> None:
    made = _built(NAME, greeting="${env:SET}!", size="3", api_key="${env:UNSET:-none}")
    assert (made.greeting, made.size, made.api_key) == ("value-of-set!", 3, "none")


def test_short_value_that_has_no_secrets_name_is_no_secret() -> None:
    secrets = Secrets({"TEMPERATURE": "1", "KEY": "k1", "REGION": "us-east-1"})
    arguments = {"temperature": "${env:TEMPERATURE}", "api_key": "${env:KEY}", "region": "${env:REGION}"}
    assert secrets.resolve(arguments) == {"temperature": "1", "api_key": "k1", "region": "us-east-1"}
    assert secrets.scrub("1 answer from us-east-1 with k1") == "1 answer from us-east-1 with ***"


class _Distribution(importlib.metadata.Distribution):
    """A package that offers a connection, as one that is installed does."""

    def read_text(self, filename: str) -> str | None:
        texts = {
            "METADATA": "Metadata-Version: 2.1\nName: fake-models\nVersion: 1.0\n",
            "entry_points.txt": f"[agentflow.chat_model_connection]\nspoken_there = {__name__}:Spoken\n"
            f"away = no_such_module:Class\n",
        }
        return texts.get(filename)

    def locate_file(self, path: Any) -> Any:
        return path


class _Finder(importlib.metadata.DistributionFinder):
    def find_spec(self, *args: Any) -> None:
        return None

    def find_distributions(self, context: Any = None) -> Any:
        return [_Distribution()]


@pytest.fixture
def _package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, _Finder()])


@pytest.mark.usefixtures("_package")
@pytest.mark.parametrize("name", ["spoken_there", "spoken-there"])
def test_class_that_a_package_offers_is_found_by_its_name(name: str) -> None:
    assert isinstance(_built(name), Spoken)


@pytest.mark.usefixtures("_package")
def test_offered_class_that_cannot_be_imported_or_is_misspelt_is_an_error_that_says_so() -> None:
    with pytest.raises(ConfigError) as caught:
        _built("away")
    assert "class 'away' cannot be imported" in str(caught.value.problems)
    with pytest.raises(ConfigError) as caught:
        _built("spoken-their")
    assert "did you mean 'spoken_there'" in str(caught.value.problems)


async def test_limits_of_a_setup_are_kept_over_all_keys() -> None:
    active, most = 0, 0

    class Counting(Spoken):
        async def chat(self, messages: Any, *args: Any, **kwargs: Any) -> ChatMessage:
            nonlocal active, most
            active += 1
            most = max(most, active)
            await asyncio.sleep(0.002)
            active -= 1
            return ChatMessage("assistant", "hi")

    limit = RateLimit(concurrency=3)
    resources = [
        ("spoken", ResourceType.CHAT_MODEL_CONNECTION, Counting()),
        ("m", ResourceType.CHAT_MODEL, Setup(connection="spoken", limits=[limit])),
    ]
    async with Engine(asking("A"), in_memory=True, resources=resources) as engine:
        await asyncio.gather(*(engine.submit(f"k{n}", "you") for n in range(60)))
    assert most == 3


async def test_event_of_an_agent_that_nobody_answers_is_no_error() -> None:
    def act(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(ctx.get_resource("m", ResourceType.CHAT_MODEL).connection))

    agent = Agent("A").add_action("act", [EventType.InputEvent], act)
    async with Engine(agent, in_memory=True, resources=shared()) as engine:
        assert await engine.submit("k", 1) == ["spoken"]


class Strict(Spoken):
    """One that looks at its arguments, and says which it does not like."""

    def __post_init__(self) -> None:
        raise ValueError(f"no key looks like {self.api_key}")


def test_what_cannot_be_made_shows_no_secret_that_it_was_to_be_made_with() -> None:
    descriptor = ResourceDescriptor(Strict, api_key="${env:KEY}")
    with pytest.raises(ConfigError, match=r"Strict cannot be made: no key looks like \*\*\*") as caught:
        build("c", ResourceType.CHAT_MODEL_CONNECTION, descriptor, Secrets({"KEY": "sk-0123456789"}), {})
    assert caught.value.__suppress_context__


async def test_resource_is_opened_outside_of_the_step_that_asks_first() -> None:
    seen = []

    class Asked(Spoken):
        async def open(self) -> None:
            seen.append(current_step())

    async def act(event: Event, ctx: RunnerContext) -> None:
        async def ask() -> tuple[str, int]:
            await ctx.get_resource("c", ResourceType.CHAT_MODEL_CONNECTION)
            return current_step()

        ctx.send_event(OutputEvent(await ctx.durable_execute_async(ask, name="ask")))

    agent = agent_of(act, retry=ONCE).add_resource("c", ResourceType.CHAT_MODEL_CONNECTION, Asked())
    async with Engine(agent, in_memory=True) as engine:
        assert await engine.submit("k", 1) == [[".0", 1]]
    assert seen == [("", 0)]

"""Calls of tools that a person approves or denies: in an engine, over its JSON endpoints, over restarts."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentflow import (
    Agent,
    CancelEvent,
    ConfigError,
    Engine,
    Event,
    EventType,
    InjectedArg,
    OutputEvent,
    ResourceType,
    RunnerContext,
    Tool,
    UnknownWait,
)
from agentflow.api.chat_messages import tool_call
from agentflow.errors import RecordTooLarge
from agentflow.integrations.asgi import engine_app
from agentflow.runtime.inbox import this_user
from agentflow.testing.scripted_models import ScriptedChatModel
from tests.engines import agent_of, until

WANTED = tool_call("refund", {"order": "o-7", "amount": 25, "card_token": "tok-1", "tenant": "another"}, "call-1")
CONFIG = {"checkpoint.interval": "10ms", "config.tenant": "acme"}


class Desk:
    """An agent with a model that wants refunds, and the refunds that were made."""

    def __init__(self, *replies: Any, name: str = "A", **policy: Any) -> None:
        self.made: list[tuple[str, int, str]] = []
        self.model = ScriptedChatModel(replies, tools=["refund"])

        def refund(order: str, amount: int, tenant: str, card_token: str = "") -> str:
            """Pay money back."""
            self.made.append((order, amount, tenant))
            return f"refunded {amount}"

        async def act(event: Event, ctx: RunnerContext) -> None:
            answer = await ctx.chat("model", event.input)
            ctx.send_event(OutputEvent(answer.text))

        self.tool = Tool.from_callable(
            refund, injected_args={"tenant": InjectedArg.from_config("tenant")}, requires_approval=True, **policy
        )
        self.agent = Agent(name).add_action("act", [EventType.InputEvent], act)
        self.agent.add_resource("model", ResourceType.CHAT_MODEL, self.model)
        self.agent.add_resource("refund", ResourceType.TOOL, self.tool)

    @property
    def told(self) -> list[str]:
        """What the model was told of its calls."""
        return [message.text for message in self.model.requests[-1].messages if message.role == "tool"]


async def asked(engine: Engine, count: int = 1) -> list[Any]:
    await until(lambda: len(engine.inbox()) == count)
    return engine.inbox()


async def test_a_call_is_made_when_a_person_has_approved_it() -> None:
    desk = Desk(WANTED, "done")
    async with Engine(desk.agent, in_memory=True, config=CONFIG) as engine:
        run = await engine.send("ann", "refund me")
        (wait,) = await asked(engine)
        assert (wait.key, wait.name, wait.run) == ("ann", "approval", run)
        assert wait.correlation.startswith(f"{run}/")
        assert wait.about == {
            "tool": "refund",
            "arguments": {"order": "o-7", "amount": 25, "card_token": "***"},  # by the rules; and nothing injected
            "description": "Pay money back.",
        }
        assert engine.runs()[0].steps[-1].about == wait.about
        assert desk.made == []
        await engine.approve(wait.id, reason="a good customer", by="bea")
        assert await engine.result(run) == ["done"]
        assert engine.inbox() == []
    assert desk.made == [("o-7", 25, "acme")]
    assert desk.told == ["refunded 25"]


async def test_the_model_is_told_why_a_call_was_denied_and_not_by_whom() -> None:
    desk = Desk(WANTED, "sorry")
    async with Engine(desk.agent, in_memory=True, config=CONFIG) as engine:
        run = await engine.send("ann", "refund me")
        (wait,) = await asked(engine)
        await engine.deny(wait.id[:6], reason="too much", by="zoe")
        assert await engine.result(run) == ["sorry"]
    assert (desk.made, desk.told) == ([], ["The call of tool `refund` was denied: too much"])
    assert "zoe" not in str(desk.model.requests)


async def test_a_person_may_change_the_arguments_but_not_the_injected_ones() -> None:
    desk = Desk(WANTED, "done")
    async with Engine(desk.agent, in_memory=True, config=CONFIG) as engine:
        run = await engine.send("ann", "refund me")
        (wait,) = await asked(engine)
        await engine.approve(wait.id, arguments={"order": "o-7", "amount": 5, "tenant": "evil"})
        await engine.result(run)
    assert desk.made == [("o-7", 5, "acme")]


@pytest.mark.parametrize(
    ("arguments", "kind", "told"),
    [
        ('{"order": "o-7", "amount": 5}', TypeError, "arguments is a dict"),
        ([1], TypeError, "arguments is a dict"),
        ({"order": "o-7", "amount": "lots"}, ConfigError, "tool 'refund' are wrong"),
        ({"amount": 3}, ConfigError, "expected: the whole arguments of the call.*order, amount, card_token"),
    ],
)
async def test_arguments_that_do_not_fit_are_refused_and_the_approval_is_not_used_up(
    arguments: Any, kind: type[Exception], told: str
) -> None:
    desk = Desk(WANTED, "done")
    async with Engine(desk.agent, in_memory=True, config=CONFIG) as engine:
        run = await engine.send("ann", "refund me")
        (wait,) = await asked(engine)
        with pytest.raises(kind, match=told):
            await engine.approve(wait.id, arguments=arguments)
        assert [one.id for one in engine.inbox()] == [wait.id]
        await engine.approve(wait.id, arguments={"order": "o-7", "amount": 5})
        await engine.result(run)
    assert desk.made == [("o-7", 5, "acme")]


async def test_arguments_of_a_wait_of_ones_own_are_not_those_of_a_tool_that_is_called_the_same() -> None:
    desk = Desk()

    async def act(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(await ctx.wait_for("approval", about={"tool": "refund"})))

    agent = agent_of(act)
    agent.add_resource("refund", ResourceType.TOOL, desk.tool)
    async with Engine(agent, in_memory=True) as engine:
        run = await engine.send("ann", 1)
        (wait,) = await asked(engine)
        await engine.approve(wait.id, arguments={"colour": "red"}, by="bea")
        assert await engine.result(run) == [{"approved": True, "by": "bea", "arguments": {"colour": "red"}}]


async def test_what_nobody_approves_in_time_is_denied() -> None:
    desk = Desk(WANTED, "sorry", approval_timeout="50ms")
    async with Engine(desk.agent, in_memory=True, config=CONFIG) as engine:
        assert await engine.submit("ann", "refund me") == ["sorry"]
    assert (desk.made, desk.told) == (
        [],
        ["The call of tool `refund` was denied: nobody has approved it in time"],
    )


async def test_nobody_is_asked_about_a_call_that_cannot_be_made() -> None:
    desk = Desk(tool_call("refund", {"order": "o-7"}, "call-1"), "sorry")
    async with Engine(desk.agent, in_memory=True, config=CONFIG) as engine:
        assert await engine.submit("ann", "refund me") == ["sorry"]
    assert desk.made == []
    assert "amount" in desk.told[0]


async def test_an_answer_is_for_one_call_also_where_a_model_gives_several_one_id() -> None:
    other = tool_call("refund", {"order": "o-8", "amount": 1}, "call-1")
    desk = Desk([WANTED, other], [WANTED], "done")
    async with Engine(desk.agent, in_memory=True, config=CONFIG) as engine:
        run = await engine.send("ann", "refund me")
        waits = await asked(engine, 2)
        (second,) = [wait for wait in waits if wait.about["arguments"]["order"] == "o-8"]
        (first,) = [wait for wait in waits if wait is not second]
        await engine.approve(second.id)
        await until(lambda: bool(desk.made))
        assert desk.made == [("o-8", 1, "acme")]
        await asyncio.gather(*(engine.approve(first.id) for _ in range(3)))  # one of them is for this call
        await until(lambda: len(desk.made) == 2)
        (third,) = await asked(engine)
        assert third.id not in (first.id, second.id)
        assert len(desk.made) == 2, "two answers too many approve no later call"
        await engine.approve(third.id)
        await engine.result(run)
    assert len(desk.made) == 3


async def test_a_second_answer_is_refused_and_says_what_the_first_was() -> None:
    desk = Desk([WANTED, tool_call("refund", {"order": "o-8", "amount": 1}, "call-2")], "done")
    async with Engine(desk.agent, in_memory=True, config=CONFIG) as engine:
        await engine.send("ann", "refund me")
        first, second = await asked(engine, 2)
        with pytest.raises(ConfigError, match=f"several ids: .*{first.id}.*{second.id}"):  # of one run
            await engine.approve(first.id[:8])
        await engine.deny(first.id, reason="no", by="bea")
        await asked(engine, 1)
        with pytest.raises(UnknownWait, match=r'answered already.*"by":"bea"'):
            await engine.approve(first.id)
        with pytest.raises(UnknownWait, match="nobody waits"):
            await engine.approve("ffff0000")
        with pytest.raises(ConfigError, match="at least 4 digits"):
            await engine.approve("f")
        await engine.deny(second.id)


async def test_a_wait_for_another_signal_is_neither_approved_nor_denied() -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(await ctx.wait_for("colour", about="which colour?")))

    async with Engine(agent_of(act), in_memory=True) as engine:
        run = await engine.send("ann", 1)
        (wait,) = await asked(engine)
        assert (wait.name, wait.about) == ("colour", "which colour?")
        with pytest.raises(ConfigError, match="'colour', which is neither approved nor denied"):
            await engine.approve(wait.id)
        await engine.signal("ann", "colour", "red", run=run)
        assert await engine.result(run) == ["red"]


async def test_a_wait_keeps_what_it_is_about_and_its_id_over_a_restart(tmp_path: Path) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        about = {"life": len(lives)}  # it differs in the replay, and no law is broken
        ctx.send_event(OutputEvent(await ctx.wait_for("approval", timeout="1h", about=about)))

    lives: list[int] = []
    async with Engine(agent_of(act), state_dir=str(tmp_path), config={"run.park-after": "20ms"}) as engine:
        run = await engine.send("ann", 1, request_id="r")
        (before,) = await asked(engine)
    lives.append(1)
    async with Engine(agent_of(act), state_dir=str(tmp_path)) as engine:
        (after,) = await asked(engine)
        assert (after.id, after.about) == (before.id, {"life": 0})
        await engine.approve(after.id)
        assert await engine.result(run) == [{"approved": True, "by": this_user()}]


async def test_what_a_wait_is_about_has_to_be_encodable_and_small() -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        about = object() if event.input == "object" else "x" * 2_000
        try:
            await ctx.wait_for("approval", about=about)
        except (TypeError, RecordTooLarge) as error:
            ctx.send_event(OutputEvent(str(error).partition("\n")[0]))

    async with Engine(agent_of(act), in_memory=True, config={"record-max": "1KiB"}) as engine:
        assert "object cannot be encoded" in (await engine.submit("a", "object"))[0]
        assert "has 2,003 bytes" in (await engine.submit("b", "long"))[0]


async def test_who_approves_need_not_see_the_key() -> None:
    desk = Desk(WANTED, "done")
    async with Engine(desk.agent, in_memory=True, config={**CONFIG, "redaction.key": True}) as engine:
        run = await engine.send("ann", "refund me")
        (wait,) = await asked(engine)
        assert wait.key == "***"
        await engine.approve(wait.id)
        assert await engine.result(run) == ["done"]


async def test_several_agents_have_one_inbox() -> None:
    desks = [Desk(WANTED, "done", name=name) for name in ("A", "B")]
    async with Engine([desk.agent for desk in desks], in_memory=True, config=CONFIG) as engine:
        runs = [await engine.send("ann", "refund me", agent=name) for name in ("A", "B")]
        waits = await asked(engine, 2)
        assert len({wait.id for wait in waits}) == 2
        (of_b,) = engine.inbox(agent="B")
        await engine.approve(of_b.id)
        await engine.result(runs[1])
        assert [len(desk.made) for desk in desks] == [0, 1]
        (of_a,) = engine.inbox()
        await engine.deny(of_a.id)
        await engine.result(runs[0])


async def test_the_endpoints_list_approve_and_deny() -> None:
    desk = Desk(WANTED, "done", WANTED, "sorry")
    async with Engine(desk.agent, in_memory=True, config=CONFIG) as engine:
        transport = httpx.ASGITransport(engine_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            for verb, body in (("approve", {"by": "bea", "arguments": {"order": "o", "amount": 1}}), ("deny", {})):
                run = await engine.send("ann", "refund me")
                await asked(engine)
                (wait,) = (await client.get("/inbox")).json()["waits"]
                assert wait["about"]["tool"] == "refund"
                for arguments, status in (("text", 400), ([1], 400), ({"amount": 1}, 422)):
                    answer = await client.post(f"/inbox/{wait['id']}/approve", json={"arguments": arguments})
                    assert answer.status_code == status
                answer = await client.post(f"/inbox/{wait['id']}/{verb}", json=body)
                assert (answer.status_code, answer.json()) == (202, {"accepted": True})
                await engine.result(run)
            answer = await client.post(f"/inbox/{wait['id']}/approve", json={})
            assert (answer.status_code, answer.json()["error"]["type"]) == (404, "UnknownWait")
            answer = await client.post("/inbox/0000/deny", json={"arguments": {}})
            assert (answer.status_code, answer.json()["error"]["type"]) == (400, "BadRequest")
            assert (await client.get("/inbox?limit=x")).status_code == 400
    assert desk.made == [("o", 1, "acme")]


@pytest.mark.parametrize("key", [b"\x00\xff", float("inf"), 1, 1.0, "1", True])
async def test_signals_and_cancellations_find_keys_of_every_kind(key: Any) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(await ctx.wait_for("go")))
        await ctx.wait_for("more")

    def end(event: CancelEvent, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent(event.reason))

    agent: Agent = agent_of(act).add_action("end", [CancelEvent], end)
    async with Engine(agent, in_memory=True) as engine:
        outputs = engine.stream(key, 1)
        first = asyncio.ensure_future(anext(outputs))
        await asked(engine)
        await engine.signal(key, "go", "went")
        assert await first == "went"
        await engine.cancel(key, reason="enough")
        assert await anext(outputs) == "enough"
        await outputs.aclose()


def test_a_key_of_bytes_is_written_as_state_commands_write_it() -> None:
    from agentflow.cli.run_commands import key_of

    written = f'{{"$bytes": "{base64.b64encode(b"k").decode()}"}}'
    assert [key_of(text) for text in (written, '"7"', "7", "{}")] == [b"k", "7", 7, "{}"]
    with pytest.raises(ConfigError, match="no base64"):
        key_of('{"$bytes": "abc"}')

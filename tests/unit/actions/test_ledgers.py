"""What a process that takes a run over knows of calls that it has not made: before it lets any task make another one."""

from __future__ import annotations

import msgspec

from agentflow import Agent
from agentflow.actions.budgets import IN_DOUBT, _Ledger, cost_of
from agentflow.api.chat_messages import ChatMessage, Usage
from agentflow.core.inputs import ActionFailed, StepEnded
from agentflow.core.journal_records import CANCELLED, ERROR, RESULT
from agentflow.core.records import ErrorReport
from agentflow.errors import BudgetExhausted, CircuitOpen, ModelUnavailable
from agentflow.runtime.step_values import encode_error
from tests.steps_world import INPUT, World, call, nothing

ANSWER = msgspec.msgpack.encode(ChatMessage("assistant", "hi", usage=Usage(10, 5), extra_args={"cost": 0.5}))


def test_calls_of_a_group_that_are_recorded_or_in_doubt_are_known_before_any_of_them_is_asked_again() -> None:
    agent = Agent("A")
    names = ("doubt", "answered", "failed", "refused", "open", "cancelled", "tool", "idle")
    for name in names:
        agent.add_action(name, [INPUT], nothing, parallel=True)
    world = World(agent, tracking=False)
    world.record("k", 0)
    tasks = {name: f"t/0/0:{name}" for name in names}
    for name in names[:-1]:
        world.request(tasks[name], call(".0", "tool:t" if name == "tool" else "chat:m"), needs_intent=True)
    world.take_checkpoint()
    world.append()
    endings = {
        "answered": (ANSWER, RESULT),
        "failed": (encode_error(ModelUnavailable("away")), ERROR),
        "refused": (encode_error(BudgetExhausted("run.calls", 1, 1)), ERROR),
        "open": (encode_error(CircuitOpen("its circuit is open")), ERROR),
        "cancelled": (b"", CANCELLED),
    }
    for name, (payload, kind) in endings.items():
        world.operator.apply(StepEnded(world.tasks[tasks[name]], call(".0", "chat:m"), kind, payload), world.now_ms)
    world.journal += [effect.record for effect in world.operator.effects]
    world.crash()
    ledger = _Ledger(world.tasks[tasks["idle"]].run)
    known = {name: [cost for _, cost in ledger.account(world.tasks[tasks[name]]).recorded] for name in names}
    assert known == {
        "doubt": [[1, 0, 0.0]],
        "answered": [[1, 15, 0.5]],
        "failed": [[1, 0, 0.0]],
        "refused": [],
        "open": [],
        "cancelled": [[1, 0, 0.0]],
        "tool": [],
        "idle": [],
    }


def test_ledger_of_a_run_that_begins_here_is_empty() -> None:
    world = World()
    world.record("k", 0)
    ledger = _Ledger(world.tasks["t/0/0:a"].run)
    assert [*ledger.sums("key").values()] == [[0, 0, 0.0]]
    assert ledger.reserved == {}


def test_recorded_calls_of_earlier_attempts_are_in_their_own_accounts() -> None:
    world = World()
    world.record("k", 0)
    task = world.tasks["t/0/0:a"]
    world.request("t/0/0:a", call(".0", "chat:m"))
    world.end_step("t/0/0:a", call(".0", "chat:m"), ANSWER)
    world.apply(ActionFailed(task, ErrorReport("KeyError", "'x'")))
    world.until(world.now_ms + 60_000)
    account = _Ledger(task.run).account(task)
    paid, of_another = ("m", [1, 15, 0.5]), ("other", [1, 15, 0.5])
    assert (task.attempt, account.earlier, account.recorded) == (2, [paid], [])
    account.count(of_another, frozenset(), is_recorded=True)
    account.count(paid, frozenset(["key"]), is_recorded=True)
    assert account.sum("key") == [0, 0, 0.0]
    account.count(paid, frozenset(["key"]), is_recorded=False)
    assert (account.sum("key"), account.sum("run")) == ([1, 15, 0.5], [0, 0, 0.0])


def test_call_in_doubt_costs_one_call() -> None:
    assert cost_of(ChatMessage(finish_reason=IN_DOUBT)) == [1, 0, 0.0]

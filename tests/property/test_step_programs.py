"""Random programs of steps, branches, sleeps, waits and timeouts, killed again and again: what user code has seen stays.

A program is a tree. Each node that ends shows an outcome; what a step shows cannot be known in advance, so a step that ran twice
would show itself. A timeout of user code (`asyncio.timeout`) that has struck is durable as soon as a step behind it is.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agentflow import Agent, CancelEvent, EventType, OutputEvent, Retry, RunnerContext
from agentflow.core.records import Record
from agentflow.plan.plan import AgentPlan
from agentflow.runtime.job_spec import AgentStage, JobSpec
from agentflow.runtime.settings import CheckpointSettings, JobSettings, RestartSettings, RunSettings
from agentflow.runtime.signals import encode_control
from agentflow.testing.faults import Fault, FaultySignals, FaultySink, FaultySource, FaultyState, Machine
from agentflow.testing.lives import Lives

Shown = Any
LATE = "late"


class Step(msgspec.Struct, frozen=True):
    label: str
    takes_ms: int
    fails: bool


class Sleep(msgspec.Struct, frozen=True):
    takes_ms: int


class Wait(msgspec.Struct, frozen=True):
    takes_ms: int


class Sequence(msgspec.Struct, frozen=True):
    nodes: tuple[Any, ...]


class Branches(msgspec.Struct, frozen=True):
    kind: str
    nodes: tuple[Any, ...]


class Timeout(msgspec.Struct, frozen=True):
    after_ms: int
    node: Any


class Plan(msgspec.Struct, frozen=True):
    """What a seed of `random` does not decide."""

    program: Any
    crashes: tuple[tuple[int, Fault], ...]
    inputs: int
    park_after_ms: int
    checkpoint_ms: int
    cancel_after_ms: int | None
    seed: int


TIMES = st.sampled_from([0, 1, 4, 15])
LEAVES = st.one_of(
    st.builds(Step, label=st.sampled_from("aab"), takes_ms=TIMES, fails=st.booleans()),
    st.builds(Step, label=st.sampled_from("aab"), takes_ms=TIMES, fails=st.just(value=False)),
    st.builds(Sleep, takes_ms=TIMES),
    st.builds(Wait, takes_ms=TIMES),
)


def inner(nodes: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(nodes, min_size=1, max_size=3).map(tuple)
    return st.one_of(
        st.builds(Sequence, several),
        st.builds(Branches, st.sampled_from(["gather", "asyncio.gather", "as_completed", "task group"]), several),
        st.builds(Timeout, st.sampled_from([1, 3, 8]), nodes),
    )


PLANS = st.builds(
    Plan,
    program=st.recursive(LEAVES, inner, max_leaves=8),
    crashes=st.lists(st.tuples(st.integers(1, 60), st.sampled_from([Fault.KILLED, Fault.POWER_LOST])), max_size=4).map(
        tuple
    ),
    inputs=st.integers(1, 3),
    park_after_ms=st.sampled_from([1, 3, 10_000]),
    checkpoint_ms=st.sampled_from([1, 5, 50]),
    cancel_after_ms=st.sampled_from([None, None, 2, 9]),
    seed=st.integers(0, 2**16),
)


class Observer:
    """What user code saw and called, in all lives: by (input, place in the program)."""

    def __init__(self, seed: int) -> None:
        self.violations: list[str] = []
        self.luck = random.Random(seed)
        self.calls = 0
        self._shown: dict[tuple[int, str], Shown] = {}
        self._late: dict[tuple[int, str], bool] = {}  # whether a later step has made it durable

    def begin(self, n: int) -> None:
        """An attempt begins: a timeout that was not durable may go otherwise."""
        self._late = {where: is_sure for where, is_sure in self._late.items() if is_sure or where[0] != n}

    def called(self, n: int, place: str) -> None:
        self.calls += 1
        if (n, place) in self._shown:
            self.violations.append(f"{place} of input {n} is called again, and its outcome was seen")

    def shown(self, n: int, place: str, outcome: Shown, late: list[str]) -> None:
        """A step, sleep or wait has shown its outcome; ``late`` are the timeouts that had struck when it was called."""
        if self._shown.setdefault((n, place), outcome) != outcome:
            self.violations.append(f"{place} of input {n} shows {outcome}, and showed {self._shown[n, place]}")
        for timeout in late:
            self._late[n, timeout] = True

    def struck(self, n: int, place: str) -> None:
        self._late.setdefault((n, place), False)

    def in_time(self, n: int, place: str) -> None:
        if self._late.get((n, place)):
            self.violations.append(f"the timeout {place} of input {n} had struck, durably, and did not strike again")


class BoomError(Exception):
    pass


class Attempt:
    """One attempt of the action: interprets the program."""

    def __init__(self, observer: Observer, ctx: RunnerContext, n: int) -> None:
        self._observer = observer
        self._ctx = ctx
        self._n = n
        self._late: list[str] = []
        observer.begin(n)

    async def run(self, node: Any, place: str = "") -> Shown:
        match node:
            case Step():
                return await self._recorded(place, lambda: self._step(node, place))
            case Sleep():
                return await self._recorded(place, lambda: self._ctx.sleep(f"{node.takes_ms}ms"))
            case Wait():
                return await self._recorded(
                    place, lambda: self._ctx.wait_for("never", timeout=f"{node.takes_ms}ms", default="nobody")
                )
            case Sequence():
                return [await self.run(inner, f"{place}/{index}") for index, inner in enumerate(node.nodes)]
            case Branches():
                return await self._branches(
                    node.kind, [self.run(inner, f"{place}/{index}") for index, inner in enumerate(node.nodes)]
                )
            case Timeout():
                return await self._in_time(node, place)
        raise AssertionError(node)

    async def _recorded(self, place: str, call: Callable[[], Any]) -> Shown:
        late = list(self._late)
        outcome = await call()
        self._observer.shown(self._n, place, outcome, late)
        return outcome

    async def _step(self, node: Step, place: str) -> Shown:
        observer, n = self._observer, self._n

        async def call(label: str) -> list[str | int]:
            observer.called(n, place)
            await asyncio.sleep(observer.luck.choice([0, node.takes_ms]) / 1000)
            number = observer.luck.getrandbits(40)
            if node.fails:
                raise BoomError(str(number))
            return [label, number]

        try:
            return await self._ctx.durable_execute_async(call, node.label)
        except Exception as error:  # noqa: BLE001 (the outcome is what is compared)
            return str(error)

    async def _branches(self, kind: str, branches: list[Any]) -> Shown:
        if kind == "gather":
            return await self._ctx.gather(*branches)
        if kind == "asyncio.gather":
            return await asyncio.gather(*branches)
        if kind == "as_completed":
            return [outcome async for outcome in self._ctx.as_completed(*branches)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(branch) for branch in branches]
        return [task.result() for task in tasks]

    async def _in_time(self, node: Timeout, place: str) -> Shown:
        try:
            async with asyncio.timeout(node.after_ms / 1000):
                outcome = await self.run(node.node, f"{place}/t")
        except TimeoutError:
            self._observer.struck(self._n, place)
            self._late.append(place)
            return LATE
        self._observer.in_time(self._n, place)
        return outcome


def agent_of(plan: Plan, observer: Observer, shown: dict[int, Shown]) -> Agent:
    async def act(event: Any, ctx: RunnerContext) -> None:
        n = event.input["n"]
        shown[n] = await Attempt(observer, ctx, n).run(plan.program)
        ctx.send_event(OutputEvent({"n": n, "shown": shown[n]}))

    async def undo(event: Any, ctx: RunnerContext) -> None:
        ctx.send_event(OutputEvent({"n": event.input["n"], "shown": "cancelled"}))

    agent = Agent("A").add_action("act", [EventType.InputEvent], act, retry=Retry(attempts=1))
    return agent.add_action("undo", [CancelEvent], undo)


def run_through(plan: Plan) -> tuple[list[str], list[dict[str, Any]], dict[int, Shown]]:
    """Run a plan through its crashes; return violations, outputs, and what each input's last attempt has shown."""
    machine, observer, shown = Machine(), Observer(plan.seed), {}
    agent = AgentPlan.from_agent(agent_of(plan, observer, shown))
    records = [Record("in/0", n, n + 1, msgspec.json.encode({"k": n, "n": n})) for n in range(plan.inputs)]
    job = JobSettings(
        job="programs",
        checkpoint=CheckpointSettings(interval_ms=plan.checkpoint_ms),
        restart=RestartSettings(strategy="none"),
        run=RunSettings(park_after_ms=plan.park_after_ms),
    )

    def begin() -> JobSpec:
        luck, fuse = random.Random(plan.seed + lives.count), machine.fuse
        if plan.cancel_after_ms is not None and not machine.signals.documents:
            cancel = encode_control(0, "cancel")
            asyncio.get_running_loop().call_later(plan.cancel_after_ms / 1000, machine.signals.append, cancel)
        return JobSpec(
            job,
            [AgentStage(agent, "k")],
            lambda: FaultySource(records, fuse, luck, 1),
            lambda: {"sink": FaultySink("sink", machine.sinks["sink"], fuse, luck, 1)},
            lambda: FaultyState(machine.storage, fuse),
            open_signals=lambda: FaultySignals(machine.signals, fuse, luck),
        )

    lives = Lives(machine, begin)
    for points, fault in plan.crashes:
        machine.fuse.arm(points, fault)
        if lives.live():
            break
        machine.restart(fault)
    else:
        lives.live()
    outputs = [msgspec.json.decode(output) for output in machine.sinks["sink"].outputs]
    return [*lives.complaints, *observer.violations], outputs, shown


@settings(max_examples=500, deadline=None)
@given(PLANS)
def test_what_user_code_has_seen_stays(plan: Plan) -> None:
    violations, outputs, shown = run_through(plan)
    assert violations == []
    assert sorted(output["n"] for output in outputs) == list(range(plan.inputs))
    for output in outputs:
        is_cancelled = output["shown"] == "cancelled" and plan.cancel_after_ms is not None and output["n"] == 0
        assert is_cancelled or output["shown"] == shown[output["n"]]

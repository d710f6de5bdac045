"""The gate of a connection: no limit is ever exceeded, nobody starves, nothing leaks. In virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow.actions import traffic
from agentflow.actions.traffic import Admission, Gate, Traffic, Window
from agentflow.api.budgets import RateLimit
from agentflow.testing import ScriptedConnection, VirtualTimeLoop


def in_virtual_time(scenario: Callable[[], Awaitable[Any]]) -> Any:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(scenario())  # type: ignore[arg-type]


def now() -> float:
    return asyncio.get_running_loop().time()


async def turns(count: int = 20) -> None:
    """Let everybody go on who can without time."""
    for _ in range(count):
        await asyncio.sleep(0)


class Caller:
    """Calls through a gate, and notes when each call was admitted: (when, key, model, tokens)."""

    def __init__(self, gate: Gate, *limits: RateLimit, duration_s: float = 1.0) -> None:
        self.gate = gate
        self.limits = limits
        self.duration_s = duration_s
        self.admitted: list[tuple[float, str, str, float]] = []
        self.active = 0
        self.active_max = 0

    async def call(self, key: str = "k", model: str = "m", tenant: str = "", tokens: float = 0, **end: Any) -> None:
        admission = await enter(self.gate, model, tenant, key, self.limits, tokens)
        self.admitted.append((now(), key, model, tokens))
        self.active += 1
        self.active_max = max(self.active_max, self.active)
        await asyncio.sleep(self.duration_s)
        self.active -= 1
        self.gate.leave(admission, **{"tokens": tokens, "is_answered": True, **end})


def most_within_a_minute(admitted: list[tuple[float, float]]) -> float:
    return max(sum(amount for when, amount in admitted if 0 <= when - began < 60) for began, _ in admitted)


ARRIVALS = st.lists(
    st.tuples(st.floats(0, 200), st.integers(0, 3), st.integers(1, 400), st.floats(0.01, 90)), min_size=1, max_size=60
)


@given(arrivals=ARRIVALS, requests=st.integers(1, 9), tokens=st.integers(400, 900), concurrency=st.integers(1, 5))
def test_no_window_of_a_minute_and_no_moment_exceeds_a_limit(
    arrivals: list[tuple[float, int, int, float]], requests: int, tokens: int, concurrency: int
) -> None:
    async def scenario() -> tuple[Caller, Gate]:
        gate = Gate(10, 10)
        limit = RateLimit(requests_per_minute=requests, tokens_per_minute=tokens, concurrency=concurrency)
        caller = Caller(gate, limit)

        async def arrive(after_s: float, key: int, of_call: int, duration_s: float) -> None:
            await asyncio.sleep(after_s)
            one = Caller(gate, limit, duration_s=duration_s)
            one.admitted = caller.admitted
            await one.call(f"k{key}", tokens=of_call)

        await asyncio.gather(*(arrive(*one) for one in arrivals))
        return caller, gate

    caller, gate = in_virtual_time(scenario)
    assert len(caller.admitted) == len(arrivals)
    assert most_within_a_minute([(when, 1) for when, *_ in caller.admitted]) <= requests
    assert most_within_a_minute([(when, of_call) for when, *_, of_call in caller.admitted]) <= tokens
    assert (gate.active, gate.waiting) == (0, 0)


def test_window_is_not_over_before_its_minute_however_sums_are_rounded() -> None:
    began, now = 120.33533333333334, 180.33533333333332
    window = Window(1)
    window.add(1, began)
    assert now - began < 60
    assert began + 60 - now == 0
    assert window.wait_s(1, now) > 0


def test_concurrency_is_never_exceeded_and_always_used() -> None:
    async def scenario() -> None:
        caller = Caller(Gate(10, 10), RateLimit(concurrency=7))
        await asyncio.gather(*(caller.call(f"k{n}") for n in range(70)))
        assert caller.active_max == 7
        assert now() == pytest.approx(10)

    in_virtual_time(scenario)


def test_keys_take_turns_however_much_one_of_them_asks_for() -> None:
    async def scenario() -> None:
        caller = Caller(Gate(10, 10), RateLimit(concurrency=2))
        greedy = [asyncio.create_task(caller.call("greedy")) for _ in range(1000)]
        await turns()
        others = [asyncio.create_task(caller.call(f"k{n}")) for n in range(10) for _ in range(10)]
        await asyncio.gather(*others)
        await asyncio.gather(*greedy)
        while_all_wait = Counter(key for _, key, *_ in caller.admitted[2:112])
        counts = list(while_all_wait.values())
        fairness = sum(counts) ** 2 / (len(counts) * sum(count**2 for count in counts))
        assert len(counts) == 11
        assert fairness > 0.99, while_all_wait

    in_virtual_time(scenario)


def test_model_at_its_limit_delays_no_other_model() -> None:
    async def scenario() -> None:
        gate = Gate(10, 10)
        slow = Caller(gate, RateLimit(requests_per_minute=1))
        stuck = [asyncio.create_task(slow.call(model="slow")) for _ in range(50)]
        await turns()
        fast = Caller(gate)
        for _ in range(100):
            await fast.call(model="fast")
        assert now() == pytest.approx(100)
        for one in stuck:
            one.cancel()
        await asyncio.wait(stuck)
        assert (gate.active, gate.waiting) == (0, 0)

    in_virtual_time(scenario)


def test_large_call_is_not_passed_for_ever_by_small_ones_of_other_models() -> None:
    async def scenario() -> None:
        caller = Caller(Gate(10, 10), RateLimit(per="connection", tokens_per_minute=1000), duration_s=0.1)

        async def small() -> None:
            for _ in range(200):
                await caller.call(model="small", tokens=100)

        stream = [asyncio.create_task(small()) for _ in range(5)]
        await turns()
        await caller.call(model="large", tokens=900)
        assert now() < 130
        for one in stream:
            one.cancel()
        await asyncio.wait(stream)

    in_virtual_time(scenario)


def test_call_above_the_whole_limit_passes_alone() -> None:
    async def scenario() -> None:
        caller = Caller(Gate(10, 10), RateLimit(tokens_per_minute=100))
        await asyncio.gather(caller.call(tokens=10), caller.call(tokens=5000), caller.call(tokens=10))
        assert [tokens for *_, tokens in caller.admitted] == [10, 5000, 10]
        assert [round(when) for when, *_ in caller.admitted] == [0, 60, 120]

    in_virtual_time(scenario)


def test_tokens_that_were_not_used_are_given_back_and_more_than_reserved_are_taken() -> None:
    async def scenario() -> None:
        gate = Gate(10, 10)
        limit = RateLimit(tokens_per_minute=100)
        admission = await enter(gate, "m", "", "k", [limit], 100)
        gate.leave(admission, tokens=10, is_answered=True)
        second = await enter(gate, "m", "", "k", [limit], 90)
        assert now() == 0
        gate.leave(second, tokens=300, is_answered=True)
        await enter(gate, "m", "", "k", [limit], 1)
        assert now() == pytest.approx(60, abs=0.01)

    in_virtual_time(scenario)


def test_calls_settled_after_their_minute_change_nothing() -> None:
    async def scenario() -> None:
        gate = Gate(10, 10)
        limit = RateLimit(tokens_per_minute=100)
        old = await enter(gate, "m", "", "k", [limit], 100)
        await asyncio.sleep(61)
        gate.leave(await enter(gate, "m", "", "k", [limit], 100), tokens=100, is_answered=True)
        gate.leave(old, tokens=0, is_answered=True)
        began = now()
        await enter(gate, "m", "", "k", [limit], 100)
        assert now() - began == pytest.approx(60, abs=0.01)

    in_virtual_time(scenario)


@pytest.mark.parametrize("when", ["waiting", "just admitted"])
def test_cancelled_call_leaks_nothing(when: str) -> None:
    async def scenario() -> None:
        gate = Gate(10, 10)
        limit = [RateLimit(concurrency=1)]
        first = await enter(gate, "m", "", "k", limit, 0)
        waiting = asyncio.create_task(enter(gate, "m", "", "k", limit, 0))
        behind = asyncio.create_task(enter(gate, "m", "", "other", limit, 0))
        await turns()
        assert gate.waiting == 2
        if when == "waiting":
            waiting.cancel()
            gate.leave(first, tokens=0)  # before the one who was cancelled has noticed
        else:
            gate.leave(first, tokens=0)
            waiting.cancel()
        await turns()
        assert waiting.cancelled()
        gate.leave(await behind, tokens=0)
        assert (gate.active, gate.waiting) == (0, 0)
        assert not any(lane.waiting for lane in gate._lanes.values())
        gate.leave(await enter(gate, "m", "", "k", limit, 0), tokens=0)

    in_virtual_time(scenario)


def test_cancelled_call_gives_up_the_place_that_it_held() -> None:
    async def scenario() -> None:
        gate = Gate(10, 10)
        limit = [RateLimit(per="connection", tokens_per_minute=100)]
        gate.leave(await enter(gate, "a", "", "k", limit, 50), tokens=50)
        large = asyncio.create_task(enter(gate, "large", "", "k", limit, 100))
        await turns()
        small = asyncio.create_task(enter(gate, "small", "", "k", limit, 10))
        await turns()
        assert not small.done()
        large.cancel()
        await small
        assert now() == 0

    in_virtual_time(scenario)


def test_retry_after_closes_the_lane_alone() -> None:
    async def scenario() -> None:
        gate = Gate(10, 10)
        admission = await enter(gate, "m", "", "k", [], 0)
        gate.leave(admission, tokens=0, is_answered=True, closed_s=30)
        assert gate.closed_s("m", "", []) == pytest.approx(30)
        gate.leave(await enter(gate, "other", "", "k", [], 0), tokens=0)
        gate.leave(await enter(gate, "m", "tenant", "k", [], 0), tokens=0)
        assert now() == 0
        await enter(gate, "m", "", "k", [], 0)
        assert now() == pytest.approx(30, abs=0.01)

    in_virtual_time(scenario)


async def enter(gate: Gate, *place: Any, **options: Any) -> Admission:
    admission = await gate.enter(*place, **options)
    assert admission is not None
    return admission


async def fail(gate: Gate, times: int) -> None:
    for _ in range(times):
        gate.leave(await enter(gate, "m", "", "k", [], 0), tokens=0, is_failed=True)


def test_circuit_opens_after_failures_in_a_row_lets_one_probe_pass_and_closes_again() -> None:
    async def scenario() -> None:
        gate = Gate(3, 10)
        await fail(gate, 2)
        gate.leave(await enter(gate, "m", "", "k", [], 0), tokens=0, is_answered=True)
        await fail(gate, 2)
        assert not gate.is_open_circuit  # not in a row
        await fail(gate, 1)
        assert gate.is_open_circuit
        assert gate.retry_after_s() == pytest.approx(10)

        entered: list[float] = []

        async def entering(model: str) -> Any:
            admission = await enter(gate, model, "", "k", [], 0)
            entered.append(now())
            return admission

        waiting = [asyncio.create_task(entering(f"m{n}")) for n in range(5)]
        await asyncio.sleep(15)
        assert len(entered) == 1  # the probe
        assert gate.retry_after_s() > 0
        probe = next(one for one in waiting if one.done())
        gate.leave(probe.result(), tokens=0, is_failed=True)
        await asyncio.sleep(9)
        assert len(entered) == 1  # it failed: as long again
        await asyncio.sleep(2)
        assert len(entered) == 2
        probe = next(one for one in waiting if one.done() and one is not probe)
        gate.leave(probe.result(), tokens=0, is_answered=True)
        await turns()
        assert len(entered) == 5
        assert not gate.is_open_circuit

    in_virtual_time(scenario)


@pytest.mark.parametrize("end", [{"is_failed": True}, {"is_answered": True, "closed_s": 30}])
def test_who_can_go_elsewhere_does_not_wait_for_a_provider_that_takes_no_calls(end: dict[str, Any]) -> None:
    async def scenario() -> None:
        gate = Gate(1, 10)
        limit = [RateLimit(concurrency=1)]
        first = await enter(gate, "m", "", "k", limit, 0)
        leaving = [asyncio.create_task(gate.enter("m", "", "k", limit, 0, can_go_elsewhere=True)) for _ in range(3)]
        staying = asyncio.create_task(gate.enter("m", "", "k", limit, 0))
        await turns()
        gate.leave(first, tokens=0, **end)
        assert await asyncio.gather(*leaving) == [None] * 3
        assert now() == 0
        assert gate.waiting == 1
        assert await staying is not None
        assert now() >= 10
        assert (gate.active, gate.waiting) == (1, 0)

    in_virtual_time(scenario)


def test_cancelled_probe_lets_the_next_one_try() -> None:
    async def scenario() -> None:
        gate = Gate(1, 10)
        await fail(gate, 1)
        await asyncio.sleep(11)
        probe = await enter(gate, "m", "", "k", [], 0)
        behind = asyncio.create_task(enter(gate, "m", "", "k", [], 0))
        await turns()
        assert not behind.done()
        gate.leave(probe, tokens=0)
        await behind
        assert now() == pytest.approx(11)

    in_virtual_time(scenario)


def test_setups_of_one_model_have_each_their_own_limits() -> None:
    async def scenario() -> None:
        gate = Gate(10, 10)
        gate.leave(await enter(gate, "m", "", "k", [], 0), tokens=0)
        limited = Caller(gate, RateLimit(concurrency=1))
        await asyncio.gather(*(limited.call(f"k{n}") for n in range(5)))
        assert limited.active_max == 1

    in_virtual_time(scenario)


def test_idle_lanes_and_scopes_are_forgotten_and_used_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "_LANES_MAX", 10)

    async def scenario() -> None:
        gate = Gate(10, 10)
        gate._lanes_max = 10
        limits = [RateLimit(per="tenant", requests_per_minute=1), RateLimit(per="connection", concurrency=1000)]
        held = await enter(gate, "m", "held", "k", limits, 0)
        closed = await enter(gate, "m", "closed", "k", limits, 0)
        gate.leave(closed, tokens=0, closed_s=10_000)
        for n in range(100):
            gate.leave(await enter(gate, "m", f"t{n}", "k", limits, 0), tokens=0)
            await asyncio.sleep(61)
        tenants = {tenant for _, tenant, _ in gate._lanes}
        assert len(tenants) <= 10
        assert {"held", "closed"} <= tenants
        assert len(gate._scopes) <= 11
        gate.leave(held, tokens=0)
        assert [scope.active for scope in gate._scopes.values()] == [0] * len(gate._scopes)

    in_virtual_time(scenario)


def test_forgotten_lane_still_has_its_window() -> None:
    async def scenario() -> None:
        gate = Gate(10, 10)
        limits = [RateLimit(per="tenant", requests_per_minute=1)]
        gate.leave(await enter(gate, "m", "t", "k", limits, 0), tokens=0)
        gate._forget_idle()
        await enter(gate, "m", "t", "k", limits, 0)
        assert now() == pytest.approx(60, abs=0.01)

    in_virtual_time(scenario)


def test_connections_of_one_name_have_each_their_own_gate() -> None:
    async def scenario() -> None:
        every = Traffic()
        one, other = ScriptedConnection(), ScriptedConnection()
        assert every.gate(one, 1, 1) is every.gate(one, 1, 1)
        assert every.gate(one, 1, 1) is not every.gate(other, 1, 1)
        every.close()

    in_virtual_time(scenario)

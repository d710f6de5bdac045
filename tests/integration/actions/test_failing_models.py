"""What follows a call of a model that failed: how many requests the server sees, what it is told, and what comes out."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from agentflow import Engine, Event, Retry, RunFailed, RunnerContext
from agentflow.api.resources import ResourceType
from agentflow.testing.model_server import (
    ContextTooLong,
    Cut,
    Dropped,
    Fault,
    HttpError,
    Hung,
    ModelServer,
    Reply,
    Stalled,
    Unauthorized,
)
from tests.engines import agent_of
from tests.model_agents import HURRY, asking, connection, over_http, setup

MAY_PASS = (HttpError(500), HttpError(503), HttpError(529), Dropped(), Cut(), HttpError(408))
NEVER = (HttpError(400), Unauthorized(), ContextTooLong(), HttpError(404))
TOO_MANY = (HttpError(429), HttpError(429, retry_after_ms=20), HttpError(429, retry_after_s=0))


async def asked(agent: Any, value: object = "hello", **options: Any) -> Any:
    async with Engine(agent, in_memory=True, **options) as engine:
        (said,) = await engine.submit("k", value)
        return said


def named(fault: Fault) -> str:
    return type(fault).__name__ + str(getattr(fault, "status", ""))


@pytest.mark.parametrize("strategy", [None, "retry", "ignore", "fallback"])
@pytest.mark.parametrize("fault", MAY_PASS, ids=named)
async def test_error_that_may_pass_is_retried_with_the_same_key(strategy: str | None, fault: Fault) -> None:
    async with ModelServer([fault, fault, Reply("hi")]) as server:
        said = await asked(over_http(server.url, error_handling_strategy=strategy))
        assert (said["text"], said["error"], said["retries"]) == ("hi", None, 2)
        keys = {request.headers.get("idempotency-key") for request in server.requests}
        assert (len(server.requests), len(keys)) == (3, 1)
        assert all(keys)


@pytest.mark.parametrize("fault", MAY_PASS, ids=named)
async def test_fail_calls_once(fault: Fault) -> None:
    async with ModelServer(fault) as server:
        with pytest.raises(RunFailed, match="ModelUnavailable"):
            await asked(over_http(server.url, error_handling_strategy="fail"))
        assert len(server.requests) == 1


@pytest.mark.parametrize(("strategy", "retries", "calls"), [(None, 2, 3), ("retry", 0, 1), ("retry", 4, 5)])
async def test_retries_end_at_their_limit(strategy: str | None, retries: int, calls: int) -> None:
    async with ModelServer(HttpError(500)) as server:
        with pytest.raises(RunFailed, match="ModelUnavailable"):
            await asked(over_http(server.url, error_handling_strategy=strategy, max_retries=retries))
        assert len(server.requests) == calls


@pytest.mark.parametrize("strategy", [None, "retry", "fail"])
@pytest.mark.parametrize("fault", NEVER, ids=named)
async def test_error_that_will_not_pass_is_not_retried(strategy: str | None, fault: Fault) -> None:
    async with ModelServer(fault) as server:
        with pytest.raises(RunFailed):
            await asked(over_http(server.url, error_handling_strategy=strategy))
        assert len(server.requests) == 1


@pytest.mark.parametrize(("fault", "calls"), [(HttpError(400), 1), (HttpError(500), 4)])
async def test_ignore_still_answers_and_says_why_there_is_nothing(fault: Fault, calls: int) -> None:
    async with ModelServer(fault) as server:
        said = await asked(over_http(server.url, error_handling_strategy="ignore"))
        assert said["text"] == ""
        assert said["error"]
        assert len(server.requests) == calls


@pytest.mark.parametrize("strategy", [None, "retry", "fail", "ignore"])
@pytest.mark.parametrize("fault", TOO_MANY, ids=lambda fault: f"after {fault.retry_after_s} {fault.retry_after_ms}")
async def test_too_many_calls_are_waited_for_and_are_no_failure(strategy: str | None, fault: Fault) -> None:
    async with ModelServer([fault, Reply("hi")]) as server:
        said = await asked(over_http(server.url, error_handling_strategy=strategy))
        assert (said["text"], said["retries"]) == ("hi", 0)
        assert len(server.requests) == 2


async def test_retry_after_of_a_limit_is_honoured() -> None:
    async with ModelServer([HttpError(429, retry_after_s=1), Reply("hi")]) as server:
        began = time.monotonic()
        await asked(over_http(server.url))
        assert 1 <= time.monotonic() - began < 3


async def test_retry_after_of_an_outage_is_honoured() -> None:
    async with ModelServer([HttpError(503, retry_after_s=1), Reply("hi")]) as server:
        began = time.monotonic()
        await asked(over_http(server.url))
        assert 1 <= time.monotonic() - began < 3


async def test_limit_that_lasts_too_long_is_an_error_at_once() -> None:
    async with ModelServer(HttpError(429, retry_after_s=3600)) as server:
        with pytest.raises(RunFailed, match="RateLimited"):
            await asked(over_http(server.url))
        assert len(server.requests) == 1


# -- fallback
def falling_back(first: str, *others: str, **arguments: Any) -> Any:
    """Return an agent whose model "m" at ``first`` has fallbacks "f0", "f1" … at ``others``."""
    names = [f"f{place}" for place in range(len(others))]
    agent = over_http(
        first, error_handling_strategy="fallback", fallback_models=names, **{"max_retries": 0, **arguments}
    )
    for name, url in zip(names, others, strict=True):
        agent.add_resource(f"http-{name}", ResourceType.CHAT_MODEL_CONNECTION, connection(url))
        agent.add_resource(name, ResourceType.CHAT_MODEL, setup(name, f"http-{name}", max_retries=0))
    return agent


@pytest.mark.parametrize("fault", [HttpError(500), HttpError(400), HttpError(429), HttpError(429, retry_after_s=3600)])
async def test_fallback_models_are_asked_in_order(fault: Fault) -> None:
    async with ModelServer(fault) as bad, ModelServer(HttpError(500)) as worse, ModelServer(Reply("hi")) as good:
        said = await asked(falling_back(bad.url, worse.url, good.url))
        assert (said["text"], said["error"]) == ("hi", None)
        assert [len(server.requests) for server in (bad, worse, good)] == [1, 1, 1]
        assert [server.requests[0].model for server in (bad, worse, good)] == ["m", "f0", "f1"]


async def test_behind_the_last_fallback_the_run_fails() -> None:
    async with ModelServer(HttpError(500)) as bad, ModelServer(HttpError(500)) as worse:
        with pytest.raises(RunFailed, match="ModelUnavailable"):
            await asked(falling_back(bad.url, worse.url))


async def test_fallback_is_asked_at_once_while_the_circuit_is_open() -> None:
    async with ModelServer(HttpError(500)) as bad, ModelServer(Reply("hi")) as good:
        config = {"config": {"chat.breaker.failures": 3, "chat.breaker.open-for": "60s"}}
        async with Engine(falling_back(bad.url, good.url, max_retries=3), in_memory=True, config=config) as engine:
            began = time.monotonic()
            for n in range(10):
                assert (await engine.submit(f"k{n}", "hello"))[0]["text"] == "hi"
            assert time.monotonic() - began < 10
        assert len(bad.requests) == 3
        assert len(good.requests) == 10


async def test_fallback_is_asked_at_once_while_the_provider_takes_no_calls() -> None:
    async with ModelServer(HttpError(429, retry_after_s=3600)) as bad, ModelServer(Reply("hi")) as good:
        async with Engine(falling_back(bad.url, good.url), in_memory=True) as engine:
            for n in range(10):
                assert (await engine.submit(f"k{n}", "hello"))[0]["text"] == "hi"
        assert (len(bad.requests), len(good.requests)) == (1, 10)


async def test_without_fallback_an_open_circuit_is_waited_for() -> None:
    async with ModelServer([*[HttpError(500)] * 3, Reply("one"), Reply("two")]) as server:
        config = {"config": {"chat.breaker.failures": 3, "chat.breaker.open-for": "300ms"}}
        async with Engine(over_http(server.url), in_memory=True, config=config) as engine:
            began = time.monotonic()
            assert (await engine.submit("k", "hello"))[0]["text"] == "one"
            assert time.monotonic() - began >= 0.3
            assert (await engine.submit("k", "hello"))[0]["text"] == "two"


# -- timeouts
@pytest.mark.parametrize(
    ("fault", "limits"),
    [
        (Hung(), {"timeout": "200ms"}),
        (Hung(), {"first_token_timeout": "200ms"}),
        (Hung(), {"idle_timeout": "60s", "timeout": "200ms"}),
        (Hung(), {"first_token_timeout": "60s", "timeout": "200ms"}),
        (Stalled(), {"idle_timeout": "200ms"}),
        (Stalled(), {"timeout": "200ms"}),
        (Stalled(), {"first_token_timeout": "60s", "timeout": "300ms"}),
    ],
)
async def test_call_that_hangs_or_stalls_ends_at_its_timeout_and_is_made_again(
    fault: Fault, limits: dict[str, str]
) -> None:
    async with ModelServer([fault, Reply("hi")]) as server:
        began = time.monotonic()
        said = await asked(over_http(server.url, **limits))
        assert (said["text"], said["retries"]) == ("hi", 1)
        assert time.monotonic() - began < 10


async def test_slow_stream_that_never_pauses_for_long_has_no_idle_timeout() -> None:
    async with ModelServer(Reply("a b c d e f g h", chunk_count=8, chunk_latency_ms=60)) as server:
        said = await asked(over_http(server.url, idle_timeout="300ms", first_token_timeout="300ms"))
        assert said["text"] == "a b c d e f g h"


async def test_error_says_which_timeout_it_was() -> None:
    async with ModelServer([Hung(), Stalled(), Hung()]) as server:
        agent = over_http(server.url, error_handling_strategy="ignore", max_retries=0, first_token_timeout="200ms")
        assert "first piece" in (await asked(agent))["error"]
        agent = over_http(server.url, error_handling_strategy="ignore", max_retries=0, idle_timeout="200ms")
        assert "next piece" in (await asked(agent))["error"]
        agent = over_http(server.url, error_handling_strategy="ignore", max_retries=0, timeout="200ms")
        assert "the call took longer" in (await asked(agent))["error"]


# -- restarts
async def test_what_is_recorded_of_retries_and_fallbacks_is_not_done_again(tmp_path: Path) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def decide(request: Any) -> Reply:
        started.set()
        await go_on.wait()
        return Reply("hi")

    async with ModelServer([HttpError(500), HttpError(500)]) as bad, ModelServer(decide) as good:

        def make() -> Engine:
            return Engine(falling_back(bad.url, good.url, max_retries=1), state_dir=str(tmp_path), config=HURRY)

        async with make() as engine:
            await engine.send("k", "hello", request_id="r")
            await started.wait()
        first_key = good.requests[0].headers["idempotency-key"]
        go_on.set()
        async with make() as engine:
            assert (await engine.submit("k", "hello", request_id="r"))[0]["text"] == "hi"
        assert len(bad.requests) == 2
        assert [request.headers["idempotency-key"] for request in good.requests] == [first_key] * len(good.requests)


async def test_agent_without_actions_for_it_asks_no_model() -> None:
    async with ModelServer(Reply("hi")) as server:
        agent = asking().add_resource("http", ResourceType.CHAT_MODEL_CONNECTION, connection(server.url))
        agent.add_resource("m", ResourceType.CHAT_MODEL, setup())
        async with Engine(agent, in_memory=True):
            assert server.requests == []


@pytest.mark.parametrize(
    ("policy", "retry", "requests"),
    [
        ({"error_handling_strategy": "fail"}, None, 1),
        ({"max_retries": 1}, None, 2),
        ({"error_handling_strategy": "fail"}, Retry(attempts=3, initial="1ms"), 3),
    ],
)
async def test_an_action_is_run_again_for_a_model_that_fails_only_if_it_says_so(
    policy: dict[str, Any], retry: Retry | None, requests: int
) -> None:
    async def act(event: Event, ctx: RunnerContext) -> None:
        await ctx.chat("m", "hello")

    async with ModelServer(HttpError(500)) as server:
        agent = over_http(server.url, agent_of(act, retry=retry), **policy)
        with pytest.raises(RunFailed, match="ModelUnavailable"):
            await asked(agent)
        assert len(server.requests) == requests

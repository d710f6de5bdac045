"""A thousand keys on two models, one of which refuses half of its calls: the other one's keys do not notice."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from agentflow import Engine
from agentflow.api.resources import ResourceType
from agentflow.testing.model_server import HttpError, ModelServer, Reply
from tests.model_agents import asking, over_http, setup

KEYS = 1000
CALLS = 2
CONCURRENCY = 20


def fairness(shares: list[float]) -> float:
    """Return Jain's index: 1 where all have the same, 1/n where one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


async def run(*, is_bad: bool) -> tuple[float, list[float]]:
    """Return requests of the good model's keys per second, and how long each key took, all of them asking at once."""
    refused: set[str] = set()

    def decide(request: Any) -> Reply | HttpError:
        name = request.messages[0].text + request.model
        if request.model == "bad" and name not in refused:
            refused.add(name)
            return HttpError(429, retry_after_ms=5)
        return Reply("hi")

    async with ModelServer(decide, latency_ms=10, keep_requests=False) as server:
        limits = [{"concurrency": CONCURRENCY}]
        agent = over_http(server.url, asking(), limits=limits)
        agent.add_resource("bad", ResourceType.CHAT_MODEL, setup("bad", limits=limits))
        config = {"run.in-flight-max": 2 * KEYS, "config": {"chat.rate-limit-wait-max": "60s"}}
        async with Engine(agent, in_memory=True, config=config) as engine:
            good_done: list[float] = []
            durations: list[float] = []
            began = time.monotonic()

            async def ask(n: int) -> None:
                is_good = n % 2 == 0
                for call in range(CALLS):
                    model = "m" if is_good else "bad" if is_bad else None
                    if model is None:
                        return
                    (said,) = await engine.submit(f"k{n}", {"model": model, "messages": [f"{n} {call}"]})
                    assert said["text"] == "hi"
                if is_good:
                    good_done.append(time.monotonic() - began)
                    durations.append(good_done[-1])

            await asyncio.gather(*(ask(n) for n in range(KEYS)))
        return KEYS // 2 * CALLS / max(good_done), durations


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_model_that_refuses_half_of_its_calls_takes_nothing_from_the_other_ones_keys() -> None:
    alone, _ = await run(is_bad=False)
    beside, durations = await run(is_bad=True)
    assert len(durations) == KEYS // 2
    print(
        f"\n{alone:.0f} calls/s alone, {beside:.0f} beside the other: {beside / alone:.2f}; fairness {fairness(durations):.3f}"
    )
    assert fairness(durations) > 0.9
    assert beside / alone > 0.3  # both share this machine's processor: the lanes are not what is measured here

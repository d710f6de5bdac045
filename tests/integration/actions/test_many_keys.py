"""A thousand keys on two models, one of which refuses half of its calls: the other one's keys do not notice."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest

from agentflow import Engine
from agentflow.api.resources import ResourceType
from agentflow.testing.model_server import HttpError, ModelServer, Reply
from tests.model_agents import asking, over_http, setup

KEYS = 1000
CONCURRENCY = 16
LATENCY_MS = 200  # so that limits decide, and not the processor


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

    async with ModelServer(decide, latency_ms=LATENCY_MS, keep_requests=False) as server:
        limits = [{"concurrency": CONCURRENCY}]
        agent = over_http(server.url, asking(), limits=limits)
        agent.add_resource("bad", ResourceType.CHAT_MODEL, setup("bad", limits=limits))
        config = {"run.in-flight-max": 2 * KEYS, "config": {"chat.rate-limit-wait-max": "60s"}}
        async with Engine(agent, in_memory=True, config=config) as engine:
            await engine.submit("first", "what is imported and opened with it is no part of this")
            took: list[float] = []
            began = time.monotonic()

            async def ask(n: int, model: str) -> None:
                (said,) = await engine.submit(f"k{n}", {"model": model, "messages": [f"{n}"]})
                assert said["text"] == "hi"
                if model == "m":
                    took.append(time.monotonic() - began)

            good = [ask(n, "m") for n in range(0, KEYS, 2)]
            bad = [ask(n, "bad") for n in range(1, KEYS, 2)] if is_bad else []
            await asyncio.gather(*(one for pair in itertools.zip_longest(good, bad) for one in pair if one is not None))
        return len(took) / max(took), took


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_model_that_refuses_half_of_its_calls_takes_nothing_from_the_other_ones_keys() -> None:
    alone, _ = await run(is_bad=False)
    beside, took = await run(is_bad=True)
    assert len(took) == KEYS // 2
    in_turn = [place / when for place, when in enumerate(sorted(took), 1)]  # keys answered per second, at each answer
    rates = f"{alone:.0f} calls/s alone, {beside:.0f} beside the other: {beside / alone:.2f}"
    print(f"\n{rates}; fairness {fairness(in_turn):.3f}")
    assert fairness(in_turn) > 0.8
    assert beside / alone > 0.6  # 0.9 and more where nobody else uses the processor

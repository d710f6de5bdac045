"""A FastAPI service with an engine inside, killed with SIGKILL under load; its clients come again with their request ids."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.services import Service, fastapi_command, free_port

CLIENTS = int(os.environ.get("SERVICE_CHAOS_CLIENTS", "500"))
KILLS = int(os.environ.get("SERVICE_CHAOS_KILLS", "10"))
CUSTOMERS = 50
BETWEEN_KILLS_S = (0.3, 1.2)
SEED = 1


class Clients:
    """Many callers of one service, each of which asks until it is answered, and then asks the next thing.

    Attributes:
        answers: Request id → what was answered first.
        asked: Request id → customer.
        violations: Answers that were not what was answered before.
        repeated: Requests that were sent more than once.
    """

    def __init__(self, url: str) -> None:
        self.answers: dict[str, dict[str, Any]] = {}
        self.asked: dict[str, str] = {}
        self.violations: list[str] = []
        self.repeated: Counter[str] = Counter()
        self.is_over = False
        self._url = url

    async def call(self, session: aiohttp.ClientSession, client: int, luck: random.Random) -> None:
        """Ask one question after the other until it is over; the last one is answered too."""
        number = 0
        while not self.is_over:
            request_id, customer = f"{client}-{number}", f"c{luck.randrange(CUSTOMERS)}"
            self.asked[request_id] = customer
            self.answers[request_id] = await self._ask(session, request_id, customer)
            if luck.random() < 0.2:
                again = luck.choice(list(self.answers))
                if await self._ask(session, again, self.asked[again]) != self.answers[again]:
                    self.violations.append(f"{again} was answered otherwise before")
            number += 1

    async def _ask(self, session: aiohttp.ClientSession, request_id: str, customer: str) -> dict[str, Any]:
        place, headers = f"{self._url}/customers/{customer}/questions", {"Idempotency-Key": request_id}
        while True:
            try:
                async with session.post(place, json={"text": request_id}, headers=headers) as response:
                    if response.status == 200:
                        answer: dict[str, Any] = await response.json()
                        return answer
                    if response.status != 503:
                        self.violations.append(f"{request_id}: {response.status} {await response.text()}")
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                pass
            self.repeated[request_id] += 1
            await asyncio.sleep(0.05)  # a client's back-off


@pytest.mark.chaos
@pytest.mark.timeout(600)
async def test_every_answered_request_has_happened_once_whatever_kills_the_service(tmp_path: Path) -> None:
    port, luck = free_port(), random.Random(SEED)
    service = Service(fastapi_command(port), port, tmp_path, {"STATE_DIR": str(tmp_path / "state")})
    await asyncio.to_thread(service.start)
    clients = Clients(service.url)
    try:
        connector = aiohttp.TCPConnector(limit=CLIENTS)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:
            calls = [
                asyncio.ensure_future(clients.call(session, number, random.Random(f"{SEED}/{number}")))
                for number in range(CLIENTS)
            ]
            for _ in range(KILLS):
                before = len(clients.answers)
                await asyncio.sleep(luck.uniform(*BETWEEN_KILLS_S))
                while len(clients.answers) == before:  # noqa: ASYNC110 (under load: something is answered in each life)
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(service.kill)
                await asyncio.to_thread(service.start)
            clients.is_over = True
            await asyncio.gather(*calls)
        assert clients.violations == []
        assert len(clients.answers) > 2 * CLIENTS
        assert sum(clients.repeated.values()) > KILLS * CLIENTS / 5, "hardly anybody was interrupted"
        numbers: dict[str, list[int]] = defaultdict(list)
        for request_id, answer in clients.answers.items():
            assert answer["customer"] == clients.asked[request_id]
            assert answer["answer"] == f"answer {answer['number']} to {request_id!r}"
            numbers[answer["customer"]].append(answer["number"])
        for customer, of_customer in numbers.items():
            assert sorted(of_customer) == list(range(1, len(of_customer) + 1)), customer
        assert service.stop() in (0, -15)
        assert "Traceback" not in service.log
    finally:
        assert service.process is not None
        service.process.kill()

"""How connections through an SDK open and close."""

from __future__ import annotations

import asyncio

import pytest

from agentflow.errors import NotConfigured
from agentflow.integrations.sdk_connections import SdkConnection, load


class Counted(SdkConnection):
    opened: int = 0
    closed: int = 0
    failures: int = 0

    async def connect(self, stack):
        self.opened += 1
        await asyncio.sleep(0)
        if self.opened <= self.failures:
            raise NotConfigured("not yet")
        stack.callback(setattr, self, "closed", 1)
        self.is_there = True


async def test_all_who_wait_for_a_connection_wait_for_one_opening():
    connection = Counted()
    opened = await asyncio.gather(*(connection for _ in range(3)))
    assert [one.is_there for one in opened] == [True] * 3
    assert connection.opened == 1
    await connection.close()
    assert connection.closed == 1


async def test_opening_that_failed_is_tried_again():
    connection = Counted(failures=1)
    with pytest.raises(NotConfigured):
        await connection
    assert (await connection).opened == 2
    await connection.close()


async def test_caller_that_goes_away_harms_no_other_and_leaves_nothing_open():
    connection = Counted()
    impatient = asyncio.ensure_future(connection._open_alone())
    await asyncio.sleep(0)
    impatient.cancel()
    await connection.close()
    assert (connection.opened, connection.closed) == (1, 1)


async def test_missing_package_says_what_to_install():
    with pytest.raises(NotConfigured) as raised:
        await load("anthropic", "no_such_sdk_of_anybody")
    assert "pip install 'agentflow[anthropic]'" in str(raised.value)
    assert "no_such_sdk_of_anybody" in str(raised.value)

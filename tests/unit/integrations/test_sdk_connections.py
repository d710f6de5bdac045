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


class Keyed(Counted):
    api_key: str = ""
    default_headers: dict[str, str] = {}


@pytest.mark.parametrize("value", ["s3cr\net", "s3crét", "s3cret\n", "s3cr\x00et"])
@pytest.mark.parametrize("name", ["api_key", "X-Shop"])
async def test_key_or_header_that_cannot_be_sent_is_a_mistake_in_the_configuration_and_is_not_shown(name, value):
    connection = Keyed(api_key=value) if name == "api_key" else Keyed(default_headers={name: value})
    with pytest.raises(NotConfigured, match=f"'{name}' of .* cannot be sent") as raised:
        await connection
    assert "s3cr" not in str(raised.value)
    assert connection.opened == 0

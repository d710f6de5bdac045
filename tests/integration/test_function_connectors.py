"""Jobs from a function to a function: exactly once where both say so, and never more than they say."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agentflow import (
    Agent,
    AgentsExecutionEnvironment,
    CheckpointSettings,
    ConfigError,
    EventType,
    FunctionSink,
    JobSettings,
    OutputEvent,
    OutputRecord,
    Retry,
    StateSettings,
    idempotent,
)
from agentflow.errors import RestartsExhausted
from agentflow.runtime.settings import RestartSettings


def agent() -> Agent:
    def count(event: Any, ctx: Any) -> None:
        if event.input["n"] < 0:
            raise ValueError("negative")
        number = ctx.short_term_memory.update("count", lambda n: (n or 0) + 1)
        ctx.send_event(OutputEvent({"n": event.input["n"], "count": number}))

    return Agent("A").add_action("count", [EventType.InputEvent], count, retry=Retry(attempts=1))


def settings(**options: Any) -> JobSettings:
    restart = RestartSettings(strategy="fixed-delay", delay_ms=1, attempts=3)
    return JobSettings(checkpoint=CheckpointSettings(interval_ms=20), restart=restart, **options)


class Table:
    """A table with a primary key, which a function upserts into."""

    def __init__(self) -> None:
        self.rows: dict[str, Any] = {}
        self.calls = Counter()

    def store(self, outputs: list[OutputRecord]) -> None:
        for output in outputs:
            self.rows[output.id] = output.value
            self.calls[output.id] += 1


async def rows(position: int | None) -> AsyncIterator[Any]:
    for n in range(position or 0, 200):
        await asyncio.sleep(0)
        yield {"k": n % 3, "n": n}, n + 1


def test_source_that_fails_and_sink_that_fails_still_give_every_row_once(state_dir) -> None:
    table, failures = Table(), Counter()

    async def orders(position: int | None) -> AsyncIterator[Any]:
        async for row, behind in rows(position):
            if row["n"] in (50, 120) and failures[row["n"]] < 2:
                failures[row["n"]] += 1
                await asyncio.sleep(0.05)  # let a checkpoint pass in between
                raise ConnectionError("the database went")
            yield row, behind

    @idempotent
    def store(outputs: list[OutputRecord]) -> None:
        table.store(outputs)
        if failures["store"] < 2:
            failures["store"] += 1
            raise ConnectionError("the answer got lost")

    env = AgentsExecutionEnvironment(settings(state=StateSettings(dir=str(state_dir))))
    env.from_async_iterable(orders).key_by("k").apply(agent()).to_function(store)
    status = env.execute()
    assert status.restarts >= 4
    assert sorted(row["n"] for row in table.rows.values()) == list(range(200))
    assert [row["count"] for row in sorted(table.rows.values(), key=lambda row: row["n"])][::3] == list(range(1, 68))
    assert max(table.calls.values()) > 1, "it was called again with the same ids"


def test_job_goes_on_in_its_next_life_where_it_was(state_dir) -> None:
    table = Table()
    given_positions: list[Any] = []

    async def first_half(position: int | None) -> AsyncIterator[Any]:
        given_positions.append(position)
        async for row, behind in rows(position):
            if row["n"] == 100 and len(given_positions) == 1:
                return
            yield row, behind

    for _ in range(2):
        env = AgentsExecutionEnvironment(settings(state=StateSettings(dir=str(state_dir))))
        env.from_async_iterable(first_half).key_by("k").apply(agent()).to_function(table.store, idempotent=True)
        env.execute()
    assert given_positions == [None, 100]
    assert sorted(row["n"] for row in table.rows.values()) == list(range(200))
    assert max(table.calls.values()) == 1


def test_nothing_is_promised_that_a_part_does_not_give() -> None:
    async def stream() -> AsyncIterator[Any]:
        yield {"k": 1, "n": 1}

    table = Table()
    env = AgentsExecutionEnvironment(settings())
    env.from_async_iterable(stream).key_by("k").apply(agent()).to_function(table.store)
    with pytest.raises(ConfigError) as caught:
        env.execute()
    assert [problem.split(",")[0] for problem in caught.value.problems] == [
        "source 'python' cannot be read twice",
        "sink 'python' is at-least-once",
    ]
    env = AgentsExecutionEnvironment(settings(guarantee="none"))
    env.from_async_iterable(stream()).key_by("k").apply(agent()).to_function(table.store)
    env.execute()
    assert list(table.rows.values()) == [{"n": 1, "count": 1}]


def test_outputs_carry_ids_keys_and_json_and_dead_letters_come_to_a_function_too() -> None:
    outputs: list[OutputRecord] = []
    dead: list[OutputRecord] = []
    env = AgentsExecutionEnvironment(settings())
    stream = env.from_list([{"k": "a", "n": 1}, {"k": "b", "n": -1}])
    stream.key_by("k").apply(agent()).to_function(outputs.extend, idempotent=True)
    stream.dead_letters_to(lambda: FunctionSink(dead.extend, idempotent=True))
    env.execute()
    assert outputs == [OutputRecord("list/0/0:count/0", "a", b'{"n":1,"count":1}', None)]
    assert (dead[0].id, dead[0].key) == ("list/1/dead-letter", "b")
    assert dead[0].value["error-message"] == "negative"


def test_sink_that_never_works_ends_the_job_by_its_restart_strategy(state_dir) -> None:
    def store(outputs: list[OutputRecord]) -> None:
        raise ConnectionError("no route to host")

    env = AgentsExecutionEnvironment(settings(state=StateSettings(dir=str(state_dir))))
    env.from_async_iterable(rows).key_by("k").apply(agent()).to_function(store, idempotent=True)
    with pytest.raises(RestartsExhausted, match="no route to host") as caught:
        env.execute()
    assert "test_function_connectors" in str(caught.value.where["function"])


async def test_slow_sink_holds_the_checkpoint_and_the_source_but_not_memory_without_bound() -> None:
    may_end = threading.Event()
    is_called = threading.Event()
    yielded = 0

    async def endless(position: int | None) -> AsyncIterator[Any]:
        nonlocal yielded
        for n in range(position or 0, 100_000):
            yielded = n
            yield {"k": n % 3, "n": n}, n + 1

    def store(outputs: list[OutputRecord]) -> None:
        is_called.set()
        assert may_end.wait(60)

    env = AgentsExecutionEnvironment(settings())
    stream = env.from_async_iterable(endless).key_by("k").apply(agent())
    stream.to_function(store, idempotent=True, buffer_max="64KiB")
    job = env.job()
    running = asyncio.ensure_future(job.run())
    await asyncio.to_thread(is_called.wait)
    before = -1
    while before != yielded:  # until it stands still
        before = yielded
        done, _ = await asyncio.wait([running], timeout=0.2)
        assert not done
    assert yielded < 5_000
    assert job.status.checkpoint == 0
    may_end.set()
    await running
    assert job.status.records_out == 100_000

"""Async generators as a source: positions, replays, errors, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentflow import FunctionSource
from agentflow.core.records import Record
from agentflow.errors import SourceError, SourceUnavailable


def value_of(record: Record) -> Any:
    return msgspec.msgpack.decode(record.value)


async def read(source: FunctionSource, count: int) -> list[Any]:
    """Read so many values, one at a time."""
    async with asyncio.timeout(30):
        return [value_of(record) for _ in range(count) for record in await source.fetch(1)]


async def numbers(position: int | None, *, step: int = 1) -> AsyncIterator[Any]:
    for number in range((position or 0) + step, 1000, step):
        yield number, number


async def test_function_is_called_with_the_last_position_of_the_checkpoint() -> None:
    source = FunctionSource(numbers, options={"step": 10}, name="tens")
    assert source.is_replayable
    await source.open({})
    assert await read(source, 3) == [10, 20, 30]
    kept = source.barrier({"tens": 2, "signals": 7})
    assert kept == {"tens": 2, "tens@20": 2, "signals": 7}
    await source.close()
    await source.open(kept)
    records = await source.fetch(1)
    assert records == [Record("tens", 2, 3, msgspec.msgpack.encode(30))]
    await source.close()


@pytest.mark.parametrize("position", ["2026-11-26T00:00:00Z", [17, "b"], {"page": 2}, 1.5, True])
async def test_position_is_whatever_json_can_carry(position: Any) -> None:
    given_positions = []

    async def function(position: Any) -> AsyncIterator[Any]:
        given_positions.append(position)
        yield "value", there

    there = position
    source = FunctionSource(function)
    await source.open({})
    await read(source, 1)
    kept = source.barrier({"python": 1})
    await source.close()
    await source.open(kept)
    await source.fetch(1)
    await source.close()
    assert given_positions == [None, position]


async def page(position: int | None) -> AsyncIterator[Any]:
    """Three values a page, of which the last one has the number of the next page."""
    for number in range((position or 0) * 3, 30):
        yield (f"v{number}", number // 3 + 1) if number % 3 == 2 else f"v{number}"


@given(st.lists(st.tuples(st.integers(1, 7), st.booleans(), st.booleans()), max_size=12), st.booleans())
def test_every_value_is_applied_once_wherever_the_job_dies(lives: list[tuple[int, bool, bool]], is_paged: bool) -> None:
    function = page if is_paged else numbers
    expected = [f"v{number}" for number in range(30)] if is_paged else list(range(1, 31))

    async def run() -> None:
        saved: dict[str, int] = {}
        durable: list[Any] = []
        ids: dict[Any, str] = {}
        for count, is_saved, is_late in [*lives, (30, False, False)]:
            source = FunctionSource(function)
            await source.open(saved)
            applied, positions = list(durable), dict(saved)
            while len(applied) < min(len(durable) + count, 30):
                for record in await source.fetch(3):
                    applied.append(value_of(record))
                    positions[record.source] = record.next_offset
                    assert ids.setdefault(applied[-1], record.run_id) == record.run_id
                if is_late and is_saved:
                    positions = dict(source.barrier(positions))
            if is_saved:
                saved = dict(source.barrier(positions))
                durable = list(applied)
            await source.close()
        assert applied[:30] == expected

    asyncio.run(run())


async def test_marks_of_a_long_epoch_are_thinned_and_any_place_can_be_gone_back_to() -> None:
    async def function(position: int | None) -> AsyncIterator[Any]:
        for number in range(position or 0, 20_000):
            yield number, number + 1

    source = FunctionSource(function)
    await source.open({})
    for _ in range(20_000 // 200):
        await source.fetch(200)
    assert len(source._marks) <= 4096
    for applied in (1, 777, 4_097, 12_345, 19_999):
        other = FunctionSource(function)
        other._marks = source._marks.copy()
        kept = other.barrier({"python": applied})
        await other.open(kept)
        assert [value_of(record) for record in await other.fetch(1)] == [applied]
        await other.close()
    await source.close()


async def test_function_without_position_counts_on_and_cannot_be_read_twice() -> None:
    async def function() -> AsyncIterator[Any]:
        yield "a"
        yield ("b", 2)

    source = FunctionSource(function)
    assert not source.is_replayable
    await source.open({"python": 5})
    assert [(record.offset, value_of(record)) for record in await source.fetch(9)] == [(5, "a"), (6, ["b", 2])]
    assert await source.fetch(1) == []
    await source.close()


async def test_coroutine_function_may_return_the_iterator() -> None:
    async def connect(position: int | None) -> AsyncIterator[Any]:
        await asyncio.sleep(0)
        return numbers(position)

    source = FunctionSource(connect)
    await source.open({})
    assert await read(source, 1) == [1]
    await source.close()


async def test_iterator_is_not_iterated_a_second_time() -> None:
    source = FunctionSource(numbers(None))
    await source.open({})
    assert await read(source, 1) == [[1, 1]]
    await source.close()
    with pytest.raises(SourceError, match="second time") as caught:
        await source.open({})
    assert "give the function itself" in caught.value.fix


async def test_what_is_read_ahead_is_bounded_although_the_function_never_waits() -> None:
    yielded = 0

    async def endless(position: int | None) -> AsyncIterator[Any]:
        nonlocal yielded
        for yielded in range(10**9):
            yield yielded, yielded + 1

    source = FunctionSource(endless)
    await source.open({})
    assert await read(source, 10) == list(range(10))
    assert yielded < 600
    await source.close()


async def test_cancelled_function_cleans_up() -> None:
    is_clean = False

    async def function() -> AsyncIterator[Any]:
        nonlocal is_clean
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            is_clean = True

    source = FunctionSource(function)
    await source.open({})
    await read(source, 1)
    await source.close()
    assert is_clean


async def test_error_of_the_function_comes_behind_its_values_and_says_where() -> None:
    async def broken(position: int | None) -> AsyncIterator[Any]:
        yield "a", 7
        raise ConnectionError("reset by peer")

    source = FunctionSource(broken)
    await source.open({})
    assert await read(source, 1) == ["a"]
    with pytest.raises(SourceUnavailable, match="ConnectionError: reset by peer") as caught:
        await source.fetch(1)
    assert "test_function_source:test_error_of_the_function" in str(caught.value.where["function"])
    assert (caught.value.where["values"], caught.value.where["behind position"]) == (1, "7")
    await source.close()


async def test_error_of_the_function_that_says_its_recovery_is_left_alone() -> None:
    async def closed() -> AsyncIterator[Any]:
        yield 1
        raise SourceError("the account is closed", fix="open another one")

    source = FunctionSource(closed)
    await source.open({})
    await read(source, 1)
    with pytest.raises(SourceError, match="the account is closed"):
        await source.fetch(1)
    await source.close()


async def test_error_of_an_iterable_is_final() -> None:
    async def broken() -> AsyncIterator[Any]:
        yield 1
        raise ConnectionError("reset by peer")

    source = FunctionSource(broken())
    await source.open({})
    await read(source, 1)
    with pytest.raises(SourceError) as caught:
        await source.fetch(1)
    assert not isinstance(caught.value, SourceUnavailable)
    await source.close()


async def test_function_that_was_cancelled_from_inside_is_no_end_of_input() -> None:
    async def function(position: int | None) -> AsyncIterator[Any]:
        yield 1, 1
        raise asyncio.CancelledError

    source = FunctionSource(function)
    await source.open({})
    await read(source, 1)
    with pytest.raises(SourceUnavailable, match="CancelledError"):
        await source.fetch(1)
    await source.close()


@pytest.mark.parametrize(
    ("yielded", "what"),
    [
        ((object(), 1), "yielded a object that cannot be a record"),
        (("v", 5), "does not move"),
        (("v", object()), "the position cannot be kept"),
        (("v", "x" * 5000), "5,002 bytes"),
    ],
)
async def test_what_cannot_be_a_record_or_a_position_is_refused_with_its_place(yielded: Any, what: str) -> None:
    async def function(position: Any) -> AsyncIterator[Any]:
        yield "first", 5
        yield yielded

    source = FunctionSource(function)
    await source.open({})
    with pytest.raises(SourceError, match=what) as caught:
        await read(source, 3)
    assert "<locals>.function" in str(caught.value.where["function"])
    assert caught.value.where["value"] == 1
    await source.close()


async def test_function_that_returns_no_iterator_is_refused() -> None:
    source = FunctionSource(lambda: [1, 2])
    await source.open({})
    with pytest.raises(SourceError, match="returned a list"):
        await source.fetch(1)
    await source.close()


def plain(position: int | None) -> Any:
    yield 1, 1


@pytest.mark.parametrize(
    ("values", "options", "what"),
    [
        ([1, 2], {}, "not a list; a list is read with from_list"),
        (numbers, {"stride": 2}, "cannot be called with position, stride"),
        (lambda table: table, {}, "cannot be called with nothing"),
        (plain, {}, "write it with 'async def'"),
    ],
)
def test_what_is_no_source_function_is_refused_at_once(values: Any, options: dict[str, Any], what: str) -> None:
    with pytest.raises(TypeError, match=what):
        FunctionSource(values, options=options)

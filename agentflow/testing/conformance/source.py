"""The laws of the port `Source`.

Subclass the suite; the fixture ``new_source`` returns a function that makes a source of the same few records (at least
3), unopened, each time it is called. For a source without an end, set ``records_count`` to their number.

    class TestQueueSource(SourceConformance):
        records_count = 5

        @pytest.fixture
        def new_source(self, queue): ...

All laws are of every source, but these:

- ``is_replayable``: reading resumes behind every record, and a source can be opened again.
- `CheckpointedSource`: reading resumes from what `barrier` returned.
- with an end: the end stays; without one: `fetch` waits.
"""

# ruff: noqa: D102 - the name of a law states it

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import pytest

from agentflow.core.records import Record
from agentflow.runtime.ports import CheckpointedSource, Source

NewSource = Callable[[], Source]
PATIENCE_S = 30.0  # for what must happen
QUIET_S = 0.05  # for what must not
_TURNS_MAX = 6


async def read_all(
    source: Source,
    positions: Mapping[str, int] | None = None,
    records_max: int = 100,
    count: int | None = None,
) -> list[Record]:
    """Open, read to the end of input, or ``count`` records of a source without one, and close."""
    records: list[Record] = []
    await source.open(positions or {})
    try:
        while count is None or len(records) < count:
            fetched = await _fetch(source, records_max)
            if not fetched:
                assert count is None, f"the input ended behind {len(records)} records, it should not"
                break
            records += fetched
        if count is None:
            assert not await _fetch(source, records_max), "the end of input stays"
        else:
            assert await _is_waiting(source), f"there are {count} records, and nothing behind them"
    finally:
        await source.close()
    return records


async def _fetch(source: Source, records_max: int) -> Sequence[Record]:
    async with asyncio.timeout(PATIENCE_S):
        fetched = await source.fetch(records_max)
    assert len(fetched) <= records_max, "fetch returns no more than it was asked for"
    return fetched


async def _is_waiting(source: Source) -> bool:
    """Whether `fetch` waits; it is cancelled then."""
    fetching = asyncio.ensure_future(source.fetch(1))
    done, _ = await asyncio.wait([fetching], timeout=QUIET_S)
    fetching.cancel()
    await asyncio.wait([fetching])
    return not done


def behind(records: Sequence[Record]) -> dict[str, int]:
    """Return the positions behind records, as the engine keeps them."""
    return {record.source: record.next_offset for record in records}


def as_data(records: Sequence[Record]) -> list[Record]:
    """Return copies without what may differ between two readings of the same record: when and from where it was read."""
    return [Record(one.source, one.offset, one.next_offset, one.value, one.key, one.timestamp_ms) for one in records]


class SourceConformance:
    """What every `Source` obeys."""

    records_count: int | None = None
    """How many records there are, of a source without an end; None: it has one."""

    async def _read(
        self,
        new_source: NewSource,
        positions: Mapping[str, int] | None = None,
        *,
        read: int = 0,
        records_max: int = 100,
    ) -> list[Record]:
        """Read what is behind the first ``read`` records."""
        count = None if self.records_count is None else self.records_count - read
        return as_data(await read_all(new_source(), positions, records_max, count))

    async def test_offsets_increase_strictly_within_a_label(self, new_source: NewSource) -> None:
        ends: dict[str, int] = {}
        for record in await self._read(new_source):
            assert ends.get(record.source, 0) <= record.offset < record.next_offset
            ends[record.source] = record.next_offset

    async def test_labels_are_those_of_its_partitions_if_it_has_any(self, new_source: NewSource) -> None:
        source = new_source()
        records = await self._read(lambda: source)
        if source.partitions:
            assert {record.source for record in records} <= set(source.partitions)

    @pytest.mark.parametrize("records_max", [1, 2])
    async def test_fetch_size_changes_no_record(self, new_source: NewSource, records_max: int) -> None:
        records = await self._read(new_source)
        assert len(records) >= 3, "a suite needs three records"
        assert await self._read(new_source, records_max=records_max) == records

    async def test_positions_of_others_are_ignored(self, new_source: NewSource) -> None:
        records = await self._read(new_source)
        assert await self._read(new_source, {"somebody-else": 3}) == records

    async def test_reading_resumes_behind_every_record(self, new_source: NewSource) -> None:
        if not new_source().is_replayable:
            pytest.skip("the source cannot be read twice")
        records = await self._read(new_source)
        for count in range(1, len(records) + 1):
            assert await self._read(new_source, behind(records[:count]), read=count) == records[count:]

    async def test_reading_resumes_from_what_barrier_kept(self, new_source: NewSource) -> None:
        """Records that were fetched and not applied come again; a checkpoint of a checkpoint is the same."""
        source = new_source()
        if not isinstance(source, CheckpointedSource) or not source.is_replayable:
            pytest.skip("the source takes no part in checkpoints, or cannot be read twice")
        records = await self._read(new_source)
        for applied in range(len(records) + 1):
            source = new_source()
            assert isinstance(source, CheckpointedSource)
            await source.open({})
            fetched: list[Record] = []
            while len(fetched) < applied:
                fetched += await _fetch(source, 2)
            kept = dict(source.barrier(behind(records[:applied])))
            await source.release(kept)
            assert dict(source.barrier(kept)) == kept
            await source.release(kept)
            await source.close()
            assert await self._read(new_source, kept, read=applied) == records[applied:]

    @pytest.mark.parametrize("turns", range(_TURNS_MAX))
    async def test_cancelled_fetch_loses_and_repeats_nothing(self, new_source: NewSource, turns: int) -> None:
        """The engine cancels a fetch that waits, and may fetch again; ``turns`` of the loop pass before it does."""
        expected = await self._read(new_source)
        source = new_source()
        await source.open({})
        records: list[Record] = []
        try:
            while len(records) < len(expected):
                fetching = asyncio.ensure_future(source.fetch(2))
                for _ in range(turns):
                    await asyncio.sleep(0)
                fetching.cancel()
                await asyncio.wait([fetching])
                if fetching.cancelled() and turns < _TURNS_MAX:
                    turns += 1  # one day it is soon enough
                    continue
                fetched = await _fetch(source, 1) if fetching.cancelled() else fetching.result()
                if not fetched:
                    break
                records += fetched
        finally:
            await source.close()
        assert as_data(records) == expected

    async def test_what_was_given_is_the_engines(self, new_source: NewSource) -> None:
        """The engine writes a timestamp into a record; another reading must not see it."""
        source = new_source()
        if not source.is_replayable:
            pytest.skip("the source cannot be read twice")
        records = await read_all(source, count=self.records_count)
        expected = as_data(records)
        for record in records:
            record.timestamp_ms, record.value = 17, b"changed"
        assert as_data(await read_all(source, count=self.records_count)) == expected

    async def test_a_closed_source_can_be_opened_again_where_it_was(self, new_source: NewSource) -> None:
        source = new_source()
        if not source.is_replayable:
            pytest.skip("the source cannot be read twice")
        records = await self._read(new_source)
        await source.open({})
        await _fetch(source, 1)
        await source.close()
        assert await self._read(lambda: source, behind(records[:1]), read=1) == records[1:]

    @pytest.mark.parametrize("turns", [0, 1, 3])
    async def test_close_releases_everything_behind_a_cancelled_fetch(self, new_source: NewSource, turns: int) -> None:
        tasks = asyncio.all_tasks()
        source = new_source()
        await source.open({})
        fetching = asyncio.ensure_future(source.fetch(1))
        for _ in range(turns):
            await asyncio.sleep(0)
        fetching.cancel()
        await asyncio.wait([fetching])
        async with asyncio.timeout(PATIENCE_S):
            await source.close()
            await source.close()
        assert asyncio.all_tasks() - tasks - {fetching} == set(), "no task is left behind"

    async def test_close_is_repeatable_and_needs_no_open(self, new_source: NewSource) -> None:
        source = new_source()
        await source.close()
        await source.close()

"""The laws of the port `Source`.

Subclass the suite; the fixture ``new_source`` returns a function that makes a source of the same few records (at least
3), unopened, each time it is called.
"""

# ruff: noqa: D102 - the name of a law states it

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from agentflow.core.records import Record
from agentflow.runtime.ports import Source

NewSource = Callable[[], Source]


async def read_all(source: Source, positions: Mapping[str, int] | None = None, records_max: int = 100) -> list[Record]:
    """Open, read to the end of input and close."""
    records: list[Record] = []
    await source.open(positions or {})
    try:
        while fetched := await source.fetch(records_max):
            assert len(fetched) <= records_max
            records += fetched
        assert not await source.fetch(records_max), "the end of input stays"
    finally:
        await source.close()
    return records


class SourceConformance:
    """What every `Source` obeys."""

    async def test_offsets_increase_strictly_within_a_label(self, new_source: NewSource) -> None:
        behind: dict[str, int] = {}
        for record in await read_all(new_source()):
            assert behind.get(record.source, 0) <= record.offset < record.next_offset
            behind[record.source] = record.next_offset

    @pytest.mark.parametrize("records_max", [1, 2])
    async def test_fetch_size_changes_no_record(self, new_source: NewSource, records_max: int) -> None:
        records = await read_all(new_source())
        assert len(records) >= 3
        assert await read_all(new_source(), records_max=records_max) == records

    async def test_reading_resumes_behind_every_record(self, new_source: NewSource) -> None:
        if not new_source().is_replayable:
            pytest.skip("the source cannot be read twice")
        records = await read_all(new_source())
        positions: dict[str, int] = {}
        for count, record in enumerate(records, 1):
            positions[record.source] = record.next_offset
            assert await read_all(new_source(), positions) == records[count:]

    async def test_close_is_repeatable_and_needs_no_open(self, new_source: NewSource) -> None:
        source = new_source()
        await source.close()
        await source.close()

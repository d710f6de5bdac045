"""The laws of the port `Journal`.

Subclass the suite and say how a journal is opened, and how its owner ends; pytest does the rest:

    class TestMine(JournalConformance):
        @pytest.fixture
        def open_journal(self, tmp_path):
            async def open_journal():
                return Mine(tmp_path)
            return open_journal

        async def close(self, journal):
            journal.close()
"""

# ruff: noqa: D102 - the name of a law states it

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from agentflow.runtime.ports import Journal

OpenJournal = Callable[[], Awaitable[Journal]]


class JournalConformance:
    """What every `Journal` obeys. See the module for how to use it."""

    async def close(self, journal: Journal) -> None:
        """End the owner of ``journal``, so that the place can be opened again."""
        raise NotImplementedError

    async def crash(self, journal: Journal) -> None:
        """End it as a crash would."""
        await self.close(journal)

    async def test_the_next_owner_reads_what_was_appended_in_order(self, open_journal: OpenJournal) -> None:
        journal = await open_journal()
        records, begin = await journal.read(0)
        assert list(records) == []
        first = await journal.append([(0, b"a"), (1, b"b")])
        second = await journal.append([(0, b""), (65_535, b"\x00\xff" * 1_000_000)])
        assert begin < first < second
        await self.crash(journal)
        journal = await open_journal()
        records, end = await journal.read(0)
        assert list(records) == [(0, b"a"), (1, b"b"), (0, b""), (65_535, b"\x00\xff" * 1_000_000)]
        assert end >= second
        await self.close(journal)

    @pytest.mark.parametrize("appends", [0, 1, 4, 6])
    async def test_reading_begins_at_a_position(self, open_journal: OpenJournal, appends: int) -> None:
        journal = await open_journal()
        batches = [[(0, b"%d" % number) for number in range(50 * batch, 50 * batch + 50)] for batch in range(6)]
        positions = [(await journal.read(0))[1]]
        for batch in batches:
            positions.append(await journal.append(batch))  # noqa: PERF401 (await)
        await self.crash(journal)
        journal = await open_journal()
        records, end = await journal.read(positions[appends])
        assert list(records) == [record for batch in batches[appends:] for record in batch]
        assert end >= positions[-1]
        await self.close(journal)

    async def test_what_is_released_is_not_missed_and_positions_go_on(self, open_journal: OpenJournal) -> None:
        journal = await open_journal()
        await journal.read(0)
        first = await journal.append([(0, b"a"), (0, b"b")])
        second = await journal.append([(0, b"c")])
        await journal.release(first)
        await journal.release(first - 1)
        third = await journal.append([(0, b"d")])
        assert first < second < third
        await self.close(journal)
        journal = await open_journal()
        records, end = await journal.read(first)
        assert list(records) == [(0, b"c"), (0, b"d")]
        assert end >= third
        assert await journal.append([(0, b"e")]) > end
        await self.close(journal)

    async def test_positions_go_on_when_all_is_released(self, open_journal: OpenJournal) -> None:
        journal = await open_journal()
        await journal.read(0)
        position = await journal.append([(0, b"a"), (0, b"b")])
        await journal.release(position)
        await self.close(journal)
        journal = await open_journal()
        records, end = await journal.read(position)
        assert list(records) == []
        assert end >= position
        assert await journal.append([(0, b"c")]) > end
        await self.crash(journal)
        journal = await open_journal()
        assert list((await journal.read(position))[0]) == [(0, b"c")]
        await self.close(journal)

"""The laws of the port `Journal`.

Subclass the suite and say how the keyed state beside the journal is opened, as for `KeyedStateConformance`; pytest does the rest.
"""

# ruff: noqa: D102 - the name of a law states it

from __future__ import annotations

from collections.abc import Callable

import pytest

from agentflow.runtime.ports import Journal, KeyedState

OpenState = Callable[[], KeyedState]


def journal_of(state: KeyedState) -> Journal:
    """Return the journal of a state that has one."""
    assert state.journal is not None
    return state.journal


class JournalConformance:
    """What every `Journal` obeys. See the module for how to use it."""

    def crash(self, state: KeyedState) -> None:
        """End ``state`` as a crash would, so that the place can be opened again."""
        state.close()

    async def test_the_next_owner_reads_what_was_appended_in_order(self, open_state: OpenState) -> None:
        state = open_state()
        assert await journal_of(state).read(0) == ([], 0)
        assert await journal_of(state).append([(0, b"a"), (1, b"b")]) == 2
        assert await journal_of(state).append([(0, b""), (65_535, b"\x00\xff" * 1_000_000)]) == 4
        self.crash(state)
        state = open_state()
        records = [(0, b"a"), (1, b"b"), (0, b""), (65_535, b"\x00\xff" * 1_000_000)]
        assert await journal_of(state).read(0) == (records, 4)
        state.close()

    @pytest.mark.parametrize("position", [0, 1, 250, 300])
    async def test_reading_begins_at_a_position(self, open_state: OpenState, position: int) -> None:
        state = open_state()
        records = [(0, b"%d" % number) for number in range(300)]
        await journal_of(state).append(records)
        self.crash(state)
        state = open_state()
        assert await journal_of(state).read(position) == (records[position:], 300)
        state.close()

    async def test_what_is_released_is_gone_and_positions_go_on(self, open_state: OpenState) -> None:
        state = open_state()
        await journal_of(state).append([(0, b"a"), (0, b"b"), (0, b"c")])
        await journal_of(state).release(2)
        await journal_of(state).release(1)
        assert await journal_of(state).append([(0, b"d")]) == 4
        state.close()
        state = open_state()
        assert await journal_of(state).read(2) == ([(0, b"c"), (0, b"d")], 4)
        assert await journal_of(state).append([(0, b"e")]) == 5
        state.close()

    async def test_positions_go_on_when_all_is_released(self, open_state: OpenState) -> None:
        state = open_state()
        position = await journal_of(state).append([(0, b"a"), (0, b"b")])
        await journal_of(state).release(position)
        state.close()
        state = open_state()
        assert await journal_of(state).read(position) == ([], position)
        assert await journal_of(state).append([(0, b"c")]) == position + 1
        self.crash(state)
        state = open_state()
        assert await journal_of(state).read(position) == ([(0, b"c")], position + 1)
        state.close()

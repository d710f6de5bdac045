"""The laws of the port `KeyedState`.

Subclass the suite and say how the state is opened; pytest does the rest::

    class TestMyState(KeyedStateConformance):
        @pytest.fixture
        def open_state(self, tmp_path):
            return lambda: MyState.open(tmp_path / "state")

The asynchronous laws need pytest-asyncio in its ``auto`` mode. ``open_state()`` opens the one place of a test: the first call finds it empty, later ones find what the former left. A state
that can crash harder than by `close` (unsynced writes are lost) overrides `crash`.
"""

# ruff: noqa: D102 - the name of a law states it

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence

import pytest

from agentflow.api.memory_codec import encode_object, encode_value
from agentflow.core.delta import SLICE_ENTRIES_MAX, StateWrite, StoredRow, Table
from agentflow.errors import NotConfigured, StateError, StateLocked, StateUnavailable
from agentflow.runtime.ports import KeyedState, Prepared, Staged, StateFacts

OpenState = Callable[[], KeyedState]
Rows = dict[tuple[Table, int, bytes, str], bytes]
Slices = tuple[list[StateWrite], ...]

LARGE_BYTES = 512 * 1024
LATER_MS = 2**62
"""Values above this are large: states may store them in another way."""

AWKWARD_KEYS = (
    b"",
    b"\x00",
    b"\x00\x00",
    b"\x00\xff",
    b"\x00\x01",
    b"\x01",
    b"a",
    b"a\x00",
    b"a\x00b",
    b"ab",
    b"\xfe",
    b"\xff",
    b"\xff\xff",
)
AWKWARD_NAMES = ("", "\x00", "a", "a.b", "a\x00", "ab", "ä", "日本", "\U0001f600", "\uffff", "\udcff")
AWKWARD_VALUES = (b"", b"\x00", b"\xc0", b"\xf0", b"\xf0\xf1", b"\xf1", b"\xf1\x97", b"\xff" * 9)


def memory_write(key: bytes, path: str, value: bytes | None, *, operator: int = 0) -> StateWrite:
    """Return one memory row of a delta."""
    return Table.MEMORY, operator, key, path, value


def read_all(state: KeyedState) -> Rows:
    """Return every row of a state."""
    return {(table, row.operator, row.key, row.name): row.value for table in Table for row in state.rows(table)}


def laid_over(rows: Rows, slices: Sequence[Sequence[StateWrite]]) -> Rows:
    """Return what ``rows`` are after a delta."""
    result = dict(rows)
    for table, operator, key, name, value in itertools.chain.from_iterable(slices):
        if value is None:
            result.pop((table, operator, key, name), None)
        else:
            result[table, operator, key, name] = value
    return result


async def checkpoint(
    state: KeyedState, number: int, *slices: list[StateWrite], staged: Mapping[str, Staged] | None = None
) -> None:
    """Prepare and complete a checkpoint."""
    await state.prepare(number, iter(slices), staged or {})
    await state.complete()


async def run_for(work: Coroutine[object, object, None], turns: int) -> bool:
    """Run ``work`` for a number of turns of the loop, then cancel it. Returns whether it had ended by then."""
    task = asyncio.ensure_future(work)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
        return True
    return False


OLD: Slices = (
    [memory_write(b"k", "kept", b"old"), memory_write(b"k", "changed", b"old"), memory_write(b"k", "deleted", b"old")],
    [memory_write(b"k", "large", b"o" * (LARGE_BYTES * 2 + 1)), memory_write(b"k", "shrunk", b"s" * (LARGE_BYTES + 1))],
    [(Table.RUNS, 1, b"k", "topic/0/17", b"\x91"), (Table.META, 0, b"", "positions", b"\x80")],
)
NEW: Slices = (
    [memory_write(b"k", "changed", b"new"), memory_write(b"k", "deleted", None)],
    [memory_write(b"k", "large", b"n" * (LARGE_BYTES * 3)), memory_write(b"k", "shrunk", b"small")],
    [memory_write(b"k", "grown", b"g" * (LARGE_BYTES + 1)), (Table.RUNS, 1, b"k", "topic/0/17", None)],
    [(Table.META, 0, b"", "positions", b"\x81"), (Table.TIMERS, 0, b"k", "t", b"\x90")],
)
STAGED = {"sink": Staged(names=("part-1", "part-2")), "dead-letter": Staged(outputs=(b"", b"\xff\x00", b"{}"))}
TURNS = range(14)  # more than the delta has slices; the later ones fall into the sync


class KeyedStateConformance:
    """What every `KeyedState` obeys. See the module for how to use it."""

    def crash(self, state: KeyedState) -> None:
        """End ``state`` as a crash would, so that the place can be opened again."""
        state.close()

    @pytest.fixture
    def state(self, open_state: OpenState) -> Iterator[KeyedState]:
        """Open the state for one test."""
        with contextlib.closing(open_state()) as state:
            yield state

    # --- what is there -------------------------------------------------------------------------------------------------

    def test_a_new_state_is_empty(self, state: KeyedState) -> None:
        assert (state.checkpoint, state.prepared, read_all(state)) == (0, None, {})
        assert state.get(0, b"k", "p") is None
        assert state.scan(0, b"k", "") == []

    async def test_sizes_are_known_or_not_told(self, state: KeyedState) -> None:
        await checkpoint(state, 1, *OLD)
        assert all(size >= 0 for size in state.sizes.values())
        state.close()
        assert all(size >= 0 for size in state.sizes.values())

    async def test_applied_writes_are_read(self, state: KeyedState) -> None:
        await checkpoint(state, 1, *OLD)
        assert state.checkpoint == 1
        assert state.prepared is None
        assert read_all(state) == laid_over({}, OLD)
        assert state.get(0, b"k", "changed") == b"old"
        await checkpoint(state, 2, *NEW)
        assert state.checkpoint == 2
        assert read_all(state) == laid_over(laid_over({}, OLD), NEW)
        assert (state.get(0, b"k", "changed"), state.get(0, b"k", "deleted")) == (b"new", None)

    async def test_an_export_that_nobody_waits_for_changes_nothing(self, state: KeyedState) -> None:
        await checkpoint(state, 1, *OLD)
        for request in ("", "0" * 32, "../.."):
            with contextlib.suppress(NotConfigured):
                await state.export(request, StateFacts(1, {}, [], ""))
        assert read_all(state) == laid_over({}, OLD)
        await checkpoint(state, 2, *NEW)
        assert state.checkpoint == 2

    async def test_a_checkpoint_survives_reopening(self, open_state: OpenState) -> None:
        with contextlib.closing(open_state()) as state:
            await checkpoint(state, 1, *OLD)
        with contextlib.closing(open_state()) as state:
            assert (state.checkpoint, state.prepared) == (1, None)
            assert read_all(state) == laid_over({}, OLD)

    async def test_an_empty_delta_advances_the_checkpoint(self, state: KeyedState) -> None:
        await checkpoint(state, 1)
        await checkpoint(state, 7, [])
        assert (state.checkpoint, read_all(state)) == (7, {})

    async def test_the_last_write_of_a_row_in_a_delta_counts(self, state: KeyedState) -> None:
        large = b"l" * (LARGE_BYTES + 1)
        await checkpoint(
            state,
            1,
            [memory_write(b"k", "a", b"1"), memory_write(b"k", "a", b"2"), memory_write(b"k", "b", large)],
            [memory_write(b"k", "b", b"small"), memory_write(b"k", "c", b"1"), memory_write(b"k", "c", None)],
        )
        assert state.scan(0, b"k", "") == [("a", b"2"), ("b", b"small")]

    async def test_deleting_an_absent_row_does_nothing(self, state: KeyedState) -> None:
        await checkpoint(state, 1, [(table, 0, b"k", "p", None) for table in Table])
        assert read_all(state) == {}

    async def test_tables_operators_keys_and_names_are_apart(self, state: KeyedState) -> None:
        writes: list[StateWrite] = [
            (table, operator, key, name, f"{table}/{operator}/{key!r}/{name!r}".encode())
            for table in Table
            for operator in (0, 1, 255, 256, 65_535)
            for key in AWKWARD_KEYS
            for name in AWKWARD_NAMES
        ]
        slices = [writes[start : start + SLICE_ENTRIES_MAX] for start in range(0, len(writes), SLICE_ENTRIES_MAX)]
        await checkpoint(state, 1, *slices)
        assert read_all(state) == laid_over({}, slices)
        for table, operator, key, name, value in writes:
            if table is Table.MEMORY:
                assert state.get(operator, key, name) == value

    async def test_rows_are_ordered_by_operator_key_and_name(self, state: KeyedState) -> None:
        slots = itertools.product((256, 0, 1), reversed(AWKWARD_KEYS), reversed(AWKWARD_NAMES))
        await checkpoint(state, 1, [(Table.RUNS, *slot, b"\x90") for slot in slots])

        def order(row: StoredRow) -> tuple[int, bytes, bytes]:
            return row.operator, row.key, row.name.encode("utf-8", "surrogatepass")

        rows = list(state.rows(Table.RUNS))
        assert len(rows) == 3 * len(AWKWARD_KEYS) * len(AWKWARD_NAMES)
        assert rows == sorted(rows, key=order)

    @pytest.mark.parametrize("key", AWKWARD_KEYS)
    async def test_a_scan_sees_one_key_in_the_order_of_its_paths(self, state: KeyedState, key: bytes) -> None:
        writes = [memory_write(other, name, other + b"/") for other in AWKWARD_KEYS for name in reversed(AWKWARD_NAMES)]
        await checkpoint(state, 1, writes, [memory_write(key, "p", b"other operator", operator=1)])
        paths = sorted(AWKWARD_NAMES, key=lambda name: name.encode("utf-8", "surrogatepass"))
        for prefix in ("", "a", "a.", "\x00", "\U0001f600", "nothing"):
            expected = [(path, key + b"/") for path in paths if path.startswith(prefix)]
            assert state.scan(0, key, prefix) == expected

    @pytest.mark.parametrize("value", AWKWARD_VALUES)
    async def test_a_value_comes_back_byte_for_byte(self, open_state: OpenState, value: bytes) -> None:
        with contextlib.closing(open_state()) as state:
            await checkpoint(state, 1, [(table, 0, b"k", "p", value) for table in Table])
        with contextlib.closing(open_state()) as state:
            assert state.get(0, b"k", "p") == value
            assert state.scan(0, b"k", "") == [("p", value)]
            assert [row.value for table in Table for row in state.rows(table)] == [value] * len(Table)

    # --- large values --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "length", [LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, 2 * LARGE_BYTES, 5 * LARGE_BYTES + 7]
    )
    async def test_a_large_value_comes_back_byte_for_byte(self, open_state: OpenState, length: int) -> None:
        value = (bytes(range(256)) * (length // 256 + 1))[:length]
        with contextlib.closing(open_state()) as state:
            await checkpoint(state, 1, [memory_write(b"k", "p", value), (Table.RUNS, 0, b"k", "r", value)])
            assert state.get(0, b"k", "p") == value
        with contextlib.closing(open_state()) as state:
            assert state.get(0, b"k", "p") == value
            assert state.scan(0, b"k", "") == [("p", value)]
            assert [row.value for row in state.rows(Table.RUNS)] == [value]

    async def test_a_large_value_is_replaced_and_deleted(self, open_state: OpenState) -> None:
        values = [
            b"1" * 3 * LARGE_BYTES,
            b"2" * 2 * LARGE_BYTES,
            b"small",
            b"4" * 2 * LARGE_BYTES,
            None,
            b"6" * 3 * LARGE_BYTES,
        ]
        for number, value in enumerate(values, start=1):
            with contextlib.closing(open_state()) as state:
                await checkpoint(state, number, [memory_write(b"k", "p", value), memory_write(b"k", "q", value)])
                assert state.get(0, b"k", "p") == value
            with contextlib.closing(open_state()) as state:
                assert (state.get(0, b"k", "p"), state.get(0, b"k", "q")) == (value, value)

    # --- prepare and complete ------------------------------------------------------------------------------------------

    async def test_a_prepared_delta_is_invisible_until_complete(self, state: KeyedState) -> None:
        await checkpoint(state, 1, *OLD)
        await state.prepare(2, iter(NEW), STAGED)
        assert state.prepared == Prepared(2, STAGED)
        assert state.checkpoint == 1
        assert read_all(state) == laid_over({}, OLD)
        await state.complete()
        assert state.prepared is None
        assert state.checkpoint == 2

    async def test_the_delta_is_read_in_slices_with_turns_of_the_loop_between(self, state: KeyedState) -> None:
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        seen: list[int] = []

        def delta() -> Iterator[list[StateWrite]]:
            for number in range(5):
                seen.append(turns)
                yield [memory_write(b"k", f"p{number}", b"v")]

        counter = asyncio.ensure_future(count_turns())
        await state.prepare(1, delta(), {})
        before = turns
        await state.complete()
        counter.cancel()
        assert sorted(set(seen)) == seen, "two slices in one turn"
        assert turns - before >= 5

    async def test_complete_without_a_prepared_checkpoint_does_nothing(self, state: KeyedState) -> None:
        await state.complete()
        await checkpoint(state, 1, *OLD)
        await state.complete()
        assert (state.checkpoint, read_all(state)) == (1, laid_over({}, OLD))

    async def test_a_decided_checkpoint_rolls_forward_after_a_crash(self, open_state: OpenState) -> None:
        state = open_state()
        await checkpoint(state, 1, *OLD)
        await state.prepare(2, iter(NEW), STAGED)
        self.crash(state)
        with contextlib.closing(open_state()) as state:
            assert (state.checkpoint, state.prepared) == (1, Prepared(2, STAGED))
            assert read_all(state) == laid_over({}, OLD)
            await state.complete()
            assert (state.checkpoint, state.prepared) == (2, None)
            assert read_all(state) == laid_over(laid_over({}, OLD), NEW)

    @pytest.mark.parametrize("turns", TURNS)
    async def test_a_crash_in_prepare_leaves_the_former_checkpoint_or_a_decided_one(
        self, open_state: OpenState, turns: int
    ) -> None:
        state = open_state()
        await checkpoint(state, 1, *OLD)
        is_decided = await run_for(state.prepare(2, iter(NEW), STAGED), turns)
        self.crash(state)
        with contextlib.closing(open_state()) as state:
            assert state.checkpoint == 1
            assert read_all(state) == laid_over({}, OLD)
            if state.prepared is None:
                assert not is_decided, "prepare returned, and the decision is lost"
                await state.complete()
                assert read_all(state) == laid_over({}, OLD)
                await state.prepare(2, iter(NEW), STAGED)
            assert state.prepared == Prepared(2, STAGED)
            await state.complete()
            assert read_all(state) == laid_over(laid_over({}, OLD), NEW)

    @pytest.mark.parametrize("turns", TURNS)
    async def test_complete_can_be_repeated_after_a_crash_at_any_point(self, open_state: OpenState, turns: int) -> None:
        state = open_state()
        await checkpoint(state, 1, *OLD)
        await state.prepare(2, iter(NEW), STAGED)
        is_completed = await run_for(state.complete(), turns)
        self.crash(state)
        again = open_state()
        assert again.checkpoint == 2 if is_completed else again.prepared == Prepared(2, STAGED) or again.checkpoint == 2
        await run_for(again.complete(), turns // 2)
        self.crash(again)
        with contextlib.closing(open_state()) as state:
            await state.complete()
            assert (state.checkpoint, state.prepared) == (2, None)
            assert read_all(state) == laid_over(laid_over({}, OLD), NEW)
            await checkpoint(state, 3, [memory_write(b"k", "large", None)])
            assert state.get(0, b"k", "large") is None

    @pytest.mark.parametrize("turns", TURNS)
    async def test_a_repeated_complete_keeps_a_large_value_that_its_delta_deletes_first(
        self, open_state: OpenState, turns: int
    ) -> None:
        large = b"l" * (LARGE_BYTES + 1)
        delta = (
            [memory_write(b"k", "deleted first", None), memory_write(b"k", "deleted last", large)],
            [memory_write(b"k", "other", None)],
            [memory_write(b"k", "deleted first", large), memory_write(b"k", "deleted last", None)],
        )
        state = open_state()
        await state.prepare(1, iter(delta), STAGED)
        await run_for(state.complete(), turns)
        self.crash(state)
        for _ in range(2):
            with contextlib.closing(open_state()) as state:
                await state.complete()
                assert read_all(state) == {(Table.MEMORY, 0, b"k", "deleted first"): large}

    async def test_nothing_of_an_undecided_delta_comes_back_with_the_next(self, open_state: OpenState) -> None:
        async def failing() -> None:
            def delta() -> Iterator[list[StateWrite]]:
                yield [memory_write(b"k", "ghost", b"1"), memory_write(b"k", "large", b"l" * 2 * LARGE_BYTES)]
                raise StateUnavailable("the delta cannot be read")

            await state.prepare(1, delta(), STAGED)

        state = open_state()
        with pytest.raises(StateError):
            await failing()
        assert state.prepared is None
        self.crash(state)
        with contextlib.closing(open_state()) as state:
            assert (state.checkpoint, state.prepared) == (0, None)
            await checkpoint(state, 1, [memory_write(b"k", "p", b"v")])
            assert read_all(state) == {(Table.MEMORY, 0, b"k", "p"): b"v"}

    async def test_staged_names_and_outputs_survive_with_the_decision(self, open_state: OpenState) -> None:
        outputs = tuple(b"%d" % number for number in range(5_000))
        staged = {
            "sink": Staged(("ä", "b"), outputs),
            "dead-letter": Staged(outputs=(b"x" * 3 * 2**20, b"")),
            "none": Staged(),
        }
        state = open_state()
        await state.prepare(1, iter(()), staged)
        self.crash(state)
        with contextlib.closing(open_state()) as state:
            assert state.prepared == Prepared(1, staged)

    # --- TTL -----------------------------------------------------------------------------------------------------------

    async def test_sweep_deletes_only_values_that_are_stamped_and_old(self, open_state: OpenState) -> None:
        large = "x" * (LARGE_BYTES + 1)
        writes = [
            memory_write(b"k", "old", encode_value("v", 1_000)),
            memory_write(b"k", "old.large", encode_value(large, 999)),
            memory_write(b"k", "old.object", encode_object(1)),
            memory_write(b"k", "new", encode_value("v", 1_001)),
            memory_write(b"k", "new.large", encode_value(large, 1_001)),
            memory_write(b"k", "plain", encode_value("v", None)),
            memory_write(b"k", "plain.object", encode_object(None)),
            (Table.RUNS, 0, b"k", "old", encode_value("v", 1)),
        ]
        with contextlib.closing(open_state()) as state:
            await checkpoint(state, 1, writes)
            assert await state.sweep(Table.MEMORY, 1_000, LATER_MS) == 3
            assert [path for path, _ in state.scan(0, b"k", "")] == ["new", "new.large", "plain", "plain.object"]
        with contextlib.closing(open_state()) as state:
            assert len(list(state.rows(Table.RUNS))) == 1
            await checkpoint(state, 2, [memory_write(b"k", "old", encode_value("again", 5_000))])
            assert state.get(0, b"k", "old") == encode_value("again", 5_000)

    async def test_sweep_is_bounded_and_goes_round(self, state: KeyedState) -> None:
        count = 12_000
        writes = [memory_write(b"%05d" % number, "p", encode_value(number, number)) for number in range(count)]
        slices = [writes[start : start + SLICE_ENTRIES_MAX] for start in range(0, count, SLICE_ENTRIES_MAX)]
        await checkpoint(state, 1, *slices)
        swept = [await state.sweep(Table.MEMORY, count // 2 - 1, LATER_MS) for _ in range(20)]
        assert sum(swept) == count // 2
        assert max(swept) <= 10_000
        assert 0 < swept[0] < count // 2, "the first call swept everything"
        swept = [await state.sweep(Table.MEMORY, count, LATER_MS) for _ in range(20)]
        assert sum(swept) == count // 2
        assert read_all(state) == {}

    async def test_sweep_finds_what_expires_later_and_what_was_written_since(self, state: KeyedState) -> None:
        def stamped(*stamps: int) -> list[StateWrite]:
            return [(Table.RESULTS, 0, b"", f"r{stamp}", encode_value(stamp, stamp)) for stamp in stamps]

        await checkpoint(state, 1, stamped(10, 20))
        assert [await state.sweep(Table.RESULTS, 5, 100) for _ in range(3)] == [0, 0, 0]
        await checkpoint(state, 2, stamped(100))
        assert sum([await state.sweep(Table.RESULTS, 10, 110) for _ in range(3)]) == 1
        assert state.find(Table.RESULTS, 0, b"", "r10") is None
        assert state.find(Table.RESULTS, 0, b"", "r20") == encode_value(20, 20)
        assert sum([await state.sweep(Table.RESULTS, 100, 200) for _ in range(3)]) == 2
        assert list(state.rows(Table.RESULTS)) == []

    async def test_find_returns_rows_of_every_table(self, state: KeyedState) -> None:
        large = b"\x00" + b"x" * (LARGE_BYTES + 1)
        writes: list[StateWrite] = [(table, 3, b"k", "name", b"\x00%d" % table) for table in Table]
        await checkpoint(state, 1, [*writes, (Table.RESULTS, 3, b"", "large", large)])
        assert [state.find(table, 3, b"k", "name") for table in Table] == [b"\x00%d" % table for table in Table]
        assert state.find(Table.RESULTS, 3, b"", "large") == large
        assert state.find(Table.RUNS, 3, b"k", "other") is None

    # --- ownership -----------------------------------------------------------------------------------------------------

    def test_a_second_owner_is_refused_until_the_first_closes(self, open_state: OpenState) -> None:
        with contextlib.closing(open_state()), pytest.raises(StateLocked):
            open_state()
        open_state().close()

    async def test_a_closed_state_refuses_every_use(self, open_state: OpenState) -> None:
        state = open_state()
        await checkpoint(state, 1, *OLD)
        half_read = iter(state.rows(Table.MEMORY))
        next(half_read)
        state.close()
        state.close()
        with pytest.raises(StateUnavailable):
            state.get(0, b"k", "kept")
        with pytest.raises(StateUnavailable):
            state.scan(0, b"k", "")
        with pytest.raises(StateUnavailable):
            list(state.rows(Table.MEMORY))
        with pytest.raises(StateUnavailable):
            await state.prepare(2, iter(NEW), {})
        with pytest.raises(StateUnavailable):
            await state.complete()
        with pytest.raises(StateUnavailable):
            await state.sweep(Table.MEMORY, 0, LATER_MS)
        with contextlib.closing(open_state()) as state:  # although `half_read` is still there
            assert read_all(state) == laid_over({}, OLD)

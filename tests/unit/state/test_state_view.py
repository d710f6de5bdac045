"""What is seen of a state beside its owner is one checkpoint, whatever the owner is doing."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from agentflow.api.memory_codec import encode_value
from agentflow.core.delta import Table
from agentflow.state.rocksdb import RocksDBKeyedState
from agentflow.state.rocksdb_rows import StateView
from agentflow.testing.conformance.keyed_state import NEW, OLD, STAGED, checkpoint, laid_over, read_all, run_for

KEYS = 300


def opened(path):
    return contextlib.closing(RocksDBKeyedState.open(path, job="j", free_min_bytes=0))


@pytest.mark.parametrize("turns", range(10))
async def test_a_decided_checkpoint_is_seen_whole_while_it_is_applied(turns, tmp_path):
    with opened(tmp_path) as state:
        await checkpoint(state, 1, *OLD)
        await state.prepare(2, iter(NEW), STAGED)
        await run_for(state.complete(), turns)
        with contextlib.closing(StateView(tmp_path)) as view:
            assert view.checkpoint == 2
            assert read_all(view) == laid_over(laid_over({}, OLD), NEW)
            for (table, operator, key, name), value in read_all(view).items():
                if table is Table.MEMORY:
                    assert view.get(operator, key, name) == value
                    assert (name, value) in view.scan(operator, key, name)


@pytest.mark.parametrize("turns", range(4))
async def test_an_undecided_checkpoint_is_not_seen(turns, tmp_path):
    with opened(tmp_path) as state:
        await checkpoint(state, 1, *OLD)
        await run_for(state.prepare(2, iter([*NEW, *NEW, *NEW]), STAGED), turns)
        with contextlib.closing(StateView(tmp_path)) as view:
            assert view.checkpoint == 1
            assert read_all(view) == laid_over({}, OLD)


async def test_every_look_beside_a_busy_owner_sees_one_checkpoint(tmp_path):
    """The owner flushes and compacts all the time, so files come and go while they are opened."""
    seen, problems, done = [], [], threading.Event()

    def look() -> None:
        try:
            while not done.is_set():
                with contextlib.closing(StateView(tmp_path)) as view:
                    expected = encode_value({"n": view.checkpoint, "fill": "x" * 2000}, None)
                    values = [row.value for table in (Table.MEMORY, Table.RUNS) for row in view.rows(table)]
                    if view.checkpoint and (len(values) != 2 * KEYS or any(value != expected for value in values)):
                        problems.append(view.checkpoint)
                    seen.append(view.checkpoint)
        except Exception as error:
            problems.append(error)
            raise

    with opened(tmp_path) as state:
        looking = threading.Thread(target=look)
        looking.start()
        number = 0
        while number < 60 and not problems:
            number += 1
            value = encode_value({"n": number, "fill": "x" * 2000}, None)
            await checkpoint(
                state,
                number,
                *([(table, 0, b"%d" % key, "n", value) for key in range(KEYS)] for table in (Table.MEMORY, Table.RUNS)),
            )
            await asyncio.to_thread(state._store._link, tmp_path / f"link-{number}")  # flushes
        done.set()
        await asyncio.to_thread(looking.join)
    assert problems == []
    assert seen == sorted(seen)
    assert len(set(seen)) > 5

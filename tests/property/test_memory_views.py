"""Memory that is looked at is the memory that was written: every key, every path, every value, and every difference."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from agentflow.api.memory_codec import encode_object, encode_value
from agentflow.core.delta import Table
from agentflow.state.memory_files import export_memory
from agentflow.state.memory_reader import MemoryReader, differences, encode_key
from agentflow.state.rocksdb import RocksDBKeyedState
from agentflow.state.rocksdb_rows import StateView
from agentflow.state.typed_json import OBJECT, json_text, stored_as_json, typed, untyped

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.just(math.nan)  # which of its bit patterns it is does not matter
    | st.text(max_size=8)
    | st.binary(max_size=8)
)
NAMES = st.text(st.sampled_from("$ab.bytes"), max_size=6) | st.sampled_from(
    ["$bytes", "$$bytes", "$float", "$text", "$object"]
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))
KEYS = (
    st.text(max_size=4)
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=4)
    | st.booleans()
)
PATHS = st.text(st.sampled_from("ab.\x00\uffff\U0001f600"), min_size=1, max_size=4) | st.just("\udcff")
STATES = st.dictionaries(st.tuples(st.integers(0, 1), KEYS, PATHS), VALUES, max_size=6)


def same(one: Any, other: Any) -> bool:
    """Equality that tells 1 from 1.0 and True, and in which NaN is itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    return one == other


@given(VALUES)
def test_a_value_comes_back_from_typed_json_as_it_was(value: Any) -> None:
    assert same(untyped(json.loads(json_text(typed(value)))), value)
    assert same(untyped(msgspec.json.decode(json_text(stored_as_json(encode_value(value, 7))))), value)


def test_the_mark_of_an_object_is_no_dict() -> None:
    assert stored_as_json(encode_object(None)) == OBJECT != stored_as_json(encode_value({}, None))
    assert stored_as_json(encode_value({"$object": True}, None)) != OBJECT


def encoded(state: dict[tuple[int, Any, str], Any]) -> dict[tuple[int, bytes, str], bytes]:
    return {(agent, encode_key(key), path): encode_value(value, None) for (agent, key, path), value in state.items()}


@contextlib.contextmanager
def reader_of(path: Path, state: dict[tuple[int, bytes, str], bytes]) -> Any:
    keyed = RocksDBKeyedState.open(path, job="j", free_min_bytes=0)
    writes = [(Table.META, agent, b"", "operator", b"x") for agent in (0, 1)]
    writes += [(Table.MEMORY, agent, key, name, value) for (agent, key, name), value in state.items()]

    async def write() -> None:
        await keyed.prepare(1, iter([writes]), {})
        await keyed.complete()

    asyncio.run(write())
    keyed.close()
    view = StateView(path)
    try:
        yield MemoryReader([view], None, 0)
    finally:
        view.close()


@settings(max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # to shrink opens too many databases
@given(STATES, STATES)
def test_what_is_read_exported_and_compared_is_what_was_written(
    before: dict[tuple[int, Any, str], Any], after: dict[tuple[int, Any, str], Any]
) -> None:
    old, new = encoded(before), encoded(after | {place: before[place] for place in list(before)[::2]})
    with (
        tempfile.TemporaryDirectory() as place,
        reader_of(Path(place) / "old", old) as one,
        reader_of(Path(place) / "new", new) as other,
    ):
        entries = list(one.entries())
        assert {(entry.agent, entry.encoded_key, entry.path): entry.stored for entry in entries} == old
        assert [entry.place for entry in entries] == sorted(entry.place for entry in entries)
        for agent, key, _ in old:
            of_key = [entry for entry in entries if entry.encoded_key == key]
            assert [entry for entry in one.entries([of_key[0].key]) if entry.agent == agent] == [
                entry for entry in of_key if entry.agent == agent
            ]
        summaries = list(one.keys())
        assert sum(summary.paths for summary in summaries) == len(old)
        assert sum(summary.size for summary in summaries) == sum(map(len, old.values()))
        assert len(summaries) == len({(agent, key) for agent, key, _ in old})
        found = {(one.entry.agent, one.entry.encoded_key, one.entry.path): one for one in differences(one, other)}
        assert set(found) == {where for where in {*old, *new} if old.get(where) != new.get(where)}
        for where, difference in found.items():
            assert (difference.before and difference.before.stored) == old.get(where)
            assert (difference.after and difference.after.stored) == new.get(where)
        file = Path(place) / "memory.jsonl"
        assert export_memory(one.entries(), file) == len(old)
        lines = [json.loads(line) for line in file.read_bytes().splitlines()]
        assert {
            (line["agent"], encode_key(untyped(line["key"])), untyped(line["path"])): encode_value(
                untyped(line["value"]), None
            )
            for line in lines
        } == old

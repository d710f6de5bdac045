"""Memory as files, and what a reader leaves out."""

from __future__ import annotations

import contextlib
import json
import sys
import tracemalloc
from pathlib import Path

import msgspec
import pytest
from pyarrow import parquet

from agentflow.api.memory_codec import encode_object, encode_value
from agentflow.core.delta import Table
from agentflow.errors import ConfigError, NotConfigured, StateCorrupted, StateUnavailable
from agentflow.state.memory_files import export_memory
from agentflow.state.memory_reader import MemoryEntry, MemoryReader, encode_key
from agentflow.state.rocksdb import RocksDBKeyedState
from agentflow.state.rocksdb_rows import StateView
from agentflow.state.typed_json import untyped

MINUTE_MS = 60_000


async def written(path: Path, memory: dict[tuple[object, str], bytes], agent: int = 0) -> StateView:
    with contextlib.closing(RocksDBKeyedState.open(path, job="j", free_min_bytes=0)) as state:
        writes = [(Table.META, agent, b"", "operator", b"x")]
        writes += [(Table.MEMORY, agent, encode_key(key), name, value) for (key, name), value in memory.items()]
        await state.prepare(1, iter([writes]), {})
        await state.complete()
    return StateView(path)


def entry(key: object, path: str, value: object, stamp_ms: int | None = None) -> MemoryEntry:
    return MemoryEntry(0, encode_key(key), path, encode_value(value, stamp_ms))


async def test_what_is_expired_is_left_out(tmp_path: Path) -> None:
    view = await written(
        tmp_path,
        {
            ("old", "n"): encode_value(1, 5 * MINUTE_MS),
            ("new", "n"): encode_value(2, 5 * MINUTE_MS + 1),
            ("for ever", "n"): encode_value(3, None),
        },
    )
    with contextlib.closing(view):
        reader = MemoryReader([view], MINUTE_MS, 6 * MINUTE_MS)
        keys = list(reader.keys())
        assert sorted(summary.key for summary in keys) == ["for ever", "new"]
        assert reader.of_key("old") == []
        assert len(list(MemoryReader([view], None, 6 * MINUTE_MS).entries())) == 3


async def test_a_path_means_itself_and_what_is_below_it(tmp_path: Path) -> None:
    paths = ["star", "stars", "stars.a", "stars.b.c", "starship"]
    view = await written(tmp_path, {(1, path): encode_value(path, None) for path in paths})
    with contextlib.closing(view):
        reader = MemoryReader([view], None, 0)
        assert [found.path for found in reader.of_key(1, "stars")] == ["stars", "stars.a", "stars.b.c"]
        assert [found.path for found in reader.of_key(1, "stars.b")] == ["stars.b.c"]
        assert [found.path for found in reader.of_key(1)] == paths
        assert reader.of_key("1") == [], "1 is not '1'"


async def test_subtasks_are_read_as_one_in_the_order_of_keys(tmp_path: Path) -> None:
    views = [
        await written(tmp_path / str(number), {(key, "n"): encode_value(key, None) for key in keys})
        for number, keys in enumerate((["b", "d"], ["a", "e"], [], ["c"]))
    ]
    reader = MemoryReader(views, None, 0)
    assert [found.key for found in reader.entries()] == ["a", "b", "c", "d", "e"]
    assert [found.key for found in reader.entries(["c", "nobody", "a"])] == ["a", "c"]
    assert [summary.key for summary in reader.keys("d")] == ["d"]
    for view in views:
        view.close()


def test_parquet_holds_what_json_lines_hold(tmp_path: Path) -> None:
    entries = [
        entry("p-1", "stars.total", 9),
        entry("p-1", "stars.share", 1.0),
        entry(7, "text", "ü"),
        entry(b"\xff", "raw", b"\x00\x01", 1_700_000_000_123),
        entry(1.5, "deep", {"a": [1, None, {"$b": float("inf")}]}),
        entry(True, "", None),
        MemoryEntry(1, encode_key("o"), "made", encode_object(None)),
    ]
    assert export_memory(entries, tmp_path / "m.parquet") == len(entries)
    assert export_memory(entries, tmp_path / "m.jsonl") == len(entries)
    rows = parquet.read_table(tmp_path / "m.parquet").to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["int", "float", "str", "bytes", "dict", "null", "object"]
    assert [(row["key"], row["key_kind"]) for row in rows] == [
        ("p-1", "str"),
        ("p-1", "str"),
        ("7", "int"),
        ('{"$bytes":"/w=="}', "bytes"),
        ("1.5", "float"),
        ("true", "bool"),
        ("o", "str"),
    ]
    for row, line, stored in zip(rows, lines, entries, strict=True):
        assert (row["agent"], row["path"]) == (line["agent"], line["path"]) == (stored.agent, stored.path)
        assert untyped(msgspec.json.decode(row["value"])) == untyped(line["value"])
        assert untyped(line["key"]) == stored.key
    assert rows[3]["used_at"].timestamp() == 1_700_000_000.123
    assert lines[3]["used-ms"] == 1_700_000_000_123
    assert rows[0]["used_at"] is None


@pytest.mark.parametrize("name", ["m.jsonl", "m.parquet"])
def test_an_empty_export_is_a_file_and_a_failed_one_is_none(name: str, tmp_path: Path) -> None:
    def broken():
        yield entry("a", "n", 1)
        raise InterruptedError

    with pytest.raises((InterruptedError, StateUnavailable)):
        export_memory(broken(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    assert export_memory([], tmp_path / name) == 0
    assert [found.name for found in tmp_path.iterdir()] == [name]
    before = (tmp_path / name).read_bytes()
    with pytest.raises((InterruptedError, StateUnavailable)):
        export_memory(broken(), tmp_path / name)
    assert (tmp_path / name).read_bytes() == before, "what was there stays until the new one is whole"


@pytest.mark.parametrize("name", ["m.jsonl", "m.parquet"])
def test_an_export_needs_no_memory_for_what_it_has_written(name: str, tmp_path: Path) -> None:
    def entries(count: int):
        return (entry(f"k{number}", "text", "x" * 10_000) for number in range(count))

    export_memory(entries(10), tmp_path / name)  # what is imported once
    tracemalloc.start()
    try:
        assert export_memory(entries(20_000), tmp_path / name) == 20_000  # 200 MB
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 150 * 2**20, peak


def test_a_value_that_cannot_be_read_is_told_with_its_place(tmp_path: Path) -> None:
    damaged = MemoryEntry(0, encode_key("a"), "n", b"\x7f")
    with pytest.raises(StateCorrupted, match="cannot be read: memory value with unknown tag 0x7f"):
        export_memory([damaged], tmp_path / "m.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_file_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.jsonl or \.parquet"):
        export_memory([], tmp_path / "m.csv")


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(NotConfigured, match="pyarrow") as raised:
        export_memory([], tmp_path / "m.parquet")
    assert "agentflow[arrow]" in raised.value.fix
    assert list(tmp_path.iterdir()) == []

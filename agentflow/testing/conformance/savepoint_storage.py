"""The laws of `SavepointStorage`.

Subclass the suite and say what the storage is; pytest does the rest::

    class TestMyStorage(SavepointStorageConformance):
        @pytest.fixture
        def storage(self, tmp_path):
            return MyStorage(tmp_path)
"""

# ruff: noqa: D102 - the name of a law states it

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentflow.errors import StateError
from agentflow.state.savepoint_storage import CHUNK_BYTES, SavepointStorage

CONTENTS = {
    "one/manifest.json": b"{}",
    "one/subtask-0/rocksdb/000012.sst": bytes(range(256)) * (CHUNK_BYTES // 100),
    "two/subtask-0/rocksdb/empty.log": b"",
    "two-and-more/manifest.json": b"\x00",
}


class SavepointStorageConformance:
    """Subclass it and define the fixture ``storage``: a place of this test alone, which nobody has made yet."""

    @pytest.fixture
    def storage(self) -> SavepointStorage:
        raise NotImplementedError

    @pytest.fixture
    def filled(self, storage: SavepointStorage) -> SavepointStorage:
        for name, content in CONTENTS.items():
            storage.write(name, pieces(content))
        return storage

    def test_a_place_that_nobody_has_made_is_empty(self, storage: SavepointStorage) -> None:
        assert list(storage.folders()) == []
        assert storage.read("one/manifest.json") is None

    def test_what_was_written_is_read(self, filled: SavepointStorage) -> None:
        for name, content in CONTENTS.items():
            assert filled.read(name) == content
            assert b"".join(filled.chunks(name)) == content

    def test_folders_are_the_first_parts_of_names_sorted(self, filled: SavepointStorage) -> None:
        assert list(filled.folders()) == ["one", "two", "two-and-more"]

    def test_a_missing_name_is_none_or_an_error_and_never_empty(self, filled: SavepointStorage) -> None:
        assert filled.read("one/nothing") is None
        assert filled.read("none/nothing") is None
        with pytest.raises(StateError):
            list(filled.chunks("one/nothing"))

    def test_what_is_written_again_is_replaced(self, filled: SavepointStorage) -> None:
        filled.write("one/manifest.json", [b"new"])
        assert filled.read("one/manifest.json") == b"new"

    def test_an_interrupted_write_leaves_what_was_there(self, filled: SavepointStorage) -> None:
        def broken() -> Iterator[bytes]:
            yield b"half"
            raise InterruptedError

        for name, content in (("one/manifest.json", b"{}"), ("one/new", None), ("three/new", None)):
            with pytest.raises((InterruptedError, StateError)):
                filled.write(name, broken())
            assert filled.read(name) == content

    def test_shared_content_outlives_what_it_was_shared_with(self, filled: SavepointStorage) -> None:
        name = "one/subtask-0/rocksdb/000012.sst"
        if not filled.share("three/a/b.sst", name):
            pytest.skip("this storage shares nothing")
        filled.write(name, [b"other"])
        assert filled.read("three/a/b.sst") == CONTENTS[name]

    def test_what_is_not_there_is_not_shared(self, filled: SavepointStorage) -> None:
        assert not filled.share("three/b.sst", "one/nothing")
        assert filled.read("three/b.sst") is None

    def test_what_is_deleted_is_gone_and_nothing_else(self, filled: SavepointStorage) -> None:
        is_shared = filled.share("three/b.sst", "two/subtask-0/rocksdb/empty.log")
        for _ in range(2):
            filled.delete("two", "manifest.json")
            assert list(filled.folders()) == ["one", *(["three"] if is_shared else []), "two-and-more"]
        for name, content in CONTENTS.items():
            assert filled.read(name) == (None if name.startswith("two/") else content)

    def test_fetched_content_is_a_local_file(self, filled: SavepointStorage, tmp_path: Path) -> None:
        for number, (name, content) in enumerate(CONTENTS.items()):
            path = tmp_path / f"fetched-{number}"
            filled.fetch(name, path)
            assert path.read_bytes() == content
        with pytest.raises(StateError):
            filled.fetch("one/nothing", tmp_path / "nothing")


def pieces(content: bytes) -> list[bytes]:
    """Cut content into pieces of uneven sizes."""
    cuts = [0, 1, 1, CHUNK_BYTES // 2, CHUNK_BYTES * 2]
    return [content[start:end] for start, end in zip(cuts, [*cuts[1:], len(content)], strict=True) if start <= end]

"""The laws of `FileStore`.

Subclass the suite with one fixture: ``new_store`` makes a store of one place, empty at first, each time it is called (a later one is a later
life of the first).
"""

# ruff: noqa: D102 - the name of a law states it

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator

import pytest

from agentflow.connectors.file_store import FileStore

NewStore = Callable[[], FileStore]


def staged(store: FileStore, name: str, *chunks: bytes) -> str:
    """Write a file and stage it."""
    file = store.begin(name.partition(".")[0])
    try:
        for chunk in chunks:
            assert file.write(chunk) == len(chunk)
        return file.stage(name)
    finally:
        file.discard()


def content(store: FileStore, name: str) -> bytes:
    """Read a file whole."""
    reader = store.open(name)
    try:
        return reader.read(0, reader.size)
    finally:
        reader.close()


def names(store: FileStore, prefix: str = "") -> list[str]:
    """Return what a reader finds."""
    return [file.name for file in store.find(prefix)]


class FileStoreConformance:
    """What every `FileStore` obeys."""

    def test_staged_file_is_invisible_until_it_is_published_and_whole_then(self, new_store: NewStore) -> None:
        store = new_store()
        assert not store.is_there()
        store.acquire("0")
        name = staged(store, "a.txt", b"1", b"", b"2")
        assert store.is_there()
        assert (names(store), store.has("a.txt")) == ([], False)
        assert store.publish([name]) == []
        assert (names(store), store.has("a.txt")) == (["a.txt"], True)
        assert content(store, "a.txt") == b"12"
        store.release()

    def test_publishing_is_repeatable(self, new_store: NewStore) -> None:
        store = new_store()
        store.acquire("0")
        published = [staged(store, f"{letter}.txt", letter.encode()) for letter in "ab"]
        store.publish(published)
        store.publish(published)
        store.release()
        later = new_store()
        later.acquire("0")
        later.publish(published)
        assert [content(later, name) for name in names(later)] == [b"a", b"b"]
        later.release()

    def test_later_life_publishes_what_was_staged(self, new_store: NewStore) -> None:
        store = new_store()
        store.acquire("0")
        first = staged(store, "a.txt", b"1")
        store.publish([first])
        second = staged(store, "b.txt", b"2")
        store.release()
        later = new_store()
        later.acquire("0")
        later.sweep("b", frozenset([second]))
        later.publish([second])
        assert [content(later, name) for name in names(later)] == [b"1", b"2"]
        later.release()

    def test_published_file_that_was_taken_away_does_not_come_back(self, new_store: NewStore) -> None:
        store = new_store()
        store.acquire("0")
        name = staged(store, "a.txt", b"1")
        store.publish([name])
        store.delete(["a.txt"])
        store.release()
        later = new_store()
        later.acquire("0")
        later.publish([name])
        assert names(later) == []
        later.release()

    def test_sweeping_deletes_what_is_staged_or_unfinished_and_not_kept(self, new_store: NewStore) -> None:
        store = new_store()
        store.acquire("0")
        kept, lost, other = (staged(store, name, b"x") for name in ("a-1.txt", "a-2.txt", "b-1.txt"))
        unfinished = store.begin("a-")
        unfinished.write(b"x")
        store.release()
        later = new_store()
        later.acquire("0")
        later.sweep("a-", frozenset([kept]))
        later.publish([kept])
        later.publish([other])
        unfinished.discard()
        assert names(later) == ["a-1.txt", "b-1.txt"]
        with pytest.raises(FileNotFoundError):
            self.publish_all(later, [lost])
        later.release()

    @staticmethod
    def publish_all(store: FileStore, staged_names: list[str]) -> None:
        """Publish, and take what the store cannot tell about as missing."""
        if store.publish(staged_names):
            raise FileNotFoundError

    def test_place_has_one_owner(self, new_store: NewStore) -> None:
        first, second = new_store(), new_store()
        first.acquire("0")

        def take_over() -> None:
            second.acquire("0")  # is refused, or the first one is when it goes on
            staged(first, "a.txt", b"1")

        with pytest.raises(BlockingIOError):
            take_over()
        second.acquire("1")
        second.publish([staged(second, "b.txt", b"2")])
        assert names(second) == ["b.txt"]
        first.release()
        second.release()

    def test_what_was_written_can_be_read_back_before_it_is_staged(self, new_store: NewStore) -> None:
        store = new_store()
        store.acquire("0")
        file = store.begin("a")
        written = [b"%d" % number * 1000 for number in range(3000)]
        for chunk in written:
            file.write(memoryview(chunk))
        assert b"".join(file.chunks()) == b"".join(written)
        assert b"".join(file.chunks()) == b"".join(written)
        store.publish([file.stage("a.txt")])
        assert content(store, "a.txt") == b"".join(written)
        file.discard()
        store.release()

    def test_discarded_file_leaves_nothing(self, new_store: NewStore) -> None:
        store = new_store()
        store.acquire("0")
        file = store.begin("a")
        file.write(b"x")
        file.discard()
        file.discard()
        assert names(store) == []
        store.release()

    def test_files_are_found_by_prefix_in_order_and_hidden_ones_are_not(self, new_store: NewStore) -> None:
        store = new_store()
        for name in ("b/2", "b/10", "b-1", "a", "b/_x", "b/.y", "_c/z", ".d"):
            store.put(name, [name.encode()])
        assert names(store) == ["a", "b-1", "b/10", "b/2"]
        assert names(store, "b") == ["b-1", "b/10", "b/2"]
        assert names(store, "b/1") == ["b/10"]
        assert names(store, "c") == []
        assert [file.size for file in store.find("b/")] == [4, 3]

    def test_file_is_read_by_ranges(self, new_store: NewStore) -> None:
        store = new_store()
        store.put("a", [b"0123", b"456789"])
        reader = store.open("a")
        assert reader.size == 10
        assert [reader.read(0, 3), reader.read(8, 5), reader.read(10, 1), reader.read(99, 1)] == [
            b"012",
            b"89",
            b"",
            b"",
        ]
        reader.close()
        reader.close()

    def test_reader_notices_another_file_of_its_name(self, new_store: NewStore) -> None:
        store = new_store()
        store.put("a", [b"0123456789"])
        reader = store.open("a")
        store.put("a", [b"9876543210"])
        with pytest.raises(OSError, match=r".") as stale:
            reader.read(0, 4)
        assert stale.value.errno == errno.ESTALE
        reader.close()
        store.delete(["a"])
        with pytest.raises(FileNotFoundError):
            store.open("a")

    def test_file_that_cannot_be_written_whole_is_not_there(self, new_store: NewStore) -> None:
        def broken() -> Iterator[bytes]:
            yield b"x" * 2**20
            raise KeyError

        store = new_store()
        with pytest.raises(KeyError):
            store.put("a", broken())
        assert names(store) == []
        store.put("a", [b"1"])
        with pytest.raises(KeyError):
            store.put("a", broken())
        assert content(store, "a") == b"1"

    def test_copy_is_a_file_of_its_own(self, new_store: NewStore) -> None:
        store = new_store()
        store.put("a", [b"1"])
        store.copy("a", "deep/b")
        store.delete(["a", "not there"])
        assert [content(store, name) for name in names(store)] == [b"1"]
        with pytest.raises(FileNotFoundError):
            store.copy("a", "c")

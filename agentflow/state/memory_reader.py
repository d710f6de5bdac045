"""Short-term memory as rows say it, for commands that look: of a running job, of a stopped one, and of a savepoint."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from agentflow.api.memory_codec import restamp, stamp_of
from agentflow.core.delta import StoredRow, Table
from agentflow.state.layout import encode_name
from agentflow.state.rocksdb_rows import StateView

encode_key = msgspec.msgpack.Encoder().encode
_decode_key = msgspec.msgpack.Decoder().decode


class MemoryEntry(msgspec.Struct, frozen=True, gc=False):
    """One value of memory.

    Attributes:
        agent: Place of the agent in the chain.
        encoded_key: Canonical encoding of the key.
        path: Its path.
        stored: Its value, as it is stored.
    """

    agent: int
    encoded_key: bytes
    path: str
    stored: bytes

    @property
    def key(self) -> Any:  # noqa: ANN401 (any key)
        """The decoded key."""
        return _decode_key(self.encoded_key)

    @property
    def place(self) -> tuple[int, bytes, bytes]:
        """Where it stands in the order of entries."""
        return self.agent, self.encoded_key, encode_name(self.path)

    @property
    def used_ms(self) -> int | None:
        """When it was used last, as its time to live is counted; None: it has none."""
        return stamp_of(self.stored)


class KeySummary(msgspec.Struct, frozen=True, rename="kebab"):
    """What a key has in memory.

    Attributes:
        key: The decoded key.
        agent: Place of the agent in the chain.
        paths: Number of values.
        size: Bytes of the values.
    """

    key: Any
    agent: int
    paths: int
    size: int


class Difference(msgspec.Struct, frozen=True):
    """A path whose value is not the same in two states.

    Attributes:
        before: Its entry in the first one; None: it was added.
        after: Its entry in the second one; None: it was removed.
    """

    before: MemoryEntry | None
    after: MemoryEntry | None

    @property
    def entry(self) -> MemoryEntry:
        """The one that is there, for its place."""
        entry = self.after or self.before
        assert entry is not None
        return entry

    @property
    def change(self) -> str:
        """What happened: added, removed, changed."""
        return "added" if self.before is None else "removed" if self.after is None else "changed"


class MemoryReader:
    """Reads the memory of one state; values whose time to live is over are left out.

    Args:
        views: The subtasks.
        ttl_ms: Time to live of memory; None: it has none.
        now_ms: When that is judged, epoch milliseconds.
        close: Called by `close`.
    """

    def __init__(
        self, views: Sequence[StateView], ttl_ms: int | None, now_ms: int, close: Callable[[], object] = lambda: None
    ) -> None:
        self._views = views
        self._oldest_ms = None if ttl_ms is None else now_ms - ttl_ms
        self.close = close

    @property
    def checkpoint(self) -> int:
        """The highest checkpoint number of the subtasks."""
        return max((view.checkpoint for view in self._views), default=0)

    def entries(self, keys: Sequence[object] = ()) -> Iterator[MemoryEntry]:
        """Iterate over memory, ordered by (agent, key, path), each as bytes; memory of the process stays small.

        Args:
            keys: Only these; none: all.
        """
        if keys:
            yield from self._of_keys(keys)
            return
        tables: list[Iterator[StoredRow]] = [view.rows(Table.MEMORY) for view in self._views]
        rows = tables[0] if len(tables) == 1 else heapq.merge(*tables, key=_place)
        for row in rows:
            if self._lives(row.value):
                yield MemoryEntry(row.operator, row.key, row.name, row.value)

    def _of_keys(self, keys: Sequence[object]) -> Iterator[MemoryEntry]:
        wanted = sorted({encode_key(key) for key in keys})
        for agent in self._agents():
            for key in wanted:
                for view in self._views:
                    for path, stored in view.scan(agent, key, ""):
                        if self._lives(stored):
                            yield MemoryEntry(agent, key, path, stored)

    def _agents(self) -> list[int]:
        """Return the places of the agents: each has a row of its own."""
        return sorted({row.operator for view in self._views for row in view.rows(Table.META)})

    def of_key(self, key: object, path: str = "") -> list[MemoryEntry]:
        """Return the memory of a key: the value at a path and those below it; an empty path: all."""
        below = f"{path}."
        return [
            entry for entry in self.entries([key]) if not path or entry.path == path or entry.path.startswith(below)
        ]

    def keys(self, prefix: str = "") -> Iterator[KeySummary]:
        """Iterate over keys that have memory; with a prefix: over those that begin with it as text."""
        current: tuple[int, bytes] | None = None
        key: Any = None
        paths = size = 0
        is_wanted = False
        for entry in self.entries():
            if (entry.agent, entry.encoded_key) != current:
                if current is not None and is_wanted:
                    yield KeySummary(key, current[0], paths, size)
                current, key, paths, size = (entry.agent, entry.encoded_key), entry.key, 0, 0
                is_wanted = not prefix or key_text(key).startswith(prefix)
            paths += 1
            size += len(entry.stored)
        if current is not None and is_wanted:
            yield KeySummary(key, current[0], paths, size)

    def _lives(self, stored: bytes) -> bool:
        if self._oldest_ms is None:
            return True
        stamp_ms = stamp_of(stored)
        return stamp_ms is None or stamp_ms > self._oldest_ms


def key_text(key: object) -> str:
    """Return a key as text: text as it is, bytes and numbers as Python writes them."""
    return key if isinstance(key, str) else repr(key)


def _place(row: StoredRow) -> tuple[int, bytes, bytes]:
    return row.operator, row.key, encode_name(row.name)


def differences(before: MemoryReader, after: MemoryReader, keys: Sequence[object] = ()) -> Iterator[Difference]:
    """Iterate over what differs, in the order of entries; when a value was used last makes no difference."""
    old, new = before.entries(keys), after.entries(keys)
    one, other = next(old, None), next(new, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one.place < other.place):
            yield Difference(one, None)
            one = next(old, None)
        elif one is None or other.place < one.place:
            yield Difference(None, other)
            other = next(new, None)
        else:
            if restamp(one.stored, 0) != restamp(other.stored, 0):
                yield Difference(one, other)
            one, other = next(old, None), next(new, None)

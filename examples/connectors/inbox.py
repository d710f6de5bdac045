"""A source as a class: rows of a table, which are deleted when a checkpoint has them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence

from agentflow.api.codecs import JSON
from agentflow.core.records import Record
from agentflow.errors import SourceError, SourceUnavailable


class InboxSource:
    """Reads a table ``inbox (number INTEGER PRIMARY KEY, value BLOB)`` for ever, by rising numbers."""

    name = "inbox"
    is_replayable = True  # from each position that `release` has not named
    codec = JSON
    partitions = ()
    idle_timeout_ms = None

    def __init__(self, file: str, poll_s: float = 0.2) -> None:
        self._file = file
        self._poll_s = poll_s
        self._next = 0

    async def open(self, positions: Mapping[str, int]) -> None:
        self._next = positions.get(self.name, 0)
        tables = await asyncio.to_thread(self._query, "SELECT name FROM sqlite_master WHERE name = 'inbox'")
        if not tables:
            raise SourceError(
                "the database has no inbox",
                where={"file": self._file},
                expected="a table inbox (number, value)",
                fix="create it, or correct the file's name",
            )

    async def fetch(self, records_max: int) -> Sequence[Record]:
        while True:
            query = "SELECT number, value FROM inbox WHERE number >= ? ORDER BY number LIMIT ?"
            rows = await asyncio.to_thread(self._query, query, self._next, records_max)
            if rows:
                break
            await asyncio.sleep(self._poll_s)
        self._next = rows[-1][0] + 1  # behind the last wait: a cancelled fetch has taken nothing
        return [Record(self.name, number, number + 1, value) for number, value in rows]

    def barrier(self, positions: Mapping[str, int]) -> Mapping[str, int]:
        return positions

    async def release(self, positions: Mapping[str, int]) -> None:
        await asyncio.to_thread(self._query, "DELETE FROM inbox WHERE number < ?", positions.get(self.name, 0))

    async def close(self) -> None:
        """Hold nothing: each query has a connection of its own."""

    def _query(self, query: str, *arguments: int) -> list[tuple[int, bytes]]:
        try:
            database = sqlite3.connect(self._file)
            try:
                with database:
                    return database.execute(query, arguments).fetchall()
            finally:
                database.close()
        except sqlite3.OperationalError as error:  # locked, or the disk: another time it works
            raise SourceUnavailable(f"the inbox cannot be read: {error}", where={"file": self._file}) from error

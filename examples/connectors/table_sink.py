"""A sink as a class: rows of a table, exactly once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

from agentflow.core.effects import DeadLetter, EmitRecord
from agentflow.errors import SinkError
from agentflow.runtime.ports import Guarantee, Staged

SCHEMA = """
    CREATE TABLE IF NOT EXISTS staged (checkpoint INTEGER, place INTEGER, value BLOB);
    CREATE TABLE IF NOT EXISTS outputs (number INTEGER PRIMARY KEY, value BLOB);
"""


class TableSink:
    """Stages the outputs of a checkpoint in a table of their own, and moves them when it is decided."""

    name = "table"
    guarantee = Guarantee.EXACTLY_ONCE
    record_max_bytes = None

    def __init__(self, file: str) -> None:
        self._file = file
        self._written: list[bytes] = []
        self._closed: dict[int, list[bytes]] = {}
        self._working: asyncio.Future[Any] | None = None

    async def open(self, prepared: tuple[int, Staged] | None) -> None:
        self._written, self._closed = [], {}
        await self._in_thread(self._drop_all_but, -1 if prepared is None else prepared[0])

    def write(self, record: EmitRecord | DeadLetter) -> None:
        self._written.append(record.value or b"null")

    def barrier(self, checkpoint: int) -> None:
        self._closed[checkpoint], self._written = self._written, []

    async def stage(self, checkpoint: int) -> Staged:
        outputs = self._closed.pop(checkpoint)
        if not outputs:
            return Staged()
        await self._in_thread(self._stage, checkpoint, outputs)
        return Staged(names=(f"checkpoint-{checkpoint}",))

    async def publish(self, checkpoint: int, staged: Staged) -> None:
        if staged.names:
            await self._in_thread(self._move, checkpoint)

    async def close(self) -> None:
        if self._working is not None:  # a thread cannot be cancelled: it must not meet the next life
            await asyncio.wait([self._working])

    async def _in_thread(self, call: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401 (of any call)
        self._working = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
        try:
            await asyncio.shield(self._working)
        except sqlite3.Error as error:
            raise SinkError(f"the table cannot be written: {error}", where={"file": self._file}) from error

    def _drop_all_but(self, checkpoint: int) -> None:
        with closing(sqlite3.connect(self._file)) as database, database:
            database.executescript(SCHEMA)
            database.execute("DELETE FROM staged WHERE checkpoint != ?", (checkpoint,))

    def _stage(self, checkpoint: int, outputs: list[bytes]) -> None:
        with closing(sqlite3.connect(self._file)) as database, database:
            rows = [(checkpoint, place, value) for place, value in enumerate(outputs)]
            database.executemany("INSERT INTO staged VALUES (?, ?, ?)", rows)

    def _move(self, checkpoint: int) -> None:
        with (
            closing(sqlite3.connect(self._file)) as database,
            database,
        ):  # one transaction: again, it finds nothing to move
            move = "INSERT INTO outputs (value) SELECT value FROM staged WHERE checkpoint = ? ORDER BY place"
            database.execute(move, (checkpoint,))
            database.execute("DELETE FROM staged WHERE checkpoint = ?", (checkpoint,))
